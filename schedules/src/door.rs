//! Revocable access alone: callers come and go, somebody revokes and waits until nobody is inside (contract C-17).
//!
//! In every interleaving: once it was revoked and seen empty nobody is inside and nobody gets in; what those inside did is
//! seen by then; who was refused is not counted, so that "empty" comes; and whoever waits for it is woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu_assign::sync::{ExploredDoor, Platform, Waiter};
use loom::sync::atomic::AtomicU64 as ExploredU64;

use crate::explorer::{Explorer, Reach};
use crate::queue::Waiting;

/// What stands behind the door, and what the explorer's own eyes have seen: those atomics order nothing.
#[derive(Default)]
struct Room {
    door: ExploredDoor,
    /// What callers change inside, with no order of its own.
    registers: ExploredU64,
    written: AtomicU64,
    entered: AtomicU64,
    refused: AtomicU64,
    closed: AtomicBool,
}

impl Room {
    /// One call, with `act` inside. Whether it got in.
    fn call_to(&self, act: impl FnOnce()) -> bool {
        let Some(call) = self.door.enter() else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return false;
        };
        assert!(!self.closed.load(Ordering::SeqCst), "C-17: a call got in after nobody was inside");
        self.entered.fetch_add(1, Ordering::SeqCst);
        act();
        assert!(!self.closed.load(Ordering::SeqCst), "C-17: a call is inside after nobody was");
        if call.leave() {
            Waiting::wake();
        }
        true
    }

    /// One call that changes something inside. Whether it got in.
    fn call(&self) -> bool {
        self.call_to(|| {
            self.written.fetch_add(1, Ordering::SeqCst);
            self.registers.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// One call that only comes and goes.
    fn call_once(&self) {
        self.call_to(|| ());
    }

    /// Calls, and calls again.
    fn call_twice(&self) {
        let (first, again) = (self.call(), self.call());
        assert!(first || !again, "C-17: a call got in after one was refused");
    }

    /// Revokes, and waits until nobody is inside.
    fn close(&self) {
        self.door.revoke();
        loop {
            let ticket = Waiting::prepare();
            if self.door.calls() == 0 {
                break;
            }
            assert_eq!(Waiting::wait(ticket, None), Ok(()));
        }
        self.closed.store(true, Ordering::SeqCst);
        let seen = self.registers.load(Ordering::Relaxed);
        assert_eq!(seen, self.written.load(Ordering::SeqCst), "C-17: empty was seen before what the last call did");
    }

    /// A call that is dropped where it stands counts no more.
    fn call_and_drop(&self) {
        drop(self.door.enter());
    }

    fn revoke(&self) {
        self.door.revoke();
    }
}

/// Threads at one door, and how far they are explored.
type Case = (&'static str, Reach, &'static [fn(&Room)]);

const CASES: &[Case] = &[
    ("call twice | revoke and wait", Reach::Whole, &[Room::call_twice, Room::close]),
    ("drop a call | drop a call | revoke", Reach::Whole, &[Room::call_and_drop, Room::call_and_drop, Room::revoke]),
    ("call | call | revoke and wait", Reach::Patient, &[Room::call_once, Room::call_once, Room::close]),
    ("call | revoke | revoke and wait", Reach::Patient, &[Room::call_once, Room::revoke, Room::close]),
];

pub(crate) fn explore(explorer: &mut Explorer) {
    for (name, reach, threads) in CASES {
        // Over all schedules: whether somebody got in, whether somebody was refused.
        let shown = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let seen = shown.clone();
        let run = move || {
            let room = Arc::new(Room::default());
            let [others @ .., last] = threads else { return };
            let spawned: Vec<_> = others
                .iter()
                .map(|thread| {
                    let room = room.clone();
                    loom::thread::spawn(move || thread(&room))
                })
                .collect();
            last(&room);
            for thread in spawned {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            assert!(!room.call(), "C-17: a revoked door lets somebody in");
            assert_eq!(room.door.calls(), 0, "C-17: nobody is inside, but somebody is counted");
            for (shown, count) in seen.iter().zip([&room.entered, &room.refused]) {
                // The last refusal is this thread's own.
                let of_itself = u64::from(std::ptr::eq(count, &raw const room.refused));
                shown.fetch_or(count.load(Ordering::SeqCst) > of_itself, Ordering::SeqCst);
            }
        };
        let drops = name.starts_with("drop");
        explorer.explore(&format!("door    {name}"), *reach, run, || {
            let [entered, refused] = &*shown;
            let both = entered.load(Ordering::SeqCst) && refused.load(Ordering::SeqCst);
            (!both && !drops).then(|| "a call that got in and one that was refused".into())
        });
    }
}
