//! The stream map: SMRs, S2CRs, and which of them a transaction's stream ID selects.

use alloc::vec;
use alloc::vec::Vec;

use crate::config::{Config, Conflict, Quirks};
use crate::fault::GlobalFaultKind;
use crate::registers::{extended, field, scr0, stream};
use crate::smmu::{Smmu, UnknownSource};
use crate::transaction::Bypass;

/// Where a transaction goes once its stream ID has been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steering {
    Bypass(Bypass),
    Bank { group: u8, bank: u8, s2cr: u32 },
    Fault(GlobalFaultKind),
}

/// Stream-map groups: SMRs and S2CRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) smrs: Vec<u32>,
    pub(crate) s2crs: Vec<u32>,
}

impl Groups {
    pub(crate) fn reset(config: &Config, count: u8, unknown: &mut UnknownSource) -> Self {
        let smrs = (0..count).map(|_| unknown.word() & smr_bits(config, false)).collect();
        let s2crs = (0..count).map(|_| unknown.word() & s2cr_bits(config)).collect();
        Self { smrs, s2crs }
    }
}

impl Smmu {
    /// The stream-map entries that select `stream` now, computed with the bits that this part implements; lowest first.
    /// They are numbers of extended groups while these are in force.
    ///
    /// Without stream matching it is the S2CR that the stream ID indexes. sCR0.CLIENTPD does not matter here.
    pub fn matching_entries(&self, stream: u16) -> Vec<u8> {
        let stream = self.carried(stream);
        if !self.config.stream_matching {
            return u8::try_from(stream).ok().filter(|n| *n < self.config.group_count()).into_iter().collect();
        }
        (0..=u8::MAX).zip(&self.groups_in_force().smrs).map(|(n, _)| n).filter(|n| self.matches(*n, stream)).collect()
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
        self.map.smrs.get(n).copied().unwrap_or(0) & smr_bits(&self.config, self.extended_ids())
    }

    pub(crate) fn write_smr(&mut self, n: usize, value: u32) {
        let bits = smr_bits(&self.config, self.extended_ids());
        if let Some(smr) = self.map.smrs.get_mut(n) {
            *smr = value & bits;
        }
    }

    pub(crate) fn write_s2cr(&mut self, n: usize, value: u32) {
        let mut value = value & s2cr_bits(&self.config);
        // Firmware knows the manual's groups.
        let quirks = if n < 128 { &self.config.quirks } else { &Quirks::NONE };
        match value & stream::S2CR_TYPE {
            stream::S2CR_BYPASS if quirks.bypass_becomes_fault => {
                value = (value & !stream::S2CR_TYPE) | stream::S2CR_FAULT;
            }
            kind if kind & stream::S2CR_FAULT != 0 && quirks.fault_write_ignored => return,
            _ => (),
        }
        if let Some(s2cr) = self.map.s2crs.get_mut(n) {
            *s2cr = value;
        }
    }

    /// The groups that streams are matched with now.
    fn groups_in_force(&self) -> &Groups {
        let extended = self.config.extended_group_count() > 0 && self.nonsecure.cr2 & extended::EXSMRGENABLE != 0;
        if extended { &self.extended_map } else { &self.map }
    }

    /// What a register of the extended groups holds; `None` where there is none. They can be accessed whether or not they are
    /// in force.
    pub(crate) fn extended_value(&self, page: u32, at: usize) -> Option<u32> {
        let n = at.wrapping_div(4);
        match page as usize {
            extended::EXSMR_PAGE => Some(self.extended_map.smrs.get(n)? & smr_bits(&self.config, self.extended_ids())),
            extended::EXS2CR_PAGE => self.extended_map.s2crs.get(n).copied(),
            _ => None,
        }
    }

    pub(crate) fn write_extended(&mut self, page: u32, at: usize, value: u32) {
        let smr_bits = smr_bits(&self.config, self.extended_ids());
        let (list, bits) = match page as usize {
            extended::EXSMR_PAGE => (&mut self.extended_map.smrs, smr_bits),
            _ => (&mut self.extended_map.s2crs, s2cr_bits(&self.config)),
        };
        if let Some(register) = list.get_mut(at.wrapping_div(4)) {
            *register = value & bits;
        }
    }

    fn matches(&self, n: u8, stream: u16) -> bool {
        let n = usize::from(n);
        let groups = self.groups_in_force();
        let (Some(s2cr), Some(smr)) = (groups.s2crs.get(n), groups.smrs.get(n)) else { return false };
        let extended = self.extended_ids();
        let smr = smr & smr_bits(&self.config, extended);
        let valid = if extended { s2cr & stream::S2CR_EXIDVALID != 0 } else { smr & stream::SMR_VALID != 0 };
        let width = if extended { 16 } else { 15 };
        let (id, mask) = (field(smr, 0, width), field(smr, 16, width));
        let implemented = u32::from(self.config.smr_id & if extended { 0xffff } else { 0x7fff });
        valid && (u32::from(stream) ^ id) & implemented & !mask == 0
    }

    fn entry(&self, n: u8) -> Steering {
        let Some(s2cr) = self.groups_in_force().s2crs.get(usize::from(n)).copied() else {
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
