//! Which refusals the contract allows of which operation. Any other one is a violation.

use iommu_assign::assign::{Cause, Error, IommuError, Resource};
use iommu_assign::dt::overlay::{OverlayError, OverlayFault};
use iommu_assign::pci::hotplug::NotOffered;
use iommu_assign::pci::sriov::{SriovError, SwitchError};

use super::tally::{Tally, Work};

const BUSY: &str = "busy";
const GONE: &str = "gone";
const OVERTAKEN: &str = "overtaken by a removal";
const OWNED: &str = "has an owner";
const NO_OWNER: &str = "has no owner";
const GROUP: &str = "group conflict";
const POLICY: &str = "policy";
const ENTRIES: &str = "no entry left";
const BANKS: &str = "no bank left";
const HOOK: &str = "hook failed";
const BEFORE_IT: &str = "devices behind it";
const NO_PARENT: &str = "no parent";
const IN_USE: &str = "in use";
const NO_GUEST: &str = "guest gone";
/// A card that is out reads as all ones.
const PULLED: &str = "pulled out";
const KNOWN: &str = "known";
const ARE_ON: &str = "on already";
/// An SMMU left meanwhile: what the others hold is flushed by the next try.
const SMMU_GONE: &str = "an SMMU left meanwhile";
const RESET: &str = "reset meanwhile";
const STILL_THERE: &str = "registered still";
const TWICE: &str = "applied twice";
const NO_LABEL: &str = "refers to what has gone";
const NEEDED: &str = "needed by another";
const NOT_APPLIED: &str = "not applied";
const WAITS: &str = "one before it unfinished";
const NOT_RESET: &str = "not reset, mate in use";

/// The contract's refusals of each operation.
const fn allowed(work: Work) -> &'static [&'static str] {
    match work {
        Work::Arrive => &[KNOWN, BUSY, ENTRIES, NO_PARENT, PULLED],
        Work::Request => &[BUSY, OWNED, HOOK, BEFORE_IT],
        Work::Leave | Work::Create => &[],
        Work::Flush => &[SMMU_GONE],
        Work::SwitchOn => &[ARE_ON, RESET, STILL_THERE, NO_PARENT, BUSY, ENTRIES, PULLED],
        Work::SwitchOff => &[OWNED, BUSY, PULLED],
        Work::Apply => &[TWICE, NO_LABEL, IN_USE, NOT_RESET, BUSY, ENTRIES, WAITS],
        Work::Revert => &[NOT_APPLIED, NEEDED, IN_USE, NOT_RESET, BUSY, ENTRIES, WAITS],
        Work::Assign => &[BUSY, GONE, OVERTAKEN, OWNED, GROUP, POLICY, ENTRIES, BANKS, HOOK, BEFORE_IT, NO_GUEST],
        Work::Reassign => &[BUSY, GONE, OVERTAKEN, OWNED, NO_OWNER, GROUP, POLICY, BANKS, HOOK, BEFORE_IT, NO_GUEST],
        Work::Deassign => &[BUSY, GONE, OVERTAKEN, NO_OWNER, HOOK, BEFORE_IT],
        Work::Destroy => &[BUSY, IN_USE],
    }
}

/// The reason in a word or two; none for what no operation here may come to.
const fn of_cause(cause: &Cause) -> Option<&'static str> {
    Some(match cause {
        Cause::Busy { .. } | Cause::Iommu { error: IommuError::Busy, .. } => BUSY,
        Cause::Gone | Cause::NotFound => GONE,
        Cause::Removed => OVERTAKEN,
        Cause::AlreadyAssigned { .. } => OWNED,
        Cause::NotAssigned => NO_OWNER,
        Cause::GroupConflict { .. } => GROUP,
        Cause::Denied { .. } => POLICY,
        Cause::Iommu { error: IommuError::Exhausted { resource: Resource::StreamMapEntries, .. }, .. } => ENTRIES,
        Cause::Iommu { error: IommuError::Exhausted { resource: Resource::ContextBanks, .. }, .. } => BANKS,
        Cause::Iommu { error: IommuError::ProviderGone, .. } => SMMU_GONE,
        Cause::Hook { .. } => HOOK,
        Cause::HasChildren { .. } => BEFORE_IT,
        Cause::ParentMissing => NO_PARENT,
        Cause::InUse { .. } => IN_USE,
        Cause::DomainGone { .. } => NO_GUEST,
        Cause::AlreadyRegistered { .. } => KNOWN,
        _ => return None,
    })
}

