//! Random sequences of operations against the sequential specification, under the isolation oracle, on small machines.
//!
//! A failure prints the shortest sequence that still fails as Rust: `run(Board::.., &[..])`. It becomes a named test in
//! `mod found`, with what went wrong in a sentence (`docs/testing.md`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use machine::op::{Ask, Guest, Op, Script, Sheet, Side, Slot};
use machine::world::{self, Board};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// The same sequences in every run.
const FIXED_SEED: u64 = 0x5eed;

/// Makes an operation of what was drawn.
type Make = fn(Slot, Guest, u8) -> Op;

/// How often each operation comes: mostly what brings a machine somewhere, rarely what breaks it. The simplest come
/// first, for a sequence shrinks towards them.
const KINDS: [(u32, Make); 42] = [
    (12, |slot, _, _| Op::Add(slot)),
    (8, |_, guest, _| Op::Create(guest)),
    (14, |slot, guest, _| Op::Assign(slot, guest)),
    (7, |slot, _, _| Op::Remove(slot)),
    (6, |slot, _, _| Op::Deassign(slot)),
    (8, |slot, guest, _| Op::Reassign(slot, guest)),
    (5, |slot, guest, _| Op::AssignGroup(slot, guest)),
    (5, |slot, guest, _| Op::ReassignGroup(slot, guest)),
    (3, |slot, _, _| Op::DeassignGroup(slot)),
    (2, |slot, guest, _| Op::TestAssign(slot, guest)),
    (1, |slot, guest, _| Op::AssignOld(slot, guest)),
    (4, |slot, guest, _| Op::Reserve(slot, guest)),
    (3, |slot, _, _| Op::Commit(slot)),
    (2, |slot, _, _| Op::Abandon(slot)),
    (6, |slot, guest, choice| Op::Submit(ask(slot, guest, choice))),
    (2, |slot, _, _| Op::Cancel(slot)),
    (8, |_, _, _| Op::Work),
    (3, |_, guest, _| Op::Destroy(guest)),
    (4, |_, guest, _| Op::Map(guest)),
    (4, |_, guest, _| Op::Unmap(guest)),
    (4, |_, guest, _| Op::Flush(guest)),
    (6, |slot, _, choice| Op::Dma(slot, choice)),
    (8, |slot, _, choice| Op::DmaSecond(slot, choice)),
    (1, |_, _, choice| Op::DmaUnknown(side(choice))),
    (1, |_, _, choice| Op::HandleGlobal(side(choice))),
    (1, |_, _, choice| Op::HandleContext(side(choice), choice / 2)),
    (3, |_, _, choice| Op::Unregister(side(choice))),
    (2, |_, _, choice| Op::ForceUnregister(side(choice))),
    (5, |_, _, choice| Op::Register(side(choice))),
    (1, |_, _, choice| Op::Stick(side(choice))),
    (1, |_, _, choice| Op::LoseSync(side(choice))),
    (2, |_, _, choice| Op::Heal(side(choice))),
    (1, |slot, _, _| Op::BreakHook(slot)),
    (1, |_, _, choice| Op::CutPower(side(choice))),
    (3, |_, _, choice| Op::RestorePower(side(choice))),
    (5, |_, _, _| Op::Plug),
    (2, |_, _, _| Op::Unplug),
    (1, |_, _, _| Op::Pull),
    (5, |_, _, _| Op::SwitchOn),
    (2, |_, _, _| Op::SwitchOff),
    (4, |_, _, choice| Op::Apply(sheet(choice))),
    (3, |_, _, choice| Op::Revert(sheet(choice))),
];

const fn ask(slot: Slot, guest: Guest, choice: u8) -> Ask {
    match choice {
        0 | 1 => Ask::Offer(slot),
        2 => Ask::Unplug(slot),
        3 | 4 => Ask::Give(slot, guest),
        5 => Ask::Pass(slot, guest),
        _ => Ask::Take(slot),
    }
}

const fn sheet(choice: u8) -> Sheet {
    if choice.is_multiple_of(2) { Sheet::One } else { Sheet::Two }
}

const fn side(choice: u8) -> Side {
    if choice.is_multiple_of(2) { Side::A } else { Side::B }
}

