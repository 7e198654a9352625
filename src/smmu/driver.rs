//! The `Iommu` trait over an instance: who may call what now, and with power. `IommuPower` stands in `suspend.rs`,
//! `IommuFaults` in `intake.rs`.

use alloc::boxed::Box;
use core::any::Any;

use super::gate::{Mode, Purpose};
use super::hardware::Registers;
use super::instance::Smmu;
use super::stream::masters::is_reserved;
use crate::assign::{
    AddressSpace, DeviceId, Difference, DomainId, FlushRange, Iommu, IommuError, IommuKey, Patience, Stage2Limits,
    Stream, StreamId, Streams, Usage, own_space,
};
use crate::sync::Platform;
use crate::sync::order::Held;

impl<P: Platform, R: Registers> Iommu for Smmu<P, R> {
    fn key(&self) -> IommuKey {
        self.part.key()
    }

    fn limits(&self) -> Stage2Limits {
        self.part.limits()
    }

    fn make_master(&self, device: DeviceId, streams: &[Stream], lazy: bool) -> Result<Box<dyn Any + Send>, IommuError> {
        let _inside = self.enter(Purpose::Acquire)?;
        Ok(self.make_device(device, streams, lazy)?)
    }

    fn publish(&self, master: Box<dyn Any + Send>) -> Result<bool, IommuError> {
        self.publish_device(master)
    }

    fn overlapping(&self, device: DeviceId, after: Option<DeviceId>) -> Option<DeviceId> {
        self.next_overlapping(device, after)
    }

    fn reserve(&self, device: DeviceId, is_claimed: &dyn Fn(DeviceId) -> bool) -> Result<Streams, IommuError> {
        self.reserve_device(device, is_claimed)
    }

    fn enrol(&self, device: DeviceId) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Acquire, |held| self.enrol_device(held, device))
    }

    fn shares(&self, one: DeviceId, other: DeviceId) -> bool {
        self.share_entries(one, other)
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError> {
        self.plan_move(&mut Held::enter(), devices, space, is_claimed)
    }

    fn abandon(&self, devices: &[DeviceId]) {
        self.abandon_plan(devices);
    }

    fn install(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Acquire, |held| self.install_move(held, devices))
    }

    fn block(&self, devices: &[DeviceId]) -> Result<Streams, IommuError> {
        self.powered(&mut Held::enter(), Purpose::Release, |held| self.block_devices(held, devices))
    }

    fn withdraw(&self, device: DeviceId) -> Result<Streams, IommuError> {
        let mut held = Held::enter();
        match self.powered(&mut held, Purpose::Release, |held| self.withdraw_device(held, device)) {
            Err(IommuError::NoPower(reason)) => {
                // A device all of whose written entries others use still goes without a register access.
                let _inside = self.enter(Purpose::Release)?;
                self.try_withdraw(&mut held, device, false)?.ok_or(IommuError::NoPower(reason))
            }
            withdrawn => withdrawn,
        }
    }

    fn flush(&self, domain: DomainId, range: Option<&FlushRange>, patience: Patience) -> Result<(), IommuError> {
        let mut held = Held::enter();
        let bound = || match patience {
            Patience::Waiting => self.part.config.looks(),
            Patience::Atomic => self.part.config.bound(patience),
        };
        let inside = self.gate.enter::<P>(Purpose::Acquire, bound)?;
        if inside.mode == Mode::Suspended {
            return Ok(());
        }
        match patience {
            _ if self.power.is_always_on() => {}
            Patience::Waiting => self.get_power(&mut held)?,
            // It cannot wait for power.
            Patience::Atomic if self.power.take_if_on(&mut held) => {}
            Patience::Atomic => {
                return Err(IommuError::NoPower("it is off, and atomic context cannot switch it on"));
            }
        }
        let flushed = self.flush_domain(&mut held, domain, range, patience);
        self.power.give(&mut held);
        flushed
    }

    fn forget(&self, domain: DomainId) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Release, |held| self.forget_domain(held, domain))
    }

    fn owner_of(&self, stream: StreamId, domain: Option<DomainId>) -> Option<DeviceId> {
        self.find_owner(stream, domain)
    }

    fn next_known(&self, after: Option<DeviceId>) -> Option<(DeviceId, Option<DomainId>)> {
        let mut held = Held::enter();
        let shadow = self.shadow.lock(&mut held);
        let user = shadow.users.next(after, |user| !is_reserved(user.device))?;
        let domain = user.bank.get().and_then(|bank| shadow.banks.at(bank).domain());
        Some((user.device, domain.filter(|domain| !own_space::is_own(*domain))))
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        let _ = self.powered(&mut Held::enter(), Purpose::Acquire, |held| {
            self.audit_all(held, report);
            Ok(())
        });
    }

    fn usage(&self, report: &mut dyn FnMut(Usage)) {
        self.tell_usage(&mut Held::enter(), report);
    }
}
