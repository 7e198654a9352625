//! The SMMUv1/v2 driver.
