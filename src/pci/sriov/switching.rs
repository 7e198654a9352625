//! Virtual functions on and off, with their registrations.
//!
//! All or none, as any operation is (contract A-1): where one virtual function cannot be a device, those that were added before
//! are removed, the last one first, and all are switched off again.

use alloc::vec::Vec;

use super::super::capability::{ARI_HIERARCHY, Capabilities, SrIov, VF_ENABLE, VF_MEMORY_ENABLE};
use super::super::config::{ConfigError, ConfigSpace, FunctionConfig, OtherHalf};
use super::super::control;
use super::super::function::Function;
use super::super::function_hooks::Delay;
use super::super::key::PciKey;
use super::super::topology::REQUIRED;
use super::physical_function::PhysicalFunction;
use super::virtual_bars::{BaseAddress, VirtualBar, measure};
use super::virtual_places::{VirtualPlaces, are_on, device_of, has_ari, reset_or};
use super::{SriovError, SwitchError, SwitchLeft};
use crate::assign::{Cause, Device, DeviceInfo, DeviceKey, DeviceSpec, DeviceState, Error, Removal, Service};
use crate::few;
use crate::sync::{Micros, Platform};

/// A virtual function that is on and registered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VirtualFunction {
    /// What was read there.
    pub function: Function,
    /// The device that it is, in fault until it is assigned.
    pub device: Device,
    /// The base addresses of the physical function's virtual functions; [`base_addresses`](Self::base_addresses) has its
    /// own.
    pub bars: [Option<VirtualBar>; 6],
}

impl VirtualFunction {
    /// Where it answers in the address space of its bus.
    pub fn base_addresses(&self) -> impl Iterator<Item = BaseAddress> {
        let number = self.function.key.virtual_number().unwrap_or(0);
        self.bars.iter().flatten().map(move |bar| bar.of(number))
    }
}

/// What of the capability is written before VF Enable.
#[derive(Clone, Copy, Debug)]
struct Before {
    number: u16,
    page_size: u32,
    /// Where the bit of the device's ARI Capable Hierarchy is, if it was changed.
    ari: Option<Ari>,
}

/// The control register with ARI Capable Hierarchy: that of the device's lowest physical function.
#[derive(Clone, Copy, Debug)]
struct Ari {
    function: super::super::Sbdf,
    control: u16,
    was_set: bool,
}

