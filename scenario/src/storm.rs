//! A device that faults without end: its line is masked by the handler, the worker quarantines the device without reports and
//! unmasks the line, and the device can be given to a guest again afterwards.

use iommu_assign::assign::DeviceState;

use super::machine::{Guest, Machine};
use super::world::World;

/// Accesses between two looks of the worker.
const BURST: usize = 512;
/// How often the worker may look before the storm must be ended.
const ROUNDS: u32 = 1000;
/// Accesses after that. Fewer faults than these are heard meanwhile: those of other devices.
const AFTER: u64 = 1000;

impl<M: Machine> World<M> {
    /// Raises the storm and sees it end.
    pub(crate) fn storm(&self) {
        let Some(master) = &self.storming else {
            log::info!("no device here can be made to storm");
            return;
        };
        log::info!("{} begins to storm", master.label());
        let score = self.score();
        let before = score.masked.value();
        let state = || self.service.find(master.key()).map(|info| info.state);
        let mut rounds = 0_u32;
        while !matches!(state(), Some(DeviceState::Quarantined(_))) {
            (0..BURST).for_each(|_| master.stray());
            self.tend();
            rounds = rounds.saturating_add(1);
            if rounds > ROUNDS {
                score.violation(format_args!("the storm of {} is not ended", master.label()));
                return;
            }
        }
        if score.masked.value() == before {
            score.violation(format_args!("{} stormed, and no handler asked for its line to be masked", master.label()));
        }
        let heard = score.faults.value();
        (0..AFTER).for_each(|_| master.stray());
        let heard = score.faults.value().saturating_sub(heard);
        if heard >= AFTER {
            score.violation(format_args!("faults of {} are still reported after its storm was ended", master.label()));
        }
        let Some((info, guest)) = self.service.find(master.key()).zip(self.guests.first()) else { return };
        self.carry_out(|service| service.assign(&info.device, guest.domain()));
        self.check(master, Some(guest), 0);
        self.carry_out(|service| service.deassign(&info.device));
        self.check(master, None, 0);
        log::info!(
            "the storm of {} is over after {rounds} rounds; {AFTER} more faults were heard as {heard}",
            master.label()
        );
    }
}
