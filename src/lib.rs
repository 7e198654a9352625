//! Device assignment for Arm hypervisors.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod assign;
pub mod dt;
pub mod pci;
pub mod smmu;
pub mod sync;
