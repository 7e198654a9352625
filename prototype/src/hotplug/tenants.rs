//! The third thread: guests that come and go, and get whatever is registered.

use std::collections::VecDeque;
use std::thread;

use iommu_assign::assign::{Cause, Device, DeviceInfo, DeviceState, Domain, Error, Label};
use iommu_assign::sync::Spin;

use super::dice::Dice;
use super::rig::Rig;
use super::tally::Work;
use crate::guests::{self, Guest, PAGE};

/// The guests.
pub(super) struct Tenants<'a> {
    rig: &'a Rig,
    dice: Dice,
    guests: [Option<Guest>; GUESTS],
    made: usize,
    /// A guest that is destroyed.
    past: Option<Domain<Spin>>,
    /// Handles that may be of devices that have gone.
    kept: VecDeque<Device>,
}

impl<'a> Tenants<'a> {
    pub(super) fn new(rig: &'a Rig) -> Self {
        let guests = [const { None }; GUESTS];
        Self { rig, dice: Dice::new(3), guests, made: 0, past: None, kept: VecDeque::new() }
    }

    pub(super) fn play(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.step();
            (0..DMA).for_each(|_| self.rig.ledger.try_any(&mut self.dice));
        }
    }

    fn step(&mut self) {
        let place = self.dice.below(GUESTS);
        if self.guest(place).is_none() {
            return self.create(place);
        }
        match self.dice.below(20) {
            0 => self.destroy(place),
            1 | 2 => self.flush(place),
            3 => self.assign_to_past(),
            4 => self.assign_group(place),
            5 => self.deassign_group(),
            6..=8 => self.reassign(place),
            9..=11 => self.deassign(),
            _ => self.assign(place),
        }
    }

    fn guest(&self, place: usize) -> Option<&Guest> {
        self.guests.get(place)?.as_ref()
    }

    /// Some device: mostly one that is registered, of either source.
    fn some_device(&mut self) -> Option<Device> {
        if self.dice.once_in(12) {
            let kept = self.dice.below(self.kept.len());
            return self.kept.get(kept).cloned();
        }
        let devices: Vec<Device> = self.rig.service.devices().map(|info| info.device).collect();
        let device = self.dice.pick(&devices)?.clone();
        if self.dice.once_in(4) {
            self.kept.push_back(device.clone());
            self.kept.truncate(KEPT);
            self.kept.rotate_right(1);
        }
        Some(device)
    }

    // --- guests ---

    fn create(&mut self, place: usize) {
        let Some(limits) = self.rig.service.limits() else { return };
        let number = u64::try_from(place).unwrap_or(0);
        let (tables, backing) = guests::tables(&self.rig.machine, number, limits);
        self.made = self.made.saturating_add(1);
        let label = Label::from(format!("guest {}", self.made).as_str());
        let domain = self.rig.service.create_domain(label.clone(), tables.stage2());
        self.rig.tally.ended(Work::Create, &domain);
        if let (Ok(domain), Some(guest)) = (domain, self.guests.get_mut(place)) {
            *guest = Some(Guest { label, domain, tables, backing });
        }
    }

    /// Ends a guest: its devices first, mostly.
    fn destroy(&mut self, place: usize) {
        if !self.dice.once_in(4) {
            let Some(guest) = self.guest(place) else { return };
            let own = DeviceState::Assigned(guest.domain.id());
            let devices: Vec<Device> =
                self.rig.service.devices().filter(|info| info.state == own).map(|info| info.device).collect();
            devices.iter().for_each(|device| self.take(device));
        }
        self.end(place);
    }

    fn end(&mut self, place: usize) {
        let Some(guest) = self.guest(place) else { return };
        let result = self.rig.service.destroy_domain(&guest.domain);
        self.rig.tally.ended(Work::Destroy, &result);
        if result.is_ok()
            && let Some(mut guest) = self.guests.get_mut(place).and_then(Option::take)
        {
            self.rig.ledger.ended(guest.backing);
            // Its memory is somebody else's now.
            guest.tables.scribble();
            self.past = Some(guest.domain);
        }
    }

    /// A mapping goes: after the flush none of the guest's devices reaches it.
    fn flush(&mut self, place: usize) {
        let rig = self.rig;
        let Some(guest) = self.guests.get_mut(place).and_then(Option::as_mut) else { return };
        guest.tables.unmap(PAGE);
        // Where an SMMU leaves meanwhile the flush is to be tried again.
        for _ in 0..FLUSHES {
            let result = rig.service.flush(&guest.domain);
            rig.tally.ended(Work::Flush, &result);
            if result.is_ok() {
                break;
            }
        }
        let own = DeviceState::Assigned(guest.domain.id());
        for info in rig.service.devices().filter(|info| info.state == own) {
            rig.ledger.must_fault(&info.device, "to a page that was unmapped and flushed");
        }
        guest.tables.map(PAGE, guest.backing, true);
    }

    // --- devices ---

    fn assign(&mut self, place: usize) {
        let (Some(device), Some(guest)) = (self.some_device(), self.guest(place)) else { return };
        let resets = self.rig.ledger.resets(&device);
        self.rig.ledger.permit(&device, guest.backing);
        let result = self.rig.service.assign(&device, &guest.domain);
        self.moved(Work::Assign, &device, guest, resets, &result);
    }

    fn reassign(&mut self, place: usize) {
        let (Some(device), Some(guest)) = (self.some_device(), self.guest(place)) else { return };
        let resets = self.rig.ledger.resets(&device);
        self.rig.ledger.permit(&device, guest.backing);
        let result = self.rig.service.reassign(&device, &guest.domain);
        self.moved(Work::Reassign, &device, guest, resets, &result);
    }

    fn assign_group(&mut self, place: usize) {
        let (Some(device), Some(guest)) = (self.some_device(), self.guest(place)) else { return };
        let rig = self.rig;
        let resets = rig.ledger.resets(&device);
        let group = rig.service.find(device.key()).map(|info| info.group);
        for info in rig.service.devices().filter(|info| Some(info.group) == group) {
            rig.ledger.permit(&info.device, guest.backing);
        }
        if rig.slot_of(device.key()).is_some() {
            rig.ledger.permit_card(&device, guest.backing);
        }
        let result = rig.service.assign_group(&device, &guest.domain);
        match &result {
            // A bridge may be in the group.
            Err(error) if matches!(error.cause, Cause::Denied { .. }) => rig.tally.ended(Work::Assign, &result),
            _ => self.moved(Work::Assign, &device, guest, resets, &result),
        }
        self.settle();
        rig.ledger.close_card();
    }

    /// A guest that has gone gets nothing.
    fn assign_to_past(&mut self) {
        let (Some(device), Some(past)) = (self.some_device(), self.past.clone()) else { return };
        let result = self.rig.service.assign(&device, &past);
        self.ended(Work::Assign, &device, &result);
        if result.is_ok() {
            self.rig.tally.violation(format!("{} was assigned to a guest that has gone", device.label()));
        }
        self.settle();
    }

    fn deassign(&mut self) {
        if let Some(device) = self.some_device() {
            self.take(&device);
        }
    }

    fn take(&self, device: &Device) {
        let result = self.rig.service.deassign(device);
        self.ended(Work::Deassign, device, &result);
        self.settle();
        if result.is_ok() {
            self.rig.ledger.must_fault(device, "after it was deassigned");
        }
    }

    fn deassign_group(&mut self) {
        let Some(device) = self.some_device() else { return };
        let result = self.rig.service.deassign_group(&device);
        self.ended(Work::Deassign, &device, &result);
        self.settle();
    }

    // --- what it came to ---

    fn moved(&self, work: Work, device: &Device, guest: &Guest, resets: u64, result: &Result<(), Error>) {
        self.ended(work, device, result);
        self.settle();
        if result.is_ok() {
            self.rig.ledger.given(device, &guest.label, resets);
            self.arrived(device, guest);
        }
    }

    fn ended<T>(&self, work: Work, device: &Device, result: &Result<T, Error>) {
        let rig = self.rig;
        // A function may share an entry with others of its group; a node is alone.
        let is_alone = rig.slot_of(device.key()).is_none();
        match result {
            Err(error) if matches!(error.cause, Cause::Hook { .. }) && rig.slot_of(device.key()).is_some() => {
                // The card may be out, or be out and back in by now.
                let stays = self.is_registered(device) && !rig.is_out(device.key());
                rig.tally.ended_at_function(work, result, !stays);
            }
            Err(error) if matches!(error.cause, Cause::Denied { .. }) && device.passthrough() && is_alone => {
                rig.tally.violation(format!("{error}, though the policy says yes"));
            }
            result => rig.tally.ended(work, result),
        }
    }

    fn is_registered(&self, device: &Device) -> bool {
        self.rig.service.find(device.key()).is_some_and(|info| info.device.id() == device.id())
    }

    /// The ledger says what the registry says. A device on its way out is the release hook's.
    fn settle(&self) {
        let guests = || self.guests.iter().flatten();
        for info in self.rig.service.devices() {
            match info.state {
                DeviceState::Assigned(domain) => {
                    let owner = guests().find(|guest| guest.domain.id() == domain);
                    self.rig.ledger.settle(&info, owner.map(|guest| guest.backing));
                }
                DeviceState::Blocked | DeviceState::Quarantined(_) => self.rig.ledger.settle(&info, None),
                _ => {}
            }
        }
    }

    /// The device was given to the guest, and reaches its page for as long as it has it.
    fn arrived(&self, device: &Device, guest: &Guest) {
        let is_his = |info: DeviceInfo| {
            info.device.id() == device.id() && info.state == DeviceState::Assigned(guest.domain.id())
        };
        for _ in 0..PATIENCE {
            if self.rig.ledger.reaches(device, guest.backing)
                || !self.rig.service.find(device.key()).is_some_and(is_his)
            {
                return;
            }
            // Someone may be about to take it.
            thread::yield_now();
        }
        self.rig.tally.violation(format!("{} was assigned to {} and does not reach it", device.label(), guest.label));
    }

    /// What is quarantined gets what it lacks: a device is given to a guest and taken back.
    fn clear(&mut self, place: usize) {
        if self.guest(place).is_none() {
            self.create(place);
        }
        let Some(guest) = self.guest(place) else { return };
        let devices: Vec<DeviceInfo> = self.rig.service.devices().collect();
        for info in devices.iter().filter(|info| matches!(info.state, DeviceState::Quarantined(_))) {
            let resets = self.rig.ledger.resets(&info.device);
            self.rig.ledger.permit(&info.device, guest.backing);
            let result = self.rig.service.assign(&info.device, &guest.domain);
            self.moved(Work::Assign, &info.device, guest, resets, &result);
        }
    }

    /// Takes all devices from their guests, with nobody else there. A physical function stays with its owner while it has
    /// virtual ones.
    pub(super) fn take_all(&mut self) {
        self.take_each();
        // Only now there is a bank for certain.
        self.clear(0);
        self.take_each();
    }

    fn take_each(&self) {
        let devices: Vec<DeviceInfo> = self.rig.service.devices().collect();
        // Virtual functions before their physical one.
        for info in devices.iter().rev().filter(|info| matches!(info.state, DeviceState::Assigned(_))) {
            self.take(&info.device);
        }
    }

    /// All guests go, which have no device any more.
    pub(super) fn finish(&mut self) {
        (0..GUESTS).for_each(|place| self.end(place));
        if self.guests.iter().any(Option::is_some) {
            self.rig.tally.violation("a guest could not be destroyed at the end");
        }
    }
}

/// How many there are at most at a time: one more than the board's SMMU has banks.
pub(super) const GUESTS: usize = 4;

/// How often a flush is tried: the overlay's SMMU comes and goes.
const FLUSHES: usize = 8;

/// Old handles that are kept.
const KEPT: usize = 16;

/// DMA that is tried after each step.
const DMA: usize = 2;

/// How often a device that does not reach its guest is looked at again.
const PATIENCE: usize = 100_000;
