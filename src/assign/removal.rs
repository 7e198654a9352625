//! Removal: refuse, cut, wait, unregister, release (contract C-8).
//!
//! A removal is a mark on the device and the claim of its group. Whoever holds the claim when it ends carries the
//! removal out: the caller of `remove`, or the operation that it met.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::claim::{Claim, End, Members, Open};
use super::device::{Device, DeviceState};
use super::error::{Cause, Error, Left, Operation};
use super::event::Event;
use super::identity::{DeviceId, DeviceKey, Label};
use super::iommu::{Iommu, IommuError, Sharing, Withdrawn};
use super::nested::Claims;
use super::registry::{DeviceRecord, Registry};
use super::service::Service;
use crate::few::{self, Few};
use crate::sync::atomic::AtomicU64;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;
use crate::sync::{Platform, Waiter};

/// What became of a device when the claim on its group ended.
#[derive(Debug)]
#[must_use = "the device may be gone"]
pub(super) enum Outcome {
    /// It is registered still.
    Stays,
    /// It was removed, because a removal was asked for. Names who keeps its streams' entries live.
    Removed(Result<Vec<Label>, Error>),
    /// It is to go, and its DMA is cut, but so many calls are inside still.
    InUse(u32),
}

impl Outcome {
    /// What is left of the device, where a removal overtook the operation.
    pub(super) fn overtaken(self) -> Option<Left> {
        match self {
            Self::Stays => None,
            Self::Removed(_) => Some(Left::Removed),
            Self::InUse(_) => Some(Left::Going),
        }
    }
}

/// What `remove` did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// The device is gone.
    Done,
    /// The device is gone, but these devices of its group keep a live stream-map entry that captures its streams: they
    /// reach that domain until the entry is in fault (contract I-6; a live entry is not narrowed, I-15).
    StillReachable(Vec<Label>),
    /// Another operation of the device's group is running: it will finish the removal when it ends, and undo itself.
    Pending,
}

/// A device that was asked to go, found by whoever has its group's claim.
pub(super) struct Going {
    pub(super) device: Device,
    /// Its add had ended: somebody has heard of it.
    pub(super) was_added: bool,
    /// It may reach something.
    is_live: bool,
}

/// A device that was asked to go, and how far that has come without the registry.
pub(super) struct Cut {
    pub(super) going: Going,
    /// No call is inside, so that it was withdrawn.
    pub(super) drained: bool,
    failed: Option<Cause>,
    keepers: Few<DeviceId>,
    /// Who of those that stay share entries, on the IOMMUs that have said so.
    pub(super) sharing: Few<Sharing>,
    pub(super) asked: Few<Outside<Arc<dyn Iommu>>>,
}

impl Going {
    /// A device whose add goes back.
    pub(super) fn unheard_of(device: &Device) -> Self {
        Self { device: device.clone(), was_added: false, is_live: false }
    }

    pub(super) fn of(record: &DeviceRecord) -> Self {
        let state = record.state.get();
        let is_live = matches!(state, DeviceState::Assigned(_) | DeviceState::Quarantined);
        Self { device: record.device.clone(), was_added: state != DeviceState::Adding, is_live }
    }
}

impl Cut {
    /// The fourth step: what the registry makes of it. Says whether somebody may wait for that.
    pub(super) fn put_down<P: Platform>(
        &self,
        registry: &mut Registry<P>,
        open: &mut Option<Open>,
        moves: &AtomicU64,
    ) -> bool {
        let device = &self.going.device;
        let Some(record) = registry.registration(device) else { return false };
        if self.going.was_added {
            registry.set_state(record, DeviceState::Blocked, moves);
        }
        if !self.drained {
            record.cut.set(true);
            return true;
        }
        let survivor = registry.leave_group(record).map(|member| member.device.clone());
        if open.as_ref().is_some_and(|open| open.member.id() == device.id()) {
            match (survivor, open.as_mut()) {
                (Some(survivor), Some(open)) => open.member = survivor,
                _ => *open = None,
            }
        }
        let was_met = record.met.get();
        registry.bury_device(device.key());
        was_met || self.going.was_added
    }
}

