//! Which guest's page each device may reach, told to the oracles as the service tells it.
//!
//! The policy's yes to an assignment widens what the device may reach by the new guest's page. The event at the end of an
//! operation makes it what the registry says. So an oracle allows no less than the contract, and more only while the device is
//! moved.
//!
//! # Locking
//!
//! One mutex, taken with no lock of the library held; those of the machine and of the oracles are inside it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::scenario::{Rules, Score};
use iommu_assign::assign::{Event, EventSink, IommuKey, Label, Policy, PolicyRequest, Stream, Why};
use machine::Machine;
use machine::oracle::Oracle;

use crate::guests::PAGE;

/// An oracle for each SMMU, and what they are told.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    oracles: BTreeMap<IommuKey, Oracle>,
    /// Where each guest's first page is: the one that the oracles ask about, and that is never unmapped.
    guests: BTreeMap<Label, u64>,
    devices: BTreeMap<Label, Lease>,
}

#[derive(Debug)]
struct Lease {
    streams: Vec<Stream>,
    /// Where its owner's page is.
    page: Option<u64>,
}

impl Leases {
    /// An SMMU is up: each write to it is looked at from now on.
    pub(super) fn watch(&self, machine: &Machine, iommu: IommuKey) {
        let oracle = Oracle::default();
        oracle.watch_only(machine, iommu, PAGE, STRANGERS);
        self.lock().oracles.insert(iommu, oracle);
    }

    /// A guest's first page is at `page`.
    pub(super) fn has_guest(&self, label: &Label, page: u64) {
        self.lock().guests.insert(label.clone(), page);
    }

    /// There is a device with these streams.
    pub(super) fn has_device(&self, label: &Label, streams: &[Stream]) {
        self.lock().devices.insert(label.clone(), Lease { streams: streams.to_vec(), page: None });
    }

    /// What the SMMU's oracle saw that must not be. Says how many register writes it looked at.
    pub(super) fn judge(&self, iommu: IommuKey, score: &Score) -> u64 {
        let known = self.lock();
        let (writes, seen) = known.oracles.get(&iommu).map(Oracle::verdict).unwrap_or_default();
        seen.iter().for_each(|seen| score.violation(format_args!("{iommu}: {seen}")));
        writes
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for Leases {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        let allows = Rules.allows(request);
        if allows && matches!(request.why, Why::Assign) {
            let known = self.lock();
            known.tell(request.device.label(), known.guests.get(request.domain).copied());
        }
        allows
    }
}

impl EventSink for Leases {
    fn event(&self, event: &Event) {
        let mut known = self.lock();
        match event {
            Event::Assigned { device, domain } => {
                let page = known.guests.get(domain).copied();
                known.settle(device, page);
            }
            Event::Added { device } | Event::Deassigned { device } | Event::Quarantined { device } => {
                known.settle(device, None);
            }
            Event::Removed { device } => known.oracles.values().for_each(|oracle| oracle.forget(device)),
            _ => {}
        }
    }
}

impl Known {
    /// The device reaches this page, or nothing.
    fn settle(&mut self, device: &Label, page: Option<u64>) {
        if let Some(lease) = self.devices.get_mut(device) {
            lease.page = page;
        }
        self.tell(device, None);
    }

    /// Tells the oracles what the device may reach: its owner's page, and this one.
    fn tell(&self, device: &Label, more: Option<u64>) {
        let Some(lease) = self.devices.get(device) else { return };
        let pages: Vec<u64> = lease.page.into_iter().chain(more).collect();
        for (iommu, oracle) in &self.oracles {
            let streams = lease.streams.iter().filter(|stream| stream.iommu() == *iommu);
            let streams: Vec<(u32, u32)> = streams.map(|one| (one.id().value(), one.mask().value())).collect();
            if !streams.is_empty() {
                oracle.allow(device, &streams, &pages);
            }
        }
    }
}

/// Stream IDs beside those of devices: they are nobody's, or next to one.
const STRANGERS: [u16; 3] = [0, 0x7e, 0x7fff];