const fn of_function(error: &NotOffered) -> Option<&'static str> {
    match error {
        NotOffered::Known => Some(KNOWN),
        NotOffered::Control(_) => Some(PULLED),
        NotOffered::Service(error) => of_cause(&error.cause),
        _ => None,
    }
}

const fn of_switch(error: &SriovError) -> Option<&'static str> {
    match error {
        SriovError::Config(_) | SriovError::Control(_) | SriovError::NotPhysical => Some(PULLED),
        SriovError::AlreadyOn { .. } => Some(ARE_ON),
        SriovError::Reset => Some(RESET),
        SriovError::Registered { .. } => Some(STILL_THERE),
        SriovError::NotRegistered => Some(NO_PARENT),
        SriovError::Assigned { .. } => Some(OWNED),
        SriovError::Service(error) => of_cause(&error.cause),
        _ => None,
    }
}

fn of_overlay(error: &OverlayError) -> Option<&'static str> {
    match error {
        OverlayError::Unfinished(_) => Some(WAITS),
        OverlayError::NotApplied(_) => Some(NOT_APPLIED),
        OverlayError::NotRestored { error, .. } => of_overlay(error),
        OverlayError::Service(error) => of_cause(&error.cause),
        OverlayError::Fault { fault, .. } => match fault {
            OverlayFault::AppliedAlready { .. } => Some(TWICE),
            OverlayFault::LabelMissing { .. } => Some(NO_LABEL),
            OverlayFault::DeviceGoing | OverlayFault::DeviceInUse { .. } => Some(IN_USE),
            OverlayFault::ReferredTo { .. } => Some(NEEDED),
            OverlayFault::NotReset { .. } => Some(NOT_RESET),
            _ => None,
        },
        _ => None,
    }
}

impl Tally {
    /// An operation of the service has ended so.
    pub(super) fn ended<T>(&self, work: Work, result: &Result<T, Error>) {
        self.ended_as(work, result.as_ref().map_err(|error| (of_cause(&error.cause), error.to_string())));
    }

    /// The same, where `is_out` says whether the function's card is out: only then may its hook fail.
    pub(super) fn ended_at_function<T>(&self, work: Work, result: &Result<T, Error>, is_out: bool) {
        match result {
            Err(error) if matches!(error.cause, Cause::Hook { .. }) && !is_out => {
                self.violation(format!("{error}, though it is plugged in"));
            }
            result => self.ended(work, result),
        }
    }

    /// A function was offered so.
    pub(super) fn arrived<T>(&self, result: &Result<T, NotOffered>, is_out: bool) {
        self.ended_at_card(
            Work::Arrive,
            result.as_ref().map_err(|error| (of_function(error), error.to_string())),
            is_out,
        );
    }

    /// Virtual functions were switched so.
    pub(super) fn switched<T>(&self, work: Work, result: &Result<T, SwitchError>, is_out: bool) {
        let told = result.as_ref().map_err(|error| (of_switch(&error.cause), error.to_string()));
        self.ended_at_card(work, told, is_out);
    }

    /// An overlay came or went so.
    pub(super) fn overlaid<T>(&self, work: Work, result: &Result<T, OverlayError>) {
        self.ended_as(work, result.as_ref().map_err(|error| (of_overlay(error), error.to_string())));
    }

    fn ended_at_card<T>(&self, work: Work, result: Result<T, (Option<&'static str>, String)>, is_out: bool) {
        match result {
            Err((Some(PULLED), told)) if !is_out => {
                self.violation(format!("{}: {told}, though it is plugged in", work.words()));
            }
            result => self.ended_as(work, result),
        }
    }

    fn ended_as<T>(&self, work: Work, result: Result<T, (Option<&'static str>, String)>) {
        match result {
            Ok(_) => self.done(work),
            Err((Some(reason), _)) if allowed(work).contains(&reason) => self.refused(work, reason),
            Err((_, told)) => self.violation(format!("{}: {told}", work.words())),
        }
    }
}
