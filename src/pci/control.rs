//! Keeping a function quiet while it changes owners, and what a guest must not write (contract S-7).
//!
//! Nothing here waits: what takes time is begun, and then [stepped](Quiesce::step) by a caller who decides how time
//! passes between the steps. Each has a bound on its steps. Section numbers are of the PCI Express Base
//! Specification, revision 6.
//!
//! Any context. The caller sees to it that one CPU at a time does this to a function: the registers are read, changed
//! and written back.

use super::capability::{ATS_ENABLE, Capabilities, PASID_ENABLE, PRI_ENABLE};
use super::config::{BUS_NUMBERS, COMMAND, ConfigError, ConfigSpace, FunctionConfig, HeaderType, OtherHalf};
use super::{Sbdf, capability};

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
    /// It did not come back from its reset before the steps were used up.
    #[error("{function} did not come back from its reset")]
    ResetTimeout {
        /// The function.
        function: Sbdf,
    },
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

/// Turns page requests, address translation services and PASIDs off, and reads back that they are.
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
    if let Some(ats) = capabilities.ats {
        turn_off(config, ats.control(), ATS_ENABLE, OtherHalf::Keep, Service::Ats)?;
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
    /// Where Device Status is; conventional functions have none.
    status: Option<u16>,
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
        let status = capabilities.express.map(|express| express.device_status());
        Ok(Self { function: config.function(), status, steps })
    }

    /// Looks whether what was begun has ended (Device Status 5, 7.5.3.5).
    ///
    /// A conventional function cannot tell, and is done at once.
    ///
    /// # Errors
    ///
    /// [`ControlError::StillPending`] when the steps are used up, [`ConfigError::NotPresent`].
    pub fn step<C: ConfigSpace + ?Sized>(&mut self, config: &FunctionConfig<'_, C>) -> Result<Progress, ControlError> {
        let Some(status) = self.status else { return Ok(Progress::Done) };
        if config.read_u16(status) & TRANSACTIONS_PENDING == 0 {
            return Ok(Progress::Done);
        }
        config.still_present()?;
        self.steps = self.steps.checked_sub(1).ok_or(ControlError::StillPending { function: self.function })?;
        Ok(Progress::Waiting)
    }
}

/// A function that is being reset.
///
/// What a reset loses and a hypervisor has set up is put back: access control services, base addresses and their sizes, and
/// how the function behaves on its link. Bus mastering, interrupts, ATS, PRI, PASID and virtual functions stay off, as the
/// reset leaves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the function answers again only when a step says Done"]
pub struct Reset {
    function: Sbdf,
    header: [u32; SAVED_HEADER.len()],
    /// Device Control and Device Control 2, with where they are.
    device_control: (u16, u16),
    device_control_2: Option<(u16, u16)>,
    /// Access control services and the function groups that they go by.
    access_control: [Option<(u16, u16)>; 2],
    sizes: [Option<(u16, u32)>; MAX_SIZES],
    steps: u32,
}

impl Reset {
    /// Begins a function-level reset (6.6.2).
    ///
    /// The caller has made the function [quiet](Quiesce), and lets 100 ms pass before the first step: until then the
    /// function need not answer, and may not be asked. `steps`: after so many steps without an answer it has failed;
    /// a function may take a second in all.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoReset`], [`ConfigError::NotPresent`].
    pub fn begin<C: ConfigSpace + ?Sized>(
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
        steps: u32,
    ) -> Result<Self, ControlError> {
        let function = config.function();
        let express = capabilities.express.filter(|express| express.function_level_reset);
        let express = express.ok_or(ControlError::NoReset { function })?;
        if config.header_type()? != HeaderType::Endpoint {
            return Err(ControlError::NoReset { function });
        }
        let control = express.device_control();
        let saved = Self {
            function,
            header: SAVED_HEADER.map(|offset| config.read(offset)),
            device_control: (control, config.read_u16(control)),
            device_control_2: express.device_control_2().map(|offset| (offset, config.read_u16(offset))),
            access_control: [capabilities.acs.map(|acs| acs.control()), capabilities.ari.map(capability::ari_control)]
                .map(|offset| offset.map(|offset| (offset, config.read_u16(offset)))),
            sizes: {
                let mut controls = capabilities.resizable.into_iter().flat_map(capability::ResizableBars::controls);
                [(); MAX_SIZES].map(|()| controls.next().map(|offset| (offset, config.read(offset))))
            },
            steps,
        };
        // All ones read from a function that is gone must not be put back into one that comes in its place.
        config.still_present()?;
        // Device Status has bits that a 1 clears.
        config.change_u16(control, 0, FUNCTION_LEVEL_RESET, OtherHalf::Zero);
        Ok(saved)
    }

