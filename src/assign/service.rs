//! The face of the library: construction, look-up, traversal, wait forms. The operations stand in [`op`](super::op).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::AtomicBool;

use super::guarded;
use super::{
    Attempt, CallChain, Cause, Device, DeviceId, DeviceInfo, DeviceKey, DeviceState, Error, Event, EventSink, Instance,
    InstanceState, Instances, IommuKey, Obstacle, Operation, Policy, PolicyRequest, Registry, Stage2Limits,
};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::broken::broken;
use crate::sync::levels;
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;
use crate::sync::{Platform, Waiter};

/// The assignment service: one for a machine.
///
/// All methods take `&self` and may be called from several CPUs at once; with a platform for a single CPU it is not
/// `Sync`. They run in waiting context, for they poll hardware and call hooks, but for those that name another one. Where
/// two calls are about the same group, the second gets [`Cause::Busy`].
///
/// | to | call |
/// |---|---|
/// | make one | [`new`](Self::new), [`with_events`](Self::with_events) |
/// | put an SMMU into service, and out | [`register_iommu`](Self::register_iommu), [`unregister_iommu`](Self::unregister_iommu), [`force_unregister_iommu`](Self::force_unregister_iommu), [`shutdown`](Self::shutdown) |
/// | bring a device in, and out | [`add`](Self::add), [`remove`](Self::remove), [`remove_tree`](Self::remove_tree), [`remove_and_wait`](Self::remove_and_wait) |
/// | give devices other streams, their owners kept | [`reregister`](Self::reregister) |
/// | make a guest's address space, and end it | [`limits`](Self::limits), [`create_domain`](Self::create_domain), [`destroy_domain`](Self::destroy_domain), [`retire_domain`](Self::retire_domain) |
/// | give a device to a guest, and take it back | [`assign`](Self::assign), [`reassign`](Self::reassign), [`deassign`](Self::deassign) |
/// | the same for its whole group | [`assign_group`](Self::assign_group), [`reassign_group`](Self::reassign_group), [`deassign_group`](Self::deassign_group), [`quarantine`](Self::quarantine) |
/// | find out first whether that would work | [`test_assign`](Self::test_assign), [`reserve`](Self::reserve) |
/// | make IOMMUs forget translations | [`flush`](Self::flush), [`flush_range`](Self::flush_range), [`flush_range_atomic`](Self::flush_range_atomic) |
/// | deal with faults | [`enable_reports`](Self::enable_reports), [`handle_fault`](Self::handle_fault), [`tend_faults`](Self::tend_faults), [`iommu`](Self::iommu) |
/// | let an SMMU sleep | [`suspend_iommu`](Self::suspend_iommu), [`resume_iommu`](Self::resume_iommu) |
/// | look | [`find`](Self::find), [`devices`](Self::devices), [`next_device`](Self::next_device), [`generation`](Self::generation), [`write_tree`](Self::write_tree), [`usage`](Self::usage), [`audit`](Self::audit) |
/// | end registrations with an object of their source, give memory back | [`source_object`](Self::source_object), [`end_source`](Self::end_source), [`reap`](Self::reap) |
/// | wait, come back from a callback, call from interrupts | [`wait`](Self::wait), [`within`](Self::within), [`in_interrupts`](Self::in_interrupts) |
pub struct Service<P: Platform> {
    pub(super) registry: Lock<levels::Registry, Registry<P>, P::Lock>,
    pub(super) instances: Lock<levels::Instances, Instances, P::Lock>,
    pub(super) policy: Outside<Box<dyn Policy>>,
    pub(super) events: Option<Outside<Box<dyn EventSink>>>,
    /// A source object has gone since its registrations were last looked for.
    pub(super) some_ended: Arc<AtomicBool>,
    /// How many operations have given something back.
    pub(super) ends: AtomicU64,
    pub(super) last_device: AtomicU64,
    pub(super) last_domain: AtomicU64,
    sharing: PhantomData<P::Sharing>,
}

impl<P: Platform> Service<P> {
    /// A service without devices, domains or IOMMUs, whose events go nowhere.
    #[must_use]
    pub fn new(policy: Box<dyn Policy>) -> Self {
        Self::made_with(policy, None)
    }

    /// A service without devices, domains or IOMMUs.
    #[must_use]
    pub fn with_events(policy: Box<dyn Policy>, events: Box<dyn EventSink>) -> Self {
        Self::made_with(policy, Some(Outside::new(events)))
    }