impl<C: ConfigSpace + ?Sized> PhysicalFunction<'_, C> {
    /// Switches `count` virtual functions on and adds each to the service, in the order of their numbers, as children of the
    /// physical function, which is registered.
    ///
    /// `delay` lets time pass: 100 ms after VF Enable, until which a virtual function may not be asked, then more until it
    /// answers, a second in all; and a second after they had to be switched off again (9.3.3.3.1). `offer` is shown each
    /// virtual function with its spec before it is added, to set hooks, label, mark and source; key and parent stay.
    ///
    /// ATS is off on all of them when they are added, and so are PRI and PASID of the physical function, which are
    /// theirs too (contract S-7). Access control services are on where they have such, and at the physical function, where
    /// they stay on.
    ///
    /// # Errors
    ///
    /// Nothing is switched on, and no bit of the capability is other than before, where they cannot be reached by bus numbers
    /// ([`SriovError::Buses`], [`SriovError::BusTaken`], [`SriovError::NeedsAri`], [`SriovError::PastEnd`],
    /// [`SriovError::Taken`]), the host bridge's map does not have them ([`SriovError::Streams`]), there are not so many
    /// ([`SriovError::Count`]), they are on ([`SriovError::AlreadyOn`]) or one is registered ([`SriovError::Registered`]), or
    /// they have no addresses ([`SriovError::Address`]). [`SriovError::Reset`] where another operation has reset the physical
    /// function meanwhile, as its deassignment does. What fails later undoes everything: [`SwitchLeft`].
    ///
    /// # Context
    ///
    /// Waiting context; the `delay` passes and `offer` is called with no lock held. An add that meets another operation is
    /// tried again for a second.
    pub fn switch_on<P: Platform>(
        &self,
        service: &Service<P>,
        count: u16,
        delay: Delay,
        offer: &mut dyn FnMut(&Function, DeviceSpec) -> DeviceSpec,
    ) -> Result<Vec<VirtualFunction>, SwitchError> {
        let unchanged = |cause| self.failed(cause, SwitchLeft::Unchanged);
        let (config, capability) = self.open().map_err(unchanged)?;
        self.check(service, count, &capability).map_err(unchanged)?;
        let before = Before { number: capability.count, page_size: capability.page_size, ari: None };
        let before = self.set_up(&config, count, &capability, before);
        let prepared = self.prepare(&config, count);
        let (places, capability, bars) = match prepared {
            Ok(prepared) => prepared,
            Err(cause) => {
                let cause = reset_or(cause, &config, &capability, count);
                self.put_back(&config, &capability, &before);
                return Err(unchanged(cause));
            }
        };
        let mut on = Vec::new();
        let added = on.try_reserve_exact(count.into()).map_err(|_| SriovError::OutOfMemory).and_then(|()| {
            turn_access_control_on(&config, &Capabilities::read(&config)?)?;
            config.change_u16(capability.control(), 0, VF_ENABLE | VF_MEMORY_ENABLE, OtherHalf::Zero)?;
            are_on(&config, &capability, count)?;
            delay.pass(START_UP);
            for number in 0..count {
                let (function, spec) = self.offered(number, &places, &capability, delay, offer)?;
                let added = delay.persist(ATTEMPTS, || service.add_copy(&spec));
                let device = added.map_err(SriovError::Service)?;
                few::push_within(&mut on, VirtualFunction { function, device, bars });
                // From the first one on nobody resets the physical function; until then its owner's end could.
                if number == 0 {
                    are_on(&config, &capability, count)?;
                }
            }
            Ok(())
        });
        match added {
            Ok(()) => Ok(on),
            Err(cause) => {
                let cause = if on.is_empty() { reset_or(cause, &config, &capability, count) } else { cause };
                let left = self.undo(service, &on, &config, &capability, &before, delay);
                Err(self.failed(cause, left))
            }
        }
    }

    /// Removes the virtual functions from the service, the last one first, and switches them off.
    ///
    /// # Errors
    ///
    /// [`SriovError::Assigned`] while a domain has one: nothing is changed then. Where the service does not let one go
    /// ([`SriovError::Service`]), those after it have gone, and it stays on with those before it: call again.
    ///
    /// # Context
    ///
    /// Waiting context; the `delay` passes with no lock held, for the second after which the capability may be accessed
    /// again (9.3.3.3.1). One that a domain gets meanwhile is not taken from it: that is told
    /// ([`Cause::AlreadyAssigned`]), and it stays on with those before it.
    pub fn switch_off<P: Platform>(&self, service: &Service<P>, delay: Delay) -> Result<(), SwitchError> {
        let mut devices = Vec::new();
        for info in registered(service, self.function.key) {
            if let (DeviceState::Assigned(_), Some(domain)) = (info.state, info.domain) {
                let device = info.device.label().clone();
                return Err(self.failed(SriovError::Assigned { device, domain }, SwitchLeft::Unchanged));
            }
            let room = few::push(&mut devices, info.device).map_err(|_| SriovError::OutOfMemory);
            room.map_err(|cause| self.failed(cause, SwitchLeft::Unchanged))?;
        }
        for device in devices.iter().rev() {
            let removed = delay.persist(ATTEMPTS, || match service.remove_unassigned(device) {
                Err(Error { cause: Cause::NotFound, .. }) => Ok(()),
                removed => removed.map(drop),
            });
            removed.map_err(|error| self.failed(SriovError::Service(error), SwitchLeft::On))?;
        }
        let (config, capability) = match self.open() {
            Ok(open) => open,
            Err(cause) => return Err(self.failed(cause, SwitchLeft::Gone)),
        };
        self.turn_off(&config, &capability, delay).map_err(|cause| {
            let is_gone = matches!(cause, SriovError::Config(_));
            self.failed(cause, if is_gone { SwitchLeft::Gone } else { SwitchLeft::On })
        })
    }

    fn failed(&self, cause: SriovError, left: SwitchLeft) -> SwitchError {
        let error = SwitchError { function: self.function.sbdf, cause, left };
        log::warn!("{error}");
        error
    }

    /// What is refused without a write.
    fn check<P: Platform>(&self, service: &Service<P>, count: u16, capability: &SrIov) -> Result<(), SriovError> {
        if capability.enabled {
            return Err(SriovError::AlreadyOn { count: capability.count });
        }
        if count == 0 || count > capability.total {
            return Err(SriovError::Count { asked: count, total: capability.total });
        }
        if let Some(bytes) = self.page_bytes {
            let page_size = page_bit(bytes).filter(|bit| capability.page_sizes & bit != 0);
            page_size.ok_or(SriovError::PageSize { bytes })?;
        }
        if let Some(info) = registered(service, self.function.key).next() {
            return Err(SriovError::Registered { first: info.device.label().clone() });
        }
        service.find(self.function.key.into()).map(drop).ok_or(SriovError::NotRegistered)
    }

    /// Writes what First VF Offset, VF Stride and the sizes of the base addresses depend on.
    fn set_up(&self, config: &FunctionConfig<'_, C>, count: u16, capability: &SrIov, mut before: Before) -> Before {
        let wants_ari = has_ari(self.found, self.function);
        let with_capability = |function: &Function| {
            let config = function.config(self.space).ok()?;
            let sr_iov = Capabilities::read(&config).ok()?.sr_iov?;
            Some((config, sr_iov))
        };
        let device = || device_of(self.found, self.function).filter_map(with_capability);
        // The lowest one has the bit for all of them, and it may not change while one has virtual functions on (9.3.3.3.5).
        let is_free = device().all(|(_, sr_iov)| !sr_iov.enabled);
        if let Some((lowest, sr_iov)) =
            device().next().filter(|(_, sr_iov)| is_free && sr_iov.ari_hierarchy != wants_ari)
        {
            let ari = Ari { function: lowest.function(), control: sr_iov.control(), was_set: sr_iov.ari_hierarchy };
            set_ari(&lowest, &ari, wants_ari);
            before.ari = Some(ari);
        }
        if config.change_u16(capability.number(), u16::MAX, count, OtherHalf::Zero).is_ok()
            && let Some(bit) = self.page_bytes.and_then(page_bit)
        {
            config.write(capability.page_size_at(), bit);
        }
        before
    }

    /// Everything else that is refused, with the registers set up.
    fn prepare(
        &self,
        config: &FunctionConfig<'_, C>,
        count: u16,
    ) -> Result<(VirtualPlaces, SrIov, [Option<VirtualBar>; 6]), SriovError> {
        let (_, capability) = self.open()?;
        let places = VirtualPlaces::new(self.function.sbdf, count, &capability);
        places.check(self.host, self.found, self.function)?;
        for number in 0..count {
            self.host.streams(&self.outline(number, &places, &capability, None)?)?;
        }
        let bars = measure(config, capability)?;
        if let Some(bar) = bars.iter().flatten().find(|bar| !bar.has_room(count)) {
            return Err(SriovError::Address { index: bar.index, address: bar.address, count });
        }
        // PRI and PASID of the physical function are its virtual functions' too.
        control::turn_translation_services_off(config, &Capabilities::read(config)?)?;
        Ok((places, capability, bars))
    }

    /// A virtual function that answers, with ATS off, as the service is to take it.
    fn offered(
        &self,
        number: u16,
        places: &VirtualPlaces,
        capability: &SrIov,
        delay: Delay,
        offer: &mut dyn FnMut(&Function, DeviceSpec) -> DeviceSpec,
    ) -> Result<(Function, DeviceSpec), SriovError> {
        let mut attempts = 0..ATTEMPTS;
        let config = loop {
            match self.outline(number, places, capability, None)?.config(self.space) {
                Err(_) if attempts.next().is_some() => {
                    // Where the physical function is gone or was reset, there is nothing to wait for.
                    are_on(&self.function.config(self.space)?, capability, places.count)?;
                    delay.pass(Delay::STEP);
                }
                answer => break answer?,
            }
        };
        let capabilities = Capabilities::read(&config)?;
        control::turn_translation_services_off(&config, &capabilities)?;
        // Off after VF Enable, as after a reset.
        turn_access_control_on(&config, &capabilities)?;
        let function = self.read(number, places, capability)?;
        let spec = function.spec(self.host, self.found)?;
        let (key, parent) = (spec.key, Some(self.function.key.into()));
        let spec = DeviceSpec { key, parent, ends_with_parent: true, ..offer(&function, spec) };
        Ok((function, spec))
    }

    /// Takes back what a switch did. Says what is left.
    fn undo<P: Platform>(
        &self,
        service: &Service<P>,
        on: &[VirtualFunction],
        config: &FunctionConfig<'_, C>,
        capability: &SrIov,
        before: &Before,
        delay: Delay,
    ) -> SwitchLeft {
        let mut all_removed = true;
        for virtual_function in on.iter().rev() {
            all_removed &= delay.persist(ATTEMPTS, || remove(service, &virtual_function.device)).is_ok();
        }
        if !all_removed {
            return SwitchLeft::On;
        }
        match self.turn_off(config, capability, delay) {
            Ok(()) => {
                self.put_back(config, capability, before);
                SwitchLeft::Off
            }
            Err(SriovError::Config(_)) => SwitchLeft::Gone,
            Err(_) => SwitchLeft::On,
        }
    }

    fn turn_off(&self, config: &FunctionConfig<'_, C>, capability: &SrIov, delay: Delay) -> Result<(), SriovError> {
        let control = config.read_u16(capability.control());
        config.still_present()?;
        if control & (VF_ENABLE | VF_MEMORY_ENABLE) != 0 {
            config.change_u16(capability.control(), VF_ENABLE | VF_MEMORY_ENABLE, 0, OtherHalf::Zero)?;
            delay.pass(SHUT_DOWN);
        }
        let is_on = config.read_u16(capability.control()) & VF_ENABLE != 0;
        config.still_present()?;
        if is_on { Err(SriovError::Stuck) } else { Ok(()) }
    }

    /// Puts back what was set up, with the virtual functions off.
    fn put_back(&self, config: &FunctionConfig<'_, C>, capability: &SrIov, before: &Before) {
        // All ones that were read from a function that is gone are no value to write.
        if config.still_present().is_err() {
            return;
        }
        if config.change_u16(capability.number(), u16::MAX, before.number, OtherHalf::Zero).is_ok()
            && self.page_bytes.is_some()
        {
            config.write(capability.page_size_at(), before.page_size);
        }
        if let Some(ari) = before.ari
            && let Ok(lowest) = FunctionConfig::new(self.space, ari.function)
        {
            set_ari(&lowest, &ari, ari.was_set);
        }
    }
}

