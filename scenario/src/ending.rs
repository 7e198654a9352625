//! Everything is taken back, compared a last time, and said in a line.

use iommu_assign::assign::FaultRecord;

use super::machine::{Guest, Machine, Unit};
use super::world::World;

impl<M: Machine> World<M> {
    /// The end: all CPUs but this one sleep. Afterwards the score is final.
    pub fn end(&self) {
        let score = self.score();
        if let Some(master) = &self.storming {
            score.expect(self.service.remove(master.key()));
        }
        self.audit("with bridges only");
        // Children come after their parents, in the order in which they were added.
        for key in self.others.iter().rev() {
            score.expect(self.service.remove(*key));
        }
        if let Some(left) = self.service.next_device(None) {
            score.violation(format_args!("{} is registered still", left.device.label()));
        }
        for guest in &self.guests {
            score.expect(self.service.destroy_domain(guest.domain()));
        }
        self.audit("with nothing registered");
        for unit in &self.units {
            unit.judge(score);
            for raw in unit.recent().into_iter().take(3) {
                log::info!("one of the last faults: {}", FaultRecord { raw, device: self.name_of(&raw), domain: None });
            }
        }
        if let Err(cause) = self.service.shutdown() {
            score.violation(format_args!("shutdown: {cause}"));
        }
        log::info!(
            "{} accesses compared; {} flushes in timer interrupts, {} more gave up waiting; {} requests from interrupts carried out",
            score.accesses.value(),
            score.flushes.value(),
            score.impatient.value(),
            score.requests.value()
        );
    }

    fn audit(&self, when: &str) {
        let mut findings = 0_usize;
        self.service.audit(&mut |finding| {
            findings = findings.saturating_add(1);
            self.score().violation(format_args!("audit: {finding}"));
        });
        log::info!("audit {when}: {findings} findings");
    }
}