fn op((kind, slot, guest, choice): (u32, usize, usize, u8), slots: &[Slot], guests: &[Guest]) -> Op {
    let mut left = kind;
    let drawn = KINDS.iter().find(|(weight, _)| {
        let found = left < *weight;
        left = left.saturating_sub(*weight);
        found
    });
    drawn.unwrap().1(slots[slot % slots.len()], guests[guest % guests.len()], choice)
}

/// Sequences about a few devices and guests, so that they meet often.
fn script() -> impl Strategy<Value = Script> {
    let kinds = KINDS.iter().map(|(weight, _)| weight).sum::<u32>();
    let raw = (0..kinds, 0_usize..6, 0_usize..3, 0_u8..8);
    let (slots, guests) = (vec(select(&Slot::ALL[..]), 1..6), vec(select(&Guest::ALL[..]), 1..3));
    (slots, guests, vec(raw, 1..60))
        .prop_map(|(slots, guests, raw)| Script(raw.into_iter().map(|one| op(one, &slots, &guests)).collect()))
}

/// Runs `cases` sequences that follow from `seed` on each board.
fn explore(seed: u64, cases: u32) {
    for board in Board::ALL {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8] = board as u8;
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 4096, ..Config::default() };
        let outcome = TestRunner::new_with_rng(config, rng).run(&script(), |script| {
            world::run(board, &script.0).map_err(|violation| TestCaseError::fail(violation.what))
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(reason, script)) => {
                panic!("PROPERTIES_SEED={seed:#x}: {}\nrun(Board::{board:?}, &{script:?});", reason.message());
            }
            Err(error) => panic!("PROPERTIES_SEED={seed:#x}: {error}"),
        }
    }
}

/// `cargo xtask search` asks for more.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPERTIES_CASES").map_or(usual, |cases| cases.parse().unwrap())
}

#[test]
fn sequences_of_a_fixed_seed_keep_the_contract() {
    explore(FIXED_SEED, cases(40));
}

#[test]
fn sequences_of_a_fresh_seed_keep_the_contract() {
    let fresh = std::env::var("PROPERTIES_SEED").map_or_else(
        |_| std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |seed| u64::from_str_radix(seed.trim_start_matches("0x"), 16).unwrap(),
    );
    println!("PROPERTIES_SEED={fresh:#x}");
    explore(fresh, cases(20));
}

/// What was found, as the shortest sequence that showed it.
mod found {
    use machine::op::Guest::{Green, Red};
    use machine::op::Op::{
        Add, Apply, Assign, AssignGroup, Audit, Create, CutPower, Deassign, Destroy, Dma, DmaSecond, Flush,
        ForceUnregister, HandleGlobal, Heal, LoseSync, Map, Plug, Register, Remove, RestorePower, Revert, Stick,
        SwitchOn, TestAssign, Unmap, Unregister,
    };
    use machine::op::Sheet::{One, Two};
    use machine::op::Side::{A, B};
    use machine::op::Slot::{Both, Bridge, Companion, Fan, Far, Late, Mate, Narrow, Nic, Usb, Wide};

    use super::{Board, Op, world};

    fn run(board: Board, script: &[Op]) {
        if let Err(violation) = world::run(board, script) {
            panic!("{violation}");
        }
    }

    /// The policy was asked about a device on an SMMU that had gone: no entry is shared with it.
    /// A virtual function was packed into one entry with its physical function, and became one group with it, since the add
    /// had claimed that one as its parent.
    #[test]
    fn i15_a_virtual_function_is_not_packed_together_with_its_parent() {
        run(Board::Mmu401, &[Plug, SwitchOn]);
    }

    #[test]
    fn i11_c9_nobody_is_asked_about_a_device_on_an_instance_that_went() {
        run(
            Board::Roomy,
            &[Create(Green), Add(Usb), Assign(Usb, Green), ForceUnregister(A), Register(A), Add(Companion)],
        );
    }

