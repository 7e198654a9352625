//! Streams that firmware set up and that must go on through the take-over (quirk Q17, contract S-6).
//!
//! A reserved stream is a device of the driver's own, in a space of the integrator's tables. On a cold unit its entries
//! are made before the SMMU is enabled. On a live one the entries that firmware made for it are passed over by the
//! reset, turned to the restricted bank with one write each, and only then are firmware's own banks drained and switched
//! off: the stream never stops, and never reaches more than it did. It ends when a device that owns the stream is
//! assigned, or with the instance.

use super::hardware::registers::gr1;
use super::hardware::{ProbeError, Registers};
use super::instance::{Smmu, timed_out};
use super::reset::{self, Kept};
use super::setup::Reserved;
use super::stream::masters::reserved_devices;
use super::stream::number_set::BankSet;
use super::stream::user::StreamUser;
use crate::assign::{AddressSpace, DeviceId, IommuError, own_space};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Gives reserved streams their restricted translation. Runs between the reset and the enabling write.
    pub(super) fn take_over(
        &self,
        held: &mut Held<'_, Unlocked>,
        reserved: &[Reserved],
        kept: Kept,
    ) -> Result<(), ProbeError> {
        let refused = |error| ProbeError::Reserved { iommu: self.part.key(), error };
        // No plan may take a bank that firmware still uses, or one with the VMID of such a bank.
        let aside = kept.banks | self.shadowed(kept.banks);
        let free = {
            let mut shadow = self.shadow.lock(held);
            core::mem::replace(&mut shadow.banks.free, BankSet::below(self.part.geometry.banks) & !aside)
        };
        for (device, reserved) in reserved_devices().zip(reserved) {
            self.take_over_one(held, device, reserved, kept).map_err(refused)?;
        }
        // Nothing names firmware's banks any more, but what was in flight may still be steered to them. Behind the switch-off
        // nothing is left of what they walked ahead, under VMIDs that are about to get an owner.
        let drain = |held: &mut Held<'_, Unlocked>, go_on: bool| match go_on {
            true => Ok(()),
            false => reset::invalidate_all(held, &self.part, &self.tlb).map_err(timed_out).map_err(refused),
        };
        drain(held, kept.entries.is_empty())?;
        for bank in kept.banks.each() {
            reset::switch_off(&self.part, bank);
        }
        drain(held, kept.banks.is_empty())?;
        self.shadow.lock(held).banks.free |= free & aside;
        Ok(())
    }

    /// The banks that would get a VMID under which one of firmware's banks still caches.
    fn shadowed(&self, banks: BankSet) -> BankSet {
        let geometry = &self.part.geometry;
        let shadowed = banks.each().filter_map(|bank| {
            let register = if geometry.vmid16 { gr1::cba2r(bank) } else { gr1::cbar(bank) };
            let value = self.part.registers.read32(geometry.gr1(register));
            let vmid = if geometry.vmid16 { value >> 16 } else { value & 0xff };
            (0..geometry.banks).find(|ours| self.part.vmid(*ours) == vmid)
        });
        shadowed.collect()
    }

    fn take_over_one(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        reserved: &Reserved,
        kept: Kept,
    ) -> Result<(), IommuError> {
        let user = self.make_device(device, &reserved.streams, false)?;
        self.adopt(held, &user, kept);
        if !self.publish_device(user)? {
            self.reserve_device(device, &|_| false)?;
        }
        self.enrol_device(held, device)?;
        let space = AddressSpace { domain: own_space::RESERVED, stage2: reserved.space };
        self.plan_move(held, &[device], &space, &|_| false)?;
        self.install_move(held, &[device])
    }

    /// Takes firmware's entries of a reserved stream into the shadow as they are.
    fn adopt(&self, held: &mut Held<'_, Unlocked>, user: &StreamUser, kept: Kept) {
        let mut shadow = self.shadow.lock(held);
        let entries = &mut shadow.entries;
        for number in kept.entries.each() {
            let (Some(cube), _) = self.part.read_entry(number) else { continue };
            // Another reservation may name the stream too.
            if user.pairs_with(cube) == 0 || entries.cube(number).is_some() {
                continue;
            }
            if entries.lowest_overlap(!entries.free, cube).is_some() {
                // Firmware's entries conflict with each other: one goes on.
                self.part.reset_action(number, self.part.spelling);
                self.part.reset_match(number);
                continue;
            }
            entries.adopt(number, cube);
        }
    }

    /// Ends every reserved stream: nobody keeps its tables any more.
    pub(super) fn block_reserved(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        for device in reserved_devices() {
            if self.shadow.lock(held).users.find(device).is_none() {
                break;
            }
            self.block_devices(held, &[device])?;
        }
        Ok(())
    }

    /// Takes the driver's own devices out of the tree: the instance is out of service, or never came into it.
    pub(super) fn forget_reserved(&self, held: &mut Held<'_, Unlocked>) {
        for device in reserved_devices() {
            let mut guard = self.masters.tree.lock(held);
            let (tree, held) = guard.split();
            let shadow = self.shadow.lock(held);
            let Some(user) = shadow.users.find(device) else { break };
            user.nodes.set(tree.take(self.part.key(), device, user.streams()));
        }
    }
}
