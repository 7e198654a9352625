//! Registers and counts against what the driver believes.
//!
//! # Locking
//!
//! `StreamMap`, for one entry or bank at a time; what differs is reported with nothing locked.

use super::context::{self, BankState};
use super::instance::Smmu;
use super::mmio::Registers;
use super::probe;
use super::registers::{S2cr, Scr0, Sctlr, cb, gr0, gr1, smr};
use super::stream_map::one;
use crate::assign::Difference;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What an entry or bank can differ in: a name, the expected and the found value.
type Check = (&'static str, u64, u64);

impl<P: Platform, R: Registers> Smmu<P, R> {
    pub(super) fn audit_all(&self, held: &mut Held<'_, Unlocked>, report: &mut dyn FnMut(Difference)) {
        let iommu = self.config.key;
        let mut differing = |index: u8, checks: &[Check]| {
            for &(what, expected, found) in checks.iter().filter(|(_, expected, found)| expected != found) {
                report(Difference { iommu, what, index: index.into(), expected, found });
            }
        };
        if self.registers.is_dark() {
            return;
        }
        let control = probe::control(&self.geometry, false);
        let guarding = Scr0::CLIENTPD | Scr0::USFCFG | Scr0::SMCFCFG | Scr0::EXIDENABLE | Scr0::VMID16EN;
        let found = Scr0::from_bits_retain(self.registers.read32(gr0::SCR0)) & guarding;
        differing(0, &[("sCR0", u64::from((control & guarding).bits()), u64::from(found.bits()))]);
        for index in 0..self.geometry.entries {
            let checks = self.audit_entry(held, index);
            differing(index, &checks);
        }
        for index in 0..self.geometry.banks {
            let checks = self.audit_bank(held, index);
            differing(index, &checks);
        }
    }

    fn audit_entry(&self, held: &mut Held<'_, Unlocked>, index: u8) -> [Check; 4] {
        let map = self.map.lock(held);
        let none = ("entry", 0, 0);
        let Some(entry) = map.entry(index) else { return [none; 4] };
        let (mut registered, mut assigned) = (0_usize, 0_usize);
        for used in map.uses().filter(|used| used.entries.get() & one(index) != 0) {
            let pairs = entry.cube.map_or(0, |cube| used.pairs_with(cube));
            registered = registered.saturating_add(pairs);
            if used.bank.get().is_some() {
                assigned = assigned.saturating_add(pairs);
            }
        }
        let extended = self.geometry.extended_ids;
        let valid = entry.cube.is_some();
        let s2cr = u64::from(self.registers.read32(gr0::s2cr(index)) & S2cr::COMPARED);
        let expected_s2cr = u64::from(self.spelling.read(entry.action, valid));
        let smr = if self.geometry.matching {
            let (found_valid, id, mask) = smr::decode(self.registers.read32(gr0::smr(index)), extended);
            match entry.cube {
                // ID bits under the mask need not be kept.
                Some(cube) => (
                    "SMR",
                    u64::from(smr::encode(cube.id(), cube.mask(), extended)),
                    if found_valid { u64::from(smr::encode(id & !mask, mask, extended)) } else { 0 },
                ),
                // With extended IDs a stale SMR is harmless: its S2CR says that it does not match.
                None => ("SMR.VALID", 0, u64::from(found_valid && !extended)),
            }
        } else {
            none
        };
        [
            ("S2CR", expected_s2cr, s2cr),
            smr,
            ("registered count of entry", registered as u64, entry.registered as u64),
            ("assigned count of entry", assigned as u64, entry.assigned as u64),
        ]
    }

    fn audit_bank(&self, held: &mut Held<'_, Unlocked>, index: u8) -> [Check; 6] {
        let map = self.map.lock(held);
        let none = ("bank", 0, 0);
        let Some(bank) = map.bank(index) else { return [none; 6] };
        let users = map.uses().filter(|used| used.bank.get() == Some(index)).count();
        let at = |register| self.geometry.bank(index, register);
        let enabled = Sctlr::from_bits_retain(self.registers.read32(at(cb::SCTLR))) & Sctlr::M;
        let users = ("users of bank", users as u64, bank.users as u64);
        match bank.state {
            BankState::Live(space) => {
                let (vmid, interrupt) = (self.vmids.of(index), self.interrupt_of(index));
                let image = context::image(&self.geometry, vmid, interrupt, &space.stage2);
                let read = |register| u64::from(self.registers.read32(register));
                let cba2r = |value| ("CBA2R", u64::from(value), read(self.geometry.gr1(gr1::cba2r(index))));
                [
                    users,
                    ("SCTLR.M", 1, u64::from(enabled.bits())),
                    ("TTBR0", image.ttbr0, self.registers.read64(at(cb::TTBR0))),
                    ("TCR", u64::from(image.tcr), read(at(cb::TCR))),
                    ("CBAR", u64::from(image.cbar), read(self.geometry.gr1(gr1::cbar(index)))),
                    image.cba2r.map_or(none, cba2r),
                ]
            }
            BankState::Free | BankState::Reserved(_) => {
                [users, ("SCTLR.M", u64::from(bank.on), u64::from(enabled.bits())), none, none, none, none]
            }
            BankState::Draining(_) | BankState::Poisoned(..) => [users, none, none, none, none, none],
        }
    }
}
