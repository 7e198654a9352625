//! Making a function quiet: bus mastering off and nothing pending; ATS, PRI and PASID off.

use super::super::Sbdf;
use super::super::capability::{ATS_ENABLE, Capabilities, PASID_ENABLE, PRI_ENABLE};
use super::super::config::{COMMAND, ConfigError, ConfigSpace, FunctionConfig, Identity, OtherHalf};
use super::super::topology;

/// Why a function could not be brought under control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Its configuration space cannot be used, or it is gone.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A service stays on although it was turned off. Such a function goes round the IOMMU and must be refused.
    #[error("{function} does not turn {service} off")]
    StaysOn {
        /// The function.
        function: Sbdf,
        /// What stays on.
        service: Service,
    },
    /// Transactions were still pending when the steps were used up.
    #[error("{function} still has transactions pending")]
    StillPending {
        /// The function.
        function: Sbdf,
    },
    /// It cannot be reset alone: no function-level reset, or it is a bridge.
    #[error("{function} has no reset of its own")]
    NoReset {
        /// The function.
        function: Sbdf,
    },
    /// Its access control services, without which it is not apart from others, did not come back from its reset.
    #[error("{function} came back from its reset without its access control services")]
    AccessControlLost {
        /// The function.
        function: Sbdf,
    },
    /// No memory to note where its capabilities are.
    #[error("out of memory for the capabilities of {function}")]
    OutOfMemory {
        /// The function.
        function: Sbdf,
    },
    /// It holds ARI Capable Hierarchy for its device, of which another function has virtual functions on: its reset would take
    /// that back, and these would have other requester IDs.
    #[error("{function} cannot be reset: virtual functions of its device would be numbered otherwise")]
    RenumbersOthers {
        /// The function.
        function: Sbdf,
    },
    /// It did not come back from its reset before the steps were used up.
    #[error("{function} did not come back from its reset")]
    ResetTimeout {
        /// The function.
        function: Sbdf,
    },
}

impl ControlError {
    /// The same without the function: what a hook says of its device.
    #[must_use]
    pub const fn short(self) -> &'static str {
        match self {
            Self::Config(ConfigError::NotPresent { .. }) => "the function is not there any more",
            Self::Config(ConfigError::NotReady { .. }) => "the function asks to be tried again",
            Self::Config(_) => "the function's configuration space is broken",
            Self::StaysOn { service: Service::BusMaster, .. } => "bus mastering stays on",
            Self::StaysOn { .. } => "ATS, PRI or PASID stays on",
            Self::StillPending { .. } => "transactions stay pending",
            Self::NoReset { .. } => "the function has no reset of its own",
            Self::AccessControlLost { .. } => "access control did not come back from the reset",
            Self::OutOfMemory { .. } => "out of memory",
            Self::RenumbersOthers { .. } => "its reset would renumber other virtual functions",
            Self::ResetTimeout { .. } => "the function did not come back from its reset",
        }
    }
}

/// A service of a function that is turned off for isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Service {
    /// Bus mastering: all DMA and message signalled interrupts.
    BusMaster,
    /// Address translation services: requests that claim to be translated already.
    Ats,
    /// Page requests.
    Pri,
    /// Process address space IDs.
    Pasid,
}

impl core::fmt::Display for Service {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BusMaster => "bus mastering",
            Self::Ats => "ATS",
            Self::Pri => "PRI",
            Self::Pasid => "PASID",
        })
    }
}

