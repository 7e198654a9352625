//! Into a domain: assign and reassign (contract I-13, I-14).
//!
//! | | plan | block, quiesce, reset | install | after a failure past the plan |
//! |---|---|---|---|---|
//! | assign | yes | what is quarantined | yes | quarantined |
//! | reassign | yes | yes | yes | quarantined |

use super::deassign::{check_dependents, mark_work};
use super::on_all_iommus::{self, ALL_WORK, Crew, Failure, LIVE_WORK, MOVERS, Power};
use crate::assign::{
    CallChain, Cause, Claim, ConflictReason, Device, DeviceState, Domain, Error, Group, InstanceState, IommuError,
    Left, Member, Obstacle, Operation, PolicyRequest, Registry, Service, Why, shared_at,
};
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

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
    /// [`Cause::Denied`] by the policy, [`Cause::HasChildren`] when it would be reset and devices behind it would end with
    /// that, [`Cause::Busy`], [`Cause::Gone`], and what the IOMMUs say: nothing is changed then, and no register written. After the first write only a failure of the hardware or a hook is left: the device is
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
    #[inline(never)]
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
        let asked = if claim.is_alone() { Ok(()) } else { self.ask_for_sharers(held, claim, crew, domain) };
        let ready = asked.and_then(|()| {
            let joined = broken!("late_flush_list") || self.join_flush_list(held, claim, domain);
            if joined { Ok(()) } else { Err(Cause::OutOfMemory) }
        });
        ready.inspect_err(|_| on_all_iommus::abandon(held, claim, crew)).map_err(unchanged)
    }

    /// Everything after the plan. Says in which state the movers are.
    ///
    /// A move that takes more than one step has power for all of them before the first (contract A-1).
    #[inline(never)]
    pub(super) fn carry_out_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
        domain: &Domain<P>,
    ) -> Result<(), Failure> {
        let is_unclean = claim.members().any(|member| LIVE_WORK(member, claim.level));
        let several_steps = is_unclean || on_all_iommus::spans_several(claim, ALL_WORK);
        let power = match several_steps {
            true => Power::of(held, on_all_iommus::devices(claim, ALL_WORK)).map(Some),
            false => Ok(None),
        };
        let moved = match power {
            Err((instance, error)) => Err((on_all_iommus::refusal(claim, &instance, error), Left::Unchanged)),
            Ok(power) => {
                let mut moved = if is_unclean { self.cleanse(held, claim, crew) } else { Ok(()) };
                if moved.is_ok() {
                    moved = self.open(held, claim, crew, domain, several_steps);
                }
                power.into_iter().for_each(|power| power.release(held));
                moved
            }
        };
        if moved.is_err() {
            on_all_iommus::abandon(held, claim, crew);
            self.leave_flush_list(held, claim, domain);
        }
        moved
    }

    /// Turns the movers, which are in fault, to the domain. `later`: something may have changed already.
    #[inline(never)]
    fn open(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &Claim<'_>,
        crew: &mut Crew,
        domain: &Domain<P>,
        later: bool,
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
            Err(cause @ Cause::Iommu { error: IommuError::NoPower(_), .. }) if !later => Err((cause, Left::Unchanged)),
            Err(cause) => {
                let blocked = on_all_iommus::block(held, claim, crew, MOVERS);
                // The device may have reached the domain for a moment.
                self.settle(held, claim, DeviceState::Quarantined(blocked.lacks()), None);
                Err((cause, Left::Quarantined))
            }
        }
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
            let next = claim.next_member(after, |member| member.moves(claim.level));
            let Some(device) = next.map(|member| member.device.clone()) else { return Ok(()) };
            after = Some(device.id());
            let allowed = claim.call_out(|chain| {
                let domain = domain.label();
                self.permits(held, &PolicyRequest { device: &device, domain, why: Why::Assign, chain })
            });
            if !allowed {
                return Err(Cause::Denied { domain: domain.label().clone() });
            }
            if claim.is_alone() {
                return Ok(());
            }
        }
    }

    /// Asks the policy about every mate that is not assigned and whose DMA would go along through a shared entry. One that is
    /// quarantined is to be cleansed first: then there is room in `crew` for it, too.
    fn ask_for_sharers(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
        domain: &Domain<P>,
    ) -> Result<(), Cause> {
        // One that an operation above is about can neither be asked about nor cleansed here.
        let protected = |member: &&Member| {
            member.work.get() != 0
                && member.work.get() != claim.level
                && member.state.get().owner() != Some(domain.id())
        };
        if claim.members().filter(protected).any(|mate| mover_sharing(held, claim, &mate.device).is_some()) {
            return Err(Cause::busy(Operation::Assign));
        }
        let mut after = None;
        loop {
            let idle = |member: &Member| member.work.get() == 0 && member.state.get().owner().is_none();
            let Some(mate) = claim.next_member(after, idle).map(|mate| mate.device.clone()) else { return Ok(()) };
            after = Some(mate.id());
            let Some(with) = mover_sharing(held, claim, &mate).cloned() else { continue };
            let allowed = claim.call_out(|chain| {
                let why = Why::Shares { with: &with };
                self.permits(held, &PolicyRequest { device: &mate, domain: domain.label(), why, chain })
            });
            if !allowed {
                return Err(Cause::Denied { domain: domain.label().clone() });
            }
            let lacks = |member: &&Member| member.state.get().is_quarantined() && !broken!("uncleansed_mate");
            if let Some(member) = claim.member(mate.id()).filter(lacks) {
                self.registry.lock(held).check_dependents(&mate)?;
                member.work.set(claim.level);
                member.along.set(true);
                *crew = Crew::of(claim)?;
            }
        }
    }

    /// Puts the IOMMUs of the movers on the domain's flush list, before any context goes live (contract I-9).
    fn join_flush_list(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, domain: &Domain<P>) -> bool {
        claim.movers().all(|mover| mover.device.attachments().iter().all(|at| domain.join(held, &at.instance)))
    }

    /// A move that joined the flush list has failed: takes the instances off it that went meanwhile. Unregistering them may not
    /// have found them there.
    #[cold]
    #[inline(never)]
    pub(super) fn leave_flush_list(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, domain: &Domain<P>) {
        let attachments = claim.movers().flat_map(|member| member.device.attachments());
        let gone = attachments.map(|at| &at.instance).filter(|instance| instance.state() == InstanceState::Gone);
        gone.for_each(|instance| domain.leave(held, instance));
    }
}

/// A device that moves and shares an entry with `mate`.
fn mover_sharing<'c>(held: &mut Held<'_, Unlocked>, claim: &'c Claim<'_>, mate: &Device) -> Option<&'c Device> {
    claim.movers().map(|mover| &mover.device).find(|mover| shared_at(held, mover, mate).is_some())
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
    let asked_about = |member: &Member| {
        (whole_group || member.device.id() == device.id()) && !member.going.get() && member.work.get() == 0
    };
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
        let bound = claim.members().find(|member| member.work.get() == level.get());
        if let Some(mate) = bound.or_else(|| claim.members().next()) {
            return conflict(mate);
        }
    }
    mark_work(claim, device, whole_group, |member| owner(member).is_some() == reassigning, Cause::Gone)?;
    check_dependents(registry, claim)?;
    registry.hold(domain).inspect_err(|_| claim.above.meet(Obstacle::Domain(wanted)))?;
    claim.hold = Some(wanted);
    if !broken!("late_target") {
        claim.set_target(wanted);
    }
    Ok(())
}
