//! The stream map: SMRs, S2CRs, and which of them a transaction's stream ID selects.

use alloc::vec;
use alloc::vec::Vec;

use crate::config::{Config, Conflict};
use crate::fault::GlobalFaultKind;
use crate::registers::{field, scr0, stream};
use crate::smmu::Smmu;
use crate::transaction::Bypass;

/// Where a transaction goes once its stream ID has been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steering {
    Bypass(Bypass),
    Bank { group: u8, bank: u8, s2cr: u32 },
    Fault(GlobalFaultKind),
}

impl Smmu {
    /// The stream-map entries that select `stream` now, computed with the bits that this part implements; lowest first.
    ///
    /// Without stream matching it is the S2CR that the stream ID indexes. sCR0.CLIENTPD does not matter here.
    pub fn matching_entries(&self, stream: u16) -> Vec<u8> {
        let stream = self.carried(stream);
        if !self.config.stream_matching {
            return u8::try_from(stream).ok().filter(|n| *n < self.config.group_count()).into_iter().collect();
        }
        (0..self.config.group_count()).filter(|n| self.matches(*n, stream)).collect()
    }

    /// Everything that can become of `stream` in the stream map now; what the model itself would do first.
    pub(crate) fn steer(&self, stream: u16) -> Vec<Steering> {
        let cr0 = self.nonsecure.cr0;
        if cr0 & scr0::CLIENTPD != 0 {
            return vec![Steering::Bypass(Bypass::ClientsDisabled)];
        }
        let entries = self.matching_entries(stream);
        let unidentified = if cr0 & scr0::USFCFG != 0 {
            Steering::Fault(GlobalFaultKind::UnidentifiedStream)
        } else {
            Steering::Bypass(Bypass::Unmatched)
        };
        let conflict = if cr0 & scr0::SMCFCFG != 0 {
            Steering::Fault(GlobalFaultKind::StreamMatchConflict)
        } else {
            Steering::Bypass(Bypass::Conflict)
        };
        let each = || entries.iter().map(|n| self.entry(*n));
        match (entries.as_slice(), self.config.conflict) {
            ([], _) => vec![unidentified],
            ([only], _) => vec![self.entry(*only)],
            (_, Conflict::Detected) => vec![conflict],
            ([lowest, ..], Conflict::Lowest) => vec![self.entry(*lowest)],
            ([.., highest], Conflict::Highest) => vec![self.entry(*highest)],
            (_, Conflict::Varies) => core::iter::once(conflict).chain(each()).collect(),
        }
    }

    /// One of the possibilities: the first, unless the part varies.
    pub(crate) fn steer_once(&mut self, stream: u16) -> Steering {
        let all = self.steer(stream);
        let pick = match all.len() {
            0 | 1 => 0,
            many => self.unknown.draw().checked_rem(many as u64).unwrap_or(0),
        };
        let picked = usize::try_from(pick).ok().and_then(|n| all.get(n).copied());
        picked.unwrap_or(Steering::Fault(GlobalFaultKind::InvalidContext))
    }

    /// The stream ID as far as the bus carries it.
    pub(crate) fn carried(&self, stream: u16) -> u16 {
        if self.extended_ids() { stream } else { stream & low_mask(self.config.stream_id_bits) }
    }

    pub(crate) fn read_smr(&self, n: usize) -> u32 {
        self.smrs.get(n).copied().unwrap_or(0) & smr_bits(&self.config, self.extended_ids())
    }

    pub(crate) fn write_smr(&mut self, n: usize, value: u32) {
        let bits = smr_bits(&self.config, self.extended_ids());
        if let Some(smr) = self.smrs.get_mut(n) {
            *smr = value & bits;
        }
    }

    pub(crate) fn write_s2cr(&mut self, n: usize, value: u32) {
        let mut value = value & s2cr_bits(&self.config);
        match value & stream::S2CR_TYPE {
            stream::S2CR_BYPASS if self.config.quirks.bypass_becomes_fault => {
                value = (value & !stream::S2CR_TYPE) | stream::S2CR_FAULT;
            }
            kind if kind & stream::S2CR_FAULT != 0 && self.config.quirks.fault_write_ignored => return,
            _ => (),
        }
        if let Some(s2cr) = self.s2crs.get_mut(n) {
            *s2cr = value;
        }
    }

    fn matches(&self, n: u8, stream: u16) -> bool {
        let n = usize::from(n);
        let (Some(s2cr), smr) = (self.s2crs.get(n), self.read_smr(n)) else { return false };
        let extended = self.extended_ids();
        let valid = if extended { s2cr & stream::S2CR_EXIDVALID != 0 } else { smr & stream::SMR_VALID != 0 };
        let width = if extended { 16 } else { 15 };
        let (id, mask) = (field(smr, 0, width), field(smr, 16, width));
        let implemented = u32::from(self.config.smr_id & if extended { 0xffff } else { 0x7fff });
        valid && (u32::from(stream) ^ id) & implemented & !mask == 0
    }

    fn entry(&self, n: u8) -> Steering {
        let Some(s2cr) = self.s2crs.get(usize::from(n)).copied() else {
            return Steering::Fault(GlobalFaultKind::UnidentifiedStream);
        };
        let low = (s2cr & 0xff) as u8;
        match s2cr & stream::S2CR_TYPE {
            stream::S2CR_TRANSLATE => Steering::Bank { group: n, bank: low, s2cr },
            stream::S2CR_BYPASS => Steering::Bypass(Bypass::Stream { entry: n, vmid: low }),
            _ => Steering::Fault(GlobalFaultKind::InvalidContext),
        }
    }
}

/// The bits of an SMR that exist.
pub(crate) fn smr_bits(config: &Config, extended: bool) -> u32 {
    if !config.stream_matching {
        return 0;
    }
    let (id, mask) = (u32::from(config.smr_id), u32::from(config.smr_mask));
    if extended { (mask << 16) | id } else { stream::SMR_VALID | ((mask & 0x7fff) << 16) | (id & 0x7fff) }
}

/// The bits of an S2CR that exist.
pub(crate) fn s2cr_bits(config: &Config) -> u32 {
    let bits = 0x3fff_ffff;
    if config.is_v2() && config.extended_ids { bits } else { bits & !stream::S2CR_EXIDVALID }
}

fn low_mask(bits: u8) -> u16 {
    1u16.checked_shl(u32::from(bits)).map_or(u16::MAX, |bit| bit.wrapping_sub(1))
}
