//! Bounded walks of the two capability lists, and typed views of what decides isolation.
//!
//! The walks are here, `views.rs` has the views, `single_root.rs` that of SR-IOV, `conventional.rs` those of capabilities
//! that conventional PCI has. Section numbers are of the PCI Express Base Specification, revision 6.

use super::config::{ConfigError, ConfigSpace, FunctionConfig, HAS_CAPABILITIES, STATUS};

mod views;
mod single_root;
mod conventional;

pub use conventional::{AdvancedFeatures, PowerManagement};
pub use single_root::SrIov;
pub(super) use single_root::{ARI_HIERARCHY, VF_ENABLE, VF_MEMORY_ENABLE};
pub(super) use views::{ATS_ENABLE, PASID_ENABLE, PRI_ENABLE, ari_control};
pub use views::{Acs, AcsControls, Ats, Express, Msi, MsiX, Pasid, PortType, Pri, ResizableBars};

/// An entry of the standard list (7.5.1.1.11): in the first 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is; numbers by the PCI Code and ID Assignment Specification.
    pub id: u8,
    /// Where it is.
    pub offset: u16,
}

impl Capability {
    /// Power management.
    pub const POWER: u8 = 0x01;
    /// Message signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSI_X: u8 = 0x11;
    /// Advanced features.
    pub const ADVANCED_FEATURES: u8 = 0x13;
}

/// An entry of the extended list (7.6): from offset 256 up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// What it is; numbers by the PCI Code and ID Assignment Specification.
    pub id: u16,
    /// Its version, 4 bits.
    pub version: u8,
    /// Where it is.
    pub offset: u16,
}

impl ExtendedCapability {
    /// Access control services.
    pub const ACS: u16 = 0x0d;
    /// Alternative routing-ID interpretation.
    pub const ARI: u16 = 0x0e;
    /// Address translation services.
    pub const ATS: u16 = 0x0f;
    /// Single root I/O virtualization.
    pub const SR_IOV: u16 = 0x10;
    /// Page requests.
    pub const PRI: u16 = 0x13;
    /// Base addresses of a size that can be set.
    pub const RESIZABLE_BAR: u16 = 0x15;
    /// Latency tolerance reporting.
    pub const LTR: u16 = 0x18;
    /// Process address space IDs.
    pub const PASID: u16 = 0x1b;
    /// Virtual functions' base addresses of a size that can be set.
    pub const VF_RESIZABLE_BAR: u16 = 0x24;
}

/// All capabilities of a function that matter for isolation.
///
/// A snapshot: what was enabled when it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// PCI Express; absent in conventional PCI functions.
    pub express: Option<Express>,
    /// Power management.
    pub power: Option<PowerManagement>,
    /// Advanced features.
    pub advanced: Option<AdvancedFeatures>,
    /// Message signalled interrupts.
    pub msi: Option<Msi>,
    /// MSI-X.
    pub msi_x: Option<MsiX>,
    /// Access control services.
    pub acs: Option<Acs>,
    /// Where the ARI capability is: the function's requester ID has 8 bits of function below an ARI port.
    pub ari: Option<u16>,
    /// Address translation services.
    pub ats: Option<Ats>,
    /// Page requests.
    pub pri: Option<Pri>,
    /// Where the capability of latency tolerance reporting is.
    pub ltr: Option<u16>,
    /// Process address space IDs.
    pub pasid: Option<Pasid>,
    /// Single root I/O virtualization.
    pub sr_iov: Option<SrIov>,
    /// Base addresses of a size that can be set.
    pub resizable: Option<ResizableBars>,
    /// The same for virtual functions.
    pub vf_resizable: Option<ResizableBars>,
}

