//! Registers at which a test stops one thread, to see what others do meanwhile.
//!
//! What was seen is judged when all threads have gone on: a test that fails while one is stopped would hang instead.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use iommu_assign::smmu::Registers;
use machine::ModelRegisters;

/// Registers at which one access stops until it is let go on.
#[derive(Debug)]
pub(crate) struct Held {
    registers: ModelRegisters,
    stop: Arc<Stop>,
}

/// The next read of `offset` meets the test at the barrier, and again to go on.
#[derive(Debug)]
pub(crate) struct Stop {
    offset: AtomicU32,
    /// Reads of it that go by before.
    passes: AtomicU32,
    barrier: Barrier,
}

const NOWHERE: u32 = u32::MAX;
/// The status of the global sync.
pub(crate) const STLBGSTATUS: u32 = 0x74;

impl Held {
    pub(crate) const fn new(registers: ModelRegisters, stop: Arc<Stop>) -> Self {
        Self { registers, stop }
    }
}

impl Stop {
    pub(crate) fn nowhere() -> Arc<Self> {
        Arc::new(Self { offset: AtomicU32::new(NOWHERE), passes: AtomicU32::new(0), barrier: Barrier::new(2) })
    }

    /// Has the next read of `offset` stop.
    pub(crate) fn at(&self, offset: u32) {
        self.offset.store(offset, Ordering::SeqCst);
    }

    /// Has a later read of `offset` stop, when `passes` have gone by.
    pub(crate) fn after(&self, passes: u32, offset: u32) {
        self.passes.store(passes, Ordering::SeqCst);
        self.at(offset);
    }

    /// Meets the thread that has stopped, or lets it go on.
    pub(crate) fn meet(&self) {
        self.barrier.wait();
    }
}

impl Registers for Held {
    fn read32(&self, offset: u32) -> u32 {
        let stop = &self.stop;
        let passes = |left: u32| left.checked_sub(1).filter(|_| stop.offset.load(Ordering::SeqCst) == offset);
        let passes = stop.passes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, passes).is_ok();
        let stops = || stop.offset.compare_exchange(offset, NOWHERE, Ordering::SeqCst, Ordering::SeqCst);
        if !passes && stops().is_ok() {
            self.stop.meet();
            self.stop.meet();
        }
        self.registers.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.registers.write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.registers.read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.registers.write64(offset, value);
    }
}