impl<P: Platform> Service<P> {
    /// Removes the device that is registered under `key`, whatever its state: its DMA is cut, then it is forgotten.
    ///
    /// Removing an assigned device is legal (a surprise unplug): the domain loses it.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`]; [`Cause::HasChildren`] while devices stand behind it, [`Cause::Busy`] while one is being added
    /// there; [`Cause::StillInUse`] with [`Left::Going`] while calls are inside the device ([`Device::enter`]): its DMA is
    /// cut, call again; [`Cause::Iommu`] with [`Left::Removed`] when the device is gone but its IOMMU has not confirmed that
    /// its last DMA drained.
    ///
    /// # Context
    ///
    /// Waiting context (a drain is polled, a hook is called). Contract C-2, C-8.
    pub fn remove(&self, key: DeviceKey) -> Result<Removal, Error> {
        self.remove_within(Claims::NONE, key)
    }

    /// [`remove`](Self::remove), and waits until the device is gone: where another operation finishes the removal, and
    /// where calls are inside the device.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove), and [`Cause::TimedOut`]: the removal stays asked for.
    ///
    /// # Context
    ///
    /// Waiting context; see [`wait`](Self::wait).
    pub fn remove_and_wait(&self, key: DeviceKey, deadline: Option<P::Deadline>) -> Result<(), Error>
    where
        P: Waiter,
    {
        self.remove_waiting(Claims::NONE, key, deadline)
    }

    pub(super) fn remove_waiting(
        &self,
        above: Claims<'_>,
        key: DeviceKey,
        deadline: Option<P::Deadline>,
    ) -> Result<(), Error>
    where
        P: Waiter,
    {
        let mut held = Held::enter();
        let going = self.registry.lock(&mut held).device(key).map(|record| record.device.clone());
        let Some(going) = going else { return self.remove_within(above, key).map(drop) };
        let mut met = None;
        loop {
            let ticket = P::prepare();
            // An attempt ends a claim, and so wakes everybody, this caller too: after the first there is one only where it
            // can come to something, or waiting would be trying without end.
            if let Some(cause) = met.take_if(|_| self.must_wait(&mut held, above, &going)) {
                if P::wait(ticket, deadline).is_err() {
                    let subject = going.label().clone();
                    let result = Err(Error { operation: Operation::Remove, subject, cause, left: Left::Going });
                    self.report(&result);
                    return result;
                }
                met = Some(cause);
                continue;
            }
            met = match self.remove_in(&mut held, above, key, Some(going.id())) {
                // Not found any more: someone else's removal got there first.
                Ok(Removal::Done | Removal::StillReachable(_)) | Err(Error { cause: Cause::NotFound, .. }) => {
                    return Ok(());
                }
                Ok(Removal::Pending) => Some(Cause::TimedOut { running: Operation::Remove }),
                Err(Error { cause: Cause::Busy { running }, .. }) => Some(Cause::TimedOut { running }),
                Err(Error { cause: Cause::StillInUse { calls }, .. }) => Some(Cause::StillInUse { calls }),
                result => {
                    self.report(&result);
                    return result.map(drop);
                }
            };
        }
    }

    /// Whether the removal of `device`, which was asked for, can only be waited for now: another operation has its group,
    /// its children are going still, or calls are inside.
    fn must_wait(&self, held: &mut Held<'_, Unlocked>, above: Claims<'_>, device: &Device) -> bool {
        let registry = self.registry.lock(held);
        let Some(record) = registry.registration(device) else { return false };
        let under = above.hold(&registry, record) && !above.protects(device);
        match registry.claimed(record).filter(|_| !under) {
            Some(running) => !matches!(above.busy(&registry, record, running), Cause::WouldDeadlock { .. }),
            None => record.children.get() > 0 || device.in_flight() > 0,
        }
    }

    /// Removes the device that is registered under `key` and everything that stands behind it, children first.
    ///
    /// From the call on, no child can be added anywhere in the tree.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove), but for children. What fails for one device does not keep the others: the first
    /// failure is told.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-5.
    pub fn remove_tree(&self, key: DeviceKey) -> Result<Removal, Error> {
        self.remove_tree_within(Claims::NONE, key)
    }

