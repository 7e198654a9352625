//! What a part is, what it does otherwise than the manual says, and how its registers are reached.
//!
//! | file | what |
//! |---|---|
//! | `registers.rs` | offsets and fields, as Arm IHI 0062D names them |
//! | `mmio.rs` | the trait through which registers are accessed, device memory, several instances programmed alike |
//! | `context_lines.rs` | which interrupt line a context interrupt raises |
//! | `smmu_config.rs` | what firmware and the integrator say of an instance |
//! | `quirks.rs` | the table of quirks: the place to add a SoC |
//! | `geometry.rs` | the ID registers, checked |
//! | `access.rs` | register accesses as a quirk changes them |
//! | `part.rs` | all of this together, for one instance |

pub(in crate::smmu) mod registers;
pub(in crate::smmu) mod mmio;
pub(in crate::smmu) mod context_lines;
pub(in crate::smmu) mod smmu_config;
pub(in crate::smmu) mod quirks;
pub(in crate::smmu) mod geometry;
pub(in crate::smmu) mod access;
pub(in crate::smmu) mod part;

pub use context_lines::ContextLines;
pub use geometry::{Geometry, ProbeError};
pub use mmio::{Lockstep, Mmio, Registers};
pub use quirks::{Effects, Quirk, Remedy, quirks, quirks_of};
pub use smmu_config::{Architecture, Chip, EmptyRoot, FaultLimits, Implementation, SmmuConfig};
