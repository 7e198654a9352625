//! Back to fault: cut and drained, with the drain's end at once (`block`) or left to what comes next (`cut`).
//!
//! # Locking
//!
//! `StreamMap` to cut, and once more where the drain ends here; `TlbSync` to post. None while a status is polled (contract
//! C-14).

use alloc::sync::Arc;

use super::drain::Cut;
use super::instance::Smmu;
use super::mmio::Registers;
use super::moves::{list, timed_out};
use super::registers::S2cr;
use super::stream_map::{Set, StreamMap, each, one};
use super::tlb::SyncTimeout;
use crate::assign::{DeviceId, IommuError, Patience};
use crate::few::Few;
use crate::sync::Platform;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::order::{Held, Unlocked};

/// A drain behind a cut.
struct Drain {
    cut: Cut,
    /// Who stands for it.
    lead: DeviceId,
    drained: Arc<AtomicBool>,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Puts devices in fault, and waits until the hardware has confirmed that they have drained. Ends the drain only where
    /// it has not.
    pub(super) fn cut_devices(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Result<(), IommuError> {
        let drain = self.cut_off(&mut self.map.lock(held), devices);
        let Some(drain) = drain else { return Ok(()) };
        let (drained, poison) = self.confirm(held, drain.cut, Patience::Waiting);
        if poison.is_some() {
            self.end_drain(&mut self.map.lock(held), drain.lead, poison);
        } else {
            // From here on the drain is anybody's to end.
            drain.drained.store(true, Ordering::Release);
        }
        failure_of(&drain.cut, drained)
    }

    /// Puts devices in fault, waits until they have drained, ends that, and tells who keeps an entry of theirs live.
    pub(super) fn block_devices(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        tell: &mut dyn FnMut(DeviceId),
    ) -> Result<(), IommuError> {
        let mut keepers = Few::new();
        let (drain, mut listed) = {
            let mut map = self.map.lock(held);
            let drain = self.cut_off(&mut map, devices);
            let listed = if drain.is_some() { Ok(()) } else { list_keepers(&map, devices, &mut keepers) };
            (drain, listed)
        };
        if let Some(drain) = drain {
            let (drained, poison) = self.confirm(held, drain.cut, Patience::Waiting);
            listed = {
                let mut map = self.map.lock(held);
                self.end_drain(&mut map, drain.lead, poison);
                list_keepers(&map, devices, &mut keepers)
            };
            failure_of(&drain.cut, drained)?;
        }
        while let Err(wanted) = listed {
            keepers.try_reserve_exact(wanted).map_err(|_| IommuError::OutOfMemory)?;
            listed = list_keepers(&self.map.lock(held), devices, &mut keepers);
        }
        keepers.into_iter().for_each(tell);
        Ok(())
    }

    /// Puts devices in fault, and parks the banks that nobody uses any more. Says what is to be drained; nobody moves or
    /// forgets the devices before that has ended.
    fn cut_off(&self, map: &mut StreamMap, devices: &[DeviceId]) -> Option<Drain> {
        self.end_announced(map, devices);
        let mut cut = Cut::default();
        for &device in devices {
            self.detach(map, device, &mut cut);
        }
        self.park_unused(map, &mut cut);
        if cut.banks == 0 {
            return None;
        }
        // Who was in a bank is in no drain, so that there is one to stand for this.
        let (lead, drained) = map.open_drain(devices, cut.retiring)?;
        Some(Drain { cut, lead, drained })
    }

    /// Counts the device out, and puts the entries in fault that nobody else keeps.
    pub(super) fn detach(&self, map: &mut StreamMap, device: DeviceId, cut: &mut Cut) {
        let Some(used) = map.used_by(device) else { return };
        let Some(bank) = used.bank.take() else { return };
        let mut stuck = false;
        for number in each(used.entries.get()) {
            let pairs = map.pairs(device, number);
            let Some(entry) = map.entry_mut(number) else { continue };
            entry.assigned = entry.assigned.saturating_sub(pairs);
            if entry.assigned == 0 && entry.action != S2cr::Fault {
                entry.action = S2cr::Fault;
                stuck |= !self.write_s2cr(number, S2cr::Fault, true);
                cut.banks |= one(bank);
            }
        }
        cut.lost |= stuck;
        if let Some(shadow) = map.bank_mut(bank) {
            shadow.stuck |= stuck;
            shadow.users = shadow.users.saturating_sub(1);
            if shadow.users == 0 {
                cut.banks |= one(bank);
            }
        }
    }
}

/// Lists devices outside `devices` that keep an entry of theirs translated (contract I-6), each once. Where the list's
/// room does not suffice, says how much would.
pub(super) fn list_keepers(map: &StreamMap, devices: &[DeviceId], keepers: &mut Few<DeviceId>) -> Result<(), usize> {
    let reach = |device: &DeviceId| map.used_by(*device).map_or(0, |used| used.reach(map));
    let entries = devices.iter().fold(0, |all: Set, device| all | reach(device));
    let all = || {
        let live = map.uses().filter(|used| used.bank.get().is_some() && used.entries.get() & entries != 0);
        live.map(|used| used.device).filter(|device| !devices.contains(device))
    };
    keepers.clear();
    let room = keepers.capacity();
    list(keepers, room, all)
}

fn failure_of(cut: &Cut, drained: Result<(), SyncTimeout>) -> Result<(), IommuError> {
    drained.map_err(timed_out)?;
    if cut.lost { Err(IommuError::WriteLost { register: "S2CR" }) } else { Ok(()) }
}
