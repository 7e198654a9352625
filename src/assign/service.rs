//! The face of the library: every operation on devices, domains and IOMMU instances.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::AtomicBool;

use super::arrivals::Arrivals;
use super::device::{DeviceInfo, DeviceState};
use super::error::{Cause, Error, Operation};
use super::event::{Event, EventSink, NoEvents};
use super::fault::{FaultAnswer, FaultLine, RawFault};
use super::graveyard::take_all;
use super::identity::{DeviceId, DeviceKey, DomainId, Label};
use super::instances::{Instance, Instances};
use super::iommu::{Difference, Iommu};
use super::levels;
use super::policy::Policy;
use super::registry::{IommuRecord, Registry};
use super::space::Stage2Limits;
use super::spec::IommuKey;
use crate::sync::Platform;
use crate::sync::Waiter;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// The assignment service: one for a machine.
///
/// All methods take `&self` and may be called from several CPUs at once; with a platform for a single CPU it is not
/// `Sync`. They run in waiting context, for they poll hardware and call hooks, but for those that name another one. Where
/// two calls are about the same group, the second gets [`Cause::Busy`].
pub struct Service<P: Platform> {
    pub(super) registry: Lock<levels::Registry, Registry<P>, P::Lock>,
    pub(super) instances: Lock<levels::Instances, Instances, P::Lock>,
    pub(super) policy: Outside<Box<dyn Policy>>,
    pub(super) events: Outside<Box<dyn EventSink>>,
    /// A source object has gone since its registrations were last looked for.
    pub(super) some_ended: Arc<AtomicBool>,
    /// Adds under way that the registry does not know yet.
    pub(super) arrivals: Arrivals,
    /// How often devices have changed their states.
    pub(super) moves: AtomicU64,
    last_device: AtomicU64,
    pub(super) last_domain: AtomicU64,
    sharing: PhantomData<P::Sharing>,
}

/// What `deassign` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "the device's streams may still reach the domain through a device that shares them"]
pub struct Deassigned {
    /// Devices of the group that keep a shared stream translated: through it, this device's DMA still reaches the
    /// domain (contract I-6, `StillReachable`). Empty when the device is cut off.
    pub still_reachable: Vec<Label>,
}

/// A fault with the names that the service knows (contract A-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// What the hardware said.
    pub raw: RawFault,
    /// The device whose stream it is.
    pub device: Option<Label>,
    /// The domain whose tables refused it.
    pub domain: Option<Label>,
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} on {}", self.raw.iommu, self.raw.cause, self.raw.access)?;
        if let Some(address) = self.raw.address {
            write!(f, " of {address:#x}")?;
        }
        match (&self.device, self.raw.stream) {
            (Some(device), Some(stream)) => write!(f, " by {device} (stream {stream})")?,
            (None, Some(stream)) => write!(f, " by unknown stream {stream}")?,
            _ => {}
        }
        if let Some(domain) = &self.domain {
            write!(f, " in {domain}")?;
        }
        if let Some(bank) = self.raw.bank {
            write!(f, " (bank {bank})")?;
        }
        if self.raw.more_lost { f.write_str("; more were lost") } else { Ok(()) }
    }
}

/// Something that `audit` found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A register or a driver's count is not as the driver believes.
    Hardware(Difference),
    /// The registry and a driver disagree about where a device is.
    Placement {
        /// The device.
        device: Label,
        /// The IOMMU.
        iommu: IommuKey,
        /// Where the registry has it.
        registry: Option<DomainId>,
        /// Where the driver has it.
        driver: Option<DomainId>,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(difference) => difference.fmt(f),
            Self::Placement { device, iommu, registry, driver } => {
                let name = |domain: &Option<DomainId>| domain.map_or(0, DomainId::number);
                write!(f, "{device} at {iommu}: registry has domain {}, driver {}", name(registry), name(driver))
            }
        }
    }
}

impl<P: Platform> Service<P> {
    /// A service without devices, domains or IOMMUs, to whose events nobody listens.
    #[must_use]
    pub fn new(policy: Box<dyn Policy>) -> Self {
        Self::with_events(policy, Box::new(NoEvents))
    }

