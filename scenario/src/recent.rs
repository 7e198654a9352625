//! The last faults of an SMMU, for the worker to name.

use alloc::vec::Vec;

use iommu_assign::assign::RawFault;

/// The last faults. Noting one allocates nothing.
#[derive(Debug, Default)]
pub struct Recent {
    faults: [Option<RawFault>; 8],
    next: usize,
}

impl Recent {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { faults: [None; 8], next: 0 }
    }

    /// There was one more.
    pub fn note(&mut self, fault: RawFault) {
        let at = self.next.checked_rem(self.faults.len()).unwrap_or(0);
        if let Some(place) = self.faults.get_mut(at) {
            *place = Some(fault);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<RawFault> {
        let (newer, older) = self.faults.split_at(self.next.checked_rem(self.faults.len()).unwrap_or(0));
        older.iter().chain(newer).copied().flatten().collect()
    }
}
