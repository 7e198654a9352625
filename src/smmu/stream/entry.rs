//! One stream-map entry: what the driver believes of it, and its two registers.
//!
//! Nothing else writes SMR or S2CR.
//!
//! # Invariants
//!
//! 1. An entry matches in hardware exactly what `written` says; `cube` is what it is to match. They differ from the
//!    reservation of an entry until it is written, and from its release until it is invalidated.
//! 2. What changes between them is in fault: a live entry never moves, widens or narrows (contract I-15).

use super::cover::Cube;
use crate::smmu::hardware::geometry::LISTED_GROUPS;
use crate::smmu::hardware::part::{Part, StreamWidths};
use crate::smmu::hardware::quirks::Effects;
use crate::smmu::hardware::registers::{S2cr, Spelling, gr0, smr};
use crate::smmu::hardware::{Geometry, ProbeError, Registers};

/// The index of an entry, 0..=243.
pub(in crate::smmu) type EntryIndex = u8;

/// A stream-map entry as the driver believes it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) struct Entry {
    /// What it is to match; `None` when it is free.
    pub(in crate::smmu) cube: Option<Cube>,
    /// What its registers match now.
    pub(in crate::smmu) written: Option<Cube>,
    /// What it does.
    pub(in crate::smmu) action: S2cr,
    /// (device, stream) pairs that overlap it; 0 exactly when it is free (contract I-12).
    pub(in crate::smmu) registered: u32,
    /// Those of them whose device is in a space; 0 exactly when it faults.
    pub(in crate::smmu) assigned: u32,
    /// The sync that confirms that what it let through before it went to fault has left.
    pub(in crate::smmu) drain: u64,
}

impl Entry {
    pub(in crate::smmu) const FREE: Self =
        Self { cube: None, written: None, action: S2cr::Fault, registered: 0, assigned: 0, drain: 0 };
}

impl<R: Registers> Part<R> {
    /// Makes an entry match, in fault (contract I-5). Says whether it holds.
    pub(in crate::smmu) fn write_new_entry(&self, number: EntryIndex, cube: Cube) -> bool {
        let fault = || self.write_action(number, S2cr::Fault);
        if !self.geometry.matching {
            fault()
        } else if self.geometry.extended_ids {
            // Validity is in the S2CR: a stale SMR must be replaced before it can match.
            self.write_match(number, cube) && fault()
        } else {
            // A valid SMR with a stale S2CR would translate through the old bank.
            fault() && self.write_match(number, cube)
        }
    }

    /// What an entry that matches does, in one write: the old owner's, or the new one's, and never half of each.
    pub(in crate::smmu) fn write_action(&self, number: EntryIndex, action: S2cr) -> bool {
        self.write_s2cr(number, action, true)
    }

    /// Makes an entry, which is in fault, match nothing (contract I-5).
    pub(in crate::smmu) fn write_free_entry(&self, number: EntryIndex) {
        if !self.geometry.matching {
            // The S2CR faults already, and an index cannot be taken away.
        } else if self.geometry.extended_ids {
            self.write_s2cr(number, S2cr::Fault, false);
        } else {
            self.registers.write32(gr0::smr(number), 0);
        }
    }

    fn write_match(&self, number: EntryIndex, cube: Cube) -> bool {
        let value = smr::encode(cube.id(), cube.mask(), self.geometry.extended_ids);
        self.registers.write_isolating(gr0::smr(number), value, value, u32::MAX)
    }

    fn write_s2cr(&self, number: EntryIndex, action: S2cr, valid: bool) -> bool {
        let (written, read) = (self.spelling.write(action, valid), self.spelling.read(action, valid));
        self.registers.write_isolating(gr0::s2cr(number), written, read, S2cr::COMPARED)
    }

    // --- reset and end ---

    /// An entry to fault whatever it was; with extended IDs it matches nothing afterwards, and an unmatched stream faults too.
    /// Says whether it holds.
    pub(in crate::smmu) fn reset_action(&self, number: EntryIndex, spelling: Spelling) -> bool {
        let (written, read) = (spelling.write(S2cr::Fault, false), spelling.read(S2cr::Fault, false));
        self.registers.write_isolating(gr0::s2cr(number), written, read, S2cr::COMPARED)
    }

