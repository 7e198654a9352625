//! Streams that firmware set up and that must go on through the take-over (quirk Q17, contract S-6).
//!
//! A reserved stream is a device of the driver's own, in a space of the integrator's tables. On a cold unit its entries
//! are made before the SMMU is enabled. On a live one the entries that firmware made for it are passed over by the
//! reset, turned to the restricted bank with one write each, and only then are firmware's own banks drained and switched
//! off: the stream never stops, and never reaches more than it did. It ends when a device that owns the stream is
//! assigned.

use super::cover::Cube;
use super::geometry::ProbeError;
use super::instance::Smmu;
use super::mmio::Registers;
use super::moves::timed_out;
use super::probe::{self, Part};
use super::registers::{S2cr, Spelling, gr0, gr1, smr};
use super::setup::Reserved;
use super::stream_map::{Entry, Set, Use, each, one};
use crate::assign::{AddressSpace, DeviceId, IommuError, Stream, own_space};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// The last device numbers stand for reserved streams.
const FIRST: u64 = u64::MAX - 0xffff;

/// Whether a device is a reserved stream of the driver's own.
pub(super) const fn is_reserved(device: DeviceId) -> bool {
    device.number() >= FIRST
}

/// What a live unit keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// Entries that match reserved streams only.
    pub(super) entries: Set,
    /// Firmware's banks that those entries name.
    pub(super) banks: Set,
}

/// What of a live unit's stream map goes on: reads every SMR and S2CR, writes nothing.
pub(super) fn survey<R: Registers>(part: &Part<'_, R>, spelling: Spelling, reserved: &[Stream]) -> Kept {
    let Part { geometry, registers, .. } = part;
    let mut kept = Kept::default();
    for number in (0..geometry.entries).filter(|_| !reserved.is_empty()) {
        let s2cr = registers.read32(gr0::s2cr(number));
        let (valid, cube) = matched(part, spelling, number, s2cr);
        let inside = reserved.iter().any(|stream| Cube::from(*stream).contains(cube));
        let action = S2cr::decode(s2cr);
        if !valid || !inside || action == Some(S2cr::Fault) {
            continue;
        }
        kept.entries |= one(number);
        if let Some(S2cr::Translate(bank)) = action
            && bank < geometry.banks
        {
            kept.banks |= one(bank);
        }
    }
    kept
}

fn matched<R: Registers>(part: &Part<'_, R>, spelling: Spelling, number: u8, s2cr: u32) -> (bool, Cube) {
    let Part { geometry, registers, .. } = part;
    if !geometry.matching {
        return (true, Cube::point(number.into()));
    }
    let (valid, id, mask) = smr::decode(registers.read32(gr0::smr(number)), geometry.extended_ids);
    (if spelling.validity { spelling.is_valid(s2cr) } else { valid }, Cube::new(id, mask))
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Gives reserved streams their restricted translation. Runs between the reset and the enabling write.
    pub(super) fn reserve(
        &self,
        held: &mut Held<'_, Unlocked>,
        reserved: &[Reserved],
        kept: Kept,
    ) -> Result<(), ProbeError> {
        let refused = |error| ProbeError::Reserved { iommu: self.config.key, error };
        // No plan may take a bank that firmware still uses, or one with the VMID of such a bank.
        let aside = kept.banks | self.shadowed(kept.banks);
        self.set_aside(held, aside, 1);
        for (number, reserved) in (FIRST..=u64::MAX).zip(reserved) {
            self.reserve_one(held, DeviceId::new(number), reserved, kept).map_err(refused)?;
        }
        if kept.entries != 0 {
            // Nothing names firmware's banks any more, but what was in flight may still be steered to them.
            self.flush_everything(held).map_err(timed_out).map_err(refused)?;
        }
        for bank in each(kept.banks) {
            probe::switch_off(&self.registers, &self.geometry, bank);
        }
        if kept.banks != 0 {
            // Nor is anything left of what they walked ahead until then, under VMIDs that are about to get an owner.
            self.flush_everything(held).map_err(timed_out).map_err(refused)?;
        }
        self.set_aside(held, aside, 0);
        Ok(())
    }

    fn set_aside(&self, held: &mut Held<'_, Unlocked>, banks: Set, plans: usize) {
        let mut map = self.map.lock(held);
        for bank in each(banks) {
            if let Some(bank) = map.bank_mut(bank) {
                bank.reserved = plans;
            }
        }
    }

    /// The banks that would get a VMID under which one of firmware's banks still caches.
    fn shadowed(&self, banks: Set) -> Set {
        each(banks).fold(0, |all: Set, bank| {
            let register = if self.geometry.vmid16 { gr1::cba2r(bank) } else { gr1::cbar(bank) };
            let value = self.registers.read32(self.geometry.gr1(register));
            let vmid = if self.geometry.vmid16 { value >> 16 } else { value & 0xff };
            let ours = (0..self.geometry.banks).find(|ours| self.vmids.of(*ours).value() == vmid);
            all | ours.map_or(0, one)
        })
    }

    fn reserve_one(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        reserved: &Reserved,
        kept: Kept,
    ) -> Result<(), IommuError> {
        let cubes = self.admit(&reserved.streams)?;
        {
            let used = Use::new(device, cubes, None);
            self.map.lock(held).insert_use(used);
        }
        self.adopt(held, device, kept);
        let space = AddressSpace { domain: own_space::RESERVED, stage2: reserved.space };
        let devices = [device];
        let mut prepared = self.plan_move(held, &devices, &space, &mut |_| ())?;
        self.install_move(held, &devices, &mut prepared)
    }

    /// Takes firmware's entries of a reserved stream into the shadow as they are.
    fn adopt(&self, held: &mut Held<'_, Unlocked>, device: DeviceId, kept: Kept) {
        let part = self.part();
        let mut map = self.map.lock(held);
        for number in each(kept.entries) {
            let (_, cube) = matched(&part, self.spelling, number, self.registers.read32(gr0::s2cr(number)));
            let ours = map.used_by(device).is_some_and(|used| used.pairs_with(cube) > 0);
            // Another reservation may name the stream too.
            if !ours || map.cube(number).is_some() {
                continue;
            }
            if map.meeting(cube) != 0 {
                // Firmware's entries conflict with each other: one goes on.
                self.write_s2cr(number, S2cr::Fault, false);
                self.registers.write32(gr0::smr(number), 0);
                continue;
            }
            self.budget.take(1);
            map.set_cube(number, Some(cube));
            if let Some(entry) = map.entry_mut(number) {
                *entry = Entry { cube: Some(cube), ..Entry::FREE };
            }
        }
    }
}
