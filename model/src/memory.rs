//! Memory as the system has it: what processors wrote, and what of it the table walker can see.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Bytes in one page of the sparse store; also the boundary that no bus burst crosses.
pub(crate) const PAGE: u64 = 0x1000;

/// Sparse physical memory, shared by processors, DMA masters and the walkers of any number of SMMUs.
///
/// Every address exists and reads as zero until written. A write by a processor lands in its cache: a walker that is
/// not coherent ([`Config::coherent_walk`](crate::Config::coherent_walk)) sees it only after
/// [`publish`](Memory::publish). DMA data is always coherent; only table walks are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pages: BTreeMap<u64, Page>,
    faulty: Vec<Range<u64>>,
    publish_at_once: bool,
}

impl Memory {
    /// Empty memory in which a write must be published before a walker sees it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty memory in which every write is visible to every walker at once.
    pub fn coherent() -> Self {
        Self { publish_at_once: true, ..Self::default() }
    }

    /// Stores `bytes` from `address` on, as a processor does.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let publish = self.publish_at_once;
        self.store(address, bytes, publish);
    }

    /// Stores one little-endian word, as a processor does; the usual way to write a descriptor.
    pub fn write_u64(&mut self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    /// Fills `bytes` from `address` on, as a processor or a DMA master reads.
    pub fn read(&self, address: u64, bytes: &mut [u8]) {
        for (at, byte) in (0u64..).zip(bytes) {
            *byte = self.byte(address.wrapping_add(at), true);
        }
    }

    /// One little-endian word, as a processor reads it.
    pub fn read_u64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Makes the bytes of `range` visible to walkers that are not coherent: a cache clean with its barrier.
    pub fn publish(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let pages = range.start.wrapping_div(PAGE)..=range.end.wrapping_sub(1).wrapping_div(PAGE);
        for (number, page) in self.pages.range_mut(pages) {
            let base = number.wrapping_mul(PAGE);
            let bytes = page.written.iter().zip(page.published.iter_mut());
            for (at, (written, published)) in (base..).zip(bytes) {
                if range.contains(&at) {
                    *published = *written;
                }
            }
        }
    }

    /// Publishes everything.
    pub fn publish_all(&mut self) {
        for page in self.pages.values_mut() {
            page.published.clone_from(&page.written);
        }
    }

    /// Makes every access to `range` end in a bus error: a walk there is an external fault.
    pub fn fail(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.faulty.push(range);
        }
    }

    /// Undoes every [`fail`](Memory::fail).
    pub fn heal(&mut self) {
        self.faulty.clear();
    }

    /// A descriptor as a walker reads it, or `None` for a bus error.
    pub(crate) fn descriptor(&self, address: u64, coherent: bool) -> Option<u64> {
        if self.is_faulty(address, 8) {
            return None;
        }
        let mut bytes = [0; 8];
        for (at, byte) in (0u64..).zip(&mut bytes) {
            *byte = self.byte(address.wrapping_add(at), coherent);
        }
        Some(u64::from_le_bytes(bytes))
    }

    /// Stores what a DMA master wrote: it snoops, so that walkers see it, too.
    pub(crate) fn store_dma(&mut self, address: u64, bytes: &[u8]) {
        self.store(address, bytes, true);
    }

    /// Whether any of `length` bytes from `address` on answers with a bus error.
    pub(crate) fn is_faulty(&self, address: u64, length: u64) -> bool {
        let end = address.saturating_add(length);
        self.faulty.iter().any(|range| range.start < end && address < range.end)
    }

    fn byte(&self, address: u64, coherent: bool) -> u8 {
        let Some(page) = self.pages.get(&address.wrapping_div(PAGE)) else { return 0 };
        let bytes = if coherent { &page.written } else { &page.published };
        bytes.get(within_page(address)).copied().unwrap_or(0)
    }

    fn store(&mut self, address: u64, bytes: &[u8], publish: bool) {
        for (at, byte) in (0u64..).zip(bytes) {
            let address = address.wrapping_add(at);
            let page = self.pages.entry(address.wrapping_div(PAGE)).or_default();
            if let Some(written) = page.written.get_mut(within_page(address)) {
                *written = *byte;
            }
            if publish && let Some(published) = page.published.get_mut(within_page(address)) {
                *published = *byte;
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    written: Vec<u8>,
    published: Vec<u8>,
}

impl Default for Page {
    fn default() -> Self {
        Self { written: vec![0; 0x1000], published: vec![0; 0x1000] }
    }
}

fn within_page(address: u64) -> usize {
    (address & 0xfff) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_unseen_by_a_walker_until_published() {
        let mut memory = Memory::new();
        memory.write_u64(0x1ffc, 0x1122_3344_5566_7788);
        assert_eq!(memory.read_u64(0x1ffc), 0x1122_3344_5566_7788);
        assert_eq!(memory.descriptor(0x1ffc, false), Some(0));
        memory.publish(0x1ffc..0x2000);
        assert_eq!(memory.descriptor(0x1ffc, false), Some(0x5566_7788));
        memory.publish(0x2000..0x2001);
        assert_eq!(memory.descriptor(0x1ffc, false), Some(0x44_5566_7788), "to the byte");
        memory.publish(0x2000..0x2004);
        assert_eq!(memory.descriptor(0x1ffc, false), Some(0x1122_3344_5566_7788));
    }

    #[test]
    fn coherent_memory_publishes_at_once() {
        let mut memory = Memory::coherent();
        memory.write_u64(0x10, 7);
        assert_eq!(memory.descriptor(0x10, false), Some(7));
    }

    #[test]
    fn a_failing_range_is_a_bus_error() {
        let mut memory = Memory::new();
        memory.fail(0x4000..0x5000);
        memory.fail(0x5004..0x5004);
        for (at, expected) in [(0x3ff8, Some(0)), (0x4000, None), (0x4ff8, None), (0x5000, Some(0))] {
            assert_eq!(memory.descriptor(at, true), expected);
        }
        memory.heal();
        assert_eq!(memory.descriptor(0x4008, true), Some(0));
    }
}