    /// An entry that [`reset_action`](Self::reset_action) has put in fault matches nothing.
    pub(in crate::smmu) fn reset_match(&self, number: EntryIndex) {
        self.registers.write32(gr0::smr(number), 0);
    }

    /// What an entry's registers match, and what they do; `None` for a bypass.
    pub(in crate::smmu) fn read_entry(&self, number: EntryIndex) -> (Option<Cube>, Option<S2cr>) {
        let s2cr = self.registers.read32(gr0::s2cr(number));
        let action = S2cr::decode(s2cr);
        if !self.geometry.matching {
            return (Some(Cube::point(number.into())), action);
        }
        let (valid, id, mask) = smr::decode(self.registers.read32(gr0::smr(number)), self.geometry.extended_ids);
        let valid = if self.spelling.validity { self.spelling.is_valid(s2cr) } else { valid };
        (valid.then(|| Cube::new(id, mask)), action)
    }

    /// How many entries are the driver's: below firmware that Q12 finds no more than the manual knows, for it does not know the
    /// others (quirk Q13).
    pub(in crate::smmu) fn entries_under(&self, spelling: Spelling) -> Result<u8, ProbeError> {
        let entries = self.geometry.entries;
        if spelling.fault == Spelling::BYPASS {
            Ok(entries.min(LISTED_GROUPS))
        } else if u32::from(entries) <= gr0::MOST_GROUPS {
            Ok(entries)
        } else {
            let what = "more stream-mapping groups (NUMSMRG) than there is room for in front of PIDR4";
            Err(ProbeError::Contradiction { iommu: self.key(), what })
        }
    }

    /// Q12: finds out whether this part's firmware stores TYPE = fault, or takes bypass for it.
    pub(in crate::smmu) fn try_spelling(&self, live: bool) -> Spelling {
        let mut spelling = self.spelling;
        spelling.fault = Spelling::FAULT;
        if !self.registers.has(Effects::TRY_FAULT_WRITE) {
            return spelling;
        }
        // It is known when a unit is resumed, and nothing is to be tried on what it translates.
        if live && self.widths.carried != 0 {
            return self.spelling;
        }
        // With clients disabled, or on an entry that matches nothing, what is tried has no effect on any stream. Of a live
        // unit that firmware left without a free entry, the last one may pass until it is put in fault. Firmware does not
        // know groups that the manual does not have.
        let matching = self.geometry.matching;
        let entries = self.geometry.entries.min(LISTED_GROUPS);
        let last = entries.saturating_sub(1);
        let unmatched = |entry: &EntryIndex| matching && self.read_entry(*entry).0.is_none();
        let entry = if live { (0..entries).rev().find(unmatched).unwrap_or(last) } else { last };
        self.registers.write32(gr0::s2cr(entry), Spelling::BYPASS);
        if S2cr::decode(self.registers.read32(gr0::s2cr(entry))) == Some(S2cr::Fault) {
            spelling.fault = Spelling::BYPASS;
        }
        spelling
    }

    /// Finds out which ID and mask bits an SMR keeps: ID first, since ID bits under a mask may not be kept. The entry `spare`
    /// is invalid and its S2CR faults; with extended IDs the missing EXIDVALID keeps it from matching.
    pub(in crate::smmu) fn try_widths(&self, spare: EntryIndex) -> StreamWidths {
        let Geometry { extended_ids, .. } = self.geometry;
        let carried = if extended_ids { 0xffff } else { 0x7fff };
        let register = gr0::smr(spare);
        self.registers.write32(register, carried);
        let (_, id_bits, _) = smr::decode(self.registers.read32(register), extended_ids);
        self.registers.write32(register, carried << 16);
        let (_, _, mask_bits) = smr::decode(self.registers.read32(register), extended_ids);
        self.registers.write32(register, 0);
        StreamWidths { id_bits, mask_bits: mask_bits & id_bits, carried }
    }
}
