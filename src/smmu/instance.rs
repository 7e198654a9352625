//! One SMMU instance: the driver's state, and how it comes to be.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::access::Access;
use super::budget::Budget;
use super::claims::Draft;
use super::config::{Architecture, SmmuConfig};
use super::context::{BankIndex, Vmids};
use super::cover::Cube;
use super::fault;
use super::gate::{Gate, Inside, Mode, Purpose};
use super::geometry::{Geometry, ProbeError};
use super::levels;
use super::master::Masters;
use super::mmio::Registers;
use super::probe::{self, Part, StreamWidths};
use super::quirks::{self, Effects};
use super::registers::Spelling;
use super::setup::{Power, Setup};
use super::stream_map::StreamMap;
use super::tlb::Tlb;
use crate::assign::{DomainId, IommuError, Stage2Limits, Stream};
use crate::sync::Platform;
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// An SMMU that faults every stream but those that it was told to translate.
///
/// # Locking
///
/// `Masters` is shared by all instances; `StreamMap`, `Spare` and `TlbSync` are each instance's own. A stream map's lock is
/// never held together with another's (contract C-13), and no lock is held while a status register is polled (C-14).
pub struct Smmu<P: Platform, R: Registers> {
    pub(super) config: SmmuConfig,
    pub(super) geometry: Geometry,
    pub(super) widths: StreamWidths,
    pub(super) spelling: Spelling,
    pub(super) vmids: Vmids,
    pub(super) registers: Access<R>,
    pub(super) masters: Arc<Masters<P>>,
    pub(super) map: Lock<levels::StreamMap, StreamMap, P::Lock>,
    pub(super) budget: Arc<Budget>,
    pub(super) spare: Lock<levels::Spare, Option<Box<Draft>>, P::Lock>,
    pub(super) tlb: Tlb<P>,
    /// The syncs of the banks; empty where banks have none.
    pub(super) bank_tlbs: Box<[Tlb<P>]>,
    /// The domain of each live bank, 0 for none: what a fault handler may read.
    pub(super) bank_domains: Box<[AtomicU64]>,
    pub(super) counters: fault::Counters,
    /// Faults raise interrupts.
    pub(super) reports: AtomicBool,
    pub(super) gate: Gate,
    pub(super) power: Outside<Arc<dyn Power>>,
    /// IDs that entries may capture though nobody has them.
    pub(super) unused: Vec<Cube>,
    notes: Notes,
}

