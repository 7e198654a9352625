//! Everything is taken back, compared a last time, and said in a line.

use core::sync::atomic::{AtomicU64, Ordering};

use iommu_assign::assign::FaultRecord;

use super::score::{self, ACCESSES, FLUSHES, IMPATIENT, REQUESTS, SURPRISES, expect};
use super::world::World;
use crate::boot::heap;
use crate::iommu::smmus::MASKED;
use crate::machine::{console, interrupts};
use crate::pci::functions::RESETS;

/// The end: all CPUs but this one sleep. Returns the status.
pub(crate) fn end(world: &World) -> u8 {
    if let Some(master) = &world.storming {
        expect(world.service.remove(master.key()));
    }
    audit(world, "with bridges only");
    // Children come after their parents, in the order of keys.
    for key in world.others.iter().rev() {
        expect(world.service.remove(*key));
    }
    if let Some(left) = world.service.next_device(None) {
        crate::violation!("{} is registered still", left.device.label());
    }
    for guest in &world.guests {
        expect(world.service.destroy_domain(&guest.domain));
    }
    audit(world, "with nothing registered");
    for unit in &world.units {
        let hazards = unit.model.as_ref().map_or(0, |model| model.hazards());
        if hazards > 0 {
            crate::violation!("{}: the model has seen {hazards} hazards", unit.key);
        }
        for raw in unit.recent().into_iter().take(3) {
            log::info!("one of the last faults: {}", FaultRecord { raw, device: world.name_of(&raw), domain: None });
        }
    }
    if let Err(cause) = world.service.shutdown() {
        crate::violation!("shutdown: {cause}");
    }
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    log::info!(
        "{} accesses compared; {} flushes in timer interrupts, {} more gave up waiting; {} requests from interrupts carried out",
        value(&ACCESSES),
        value(&FLUSHES),
        value(&IMPATIENT),
        value(&REQUESTS)
    );
    log::info!(
        "{} interrupts, {} times a line masked; {} resets of functions, {} surprise removals; {} bytes of heap in use; {} lines of the library not printed",
        interrupts::count(),
        value(&MASKED),
        value(&RESETS),
        value(&SURPRISES),
        heap::used(),
        console::unsaid()
    );
    crate::say!("{}", score::line(world.cpus));
    u8::from(score::violations() > 0)
}

fn audit(world: &World, when: &str) {
    let mut findings = 0;
    world.service.audit(&mut |finding| {
        findings += 1;
        crate::violation!("audit: {finding}");
    });
    log::info!("audit {when}: {findings} findings");
}
