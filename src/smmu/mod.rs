//! The SMMUv1/v2 driver.

pub mod cover;
