//! The lock of everything here that interrupt handlers share: a spinning lock with interrupts masked.
//!
//! It is not fair. A CPU of an emulator stands still while the host runs something else, and a fair lock would make all others
//! wait for the CPU that is next.

use iommu_assign::sync::{Daif, InterruptSaving};
use spin::mutex::SpinMutex;

/// A value behind it.
pub(crate) type Lock<T> = lock_api::Mutex<InterruptSaving<SpinMutex<()>, Daif>, T>;