    pub(super) fn remove_tree_within(&self, above: Claims<'_>, key: DeviceKey) -> Result<Removal, Error> {
        let mut held = Held::enter();
        let result = self.remove_tree_in(&mut held, above, key);
        self.report(&result);
        result
    }

    fn remove_tree_in(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        key: DeviceKey,
    ) -> Result<Removal, Error> {
        let unknown = Label::of_key(key);
        {
            let registry = self.registry.lock(held);
            let Some(root) = registry.device(key) else {
                return Err(Error::unchanged(Operation::Remove, unknown, Cause::NotFound));
            };
            registry.mark_tree(root);
        }
        P::wake();
        let mut result = Ok(Vec::new());
        loop {
            let (claim, going) = {
                let registry = self.registry.lock(held);
                // What is claimed is left to who has claimed it: it sees the mark, and goes on upwards.
                let Some(leaf) = registry.leaf_of(key) else { break };
                if registry.claim(leaf, Operation::Remove).is_err() {
                    break;
                }
                (Claim::new(leaf.device.clone(), Members::default(), false), Going::of(leaf))
            };
            let subject = going.device.label().clone();
            let removed = match self.finish(held, claim, End::UNCHANGED, Some(going), above) {
                Outcome::Removed(removed) => removed,
                Outcome::InUse(calls) => Err(still_in_use(subject.clone(), calls)),
                Outcome::Stays => Ok(Vec::new()),
            };
            match (&mut result, removed) {
                (Ok(all), Ok(reachable)) => {
                    if all.try_reserve(reachable.len()).is_ok() {
                        all.extend(reachable);
                    } else {
                        result = Err(left_removed(subject, Cause::OutOfMemory));
                    }
                }
                (Ok(_), Err(error)) => result = Err(error),
                (Err(_), _) => {}
            }
        }
        let reachable = result?;
        let registry = self.registry.lock(held);
        if registry.device(key).is_some() { Ok(Removal::Pending) } else { Ok(done(reachable)) }
    }

    pub(super) fn remove_within(&self, above: Claims<'_>, key: DeviceKey) -> Result<Removal, Error> {
        let mut held = Held::enter();
        let result = self.remove_in(&mut held, above, key, None);
        self.report(&result);
        result
    }

    /// Removes this very registration.
    pub(super) fn remove_registration(&self, above: Claims<'_>, device: &Device) -> Result<Removal, Error> {
        let result = self.remove_in(&mut Held::enter(), above, device.key(), Some(device.id()));
        self.report(&result);
        result
    }

    /// `only`: this registration, not a later one under the same key (contract C-7).
    fn remove_in(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        key: DeviceKey,
        only: Option<DeviceId>,
    ) -> Result<Removal, Error> {
        // The subject of an error about a key that is not known; made before the lock is taken, as is the room.
        let unknown = Label::of_key(key);
        let mut members = Members::with_room(few::USUAL).unwrap_or_default();
        let (claim, going) = {
            let registry = self.registry.lock(held);
            let named = registry.device(key).filter(|record| only.is_none_or(|only| only == record.device.id()));
            let Some(record) = named else {
                return Err(Error::unchanged(Operation::Remove, unknown, Cause::NotFound));
            };
            let refuse = |cause| Error::unchanged(Operation::Remove, record.device.label().clone(), cause);
            let children = registry.staying_children(record);
            if children > 0 {
                return Err(refuse(Cause::HasChildren { children }));
            }
            if let Some(coming) = registry.coming_child(record) {
                return Err(refuse(above.busy(&registry, coming, Operation::Add)));
            }
            let under = above.hold(&registry, record) && !above.protects(&record.device);
            let running = registry.claimed(record).filter(|_| !under);
            if let Some(running) = running
                && let cause @ Cause::WouldDeadlock { .. } = above.busy(&registry, record, running)
            {
                return Err(refuse(cause));
            }
            registry.mark(record);
            if record.children.get() > 0 {
                // They are all on their way out: whoever removes the last of them goes on with this one.
                return Ok(Removal::Pending);
            }
            if running.is_some() {
                if broken!("dropped_mark") {
                    record.remove_pending.set(false);
                }
                drop(registry);
                // Whoever waits for the device hears now that it goes.
                P::wake();
                return Ok(Removal::Pending);
            }
            if !under {
                registry.claim(record, Operation::Remove).map_err(refuse)?;
            }
            members.fill(&registry, record);
            (Claim::new(record.device.clone(), members, under), Going::of(record))
        };
        let subject = going.device.label().clone();
        match self.finish(held, claim, End::UNCHANGED, Some(going), above) {
            Outcome::Removed(result) => result.map(done),
            Outcome::InUse(calls) => Err(still_in_use(subject, calls)),
            Outcome::Stays => Ok(Removal::Pending),
        }
    }

