//! The common assignment layer: devices, groups and domains, and the order of operations on them.
//!
//! It knows devices by key and IOMMUs through one trait ([`Iommu`]); on which bus a device sits changes nothing.
//!
//! # Locking
//!
//! Level `Registry` guards who is registered and which group is claimed; it is held for look-ups and state changes
//! only, never over the [`Iommu`] trait, a hook, the policy or a register (contract C-3). Level `FlushList` guards one
//! domain's list of IOMMUs, level `Queue` a request queue's lists, level `Instances` the names of IOMMUs, which change inside
//! `Registry`. No other two are ever held together.
//!
//! # Invariants
//!
//! An operation *claims* the group of its device under the registry lock, works with the lock dropped, and commits
//! under it again (contract C-1). Every path out of an operation goes through one `conclude`, which also carries out
//! the removals that were asked for meanwhile (contract C-2).

mod add;
mod arrivals;
mod call;
mod claim;
mod device;
mod domain;
mod domains;
mod error;
mod event;
mod fault;
mod graveyard;
mod groups;
mod guarded;
mod identity;
mod instances;
mod interrupt;
mod iommu;
mod leaving;
pub(crate) mod levels;
mod nested;
mod new_device;
mod ownership;
mod policy;
mod provider;
mod queue;
mod registry;
mod removal;
mod reservation;
mod service;
mod source;
mod space;
mod spec;
mod steps;
mod stray;
mod transaction;

pub use call::DeviceCall;
pub use device::{Device, DeviceInfo, DeviceSpec, DeviceState};
pub use domain::Domain;
pub use domains::TablesHeld;
pub use error::{Blame, Cause, ConflictReason, Error, Left, Operation};
pub use event::{Event, EventSink, NoEvents};
pub use fault::{Access, FaultAnswer, FaultCause, FaultCounts, FaultLine, RawFault};
pub use identity::{DeviceId, DeviceKey, DomainId, Label, Source};
pub use interrupt::InterruptHandle;
pub use iommu::{
    Changed, Difference, FlushRange, Iommu, IommuError, NewMaster, Patience, Prepared, Resource, Sharing, Usage,
    Withdrawn, own_space,
};
pub use nested::{Claims, Within};
pub use new_device::NewDevice;
pub use policy::{DeviceHooks, FirmwareMarks, HookContext, HookError, NoHooks, Policy, PolicyRequest, Why};
pub use provider::{IommuHandle, Quarantine, Storm, UsageRecord};
pub use queue::{
    Answer, Completion, NoAnswer, Progress, ReadyRequest, Request, RequestQueue, Submitter, Target, Worker,
};
pub use removal::Removal;
pub use reservation::Reservation;
pub use service::{Deassigned, FaultRecord, Finding, Service};
pub use source::{SourceLife, SourceObject};
pub use space::{AddressSpace, Granule, Granules, Incompatible, PhysicalAddress, Stage2, Stage2Limits, TableMemory};
pub use spec::{IommuKey, Stream, StreamId, StreamMask};
