//! From the loader into Rust, and what is left to do when nothing can go on.
//!
//! | file | what |
//! |---|---|
//! | `entry.s` | Image header, EL3 to EL2, relocation, stacks, exception vectors |
//! | `mmu.rs` | the identity map: first a static one of image and device tree, then one of the whole machine |
//! | `heap.rs` | the global allocator |

pub(crate) mod heap;
pub(crate) mod mmu;

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::panic::PanicInfo;

use crate::machine::{console, cpus, interrupts, power};

/// CPUs that the image has stacks for.
pub(crate) const MAX_CPUS: usize = 8;

/// Bytes of each CPU's stack. Interrupts run on it too.
pub(crate) const STACK: usize = 0x1_0000;

/// The stacks, the boot CPU's first.
#[repr(C, align(16))]
pub(crate) struct Stacks(UnsafeCell<[[u8; STACK]; MAX_CPUS]>);

// SAFETY: each CPU has a stack of its own, which is reached by its stack pointer only.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_CPUS]));

/// The top of a CPU's stack.
pub(crate) fn stack_top(cpu: usize) -> u64 {
    STACKS.0.get().addr().saturating_add((cpu + 1) * STACK) as u64
}

global_asm!(
    include_str!("entry.s"),
    stacks = sym STACKS,
    stack_size = const STACK,
    main = sym main,
    secondary_main = sym cpus::secondary_main,
    interrupt = sym interrupts::taken,
    fatal = sym fatal,
);

/// The boot CPU: MMU and caches are off, so that nothing may use atomics before [`mmu::enable_early`].
extern "C" fn main(blob: usize) -> ! {
    mmu::enable_early(blob);
    heap::init();
    crate::run(blob)
}

/// An exception that is no interrupt: nothing here causes one on purpose.
extern "C" fn fatal(vector: u64, syndrome: u64, address: u64, fault_address: u64) -> ! {
    console::seize();
    log::error!(
        "exception {vector}: ESR {syndrome:#x}, ELR {address:#x} (image + {:#x}), FAR {fault_address:#x}",
        address.wrapping_sub(mmu::image().start as u64)
    );
    power::end(1)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::seize();
    log::error!("{info}");
    power::end(1)
}
