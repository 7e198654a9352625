//! What each operation takes: stack, heap, instructions, and how long it keeps interrupts masked. Measured on one CPU, before the
//! others join in.
//!
//! Stack: what is below the caller is painted, and looked at afterwards. Instructions: under an emulator whose clock is the
//! number of instructions (`cargo xtask el2 --size`), to the 16 that a tick of its counter is; elsewhere the numbers mean nothing
//! and are not printed. What a modelled SMMU does when a register is accessed, and a device's DMA in hooks, is not the library's
//! and is left out ([`foreign`]).

use core::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, AtomicUsize, Ordering};

use ::scenario::Guest as _;
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use iommu_assign::assign::FaultLine;

use super::world::World;
use crate::boot::heap;
use crate::iommu::guests::Guest;

const PAINT: u64 = 0x5ac5_5ac5_5ac5_5ac5;
/// How much is painted. Nothing measured comes near.
const DEPTH: usize = 24 << 10;
/// What the painter itself uses, a leaf without a frame worth the name: results are too large by so much at most.
const OWN: usize = 96;
/// Instructions to a tick of a counter of 62.5 MHz, where an instruction takes a nanosecond.
const INSTRUCTIONS: u64 = 16;

static MEASURING: AtomicBool = AtomicBool::new(false);
/// The lowest address that was used, where a register access has hidden it since.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Where the paint ends.
static BOTTOM: AtomicUsize = AtomicUsize::new(0);
/// Ticks that were not the library's.
static FOREIGN: AtomicU64 = AtomicU64::new(0);
/// Bytes of heap that are not the library's.
static FOREIGN_HEAP: AtomicIsize = AtomicIsize::new(0);
/// Register accesses.
static ACCESSES: AtomicU64 = AtomicU64::new(0);
/// When interrupts were masked last, and the register accesses until then.
static MASKED_AT: AtomicU64 = AtomicU64::new(0);
static ACCESSES_THEN: AtomicU64 = AtomicU64::new(0);
/// The longest stretch, in ticks; the most register accesses in one.
static LONGEST: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);

/// What something took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    stack: usize,
    /// Bytes that it keeps.
    pub(crate) heap: isize,
    accesses: u64,
    instructions: u64,
    masked_accesses: u64,
    masked_instructions: u64,
}

/// The stack pointer.
fn pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, sp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// Paints from `bottom` to `top`, which is well below the stack pointer.
#[inline(never)]
fn paint(bottom: usize, top: usize) {
    for at in (bottom..top).step_by(8) {
        // SAFETY: this CPU's own stack, which is large enough, below everything that is in use; no interrupt is enabled yet.
        unsafe { core::ptr::with_exposed_provenance_mut::<u64>(at).write_volatile(PAINT) };
    }
}

/// The lowest word from `bottom` on that is not paint.
#[inline(never)]
fn lowest(bottom: usize, top: usize) -> usize {
    let is_paint = |at: &usize| {
        // SAFETY: as above, read only.
        unsafe { core::ptr::with_exposed_provenance::<u64>(*at).read_volatile() == PAINT }
    };
    (bottom..top).step_by(8).find(|at| !is_paint(at)).unwrap_or(top)
}

/// Ticks that were the library's.
fn ticks() -> u64 {
    CNTPCT_EL0.get().wrapping_sub(FOREIGN.load(Ordering::Relaxed))
}

/// Carries out a register access of the library's, by what is not the library.
pub(crate) fn access<T>(act: impl FnOnce() -> T) -> T {
    ACCESSES.fetch_add(1, Ordering::Relaxed);
    foreign(act)
}

/// Runs what is not the library's: its stack and its time are not counted.
pub(crate) fn foreign<T>(act: impl FnOnce() -> T) -> T {
    if !MEASURING.load(Ordering::Relaxed) {
        return act();
    }
    let start = CNTPCT_EL0.get();
    let (bottom, top) = (BOTTOM.load(Ordering::Relaxed), (pointer() - OWN) & !15);
    LOWEST.fetch_min(lowest(bottom, top), Ordering::Relaxed);
    let heap = heap::used() as isize;
    let done = act();
    FOREIGN_HEAP.fetch_add(heap::used() as isize - heap, Ordering::Relaxed);
    paint(bottom, top);
    FOREIGN.fetch_add(CNTPCT_EL0.get().wrapping_sub(start), Ordering::Relaxed);
    done
}

