//! The interrupt controller, version 2 or 3, through `arm-gic`.
//!
//! Two registers are written here because that driver has no call for them: GICD_ISPENDR, by which software makes an SPI
//! pending (the modelled SMMU's interrupt line), and GICv2's GICD_ITARGETSR.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use arm_gic::gicv2::GicV2;
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use iommu_assign::smmu::{Mmio, Registers};
use spin::Once;

use super::tree::GicRegions;
use crate::boot::mmu;
use crate::lock::Lock;

/// Bits of MPIDR_EL1 that name a CPU.
const AFFINITY: u64 = 0xff_00ff_ffff;
const PRIORITY: u8 = 0x80;

/// The drivers.
enum Gic {
    V2(Lock<GicV2<'static>>),
    V3(Lock<GicV3<'static>>),
}

/// GICv2 shows Non-secure software its group 1 in the registers, and the enable bit, that are group 0's to the Secure side;
/// without security extensions everything is group 0. The plain acknowledge register is right in both cases.
const V2_GROUP: InterruptGroup = InterruptGroup::Group0;

struct Controller {
    gic: Gic,
    distributor: Mmio,
}

static CONTROLLER: Once<Controller> = Once::new();
static IS_V3: AtomicBool = AtomicBool::new(false);
/// How many redistributors there are.
static CPUS: AtomicUsize = AtomicUsize::new(1);

/// Sets the controller up, with everything off, and this CPU's part of it.
pub(crate) fn init(regions: GicRegions, cpus: usize) -> Option<()> {
    let (first, second) = match regions {
        GicRegions::V2(first, second) | GicRegions::V3(first, second) => (first, second),
    };
    let distributor = mmu::map_device(first.base(), first.size())?;
    let other = mmu::map_device(second.base(), second.size())?;
    CPUS.store(cpus, Ordering::Relaxed);
    let gic = match regions {
        GicRegions::V2(..) => {
            // SAFETY: both are mapped for ever. `distributor` below writes two registers that this driver does not.
            let mut driver = unsafe { GicV2::new(distributor.as_ptr().cast(), other.as_ptr().cast()) };
            driver.setup();
            driver.enable_group0(true);
            Gic::V2(Lock::new(driver))
        }
        GicRegions::V3(..) => {
            // SAFETY: as above; the redistributors end with the one that says that it is the last.
            let mut driver =
                unsafe { GicV3::new(UniqueMmioPointer::new(distributor.cast()), other.cast(), cpus) }.ok()?;
            let own = index_of(&mut driver);
            driver.setup(own);
            GicCpuInterface::set_priority_mask(0xff);
            IS_V3.store(true, Ordering::Relaxed);
            Gic::V3(Lock::new(driver))
        }
    };
    // SAFETY: mapped as device memory for ever; the two registers are written whole, and only here.
    let distributor = unsafe { Mmio::new(distributor, first.size() as usize) }?;
    CONTROLLER.call_once(|| Controller { gic, distributor });
    Some(())
}

/// Which redistributor is this CPU's.
fn index_of(driver: &mut GicV3<'_>) -> usize {
    let own = MPIDR_EL1.get() & AFFINITY;
    let is_own = |driver: &mut GicV3<'_>, index| driver.gicr_typer(index).is_ok_and(|typer| typer.core_mpidr() == own);
    (0..CPUS.load(Ordering::Relaxed)).find(|index| is_own(driver, *index)).unwrap_or(0)
}

/// Sets this secondary CPU's part up.
pub(crate) fn init_cpu() {
    match CONTROLLER.get().map(|controller| &controller.gic) {
        Some(Gic::V3(driver)) => {
            let mut driver = driver.lock();
            let index = index_of(&mut driver);
            driver.init_cpu(index);
            GicCpuInterface::set_priority_mask(0xff);
            GicCpuInterface::enable_group1(true);
        }
        // The interface is banked: these are this CPU's registers.
        Some(Gic::V2(driver)) => driver.lock().setup(),
        None => {}
    }
}

/// Lets a private interrupt of this CPU through.
pub(crate) fn enable_private(interrupt: u32) -> Option<()> {
    let interrupt = IntId::ppi(interrupt.checked_sub(16)?);
    match &CONTROLLER.get()?.gic {
        Gic::V3(driver) => {
            let mut driver = driver.lock();
            let index = index_of(&mut driver);
            driver.set_interrupt_priority(interrupt, Some(index), PRIORITY).ok()?;
            driver.enable_interrupt(interrupt, Some(index), true).ok()
        }
        Gic::V2(driver) => {
            // Priorities stay as they were reset, the highest: `set_interrupt_priority` writes those of three neighbours too.
            driver.lock().enable_interrupt(interrupt, true).ok()
        }
    }
}

/// Routes a shared interrupt to this CPU. It stays masked.
pub(crate) fn route_here(interrupt: u32, trigger: Trigger) -> Option<()> {
    let controller = CONTROLLER.get()?;
    let id = IntId::spi(interrupt.checked_sub(32)?);
    match &controller.gic {
        Gic::V3(driver) => {
            let mut driver = driver.lock();
            driver.set_trigger(id, None, trigger).ok()?;
            driver.set_interrupt_priority(id, None, PRIORITY).ok()?;
            driver.distributor().set_routing(id, Some(MPIDR_EL1.get() & AFFINITY)).ok()
        }
        Gic::V2(driver) => {
            let mut driver = driver.lock();
            driver.set_trigger(id, trigger);
            // GICD_ITARGETSR: four targets in a word. What the private ones read as is this CPU's own bit.
            let own = controller.distributor.read32(0x800) & 0xff;
            let (offset, shift) = (0x800 + (interrupt & !3), (interrupt & 3) * 8);
            let others = controller.distributor.read32(offset) & !(0xff << shift);
            controller.distributor.write32(offset, others | own << shift);
            Some(())
        }
    }
}

/// Lets a shared interrupt through, or masks it.
pub(crate) fn enable(interrupt: u32, on: bool) {
    let Some(controller) = CONTROLLER.get() else { return };
    let Some(spi) = interrupt.checked_sub(32) else { return };
    // Only interrupts that were routed before come here: the driver knows them.
    match &controller.gic {
        Gic::V3(driver) => _ = driver.lock().enable_interrupt(IntId::spi(spi), None, on),
        Gic::V2(driver) => _ = driver.lock().enable_interrupt(IntId::spi(spi), on),
    }
}

/// Makes a shared interrupt pending, as its line would: GICD_ISPENDR, where zeros do nothing.
pub(crate) fn raise(interrupt: u32) {
    if let Some(controller) = CONTROLLER.get() {
        controller.distributor.write32(0x200 + interrupt / 32 * 4, 1 << (interrupt % 32));
    }
}

/// Takes the interrupt that is signalled to this CPU, if one is.
pub(crate) fn acknowledge() -> Option<IntId> {
    if IS_V3.load(Ordering::Relaxed) {
        return GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1);
    }
    match &CONTROLLER.get()?.gic {
        Gic::V2(driver) => driver.lock().get_and_acknowledge_interrupt(V2_GROUP),
        Gic::V3(_) => None,
    }
}

/// Ends one that was taken.
pub(crate) fn end(interrupt: IntId) {
    if IS_V3.load(Ordering::Relaxed) {
        GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
    } else if let Some(Controller { gic: Gic::V2(driver), .. }) = CONTROLLER.get() {
        driver.lock().end_interrupt(interrupt, V2_GROUP);
    }
}