    fn made_with(policy: Box<dyn Policy>, events: Option<Outside<Box<dyn EventSink>>>) -> Self {
        Self {
            registry: Lock::new(Registry::new()),
            instances: Lock::new(Instances::new()),
            policy: Outside::new(policy),
            events,
            some_ended: Arc::new(AtomicBool::new(false)),
            ends: AtomicU64::new(0),
            last_device: AtomicU64::new(0),
            last_domain: AtomicU64::new(0),
            sharing: PhantomData,
        }
    }

    // --- what operations share ---

    /// Tells the sink, if there is one, what has happened.
    pub(super) fn tell(&self, held: &mut Held<'_, Unlocked>, event: impl FnOnce() -> Event) {
        if let Some(events) = &self.events {
            let (events, event) = (events.call(held), event());
            guarded::told(|| events.event(&event));
        }
    }

    /// The policy's answer.
    pub(super) fn permits(&self, held: &mut Held<'_, Unlocked>, request: &PolicyRequest<'_>) -> bool {
        let policy = self.policy.call(held);
        guarded::verdict(|| policy.allows(request))
    }

    /// The instance of this name that is in service.
    pub(super) fn instance(&self, held: &mut Held<'_, Unlocked>, key: IommuKey) -> Option<Arc<Instance>> {
        self.instances.lock(held).find(key)
    }

    /// The same, for an operation that is about it.
    pub(super) fn named_instance(
        &self,
        held: &mut Held<'_, Unlocked>,
        operation: Operation,
        key: IommuKey,
    ) -> Result<Arc<Instance>, Error> {
        Error::reported(self.instance(held, key).ok_or_else(|| Error::of_iommu(operation, key, Cause::NotFound)))
    }

    pub(super) fn next_instance(
        &self,
        held: &mut Held<'_, Unlocked>,
        after: Option<IommuKey>,
    ) -> Option<Arc<Instance>> {
        self.instances.lock(held).next(after)
    }

    /// An operation has given something back: whoever waits looks again.
    pub(super) fn count_end(&self) {
        self.ends.fetch_add(1, Ordering::AcqRel);
        P::wake();
    }

    // --- look-up and traversal ---

    /// What tables every registered IOMMU can follow, for a hypervisor that builds a guest's tables before it knows
    /// which devices the guest gets. `None` without an IOMMU (contract S-2).
    #[must_use]
    pub fn limits(&self) -> Option<Stage2Limits> {
        let mut held = Held::enter();
        let (mut all, mut after): (Option<Stage2Limits>, _) = (None, None);
        while let Some(instance) = self.next_instance(&mut held, after) {
            after = Some(instance.key);
            let limits = instance.iommu.call(&mut held).limits();
            all = Some(all.map_or(limits, |all| all.intersection(limits)));
        }
        all
    }

    /// The device that is registered under `key`.
    #[must_use]
    pub fn find(&self, key: DeviceKey) -> Option<DeviceInfo> {
        self.registry.lock(&mut Held::enter()).shown(key)
    }

    /// The device of this number.
    pub(super) fn find_by_id(&self, held: &mut Held<'_, Unlocked>, id: DeviceId) -> Option<Device> {
        self.registry.lock(held).by_id(id).map(|record| record.device.clone())
    }

    /// The device after `after` in key order; the first one for `None`.
    ///
    /// A traversal made of such steps holds no lock between them, never skips or repeats a device that stays, and
    /// survives the removal of the one that it stands on (contract C-6).
    #[must_use]
    pub fn next_device(&self, after: Option<DeviceKey>) -> Option<DeviceInfo> {
        self.registry.lock(&mut Held::enter()).next_device(after)
    }

    /// All devices in key order, each as it is when the traversal reaches it.
    pub fn devices(&self) -> impl Iterator<Item = DeviceInfo> {
        core::iter::successors(self.next_device(None), |last| self.next_device(Some(last.device.key())))
    }

