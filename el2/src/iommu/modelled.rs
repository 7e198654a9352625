//! A modelled SMMU behind the library's `Registers`, with its interrupts on the machine's own controller.
//!
//! The model is as the hardware is: its lines are levels. Whenever one may have changed its interrupt is made pending, as the
//! line would, for as long as it is up.
//!
//! # Locking
//!
//! An SMMU's lock, then the memory's. Both mask interrupts, for handlers access registers too.

use core::fmt;

use alloc::sync::Arc;

use iommu_assign::assign::StreamId;
use iommu_assign::smmu::Registers;
use smmu_model::{Config, Memory, Outcome, Smmu, Transaction};

use crate::lock::Lock;
use crate::machine::gic;
use crate::scenario::measure::{access, foreign};

/// The memory that all modelled SMMUs walk, and into which their masters write: what guests' tables hold is copied to the same
/// addresses in it.
pub(crate) type SharedMemory = Arc<Lock<Memory>>;

/// One modelled SMMU.
pub(crate) struct Modelled {
    smmu: Lock<Smmu>,
    memory: SharedMemory,
    global: u32,
    context: u32,
}

/// What a master's access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// This physical address, through tables.
    Memory(u64),
    /// This physical address, untranslated: nothing stood in its way.
    Untranslated(u64),
    /// Nothing.
    Fault,
}

impl Modelled {
    /// A part whose faults raise these interrupts.
    pub(crate) fn new(config: Config, memory: SharedMemory, global: u32, context: u32) -> Self {
        Self { smmu: Lock::new(Smmu::new(config)), memory, global, context }
    }

    /// One write of a word by a master.
    pub(crate) fn dma(&self, stream: StreamId, address: u64) -> Reached {
        let Ok(stream) = u16::try_from(stream.value()) else { return Reached::Fault };
        let write = || Transaction::write(stream, address, &[0x5a; 8]);
        let outcome = foreign(|| self.with(|smmu, memory| smmu.dma(memory, write())));
        match outcome {
            Outcome::Completed { physical, path, .. } if path.is_untranslated() => Reached::Untranslated(physical),
            Outcome::Completed { physical, .. } => Reached::Memory(physical),
            _ => Reached::Fault,
        }
    }

    /// Makes the interrupts of lines that are up pending: after something happened, and when one is unmasked.
    pub(crate) fn raise(&self) {
        let smmu = self.smmu.lock();
        let (global, context) = (smmu.global_irq(), smmu.context_irq(0));
        drop(smmu);
        if global {
            gic::raise(self.global);
        }
        if context {
            gic::raise(self.context);
        }
    }

    /// What software did that no register reports.
    pub(crate) fn hazards(&self) -> usize {
        self.smmu.lock().hazards().len()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Smmu, &mut Memory) -> T) -> T {
        let done = {
            let mut smmu = self.smmu.lock();
            act(&mut smmu, &mut self.memory.lock())
        };
        self.raise();
        done
    }

    fn write(&self, act: impl FnOnce(&mut Smmu)) {
        access(|| {
            act(&mut self.smmu.lock());
            self.raise();
        });
    }
}

impl Registers for Modelled {
    fn read32(&self, offset: u32) -> u32 {
        access(|| self.smmu.lock().read32(offset as usize))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(|smmu| smmu.write32(offset as usize, value));
    }

    fn read64(&self, offset: u32) -> u64 {
        access(|| self.smmu.lock().read64(offset as usize))
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(|smmu| smmu.write64(offset as usize, value));
    }
}

impl fmt::Debug for Modelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Modelled")
    }
}
