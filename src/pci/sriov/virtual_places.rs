//! Where virtual functions are, whether configuration requests reach them there (9.2.1.2), and whether they are on.

use super::super::capability::{PortType, SrIov, VF_ENABLE};
use super::super::config::{ConfigSpace, FunctionConfig};
use super::super::enumeration::Enumeration;
use super::super::function::{Function, FunctionKind};
use super::super::host_bridge::HostBridge;
use super::super::{RequesterId, Sbdf};
use super::SriovError;

/// The places of a physical function's virtual functions.
#[derive(Clone, Copy, Debug)]
pub(super) struct VirtualPlaces {
    physical: Sbdf,
    pub(super) count: u16,
    first_offset: u16,
    stride: u16,
}

impl VirtualPlaces {
    /// Those of `count` virtual functions, as the capability has them with that number.
    pub(super) const fn new(physical: Sbdf, count: u16, capability: &SrIov) -> Self {
        Self { physical, count, first_offset: capability.first_offset, stride: capability.stride }
    }

    /// The place of one.
    pub(super) fn place(&self, number: u16) -> Result<Sbdf, SriovError> {
        if self.stride == 0 && self.count > 1 {
            return Err(SriovError::Stride);
        }
        let behind = number.checked_mul(self.stride).and_then(|behind| behind.checked_add(self.first_offset));
        let rid = behind.and_then(|behind| self.physical.requester_id().0.checked_add(behind));
        let rid = RequesterId(rid.ok_or(SriovError::PastEnd { number })?);
        Ok(Sbdf::new(self.physical.segment, rid.bus(), rid.device_function()))
    }

    /// Refuses places that configuration requests do not reach, or that are another function's.
    pub(super) fn check(&self, host: &HostBridge, found: &Enumeration, physical: &Function) -> Result<(), SriovError> {
        let above = physical.key.parent().and_then(|key| found.function(key));
        let last = match above.map(|above| above.kind) {
            Some(FunctionKind::Bridge { subordinate, .. }) => subordinate,
            _ => *host.buses.end(),
        };
        let express = above.and_then(|above| above.capabilities.express);
        // Behind a link a port forwards to device 0 of its secondary bus, and with ARI to all of it (6.13, 7.3.1).
        let is_narrow = express.is_some_and(|port| port.port_type.is_downstream_port() && !port.ari_forwarding);
        for number in 0..self.count {
            let place = self.place(number)?;
            if place.bus > last {
                return Err(SriovError::Buses { number, place, last });
            }
            let is_near = place.bus == self.physical.bus;
            if let Some(port) = above.filter(|_| is_near && is_narrow && place.device_function.device() != 0) {
                return Err(SriovError::NeedsAri { number, place, port: port.sbdf });
            }
            for other in &found.functions {
                if other.sbdf == place {
                    return Err(SriovError::Taken { number, place });
                }
                let FunctionKind::Bridge { secondary, subordinate } = other.kind else { continue };
                let forwards = secondary.0 != 0 && (secondary..=subordinate).contains(&place.bus);
                if forwards && !other.key.is_above(physical.key) {
                    return Err(SriovError::BusTaken { number, place, bridge: other.sbdf });
                }
            }
        }
        Ok(())
    }
}

/// Whether the physical function's device has all function numbers of its bus to itself: the port above forwards to them, and
/// the function can make use of it (6.13).
pub(super) fn has_ari(found: &Enumeration, physical: &Function) -> bool {
    let above = physical.key.parent().and_then(|key| found.function(key));
    let express = above.and_then(|above| above.capabilities.express);
    let forwards = express.is_some_and(|port| port.port_type.is_downstream_port() && port.ari_forwarding);
    forwards && physical.capabilities.ari.is_some()
}

/// The functions of the physical function's device that enumeration found, itself included.
pub(super) fn device_of<'a>(
    found: &'a Enumeration,
    physical: &'a Function,
) -> impl Iterator<Item = &'a Function> + use<'a> {
    let above = physical.key.parent().and_then(|key| found.function(key));
    let port_type = above.and_then(|above| above.capabilities.express).map(|express| express.port_type);
    let is_link = port_type.is_some_and(PortType::is_downstream_port);
    let place = physical.sbdf;
    let is_same = move |other: Sbdf| {
        let same_device = is_link || other.device_function.device() == place.device_function.device();
        other.segment == place.segment && other.bus == place.bus && same_device
    };
    found.functions.iter().filter(move |other| is_same(other.sbdf) && other.key.parent() == physical.key.parent())
}

/// Whether they are on as they were switched on. A reset of the physical function loses their number, one of its device's lowest
/// physical function how they are numbered.
pub(super) fn are_on<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capability: &SrIov,
    count: u16,
) -> Result<(), SriovError> {
    let (control, number) = (config.read_u16(capability.control()), config.read_u16(capability.number()));
    let is_numbered_so = capability.is_numbered_so(config);
    config.still_present()?;
    match control & VF_ENABLE {
        _ if number != count => Err(SriovError::Reset),
        0 => Err(SriovError::Stuck),
        _ if !is_numbered_so => Err(SriovError::Reset),
        _ => Ok(()),
    }
}

/// Why virtual functions that were being switched on are not: the cause, or a reset of the physical function, which explains
/// whatever failed before one of them was registered.
pub(super) fn reset_or<C: ConfigSpace + ?Sized>(
    cause: SriovError,
    config: &FunctionConfig<'_, C>,
    capability: &SrIov,
    count: u16,
) -> SriovError {
    match are_on(config, capability, count) {
        Err(SriovError::Reset) => SriovError::Reset,
        _ => cause,
    }
}