    /// Looks whether the function answers again, and if so puts back what it lost.
    ///
    /// # Errors
    ///
    /// [`ControlError::ResetTimeout`] when the steps are used up, [`ControlError::AccessControlLost`] when it takes its
    /// access control services back no more, [`ConfigError::NotPresent`] when it goes away after it answered.
    pub fn step<C: ConfigSpace + ?Sized>(&mut self, space: &C) -> Result<Progress, ControlError> {
        let Ok(config) = FunctionConfig::new(space, self.function) else {
            self.steps = self.steps.checked_sub(1).ok_or(ControlError::ResetTimeout { function: self.function })?;
            return Ok(Progress::Waiting);
        };
        // Before anything else: with Command the function answers to its peers again.
        for (offset, value) in self.access_control.into_iter().flatten() {
            config.change_u16(offset, u16::MAX, value, OtherHalf::Zero);
            if config.read_u16(offset) != value {
                config.still_present()?;
                return Err(ControlError::AccessControlLost { function: self.function });
            }
        }
        // Sizes before addresses, whose bits depend on them.
        for (offset, value) in self.sizes.into_iter().flatten() {
            config.write(offset, value);
        }
        for (offset, value) in SAVED_HEADER.into_iter().zip(self.header) {
            match offset {
                COMMAND => config.change_u16(COMMAND, u16::MAX, (value & 0xffff) as u16 & !BUS_MASTER, OtherHalf::Zero),
                _ => config.write(offset, value),
            }
        }
        for (offset, value) in core::iter::once(self.device_control).chain(self.device_control_2) {
            config.change_u16(offset, u16::MAX, value & !FUNCTION_LEVEL_RESET, OtherHalf::Zero);
        }
        config.still_present()?;
        Ok(Progress::Done)
    }
}

/// A register of a function that its owner must not be able to write, although the rest of its configuration space
/// may be his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForbiddenWrite {
    /// Where the 32 bits are that hold it, a multiple of 4.
    pub offset: u16,
    /// Which of the 32 bits must not change.
    pub bits: u32,
    /// What a write could do.
    pub reason: Reason,
}

/// What a forbidden write could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Turn ATS on: the function would send requests that claim to be translated.
    Ats,
    /// Turn page requests on, which nobody answers.
    Pri,
    /// Turn PASIDs on.
    Pasid,
    /// Give the function requester IDs that have no stream-map entry: phantom functions.
    Phantom,
    /// Make virtual functions appear, which are nobody's.
    VirtualFunctions,
    /// Take the function out of its isolation: access control services.
    AccessControl,
    /// Change what comes from below and what goes there: bus numbers and windows of a bridge, its reset, ARI forwarding.
    Routing,
    /// Put the function in the place of others in the address space, so that what is meant for them reaches it: base
    /// addresses and their sizes.
    Addresses,
}

