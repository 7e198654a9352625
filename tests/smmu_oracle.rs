//! The isolation oracle is shown to fail: on a driver with two writes swapped, a write missing, an invalidation missing, a
//! sync missing. The driver is the real one; registers in between swap and drop what it writes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Bench, PAGE, SMMU, described};
use iommu_assign::smmu::{Registers, Setup, Smmu, SmmuConfig};
use machine::ModelRegisters;
use smmu_model::{Config, SyncDelay};

/// What is done to the driver's writes. A register is named by its offset.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing: the oracle must be content.
    None,
    /// A write of the first is held back until the next write of the second has been made.
    Swap(u32, u32),
    /// Writes are lost.
    Drop(u32),
    /// Writes that look so are lost.
    DropIf(u32, fn(u64) -> bool),
    /// Writes after the first are lost.
    DropLater(u32),
    /// The status reads as complete at once, and the sync is never started.
    NoSync,
}

/// What is wrong, and the write that is held back.
type State = (Fault, Option<(u32, u64)>);

#[derive(Debug)]
struct Faulty {
    registers: ModelRegisters,
    /// Set once the unit is enabled: what is shown is a driver at work.
    state: Arc<Mutex<State>>,
    first_seen: AtomicBool,
}

const STLBGSYNC: u32 = 0x70;
const STLBGSTATUS: u32 = 0x74;

impl Faulty {
    fn write(&self, offset: u32, value: u64, wide: bool) {
        let through = |offset, value: u64, wide| {
            if wide {
                self.registers.write64(offset, value);
            } else {
                self.registers.write32(offset, value as u32);
            }
        };
        let (fault, held) = *self.state.lock().unwrap();
        match fault {
            Fault::Drop(at) if at == offset => return,
            Fault::DropIf(at, looks_so) if at == offset && looks_so(value) => return,
            Fault::DropLater(at) if at == offset && self.first_seen.swap(true, Ordering::SeqCst) => return,
            Fault::NoSync if offset == STLBGSYNC => return,
            Fault::Swap(first, _) if first == offset && held.is_none() => {
                self.state.lock().unwrap().1 = Some((offset, value));
                return;
            }
            _ => {}
        }
        through(offset, value, wide);
        if let (Fault::Swap(_, second), Some((first, late))) = (fault, held)
            && second == offset
        {
            self.state.lock().unwrap().1 = None;
            through(first, late, false);
        }
    }
}

impl Registers for Faulty {
    fn read32(&self, offset: u32) -> u32 {
        if offset == STLBGSTATUS && matches!(self.state.lock().unwrap().0, Fault::NoSync) {
            return 0;
        }
        self.registers.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, value.into(), false);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.registers.read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, value, true);
    }
}

/// A life of two devices and two guests on faulty registers. Returns what the oracle saw.
fn violations(model: &Config, fault: Fault) -> Vec<String> {
    let state = Arc::new(Mutex::new((Fault::None, None)));
    let mut bench = Bench::new();
    let config: SmmuConfig = described(SMMU, model);
    let shared = state.clone();
    let smmu: Arc<Smmu<_, Faulty>> = bench.smmu_through(config, Setup::default(), model.clone(), |registers| Faulty {
        registers,
        state: shared,
        first_seen: AtomicBool::new(false),
    });
    state.lock().unwrap().0 = fault;
    // What a wrong driver leaves may make later operations fail: only the oracle's word counts.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        if model.extended_ids {
            bench.add("zero", &[(0, 0)]);
        }
        let (dma, usb) = (bench.add("dma", &[(0x10, 0)]), bench.add("usb", &[(0x20, 0)]));
        let _ = bench.assign(&dma, &one);
        let _ = bench.assign(&usb, &one);
        let _ = bench.dma(0x10);
        let _ = bench.dma(0x20);
        let _ = bench.reassign(&dma, &two);
        let _ = bench.dma(0x10);
        let _ = bench.deassign(&usb);
        let _ = bench.dma(0x20);
        let _ = bench.assign(&usb, &two);
        let _ = bench.deassign(&dma);
        let _ = bench.deassign(&usb);
        // A bank and its VMID have a third owner now.
        let third = bench.guest("third");
        let _ = bench.assign(&usb, &third);
        let _ = bench.dma(0x20);
        bench.oracle.look_now(&bench.machine, SMMU, PAGE);
        // And a fourth, with no other operation's sync in between.
        let _ = bench.deassign(&usb);
        let _ = bench.assign(&usb, &one);
        bench.oracle.look_now(&bench.machine, SMMU, PAGE);
        let _ = bench.remove(&dma);
        let _ = bench.remove(&usb);
        bench.oracle.look_now(&bench.machine, SMMU, PAGE);
    }));
    drop(smmu);
    let (_, violations) = bench.oracle.verdict();
    // The bench asserts that there are none when it is dropped.
    std::mem::forget(bench);
    violations
}

fn model() -> Config {
    Config { sync_delay: SyncDelay::Polls(2), ..Config::generic_v2() }
}

/// The offset of bank 0 on the generic part: 16 pages of 64 KiB lie below.
const CB0: u32 = 0x10_0000;

#[test]
fn the_true_driver_passes() {
    assert_eq!(violations(&model(), Fault::None), [""; 0]);
    assert_eq!(violations(&Config::extended(), Fault::None), [""; 0]);
}

#[test]
fn two_writes_swapped_are_seen() {
    for (what, model, first, second) in [
        ("the S2CR turns before the bank is on", model(), CB0, 0xc00),
        ("the bank is off before its entry faults", model(), 0xc00, CB0),
        ("the sync is started before the invalidation", model(), 0x64, STLBGSYNC),
        ("the invalidation comes after the bank has changed hands", model(), 0x64, CB0 + 0x20),
        ("with extended IDs the entry is valid before its SMR is its own", Config::extended(), 0x804, 0xc04),
    ] {
        let seen = violations(&model, Fault::Swap(first, second));
        assert!(!seen.is_empty(), "{what}: nothing was seen");
        println!("{what}: {}", seen[0]);
    }
}

#[test]
fn a_missing_write_is_seen() {
    for (what, fault) in [
        ("TLBIVMID", Fault::Drop(0x64)),
        ("sTLBGSYNC, so that a status that was never active reads as complete", Fault::Drop(STLBGSYNC)),
        ("SCTLR.M = 1", Fault::DropIf(CB0, |value| value & 1 == 1)),
        ("the fault of the first entry", Fault::DropIf(0xc00, |value| value >> 16 & 3 == 2)),
        ("the second owner's TTBR0", Fault::DropLater(CB0 + 0x20)),
    ] {
        let seen = violations(&model(), fault);
        assert!(!seen.is_empty(), "{what}: nothing was seen");
        println!("{what}: {}", seen[0]);
    }
}

#[test]
fn a_missing_sync_is_seen() {
    assert!(!violations(&model(), Fault::NoSync).is_empty());
}
