//! All of it, on the boot CPU and on every other.

use core::sync::atomic::Ordering;

use iommu_assign::assign::Progress;
use iommu_assign::sync::Micros;

use super::life::Life;
use super::machine::Machine;
use super::now;
use super::ticks::FIRST;
use super::world::World;

/// What else the boot CPU does in each round.
pub trait Sideline {
    /// A round.
    fn step(&mut self) {}

    /// The last one: takes back what is its own.
    fn finish(&mut self) {}
}

/// Nothing else.
impl Sideline for () {}

/// Between two lines that say how far it is.
const TOLD_EACH: Micros = Micros::from_millis(10_000);

impl<M: Machine> World<M> {
    /// The boot CPU's part, for `span`: a life like every CPU's, the worker, the storm. When it returns all other CPUs have taken
    /// back what was theirs.
    pub fn lead(&self, span: Micros, sideline: &mut impl Sideline) {
        self.machine.interrupt_after(FIRST);
        self.started.store(true, Ordering::Release);
        let start = now::<M::Platform>();
        let mut life = Life::new(self, self.machine.cpu());
        let mut worker = self.queue.worker();
        let (mut stormed, mut told) = (false, start);
        while now::<M::Platform>().since(start) < span {
            life.step();
            sideline.step();
            if let Some(worker) = &mut worker {
                // What meets a claimed group stays for a later round.
                while worker.run_one(&self.service) == Progress::Answered {}
            }
            self.tend();
            if !stormed && now::<M::Platform>().since(start).value() > span.value() / 3 {
                self.storm();
                stormed = true;
            }
            if now::<M::Platform>().since(told) > TOLD_EACH {
                told = now::<M::Platform>();
                log::info!("{}", self.score().line(self.cpus));
            }
        }
        self.stopped.store(true, Ordering::Release);
        life.finish();
        sideline.finish();
        while self.finished.load(Ordering::Acquire).saturating_add(1) < self.cpus {
            if let Some(worker) = &mut worker {
                let _ = worker.run_one(&self.service);
            }
            self.tend();
        }
        self.machine.stop_timer();
    }

    /// What every other CPU does.
    pub fn follow(&self) {
        while !self.started.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        self.machine.interrupt_after(FIRST);
        let mut life = Life::new(self, self.machine.cpu());
        while !self.stopped.load(Ordering::Acquire) {
            life.step();
        }
        life.finish();
        self.machine.stop_timer();
        self.finished.fetch_add(1, Ordering::Release);
    }
}
