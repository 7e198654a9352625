//! What the hypervisor does with the library, on all CPUs at once, and what is counted of it.
//!
//! | file | what |
//! |---|---|
//! | `score.rs` | operations, and violations: what was not as it must be |
//! | `random.rs` | small random numbers, each CPU's own |
//! | `world.rs` | what all CPUs share: service, guests, SMMUs, host bridges |
//! | `measure.rs` | what each operation takes, before the other CPUs join in |
//! | `life.rs` | one CPU's devices: added, assigned, moved, unmapped under, taken back, removed |
//! | `ticks.rs` | timer interrupts: flushes, requests for the worker |
//! | `hotplug.rs` | functions that are plugged in and out, or pulled |
//! | `storm.rs` | a device that faults without end |
//! | `ending.rs` | everything taken back, the audit, the last line |

#[macro_use]
pub(crate) mod score;
mod ending;
mod hotplug;
mod life;
pub(crate) mod measure;
mod random;
mod storm;
mod ticks;
pub(crate) mod world;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iommu_assign::sync::Micros;
use spin::Once;

use crate::iommu::smmus;
use crate::machine::{gic, interrupts, time};
pub(crate) use ticks::tick;

use hotplug::HotPlug;
use life::Life;
use world::World;

static WORLD: Once<World> = Once::new();
static STARTED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);
static FINISHED: AtomicUsize = AtomicUsize::new(0);

/// How it is played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// For how long.
    pub(crate) span: Micros,
    /// The machine's clock counts instructions.
    pub(crate) counts_instructions: bool,
}

/// The boot CPU's way through it all. Returns the status to end with.
pub(crate) fn play(world: World, plan: Plan) -> u8 {
    let world = WORLD.call_once(|| world);
    let span = plan.span;
    // Nothing can interrupt yet.
    interrupts::unmask();
    measure::measure(world, plan.counts_instructions);
    smmus::listen(&world.units, &world.service);
    start_ticking();
    STARTED.store(true, Ordering::Release);

    let start = time::now();
    let mut life = Life::new(world, 0);
    let mut hot_plug = HotPlug::new(world);
    let mut worker = world.queue.worker();
    let (mut stormed, mut told) = (false, start);
    while time::now().since(start) < span {
        life.step();
        hot_plug.step();
        if let Some(worker) = &mut worker {
            // What meets a claimed group stays for a later round.
            while worker.run_one(&world.service) == iommu_assign::assign::Progress::Answered {}
        }
        world.tend();
        if !stormed && time::now().since(start).value() > span.value() / 3 {
            storm::raise_and_end(world);
            stormed = true;
        }
        if time::now().since(told) > Micros::from_millis(10_000) {
            told = time::now();
            log::info!("{}", score::line(world.cpus));
        }
    }
    STOPPED.store(true, Ordering::Release);
    life.finish();
    hot_plug.finish();
    while FINISHED.load(Ordering::Acquire) + 1 < world.cpus {
        if let Some(worker) = &mut worker {
            let _ = worker.run_one(&world.service);
        }
        world.tend();
    }
    time::stop();
    drop(worker);
    ending::end(world)
}

/// What every other CPU does.
pub(crate) fn secondary(cpu: usize) -> ! {
    while !STARTED.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    if let Some(world) = WORLD.get() {
        start_ticking();
        let mut life = Life::new(world, cpu);
        while !STOPPED.load(Ordering::Acquire) {
            life.step();
        }
        life.finish();
        time::stop();
    }
    FINISHED.fetch_add(1, Ordering::Release);
    loop {
        aarch64_cpu::asm::wfe();
    }
}

fn start_ticking() {
    if let Some(timer) = interrupts::timer()
        && gic::enable_private(timer).is_some()
    {
        time::interrupt_after(ticks::FIRST);
    }
}