    /// A number that changes whenever a device is registered or unregistered.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.registry.lock(&mut Held::enter()).generation
    }

    /// Writes the whole state as a tree that one reads on a console: each device with its owner, group and streams,
    /// behind the device that it stands behind.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    ///
    /// # Context
    ///
    /// Waiting context; `out` is called with no lock held. Devices that come or go meanwhile may be there or not.
    pub fn write_tree(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let roots = self.devices().filter(|info| info.device.parent().is_none());
        for root in roots {
            let mut at = Some(root);
            while let Some(info) = at {
                write_line(out, &info)?;
                at = self.next_in_tree(&info);
            }
        }
        Ok(())
    }

    /// The device that comes after `info` in its root's tree: its first child, else the next one beside it or beside one
    /// that it stands behind.
    fn next_in_tree(&self, info: &DeviceInfo) -> Option<DeviceInfo> {
        let mut held = Held::enter();
        let registry = self.registry.lock(&mut held);
        let (mut parent, mut after) = (info.device.key(), None);
        loop {
            while let Some(child) = registry.child(parent, after) {
                after = Some(child.device.key());
                if child.is_shown() {
                    return registry.shown(child.device.key());
                }
            }
            // None below: on beside the parent.
            let above = registry.device(parent)?.device.parent()?;
            (parent, after) = (above, Some(parent));
        }
    }

    // --- wait forms ---

    /// Tries `operation` until it is not `Busy`.
    pub(super) fn until<T>(
        &self,
        above: CallChain<'_>,
        deadline: Option<P::Deadline>,
        mut operation: impl FnMut(CallChain<'_>) -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        P: Waiter,
    {
        loop {
            let attempt = Attempt::default();
            let ends = self.ends.load(Ordering::Acquire);
            let busy = match operation(above.trying(&attempt)) {
                Err(Error { operation, subject, cause: Cause::Busy { running }, left }) => {
                    // Only groups have an order in which no circle of waits closes.
                    let may_circle = above.depth() > 0 && !matches!(attempt.met.get(), Some(Obstacle::Group(_)));
                    if may_circle {
                        return Err(Error { operation, subject, cause: Cause::WouldDeadlock { running }, left });
                    }
                    Error { operation, subject, cause: Cause::TimedOut { running }, left }
                }
                result => return result,
            };
            let ends = ends.wrapping_add(attempt.ends.get());
            // What the attempt itself gave back does not count: it waits for what it met.
            self.wait_while(deadline, |held| self.is_in_the_way(held, attempt.met.get(), ends)).map_err(|_| busy)?;
        }
    }

    /// Waits while a condition holds.
    pub(super) fn wait_while(
        &self,
        deadline: Option<P::Deadline>,
        mut holds: impl FnMut(&mut Held<'_, Unlocked>) -> bool,
    ) -> Result<(), crate::sync::TimedOut>
    where
        P: Waiter,
    {
        loop {
            let ticket = P::prepare();
            if !holds(&mut Held::enter()) {
                return Ok(());
            }
            P::wait(ticket, deadline)?;
        }
    }

    /// Whether what an attempt met is still busy. `ends`: how many operations had given something back when it came to that.
    fn is_in_the_way(&self, held: &mut Held<'_, Unlocked>, met: Option<Obstacle>, ends: u64) -> bool {
        if broken!("self_satisfied_wait") {
            return false;
        }
        if let Some(Obstacle::Instance(key)) = met {
            let instance = self.instance(held, key);
            return instance.is_some_and(|instance| instance.state() == InstanceState::Leaving);
        }
        let registry = self.registry.lock(held);
        match met {
            Some(Obstacle::Group(key)) => {
                registry.device(key).is_some_and(|record| registry.leader_of(record).is_out())
            }
            Some(Obstacle::Registration(id)) => {
                let record = registry.by_id(id);
                record.is_some_and(|record| record.is_leaving() || !record.is_shown())
            }
            Some(Obstacle::Domain(id)) => {
                registry.domain(id).is_some_and(|record| record.destroying.get() || record.holds.get() > 0)
            }
            Some(Obstacle::Driver | Obstacle::Instance(_)) | None => self.ends.load(Ordering::Acquire) == ends,
        }
    }
}

fn write_line(out: &mut dyn fmt::Write, info: &DeviceInfo) -> fmt::Result {
    for _ in 0..info.device.depth() {
        out.write_str("  ")?;
    }
    write!(out, "{} ", info.device.label())?;
    match (info.state, &info.domain) {
        (DeviceState::Assigned(_), Some(domain)) => write!(out, "-> {domain}")?,
        (DeviceState::Assigned(id), None) => write!(out, "-> {id}")?,
        (state, _) => write!(out, "({state})")?,
    }
    if info.group != info.device.key() {
        write!(out, " in the group of {}", info.group)?;
    }
    for stream in info.device.streams() {
        write!(out, " {stream}")?;
    }
    out.write_char('\n')
}

impl<P: Platform> fmt::Debug for Service<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("registry", &self.registry).finish_non_exhaustive()
    }
}