    /// Two devices that do not meet used one entry, made for a third one that had left; the group was split, and an
    /// assign of the second to another domain was `Busy` for ever instead of a conflict.
    #[test]
    fn i15_devices_that_share_an_entry_stay_one_group_when_the_one_that_joined_them_leaves() {
        run(Board::Small, &[Add(Wide), Add(Narrow), Add(Far), Remove(Wide)]);
    }

    /// The flush list knew SMMUs by name only: after one had been unregistered and probed anew, flushes of a domain that
    /// had used it went to the driver that was gone, returned `Ok`, and left the TLB as it was.
    #[test]
    fn i9_c9_a_flush_reaches_an_smmu_that_was_registered_again() {
        let script = [
            [Create(Red), Add(Usb), Assign(Usb, Red), Remove(Usb)],
            [Unregister(A), Register(A), Add(Usb), Assign(Usb, Red)],
            [Map(Red), DmaSecond(Usb, 0), Unmap(Red), Flush(Red)],
        ];
        run(Board::Small, &[&script.concat()[..], &[DmaSecond(Usb, 0)]].concat());
    }

    /// A domain with a poisoned bank was flushed through the driver of an SMMU that was not in service any more.
    #[test]
    fn c8_c9_no_register_of_an_unregistered_smmu_is_touched() {
        run(
            Board::Small,
            &[Create(Red), Add(Bridge), Assign(Bridge, Red), Stick(B), Remove(Bridge), Unregister(B), Flush(Red)],
        );
    }

    /// That driver then ended the drain of its poisoned bank by M = 0 in a bank that the new driver had given to somebody
    /// else, whose DMA then passed untranslated.
    #[test]
    fn i4_c9_an_old_driver_does_not_switch_off_the_bank_of_a_new_one() {
        let script = [
            [Create(Red), Add(Bridge), Assign(Bridge, Red), Stick(B), Remove(Bridge)],
            [Heal(B), Unregister(B), Register(B), Create(Green), Add(Bridge)],
        ];
        run(Board::Small, &[&script.concat()[..], &[Assign(Bridge, Green), Flush(Red)]].concat());
    }

    /// The policy was asked only when the new device's streams met those of one assigned member. A live entry that was
    /// made for a device that had left opened the new one's DMA without a yes.
    #[test]
    fn i11_a11_the_policy_is_asked_about_every_live_entry_that_a_new_device_would_share() {
        run(Board::Roomy, &[Create(Green), Add(Wide), Add(Far), AssignGroup(Far, Green), Remove(Wide), Add(Narrow)]);
    }

    /// An ended domain kept its list of IOMMUs, and a late flush asked one that had gone since.
    #[test]
    fn c9_i9_a_late_flush_of_an_ended_domain_asks_nobody() {
        let life = [Add(Usb), Create(Red), Assign(Usb, Red), Remove(Usb), Destroy(Red), Unregister(A), Flush(Red)];
        run(Board::Version1, &life);
    }

    /// Some member of an entry is not every member: the device that was told to meet the new one was in fault, and the
    /// one that kept the entry live was not asked about.
    #[test]
    fn i11_a11_the_policy_is_asked_whichever_member_keeps_the_entry_live() {
        for first in [Wide, Far] {
            let second = if first == Wide { Far } else { Wide };
            for live in [Wide, Far] {
                run(Board::Roomy, &[Create(Green), Add(first), Add(second), Assign(live, Green), Add(Narrow)]);
            }
        }
    }

    /// A plan took a bank that had been poisoned and was clean by then; given back, the bank counted as free with M = 1.
    #[test]
    fn a10_a1_a_plan_that_is_given_back_leaves_a_poisoned_bank_as_it_found_it() {
        let script = [
            [LoseSync(A), Create(Green), Create(Red), Add(Usb)],
            [Assign(Usb, Green), Deassign(Usb), Assign(Usb, Green), Deassign(Usb)],
        ];
        run(Board::Roomy, &[&script.concat()[..], &[TestAssign(Usb, Red)]].concat());
    }

