//! The common assignment layer: devices, groups and domains, and the order of operations on them.
//!
//! It knows devices by key and IOMMUs through one trait ([`Iommu`]); on which bus a device sits changes nothing.
//!
//! # The five mechanisms
//!
//! 1. *A claim owns.* To claim a group is to take it out of the registry; what is out is claimed. The operation works on what
//!    it owns, and puts it back (`group`, `claim`).
//! 2. *Register, publish, reserve, then join.* A device's key is registered before its streams are known, and its groups stay
//!    apart until its add ends, so that a refused add changes nothing (`op/add`).
//! 3. *Entries are taken in the hold that finds them free*, in the driver (`crate::smmu`).
//! 4. *A context bank has one path*, and a drain that was not confirmed is owed by its device until it is (`crate::smmu`).
//! 5. *The trait between the two is small* (`iommu`).
//!
//! # Files, in the order of use
//!
//! | file | what |
//! |---|---|
//! | `spec` | streams and IOMMU names |
//! | `identity` | keys, numbers, labels |
//! | `space` | a guest's stage 2, and what an IOMMU can follow |
//! | `iommu_error` | what an IOMMU driver says |
//! | `operation` | what the service does, by name |
//! | `error` | what the service says |
//! | `fault` | faults, storms, lines |
//! | `iommu` | the trait of an IOMMU driver |
//! | `graveyard` | records that handles may still refer to |
//! | `iommu_record` | IOMMU instances as the service keeps them |
//! | `chain` | the chain of claims above a callback |
//! | `device` | devices, their specification and their hooks |
//! | `target` | which device an operation is about |
//! | `guarded` | calls to hooks that may panic on the host |
//! | `group` | groups, their members, their states |
//! | `domain` | domains and their flush lists |
//! | `records` | what the registry keeps of each device and domain |
//! | `registry` | what is registered: the trees |
//! | `policy` | who may be assigned what |
//! | `event` | what the hypervisor is told |
//! | `service` | construction, look-up, traversal, waiting |
//! | `lending` | where a claimed group comes from and goes back to |
//! | `claim` | taking a group and putting it back |
//! | `op/` | the operations, one in each file |
//! | `reaping` | deferred release, source objects |
//! | `audit` | the registry against the drivers and these against the hardware |
//! | `usage` | what uses what there is a fixed number of |
//! | `queue/` | requests in front of the service |
//!
//! # Locking
//!
//! Level `Registry` guards what is registered; it is held for look-ups and state changes only, never over the [`Iommu`] trait, a
//! hook, the policy or a register (contract C-3). Level `Instances` guards which instances are found by name, level `FlushList`
//! one domain's list of IOMMUs, level `Queue` a request queue's lists. No two of them are ever held together.

mod spec;
mod identity;
mod space;
mod iommu_error;
mod operation;
mod error;
mod fault;
mod iommu;
mod graveyard;
mod iommu_record;
mod chain;
mod device;
mod target;
mod guarded;
mod group;
mod domain;
mod records;
mod registry;
mod policy;
mod event;
mod service;
mod lending;
mod claim;
mod op;
mod reaping;
mod audit;
mod usage;
mod queue;

pub use audit::Finding;
pub use chain::CallChain;
pub use device::{Device, DeviceHooks, DeviceSpec, HookContext, HookError, NoHooks, SourceLife};
pub use domain::Domain;
pub use error::{Blame, Cause, ConflictReason, Error, Left};
pub use event::{Event, EventSink};
pub use fault::{Access, FaultAnswer, FaultCause, FaultCounts, FaultLine, FaultRecord, RawFault, StormReport};
pub use group::{DeviceInfo, DeviceState, Lacks};
pub use identity::{DeviceId, DeviceKey, DomainId, Label, Source};
pub use iommu::{Changed, FlushRange, Iommu, IommuFaults, IommuPower, Patience, Streams, own_space};
pub use iommu_error::{Difference, IommuError, Resource, Usage};
pub use op::{
    Deassigned, DeviceCall, InterruptHandle, IommuHandle, Quarantine, Removal, Reregistered, Reservation, Storm,
    TablesHeld, Within,
};
pub use operation::Operation;
pub use policy::{FirmwareMarks, Policy, PolicyRequest, Why};
pub use queue::{Answer, Completion, NoAnswer, Progress, ReadyRequest, Request, RequestQueue, Submitter, Worker};
pub use reaping::SourceObject;
pub use service::Service;
pub use space::{AddressSpace, Granule, Granules, Incompatible, PhysicalAddress, Stage2, Stage2Limits, TableMemory};
pub use spec::{IommuKey, Stream, StreamId, StreamMask};
pub use target::Target;
pub use usage::UsageRecord;

// What the files of this folder use of each other, beside what is public.
use chain::{Attempt, Frame, Obstacle};
use claim::{Claim, Marked, is_protected};
use device::Attachment;
use graveyard::{Graveyard, take_all};
use group::{Group, Groups, Member, Members, shared_at, why_joined};
use iommu_record::{Instance, InstanceState, Instances};
use records::{DeviceRecord, DomainRecord, Nodes, SourceRecord, nodes_of};
use registry::Registry;
