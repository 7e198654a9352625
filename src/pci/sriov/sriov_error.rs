//! Why virtual functions could not be switched on or off, and what was left.

use super::super::config::ConfigError;
use super::super::control::ControlError;
use super::super::host_bridge::StreamsError;
use super::super::key::KeyError;
use super::super::{Bus, Sbdf};
use crate::assign::{self, Label};

/// What is in the way of virtual functions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SriovError {
    /// Nothing was found under the key, or it has no SR-IOV capability.
    #[error("it has no SR-IOV capability")]
    NotPhysical,
    /// A configuration space cannot be used, or the function is gone.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A function cannot be brought under control.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A virtual function has no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A virtual function's requester IDs have no stream at an SMMU.
    #[error(transparent)]
    Streams(#[from] StreamsError),
    /// There are not so many.
    #[error("it can have 1 to {total} virtual functions, not {asked}")]
    Count {
        /// How many were asked for.
        asked: u16,
        /// How many there can be.
        total: u16,
    },
    /// They are on already: with another number they would be other functions.
    #[error("{count} are on already: they must be switched off first")]
    AlreadyOn {
        /// How many.
        count: u16,
    },
    /// A virtual function is registered, though they are off.
    #[error("{first} is registered still: it must be removed first")]
    Registered {
        /// The one with the least number.
        first: Label,
    },
    /// The physical function is not registered, so that nothing would keep it from being reset.
    #[error("it is not registered itself: it must be added first")]
    NotRegistered,
    /// A virtual function is assigned.
    #[error("{device} is assigned to {domain}: it must be deassigned first")]
    Assigned {
        /// The one with the least number.
        device: Label,
        /// Its owner.
        domain: Label,
    },
    /// It cannot align base addresses to such pages.
    #[error("its virtual functions cannot be aligned to pages of {bytes:#x} bytes")]
    PageSize {
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// A base address was not set up for so many: there is none, or they would run past the end of the address space.
    #[error("base address {index} of its virtual functions has no room for {count} of them at {address:#x}")]
    Address {
        /// Which of the six.
        index: u8,
        /// Where it is.
        address: u64,
        /// How many were asked for.
        count: u16,
    },
    /// All virtual functions would have one requester ID.
    #[error("its virtual functions would all have one requester ID: their stride is 0")]
    Stride,
    /// There is no requester ID for a virtual function.
    #[error("virtual function {number} would be past the last requester ID")]
    PastEnd {
        /// The first one that has none.
        number: u16,
    },
    /// A virtual function's bus is behind no bridge above.
    #[error("virtual function {number} would be at {place}, and buses above it end at {:02x}", last.0)]
    Buses {
        /// The first one that is out of reach.
        number: u16,
        /// Where it would be.
        place: Sbdf,
        /// The last bus that is forwarded to.
        last: Bus,
    },
    /// A virtual function's bus belongs to another bridge.
    #[error("virtual function {number} would be at {place}, on a bus that bridge {bridge} forwards to")]
    BusTaken {
        /// The first such.
        number: u16,
        /// Where it would be.
        place: Sbdf,
        /// The bridge.
        bridge: Sbdf,
    },
    /// The port above forwards to device 0 only.
    #[error("virtual function {number} would be at {place}, and port {port} forwards to device 0 only: it needs ARI")]
    NeedsAri {
        /// The first such.
        number: u16,
        /// Where it would be.
        place: Sbdf,
        /// The port.
        port: Sbdf,
    },
    /// Another function is where a virtual function would be.
    #[error("virtual function {number} would be at {place}, where another function is")]
    Taken {
        /// The first such.
        number: u16,
        /// Where it would be.
        place: Sbdf,
    },
    /// A virtual function could reach a function of the same device that is taken to be apart.
    #[error("{function} has no access control services and could reach {peer}, which is registered as apart")]
    NotApart {
        /// The virtual function.
        function: Sbdf,
        /// The other one.
        peer: Sbdf,
    },
    /// VF Enable does not take what is written.
    #[error("its VF Enable bit cannot be written")]
    Stuck,
    /// Another operation has reset it before one of them was registered, and that switched them off: try again.
    #[error("it was reset meanwhile, by another operation: try again")]
    Reset,
    /// The service does not take a virtual function, or does not let it go.
    #[error("{0}")]
    Service(assign::Error),
    /// No memory to list them.
    #[error("out of memory while listing virtual functions")]
    OutOfMemory,
}

impl From<assign::Error> for SriovError {
    fn from(error: assign::Error) -> Self {
        Self::Service(error)
    }
}

/// Virtual functions could not be switched: one line that tells an operator of which function, why, and what is left.
///
/// `docs/pci.md` shows the line of every cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("virtual functions of {function}: {cause}; {left}")]
#[non_exhaustive]
pub struct SwitchError {
    /// The physical function.
    pub function: Sbdf,
    /// Why.
    pub cause: SriovError,
    /// What is left.
    pub left: SwitchLeft,
}

/// What a failed switch left behind (contract A-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SwitchLeft {
    /// Nothing changed: registers and registrations are as before.
    Unchanged,
    /// They were on for a moment, are off again, and none is registered.
    Off,
    /// They are on, and some may be registered: switch them off (again).
    On,
    /// The physical function is gone, and they with it; none is registered.
    Gone,
}

impl core::fmt::Display for SwitchLeft {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unchanged => "nothing changed",
            Self::Off => "they are off again",
            Self::On => "they are still on: switch them off",
            Self::Gone => "they are gone with it",
        })
    }
}