/// Turns page requests, address translation services and PASIDs off, and reads back that they are. Address translation services
/// also of the virtual functions that were on when `capabilities` were read, as far as they answer: they are the function's
/// owner's.
///
/// An SMMUv1/v2 takes a translated request at its word only where it is told so, but a function with ATS may also keep
/// what it was told for a former owner.
///
/// # Errors
///
/// [`ControlError::StaysOn`] when one stays on, [`ConfigError::NotPresent`] when the function is gone.
pub fn turn_translation_services_off<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capabilities: &Capabilities,
) -> Result<(), ControlError> {
    // A page request is answered by translations, and PASIDs may not change while ATS is on (10.5.1.3): in this order.
    if let Some(pri) = capabilities.pri {
        // The upper half has bits that a 1 clears.
        turn_off(config, pri.control(), PRI_ENABLE, OtherHalf::Zero, Service::Pri)?;
    }
    turn_ats_off(config, capabilities)?;
    let function = config.function();
    let (vendor, _) = config.ids();
    for alias in topology::virtual_functions(function.requester_id(), capabilities) {
        let place = Sbdf::new(function.segment, alias.rid.bus(), alias.rid.device_function());
        let identity = Identity::Virtual { vendor, device: 0 };
        if let Ok(one) = FunctionConfig::open(config.space(), place, identity) {
            turn_ats_off(&one, &Capabilities::read(&one)?)?;
        }
    }
    if let Some(pasid) = capabilities.pasid {
        turn_off(config, pasid.control(), PASID_ENABLE, OtherHalf::Keep, Service::Pasid)?;
    }
    Ok(())
}

/// A function that is being made quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "transactions may be pending until a step says Done"]
pub struct Quiesce {
    function: Sbdf,
    /// Where it says that transactions are pending, and by which bit; some conventional functions cannot.
    status: Option<(u16, u16)>,
    steps: u32,
}

/// How far something is that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not there yet: step again.
    Waiting,
    /// Done.
    Done,
}

impl Quiesce {
    /// Turns bus mastering off (7.5.1.1.3), so that the function begins no more transactions.
    ///
    /// `steps`: after so many steps with transactions pending it has failed.
    ///
    /// # Errors
    ///
    /// [`ControlError::StaysOn`], [`ConfigError::NotPresent`].
    pub fn begin<C: ConfigSpace + ?Sized>(
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
        steps: u32,
    ) -> Result<Self, ControlError> {
        // All of Status is read-only or cleared by a 1.
        turn_off(config, COMMAND, BUS_MASTER, OtherHalf::Zero, Service::BusMaster)?;
        let express = capabilities.express.map(|express| (express.device_status(), TRANSACTIONS_PENDING));
        let advanced = capabilities.advanced.filter(|advanced| advanced.tells_pending);
        let status = express.or(advanced.map(|advanced| (advanced.control(), ADVANCED_PENDING)));
        Ok(Self { function: config.function(), status, steps })
    }

    /// Looks whether what was begun has ended (Device Status 5, 7.5.3.5; without PCI Express the status of advanced
    /// features).
    ///
    /// A function that cannot tell is done at once.
    ///
    /// # Errors
    ///
    /// [`ControlError::StillPending`] when the steps are used up, [`ConfigError::NotPresent`].
    pub fn step<C: ConfigSpace + ?Sized>(&mut self, config: &FunctionConfig<'_, C>) -> Result<Progress, ControlError> {
        let Some((status, pending)) = self.status else { return Ok(Progress::Done) };
        if config.read_u16(status) & pending == 0 {
            return Ok(Progress::Done);
        }
        config.still_present()?;
        self.steps = self.steps.checked_sub(1).ok_or(ControlError::StillPending { function: self.function })?;
        Ok(Progress::Waiting)
    }
}

fn turn_ats_off<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capabilities: &Capabilities,
) -> Result<(), ControlError> {
    let ats = capabilities.ats.map(|ats| turn_off(config, ats.control(), ATS_ENABLE, OtherHalf::Keep, Service::Ats));
    ats.unwrap_or(Ok(()))
}

fn turn_off<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    offset: u16,
    bit: u16,
    other_half: OtherHalf,
    service: Service,
) -> Result<(), ControlError> {
    if config.read_u16(offset) & bit != 0 {
        config.still_present()?;
        config.change_u16(offset, bit, 0, other_half)?;
    }
    let stays_on = config.read_u16(offset) & bit != 0;
    // All ones are no answer.
    config.still_present()?;
    if stays_on { Err(ControlError::StaysOn { function: config.function(), service }) } else { Ok(()) }
}

/// Command 2 (7.5.1.1.3).
pub(in super::super) const BUS_MASTER: u16 = 1 << 2;
/// Device Status 5 (7.5.3.5).
const TRANSACTIONS_PENDING: u16 = 1 << 5;
/// Transactions Pending, in the status of advanced features, which is the upper byte after control.
const ADVANCED_PENDING: u16 = 1 << 8;