    /// A service without devices, domains or IOMMUs.
    #[must_use]
    pub fn with_events(policy: Box<dyn Policy>, events: Box<dyn EventSink>) -> Self {
        Self {
            events: Outside::new(events),
            registry: Lock::new(Registry::new()),
            instances: Lock::new(Instances::new()),
            policy: Outside::new(policy),
            some_ended: Arc::new(AtomicBool::new(false)),
            arrivals: Arrivals::new(),
            moves: AtomicU64::new(0),
            last_device: AtomicU64::new(0),
            last_domain: AtomicU64::new(0),
            sharing: PhantomData,
        }
    }

    pub(super) fn next_device_id(&self) -> DeviceId {
        DeviceId::new(self.last_device.fetch_add(1, Ordering::Relaxed).wrapping_add(1))
    }

    /// Whether a device of this number was ever added here; a driver has numbers of its own.
    pub(super) fn has_given(&self, device: DeviceId) -> bool {
        device.number() <= self.last_device.load(Ordering::Relaxed)
    }

    /// Says a failed operation in one line of log. Only called where nothing is locked (contract C-3).
    pub(super) fn report<T>(&self, result: &Result<T, Error>) {
        match result {
            // Nothing happened, and a wait form tries again: no line for that.
            Ok(_) | Err(Error { cause: Cause::Busy { .. }, .. }) => {}
            Err(error) => log::warn!("{error}"),
        }
    }

    // --- IOMMU instances ---

    /// Puts a probed IOMMU instance into service.
    ///
    /// # Errors
    ///
    /// [`Cause::AlreadyRegistered`] when its key is in use.
    pub fn register_iommu(&self, iommu: Arc<dyn Iommu>) -> Result<(), Error> {
        let mut held = Held::enter();
        let key = iommu.key();
        let record = IommuRecord::new(iommu);
        let instance = Instance::new(key, record.iommu.clone());
        let refused = {
            let mut registry = self.registry.lock(&mut held);
            let (registry, held) = registry.split();
            match registry.insert_iommu(record) {
                Ok(()) => {
                    self.instances.lock(held).insert(instance);
                    None
                }
                Err(record) => Some((record, instance)),
            }
        };
        if let Some(made) = refused {
            drop(made);
            let label = Label::of_iommu(key);
            return Err(Error::unchanged(
                Operation::RegisterIommu,
                label.clone(),
                Cause::AlreadyRegistered { by: label },
            ));
        }
        self.tell(&mut held, &Event::IommuRegistered { iommu: key });
        Ok(())
    }

    /// Takes an IOMMU instance out of service. No device may be registered on it, but for strays, which go with it.
    /// Afterwards none of its registers is touched.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`], [`Cause::InUse`], [`Cause::Busy`], and [`Cause::Iommu`] when an earlier drain has still not been confirmed: it
    /// stays in service, since nobody could find out later when the tables of that domain are free (contract I-8).
    pub fn unregister_iommu(&self, key: IommuKey) -> Result<(), Error> {
        let mut held = Held::enter();
        // Made before the lock is taken.
        let label = Label::of_iommu(key);
        let refuse = |cause| Error::unchanged(Operation::UnregisterIommu, label.clone(), cause);
        let iommu = {
            let registry = self.registry.lock(&mut held);
            let record = registry.iommu(key).ok_or_else(|| refuse(Cause::NotFound))?;
            if let Some(cause) = registry.use_of_iommu(record) {
                return Err(refuse(cause));
            }
            if record.leaving.replace(true) {
                record.met.set(true);
                return Err(refuse(Cause::Busy { running: Operation::UnregisterIommu }));
            }
            record.iommu.clone()
        };
        let settled = self.evict_strays(&mut held, key).and_then(|()| self.settle_iommu(&mut held, key, &iommu));
        let (taken, was_met) = self.end_leaving(&mut held, key, &iommu, settled.is_ok());
        if was_met {
            P::wake();
        }
        settled.map_err(refuse)?;
        if !taken {
            // A forced unregister was faster; what is registered under the key now is another instance.
            return Err(refuse(Cause::NotFound));
        }
        self.revoke_iommu(&mut held, &iommu);
        self.tell(&mut held, &Event::IommuUnregistered { iommu: key });
        Ok(())
    }

