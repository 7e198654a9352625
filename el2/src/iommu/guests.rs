//! Guests, as far as DMA sees them: stage-2 tables and the memory behind them.
//!
//! The tables are `aarch64-paging`'s, in real memory. What changes in them is cleaned to where a walker that does not snoop
//! reads it, and written to the same address of the memory that modelled SMMUs walk.

use alloc::format;
use alloc::string::String;
use core::alloc::Layout;

use ::scenario::{Guest as _, PAGE, PAGES};
use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{PhysicalAddress as TableAddress, Stage2Attributes};
use aarch64_paging::idmap::IdTranslation;
use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2 as Stage2Regime};
use iommu_assign::assign::{Granule, Label, PhysicalAddress, Stage2, TableMemory};

use super::modelled::SharedMemory;
use super::platform::{Domain, Hypervisor, Service};
use crate::boot::mmu;
use crate::lock::Lock;
use crate::scenario::measure::measured;

/// Where a guest sees its memory.
const MEMORY: u64 = 0x8000_0000;
/// Bits of a guest's addresses: tables of level 1 to 3, one at level 1.
const IPA_BITS: u8 = 39;

const READ_WRITE: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::ACCESS_FLAG)
    .union(Stage2Attributes::SH_INNER)
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB);

/// A guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Its domain.
    pub(crate) domain: Domain,
    tables: Lock<Tables>,
    /// Where its memory is.
    memory: u64,
    modelled: SharedMemory,
}

struct Tables(Mapping<IdTranslation<Stage2Attributes>, Stage2Regime>);

impl core::fmt::Debug for Tables {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Tables")
    }
}

/// How the service is told of tables with this root.
pub(crate) fn stage2(root: PhysicalAddress) -> Stage2 {
    Stage2 {
        root,
        ipa_bits: IPA_BITS,
        start_level: 1,
        granule: Granule::Kib4,
        output_bits: 40,
        tables: TableMemory::NonCacheable,
    }
}

impl Guest {
    /// A guest with memory of its own, all of it mapped.
    ///
    /// # Errors
    ///
    /// What the service says, or that there is no memory.
    pub(crate) fn create(service: &Service, name: &str, modelled: &SharedMemory) -> Result<Self, String> {
        let layout =
            Layout::from_size_align((PAGES * PAGE) as usize, PAGE as usize).map_err(|error| format!("{error}"))?;
        // SAFETY: the layout has a size. The memory is the guest's for ever, and reached by address only.
        let memory = unsafe { alloc::alloc::alloc_zeroed(layout) }.addr() as u64;
        if memory == 0 {
            return Err("no memory for a guest".into());
        }
        let mut map = Mapping::new(IdTranslation::new(), 1, Stage2Regime);
        let whole = MemoryRegion::new(MEMORY as usize, (MEMORY + PAGES * PAGE) as usize);
        map.map_range(&whole, TableAddress(memory as usize), READ_WRITE, Constraints::NO_BLOCK_MAPPINGS)
            .map_err(|error| format!("{error}"))?;
        let root = PhysicalAddress::new(map.root_address().0 as u64);
        let tables = Tables(map);
        (0..PAGES).for_each(|page| tables.publish(MEMORY + page * PAGE, modelled));
        let (domain, cost) = measured(|| service.create_domain(Label::from(name), stage2(root)));
        let domain = domain.map_err(|error| format!("{error}"))?;
        crate::say!("heap of {name}: {} bytes", cost.heap);
        Ok(Self { domain, tables: Lock::new(tables), memory, modelled: modelled.clone() })
    }

    fn set(&self, page: u64, attributes: Stage2Attributes) {
        let at = Self::address(page);
        let region = MemoryRegion::new(at as usize, (at + PAGE) as usize);
        let mut tables = self.tables.lock();
        let physical = TableAddress(self.physical(page) as usize);
        // The tables of the level above are there since the guest was made: nothing is allocated, nothing can fail.
        let done = tables.0.map_range(&region, physical, attributes, Constraints::NO_BLOCK_MAPPINGS);
        if let Err(error) = done {
            crate::violation!("a page of {} cannot be changed: {error}", self.domain.label());
        }
        tables.publish(at, &self.modelled);
    }

    /// A page's bytes as a master that does not snoop leaves them.
    pub(crate) fn read(&self, page: u64, bytes: &mut [u8]) {
        let at = self.physical(page) as usize;
        mmu::clean_and_invalidate(at..at + bytes.len());
        let from = core::ptr::with_exposed_provenance::<u8>(at);
        for (index, byte) in bytes.iter_mut().enumerate().take(PAGE as usize) {
            // SAFETY: the page is the guest's own memory, as long as a page. A device may write it: read byte by byte.
            *byte = unsafe { from.add(index).read_volatile() };
        }
    }

    /// Writes bytes for a master that does not snoop.
    pub(crate) fn write(&self, page: u64, bytes: &[u8]) {
        let at = self.physical(page) as usize;
        let to = core::ptr::with_exposed_provenance_mut::<u8>(at);
        for (index, byte) in bytes.iter().enumerate().take(PAGE as usize) {
            // SAFETY: as above.
            unsafe { to.add(index).write_volatile(*byte) };
        }
        mmu::clean_and_invalidate(at..at + bytes.len());
    }
}

impl ::scenario::Guest for Guest {
    type Platform = Hypervisor;
    const MEMORY: u64 = MEMORY;

    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn memory(&self) -> u64 {
        self.memory
    }

    fn unmap(&self, page: u64) {
        self.set(page, Stage2Attributes::empty());
    }

    fn map(&self, page: u64) {
        self.set(page, READ_WRITE);
    }
}

impl Tables {
    /// Makes the entries that lead to `address` visible to walkers.
    fn publish(&self, address: u64, modelled: &SharedMemory) {
        let mut table = self.0.root_address().0;
        for shift in [30, 21, 12] {
            let entry = table + ((address >> shift & 0x1ff) * 8) as usize;
            // SAFETY: the tables are this guest's, one to one mapped and kept for ever; an entry is one aligned word.
            let value = unsafe { core::ptr::with_exposed_provenance::<u64>(entry).read_volatile() };
            mmu::clean(entry..entry + 8);
            let mut memory = modelled.lock();
            memory.write_u64(entry as u64, value);
            memory.publish(entry as u64..entry as u64 + 8);
            if shift == 12 || value & 0b11 != 0b11 {
                return;
            }
            table = (value & 0xffff_ffff_f000) as usize;
        }
    }
}
