//! How much stack and heap each operation takes, measured before the other CPUs join in.
//!
//! Stack: what is below the caller is painted, and looked at afterwards. What a modelled SMMU uses when a register is accessed
//! is not the library's: it is left out ([`foreign`]).

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iommu_assign::assign::FaultLine;

use super::world::World;
use crate::boot::heap;
use crate::iommu::guests::Guest;

const PAINT: u64 = 0x5ac5_5ac5_5ac5_5ac5;
/// How much is painted. Nothing measured comes near.
const DEPTH: usize = 24 << 10;
/// What the painter itself, and what it calls, uses.
const OWN: usize = 512;

static MEASURING: AtomicBool = AtomicBool::new(false);
/// The lowest address that was used, where a register access has hidden it since.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Where the paint ends.
static BOTTOM: AtomicUsize = AtomicUsize::new(0);

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
        // SAFETY: this CPU's own stack, which is large enough, below everything that is in use; interrupts are masked.
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

/// Runs what is not the library's: the stack that it uses is not counted.
pub(crate) fn foreign<T>(act: impl FnOnce() -> T) -> T {
    if !MEASURING.load(Ordering::Relaxed) {
        return act();
    }
    let (bottom, top) = (BOTTOM.load(Ordering::Relaxed), (pointer() - OWN) & !15);
    LOWEST.fetch_min(lowest(bottom, top), Ordering::Relaxed);
    let done = act();
    paint(bottom, top);
    done
}

/// Runs `act` and says how many bytes of stack below this call, and of heap, it took.
#[inline(never)]
fn measured<T>(act: impl FnOnce() -> T) -> (T, usize, isize) {
    let start = pointer() - OWN & !15;
    let bottom = start - DEPTH;
    paint(bottom, start);
    LOWEST.store(usize::MAX, Ordering::Relaxed);
    BOTTOM.store(bottom, Ordering::Relaxed);
    MEASURING.store(true, Ordering::Relaxed);
    let before = heap::used();
    let done = act();
    let heap = heap::used() as isize - before as isize;
    MEASURING.store(false, Ordering::Relaxed);
    let deepest = lowest(bottom, start).min(LOWEST.load(Ordering::Relaxed));
    (done, start + OWN - deepest, heap)
}

/// Says what each operation takes, of a device with one stream.
pub(crate) fn measure(world: &World) {
    let Some(master) = world.groups.iter().find_map(|group| match group.as_slice() {
        [master] if master.has_engine() => Some(master),
        _ => None,
    }) else {
        return;
    };
    let (service, one, two) = (&world.service, &world.guests[0], &world.guests[1]);
    let say = |what: &str, stack: usize, heap: isize| crate::say!("stack {what}: {stack} bytes; heap {heap:+}");
    let Some(info) = service.find(master.key()) else { return };
    let (_, stack, heap) = measured(|| service.remove(master.key()).is_ok());
    drop(info);
    say("remove", stack, heap);
    let spec = master.spec.clone();
    let (device, stack, heap) = measured(|| service.add(spec).ok());
    say("add", stack, heap);
    let Some(device) = device else { return };
    for turn in ["assign", "assign again"] {
        let (_, stack, heap) = measured(|| service.assign(&device, &one.domain).is_ok());
        say(turn, stack, heap);
        let (_, stack, heap) = measured(|| service.reassign(&device, &two.domain).is_ok());
        say("reassign", stack, heap);
        let (_, stack, heap) = measured(|| service.flush(&two.domain).is_ok());
        say("flush", stack, heap);
        let (_, stack, heap) = measured(|| service.in_interrupts().flush_range(&two.domain, &Guest::range(0)).is_ok());
        say("flush in interrupts", stack, heap);
        let (_, stack, heap) = measured(|| service.deassign(&device).is_ok());
        say("deassign", stack, heap);
    }
    for unit in &world.units {
        master.stray();
        let (_, stack, heap) = measured(|| unit.take_faults(FaultLine::Global));
        say("faults in interrupts", stack, heap);
    }
}
