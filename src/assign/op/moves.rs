//! Moves: a claimed group goes from fault into a domain, between domains, and back (contract I-13, I-14).
//!
//! | | plan | block, quiesce, reset | install | after a failure past the plan |
//! |---|---|---|---|---|
//! | assign | yes | what is quarantined | yes | quarantined |
//! | reassign | yes | yes | yes | quarantined |
//! | deassign | - | yes | - | quarantined |
//! | quarantine | into its own space | block only | into its own space | quarantined |

use alloc::vec::Vec;

use super::on_all_iommus::{self, ALL_WORK, Crew, LIVE_WORK, MOVERS, names_of_keepers, room_for_keepers, shares_entry};
use super::run::Failure;
use crate::assign::guarded;
use crate::assign::{
    AddressSpace, CallChain, Cause, Claim, ConflictReason, Device, DeviceState, Domain, Error, Event, Group,
    HookContext, InstanceState, IommuError, Label, Lacks, Left, Member, Obstacle, Operation, PolicyRequest, Registry,
    Service, Stage2, Why, own_space,
};
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

/// What `deassign` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "the device's streams may still reach the domain through a device that shares them"]
pub struct Deassigned {
    /// Devices of the group that keep a shared stream translated: through it, this device's DMA still reaches the
    /// domain (contract I-6, `StillReachable`). Empty when the device is cut off.
    pub still_reachable: Vec<Label>,
}

/// Where a quarantined device's DMA ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quarantine {
    /// In faults, which are reported.
    Faults,
    /// Nowhere, without a report: the tables are empty, and the integrator supplies their root. For a device that storms.
    Silence(Stage2),
    /// In a scratch page of the integrator's tables, for a device that does not bear faults. What misses the page is not
    /// reported.
    Scratch(Stage2),
}

impl Quarantine {
    /// The space in which a device is kept so; none where it faults.
    const fn space(self) -> Option<AddressSpace> {
        match self {
            Self::Faults => None,
            Self::Silence(stage2) => Some(AddressSpace { domain: own_space::EMPTY, stage2 }),
            Self::Scratch(stage2) => Some(AddressSpace { domain: own_space::SCRATCH, stage2 }),
        }
    }
}

/// A move as it was asked for.
pub(in crate::assign) struct Move<'a, P: Platform> {
    pub(in crate::assign) operation: Operation,
    pub(in crate::assign) device: &'a Device,
    pub(in crate::assign) whole_group: bool,
    pub(in crate::assign) domain: &'a Domain<P>,
}

