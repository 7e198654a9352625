//! Registers that are plain memory: they hold what was written, no sync runs, nothing faults unless it is put there.
//!
//! An access is a shift, a mask and a load or a store, so that what is counted is the library's own work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_assign::smmu::Registers;
use smmu_model::Config;

/// Stream-map entries and context banks of the part, the most that the architecture's plain forms have.
pub(crate) const ENTRIES: u8 = 128;

/// Size of the whole region; a power of two, so that a mask keeps an offset inside.
pub(crate) const SIZE: u32 = 0x10_0000;

const WORDS: usize = SIZE as usize / 4;
const SCTLR: u32 = 0x00;
const FSR: u32 = 0x58;
const TRANSLATION_FAULT: u32 = 1 << 1;

/// The registers of one instance. A clone is another view of the same.
#[derive(Clone, Debug)]
pub(crate) struct Plain(Arc<[AtomicU32; WORDS]>);

impl Plain {
    /// The part's ID registers; everything else is zero.
    pub(crate) fn of(model: &Config) -> Self {
        let words: Arc<[AtomicU32]> = (0..WORDS).map(|_| AtomicU32::new(0)).collect();
        #[expect(clippy::expect_used, reason = "as many were made")]
        let plain = Self(words.try_into().expect("the array is as long"));
        let mut part = smmu_model::Smmu::new(model.clone());
        for offset in (0x20..0x40).step_by(4) {
            plain.write32(offset, part.read32(offset as usize));
        }
        plain
    }

    const fn bank(index: u8) -> u32 {
        SIZE / 2 + index as u32 * 0x1000
    }

    /// The banks that translate.
    pub(crate) fn live_banks(&self) -> impl Iterator<Item = u8> + '_ {
        (0..ENTRIES).filter(|index| self.read32(Self::bank(*index) + SCTLR) & 1 != 0)
    }

    /// The bank has a translation fault to tell of.
    pub(crate) fn put_fault(&self, bank: u8) {
        self.write32(Self::bank(bank) + FSR, TRANSLATION_FAULT);
    }

    /// No bank has a fault to tell of. Plain memory keeps what was written to clear a status.
    pub(crate) fn clear_faults(&self) {
        (0..ENTRIES).for_each(|bank| self.write32(Self::bank(bank) + FSR, 0));
    }
}

impl Registers for Plain {
    #[inline]
    fn read32(&self, offset: u32) -> u32 {
        let word = offset as usize / 4 % WORDS;
        #[expect(clippy::indexing_slicing, reason = "the remainder is inside")]
        self.0[word].load(Ordering::Relaxed)
    }

    #[inline]
    fn write32(&self, offset: u32, value: u32) {
        let word = offset as usize / 4 % WORDS;
        #[expect(clippy::indexing_slicing, reason = "the remainder is inside")]
        self.0[word].store(value, Ordering::Relaxed);
    }

    #[inline]
    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.wrapping_add(4))) << 32
    }

    #[inline]
    fn write64(&self, offset: u32, value: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "the low word")]
        self.write32(offset, value as u32);
        self.write32(offset.wrapping_add(4), (value >> 32) as u32);
    }
}
