//! The scenario: what a hypervisor does with devices in their lives, and what their DMA comes to meanwhile.
//!
//! Each step brings the devices that it uses to where it needs them, so that it can be played on any board, whoever
//! plays the parts.

use std::rc::Rc;

use iommu_assign::assign::Cause;

use crate::cast::Cast;
use crate::guests::Guest;
use crate::policy::Rules;
use crate::recorder::Recorder;
use crate::stage::Stage;
use crate::world::{Subject, World};

/// Plays all steps.
pub(crate) fn play(world: &mut World, recorder: &mut Recorder) {
    let mut stage = Stage::new(world, recorder);
    let cast = Cast::choose(&stage);
    stage.recorder.step("Before anything is assigned, every device faults");
    stage.everyone();
    stage.strangers();
    stage.recorder.step("Two guests");
    let (Some(one), Some(mut two)) = (stage.create("guest-1", 1), stage.create("guest-2", 2)) else { return };
    assign(&mut stage, &cast, &one, &two);
    groups(&mut stage, &cast, &one, &two);
    reassign(&mut stage, &cast, &one, &two);
    unmap(&mut stage, &cast, &mut two);
    hot_removal(&mut stage, &cast, &one);
    share_out(&mut stage, &cast, &[&one, &two]);
    stage.recorder.step("Each device reaches its guest or nothing, and registers agree with the registry");
    stage.everyone();
    stage.audit();
    end(&mut stage, &mut [one, two]);
}

fn assign(stage: &mut Stage<'_>, cast: &Cast, one: &Guest, two: &Guest) {
    stage.recorder.step("Assignments, with the policy's yes and without");
    if matches!(stage.world.rules, Rules::Named(_)) {
        stage.recorder.note("This board's firmware marks nothing for passing through: the operator names what may go.");
    }
    // Under the operator's rules nothing is named yet, so that any device will do.
    let denied =
        cast.unmarked.as_ref().or(cast.first.as_ref().filter(|_| matches!(stage.world.rules, Rules::Named(_))));
    if let Some(info) = denied.and_then(|denied| stage.info(denied)) {
        let is_denied = |cause: &Cause| matches!(cause, Cause::Denied { .. });
        stage.assign_refused(&info.device, one, "to be denied by the policy, with no register written", is_denied);
    }
    let parts = [(&cast.first, one), (&cast.function, one), (&cast.second, two)];
    for (subject, guest) in parts {
        if let Some(subject) = subject {
            stage.bring(subject, guest);
            stage.dma(subject);
            stage.interrupt(subject);
        }
    }
    if let Some(first) = &cast.first {
        stage.dma_into_the_hole(first);
    } else {
        stage.recorder.note("No device of this board can be assigned.");
    }
}

fn groups(stage: &mut Stage<'_>, cast: &Cast, one: &Guest, two: &Guest) {
    if let Some((subject, mate)) = &cast.sharers {
        stage.recorder.step("Two devices that share a stream have one owner");
        one_owner(stage, subject, mate, one, two);
        stage.bring(mate, one);
        stage.deassign(subject);
        stage.dma_shared(subject, mate);
        stage.deassign(mate);
        stage.dma_shared(subject, mate);
    }
    if let Some((subject, mate)) = &cast.neighbours {
        stage.recorder.step("Two functions that their bus does not keep apart have one owner, too");
        one_owner(stage, subject, mate, one, two);
        stage.dma(mate);
        stage.deassign(subject);
    }
}

/// `subject` goes to guest one; its mate must not go to guest two.
fn one_owner(stage: &mut Stage<'_>, subject: &Subject, mate: &Subject, one: &Guest, two: &Guest) {
    for member in stage.mates(subject) {
        stage.clear(&member);
    }
    stage.clear(subject);
    stage.bring(subject, one);
    stage.dma(subject);
    stage.name(mate, two);
    if let Some(info) = stage.info(mate) {
        let expected = format!("a conflict with {}, with no register written", subject.label);
        let names_the_owner =
            |cause: &Cause| matches!(cause, Cause::GroupConflict { with, .. } if *with == subject.label);
        stage.assign_refused(&info.device, two, &expected, names_the_owner);
    }
    stage.dma(subject);
}

