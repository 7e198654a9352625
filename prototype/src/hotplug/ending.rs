//! The end is the start, and everything can be had again.

use iommu_assign::assign::{DeviceKey, DeviceSpec, Label, Resource, Service, Source, Stream, StreamId, StreamMask};
use iommu_assign::sync::Spin;

use super::backplane::SLOTS;
use super::integrator::{BOARD_BANKS, BOARD_ENTRIES};
use super::rig::Rig;
use crate::guests;

/// All that must be again as it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The registry as an operator sees it.
    registry: String,
    /// Who has which entry and which bank.
    usage: Vec<String>,
    /// The registers of the ports.
    ports: Vec<(String, u16, u32)>,
}

impl Start {
    pub(super) fn of(rig: &Rig) -> Self {
        let mut registry = String::new();
        // Writing to a string does not fail.
        let _ = rig.service.write_tree(&mut registry);
        let ports = (0..SLOTS).flat_map(|slot| rig.backplane.registers(slot, true));
        let ports = ports.map(|(at, offset, value)| (at.to_string(), offset, value)).collect();
        Self { registry, usage: usage(rig), ports }
    }

    /// Says what is not as it was.
    pub(super) fn compare(&self, rig: &Rig) {
        let now = Self::of(rig);
        if now.registry != self.registry {
            rig.tally.violation(format!("the registry was\n{}and is\n{}", self.registry, now.registry));
        }
        if now.usage != self.usage {
            rig.tally.violation(format!("the SMMU's entries and banks were {:?} and are {:?}", self.usage, now.usage));
        }
        let changed = self.ports.iter().zip(&now.ports).find(|(before, after)| before != after);
        if let Some(((at, offset, before), (_, _, after))) = changed {
            rig.tally.violation(format!("{at}: register {offset:#x} was {before:#x} and is {after:#x}"));
        }
        audit(rig);
    }
}

/// Removes what the board began with, and asks for every entry and every bank.
pub(super) fn exhaust(rig: &Rig) {
    let mut roots: Vec<DeviceKey> = rig.service.devices().map(|info| info.device.key()).collect();
    roots.reverse();
    for key in roots {
        if let Err(error) = rig.service.remove(key) {
            rig.tally.violation(error.to_string());
        }
    }
    let left: Vec<String> = rig.service.devices().map(|info| info.device.label().to_string()).collect();
    let used = usage(rig);
    if !left.is_empty() || !used.is_empty() {
        rig.tally.violation(format!("at the end {left:?} are registered, and in use are {used:?}"));
    }
    audit(rig);
    if let Err(why) = have_all(rig) {
        rig.tally.violation(format!("not everything can be had again: {why}"));
    }
    audit(rig);
}

/// A device for each entry, and of them one for each bank in a domain of its own.
fn have_all(rig: &Rig) -> Result<(), String> {
    let mut devices = Vec::new();
    for number in 0..u32::from(BOARD_ENTRIES) {
        // No two of them differ in one bit alone.
        let stream = Stream::new(rig.iommu, StreamId::new(number << 8 | number.count_ones() << 4), StreamMask::NONE);
        let label = Label::from(format!("probe {number}").as_str());
        let spec = DeviceSpec::new(DeviceKey::new(Source::Dt, number.into()), label, vec![stream]);
        devices.push(rig.service.add(DeviceSpec { passthrough: true, ..spec }).map_err(|error| error.to_string())?);
    }
    let limits = rig.service.limits().ok_or("no SMMU is in service")?;
    let mut domains = Vec::new();
    for (number, device) in (0..u64::from(BOARD_BANKS)).zip(&devices) {
        let (tables, backing) = guests::tables(&rig.machine, number, limits);
        let label = Label::from(format!("probe {number}").as_str());
        let domain = rig.service.create_domain(label, tables.stage2()).map_err(|error| error.to_string())?;
        rig.ledger.permit(device, backing);
        rig.service.assign(device, &domain).map_err(|error| error.to_string())?;
        domains.push(domain);
    }
    let banks = count(&rig.service, rig, Resource::ContextBanks);
    if banks != usize::from(BOARD_BANKS) {
        return Err(format!("{banks} banks are in use, and there are {BOARD_BANKS}"));
    }
    for device in &devices {
        rig.service.remove(device).map_err(|error| error.to_string())?;
        rig.ledger.released(device);
    }
    for domain in &domains {
        rig.service.destroy_domain(domain).map_err(|error| error.to_string())?;
    }
    rig.service.unregister_iommu(rig.iommu).map_err(|error| error.to_string())
}

fn count(service: &Service<Spin>, rig: &Rig, which: Resource) -> usize {
    let mut used: Vec<u8> = Vec::new();
    let _ = service.usage(rig.iommu, &mut |record| {
        if record.resource == which {
            used.push(record.index);
        }
    });
    used.sort_unstable();
    used.dedup();
    used.len()
}

fn usage(rig: &Rig) -> Vec<String> {
    let mut lines = Vec::new();
    let listed = rig.service.usage(rig.iommu, &mut |record| {
        let name = |label: &Option<Label>| label.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        lines.push(format!("one of the {}: {} for {}", record.resource, name(&record.device), name(&record.domain)));
    });
    if let Err(error) = listed {
        rig.tally.violation(error.to_string());
    }
    lines.sort_unstable();
    lines
}

/// Registry, driver and registers agree.
fn audit(rig: &Rig) {
    rig.service.audit(&mut |finding| rig.tally.violation(format!("audit: {finding}")));
}