    /// The second and third steps, and the driver's part of the fourth: cuts the device's DMA, and withdraws it where no
    /// call is inside: of its group, `members`, the others stay. While calls are inside, the drain behind the cut stays
    /// open: it is in nobody's way.
    pub(super) fn cut(&self, held: &mut Held<'_, Unlocked>, going: Going, members: &Members) -> Cut {
        let Going { device, was_added, is_live } = &going;
        let mut failed: Option<Cause> = None;
        let (mut keepers, mut sharing, mut asked) = (Few::new(), Few::new(), Few::new());
        // Nothing is reserved for the cut itself: it must not fail for want of memory.
        for attachment in device.attachments().iter().filter(|_| *is_live) {
            if let Err(error) = attachment.iommu.call(held).cut(&[device.id()]) {
                failed.get_or_insert(Cause::Iommu { iommu: attachment.key, error });
            }
        }
        let drained = device.in_flight() == 0;
        if drained {
            let rest = members.without(Some(device));
            for attachment in device.attachments() {
                let iommu = attachment.iommu.call(held);
                let (mut all_told, mut all_shared) = (true, true);
                let mut tell = |told| match told {
                    Withdrawn::Keeper(keeper) => all_told &= few::put(&mut keepers, keeper),
                    Withdrawn::Sharing(pair) => all_shared &= few::put(&mut sharing, pair),
                };
                let mut withdraw = || iommu.withdraw(device.id(), rest.as_deref().unwrap_or_default(), &mut tell);
                let mut withdrawn = withdraw();
                if withdrawn == Err(IommuError::Busy) && !is_live {
                    // It is in a domain, against all belief.
                    let cut = iommu.cut(&[device.id()]);
                    let forgotten = withdraw();
                    withdrawn = cut.and(forgotten);
                }
                match withdrawn {
                    // Who is not noted here is asked again.
                    Ok(()) if all_shared && rest.is_some() => {
                        let _ = few::put(&mut asked, attachment.iommu.clone());
                    }
                    Ok(()) => {}
                    Err(error) => {
                        failed.get_or_insert(Cause::Iommu { iommu: attachment.key, error });
                    }
                }
                if !all_told {
                    failed.get_or_insert(Cause::OutOfMemory);
                }
            }
            if *was_added {
                self.tell(held, &Event::Removed { device: device.label().clone() });
            }
        }
        Cut { going, drained, failed, keepers, sharing, asked }
    }

    /// What is said of a removal that has come so far.
    pub(super) fn gone(&self, held: &mut Held<'_, Unlocked>, cut: Cut, members: &Members) -> Outcome {
        let device = &cut.going.device;
        if !cut.drained {
            return Outcome::InUse(device.in_flight());
        }
        let named = match cut.failed {
            Some(cause) => Err(cause),
            None => self.names(held, cut.keepers, members),
        };
        Outcome::Removed(named.map_err(|cause| left_removed(device.label().clone(), cause)))
    }
}

fn done(reachable: Vec<Label>) -> Removal {
    if reachable.is_empty() { Removal::Done } else { Removal::StillReachable(reachable) }
}

fn left_removed(subject: Label, cause: Cause) -> Error {
    Error { operation: Operation::Remove, subject, cause, left: Left::Removed }
}

fn still_in_use(subject: Label, calls: u32) -> Error {
    Error { operation: Operation::Remove, subject, cause: Cause::StillInUse { calls }, left: Left::Going }
}
