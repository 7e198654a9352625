//! Out of a domain: deassign and quarantine, and the cleansing that a move between domains needs too (contract I-6, I-14).
//!
//! A group is blocked on every IOMMU, which drains it; then its sources quiesce and reset its devices. What fails past the first
//! write leaves it quarantined, lacking what was not done.

use alloc::vec::Vec;

use super::on_all_iommus::{self, ALL_WORK, Crew, Failure, LIVE_WORK, names_of_keepers, room_for_keepers};
use crate::assign::guarded;
use crate::assign::{
    AddressSpace, CallChain, Cause, Claim, Device, DeviceState, Error, Event, HookContext, HookError, Label, Lacks,
    Left, Member, Operation, Registry, Service, Stage2, own_space,
};
use crate::sync::Platform;
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

impl<P: Platform> Service<P> {
    /// Takes `device` from its domain: its streams fault, what was in flight has drained, and it was quiesced and reset.
    ///
    /// # Errors
    ///
    /// [`Cause::NotAssigned`], [`Cause::Busy`], [`Cause::Gone`], [`Cause::HasChildren`] while devices stand behind it that
    /// its reset would end, [`Cause::Iommu`] with `NoPower`: nothing changed. [`Cause::Iommu`] with `SyncTimeout` and [`Cause::Hook`]: the device is quarantined.
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

    pub(in crate::assign) fn deassign_within(
        &self,
        above: CallChain<'_>,
        device: &Device,
        whole_group: bool,
    ) -> Result<Deassigned, Error> {
        self.close_those(above, device, whole_group, |state| state.owner().is_some())
    }

    /// [`deassign`](Self::deassign), also of a device that no domain has and that lacks a drain or a reset: as the next assign would
    /// do it.
    pub(crate) fn deassign_or_reset(&self, device: &Device) -> Result<Deassigned, Error> {
        self.close_those(CallChain::NONE, device, false, |state| state.owner().is_some() || state.is_quarantined())
    }

    /// Drains, quiesces and resets a device that is quarantined, as its next assign would do it; one that a domain has is not
    /// touched ([`Cause::NotAssigned`]).
    pub(crate) fn reset_quarantined(&self, device: &Device) -> Result<Deassigned, Error> {
        self.close_those(CallChain::NONE, device, false, DeviceState::is_quarantined)
    }

    fn close_those(
        &self,
        above: CallChain<'_>,
        device: &Device,
        whole_group: bool,
        leaves: fn(DeviceState) -> bool,
    ) -> Result<Deassigned, Error> {
        let check = |registry: &Registry<P>, claim: &mut Claim<'_>| {
            mark_work(claim, device, whole_group, |member| leaves(member.state.get()), Cause::NotAssigned)?;
            check_dependents(registry, claim)
        };
        self.operate(above, device, Operation::Deassign, check, |held, claim, crew| self.close(held, claim, crew))
    }

    /// Takes the movers from their domain.
    #[inline(never)]
    fn close(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
    ) -> Result<Deassigned, Failure> {
        // A hook may assign any of them.
        let names = room_for_keepers(claim, |_| true).map_err(|cause| (cause, Left::Unchanged))?;
        self.cleanse(held, claim, crew)?;
        let movers = |member: &Member| member.moves(claim.level);
        let still_reachable = names_of_keepers(held, claim, movers, names);
        self.settle(held, claim, DeviceState::Blocked, None);
        Ok(Deassigned { still_reachable })
    }

    /// Brings what the operation is about to fault, drained, quiesced and reset. What is not moved, but was quarantined and
    /// shares an entry, is `Blocked` afterwards.
    pub(super) fn cleanse(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        crew: &mut Crew,
    ) -> Result<(), Failure> {
        let mut blocked = on_all_iommus::block(held, claim, crew, LIVE_WORK);
        // A move does not fail for an IOMMU out of service on which a device has streams that is only cleansed along: one that
        // moves was refused by the plan, or is by the install.
        let is_move = !matches!(claim.operation, Operation::Deassign | Operation::Quarantine);
        let failed = if is_move { blocked.result_in_service() } else { blocked.result() };
        if let Err(cause) = failed {
            if blocked.is_live {
                return Err((cause, blocked.left_live()));
            }
            return Err((cause, self.settle_live(held, claim, blocked.lacks())));
        }
        if let Err(cause) = self.reset(held, claim) {
            return Err((cause, self.settle_live(held, claim, Lacks { drain: false, reset: true })));
        }
        let along = |member: &&Member| member.work.get() == claim.level && member.along.get();
        claim.members().filter(along).for_each(|member| member.state.set(DeviceState::Blocked));
        Ok(())
    }

    /// Lets the sources stop and reset their devices, which are in fault.
    #[inline(never)]
    fn reset(&self, held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>) -> Result<(), Cause> {
        let level = claim.level;
        let mut after = None;
        loop {
            let next = claim.next_member(after, |member| LIVE_WORK(member, level));
            let Some(device) = next.map(|member| member.device.clone()) else { return Ok(()) };
            after = Some(device.id());
            let hooks = device.hooks();
            claim.call_out(|chain| {
                let context = HookContext { device: &device, chain };
                let hooks = hooks.call(held);
                let failed = |step| move |error: HookError| Cause::Hook { step, reason: error.0 };
                guarded::hook(|| hooks.quiesce(&context)).map_err(failed("quiesce"))?;
                guarded::hook(|| hooks.reset(&context)).map_err(failed("reset"))
            })?;
            if claim.is_alone() {
                return Ok(());
            }
        }
    }

    pub(in crate::assign) fn quarantine_within(
        &self,
        above: CallChain<'_>,
        device: &Device,
        place: Quarantine,
    ) -> Result<(), Error> {
        let check = |_: &Registry<P>, claim: &mut Claim<'_>| mark_work(claim, device, true, |_| true, Cause::Gone);
        self.operate(above, device, Operation::Quarantine, check, |held, claim, crew| {
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
            return blocked.result().map_err(|cause| (cause, blocked.left_live()));
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

    /// The movers are in `state` from now on; tells of it.
    pub(super) fn settle(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &Claim<'_>,
        state: DeviceState,
        domain: Option<&Label>,
    ) {
        for member in claim.movers() {
            member.state.set(state);
            member.untouched.set(false);
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

    /// What was live is quarantined from now on, and lacks this. Says what is left of the movers: they may be in fault still,
    /// and only a mate that was to be cleansed along is quarantined.
    #[cold]
    #[inline(never)]
    fn settle_live(&self, held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, lacks: Lacks) -> Left {
        for member in claim.members().filter(|member| LIVE_WORK(member, claim.level)) {
            member.state.set(DeviceState::Quarantined(lacks));
            member.untouched.set(false);
            self.tell(held, || Event::Quarantined { device: member.device.label().clone() });
        }
        let is_quarantined = claim.movers().any(|mover| mover.state.get().is_quarantined());
        if is_quarantined { Left::Quarantined } else { Left::Unchanged }
    }
}

/// Refuses to cleanse what children depend on: its reset would end them, whoever has them.
#[inline]
pub(super) fn check_dependents<P: Platform>(registry: &Registry<P>, claim: &Claim<'_>) -> Result<(), Cause> {
    if registry.dependents.get() == 0 {
        return Ok(());
    }
    let mut reset = claim.members().filter(|member| LIVE_WORK(member, claim.level));
    reset.try_for_each(|member| registry.check_dependents(&member.device))
}

/// Marks the members that the operation moves: the device alone or its whole group, as far as `moves` accepts them.
pub(super) fn mark_work(
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
