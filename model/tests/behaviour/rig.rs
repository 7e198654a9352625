//! What the tests share: a part that is programmed as a careful driver would, and tables in memory.

use smmu_model::registers::{bank_attributes, cb, gr0, scr0, sctlr, stream};
use smmu_model::{Config, Memory, Smmu, SyncDelay};

/// Root of the tables that [`Rig`] writes.
pub(crate) const ROOT: u64 = 0x10_0000;
/// A second root, for another guest.
pub(crate) const OTHER_ROOT: u64 = 0x20_0000;
/// What [`Rig`] enables in a bank.
pub(crate) const LIVE: u32 = sctlr::M | sctlr::AFE | sctlr::TRE | sctlr::CFRE | sctlr::CFIE | sctlr::HUPCF;
/// A stage-2 leaf's attributes: write-back, inner shareable, accessed; permissions are added.
pub(crate) const LEAF: u64 = (0xf << 2) | (3 << 8) | (1 << 10);
/// `S2AP` read and write.
pub(crate) const RW: u64 = 3 << 6;

/// An SMMU and the memory behind it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rig {
    pub(crate) smmu: Smmu,
    pub(crate) memory: Memory,
}

impl Rig {
    /// The part out of reset.
    pub(crate) fn new(config: Config) -> Self {
        Self { smmu: Smmu::new(config), memory: Memory::new() }
    }

    /// The part reset as a driver does it, with stream 5 translated by bank 0 through [`ROOT`]; nothing is mapped.
    pub(crate) fn live(config: Config) -> Self {
        let mut rig = Self::new(config);
        rig.neutralise();
        rig.bank(0, 1, ROOT);
        rig.stream(0, 5, 0);
        rig.enable();
        rig
    }

    /// Every stream to fault, TLB empty, banks parked, statuses clear.
    pub(crate) fn neutralise(&mut self) {
        let config = self.smmu.config().clone();
        let status = self.smmu.read32(gr0::SGFSR);
        self.smmu.write32(gr0::SGFSR, status);
        for n in 0..config.groups {
            self.smmu.write32(self.smmu.s2cr(n), stream::S2CR_FAULT);
            self.smmu.write32(self.smmu.smr(n), 0);
        }
        self.smmu.write32(gr0::TLBIALLNSNH, u32::MAX);
        self.sync();
        for n in 0..config.banks {
            self.set(n, cb::SCTLR, 0);
            self.set(n, cb::FSR, u32::MAX);
        }
    }

    /// Clients enabled; faults are reported.
    pub(crate) fn enable(&mut self) {
        let cr0 = scr0::GFRE | scr0::GFIE | scr0::GCFGFRE | scr0::GCFGFIE | scr0::USFCFG | scr0::SMCFCFG;
        self.smmu.write32(gr0::SCR0, cr0);
    }

    /// A stage-2 bank: AArch64 4 KiB tables, 39 bits, level 1; on v1 the long format with 32 bits, level 1.
    pub(crate) fn bank(&mut self, n: u8, vmid: u32, root: u64) {
        self.smmu.write32(self.smmu.cba2r(n), bank_attributes::VA64);
        self.smmu.write32(self.smmu.cbar(n), bank_attributes::STAGE2 | vmid);
        let wide = self.smmu.read32(self.smmu.cba2r(n)) & bank_attributes::VA64 != 0;
        let tcr = if wide { (5 << 16) | (1 << 6) | 25 } else { 1 << 6 };
        self.set(n, cb::TCR, tcr);
        self.smmu.write64(self.smmu.bank(n, cb::TTBR0), root);
        self.set(n, cb::SCTLR, LIVE);
    }

    /// Entry `n` gives exactly `id` to a bank.
    pub(crate) fn stream(&mut self, n: u8, id: u32, bank: u32) {
        self.smmu.write32(self.smmu.s2cr(n), stream::S2CR_TRANSLATE | bank);
        self.smmu.write32(self.smmu.smr(n), stream::SMR_VALID | id);
    }

    pub(crate) fn set(&mut self, n: u8, register: usize, value: u32) {
        self.smmu.write32(self.smmu.bank(n, register), value);
    }

    pub(crate) fn get(&mut self, n: u8, register: usize) -> u32 {
        self.smmu.read32(self.smmu.bank(n, register))
    }

    /// Maps a 4 KiB page in the tables at `root` and publishes them.
    pub(crate) fn map(&mut self, root: u64, input: u64, output: u64) {
        self.map_with(root, input, output | LEAF | RW | 3);
    }

    /// As [`Rig::map`], with the whole leaf descriptor; table pages follow the root at fixed places.
    pub(crate) fn map_with(&mut self, root: u64, input: u64, leaf: u64) {
        let (level2, level3) = (root + 0x8000, root + 0x9000);
        self.memory.write_u64(root + (input >> 30) * 8, level2 | 3);
        self.memory.write_u64(level2 + ((input >> 21) & 0x1ff) * 8, level3 | 3);
        self.memory.write_u64(level3 + ((input >> 12) & 0x1ff) * 8, leaf);
        self.memory.publish_all();
    }

    /// A global sync, polled to its end; false if it does not come within 100 polls.
    pub(crate) fn sync(&mut self) -> bool {
        self.smmu.write32(gr0::STLBGSYNC, u32::MAX);
        (0..100).any(|_| self.smmu.read32(gr0::STLBGSTATUS) & 1 == 0)
    }

    /// A bank's sync, polled to its end.
    pub(crate) fn sync_bank(&mut self, n: u8) -> bool {
        self.set(n, cb::TLBSYNC, u32::MAX);
        (0..100).any(|_| self.get(n, cb::TLBSTATUS) & 1 == 0)
    }

    pub(crate) fn read(&mut self, stream: u16, address: u64) -> smmu_model::Outcome {
        self.smmu.dma(&mut self.memory, smmu_model::Transaction::read(stream, address, 4))
    }

    pub(crate) fn write(&mut self, stream: u16, address: u64) -> smmu_model::Outcome {
        self.smmu.dma(&mut self.memory, smmu_model::Transaction::write(stream, address, &[1, 2, 3, 4]))
    }
}

/// The generic SMMUv2 with a sync that completes at once.
pub(crate) fn quick() -> Config {
    Config::generic_v2().sync(SyncDelay::Polls(0))
}
