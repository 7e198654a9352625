//! What must hold after each operation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use iommu_assign::assign::{DeviceState, FaultRecord, Finding, Label, Lacks as Lacking};
use smmu_model::Counters;

use super::{MOST_STATES, PAGE, World, backing};
use crate::op::{Guest, Op, Side, Slot};
use crate::specification::{Lacks, Outcome, Owner, Shown, Specification};

/// Stream IDs at `side` that some entry of the universe can capture.
fn ids(side: Side) -> BTreeSet<u32> {
    Slot::ALL.into_iter().flat_map(|slot| slot.ids(side)).map(|(_, id)| id.into()).collect()
}

impl World<'_> {
    /// Keeps the states that explain what was seen.
    pub(super) fn compare(
        &mut self,
        op: Op,
        outcome: &Outcome,
        expected: Vec<(Outcome, Specification)>,
    ) -> Result<(), String> {
        let allowed: BTreeSet<Outcome> = expected.iter().map(|(outcome, _)| outcome.clone()).collect();
        if !allowed.contains(outcome) {
            return Err(format!("{op}: came to {outcome:?}, allowed are {allowed:?}"));
        }
        let shown = self.shown()?;
        let mut wanted = BTreeSet::new();
        let mut states = BTreeSet::new();
        for (_, state) in expected.into_iter().filter(|(allowed, _)| allowed == outcome) {
            let should = state.shown();
            if should == shown {
                states.insert(state);
            } else {
                wanted.insert(should);
            }
        }
        if states.is_empty() {
            return Err(format!("{op}: devices are {shown:?} after {outcome:?}, allowed are {wanted:?}"));
        }
        // Ambiguity that no observation resolved: any of the states explains all that was seen so far.
        while states.len() > MOST_STATES {
            states.pop_last();
        }
        self.states = states;
        Ok(())
    }

    /// The registry as a traversal shows it.
    fn shown(&self) -> Result<BTreeMap<Slot, Shown>, String> {
        let mut groups: BTreeMap<_, BTreeSet<Slot>> = BTreeMap::new();
        let mut found = Vec::new();
        for info in self.service.devices() {
            let slot = Slot::of(info.device.key()).ok_or_else(|| format!("{:?} was never added", info.device))?;
            let owner = match info.state {
                DeviceState::Blocked => Owner::Blocked,
                DeviceState::Quarantined(Lacking { drain, reset }) => Owner::Quarantined(Lacks { drain, reset }),
                DeviceState::Going => Owner::Going,
                DeviceState::Assigned(_) => {
                    let named =
                        |guest: &Guest| info.domain.as_ref().is_some_and(|label| label.to_string() == guest.name());
                    let guest = Guest::ALL.into_iter().find(named);
                    Owner::Assigned(guest.ok_or_else(|| format!("{slot:?} is assigned to a domain without name"))?)
                }
                other => return Err(format!("{slot:?} is left in state {other:?}")),
            };
            groups.entry(info.group).or_default().insert(slot);
            found.push((slot, owner, info.group));
        }
        let shown = found.into_iter().map(|(slot, owner, group)| {
            let members = groups.get(&group).cloned().unwrap_or_default();
            (slot, (owner, members))
        });
        Ok(shown.collect())
    }

    pub(super) fn counters(&self) -> [Counters; 2] {
        Side::ALL.map(|side| self.machine.counters(side.key()))
    }

    /// A refusal writes nothing (contract I-11, A-2, A-5), but to finish what is due: a drain that is owed, or what an
    /// overlay has left behind. An SMMU that is not in service is left alone (C-8).
    pub(super) fn check_accesses(
        &self,
        op: Op,
        outcome: &Outcome,
        is_due: bool,
        before: [Counters; 2],
        after: [Counters; 2],
    ) -> Result<(), String> {
        if let Outcome::Worked(ask, outcome) = outcome {
            return self.check_accesses(ask.op(), outcome, is_due, before, after);
        }
        let finishes = matches!(
            op,
            Op::Assign(..)
                | Op::AssignGroup(..)
                | Op::Reassign(..)
                | Op::ReassignGroup(..)
                | Op::TestAssign(..)
                | Op::Reserve(..)
                | Op::Destroy(_)
                | Op::Apply(_)
                | Op::Revert(_)
        );
        let is_planned = matches!(op, Op::TestAssign(..) | Op::Reserve(..)) && *outcome == Outcome::Done;
        let is_quiet = matches!(outcome, Outcome::Pending | Outcome::Idle(_));
        let is_dry = outcome.is_refusal() || is_planned || is_quiet;
        // A flush that one SMMU refuses has been done by the others.
        let asked_only = is_dry && !(finishes && is_due) && !matches!(op, Op::Flush(_));
        for ((side, before), after) in Side::ALL.into_iter().zip(before).zip(after) {
            if asked_only && after.writes != before.writes {
                let writes = after.writes.wrapping_sub(before.writes);
                return Err(format!("{op}: {outcome:?}, but {writes} registers of SMMU {side:?} were written"));
            }
            let is_probe = matches!(op, Op::Register(at) if at == side);
            let is_dark = self.power(side).off.load(Ordering::Relaxed);
            let users = self.power(side).users.load(Ordering::Relaxed);
            if users != 0 {
                return Err(format!(
                    "S-5: {op}: the power of SMMU {side:?} was asked for {users} times more than given back"
                ));
            }
            if is_dark && after != before {
                return Err(format!("S-5: {op}: SMMU {side:?} has no power, but its registers were accessed"));
            }
            let in_service = self.states.iter().any(|state| state.is_registered(side));
            let leaves = matches!(op, Op::Unregister(at) | Op::ForceUnregister(at) if at == side);
            if !in_service && !is_probe && !leaves && after != before {
                return Err(format!("{op}: SMMU {side:?} is not in service, but its registers were accessed"));
            }
        }
        Ok(())
    }

    /// Between two owners a device was quiesced and reset with success (contract I-14), whatever the specification says.
    pub(super) fn check_cleansed(&mut self) -> Result<(), String> {
        let shown = self.states.first().map(Specification::shown).unwrap_or_default();
        self.owners.retain(|slot, _| shown.contains_key(slot));
        for (slot, (owner, _)) in shown {
            let before = self.owners.get(&slot).copied();
            let Owner::Assigned(guest) = owner else {
                self.owners.extend(before.map(|(guest, _)| (slot, (guest, false))));
                continue;
            };
            let is_clean = self.hooks(slot).clean.swap(false, Ordering::Relaxed);
            if before.is_some_and(|before| before != (guest, true)) && !is_clean {
                return Err(format!("I-14: {slot:?} came to {guest:?} without a reset after {before:?}"));
            }
            self.owners.insert(slot, (guest, true));
        }
        Ok(())
    }

    /// Tells the oracle what may be reached while `op` runs: what could before, what can after, what it opens.
    pub(super) fn allow_transitions(&self, op: Op, expected: &[(Outcome, Specification)]) {
        let changes = expected.iter().any(|(outcome, _)| !outcome.is_refusal() && *outcome != Outcome::Skipped);
        let changing = self.states.iter().filter(|_| changes);
        let opened: Vec<_> =
            changing.flat_map(|state| state.carries_out(op).into_iter().filter_map(|op| state.opens(op))).collect();
        let states: Vec<&Specification> = self.states.iter().chain(expected.iter().map(|(_, state)| state)).collect();
        for side in Side::ALL {
            for id in ids(side) {
                let mut may: BTreeSet<Guest> = states.iter().filter_map(|state| state.reach(side, id)).collect();
                may.extend(opened.iter().filter(|(ids, _)| ids.contains(&(side, id))).map(|(_, guest)| *guest));
                self.allow(side, id, &may);
            }
        }
    }

    /// Looks at what the operation left, with nothing allowed but that.
    pub(super) fn check_isolation(&self) -> Result<(), String> {
        for side in Side::ALL {
            for id in ids(side) {
                let may = self.states.iter().filter_map(|state| state.reach(side, id)).collect();
                self.allow(side, id, &may);
            }
            let registered = self.states.first().map(Specification::shown).unwrap_or_default();
            for slot in Slot::ALL {
                if registered.contains_key(&slot) {
                    // It opens nothing: all streams of one device are to be seen together (contract I-13).
                    let streams = slot.streams().iter().filter(|(at, ..)| *at == side);
                    let streams: Vec<(u32, u32)> = streams.map(|(_, id, mask)| (*id, *mask)).collect();
                    self.oracle(side).allow(&slot.label(), &streams, &[]);
                } else {
                    self.oracle(side).forget(&slot.label());
                }
            }
            self.oracle(side).look_now(&self.machine, side.key(), PAGE);
            let (_, violations) = self.oracle(side).verdict();
            if let Some(first) = violations.first() {
                return Err(format!("SMMU {side:?} {first}"));
            }
        }
        Ok(())
    }

    fn allow(&self, side: Side, id: u32, may: &BTreeSet<Guest>) {
        let backings: Vec<u64> = may.iter().map(|guest| backing(*guest)).collect();
        self.oracle(side).allow(&Label::from(format!("{id:#x}").as_str()), &[(id, 0)], &backings);
    }

    /// A fault record names a device that has the stream, or nobody where nobody has it (contract A-12).
    pub(super) fn check_record(&self, side: Side, record: &FaultRecord) -> Result<(), String> {
        let Some(stream) = record.raw.stream else { return Ok(()) };
        let id = |slot: &Slot| slot.ids(side).any(|(_, id)| u32::from(id) == stream.value());
        // A device that is with an instance that went has no stream at the one that came after it (contract C-9).
        let has = |slot: &Slot| id(slot) && self.states.iter().any(|state| state.is_served(*slot, side));
        let named = record.device.as_ref().and_then(|label| Slot::ALL.into_iter().find(|slot| slot.label() == *label));
        let in_domain = Guest::ALL
            .into_iter()
            .find(|guest| record.domain.as_ref().is_some_and(|label| label.to_string() == guest.name()));
        // Some parts record a stream that did not fault: of a context fault a device is named only while its stream is
        // translated by that context.
        let reached =
            in_domain.is_some() && self.states.iter().all(|state| state.reach(side, stream.value()) == in_domain);
        let truthful = match named {
            Some(slot) => has(&slot),
            None => (record.raw.bank.is_some() && !reached) || !Slot::ALL.iter().any(has),
        };
        let ended = |guest: &Guest| self.states.iter().all(|state| !state.is_running(*guest));
        let lives = record.domain.as_ref().is_none_or(|label| {
            Guest::ALL.into_iter().any(|guest| label.to_string() == guest.name() && !ended(&guest))
        });
        if truthful && lives { Ok(()) } else { Err(format!("A-12: a fault of SMMU {side:?} is told as {record}")) }
    }

    /// Nothing made the hardware lie, so that registers, shadow and registry agree (contract A-10).
    pub(super) fn check_audit(&self) -> Result<(), String> {
        let mut findings = Vec::new();
        self.service.audit(&mut |finding: &Finding| findings.push(finding.to_string()));
        if findings.is_empty() { Ok(()) } else { Err(format!("A-10: the audit finds {findings:?}")) }
    }
}
