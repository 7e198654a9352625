//! The C interface of `iommu-assign`, for hypervisors in C. `include/iommu_assign.h` is made of this crate by cbindgen;
//! its comments are the reference.
//!
//! # The border
//!
//! Each `extern "C"` function is one call of the library: arguments are checked and made into its types, the call runs
//! inside `border::run`, which lets no panic out, and its result becomes an `iommu_status` and, where the caller asks
//! for it, a sentence. What C promises about pointers stands once, at the top of the header. In Rust it is said by the
//! types of the parameters: `Option<&T>` is a pointer that may be null, `Option<Box<T>>` a handle that the call takes
//! over. What types cannot say, strings and arrays, is read by the functions of `border.rs`. The rest of the `unsafe` is
//! in `platform.rs` (lock, memory), `registers.rs` (mapped registers) and `iommu_device_enter` (a call inside a device,
//! which is kept in the caller's memory).
//!
//! # Files, in the order of use
//!
//! | file | what |
//! |---|---|
//! | `platform` | what the integrator supplies once: memory, lock, barrier, clock, waiter, log |
//! | `status`, `error` | status codes; what a failed call says |
//! | `border` | from C's values to the library's and back; panics |
//! | `values`, `told` | keys, streams, forms of a call, tables; what is told of devices and faults |
//! | `callbacks` | policy, events, hooks, power |
//! | `registers` | how an SMMU's registers are reached |
//! | `service`, `smmu_config`, `smmus` | the service and what can be seen of it; its SMMUs |
//! | `domains` | guests' address spaces and flushes |
//! | `devices`, `moves` | devices in and out, found and named; to a guest and back |
//! | `faults` | interrupts and storms |
//! | `board`, `bridges` | a board's device tree: SMMUs and devices; reserved ranges and host bridges |
//!
//! Without the feature `std` the crate needs no operating system and `panic = "abort"`, which bare-metal targets have.

#![no_std]
#![expect(non_camel_case_types, reason = "names as C spells them")]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod platform;
pub mod status;
pub mod error;
mod border;
pub mod values;
pub mod told;
pub mod callbacks;
pub mod registers;
pub mod service;
pub mod smmu_config;
pub mod smmus;
pub mod domains;
pub mod devices;
pub mod moves;
pub mod faults;
pub mod board;
pub mod bridges;

#[cfg(all(test, feature = "std"))]
mod tests;
