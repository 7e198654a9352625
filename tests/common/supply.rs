//! Power that fails when a test says so.

use std::sync::atomic::{AtomicBool, Ordering};

use iommu_assign::smmu::{Power, PowerError};

/// The supply of an instance; true while it is broken.
#[derive(Debug, Default)]
pub(crate) struct Supply(pub(crate) AtomicBool);

impl Power for Supply {
    fn get(&self) -> Result<(), PowerError> {
        if self.get_if_on() { Ok(()) } else { Err(PowerError("the supply is broken")) }
    }

    fn put(&self) {}

    fn get_if_on(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }
}
