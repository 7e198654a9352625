//! From a function to what the service takes.

use super::enumeration::Enumeration;
use super::function::{Function, FunctionKind};
use super::host_bridge::{HostBridge, StreamsError};
use super::key::PciKey;
use crate::assign::{DeviceSpec, Label};
use crate::few;

impl Function {
    /// The function as [`Service::add`](crate::assign::Service::add) takes it: its key, its address as label, its streams,
    /// its isolation group, its host bridge's mark for passing through, and as parent the nearest bridge above that has
    /// streams of its own; of a virtual function its physical function. Functions that are added in the order of [`Enumeration::functions`] find their parents
    /// registered.
    ///
    /// `host` and `found` are the host bridge behind which it was found, and all that was found there. Hooks, a source object
    /// and another label are the caller's to set. Before the function is added it must be kept from going round the
    /// SMMU: [`control::turn_translation_services_off`](super::control::turn_translation_services_off).
    ///
    /// # Errors
    ///
    /// Why it cannot be isolated: [`HostBridge::streams`].
    ///
    /// # Context
    ///
    /// Waiting context: it allocates.
    pub fn spec(&self, host: &HostBridge, found: &Enumeration) -> Result<DeviceSpec, StreamsError> {
        let streams = host.streams(self)?;
        let label = few::shown(&self.sbdf).ok_or(StreamsError::OutOfMemory)?;
        let bridges = core::iter::successors(self.key.parent(), |key| key.parent());
        let is_offered = |key: &PciKey| found.function(*key).is_some_and(|bridge| host.streams(bridge).is_ok());
        let mut bridges = bridges.filter(is_offered);
        Ok(DeviceSpec {
            parent: bridges.next().map(Into::into),
            ends_with_parent: self.kind == FunctionKind::Virtual,
            isolation: Some(self.isolation.number()),
            passthrough: host.passthrough,
            ..DeviceSpec::new(self.key.into(), Label::from(label.as_str()), streams)
        })
    }
}
