//! A host bridge as firmware describes it, and the streams of the functions behind it.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::function::Function;
use super::key::HostBridgeNumber;
use super::requester_id_map::{MapError, RequesterIdMap};
use super::topology::AliasKind;
use super::{Bus, Sbdf, Segment};
use crate::assign::Stream;
use crate::few;

/// A host bridge as firmware describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// Its number in keys.
    pub number: HostBridgeNumber,
    /// The segment of its buses.
    pub segment: Segment,
    /// Its buses; the first is the root bus.
    pub buses: RangeInclusive<Bus>,
    /// From requester IDs to streams.
    pub map: RequesterIdMap,
    /// Whether firmware marks what is behind it for passing through.
    pub passthrough: bool,
}

impl HostBridge {
    /// All streams of a function behind this host bridge, each once, in ascending order.
    ///
    /// A phantom function that is not enabled may be unmapped: [`control::GuestWrites`] lets no guest enable it.
    ///
    /// # Errors
    ///
    /// [`StreamsError::Map`] for the first other requester ID that the map does not send to an SMMU (contract A-6).
    ///
    /// [`control::GuestWrites`]: super::control::GuestWrites
    pub fn streams(&self, function: &Function) -> Result<Vec<Stream>, StreamsError> {
        let mut streams = Vec::new();
        let uses_phantoms = function.capabilities.express.is_some_and(|express| express.phantom_enabled);
        for alias in &function.requester_ids {
            let stream = match self.map.stream(alias.rid) {
                Ok(stream) => stream,
                Err(MapError::Unmapped { .. }) if alias.kind == AliasKind::Phantom && !uses_phantoms => continue,
                Err(cause) => return Err(StreamsError::Map { function: function.sbdf, kind: alias.kind, cause }),
            };
            few::push(&mut streams, stream).map_err(|_| StreamsError::OutOfMemory)?;
        }
        few::extend(&mut streams, self.map.more().iter().copied()).map_err(|_| StreamsError::OutOfMemory)?;
        few::sort(&mut streams, &|one, other| one < other);
        streams.dedup();
        Ok(streams)
    }
}

/// A function has no streams that could be isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamsError {
    /// The host bridge's map does not send one of its requester IDs to an SMMU.
    #[error("{function} cannot be isolated: {cause}")]
    Map {
        /// The function.
        function: Sbdf,
        /// Whose requester ID it is.
        kind: AliasKind,
        /// What the map says.
        cause: MapError,
    },
    /// No memory for the streams.
    #[error("out of memory for the streams of a PCI function")]
    OutOfMemory,
}