    /// Where a drain takes two syncs, the second was posted after the first had timed out, and nobody waited for it: the
    /// next operation took it for its own, and timed out although the SMMU worked again.
    #[test]
    fn a4_an_overlay_that_is_refused_finishes_first_what_another_has_left_behind() {
        let script = [LoseSync(A), Apply(One), Create(Green), Apply(Two), Assign(Fan, Green), Revert(One), Apply(Two)];
        run(Board::Indexing, &script);
        // Without power it is left behind with its entry.
        let script = [Apply(One), Apply(Two), CutPower(A), Revert(One), RestorePower(A), Apply(Two), Audit];
        run(Board::Mmu401, &script);
    }

    #[test]
    fn a4_an_operation_succeeds_at_once_when_the_smmu_works_again() {
        run(Board::Split, &[Add(Usb), Create(Red), Assign(Usb, Red), Stick(A), Deassign(Usb), Heal(A), Destroy(Red)]);
    }

    /// On a part whose 64-bit registers must be accessed in halves, the audit read TTBR0 whole.
    #[test]
    fn a10_the_audit_reads_split_registers_in_halves() {
        run(Board::Split, &[Create(Red), Add(Bridge), Assign(Bridge, Red)]);
    }

    /// A device stays registered with the instance that went. At the instance that came after it nothing has its streams: the
    /// record of a fault there names no device.
    #[test]
    fn a12_c9_a_fault_at_a_new_instance_names_no_device_of_the_one_that_went() {
        run(Board::Small, &[Add(Nic), ForceUnregister(A), Register(A), Dma(Nic, 0), HandleGlobal(A)]);
        run(Board::Mmu500, &[Add(Nic), ForceUnregister(A), Register(A), Dma(Nic, 0), HandleGlobal(A)]);
    }

    /// A quarantined device that shares an entry is cleansed along with the one that is assigned. It had a second IOMMU, which
    /// had gone: no assign of the other succeeded any more.
    #[test]
    fn i14_c9_a_mate_with_an_iommu_that_went_is_cleansed_along() {
        let script = [Add(Both), Create(Red), Assign(Both, Red), ForceUnregister(A), Add(Mate), Deassign(Both)];
        run(Board::Small, &[&script[..], &[Assign(Mate, Red)]].concat());
    }

    /// A member that is on its way out counted as one that a group's assign could move, and the answer was that the device,
    /// which is registered and assigned, was removed.
    #[test]
    fn a2_a_member_that_is_going_is_not_what_a_group_operation_is_about() {
        let script =
            [LoseSync(B), Create(Red), Add(Mate), Assign(Mate, Red), Remove(Mate), Add(Both), Assign(Both, Red)];
        run(Board::Small, &[&script[..], &[AssignGroup(Both, Red)]].concat());
    }

    /// An assign found out that there was no power when its plan was made: the device, which nothing had touched, was
    /// quarantined.
    #[test]
    fn a1_an_assign_without_power_changes_nothing() {
        run(Board::Small, &[Add(Nic), Create(Red), CutPower(A), Assign(Nic, Red)]);
    }

    /// An add could not be undone for want of the power that it had failed for, and left a device that was going. With two
    /// IOMMUs the first was written before the second was found without power.
    #[test]
    fn a1_an_add_without_power_changes_nothing() {
        run(Board::Small, &[Add(Nic), CutPower(A), Add(Late)]);
        run(Board::Small, &[CutPower(B), Add(Both)]);
    }

    /// A device in fault was forgotten by its first IOMMU before the second was found without power, and stayed registered.
    #[test]
    fn c8_a_removal_without_power_at_one_iommu_is_not_begun_at_the_other() {
        run(Board::Mmu401, &[Add(Both), CutPower(B), Dma(Both, 2), Remove(Both), HandleGlobal(A)]);
    }

    /// Who shared an entry whose drain was not confirmed was removed as if nothing were in flight.
    #[test]
    fn a_mate_of_an_entry_that_owes_its_drain_is_going_too() {
        run(
            Board::Mmu401,
            &[Create(Red), Add(Companion), Add(Usb), Assign(Companion, Red), Stick(A), Remove(Companion), Remove(Usb)],
        );
    }

    /// A probe that gave up left its sync in flight, and the next one started its own over it.
    #[test]
    fn a_probe_after_one_that_gave_up_waits_for_its_sync() {
        run(Board::Small, &[Create(Red), Unregister(A), Stick(A), Register(A)]);
    }
}