    /// Ends the hold of an unregister; with `bury`, the registration of this very instance too. Says whether there was one,
    /// and whether somebody has met the hold.
    pub(super) fn end_leaving(
        &self,
        held: &mut Held<'_, Unlocked>,
        key: IommuKey,
        iommu: &Outside<Arc<dyn Iommu>>,
        bury: bool,
    ) -> (bool, bool) {
        // Dropped when the locks are free.
        let _instance;
        let mut registry = self.registry.lock(held);
        let (registry, held) = registry.split();
        let was_met = registry.instance(key, iommu).is_some_and(|record| {
            record.leaving.set(false);
            record.met.replace(false)
        });
        let buried = bury && registry.bury_iommu(key, iommu);
        if buried {
            // Nobody has seen them, so that they cannot have come before the instance went.
            registry.mark_arriving(iommu);
        }
        _instance = if buried { self.instances.lock(held).take(key) } else { None };
        (buried, was_met)
    }

    /// Has an instance without devices forget every domain, those that have ended included: at no cost where all drains
    /// were confirmed.
    fn settle_iommu(
        &self,
        held: &mut Held<'_, Unlocked>,
        key: IommuKey,
        iommu: &Outside<Arc<dyn Iommu>>,
    ) -> Result<(), Cause> {
        iommu.call(held).reclaim().map_err(|error| Cause::Iommu { iommu: key, error })?;
        let mut after = None;
        loop {
            let next = self.registry.lock(held).next_domain(after).map(|record| record.domain.id());
            let Some(domain) = next else { break };
            iommu.call(held).forget(domain).map_err(|error| Cause::Iommu { iommu: key, error })?;
            after = Some(domain);
        }
        // A flush that has found the instance already, and comes to it only later, must touch no register then.
        iommu.call(held).retire().map_err(|error| Cause::Iommu { iommu: key, error })
    }

    /// Takes an instance, which is out of service, from every domain's flush list (contract C-9).
    pub(super) fn revoke_iommu(&self, held: &mut Held<'_, Unlocked>, iommu: &Outside<Arc<dyn Iommu>>) {
        let mut after = None;
        loop {
            let next = self.registry.lock(held).next_domain(after).map(|record| record.domain.clone());
            let Some(domain) = next else { break };
            domain.leave(held, iommu);
            after = Some(domain.id());
        }
    }

    /// What tables every registered IOMMU can follow, for a hypervisor that builds a guest's tables before it knows
    /// which devices the guest gets. `None` without an IOMMU (contract S-2).
    #[must_use]
    pub fn limits(&self) -> Option<Stage2Limits> {
        let mut held = Held::enter();
        let mut all: Option<Stage2Limits> = None;
        let mut after = None;
        loop {
            let next = {
                let registry = self.registry.lock(&mut held);
                registry.next_iommu(after).map(|record| record.iommu.clone())
            };
            let Some(iommu) = next else { return all };
            let iommu = iommu.call(&mut held);
            after = Some(iommu.key());
            all = Some(all.map_or(iommu.limits(), |all| all.intersection(iommu.limits())));
        }
    }

    // --- waiting ---

