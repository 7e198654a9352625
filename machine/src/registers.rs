//! The library's way to a modelled SMMU.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use iommu_assign::smmu::Registers;
use smmu_model::{Memory, Smmu};

use super::{Machine, Slot, lock};

/// Looks at an SMMU after each write to its registers.
pub type Observer = Box<dyn FnMut(&Smmu, &Memory) + Send>;

/// The registers of one modelled SMMU.
#[derive(Clone)]
pub struct ModelRegisters {
    slot: Arc<Mutex<Slot>>,
    machine: Machine,
}

impl ModelRegisters {
    pub(super) fn new(slot: Arc<Mutex<Slot>>, machine: Machine) -> Self {
        Self { slot, machine }
    }

    /// One access of the library's.
    fn slot(&self) -> MutexGuard<'_, Slot> {
        #[cfg(feature = "trace-locks")]
        iommu_assign::sync::trace::register_access();
        lock(&self.slot)
    }

    fn observed(&self, write: impl FnOnce(&mut Smmu)) {
        let mut slot = self.slot();
        write(&mut slot.smmu);
        let Slot { smmu, observer } = &mut *slot;
        if let Some(observer) = observer {
            self.machine.memory(|memory| observer(smmu, memory));
        }
    }
}

impl Registers for ModelRegisters {
    fn read32(&self, offset: u32) -> u32 {
        self.slot().smmu.read32(offset as usize)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.observed(|smmu| smmu.write32(offset as usize, value));
    }

    fn read64(&self, offset: u32) -> u64 {
        self.slot().smmu.read64(offset as usize)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.observed(|smmu| smmu.write64(offset as usize, value));
    }
}

impl fmt::Debug for ModelRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModelRegisters")
    }
}
