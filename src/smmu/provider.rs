//! The `Iommu` trait over an instance: who may call what now, and with power.

use alloc::boxed::Box;

use super::context::{BankIndex, BankState};
use super::entries::{Incoming, list_sharing};
use super::gate::{Mode, Purpose};
use super::instance::Smmu;
use super::mmio::Registers;
use super::moves::timed_out;
use super::reserved;
use super::stream_map::{Entry, StreamMap, Use, one};
use crate::assign::{
    AddressSpace, DeviceId, Difference, DomainId, FaultAnswer, FaultCounts, FaultLine, FlushRange, Iommu, IommuError,
    IommuKey, NewMaster, Patience, Prepared, RawFault, Resource, Sharing, Stage2Limits, Stream, StreamId, Usage,
    Withdrawn, own_space,
};
use crate::few;
use crate::sync::Platform;
use crate::sync::order::Held;

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// What this instance has made.
    fn own<'a>(&self, master: &'a mut NewMaster) -> Result<&'a mut Incoming, IommuError> {
        let made = master.made::<Incoming>().filter(|made| made.iommu == self.config.key);
        made.ok_or(IommuError::Unknown)
    }
}

impl<P: Platform, R: Registers> Iommu for Smmu<P, R> {
    fn key(&self) -> IommuKey {
        self.config.key
    }

    fn limits(&self) -> Stage2Limits {
        self.table_limits()
    }

    fn new_master(&self, device: DeviceId, streams: &[Stream], kin: Option<u64>) -> Result<NewMaster, IommuError> {
        let _inside = self.enter(Purpose::Acquire)?;
        Ok(NewMaster::new(device, Box::new(self.make_master(device, streams, kin)?)))
    }

    fn publish(&self, master: &mut NewMaster, met: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        let incoming = self.own(master)?;
        let _inside = self.enter(Purpose::Acquire)?;
        self.publish_master(&mut Held::enter(), incoming, met)
    }

    fn allot(&self, master: &mut NewMaster) -> Result<usize, IommuError> {
        let incoming = self.own(master)?;
        let _inside = self.enter(Purpose::Acquire)?;
        self.allot_entries(&mut Held::enter(), incoming)
    }

    fn enrol(&self, master: &mut NewMaster) -> Result<(), IommuError> {
        let incoming = self.own(master)?;
        self.powered(&mut Held::enter(), Purpose::Acquire, |held| self.enrol_entries(held, incoming))
    }

    fn sharing(&self, devices: &[DeviceId], tell: &mut dyn FnMut(Sharing)) -> Result<(), IommuError> {
        let mut sharing = few::with_room(devices.len()).ok_or(IommuError::OutOfMemory)?;
        list_sharing(&self.map.lock(&mut Held::enter()), devices, &mut sharing);
        sharing.into_iter().for_each(tell);
        Ok(())
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
    ) -> Result<Prepared, IommuError> {
        let _inside = self.enter(Purpose::Acquire)?;
        self.plan_move(&mut Held::enter(), devices, space, along)
    }

    fn reclaim(&self) -> Result<bool, IommuError> {
        let mut held = Held::enter();
        {
            let _inside = self.enter(Purpose::Acquire)?;
            if !self.owes_drains(&mut held) {
                return Ok(false);
            }
        }
        self.powered(&mut held, Purpose::Acquire, |held| {
            self.finish_drains(held, |_| true, Patience::Waiting).map_err(timed_out)
        })
    }

    fn abandon(&self, devices: &[DeviceId], mut prepared: Prepared) {
        let mut held = Held::enter();
        let abandoned = self.powered(&mut held, Purpose::Release, |held| {
            self.abandon_move(held, devices, &prepared);
            Ok(())
        });
        if let Err(IommuError::NoPower(_)) = abandoned
            && let Ok(_inside) = self.enter(Purpose::Release)
        {
            self.abandon_on_paper(&mut held, devices, &prepared);
        }
        self.clear_plan(&mut held, &mut prepared);
    }

    fn install(&self, devices: &[DeviceId], mut prepared: Prepared) -> Result<(), IommuError> {
        let mut held = Held::enter();
        let mut tried = false;
        let installed = self.powered(&mut held, Purpose::Acquire, |held| {
            tried = true;
            self.install_move(held, devices, &mut prepared)
        });
        if !tried {
            self.abandon(devices, prepared);
        }
        installed
    }

