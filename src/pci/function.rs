//! What is known of a function once it was found.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use super::capability::Capabilities;
use super::config::{ConfigError, ConfigSpace, FunctionConfig, Identity};
use super::key::PciKey;
use super::topology::{Alias, Isolation};
use super::{Bus, Sbdf};
use crate::few;

/// A function that was found.
///
/// A snapshot: a removal does not change it, and every access through [`FunctionConfig`](super::FunctionConfig) can find the function gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Function {
    /// Where it answers, until buses are numbered anew.
    pub sbdf: Sbdf,
    /// Its identity. The bridge right above is [`PciKey::parent`].
    pub key: PciKey,
    /// What it is.
    pub kind: FunctionKind,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass and interface, 24 bits.
    pub class: u32,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Every requester ID that its DMA can carry, its own first.
    pub requester_ids: Vec<Alias>,
    /// What cannot be kept apart from it.
    pub isolation: Isolation,
}

impl Function {
    /// The same once more.
    pub(super) fn copied(&self) -> Result<Self, TryReserveError> {
        let requester_ids = few::copied(&self.requester_ids)?;
        Ok(Self { requester_ids, ..*self })
    }

    /// Its configuration space, if it answers. A virtual function is not found by [`FunctionConfig::new`], since it has
    /// no IDs of its own to answer with.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotPresent`], [`ConfigError::NotReady`].
    pub fn config<'a, C: ConfigSpace + ?Sized>(&self, space: &'a C) -> Result<FunctionConfig<'a, C>, ConfigError> {
        let identity = match self.kind {
            FunctionKind::Virtual => Identity::Virtual { vendor: self.vendor, device: self.device },
            _ => Identity::Own,
        };
        FunctionConfig::open(space, self.sbdf, identity)
    }
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FunctionKind {
    /// An endpoint.
    Endpoint,
    /// A bridge to these buses. A secondary bus of 0: not set up, nothing below can be reached.
    Bridge {
        /// The bus right below.
        secondary: Bus,
        /// The last bus below.
        subordinate: Bus,
    },
    /// A CardBus bridge. What is below is not looked at.
    CardBus,
    /// A virtual function: an endpoint behind its physical function ([`sriov`](super::sriov)).
    Virtual,
}