/// What probe found odd and worked around (contract A-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notes {
    /// Firmware gives a region of another size than IDR1 says: bytes by firmware, bytes by IDR1 (quirk Q20).
    pub region: Option<(u64, u64)>,
    /// IDR0.CTTW says otherwise than firmware, which is believed (quirk Q19).
    pub coherency_differs: bool,
    /// Banks whose prefetcher is locked on (quirk Q3).
    pub prefetching: u8,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Reads what the instance is, brings every stream to fault, and enables it.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]: the instance is not enabled, and must not be registered.
    ///
    /// # Context
    ///
    /// Waiting context: a sync is polled.
    pub fn probe(config: SmmuConfig, registers: R, masters: Arc<Masters<P>>) -> Result<Self, ProbeError> {
        Self::probe_with(config, Setup::default(), registers, masters)
    }

    /// [`probe`](Self::probe) of an instance whose power must be asked for, or with streams that firmware reserved.
    ///
    /// # Errors
    ///
    /// As for [`probe`](Self::probe); [`ProbeError::NoPower`]; [`ProbeError::Reserved`] where a reserved stream cannot
    /// have its restricted translation.
    ///
    /// # Context
    ///
    /// Waiting context: a sync is polled.
    pub fn probe_with(
        config: SmmuConfig,
        setup: Setup,
        registers: R,
        masters: Arc<Masters<P>>,
    ) -> Result<Self, ProbeError> {
        let iommu = config.key;
        setup.power.get().map_err(|error| ProbeError::NoPower { iommu, reason: error.0 })?;
        let power = setup.power.clone();
        let probed = Self::probe_powered(config, setup, registers, masters);
        power.put();
        if let Ok(smmu) = &probed {
            smmu.log_notes();
        }
        probed
    }

    fn probe_powered(
        config: SmmuConfig,
        setup: Setup,
        registers: R,
        masters: Arc<Masters<P>>,
    ) -> Result<Self, ProbeError> {
        let mut held = Held::enter();
        let held = &mut held;
        let geometry = Geometry::read(&registers, &config)?;
        let effects = quirks::effects_of(&config, geometry.revision);
        let registers = Access::new(registers, effects, config.read_back);
        let out_of_memory = ProbeError::OutOfMemory(config.key);
        let vmids = if effects.contains(Effects::CHIP_WIDE_VMIDS) {
            let highest = if geometry.vmid16 { u16::MAX } else { u8::MAX.into() };
            masters.take_vmids(geometry.banks, highest).ok_or(ProbeError::NoVmids(config.key))?
        } else {
            Vmids::OWN
        };
        let map = StreamMap::new(geometry.entries, geometry.banks).ok_or(out_of_memory)?;
        let spare = Draft::new(geometry.entries, 0).map_err(|_| out_of_memory)?;
        let mut bank_domains = Vec::new();
        bank_domains.try_reserve_exact(geometry.banks.into()).map_err(|_| out_of_memory)?;
        bank_domains.resize_with(geometry.banks.into(), AtomicU64::default);
        let mut bank_tlbs = Vec::new();
        if geometry.architecture == Architecture::V2 {
            bank_tlbs.try_reserve_exact(geometry.banks.into()).map_err(|_| out_of_memory)?;
            bank_tlbs.extend((0..geometry.banks).map(|bank| Tlb::of_bank(&geometry, bank)));
        }
        let mut reserved: Vec<Stream> = Vec::new();
        let streams = || setup.reserved.iter().flat_map(|reserved| &reserved.streams);
        reserved.try_reserve_exact(streams().count()).map_err(|_| out_of_memory)?;
        reserved.extend(streams().copied());
        let tlb = Tlb::global();
        let found =
            probe::reset(held, &Part { config: &config, geometry: &geometry, registers: &registers }, &tlb, &reserved)?;
        let notes = Notes {
            region: Some((config.region_size, geometry.register_bytes)).filter(|(given, told)| given != told),
            coherency_differs: geometry.coherent_walks != config.coherent,
            prefetching: found.prefetching,
        };
        let mut smmu = Self {
            config,
            geometry,
            widths: found.widths,
            spelling: found.spelling,
            vmids,
            registers,
            masters,
            map: Lock::new(map),
            budget: Budget::new(geometry.entries),
            spare: Lock::new(Some(Box::new(spare))),
            tlb,
            bank_tlbs: bank_tlbs.into_boxed_slice(),
            bank_domains: bank_domains.into_boxed_slice(),
            counters: fault::Counters::new(),
            reports: AtomicBool::new(false),
            gate: Gate::new(),
            power: Outside::new(setup.power),
            unused: Vec::new(),
            notes,
        };
        smmu.reserve(held, &setup.reserved, found.kept)?;
        let refused = |error| ProbeError::Reserved { iommu: smmu.config.key, error };
        smmu.unused = smmu.admit(&setup.unused).map_err(refused)?;
        probe::enable::<P, R>(&smmu.part(), false)?;
        Ok(smmu)
    }

    /// What the ID registers say.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What was odd at probe.
    #[must_use]
    pub const fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The registers, for a test or a tool that looks at them from outside.
    #[must_use]
    pub const fn registers(&self) -> &R {
        self.registers.raw()
    }

    fn log_notes(&self) {
        let iommu = self.config.key;
        if let Some((given, told)) = self.notes.region {
            log::warn!("{iommu}: firmware gives {given:#x} bytes of registers, IDR1 says {told:#x}; IDR1 is believed");
        }
        if self.notes.coherency_differs {
            log::warn!("{iommu}: IDR0.CTTW and firmware's dma-coherent differ; firmware is believed");
        }
        if self.notes.prefetching > 0 {
            log::warn!("{iommu}: {} banks prefetch still: the Secure side keeps CACHE_LOCK", self.notes.prefetching);
        }
    }

    pub(super) const fn part(&self) -> Part<'_, R> {
        Part { config: &self.config, geometry: &self.geometry, registers: &self.registers }
    }

    /// What tables its banks can follow.
    pub(super) fn table_limits(&self) -> Stage2Limits {
        self.geometry.limits(self.config.coherent, !self.registers.has(Effects::NO_BLOCKS))
    }

    /// Tells fault handlers whose bank it is. A quiet space's faults are nobody's business.
    pub(super) fn publish_bank(&self, bank: BankIndex, domain: Option<DomainId>) {
        let domain = domain.filter(|domain| !crate::assign::own_space::is_quiet(*domain));
        if let Some(slot) = self.bank_domains.get(usize::from(bank)) {
            slot.store(domain.map_or(0, DomainId::number), Ordering::Release);
        }
    }

    /// Enters without touching a register.
    pub(super) fn enter(&self, purpose: Purpose) -> Result<Inside<'_>, IommuError> {
        self.gate.enter::<P>(purpose, self.config.looks())
    }

    /// Does something with the registers, between get and put of the power hook (contract S-5).
    ///
    /// On an instance that is out of service only what releases is done, in software, and says so (contract C-9).
    pub(super) fn powered<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        purpose: Purpose,
        act: impl FnOnce(&mut Held<'_, Unlocked>) -> Result<T, IommuError>,
    ) -> Result<T, IommuError> {
        let inside = self.enter(purpose)?;
        match inside.mode {
            Mode::Suspended => act(held),
            Mode::Gone => act(held).and(Err(IommuError::ProviderGone)),
            _ => {
                self.power.call(held).get().map_err(|error| IommuError::NoPower(error.0))?;
                let done = act(held);
                self.power.call(held).put();
                done
            }
        }
    }
}

impl<P: Platform, R: Registers> fmt::Debug for Smmu<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Smmu({}, {})", self.config.key, self.geometry)
    }
}
