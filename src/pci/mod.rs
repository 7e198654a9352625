//! PCI functions: their addresses, configuration space, and the requester IDs that their DMA carries.
//!
//! From a host bridge to streams:
//!
//! 1. [`enumerate`] walks the buses below a host bridge through a [`ConfigSpace`] and lists its [`Function`]s. What is
//!    broken is listed beside them and stops nothing else.
//! 2. Each function knows its [requester IDs](Function::requester_ids): its own, its phantom functions', and those
//!    that bridges above it substitute; and what [cannot be told apart](Function::isolation) from it.
//! 3. The host bridge's [`RequesterIdMap`] turns them into [`Stream`](crate::assign::Stream)s, and
//!    [`Function::spec`] into what the service takes.
//! 4. [`FunctionHooks`] keeps a function quiet while it changes owners: bus mastering off, ATS, PRI and PASID off, reset;
//!    [`control`] has the single steps, and what a guest must not write.
//!
//! | file | what |
//! |---|---|
//! | `address.rs` | where a function is: segment, bus, device, function |
//! | `config.rs` | access to configuration space, and the header |
//! | `ecam.rs` | configuration space that is mapped into memory |
//! | `region_access.rs` | to and from the trait of the crate `pci_types` |
//! | `capability/` | bounded walks of the capability lists |
//! | `key.rs` | where a function is plugged: its stable identity |
//! | `id_range.rs` | what `iommu-map` and `msi-map` have in common |
//! | `requester_id_map.rs` | from requester IDs to streams |
//! | `topology.rs` | requester IDs that a function's DMA can carry; isolation groups |
//! | `quirk_table.rs` | parts that send as somebody else, or are kept apart without saying so |
//! | `function.rs` | what is known of a function |
//! | `host_bridge.rs` | a host bridge, and the streams of functions behind it |
//! | `enumeration.rs` | the walk over all buses behind a host bridge |
//! | `function_hooks.rs` | what the service calls when a function changes owners |
//! | `device_spec.rs` | what the service takes of a function |
//! | `control/` | keeping a function quiet while it changes owners |
//! | `sriov/` | virtual functions, switched on and off |
//! | `hotplug/` | functions that come and go |
//! | `fake/` | a configuration space made of memory, for tests |
//!
//! # Locking
//!
//! No lock is taken here, and nothing here blocks: what has to wait is a step that says "not yet".

mod address;
mod config;
mod ecam;
mod region_access;
mod capability;
mod key;
pub(crate) mod id_range;
mod requester_id_map;
mod topology;
mod quirk_table;
mod function;
mod host_bridge;
mod enumeration;
mod device_spec;
pub mod control;
mod function_hooks;
pub mod sriov;
pub mod hotplug;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;

pub use address::{AddressError, Bus, DeviceFunction, RequesterId, Sbdf, Segment};
pub use capability::{
    Acs, AcsControls, AdvancedFeatures, Ats, Capabilities, Capability, Express, ExtendedCapability, Msi, MsiX, Pasid,
    PortType, PowerManagement, Pri, ResizableBars, SrIov,
};
pub use config::{ConfigError, ConfigSpace, FunctionConfig, HeaderType};
pub use ecam::{ConfigLayout, Ecam};
pub use enumeration::{Enumeration, OutOfMemory, Problem, enumerate, enumerate_with};
pub use function::{Function, FunctionKind};
pub use function_hooks::{Delay, FunctionHooks};
pub use host_bridge::{HostBridge, StreamsError};
pub use id_range::MapFault;
pub use key::{HostBridgeNumber, KeyError, PciKey};
pub use quirk_table::{FunctionQuirk, KNOWN_QUIRKS, QuirkEffect};
pub use region_access::{AsRegionAccess, RegionAccess};
pub use requester_id_map::{MapEntry, MapError, Provider, RequesterIdMap};
pub use topology::{Alias, AliasKind, Isolation, IsolationCause};
