//! A small hypervisor's boot at EL2 that links `iommu-assign` as any hypervisor would: on bare metal, with all CPUs.
//!
//! It takes the machine from its device tree, and nothing else: memory, console, interrupt controller, timer, CPUs, PCI, and
//! SMMUs. Where there is an SMMUv1/v2 it is driven for real. Where there is none, modelled ones are laid over the tree
//! ([`iommu::overlay`]), with real interrupts. Then every CPU gives devices to guests and takes them back, while functions are
//! plugged in and out; and at the end everything is compared a last time.
//!
//! The folders, in the order of use: `boot` (from the loader into Rust), `machine` (what is under every hypervisor), `iommu`
//! and `pci` (what an integrator of the library writes), `scenario` (what is done with it; most of that is in the crate of that
//! name). To see how the library is linked, begin with `iommu/smmus.rs`.

#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod machine;
#[macro_use]
mod scenario;
mod boot;
mod iommu;
mod lock;
mod pci;

use alloc::string::String;

use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use iommu_assign::dt::{Board, Tree};
use iommu_assign::sync::Micros;

use boot::{MAX_CPUS, mmu};
use iommu::overlay;
use machine::{console, cpus, gic, interrupts, power, tree};
use scenario::Plan;
use scenario::world;

/// How long the scenario goes on, where the command line does not say.
const SECONDS: u64 = 30;

/// The boot CPU, with MMU and caches on for the image and the blob at `blob`.
fn run(blob: usize) -> ! {
    cpus::name_boot_cpu();
    // SAFETY: the loader has put the tree there, and it is never written.
    let Some(blob) = (unsafe { device_tree(blob) }) else { power::end(2) };
    let Ok(tree) = Tree::read(blob) else { power::end(2) };
    mmu::enable(&tree::memory(&tree));
    console::init(&tree);
    power::init(tree::psci(&tree));
    crate::say!("iommu-assign {} on bare metal, image at {:#x}", env!("CARGO_PKG_VERSION"), mmu::image().start);
    let status = boot_up(blob, &tree).unwrap_or_else(|why| {
        crate::violation!("cannot begin: {why}");
        2
    });
    power::end(status)
}

/// Everything, in the order of a hypervisor's boot.
fn boot_up(blob: &'static [u8], tree: &Tree<'_>) -> Result<u8, String> {
    log::info!(
        "{} bytes of memory in {} ranges",
        tree::memory(tree).iter().map(ExactSizeIterator::len).sum::<usize>(),
        tree::memory(tree).len()
    );
    let affinities = tree::cpus(tree);
    let regions = tree::gic(tree).ok_or("no GICv2 or GICv3")?;
    gic::init(regions, affinities.len()).ok_or("the GIC cannot be set up")?;
    interrupts::install_timer(tree::timer(tree).ok_or("no timer")?, scenario::tick);
    let cpus = cpus::start(&affinities[..affinities.len().min(MAX_CPUS)], MPIDR_EL1.get() & 0xff_00ff_ffff);
    log::info!("{cpus} CPUs at EL2, {regions}");

    // Every node that can be followed is; what cannot is said.
    let own;
    let is_driven = Board::read_lenient(blob).is_ok_and(|board| board.smmus().iter().any(|smmu| smmu.enabled));
    let blob = if is_driven {
        blob
    } else {
        own = overlay::apply(blob).ok_or("no SMMU, and no machine that the modelled ones fit")?;
        log::info!("this machine has no SMMUv1/v2: modelled ones are laid over its tree");
        &own
    };
    let board = Board::read_lenient(blob).map_err(|error| alloc::format!("{error}"))?;
    board.refusals().iter().for_each(|refusal| log::warn!("{refusal:?}"));

    let world = world::build(&board, cpus)?;
    world.print();
    let number = |name| tree::argument(tree, name).and_then(|value| value.parse::<u64>().ok());
    let seconds = number("minutes").map(|minutes| minutes * 60).or(number("seconds")).unwrap_or(SECONDS);
    let counts_instructions = number("instructions") == Some(1);
    Ok(scenario::play(world, Plan { span: Micros::from_millis(seconds * 1000), counts_instructions }))
}

/// The tree that the loader left at `address`, as long as it says that it is.
///
/// # Safety
///
/// There is memory at `address`, mapped as long as a tree that lies there, and it is never written.
unsafe fn device_tree(address: usize) -> Option<&'static [u8]> {
    let header = core::ptr::with_exposed_provenance::<[u8; 8]>(address);
    // SAFETY: as the caller promises; a tree's header is longer than this.
    let [magic @ .., a, b, c, d] = unsafe { header.read() };
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    // SAFETY: as the caller promises.
    (magic == [0xd0, 0x0d, 0xfe, 0xed]).then(|| unsafe { core::slice::from_raw_parts(header.cast(), size) })
}
