//! PCI functions: their addresses, configuration space, and the requester IDs that their DMA carries.
//!
//! From a host bridge to streams:
//!
//! 1. [`enumerate`] walks the buses below a host bridge through a [`ConfigSpace`] and lists its [`Function`]s. What is
//!    broken is listed beside them and stops nothing else.
//! 2. Each function knows its [requester IDs](Function::requester_ids): its own, its phantom functions', and those
//!    that bridges above it substitute; and what [cannot be told apart](Function::isolation) from it.
//! 3. The host bridge's [`RequesterIdMap`] turns them into [`Stream`](crate::assign::Stream)s.
//! 4. [`control`] keeps a function quiet while it changes owners: bus mastering off, ATS, PRI and PASID off, reset.
//!
//! # Locking
//!
//! No lock is taken here, and nothing here blocks: what has to wait is a step that says "not yet".

mod address;
mod capability;
mod config;
pub mod control;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod host_bridge;
pub(crate) mod id_range;
mod key;
mod requester_id_map;
mod topology;

pub use address::{AddressError, Bus, DeviceFunction, RequesterId, Sbdf, Segment};
pub use capability::{
    Acs, AcsControls, Ats, Capabilities, Capability, Express, ExtendedCapability, Msi, MsiX, Pasid, PortType, Pri,
    ResizableBars, SrIov,
};
pub use config::{ConfigError, ConfigSpace, FunctionConfig, HeaderType};
pub use host_bridge::{Enumeration, Function, FunctionKind, HostBridge, OutOfMemory, Problem, StreamsError, enumerate};
pub use key::{HostBridgeNumber, KeyError, PciKey};
pub use requester_id_map::{MapEntry, MapError, MapFault, Provider, RequesterIdMap};
pub use topology::{Alias, AliasKind, Isolation, IsolationCause};
