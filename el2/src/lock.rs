//! The lock of everything here that interrupt handlers share: a spinning lock with interrupts masked.
//!
//! It is not fair. On an emulator a CPU stands still now and then for as long as the host likes, and a fair lock would make
//! all others wait for the one whose turn it is.

use iommu_assign::sync::{Daif, InterruptSaving};
use spin::mutex::SpinMutex;

/// A value behind it.
pub(crate) type Lock<T> = lock_api::Mutex<InterruptSaving<SpinMutex<()>, Daif>, T>;
