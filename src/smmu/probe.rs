//! How an instance comes to be: read, reset, taken over, enabled.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::bank::banks::Banks;
use super::bank::tlb::Tlb;
use super::faults::fault_records::FaultRecords;
use super::gate::Gate;
use super::hardware::part::Part;
use super::hardware::quirks::Effects;
use super::hardware::{Architecture, Geometry, ProbeError, Registers, SmmuConfig};
use super::instance::{Notes, Shadow, Smmu};
use super::reset;
use super::setup::Setup;
use super::stream::map::Entries;
use super::stream::masters::Masters;
use super::stream::user::Users;
use super::supply::Supply;
use crate::assign::{IommuKey, Stream};
use crate::few;
use crate::sync::Platform;
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};

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
        let (iommu, held) = (config.key, &mut Held::enter());
        let power = Supply::new(setup.power.clone());
        power.take(held).map_err(|error| ProbeError::NoPower { iommu, reason: error.0 })?;
        let probed = Self::probe_powered(held, config, setup, registers, masters);
        power.give(held);
        if let Ok(smmu) = &probed {
            smmu.log_notes();
        }
        probed
    }

    fn probe_powered(
        held: &mut Held<'_, Unlocked>,
        config: SmmuConfig,
        setup: Setup,
        registers: R,
        masters: Arc<Masters<P>>,
    ) -> Result<Self, ProbeError> {
        let iommu = config.key;
        let geometry = Geometry::read(&registers, &config)?;
        let mut part = Part::new(config, geometry, registers);
        if part.registers.has(Effects::CHIP_WIDE_VMIDS) {
            let highest = if geometry.vmid16 { u16::MAX } else { u8::MAX.into() };
            part.first_vmid = masters.take_vmids(geometry.banks, highest).ok_or(ProbeError::NoVmids(iommu))?;
        }
        let out_of_memory = ProbeError::OutOfMemory(iommu);
        let mut entries = Entries::new(geometry.entries, geometry.matching).ok_or(out_of_memory)?;
        let (users, banks) = (Users::new().ok_or(out_of_memory)?, Banks::new(geometry.banks).ok_or(out_of_memory)?);
        let faults = FaultRecords::new(&part).ok_or(out_of_memory)?;
        let own_syncs = if geometry.architecture == Architecture::V2 { geometry.banks } else { 0 };
        let mut bank_tlbs = room(own_syncs.into(), iommu)?;
        few::extend_within(&mut bank_tlbs, (0..own_syncs).map(|bank| Tlb::of_bank(&geometry, bank)));
        let tlb = Tlb::global(geometry.banks).ok_or(out_of_memory)?;
        let streams = || setup.reserved.iter().flat_map(|reserved| &reserved.streams);
        let mut reserved: Vec<Stream> = room(streams().count(), iommu)?;
        few::extend_within(&mut reserved, streams().copied());
        tlb.meet_what_is_in_flight(&part.registers);
        let found = reset::reset(held, &part, &tlb, &reserved)?;
        (part.widths, part.spelling, part.geometry.entries) = (found.widths, found.spelling, found.entries);
        entries.truncate(found.entries);
        let region = (part.config.region_size, geometry.register_bytes);
        let notes = Notes {
            region: Some(region).filter(|(given, told)| given != told),
            coherency_differs: geometry.coherent_walks != part.config.coherent,
            prefetching: found.prefetching,
        };
        let smmu = Self {
            part,
            masters,
            shadow: Lock::new(Shadow { entries, users, banks }),
            tlb,
            bank_tlbs,
            faults,
            gate: Gate::new(),
            power: Supply::new(setup.power),
            notes,
        };
        let taken = smmu.take_over(held, &setup.reserved, found.kept);
        if let Err(error) = taken.and_then(|()| reset::enable::<P, R>(&smmu.part, false)) {
            smmu.forget_reserved(held);
            return Err(error);
        }
        Ok(smmu)
    }

    fn log_notes(&self) {
        let iommu = self.part.key();
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
}

/// An empty list with room for `count`.
fn room<T>(count: usize, iommu: IommuKey) -> Result<Vec<T>, ProbeError> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| ProbeError::OutOfMemory(iommu))?;
    Ok(list)
}