fn reassign(stage: &mut Stage<'_>, cast: &Cast, one: &Guest, two: &Guest) {
    let Some(subject) = &cast.first else { return };
    stage.recorder.step("A device moves to another guest, and does not stop its DMA in between");
    stage.bring(subject, one);
    stage.dma(subject);
    // A mate in guest one would be a conflict.
    for mate in stage.mates(subject) {
        stage.clear(&mate);
    }
    stage.reassign(subject, two);
    stage.dma(subject);
}

fn unmap(stage: &mut Stage<'_>, cast: &Cast, two: &mut Guest) {
    let Some(subject) = cast.second.as_ref().or(cast.first.as_ref()) else { return };
    stage.recorder.step("A page is taken from a guest: until the flush, the SMMU still has it");
    stage.bring(subject, two);
    stage.dma(subject);
    stage.unmap(two);
    stage.dma_stale(subject);
    stage.flush(two);
    stage.dma_unmapped(subject);
    stage.map(two);
    stage.dma(subject);
}

fn hot_removal(stage: &mut Stage<'_>, cast: &Cast, one: &Guest) {
    let all = [&cast.function, &cast.second, &cast.first];
    let is_parent =
        |subject: &Rc<Subject>| stage.world.service.devices().any(|info| info.device.parent() == Some(subject.key));
    let Some(subject) = all.into_iter().flatten().find(|subject| !is_parent(subject)).cloned() else { return };
    let how = if subject.slot.is_some() { "pulled out" } else { "removed" };
    stage.recorder.step(&format!("A device is {how} while it is assigned, and comes back"));
    if stage.owner(&subject).is_none() {
        stage.bring(&subject, one);
    }
    stage.dma(&subject);
    let old = stage.info(&subject).map(|info| info.device);
    stage.pull(&subject);
    stage.remove(&subject);
    stage.dma(&subject);
    if let Some(old) = old {
        let expected = "the old handle to be of no use, with no register written";
        stage.assign_refused(&old, one, expected, |cause| *cause == Cause::Gone);
    }
    stage.plug(&subject);
    stage.add(&subject);
    stage.dma(&subject);
    stage.bring(&subject, one);
    stage.dma(&subject);
}

/// Gives every device a guest that may have one, by turns.
fn share_out(stage: &mut Stage<'_>, cast: &Cast, guests: &[&Guest]) {
    let waiting: Vec<&Rc<Subject>> = cast.candidates.iter().filter(|subject| stage.owner(subject).is_none()).collect();
    if waiting.is_empty() {
        return;
    }
    stage.recorder.step("All other devices that may go get a guest");
    if matches!(stage.world.rules, Rules::Named(_)) {
        stage.recorder.note("The operator names them all.");
    }
    for (subject, guest) in waiting.into_iter().zip(guests.iter().cycle()) {
        // A group has one owner.
        let mates = stage.mates(subject);
        let owner = mates.iter().find_map(|mate| stage.owner(mate));
        let owners = guests.iter().find(|guest| owner == Some(guest.domain.id()));
        let guest = owners.unwrap_or(guest);
        let _ = stage.named(subject, guest);
        stage.assign(subject, guest);
    }
}

fn end(stage: &mut Stage<'_>, guests: &mut [Guest]) {
    stage.recorder.step("The end of the guests");
    let subjects = stage.world.subjects.clone();
    for guest in guests.iter() {
        let devices: Vec<&Rc<Subject>> =
            subjects.iter().filter(|subject| stage.owner(subject) == Some(guest.domain.id())).collect();
        if !devices.is_empty() {
            stage.destroy(guest, Some(devices.len()));
        }
        stage.recorder.be_brief();
        for device in devices {
            stage.clear(device);
        }
        stage.recorder.be_explicit();
        stage.destroy(guest, None);
    }
    for guest in guests {
        guest.tables.scribble();
        stage.recorder.event("reuse", &format!("memory of {}'s tables", guest.label), "overwritten");
    }
    stage.everyone();
    stage.audit();
    stage.recorder.step("The end of the devices");
    // Children go before their parents.
    let mut leaving: Vec<_> =
        subjects.iter().filter_map(|subject| Some((stage.info(subject)?.device.depth(), subject))).collect();
    leaving.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    stage.remove_all(&leaving.into_iter().map(|(_, subject)| subject.clone()).collect::<Vec<_>>());
    stage.strangers();
    stage.audit();
    let units: Vec<_> = stage.world.in_service().map(|(unit, _)| unit.key).collect();
    stage.unregister(&units);
    stage.recorder.step("Looking back: what any stream could have reached after each register write");
    stage.verdicts();
}
