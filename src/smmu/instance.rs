//! One SMMU instance: the driver's state, and the `Iommu` trait over it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::config::{Implementation, SmmuConfig};
use super::context::BankIndex;
use super::fault;
use super::geometry::{Geometry, ProbeError};
use super::levels;
use super::master::Masters;
use super::mmio::Registers;
use super::probe::{self, StreamWidths};
use super::stream_map::StreamMap;
use super::tlb::Tlb;
use crate::assign::{
    AddressSpace, DeviceId, Difference, DomainId, FaultLine, Iommu, IommuError, IommuKey, Prepared, RawFault,
    Stage2Limits, Stream, StreamId,
};
use crate::sync::Platform;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock::Lock;
use crate::sync::order::Held;

/// An SMMU that faults every stream but those that it was told to translate.
///
/// # Locking
///
/// `Masters` is shared by all instances; `StreamMap` and `TlbSync` are each instance's own. A stream map's lock is never
/// held together with another's (contract C-13), and no lock is held while a status register is polled (C-14).
pub struct Smmu<P: Platform, R: Registers> {
    pub(super) config: SmmuConfig,
    pub(super) geometry: Geometry,
    pub(super) widths: StreamWidths,
    pub(super) registers: R,
    pub(super) masters: Arc<Masters<P>>,
    pub(super) map: Lock<levels::StreamMap, StreamMap, P::Lock>,
    pub(super) tlb: Tlb<P>,
    /// The domain of each live bank, 0 for none: what a fault handler may read.
    pub(super) bank_domains: Box<[AtomicU64]>,
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
        let mut held = Held::enter();
        let geometry = Geometry::read(&registers, &config)?;
        let out_of_memory = ProbeError::OutOfMemory(config.key);
        let map = StreamMap::new(geometry.entries, geometry.banks).ok_or(out_of_memory)?;
        let mut bank_domains = Vec::new();
        bank_domains.try_reserve_exact(geometry.banks.into()).map_err(|_| out_of_memory)?;
        bank_domains.resize_with(geometry.banks.into(), AtomicU64::default);
        let tlb = Tlb::new();
        let widths = probe::reset(&mut held, &registers, &config, &geometry, &tlb)?;
        let bank_domains = bank_domains.into_boxed_slice();
        Ok(Self { config, geometry, widths, registers, masters, map: Lock::new(map), tlb, bank_domains })
    }

    /// What the ID registers say.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The registers, for a test or a tool that looks at them from outside.
    #[must_use]
    pub const fn registers(&self) -> &R {
        &self.registers
    }

    /// Whether 64-bit registers must be written in halves (quirk Q8).
    pub(super) fn splits_64(&self) -> bool {
        self.config.implementation == Implementation::MarvellAp806
    }

    /// Tells fault handlers whose bank it is.
    pub(super) fn publish_bank(&self, bank: BankIndex, domain: Option<DomainId>) {
        if let Some(slot) = self.bank_domains.get(usize::from(bank)) {
            slot.store(domain.map_or(0, DomainId::number), Ordering::Release);
        }
    }

    /// Whether faults of `bank` are reported on context line `line`.
    fn reports_on(&self, bank: BankIndex, line: u8) -> bool {
        match self.config.context_lines {
            0 | 1 => true,
            // One line for each bank; with fewer lines than banks nothing says which banks share one.
            lines if lines >= u32::from(self.geometry.banks) => bank == line,
            _ => true,
        }
    }
}

impl<P: Platform, R: Registers> Iommu for Smmu<P, R> {
    fn key(&self) -> IommuKey {
        self.config.key
    }

    fn limits(&self) -> Stage2Limits {
        // Q10: Tegra's walk cache keeps entries of blocks that were taken apart.
        self.geometry.limits(self.config.coherent, self.config.implementation != Implementation::Nvidia)
    }

    fn publish(&self, device: DeviceId, streams: &[Stream]) -> Result<Vec<DeviceId>, IommuError> {
        self.publish_master(&mut Held::enter(), device, streams)
    }

    fn enrol(&self, device: DeviceId) -> Result<usize, IommuError> {
        self.claim_entries(&mut Held::enter(), device)
    }

    fn sharers(&self, device: DeviceId) -> Vec<DeviceId> {
        self.sharers_of(&mut Held::enter(), device)
    }

    fn plan(&self, devices: &[DeviceId], space: &AddressSpace) -> Result<Prepared, IommuError> {
        self.plan_move(&mut Held::enter(), devices, space)
    }

    fn abandon(&self, devices: &[DeviceId], prepared: Prepared) {
        self.abandon_move(&mut Held::enter(), devices, &prepared);
    }

    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError> {
        self.install_move(&mut Held::enter(), devices, &prepared)
    }

    fn block(&self, devices: &[DeviceId]) -> Result<Vec<DeviceId>, IommuError> {
        self.block_devices(&mut Held::enter(), devices)
    }

    fn withdraw(&self, device: DeviceId) -> Result<(), IommuError> {
        self.withdraw_master(&mut Held::enter(), device)
    }

    fn flush(&self, domain: DomainId) -> Result<(), IommuError> {
        self.flush_domain(&mut Held::enter(), domain)
    }

    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) {
        match line {
            FaultLine::Global => {
                if let Some(fault) = fault::take_global(&self.registers, self.config.key) {
                    report(fault);
                }
            }
            FaultLine::Context(line) => {
                for (bank, slot) in (0..=u8::MAX).zip(&self.bank_domains) {
                    let domain = slot.load(Ordering::Acquire);
                    if domain == 0 || !self.reports_on(bank, line) {
                        continue;
                    }
                    let domain = DomainId::new(domain);
                    let fault = fault::take_context(&self.registers, &self.geometry, self.config.key, bank, domain);
                    if let Some(fault) = fault {
                        report(fault);
                    }
                }
            }
        }
    }

    fn owner_of(&self, stream: StreamId) -> Option<DeviceId> {
        let mut held = Held::enter();
        let tree = self.masters.tree.lock(&mut held);
        let wanted = super::cover::Cube::point(stream.value());
        tree.of(self.config.key).find(|master| master.meets(&[wanted])).map(|master| master.device)
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        self.audit_all(&mut Held::enter(), report);
    }

    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        let mut held = Held::enter();
        let map = self.map.lock(&mut held);
        let used = map.used_by(device).ok_or(IommuError::Unknown)?;
        Ok(used.bank.get().and_then(|bank| map.bank(bank)).and_then(super::context::Bank::domain))
    }
}

impl<P: Platform, R: Registers> fmt::Debug for Smmu<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Smmu({}, {})", self.config.key, self.geometry)
    }
}
