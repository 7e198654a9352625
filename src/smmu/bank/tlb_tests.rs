//! Tests of one sync in flight, and of the banks of a domain.

#![expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::{Mutex, PoisonError};
use std::vec;
use std::vec::Vec;

use super::*;
use crate::smmu::hardware::quirks::Effects;
use crate::sync::order::Unlocked;
use crate::sync::{Micros, Spin};

/// A sync register that reads as active until the test, or a count of reads, lets it go.
#[derive(Debug, Default)]
struct Part {
    active: bool,
    /// What the last read of the status said, since the last sync was started.
    seen_inactive: bool,
    /// Reads after which a sync completes; `None` while it is stuck.
    delay: Option<u32>,
    left: u32,
    syncs: u32,
    vmids: Vec<u32>,
}

#[derive(Debug)]
struct Fake(Mutex<Part>);

impl Fake {
    fn with<T>(&self, act: impl FnOnce(&mut Part) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Registers for Fake {
    fn read32(&self, offset: u32) -> u32 {
        assert_eq!(offset, gr0::STLBGSTATUS);
        self.with(|part| {
            part.left = part.left.saturating_sub(1);
            part.active &= part.delay.is_none() || part.left > 0;
            part.seen_inactive = !part.active;
            u32::from(part.active)
        })
    }

    fn write32(&self, offset: u32, value: u32) {
        self.with(|part| match offset {
            gr0::STLBGSYNC => {
                assert!(!part.active, "a sync over the one in flight");
                assert!(part.syncs == 0 || part.seen_inactive, "a sync before the last one was seen complete");
                part.syncs += 1;
                part.active = true;
                part.seen_inactive = false;
                part.left = part.delay.unwrap_or(0);
            }
            gr0::TLBIVMID => part.vmids.push(value),
            _ => {}
        });
    }

    fn read64(&self, _: u32) -> u64 {
        0
    }

    fn write64(&self, _: u32, _: u64) {}
}

const BOUND: Bound = Bound { polls: 5, time: Micros::new(0) };

struct Bench {
    tlb: Tlb<Spin>,
    registers: Access<Fake>,
    held: Held<'static, Unlocked>,
}

impl Bench {
    fn new(delay: Option<u32>) -> Self {
        let registers = Access::new(Fake(Mutex::new(Part { delay, ..Part::default() })), Effects::empty(), false);
        Self { tlb: Tlb::global(4).expect("room for four"), registers, held: Held::enter() }
    }

    fn post(&mut self) -> Ticket {
        self.tlb.post(&mut self.held, &self.registers, |_| ())
    }

    fn wait(&mut self, ticket: Ticket) -> bool {
        self.tlb.wait(&mut self.held, &self.registers, ticket, || BOUND).is_ok()
    }

    fn look(&mut self) {
        self.tlb.look(&mut self.held, &self.registers);
    }

    fn stick(&self, stuck: bool) {
        self.registers.raw().with(|part| part.delay = if stuck { None } else { Some(2) });
    }

    fn syncs(&self) -> u32 {
        self.registers.raw().with(|part| part.syncs)
    }

    fn post_domain(&mut self, domain: u64) -> (Option<Ticket>, Vec<u32>) {
        let vmid_of = |bank| u32::from(bank) + 1;
        let ticket = self.tlb.post_domain(&mut self.held, &self.registers, DomainId::new(domain), vmid_of);
        (ticket, self.registers.raw().with(|part| core::mem::take(&mut part.vmids)))
    }
}

fn set<const N: usize>(banks: [u8; N]) -> BankSet {
    banks.into_iter().collect()
}

#[test]
fn c14_those_who_post_while_a_sync_is_in_flight_share_the_next_one() {
    let mut bench = Bench::new(Some(2));
    let first = bench.post();
    let (second, third) = (bench.post(), bench.post());
    assert_eq!((first, second, third), (Ticket(1), Ticket(2), Ticket(2)));
    assert_eq!(bench.syncs(), 1);
    assert!(bench.wait(third));
    assert!(bench.tlb.is_complete(first) && bench.tlb.is_complete(second));
    assert_eq!(bench.syncs(), 2);
}

#[test]
fn c14_a_waiter_that_comes_back_joins_the_sync_already_in_flight() {
    let mut bench = Bench::new(None);
    let ticket = bench.post();
    assert!(!bench.wait(ticket));
    assert!(!bench.wait(ticket));
    assert_eq!(bench.syncs(), 1, "it waits for the same sync");
    bench.stick(false);
    assert!(bench.wait(ticket));
    assert_eq!(bench.syncs(), 1);
}

#[test]
fn c14_impatient_callers_start_no_sync_over_a_stuck_one_and_starve_nobody() {
    let mut bench = Bench::new(None);
    let tickets: Vec<_> = (0..1000)
        .map(|_| {
            let ticket = bench.post();
            assert!(!bench.wait(ticket));
            ticket
        })
        .collect();
    assert_eq!(bench.syncs(), 1);
    bench.stick(false);
    // The patient one waits for at most two syncs, however many gave up.
    let patient = bench.post();
    assert!(bench.wait(patient));
    assert_eq!(bench.syncs(), 2);
    assert!(tickets.iter().all(|ticket| bench.tlb.is_complete(*ticket)));
}

#[test]
fn i8_a_ticket_that_was_given_up_completes_when_anyone_looks_and_not_before() {
    let mut bench = Bench::new(None);
    let (first, second) = (bench.post(), bench.post());
    assert!(!bench.wait(second));
    bench.stick(false);
    assert!(!bench.tlb.is_complete(first), "its completion was not seen yet");
    bench.look();
    assert!(bench.tlb.is_complete(first) && !bench.tlb.is_complete(second));
    assert_eq!(bench.syncs(), 2, "the next sync is started though no waiter is left");
    (0..2).for_each(|_| bench.look());
    assert!(bench.tlb.is_complete(second));
    (0..5).for_each(|_| bench.look());
    assert_eq!(bench.syncs(), 2, "no ticket needs another");
}

#[test]
fn c14_threads_that_give_up_at_random_never_overlap_syncs() {
    let bench = Bench::new(Some(3));
    let (tlb, registers) = (&bench.tlb, &bench.registers);
    std::thread::scope(|scope| {
        for thread in 0..2_u32 {
            scope.spawn(move || {
                let mut held = Held::enter();
                for round in 0..500_u32 {
                    let ticket = tlb.post(&mut held, registers, |_| ());
                    let polls = (round * 7 + thread) % 5;
                    let _ = tlb.wait(&mut held, registers, ticket, || Bound { polls, time: Micros::new(0) });
                }
            });
        }
    });
    // The fake asserts that no sync is written while one is active or before the last one was seen inactive.
    let mut bench = bench;
    let last = bench.post();
    assert!((0..10).any(|_| bench.wait(last)));
}

#[test]
fn i9_a_flush_finds_the_banks_of_its_domain_and_no_others() {
    let mut bench = Bench::new(Some(1));
    let domain = DomainId::new;
    for (number, bank) in [(7, 3), (5, 1), (9, 0), (7, 2)] {
        bench.tlb.enter(&mut bench.held, domain(number), bank);
    }
    bench.tlb.enter(&mut bench.held, domain(7), 3);
    assert_eq!(bench.post_domain(7), (Some(Ticket(1)), vec![3, 4]));
    assert_eq!(bench.tlb.banks_of(&mut bench.held, domain(7)), set([2, 3]));
    assert_eq!(bench.post_domain(6), (None, vec![]));
    assert_eq!(bench.syncs(), 1, "no bank, no register access");
    bench.tlb.leave(&mut bench.held, domain(7), 3);
    bench.tlb.leave(&mut bench.held, domain(7), 1);
    assert_eq!(bench.post_domain(7), (Some(Ticket(2)), vec![3]));
    bench.tlb.leave(&mut bench.held, domain(7), 2);
    assert_eq!(bench.post_domain(7), (None, vec![]));
    assert_eq!(bench.tlb.banks_of(&mut bench.held, domain(5)), set([1]));
}

#[test]
fn i9_a_full_table_never_leaves_a_bank_out() {
    let mut bench = Bench::new(Some(1));
    let domain = DomainId::new;
    (0..4).for_each(|bank| bench.tlb.enter(&mut bench.held, domain(10 - u64::from(bank)), bank));
    for number in [1, 20, 8] {
        bench.tlb.enter(&mut bench.held, domain(number), 0);
        assert!(bench.tlb.banks_of(&mut bench.held, domain(number)).each().any(|bank| bank == 0));
    }
    assert_eq!(bench.tlb.banks_of(&mut bench.held, domain(20)), BankSet::EMPTY, "a bank is one domain's");
    assert_eq!(bench.tlb.banks_of(&mut bench.held, domain(8)), set([0, 2]));
}