impl<P: Platform> Service<P> {
    /// Lets `domain`'s tables translate the DMA of `device`, and of that device alone. A quarantined device is drained, quiesced
    /// and reset first, as it lacks it.
    ///
    /// # Errors
    ///
    /// [`Cause::GroupConflict`] when a device of its group has another owner, [`Cause::AlreadyAssigned`],
    /// [`Cause::Denied`] by the policy, [`Cause::Busy`], [`Cause::Gone`], and what the IOMMUs say: nothing is changed
    /// then, and no register written. After the first write only a failure of the hardware or a hook is left: the device is
    /// quarantined then.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-4, I-11, I-13, A-1.
    pub fn assign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_within(CallChain::NONE, &Move { operation: Operation::Assign, device, whole_group: false, domain })
    }

    /// [`assign`](Self::assign), for all devices of `device`'s group at once.
    ///
    /// # Errors
    ///
    /// As for [`assign`](Self::assign).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn assign_group(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_within(CallChain::NONE, &Move { operation: Operation::Assign, device, whole_group: true, domain })
    }

    /// Moves `device` from the domain that owns it to `domain`: it is in fault, drained, quiesced and reset in between
    /// (contract I-14).
    ///
    /// # Errors
    ///
    /// As for [`assign`](Self::assign), and [`Cause::NotAssigned`]. Anything that fails after the first write leaves
    /// the device quarantined.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn reassign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_within(CallChain::NONE, &Move { operation: Operation::Reassign, device, whole_group: false, domain })
    }

    /// [`reassign`](Self::reassign), for all assigned devices of `device`'s group at once.
    ///
    /// # Errors
    ///
    /// As for [`reassign`](Self::reassign).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn reassign_group(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_within(CallChain::NONE, &Move { operation: Operation::Reassign, device, whole_group: true, domain })
    }

    /// Takes `device` from its domain: its streams fault, what was in flight has drained, and it was quiesced and reset.
    ///
    /// # Errors
    ///
    /// [`Cause::NotAssigned`], [`Cause::Busy`], [`Cause::Gone`], [`Cause::Iommu`] with `NoPower`: nothing changed.
    /// [`Cause::Iommu`] with `SyncTimeout` and [`Cause::Hook`]: the device is quarantined.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-6, I-7, I-12.
    pub fn deassign(&self, device: &Device) -> Result<Deassigned, Error> {
        self.deassign_within(CallChain::NONE, device, false)
    }

    /// [`deassign`](Self::deassign), for all assigned devices of `device`'s group at once.
    ///
    /// # Errors
    ///
    /// As for [`deassign`](Self::deassign).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn deassign_group(&self, device: &Device) -> Result<Deassigned, Error> {
        self.deassign_within(CallChain::NONE, device, true)
    }

    /// Takes the group of `device` from its domain, if it has one, and keeps it quarantined: it is owned by no domain, and
    /// its DMA ends where `place` says. An assign drains, quiesces and resets it first.
    ///
    /// # Errors
    ///
    /// [`Cause::Busy`], [`Cause::Gone`], [`Cause::OutOfMemory`], [`Cause::Iommu`] with `NoPower`: nothing changed.
    /// [`Cause::Iommu`] with [`Left::Quarantined`]: its DMA faults.
    ///
    /// # Context
    ///
    /// Waiting context. Contract A-12, S-6.
    pub fn quarantine(&self, device: &Device, place: Quarantine) -> Result<(), Error> {
        self.quarantine_within(CallChain::NONE, device, place)
    }

    pub(in crate::assign) fn move_within(&self, above: CallChain<'_>, asked: &Move<'_, P>) -> Result<(), Error> {
        let &Move { operation, device, domain, .. } = asked;
        let check = |registry: &Registry<P>, claim: &mut Claim<'_>| choose_movers(registry, claim, asked);
        self.operate(above, device, operation, check, |held, claim, crew| {
            self.prepare(held, claim, crew, domain)?;
            self.carry_out_move(held, claim, crew, domain)
        })
    }

    // --- from fault, or from another domain, into a domain ---

    /// All that is left to fail without a change: the policy, and the IOMMUs' plans.
    pub(super) fn prepare(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
        domain: &Domain<P>,
    ) -> Result<(), Failure> {
        let unchanged = |cause| (cause, Left::Unchanged);
        self.ask_for_movers(held, claim, domain).map_err(unchanged)?;
        on_all_iommus::plan(held, claim, crew, domain.space()).map_err(unchanged)?;
        let ready = self.ask_for_sharers(held, claim, domain).and_then(|()| {
            let joined = broken!("late_flush_list") || self.join_flush_list(held, claim, domain);
            if joined { Ok(()) } else { Err(Cause::OutOfMemory) }
        });
        ready.inspect_err(|_| on_all_iommus::abandon(held, claim, crew)).map_err(unchanged)
    }

    /// Everything after the plan. Says in which state the movers are.
    ///
    /// A move that takes more than one step has power for all of them before the first (contract A-1).
    pub(super) fn carry_out_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
        domain: &Domain<P>,
    ) -> Result<(), Failure> {
        let is_unclean = claim.members().any(|member| LIVE_WORK(member, claim.level));
        let wants_power = is_unclean || on_all_iommus::spans_several(claim, ALL_WORK);
        let powered = if wants_power { on_all_iommus::hold_power(held, claim, crew, ALL_WORK) } else { Ok(()) };
        let holds_power = wants_power && powered.is_ok();
        let ready = match powered {
            Err((instance, error)) => Err((on_all_iommus::refusal(claim, &instance, error), Left::Unchanged)),
            Ok(()) if is_unclean => self.cleanse(held, claim, crew),
            Ok(()) => Ok(()),
        };
        let moved = match ready {
            Ok(()) => self.open(held, claim, crew, domain),
            failed => {
                on_all_iommus::abandon(held, claim, crew);
                failed
            }
        };
        if holds_power {
            on_all_iommus::release_power(held, claim, crew, ALL_WORK);
        }
        if moved.is_err() {
            self.leave_flush_list(held, claim, domain);
        }
        moved
    }

    /// Turns the movers, which are in fault, to the domain.
    fn open(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &Claim<'_>,
        crew: &mut Crew,
        domain: &Domain<P>,
    ) -> Result<(), Failure> {
        let installed = on_all_iommus::install(held, claim, crew);
        if broken!("late_flush_list") {
            self.join_flush_list(held, claim, domain);
        }
        match installed {
            Ok(()) => {
                self.settle(held, claim, DeviceState::Assigned(domain.id()), Some(domain.label()));
                Ok(())
            }
            // Power is held where this is not the only step, so that nothing has changed.
            Err(cause @ Cause::Iommu { error: IommuError::NoPower(_), .. }) => Err((cause, Left::Unchanged)),
            Err(cause) => {
                let blocked = on_all_iommus::block(held, claim, crew, MOVERS);
                // The device may have reached the domain for a moment.
                self.settle(held, claim, DeviceState::Quarantined(blocked.lacks()), None);
                Err((cause, Left::Quarantined))
            }
        }
    }

    // --- out of a domain ---

    pub(in crate::assign) fn deassign_within(
        &self,
        above: CallChain<'_>,
        device: &Device,
        whole_group: bool,
    ) -> Result<Deassigned, Error> {
        let leaves = |member: &Member| member.state.get().owner().is_some();
        let check =
            |_: &Registry<P>, claim: &mut Claim<'_>| mark_work(claim, device, whole_group, leaves, Cause::NotAssigned);
        self.operate(above, device, Operation::Deassign, check, |held, claim, crew| {
            // A hook may assign any of them.
            let names = room_for_keepers(claim, |_| true).map_err(|cause| (cause, Left::Unchanged))?;
            self.cleanse(held, claim, crew)?;
            let movers = |member: &Member| member.moves(claim.level);
            let still_reachable = names_of_keepers(held, claim, movers, names);
            self.settle(held, claim, DeviceState::Blocked, None);
            Ok(Deassigned { still_reachable })
        })
    }

    /// Brings what the operation is about to fault, drained, quiesced and reset. What is not moved, but was quarantined and
    /// shares an entry, is `Blocked` afterwards.
    fn cleanse(&self, held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>, crew: &mut Crew) -> Result<(), Failure> {
        let mut blocked = on_all_iommus::block(held, claim, crew, LIVE_WORK);
        // A move does not fail for an IOMMU out of service on which a device has streams that is only cleansed along: one that
        // moves was refused by the plan, or is by the install.
        let is_move = claim.operation != Operation::Deassign;
        let failed = if is_move { blocked.failed.take().map_or(Ok(()), Err) } else { blocked.result() };
        if let Err(cause) = failed {
            if blocked.is_live {
                let left = if blocked.has_begun { Left::PartlyAssigned } else { Left::Unchanged };
                return Err((cause, left));
            }
            self.settle_live(held, claim, blocked.lacks());
            return Err((cause, Left::Quarantined));
        }
        if let Err(cause) = self.reset(held, claim) {
            self.settle_live(held, claim, Lacks { drain: false, reset: true });
            return Err((cause, Left::Quarantined));
        }
        let along = |member: &&Member| member.work.get() == claim.level && member.along.get();
        claim.members().filter(along).for_each(|member| member.state.set(DeviceState::Blocked));
        Ok(())
    }

    /// Lets the sources stop and reset their devices, which are in fault.
    fn reset(&self, held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>) -> Result<(), Cause> {
        let level = claim.level;
        let mut after = None;
        loop {
            let live = claim.members().filter(|member| LIVE_WORK(member, level)).map(|member| &member.device);
            let next =
                live.filter(|device| after.is_none_or(|after| device.id() > after)).min_by_key(|device| device.id());
            let Some(device) = next.cloned() else { return Ok(()) };
            after = Some(device.id());
            let hooks = device.hooks();
            claim.call_out(|chain| {
                let context = HookContext { device: &device, chain };
                let hooks = hooks.call(held);
                let failed =
                    |step| move |error: crate::assign::device::HookError| Cause::Hook { step, reason: error.0 };
                guarded::hook(|| hooks.quiesce(&context)).map_err(failed("quiesce"))?;
                guarded::hook(|| hooks.reset(&context)).map_err(failed("reset"))
            })?;
        }
    }

    pub(in crate::assign) fn quarantine_within(
        &self,
        above: CallChain<'_>,
        device: &Device,
        place: Quarantine,
    ) -> Result<(), Error> {
        let check = |_: &Registry<P>, claim: &mut Claim<'_>| mark_work(claim, device, true, |_| true, Cause::Gone);
        self.operate(above, device, Operation::Deassign, check, |held, claim, crew| {
            self.isolate(held, claim, crew, place)
        })
    }

    fn isolate(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
        place: Quarantine,
    ) -> Result<(), Failure> {
        let mut blocked = on_all_iommus::block(held, claim, crew, ALL_WORK);
        if blocked.is_live {
            let left = if blocked.has_begun { Left::PartlyAssigned } else { Left::Unchanged };
            return blocked.result().map_err(|cause| (cause, left));
        }
        let mut done = blocked.result();
        if let (Ok(()), Some(space)) = (&done, place.space()) {
            done = on_all_iommus::plan(held, claim, crew, &space);
            if done.is_ok() {
                done = on_all_iommus::install(held, claim, crew);
                if done.is_err() {
                    blocked = on_all_iommus::block(held, claim, crew, ALL_WORK);
                }
            }
        }
        self.settle(held, claim, DeviceState::Quarantined(blocked.lacks()), None);
        done.map_err(|cause| (cause, Left::Quarantined))
    }

    // --- steps ---

    /// Asks the policy about every device that moves.
    fn ask_for_movers(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        domain: &Domain<P>,
    ) -> Result<(), Cause> {
        let mut after = None;
        loop {
            let movers = claim.movers().map(|member| &member.device);
            let next =
                movers.filter(|device| after.is_none_or(|after| device.id() > after)).min_by_key(|device| device.id());
            let Some(device) = next.cloned() else { return Ok(()) };
            after = Some(device.id());
            let allowed = claim.call_out(|chain| {
                let domain = domain.label();
                self.permits(held, &PolicyRequest { device: &device, domain, why: Why::Assign, chain })
            });
            if !allowed {
                return Err(Cause::Denied { domain: domain.label().clone() });
            }
        }
    }

    /// Asks the policy about every mate that is not assigned and whose DMA would go along through a shared entry. One that is
    /// quarantined is to be cleansed first.
    fn ask_for_sharers(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        domain: &Domain<P>,
    ) -> Result<(), Cause> {
        let mut after = None;
        loop {
            let idle = |member: &&Member| member.work.get() == 0 && member.state.get().owner().is_none();
            let mates = claim.members().filter(idle);
            let next = mates.filter(|mate| after.is_none_or(|after| mate.device.id() > after));
            let Some(mate) = next.min_by_key(|mate| mate.device.id()).map(|mate| mate.device.clone()) else {
                return Ok(());
            };
            after = Some(mate.id());
            let with = claim.movers().find(|mover| shares_entry(held, &mover.device, &mate));
            let Some(with) = with.map(|mover| mover.device.clone()) else { continue };
            let allowed = claim.call_out(|chain| {
                let why = Why::Shares { with: &with };
                self.permits(held, &PolicyRequest { device: &mate, domain: domain.label(), why, chain })
            });
            if !allowed {
                return Err(Cause::Denied { domain: domain.label().clone() });
            }
            let lacks = |member: &&Member| member.state.get().is_quarantined() && !broken!("uncleansed_mate");
            if let Some(member) = claim.member(mate.id()).filter(lacks) {
                member.work.set(claim.level);
                member.along.set(true);
            }
        }
    }

    /// Puts the IOMMUs of the movers on the domain's flush list, before any context goes live (contract I-9).
    fn join_flush_list(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, domain: &Domain<P>) -> bool {
        let attachments = claim.movers().flat_map(|member| member.device.attachments());
        attachments.map(|at| &at.instance).all(|instance| domain.join(held, instance))
    }

    /// A move that joined the flush list has failed: takes the instances off it that went meanwhile. Unregistering them may not
    /// have found them there.
    pub(super) fn leave_flush_list(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, domain: &Domain<P>) {
        let attachments = claim.movers().flat_map(|member| member.device.attachments());
        let gone = attachments.map(|at| &at.instance).filter(|instance| instance.state() == InstanceState::Gone);
        gone.for_each(|instance| domain.leave(held, instance));
    }

    /// The movers are in `state` from now on; tells of it.
    fn settle(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, state: DeviceState, domain: Option<&Label>) {
        for member in claim.movers() {
            member.state.set(state);
            self.tell(held, || {
                let device = member.device.label().clone();
                match (state, domain) {
                    (DeviceState::Assigned(_), Some(domain)) => Event::Assigned { device, domain: domain.clone() },
                    (DeviceState::Quarantined(_), _) => Event::Quarantined { device },
                    _ => Event::Deassigned { device },
                }
            });
        }
    }

    /// What was live is quarantined from now on, and lacks this.
    fn settle_live(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, lacks: Lacks) {
        for member in claim.members().filter(|member| LIVE_WORK(member, claim.level)) {
            member.state.set(DeviceState::Quarantined(lacks));
            self.tell(held, || Event::Quarantined { device: member.device.label().clone() });
        }
    }
}

