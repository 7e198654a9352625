//! ZynqMP's general-purpose DMA engine (GDMA in the full-power domain, ADMA in the low-power one): simple copies, as a master
//! with real data. Registers: ZynqMP register reference, ZDMA.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use iommu_assign::dt::{NodeId, Region, Tree};
use iommu_assign::smmu::{Mmio, Registers};
use iommu_assign::sync::Micros;

use crate::boot::mmu;
use crate::lock::Lock;
use crate::machine::{time, tree};

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel(Lock<Mmio>);

const ISR: u32 = 0x100;
const IDS: u32 = 0x10c;
const CTRL0: u32 = 0x110;
const DATA_ATTRIBUTES: u32 = 0x120;
/// Address low, address high, size, control.
const SOURCE: u32 = 0x128;
const DESTINATION: u32 = 0x138;
const CTRL2: u32 = 0x200;
const DONE: u32 = 1 << 10;
/// AXI errors of data and descriptors.
const ERRORS: u32 = 0b1111 << 6;
const ALL: u32 = 0xfff;
/// Any address.
const PROBE: u32 = 0x5a5a_5a40;

/// How long a copy of a page may take, on an emulator whose CPU stands still now and then.
const PATIENCE: Micros = Micros::from_millis(200);

/// The machine's channels, by node: those whose registers are there. To be called before any SMMU is driven: each copies a page as
/// it is, where firmware has left the way open.
pub(crate) fn channels(tree: &Tree<'_>) -> BTreeMap<NodeId, Arc<Channel>> {
    let mut channels = BTreeMap::new();
    let (mut from, mut to, mut copies) = (Page([0xa5; 4096]), Page([0; 4096]), 0);
    for node in tree::all_compatible(tree, &["xlnx,zynqmp-dma-1.0"]) {
        let region = node.regions().ok().and_then(|regions| regions.first().copied());
        let Some(channel) = region.and_then(Channel::open) else {
            log::warn!("{}: no DMA channel is there", node.name());
            continue;
        };
        to.0.fill(0);
        let (source, target) = (from.address(), to.address());
        let copied = channel.copy(source as u64, target as u64, 4096);
        mmu::clean_and_invalidate(target..target + 4096);
        copies += usize::from(copied && from.0 == to.0);
        channels.insert(node.id(), Arc::new(channel));
    }
    if !channels.is_empty() {
        log::info!("{} DMA channels, {copies} of them copy memory, untranslated so far", channels.len());
    }
    channels
}

/// Memory of a page's size that is no cache line's neighbour.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Page {
    /// Where it is, with nothing of it in caches.
    fn address(&mut self) -> usize {
        let address = self.0.as_mut_ptr().addr();
        mmu::clean_and_invalidate(address..address + 4096);
        address
    }
}

impl Channel {
    /// The channel at `region`, if its registers hold what is written.
    fn open(region: Region) -> Option<Self> {
        let base = mmu::map_device(region.base(), region.size())?;
        // SAFETY: mapped as device memory for ever; this is the only user.
        let registers = unsafe { Mmio::new(base, usize::try_from(region.size()).ok()?) }?;
        registers.write32(IDS, ALL);
        registers.write32(SOURCE, PROBE);
        (registers.read32(SOURCE) == PROBE).then(|| Self(Lock::new(registers)))
    }

    /// Copies `size` bytes. `false` where the engine says that an access failed, or does not come to an end.
    pub(crate) fn copy(&self, from: u64, to: u64, size: u32) -> bool {
        {
            let registers = self.0.lock();
            registers.write32(ISR, ALL);
            // Simple mode, read and write; bursts of 16, normal memory.
            registers.write32(CTRL0, 0);
            registers.write32(DATA_ATTRIBUTES, 0x0483_d20f);
            for (at, address) in [(SOURCE, from), (DESTINATION, to)] {
                registers.write32(at, address as u32);
                registers.write32(at + 4, (address >> 32) as u32);
                registers.write32(at + 8, size);
                registers.write32(at + 12, 0);
            }
            registers.write32(CTRL2, 1);
        }
        let start = time::now();
        loop {
            let status = self.0.lock().read32(ISR);
            if status & ERRORS != 0 {
                // The channel stops by itself; the enable bit is taken back.
                self.0.lock().write32(CTRL2, 0);
                return false;
            }
            if status & DONE != 0 {
                return true;
            }
            if time::now().since(start) > PATIENCE {
                self.0.lock().write32(CTRL2, 0);
                return false;
            }
            core::hint::spin_loop();
        }
    }
}