impl Capabilities {
    /// Walks both lists to their ends.
    ///
    /// Of a capability that comes twice the first counts: a function has each of these once.
    ///
    /// # Errors
    ///
    /// [`ConfigError::CapabilityLoop`], [`ConfigError::CapabilityPointer`]; [`ConfigError::NotPresent`] when the
    /// function is gone, at the start or midway.
    pub fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>) -> Result<Self, ConfigError> {
        config.still_present()?;
        let mut all = Self::default();
        walk(config, |Capability { id, offset }| match id {
            Capability::POWER => keep(&mut all.power, || PowerManagement::read(config, offset)),
            Capability::ADVANCED_FEATURES => keep(&mut all.advanced, || AdvancedFeatures::read(config, offset)),
            Capability::MSI => keep(&mut all.msi, || Msi::read(config, offset)),
            Capability::EXPRESS => keep(&mut all.express, || Express::read(config, offset)),
            Capability::MSI_X => keep(&mut all.msi_x, || MsiX::read(config, offset)),
            _ => {}
        })?;
        walk_extended(config, |ExtendedCapability { id, offset, .. }| match id {
            ExtendedCapability::ACS => keep(&mut all.acs, || Acs::read(config, offset)),
            ExtendedCapability::ARI => keep(&mut all.ari, || offset),
            ExtendedCapability::ATS => keep(&mut all.ats, || Ats::read(config, offset)),
            ExtendedCapability::PRI => keep(&mut all.pri, || Pri::read(config, offset)),
            ExtendedCapability::LTR => keep(&mut all.ltr, || offset),
            ExtendedCapability::PASID => keep(&mut all.pasid, || Pasid::read(config, offset)),
            ExtendedCapability::SR_IOV => keep(&mut all.sr_iov, || SrIov::read(config, offset)),
            ExtendedCapability::RESIZABLE_BAR => keep(&mut all.resizable, || ResizableBars::read(config, offset)),
            ExtendedCapability::VF_RESIZABLE_BAR => keep(&mut all.vf_resizable, || ResizableBars::read(config, offset)),
            _ => {}
        })?;
        // A function that vanished midway looks like one without some capabilities: never believe that.
        config.still_present()?;
        Ok(all)
    }
}

fn keep<T>(slot: &mut Option<T>, read: impl FnOnce() -> T) {
    if slot.is_none() {
        *slot = Some(read());
    }
}

/// Visits the standard list.
pub(super) fn walk<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    mut visit: impl FnMut(Capability),
) -> Result<(), ConfigError> {
    if config.read_u16(STATUS) & HAS_CAPABILITIES == 0 {
        return Ok(());
    }
    let function = config.function();
    // One bit for each of the 64 places.
    let mut seen = 0u64;
    let mut next = config.read_u16(CAPABILITIES_POINTER) & 0xfc;
    while next != 0 {
        let offset = next;
        if offset < FIRST_CAPABILITY {
            return Err(ConfigError::CapabilityPointer { function, offset });
        }
        let place = 1u64 << (offset >> 2 & 63);
        if seen & place != 0 {
            return Err(ConfigError::CapabilityLoop { function, offset });
        }
        seen |= place;
        let header = config.read_u16(offset);
        if header == u16::MAX {
            config.still_present()?;
            return Err(ConfigError::CapabilityPointer { function, offset });
        }
        let [id, pointer] = header.to_le_bytes();
        visit(Capability { id, offset });
        next = u16::from(pointer) & 0xfc;
    }
    Ok(())
}

/// Visits the extended list.
pub(super) fn walk_extended<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    mut visit: impl FnMut(ExtendedCapability),
) -> Result<(), ConfigError> {
    let function = config.function();
    let mut seen = [0u64; 16];
    let mut next = FIRST_EXTENDED;
    while next != 0 {
        let offset = next;
        if offset < FIRST_EXTENDED {
            return Err(ConfigError::CapabilityPointer { function, offset });
        }
        let Some(word) = seen.get_mut(usize::from(offset >> 8 & 15)) else { break };
        let place = 1u64 << (offset >> 2 & 63);
        if *word & place != 0 {
            return Err(ConfigError::CapabilityLoop { function, offset });
        }
        *word |= place;
        let header = config.read(offset);
        // An empty list is all zeros or an ID of all ones (7.6.1); without extended space all reads are ones.
        if offset == FIRST_EXTENDED && (header == 0 || header & 0xffff == 0xffff) {
            return Ok(());
        }
        if header == u32::MAX {
            config.still_present()?;
            return Err(ConfigError::CapabilityPointer { function, offset });
        }
        let [low, high, version, _] = header.to_le_bytes();
        visit(ExtendedCapability { id: u16::from_le_bytes([low, high]), version: version & 0xf, offset });
        next = (header >> 20) as u16 & 0xffc;
    }
    Ok(())
}

const CAPABILITIES_POINTER: u16 = 0x34;
const FIRST_CAPABILITY: u16 = 0x40;
const FIRST_EXTENDED: u16 = 0x100;
