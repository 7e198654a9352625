//! Device assignment for Arm hypervisors: which guest a DMA-capable device may reach, decided in one place and kept in
//! order whoever calls and whatever fails.
//!
//! The library drives SMMUv1 and SMMUv2 hardware, takes devices from PCI and from the device tree, and serialises every
//! add, remove, assign, reassign and deassign across both. It is `no_std`, needs `alloc`, and knows its hypervisor
//! through one type parameter, [`sync::Platform`].
//!
//! # From boot to the end
//!
//! [The guide](porting) has the code of each step, a section for each thing that a hypervisor supplies, and a table for those
//! who come from another one. What an error says, and what to do about it, stands in `docs/errors.md`.
//!
//! 1. Read what firmware says: [`dt::Board::read`].
//! 2. For each SMMU: [`config`](dt::SmmuNode::config), [`map`](dt::SmmuNode::map), [`probe`](smmu::Smmu::probe),
//!    [`register_iommu`](assign::Service::register_iommu). From the probe on all of its streams fault.
//! 3. For each device: [`add`](assign::Service::add) what [`dt::DtDevice::spec`] makes of it. PCI functions are found by
//!    [`pci::enumerate`], behind what [`dt::HostBridge::pci`] makes of a node; [`pci::Function::spec`] is for them.
//! 4. For each guest: [`create_domain`](assign::Service::create_domain), then [`assign`](assign::Service::assign) or
//!    [`assign_group`](assign::Service::assign_group); after a mapping was removed or narrowed,
//!    [`flush`](assign::Service::flush) or [`flush_range`](assign::Service::flush_range).
//! 5. For each interrupt line of an SMMU, a handler whose bottom half calls
//!    [`handle_fault`](assign::Service::handle_fault): it names the device and the domain. A handler that must not wait
//!    calls [`IommuHandle::take_faults`](assign::IommuHandle::take_faults), which has numbers only. When they stand,
//!    [`enable_reports`](assign::Service::enable_reports); from then on a worker calls
//!    [`tend_faults`](assign::Service::tend_faults), which ends storms.
//! 6. A guest gives a device back, or ends: [`deassign`](assign::Service::deassign), or
//!    [`reassign`](assign::Service::reassign) to the next guest. In between the device is quiesced and reset, by its
//!    [`DeviceHooks`](assign::DeviceHooks).
//! 7. A device is unplugged, whatever its state: [`remove`](assign::Service::remove), with all that stands behind it
//!    [`remove_tree`](assign::Service::remove_tree). What an overlay of the device tree brings, it brings and takes as one:
//!    [`dt::overlay::Overlays`]. What a guest's own tree says of its devices: [`dt::guest::GuestTree`].
//! 8. The guest's tables are to be freed: [`destroy_domain`](assign::Service::destroy_domain). Where an SMMU does not
//!    confirm that it forgot them, [`retire_domain`](assign::Service::retire_domain) gives a token to try later.
//! 9. At any time: [`audit`](assign::Service::audit) compares registry, driver and registers;
//!    [`usage`](assign::Service::usage) says who uses entries and context banks;
//!    [`write_tree`](assign::Service::write_tree) prints who has what.
//! 10. Before an SMMU loses its power, and after: [`suspend_iommu`](assign::Service::suspend_iommu),
//!     [`resume_iommu`](assign::Service::resume_iommu). At the end [`shutdown`](assign::Service::shutdown); in a crash,
//!     [`IommuHandle::crash`](assign::IommuHandle::crash).
//!
//! The platform: `sync::BareMetal` is ready for aarch64; [`sync::Platform`] lists the others. A lock of one's own
//! implements [`sync::lock_api::RawMutex`].
//!
//! # Principles
//!
//! 1. *Isolation holds at every single register write*, not between operations: each module says which write keeps it.
//! 2. *Fault is the resting state.* A stream that was not told to translate faults; what fails ends in fault.
//! 3. *Plan, commit, sync.* All that can fail comes before the first write; what is left is the hardware's failure, and
//!    the result says what was left.
//! 4. *An operation owns the group that it changes* and holds no lock while it works. Nothing that the library was
//!    given is called under a lock; calling it so does not compile.
//! 5. *The lock order is a type.* Against it does not compile either.
//! 6. *The shadow is the truth*, the registers follow it, and an audit compares the two.
//! 7. *Nothing from outside is believed*: stream IDs, masks, blobs, configuration space and ID registers are checked where
//!    they come in, and errors name the node, the device and the cause.
//! 8. *No panic, no unbounded wait, no allocation under a lock.*
//! 9. Simple code over clever code; `unsafe` only where the hardware begins.
//!
//! # Map
//!
//! Four floors; none uses one above it.
//!
//! | floor | what it knows |
//! |---|---|
//! | [`dt`] | what firmware's device tree says of SMMUs, bridges and devices |
//! | [`smmu`] · [`pci`] | how the hardware translates · how functions are found and what their DMA carries |
//! | [`assign`] | the service: devices, groups, domains, operations; IOMMUs through one trait |
//! | [`sync`] | the platform, the locks, and their order |
//!
//! The way of one device through them is told in `docs/architecture.md`, the locks in `docs/locking.md`. The promises
//! stand in `docs/contract.md`, each with a number (C-, I-, A-, S-lines); docs and tests cite the numbers.
//!
//! # Features
//!
//! None is on without being asked for, and a hypervisor needs none of them.
//!
//! | feature | what it is for |
//! |---|---|
//! | `fakes` | `pci::fake`, a configuration space made of memory, for tests and prototypes |
//! | `unwind` | a hook that panics fails, instead of unwinding through its operation; wants `std` |
//! | `trace-locks` | `sync::trace`, which locks were taken under which, for tests; wants `std` |

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(loom, shuttle, feature = "trace-locks", feature = "unwind"))]
extern crate std;

pub mod assign;
mod by_number;
pub mod dt;
mod few;
pub mod pci;
pub mod smmu;
pub mod sync;

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/porting.md")]
pub mod porting {}