/// The virtual functions of a physical function that are registered, ascending by number.
fn registered<P: Platform>(service: &Service<P>, physical: PciKey) -> impl Iterator<Item = DeviceInfo> + use<'_, P> {
    let next = move |after: DeviceKey| {
        let is_virtual = |info: &DeviceInfo| {
            let key = PciKey::of(info.device.key());
            key.is_some_and(|key| key.virtual_number().is_some() && key.parent() == Some(physical))
        };
        service.next_device(Some(after)).filter(is_virtual)
    };
    core::iter::successors(next(physical.into()), move |last| next(last.device.key()))
}

/// Removes a device; one that another operation removes when it ends is busy until then.
fn remove<P: Platform>(service: &Service<P>, device: &Device) -> Result<(), Error> {
    match service.remove(device) {
        Ok(Removal::Pending) => Err(Error::removal_is_pending(device.label().clone())),
        Err(Error { cause: Cause::NotFound, .. }) => Ok(()),
        removed => removed.map(drop),
    }
}

fn turn_access_control_on<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capabilities: &Capabilities,
) -> Result<(), ConfigError> {
    capabilities
        .acs
        .map_or(Ok(()), |acs| config.change_u16(acs.control(), 0, (REQUIRED & acs.supported).bits(), OtherHalf::Zero))
}

fn set_ari<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, ari: &Ari, on: bool) {
    let (clear, set) = if on { (0, ARI_HIERARCHY) } else { (ARI_HIERARCHY, 0) };
    // Of one that has gone there is nothing to keep in order.
    let _ = config.change_u16(ari.control, clear, set, OtherHalf::Zero);
}

/// The bit of a page size.
fn page_bit(bytes: u64) -> Option<u32> {
    let shift = bytes.is_power_of_two().then(|| bytes.trailing_zeros())?.checked_sub(12)?;
    1u32.checked_shl(shift)
}

/// After VF Enable was set, and in all until a virtual function answers; after it was cleared (9.3.3.3.1).
const START_UP: Micros = Micros::from_millis(100);
const SHUT_DOWN: Micros = Micros::from_millis(1000);
const ATTEMPTS: u32 = 90;
