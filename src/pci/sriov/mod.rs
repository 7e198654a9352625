//! Virtual functions (SR-IOV) as devices of their own: found behind their physical function, switched on and off.
//!
//! A [`PhysicalFunction`] is what enumeration found, seen as the place where virtual functions come from. It
//! [switches them on](PhysicalFunction::switch_on), offers each to the service as a child of the physical function, and
//! [switches them off](PhysicalFunction::switch_off) when nobody has them. While one is registered, the service neither
//! resets the physical function nor takes it from its owner
//! ([`DeviceSpec::ends_with_parent`](crate::assign::DeviceSpec::ends_with_parent)).
//!
//! What differs from other functions:
//!
//! - Its place follows from the physical function's requester ID, First VF Offset and VF Stride (9.2.1.2), and may be on a
//!   bus behind the physical function's. Nothing but the capability says that it is there.
//! - Its vendor and device ID read all ones (9.3.4.1). [`Function::config`](super::Function::config) knows it all the same.
//! - Its base addresses are in the physical function's capability (9.3.3.14), one after the other: [`VirtualBar`].
//! - It has its own PCI Express, MSI, MSI-X, ACS and ATS capabilities. PRI and PASID are the physical function's
//!   (10.5.2, 7.8.9).
//!
//! # Isolation
//!
//! A virtual function that keeps its requests from its peers, by its own access control services or, where it has none, by
//! its physical function's (or by a row of the [quirk table](super::KNOWN_QUIRKS) about either), is apart from all others.
//! One that does not is in the group of its physical function, as is each whose physical function has access control services that
//! cannot be turned on. Where a bridge or the device keeps the physical
//! function in a larger group, its virtual functions are in that group too.
//!
//! Section numbers are of the PCI Express Base Specification, revision 6.
//!
//! | file | what |
//! |---|---|
//! | `sriov_error.rs` | why virtual functions could not be switched, and what was left |
//! | `virtual_bars.rs` | their base addresses |
//! | `virtual_places.rs` | where they are, whether that can be reached, and whether they are on |
//! | `physical_function.rs` | the physical function, and what is read at a virtual one |
//! | `switching.rs` | on and off |
//!
//! # Context
//!
//! Waiting context, with no lock held: the calls allocate, pause for the times of the specification, and call the
//! service. One call at a time about one device; the registers are read, changed and written back.

mod sriov_error;
mod virtual_bars;
mod virtual_places;
mod physical_function;
mod switching;

pub use physical_function::PhysicalFunction;
pub use sriov_error::{SriovError, SwitchError, SwitchLeft};
pub use switching::VirtualFunction;
pub use virtual_bars::{BaseAddress, VirtualBar};
