//! A device that faults without end: its line is masked by the handler, the worker quarantines the device without reports and
//! unmasks the line, and the device can be given to a guest again afterwards.

use core::sync::atomic::Ordering;

use iommu_assign::assign::DeviceState;

use super::life::deadline;
use super::score::{self, ACCESSES, expect};
use super::world::World;
use crate::iommu::smmus::{FAULTS, MASKED};

/// Raises the storm and sees it end.
pub(crate) fn raise_and_end(world: &World) {
    let Some(master) = &world.storming else {
        log::info!("no device here can be made to storm");
        return;
    };
    log::info!("{} begins to storm", master.label());
    let before = MASKED.load(Ordering::Relaxed);
    let state = || world.service.find(master.key()).map(|info| info.state);
    let mut rounds = 0_u32;
    while !matches!(state(), Some(DeviceState::Quarantined(_))) {
        (0..512).for_each(|_| master.stray());
        world.tend();
        rounds += 1;
        if rounds > 1000 {
            crate::violation!("the storm of {} is not ended", master.label());
            return;
        }
    }
    if MASKED.load(Ordering::Relaxed) == before {
        crate::violation!("{} stormed, and no handler asked for its line to be masked", master.label());
    }
    // It storms on without reports: what is counted meanwhile is other devices' faults.
    let heard = FAULTS.load(Ordering::Relaxed);
    (0..1000).for_each(|_| master.stray());
    let heard = FAULTS.load(Ordering::Relaxed).saturating_sub(heard);
    if heard >= 1000 {
        crate::violation!("faults of {} are still reported after its storm was ended", master.label());
    }
    let Some(info) = world.service.find(master.key()) else { return };
    let guest = &world.guests[0];
    expect(world.service.wait(deadline(), |service| service.assign(&info.device, &guest.domain)));
    score::add(&ACCESSES, master.check(Some(guest), &world.guests, 0));
    expect(world.service.wait(deadline(), |service| service.deassign(&info.device)));
    score::add(&ACCESSES, master.check(None, &world.guests, 0));
    log::info!("the storm of {} is over after {rounds} rounds; 1000 more faults were heard as {heard}", master.label());
}