/// The registers of a function that its owner must not write: they would undo what isolates it (contract S-7).
///
/// What a guest reads there is for the hypervisor to make up: sizes of base addresses above all.
///
/// Where MSIs go is not among them. A device that can write to a doorbell can do so by plain DMA too, whatever its MSI
/// registers say; who must not interrupt has no doorbell mapped (`dt::Msi` tells which there are).
pub fn forbidden_writes(
    header: HeaderType,
    capabilities: &Capabilities,
) -> impl Iterator<Item = ForbiddenWrite> + use<> {
    let express = capabilities.express;
    let is_bridge = !matches!(header, HeaderType::Endpoint);
    let services = [
        capabilities.ats.map(|ats| half(ats.control(), u16::MAX, Reason::Ats)),
        capabilities.pri.map(|pri| half(pri.control(), u16::MAX, Reason::Pri)),
        capabilities.pasid.map(|pasid| half(pasid.control(), u16::MAX, Reason::Pasid)),
        capabilities.acs.map(|acs| half(acs.control(), u16::MAX, Reason::AccessControl)),
        // Its function groups are what access control goes by.
        capabilities.ari.map(|ari| half(capability::ari_control(ari), u16::MAX, Reason::AccessControl)),
        express
            .filter(|express| express.phantom_bits != 0)
            .map(|express| half(express.device_control(), capability::PHANTOM_ENABLE, Reason::Phantom)),
        express
            .filter(|_| is_bridge)
            .and_then(|express| express.device_control_2())
            .map(|offset| half(offset, capability::ARI_FORWARDING, Reason::Routing)),
    ];
    let virtual_functions = capabilities.sr_iov.into_iter().flat_map(|sr_iov| {
        let count = half(sr_iov.number(), u16::MAX, Reason::VirtualFunctions);
        let addresses = sr_iov.addresses().map(|offset| whole(offset, Reason::VirtualFunctions));
        [half(sr_iov.control(), u16::MAX, Reason::VirtualFunctions), count].into_iter().chain(addresses)
    });
    let sizes = capabilities.resizable.into_iter().chain(capabilities.vf_resizable);
    let sizes = sizes.flat_map(capability::ResizableBars::controls).map(|offset| whole(offset, Reason::Addresses));
    let (addresses, routing): (&[u16], &[(u16, u32)]) = match header {
        HeaderType::Endpoint => (&[0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30], &[]),
        HeaderType::Bridge { .. } => (&[0x10, 0x14, 0x38], &BRIDGE_ROUTING),
        HeaderType::CardBus => (&[0x10], &CARDBUS_ROUTING),
    };
    let addresses = addresses.iter().map(|offset| whole(*offset, Reason::Addresses));
    let routing = routing.iter().map(|&(offset, bits)| ForbiddenWrite { offset, bits, reason: Reason::Routing });
    services.into_iter().flatten().chain(virtual_functions).chain(sizes).chain(addresses).chain(routing)
}

/// Bits of the 16-bit register at an even offset.
fn half(offset: u16, bits: u16, reason: Reason) -> ForbiddenWrite {
    let shift = u32::from(offset & 2).wrapping_mul(8);
    ForbiddenWrite { offset: offset & !3, bits: u32::from(bits) << shift, reason }
}

const fn whole(offset: u16, reason: Reason) -> ForbiddenWrite {
    ForbiddenWrite { offset: offset & !3, bits: u32::MAX, reason }
}

fn turn_off<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    offset: u16,
    bit: u16,
    other_half: OtherHalf,
    service: Service,
) -> Result<(), ControlError> {
    if config.read_u16(offset) & bit != 0 {
        config.change_u16(offset, bit, 0, other_half);
    }
    let stays_on = config.read_u16(offset) & bit != 0;
    // All ones are no answer.
    config.still_present()?;
    if stays_on { Err(ControlError::StaysOn { function: config.function(), service }) } else { Ok(()) }
}

/// Command 2 (7.5.1.1.3).
const BUS_MASTER: u16 = 1 << 2;
/// Device Status 5 (7.5.3.5).
const TRANSACTIONS_PENDING: u16 = 1 << 5;
/// Device Control 15 (7.5.3.4).
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
/// What a reset of a type 0 function loses: cache line, base addresses, expansion ROM, interrupt line; Command last,
/// so that no address is decoded before it is whole.
const SAVED_HEADER: [u16; 10] = [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c, COMMAND];
/// As many as the count in the capability can say.
const MAX_SIZES: usize = 7;

/// Bus numbers, windows and Bridge Control of a type 1 header (7.5.1.3); not its status registers.
const BRIDGE_ROUTING: [(u16, u32); 8] = [
    (BUS_NUMBERS, u32::MAX),
    (0x1c, 0xffff),
    (0x20, u32::MAX),
    (0x24, u32::MAX),
    (0x28, u32::MAX),
    (0x2c, u32::MAX),
    (0x30, u32::MAX),
    (0x3c, 0xffff_0000),
];
/// The same of a CardBus bridge (PC Card Standard), whose windows are whole registers from 0x1c on.
const CARDBUS_ROUTING: [(u16, u32); 10] = [
    (BUS_NUMBERS, u32::MAX),
    (0x1c, u32::MAX),
    (0x20, u32::MAX),
    (0x24, u32::MAX),
    (0x28, u32::MAX),
    (0x2c, u32::MAX),
    (0x30, u32::MAX),
    (0x34, u32::MAX),
    (0x38, u32::MAX),
    (0x3c, 0xffff_0000),
];