    /// The wait form of an operation: tries it, and where it meets a claimed group waits until claims end and tries again.
    ///
    /// ```text
    /// service.wait(Some(deadline), |service| service.assign(&device, &domain))
    /// ```
    ///
    /// # Errors
    ///
    /// [`Cause::TimedOut`] when the group stayed busy until the deadline (nothing changed then), and whatever the operation
    /// says but `Busy`.
    ///
    /// # Context
    ///
    /// Waiting context, with no lock that another operation could want. From inside a callback use
    /// [`Within::wait`](super::Within::wait), which knows what must not be waited for. Contract C-2, C-19.
    pub fn wait<T>(
        &self,
        deadline: Option<P::Deadline>,
        mut operation: impl FnMut(&Self) -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        P: Waiter,
    {
        self.until(deadline, || operation(self))
    }

    /// Tries `operation` until it is not `Busy`.
    pub(super) fn until<T>(
        &self,
        deadline: Option<P::Deadline>,
        mut operation: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        P: Waiter,
    {
        loop {
            let ticket = P::prepare();
            let busy = match operation() {
                Err(Error { operation, subject, cause: Cause::Busy { running }, left }) => {
                    Error { operation, subject, cause: Cause::TimedOut { running }, left }
                }
                result => return result,
            };
            if P::wait(ticket, deadline).is_err() {
                return Err(busy);
            }
        }
    }

    /// Ends the registrations whose source object has gone, and releases the memory of what is registered no more and
    /// nobody refers to. Every operation does a little of the latter; this does what is left.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-7.
    pub fn reap(&self) {
        // Each failure is logged where it happens, and tried again the next time.
        let _ = self.end_sources();
        let mut held = Held::enter();
        take_all(|| {
            let mut registry = self.registry.lock(&mut held);
            let unused = registry.unused();
            ((!unused.is_empty()).then_some(unused), registry.rounds())
        });
    }

    // --- look-up and traversal ---

    /// The device that is registered under `key`.
    #[must_use]
    pub fn find(&self, key: DeviceKey) -> Option<DeviceInfo> {
        let mut held = Held::enter();
        let registry = self.registry.lock(&mut held);
        registry.shown(key)
    }

    /// The device after `after` in key order; the first one for `None`.
    ///
    /// A traversal made of such steps holds no lock between them, never skips or repeats a device that stays, and
    /// survives the removal of the one that it stands on (contract C-6).
    #[must_use]
    pub fn next_device(&self, after: Option<DeviceKey>) -> Option<DeviceInfo> {
        let mut held = Held::enter();
        self.registry.lock(&mut held).next_device(after)
    }

    /// All devices in key order, each as it is when the traversal reaches it.
    pub fn devices(&self) -> impl Iterator<Item = DeviceInfo> {
        core::iter::successors(self.next_device(None), |last| self.next_device(Some(last.device.key())))
    }

    /// A number that changes whenever a device or an IOMMU is registered or unregistered.
    #[must_use]
    pub fn generation(&self) -> u64 {
        let mut held = Held::enter();
        self.registry.lock(&mut held).generation
    }

    // --- faults and audit ---

    /// Reads, clears and names what faulted at `iommu` on `line`, and says whether the line should be masked.
    ///
    /// # Context
    ///
    /// Waiting context: the handler's bottom half. `sink` is called with no lock held.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`] for an IOMMU that is not registered.
    pub fn handle_fault(
        &self,
        iommu: IommuKey,
        line: FaultLine,
        sink: &mut dyn FnMut(&FaultRecord),
    ) -> Result<FaultAnswer, Cause> {
        let mut held = Held::enter();
        let driver = self.instances.lock(&mut held).find(iommu).cloned().ok_or(Cause::NotFound)?;
        let mut faults: Vec<RawFault> = Vec::new();
        let mut dropped = 0_usize;
        let answer = driver.call(&mut held).take_faults(line, &mut |fault| match faults.try_reserve(1) {
            Ok(()) => faults.push(fault),
            Err(_) => dropped = dropped.saturating_add(1),
        });
        if dropped > 0 {
            log::warn!("{iommu}: {dropped} faults were read and not told, for want of memory");
        }
        for raw in faults {
            let owner = raw.stream.and_then(|stream| driver.call(&mut held).owner_of(stream));
            let record = {
                let registry = self.registry.lock(&mut held);
                let device = owner.and_then(|id| registry.device_by_id(id));
                FaultRecord {
                    raw,
                    device: device.map(|record| record.device.label().clone()),
                    domain: raw.domain.and_then(|id| registry.domain(id)).map(|record| record.domain.label().clone()),
                }
            };
            log::warn!("{record}");
            sink(&record);
            self.tell(&mut held, &Event::Fault(record));
        }
        Ok(answer)
    }

    /// Compares the registry with the drivers, and each driver with its hardware. Changes nothing (contract A-10).
    ///
    /// Meaningful while no operation runs: a device under way is where its operation has brought it.
    pub fn audit(&self, sink: &mut dyn FnMut(&Finding)) {
        let mut held = Held::enter();
        let mut after = None;
        loop {
            let next = {
                let registry = self.registry.lock(&mut held);
                registry.next_iommu(after).map(|record| record.iommu.clone())
            };
            let Some(iommu) = next else { break };
            after = Some(iommu.call(&mut held).key());
            iommu.call(&mut held).audit(&mut |difference| sink(&Finding::Hardware(difference)));
        }
        for info in self.devices() {
            let registry = match info.state {
                DeviceState::Assigned(domain) => Some(domain),
                _ => None,
            };
            for attachment in info.device.attachments() {
                let driver = attachment.iommu.call(&mut held).placement(info.device.id()).unwrap_or(None);
                if driver != registry {
                    let device = info.device.label().clone();
                    sink(&Finding::Placement { device, iommu: attachment.key, registry, driver });
                }
            }
        }
    }
}

impl<P: Platform> fmt::Debug for Service<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("registry", &self.registry).finish_non_exhaustive()
    }
}
