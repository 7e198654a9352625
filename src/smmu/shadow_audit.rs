//! Registers of every instance, and counts, against what the driver believes; and who uses what.
//!
//! # Locking
//!
//! `StreamMap`, for one entry or bank at a time; what is found is reported with nothing locked.

use super::bank::banks::BankState;
use super::bank::stage2;
use super::hardware::Registers;
use super::hardware::registers::{S2cr, Scr0, Sctlr, cb, gr0, gr1, smr};
use super::instance::Smmu;
use super::reset;
use super::stream::masters::is_reserved;
use crate::assign::{DeviceId, Difference, Resource, Usage};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What an entry or bank can differ in: a name, the expected and the found value.
type Check = (&'static str, u64, u64);

impl<P: Platform, R: Registers> Smmu<P, R> {
    pub(super) fn audit_all(&self, held: &mut Held<'_, Unlocked>, report: &mut dyn FnMut(Difference)) {
        let iommu = self.part.key();
        let mut differing = |index: u8, checks: &[Check]| {
            for &(what, expected, found) in checks.iter().filter(|(_, expected, found)| expected != found) {
                report(Difference { iommu, what, index: index.into(), expected, found });
            }
        };
        if self.part.registers.is_dark() {
            return;
        }
        let geometry = &self.part.geometry;
        let control = reset::control(geometry, false);
        let guarding = Scr0::CLIENTPD | Scr0::USFCFG | Scr0::SMCFCFG | Scr0::EXIDENABLE | Scr0::VMID16EN;
        for member in self.part.registers.members() {
            let found = Scr0::from_bits_retain(self.part.registers.read32_of(member, gr0::SCR0)) & guarding;
            differing(0, &[("sCR0", u64::from((control & guarding).bits()), u64::from(found.bits()))]);
            if geometry.other_map {
                let found = reset::other_map(self.part.registers.read32_of(member, gr0::SCR2));
                differing(0, &[("sCR2", 0, u64::from(found.bits()))]);
            }
            for index in 0..geometry.entries {
                differing(index, &self.audit_entry(held, member, index));
            }
            for index in 0..geometry.banks {
                differing(index, &self.audit_bank(held, member, index));
            }
        }
    }

    fn audit_entry(&self, held: &mut Held<'_, Unlocked>, member: usize, index: u8) -> [Check; 4] {
        let shadow = self.shadow.lock(held);
        let entry = shadow.entries.at(index);
        let none = ("entry", 0, 0);
        let (mut registered, mut assigned) = (0_u32, 0_u32);
        for user in shadow.users.each().filter(|user| user.entries.has(index)) {
            let pairs = user.pairs_in(entry);
            registered = registered.saturating_add(pairs);
            if user.bank.get().is_some() {
                assigned = assigned.saturating_add(pairs);
            }
        }
        let read = |register| self.part.registers.read32_of(member, register);
        let extended = self.part.geometry.extended_ids;
        let valid = entry.written.is_some();
        let s2cr = u64::from(read(gr0::s2cr(index)) & S2cr::COMPARED);
        let expected_s2cr = u64::from(self.part.spelling.read(entry.action, valid));
        let smr = if self.part.geometry.matching {
            let (found_valid, id, mask) = smr::decode(read(gr0::smr(index)), extended);
            match entry.written {
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
            ("registered count of entry", registered.into(), entry.registered.into()),
            ("assigned count of entry", assigned.into(), entry.assigned.into()),
        ]
    }

    fn audit_bank(&self, held: &mut Held<'_, Unlocked>, member: usize, index: u8) -> [Check; 6] {
        let shadow = self.shadow.lock(held);
        let bank = shadow.banks.at(index);
        let none = ("bank", 0, 0);
        let users = shadow.users.each().filter(|user| user.bank.get() == Some(index)).count();
        let at = |register| self.part.geometry.bank(index, register);
        let registers = &self.part.registers;
        let read = |register| registers.read32_of(member, register);
        let enabled = Sctlr::from_bits_retain(read(at(cb::SCTLR))) & Sctlr::M;
        let enabled = ("SCTLR.M", u64::from(bank.on), u64::from(enabled.bits()));
        let users = ("users of bank", users as u64, bank.users.into());
        match bank.state {
            BankState::Live(space) => {
                let image = stage2::image(&self.part, index, &space.stage2);
                let read = |register| u64::from(read(register));
                let cba2r = |value| ("CBA2R", u64::from(value), read(self.part.geometry.gr1(gr1::cba2r(index))));
                [
                    users,
                    enabled,
                    ("TTBR0", image.ttbr0, registers.read64_of(member, at(cb::TTBR0))),
                    ("TCR", u64::from(image.tcr), read(at(cb::TCR))),
                    ("CBAR", u64::from(image.cbar), read(self.part.geometry.gr1(gr1::cbar(index)))),
                    image.cba2r.map_or(none, cba2r),
                ]
            }
            _ => [users, enabled, none, none, none, none],
        }
    }

    /// Who uses each entry and each bank.
    pub(super) fn tell_usage(&self, held: &mut Held<'_, Unlocked>, report: &mut dyn FnMut(Usage)) {
        for index in 0..self.part.geometry.entries {
            let mut after: Option<DeviceId> = None;
            loop {
                let next = {
                    let shadow = self.shadow.lock(held);
                    let user = shadow.users.next(after, |user| user.entries.has(index));
                    user.map(|user| (user.device, user.bank.get().and_then(|bank| shadow.banks.at(bank).domain())))
                };
                let Some((device, domain)) = next else { break };
                after = Some(device);
                let device = Some(device).filter(|device| !is_reserved(*device));
                report(Usage { resource: Resource::StreamMapEntries, index, device, domain });
            }
        }
        for index in 0..self.part.geometry.banks {
            let domain = self.shadow.lock(held).banks.at(index).domain();
            if domain.is_some() {
                report(Usage { resource: Resource::ContextBanks, index, device: None, domain });
            }
        }
    }
}
