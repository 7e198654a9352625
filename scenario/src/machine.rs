//! What the scenario is played on.

use alloc::vec::Vec;

use iommu_assign::assign::{Changed, DeviceSpec, Domain, Error, FlushRange, RawFault, Service, Storm};
use iommu_assign::sync::{InterruptSafe, Micros, Platform, Waiter};

use super::score::Score;

/// A machine: its parts as types, and what one of its CPUs can do.
pub trait Machine: Sized {
    /// The hypervisor under the library. It has a clock.
    type Platform: InterruptSafe + Waiter<Deadline = Micros>;
    /// A guest.
    type Guest: Guest<Platform = Self::Platform>;
    /// What does a device's DMA.
    type Engine: Engine<Guest = Self::Guest>;
    /// An SMMU.
    type Unit: Unit<Platform = Self::Platform>;

    /// What is counted on this machine.
    fn score(&self) -> &Score;

    /// The number of the CPU that calls, from 0.
    fn cpu(&self) -> usize;

    /// Has the timer interrupt the CPU that calls once, after `span`. The handler is [`World::tick`](super::World::tick).
    fn interrupt_after(&self, span: Micros);

    /// Turns the timer of the CPU that calls off.
    fn stop_timer(&self);

    /// Lets `span` pass. Interrupts are taken meanwhile.
    fn pass(&self, span: Micros);
}

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Pages of a guest's memory.
pub const PAGES: u64 = 64;

/// A guest, as far as DMA sees it: stage-2 tables and [`PAGES`] of memory behind them.
pub trait Guest {
    /// The hypervisor under the library.
    type Platform: Platform;
    /// Where a guest sees its memory.
    const MEMORY: u64;

    /// Its domain.
    fn domain(&self) -> &Domain<Self::Platform>;

    /// Where its memory is.
    fn memory(&self) -> u64;

    /// Takes a page out of the tables.
    fn unmap(&self, page: u64);

    /// Puts a page back into the tables. IOMMUs keep nothing of an entry that was invalid: no flush.
    fn map(&self, page: u64);

    /// Has the IOMMUs forget a page that was taken out of the tables.
    ///
    /// # Errors
    ///
    /// What the service says.
    fn flush(&self, service: &Service<Self::Platform>, page: u64) -> Result<(), Error> {
        service.flush_range(self.domain(), &Self::range(page))
    }

    /// Where the guest sees a page. Pages come round again after the last one.
    #[must_use]
    fn address(page: u64) -> u64 {
        Self::MEMORY.wrapping_add(offset(page))
    }

    /// Where a page is.
    fn physical(&self, page: u64) -> u64 {
        self.memory().wrapping_add(offset(page))
    }

    /// What is flushed when a page was unmapped.
    #[must_use]
    fn range(page: u64) -> FlushRange {
        FlushRange { start: Self::address(page), size: PAGE, leaf: PAGE, changed: Changed::Leaf }
    }
}

const fn offset(page: u64) -> u64 {
    (page % PAGES).wrapping_mul(PAGE)
}

/// What does a device's DMA.
pub trait Engine {
    /// Whose memory it reaches.
    type Guest: Guest;

    /// Whether it does any.
    fn is_there(&self) -> bool;

    /// One access of each stream to a guest's page, for the faults that it raises: the result is not looked at.
    fn stray(&self, spec: &DeviceSpec);

    /// Has the device access the page `page` of whatever guest it has, and compares what that came to: the page of `owner`, or
    /// nothing where it has none. Returns the number of accesses that were compared.
    fn check(&self, spec: &DeviceSpec, owner: Option<&Self::Guest>, guests: &[Self::Guest], page: u64) -> u64;
}

/// An SMMU in service.
pub trait Unit {
    /// The hypervisor under the library.
    type Platform: Platform;

    /// Takes in what faulted on any line, in another interrupt's handler.
    fn look(&self);

    /// The worker's part of fault handling: ends storms, then unmasks what handlers masked.
    fn tend(&self, service: &Service<Self::Platform>, sink: &mut dyn FnMut(&Storm));

    /// The last faults that were taken in, oldest first.
    fn recent(&self) -> Vec<RawFault>;

    /// At the end: counts as violations what was seen of it and told nobody.
    fn judge(&self, score: &Score);
}