    fn block(&self, devices: &[DeviceId], tell: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Release, |held| self.block_devices(held, devices, tell))
    }

    fn cut(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Release, |held| self.cut_devices(held, devices))
    }

    fn withdraw(&self, device: DeviceId, rest: &[DeviceId], tell: &mut dyn FnMut(Withdrawn)) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Release, |held| self.withdraw_master(held, device, rest, tell))
    }

    fn flush(&self, domain: DomainId) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Acquire, |held| self.flush_domain(held, domain, Patience::Waiting))
    }

    fn forget(&self, domain: DomainId) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Release, |held| {
            self.flush_for_good(held, domain)?;
            self.await_drains(held, domain).map_err(timed_out)
        })
    }

    fn flush_range(&self, domain: DomainId, range: &FlushRange, patience: Patience) -> Result<(), IommuError> {
        let mut held = Held::enter();
        if patience == Patience::Waiting {
            return self.powered(&mut held, Purpose::Acquire, |held| self.flush_pages(held, domain, range, patience));
        }
        // Atomic context cannot wait for power.
        let inside = self.gate.enter::<P>(Purpose::Acquire, self.config.bound(patience))?;
        if inside.mode == Mode::Running && !self.power.call(&mut held).is_on() {
            return Err(IommuError::NoPower("it is off, and atomic context cannot switch it on"));
        }
        self.flush_pages(&mut held, domain, range, patience)
    }

    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.intake(line, report)
    }

    fn owner_of(&self, stream: StreamId) -> Option<DeviceId> {
        self.find_owner(&mut Held::enter(), stream)
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        let _ = self.powered(&mut Held::enter(), Purpose::Acquire, |held| {
            self.audit_all(held, report);
            Ok(())
        });
    }

    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        let mut held = Held::enter();
        let map = self.map.lock(&mut held);
        let used = map.used_by(device).ok_or(IommuError::Unknown)?;
        let domain = map.bank_of(used).and_then(super::context::Bank::domain);
        Ok(domain.filter(|domain| !own_space::is_own(*domain)))
    }

    fn enable_reports(&self) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Acquire, |held| {
            self.start_reports(held);
            Ok(())
        })
    }

    fn tend_faults(&self, storming: &mut dyn FnMut(StreamId, u32)) {
        self.counters.tend(self.config.fault_limits, storming);
    }

    fn fault_counts(&self) -> FaultCounts {
        self.counters.totals()
    }

    fn unknown_streams(&self, report: &mut dyn FnMut(StreamId, u32)) {
        self.counters.unknown(report);
    }

    fn coupled(&self, line: FaultLine, report: &mut dyn FnMut(DomainId)) {
        self.coupled_on(line, report);
    }

    fn usage(&self, report: &mut dyn FnMut(Usage)) {
        let mut held = Held::enter();
        for index in 0..self.geometry.entries {
            let mut after = None;
            loop {
                let next = entry_use(&self.map.lock(&mut held), index, after);
                let Some((device, domain)) = next else { break };
                after = Some(device);
                let device = Some(device).filter(|device| !reserved::is_reserved(*device));
                report(Usage { resource: Resource::StreamMapEntries, index, device, domain });
            }
        }
        for index in 0..self.geometry.banks {
            let domain = bank_use(&self.map.lock(&mut held), index);
            if let Some(domain) = domain {
                report(Usage { resource: Resource::ContextBanks, index, device: None, domain: Some(domain) });
            }
        }
    }

    fn suspend(&self) -> Result<(), IommuError> {
        self.go_dark()
    }

    fn resume(&self) -> Result<(), IommuError> {
        self.come_back(&mut Held::enter())
    }

    fn retire(&self) -> Result<(), IommuError> {
        self.step_down(&mut Held::enter())
    }

    fn close(&self) -> Result<(), IommuError> {
        self.go_away(&mut Held::enter())
    }

    fn crash(&self) -> Result<(), IommuError> {
        self.stop_now()
    }
}

/// The next device after `after` that uses an entry, or that it is promised to, and its domain. An entry that is promised
/// has the number that it would get now.
fn entry_use(map: &StreamMap, index: u8, after: Option<DeviceId>) -> Option<(DeviceId, Option<DomainId>)> {
    let mut earlier = map.free_entries().take_while(|free| *free != index).count();
    let is_free = map.entry(index).is_some_and(Entry::is_free);
    let promised = map.uses().find(|used| {
        let count = used.promised.count();
        let hers = earlier < count;
        earlier = earlier.saturating_sub(count);
        hers
    });
    let promised = promised.filter(|_| is_free).map(|used| used.device);
    let uses = |used: &&Use| {
        (used.entries.get() & one(index) != 0 || promised == Some(used.device)) && Some(used.device) > after
    };
    let used = map.uses().find(uses)?;
    Some((used.device, map.bank_of(used).and_then(super::context::Bank::domain)))
}

fn bank_use(map: &StreamMap, index: BankIndex) -> Option<DomainId> {
    let bank = map.bank(index)?;
    if matches!(bank.state, BankState::Free) { None } else { bank.domain() }
}