/// Interrupts have just been masked.
pub(crate) fn masked() {
    if MEASURING.load(Ordering::Relaxed) {
        MASKED_AT.store(ticks(), Ordering::Relaxed);
        ACCESSES_THEN.store(ACCESSES.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Interrupts are about to be unmasked.
pub(crate) fn unmasked() {
    if MEASURING.load(Ordering::Relaxed) {
        LONGEST.fetch_max(ticks().saturating_sub(MASKED_AT.load(Ordering::Relaxed)), Ordering::Relaxed);
        let accesses = ACCESSES.load(Ordering::Relaxed) - ACCESSES_THEN.load(Ordering::Relaxed);
        MOST.fetch_max(accesses, Ordering::Relaxed);
    }
}

/// Runs `act` and says what it took.
#[inline(never)]
pub(crate) fn measured<T>(act: impl FnOnce() -> T) -> (T, Cost) {
    let start = (pointer() - OWN) & !15;
    let bottom = start - DEPTH;
    paint(bottom, start);
    LOWEST.store(usize::MAX, Ordering::Relaxed);
    BOTTOM.store(bottom, Ordering::Relaxed);
    for counter in [&FOREIGN, &ACCESSES, &LONGEST, &MOST] {
        counter.store(0, Ordering::Relaxed);
    }
    FOREIGN_HEAP.store(0, Ordering::Relaxed);
    let heap = heap::used() as isize;
    MEASURING.store(true, Ordering::Relaxed);
    let begin = ticks();
    let done = act();
    let end = ticks();
    MEASURING.store(false, Ordering::Relaxed);
    let cost = Cost {
        stack: start + OWN - lowest(bottom, start).min(LOWEST.load(Ordering::Relaxed)),
        heap: heap::used() as isize - heap - FOREIGN_HEAP.load(Ordering::Relaxed),
        accesses: ACCESSES.load(Ordering::Relaxed),
        instructions: end.saturating_sub(begin) * INSTRUCTIONS,
        masked_accesses: MOST.load(Ordering::Relaxed),
        masked_instructions: LONGEST.load(Ordering::Relaxed) * INSTRUCTIONS,
    };
    (done, cost)
}

/// Says what each operation takes, of a device with one stream at a modelled SMMU.
pub(crate) fn measure(world: &World, counts_instructions: bool) {
    let Some(master) = world.groups.iter().find_map(|group| match group.as_slice() {
        [master] if master.has_engine() => Some(master),
        _ => None,
    }) else {
        return;
    };
    let say = |what: &str, cost: Cost| {
        let Cost { stack, heap, accesses, instructions, masked_accesses, masked_instructions } = cost;
        if counts_instructions {
            crate::say!(
                "cost {what}: stack {stack}, heap {heap}, accesses {accesses}, instructions {instructions}, masked accesses \
                 {masked_accesses}, masked instructions {masked_instructions}"
            );
        } else {
            crate::say!(
                "cost {what}: stack {stack}, heap {heap}, accesses {accesses}, masked accesses {masked_accesses}"
            );
        }
    };
    let (service, one, two) = (&world.service, &world.guests[0], &world.guests[1]);
    say("remove", measured(|| service.remove(master.key()).is_ok()).1);
    let spec = master.spec.clone();
    let (device, cost) = measured(|| service.add(spec).ok());
    say("add", cost);
    let Some(device) = device else { return };
    say("assign", measured(|| service.assign(&device, &one.domain).is_ok()).1);
    say("reassign", measured(|| service.reassign(&device, &two.domain).is_ok()).1);
    say("flush", measured(|| service.flush(&two.domain).is_ok()).1);
    let range = Guest::range(0);
    say("flush-in-interrupts", measured(|| service.in_interrupts().flush_range(&two.domain, &range).is_ok()).1);
    say("deassign", measured(|| service.deassign(&device).is_ok()).1);
    if let Some(unit) = world.units.iter().find(|unit| master.spec.streams.iter().any(|at| at.iommu() == unit.key)) {
        master.stray();
        say("faults-in-interrupts", measured(|| unit.take_faults(FaultLine::Global)).1);
    }
}