/// Marks the members that the operation moves: the device alone or its whole group, as far as `moves` accepts them.
fn mark_work(
    claim: &Claim<'_>,
    device: &Device,
    whole_group: bool,
    moves: impl Fn(&Member) -> bool,
    otherwise: Cause,
) -> Result<(), Cause> {
    let mut any = false;
    for member in claim.members().filter(|member| whole_group || member.device.id() == device.id()) {
        if member.work.get() == 0 && !member.going.get() && moves(member) {
            member.work.set(claim.level);
            any = true;
        }
    }
    if any { Ok(()) } else { Err(otherwise) }
}

/// Marks what a move into a domain is about, with a hold on that, and refuses what the group's ownership forbids (contract I-11).
pub(super) fn choose_movers<P: Platform>(
    registry: &Registry<P>,
    claim: &mut Claim<'_>,
    asked: &Move<'_, P>,
) -> Result<(), Cause> {
    let Move { operation, device, whole_group, domain } = *asked;
    let (wanted, reassigning) = (domain.id(), operation == Operation::Reassign);
    let name = |id| registry.domain(id).map_or_else(|| domain.label().clone(), |record| record.domain.label().clone());
    let owner = |member: &Member| member.state.get().owner();
    let asked_about = |member: &Member| (whole_group || member.device.id() == device.id()) && !member.going.get();
    let subjects = || claim.members().filter(|member| asked_about(member));
    if reassigning {
        if subjects().all(|member| owner(member).is_none()) {
            return Err(Cause::NotAssigned);
        }
        if claim.group().and_then(Group::assigned_to) == Some(wanted) {
            return Err(Cause::AlreadyAssigned { domain: domain.label().clone() });
        }
    } else if subjects().all(|member| owner(member).is_some())
        && let Some(owner) = subjects().find_map(owner)
    {
        return Err(Cause::AlreadyAssigned { domain: name(owner) });
    }
    let conflict = |mate: &Member| {
        let reason = device.overlaps(&mate.device).unwrap_or(ConflictReason::SharedBus);
        Err(Cause::GroupConflict { with: mate.device.label().clone(), reason })
    };
    // A reassign moves its subjects away from the owner; an assign joins it.
    let stays = |member: &&Member| !reassigning || !asked_about(member);
    let elsewhere = |member: &&Member| owner(member).is_some_and(|owner| owner != wanted);
    if let Some(mate) = claim.members().filter(stays).find(elsewhere) {
        return conflict(mate);
    }
    // An operation above takes the group elsewhere.
    let target = claim.group().and_then(|group| group.target).filter(|(target, _)| *target != wanted);
    if let Some((_, level)) = target {
        // An add above has no member in the group yet: any member stands for the owner that the new one was let in for.
        let bound = claim.members().find(|member| member.work.get() == level);
        if let Some(mate) = bound.or_else(|| claim.members().next()) {
            return conflict(mate);
        }
    }
    mark_work(claim, device, whole_group, |member| owner(member).is_some() == reassigning, Cause::Gone)?;
    registry.hold(domain).inspect_err(|_| claim.above.meet(Obstacle::Domain(wanted)))?;
    claim.hold = Some(wanted);
    if !broken!("late_target") {
        claim.set_target(wanted);
    }
    Ok(())
}
