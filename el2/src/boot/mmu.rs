//! The identity map.
//!
//! Two steps. Before the tree is read only the image and the blob are known to be memory: 2 MiB blocks of them, in static
//! tables, are enough to turn caches on, and with them the atomics that locks are made of. Then `aarch64-paging` maps the
//! machine: code read-only, data not executable, memory cached, devices as they are asked for.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::NonNull;

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::idmap::IdTranslation;
use aarch64_paging::paging::{Constraints, El2, MemoryRegion};

use crate::lock::Lock;

/// MAIR_EL2: attribute 0 is device memory (nGnRE), 1 is normal memory (write-back).
const MAIR: u64 = 0xff_04;
/// SCTLR_EL2: MMU, data and instruction caches on; stack alignment checked; RES1.
const SCTLR: u64 = 0x30c5_183d;

const CODE: El23Attributes = MEMORY.union(El23Attributes::READ_ONLY);
const CONSTANTS: El23Attributes = CODE.union(El23Attributes::XN);
const DATA: El23Attributes = MEMORY.union(El23Attributes::XN);
const MEMORY: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::USER_RES1)
    .union(El23Attributes::INNER_SHAREABLE)
    .union(El23Attributes::ATTRIBUTE_INDEX_1);
const DEVICE: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::USER_RES1)
    .union(El23Attributes::ATTRIBUTE_INDEX_0)
    .union(El23Attributes::XN);

/// The map of the whole machine, once it is there. It is never taken down.
static MAP: Lock<Option<Mapping<IdTranslation<El23Attributes>, El2>>> = Lock::new(None);

unsafe extern "C" {
    static _head: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
    fn enable_mmu(ttbr: u64, mair: u64, tcr: u64, sctlr: u64);
}

/// What a CPU programs to share the map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    ttbr: u64,
    mair: u64,
    tcr: u64,
    sctlr: u64,
}

/// Where the image is, heap and stacks included.
pub(crate) fn image() -> Range<usize> {
    (&raw const _head).addr()..(&raw const __image_end).addr()
}

// --- the first map ---

/// Level 0, level 1, and level-2 tables for as many gigabytes as image and blob can lie in.
#[repr(C, align(4096))]
struct EarlyTables(UnsafeCell<[[u64; 512]; 6]>);

// SAFETY: the boot CPU writes them before any other CPU runs; afterwards they are only walked.
unsafe impl Sync for EarlyTables {}

static EARLY: EarlyTables = EarlyTables(UnsafeCell::new([[0; 512]; 6]));

const BLOCK: usize = 2 << 20;
/// A block of normal memory: valid, attribute 1, AP RES1, inner shareable, accessed.
const EARLY_BLOCK: u64 = 0b1 | 1 << 2 | 1 << 6 | 3 << 8 | 1 << 10;
const TABLE: u64 = 0b11;

/// Maps the image and 2 MiB from the blob's block on, where the boot protocol keeps it, and turns MMU and caches on.
///
/// Uses no atomics and no heap: with the MMU off all memory is device memory.
pub(crate) fn enable_early(blob: usize) {
    // SAFETY: the boot CPU is alone, and this is the only reference there ever is.
    let tables = unsafe { &mut *EARLY.0.get() };
    let table_at = |index: usize| (EARLY.0.get().addr() + index * 4096) as u64;
    tables[0][0] = table_at(1) | TABLE;
    let mut used = 2;
    let blob = blob..blob.saturating_add(BLOCK);
    for range in [image(), blob] {
        for block in (range.start & !(BLOCK - 1)..range.end).step_by(BLOCK) {
            let gigabyte = block >> 30 & 0x1ff;
            if tables[1][gigabyte] == 0 {
                tables[1][gigabyte] = table_at(used) | TABLE;
                used += 1;
            }
            let level_2 = (tables[1][gigabyte] & !0xfff).wrapping_sub(table_at(0)) as usize / 4096;
            tables[level_2][block >> 21 & 0x1ff] = block as u64 | EARLY_BLOCK;
        }
    }
    // SAFETY: the tables map code, data, stack and blob one to one, and stay; nothing is cached yet that could be stale.
    unsafe {
        asm!("dsb sy", options(nostack, preserves_flags));
        enable_mmu(table_at(0), MAIR, tcr(), SCTLR);
    }
}

/// TCR_EL2: 48 bits of addresses, 4 KiB granule, walks cached and inner shareable, outputs as large as the CPU's.
fn tcr() -> u64 {
    let physical = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
    1 << 31 | 1 << 23 | physical << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 16
}

// --- the map of the machine ---

/// Maps `memory` as the tree lists it, without what it wants unmapped, and switches to that map.
///
/// # Panics
///
/// Where the tables cannot be made: nothing can go on then.
pub(crate) fn enable(memory: &[Range<usize>]) {
    let mut map = Mapping::new(IdTranslation::new(), 0, El2);
    let mut add = |range: Range<usize>, attributes| {
        if !range.is_empty() {
            let region = MemoryRegion::new(range.start, range.end);
            map.map_range(&region, PhysicalAddress(range.start), attributes, Constraints::empty())
                .expect("memory is mapped once");
        }
    };
    let image = image();
    let constants = (&raw const __rodata_start).addr();
    let data = (&raw const __data_start).addr();
    for range in memory {
        add(range.start..range.end.min(image.start).max(range.start), DATA);
        add(range.start.max(image.end).min(range.end)..range.end, DATA);
    }
    add(image.start..constants, CODE);
    add(constants..data, CONSTANTS);
    add(data..image.end, DATA);
    // From here on changes are made as to a live map.
    map.mark_active();
    // SAFETY: everything in use is mapped as it was, but for what must not be written or executed and is not. The
    // tables are never freed.
    unsafe {
        asm!("dsb sy", options(nostack, preserves_flags));
        enable_mmu(map.root_address().0 as u64, MAIR, tcr(), SCTLR);
    }
    *MAP.lock() = Some(map);
}

/// What a secondary CPU programs.
pub(crate) fn registers() -> Option<Registers> {
    let map = MAP.lock();
    let ttbr = map.as_ref()?.root_address().0 as u64;
    Some(Registers { ttbr, mair: MAIR, tcr: tcr(), sctlr: SCTLR })
}

/// Maps a device's registers and says where they are: where they were. Mapping them twice is legal.
pub(crate) fn map_device(base: u64, size: u64) -> Option<NonNull<u8>> {
    let (start, end) = (usize::try_from(base).ok()?, usize::try_from(base.checked_add(size)?).ok()?);
    let mut map = MAP.lock();
    map.as_mut()?
        .map_range(&MemoryRegion::new(start, end), PhysicalAddress(start & !0xfff), DEVICE, Constraints::empty())
        .ok()?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(start))
}

/// Writes the cache lines of `range` back to where masters that do not snoop read them.
pub(crate) fn clean(range: Range<usize>) {
    each_line(range, |line| {
        // SAFETY: a clean changes no memory as programs see it.
        unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
    });
}

/// Writes back and drops the cache lines of `range`, so that what such masters write is read.
pub(crate) fn clean_and_invalidate(range: Range<usize>) {
    each_line(range, |line| {
        // SAFETY: as for a clean; a line that is dropped was written back.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
    });
}

fn each_line(range: Range<usize>, act: impl Fn(usize)) {
    let kind: usize;
    // SAFETY: reads CTR_EL0.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) kind, options(nomem, nostack, preserves_flags)) };
    let line = 4 << (kind >> 16 & 0xf);
    (range.start & !(line - 1)..range.end).step_by(line).for_each(act);
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}
