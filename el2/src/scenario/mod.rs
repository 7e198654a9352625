//! The scenario of the crate of this name, played on this machine by all CPUs at once; and what is this machine's own.
//!
//! | file | what |
//! |---|---|
//! | `world.rs` | the board brought up: service, guests, SMMUs, host bridges |
//! | `measure.rs` | what each operation takes, before the other CPUs join in |
//! | `hotplug.rs` | functions that are plugged in and out, or pulled |

mod hotplug;
pub(crate) mod measure;
pub(crate) mod world;

use core::sync::atomic::Ordering;

use ::scenario::Score;
use iommu_assign::sync::Micros;
use spin::Once;

use crate::boot::heap;
use crate::iommu::smmus;
use crate::machine::{console, gic, interrupts};
use crate::pci::functions::RESETS;

use hotplug::HotPlug;
use world::World;

static WORLD: Once<World> = Once::new();

/// What is counted. Violations can be there before the world is.
pub(crate) static SCORE: Score = Score::new(|text| console::line(format_args!("el2: violation: {text}")));

/// Says and counts a violation.
#[macro_export]
macro_rules! violation {
    ($($text:tt)*) => { $crate::scenario::SCORE.violation(format_args!($($text)*)) };
}

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
    // Nothing can interrupt yet.
    interrupts::unmask();
    measure::measure(world, plan.counts_instructions);
    smmus::listen(&world.units, &world.service);
    enable_timer();
    world.lead(plan.span, &mut HotPlug::new(world));
    end(world)
}

/// What every other CPU does.
pub(crate) fn secondary() -> ! {
    let world = WORLD.wait();
    enable_timer();
    world.follow();
    loop {
        aarch64_cpu::asm::wfe();
    }
}

/// The timer's interrupt handler.
pub(crate) fn tick() {
    if let Some(world) = WORLD.get() {
        world.tick();
    }
}

fn enable_timer() {
    if let Some(timer) = interrupts::timer() {
        gic::enable_private(timer);
    }
}

/// What the machine has to say beside the scenario, and the last line.
fn end(world: &World) -> u8 {
    world.end();
    log::info!(
        "{} interrupts, {} times a line masked; {} resets of functions, {} surprise removals; {} bytes of heap in use; {} lines of the library not printed",
        interrupts::count(),
        SCORE.masked.value(),
        RESETS.load(Ordering::Relaxed),
        SCORE.surprises.value(),
        heap::used(),
        console::unsaid()
    );
    crate::say!("{}", SCORE.line(world.cpus));
    SCORE.status()
}
