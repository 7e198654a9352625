//! Configuration space that is mapped into memory, and the one that a `pci_types::ConfigRegionAccess` reaches.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

use std::cell::RefCell;
use std::ptr::NonNull;

use iommu_assign::assign::IommuKey;
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    AsRegionAccess, Bus, ConfigLayout, ConfigSpace, Ecam, HostBridge, HostBridgeNumber, MapEntry, Provider,
    RegionAccess, RequesterIdMap, Sbdf, Segment, enumerate,
};
use pci_types::{ConfigRegionAccess, PciAddress};

fn at(text: &str) -> Sbdf {
    text.parse().unwrap()
}

/// Memory in place of a mapped region, with a page in front and behind that nobody may touch.
struct Memory(Vec<u32>);

const GUARD: usize = 1024;
const SENTINEL: u32 = 0x5eed_5eed;

impl Memory {
    fn new(size: usize) -> Self {
        let mut words = vec![SENTINEL; 2 * GUARD + size / 4];
        words[GUARD..GUARD + size / 4].fill(0);
        Self(words)
    }

    fn size(&self) -> usize {
        (self.0.len() - 2 * GUARD) * 4
    }

    fn ecam(&mut self, layout: ConfigLayout, segment: u16, buses: std::ops::RangeInclusive<u8>) -> Ecam {
        let size = self.size();
        let base = NonNull::new(self.0[GUARD..].as_mut_ptr().cast::<u8>()).unwrap();
        // SAFETY: the memory outlives the test's use of it, and is reached through this alone meanwhile.
        unsafe { Ecam::new(base, size, layout, Segment(segment), Bus(*buses.start())..=Bus(*buses.end())) }.unwrap()
    }

    /// Byte offset and value of each word that is not 0.
    fn written(&self) -> Vec<(usize, u32)> {
        assert!(self.0[..GUARD].iter().chain(&self.0[self.0.len() - GUARD..]).all(|word| *word == SENTINEL));
        let inside = &self.0[GUARD..self.0.len() - GUARD];
        inside.iter().enumerate().filter(|(_, word)| **word != 0).map(|(at, word)| (at * 4, *word)).collect()
    }
}

#[test]
fn a_function_is_where_the_specification_says() {
    let mut memory = Memory::new(2 * ConfigLayout::Ecam.bus_size());
    let ecam = memory.ecam(ConfigLayout::Ecam, 3, 0x10..=0x11);
    // The region begins with the first bus of the range, not with bus 0.
    ecam.write(at("0003:10:00.0"), 0, 1);
    ecam.write(at("0003:11:1f.7"), 0xffc, 2);
    ecam.write_u16(at("0003:10:01.0"), 6, 0x1234);
    ecam.write_u8(at("0003:10:00.1"), 3, 0x56);
    assert_eq!(ecam.read(at("0003:10:01.0"), 4), 0x1234_0000);
    let expected = [(0, 1), (0x1000, 0x5600_0000), (0x8004, 0x1234_0000), (0x1f_fffc, 2)];
    assert_eq!(memory.written(), expected);
}

#[test]
fn cam_has_256_bytes_for_a_function_and_none_above() {
    let mut memory = Memory::new(2 * ConfigLayout::Cam.bus_size());
    let cam = memory.ecam(ConfigLayout::Cam, 0, 0..=1);
    cam.write(at("01:02.3"), 0xfc, 7);
    cam.write(at("00:00.0"), 0x100, 8);
    assert_eq!((cam.read(at("01:02.3"), 0xfc), cam.read(at("00:00.0"), 0x100)), (7, u32::MAX));
    assert_eq!(memory.written(), [(0x1_0000 | 2 << 11 | 3 << 8 | 0xfc, 7)]);
}

#[test]
fn a_6_nothing_outside_the_region_is_touched() {
    // Half a bus less than its range would need.
    let mut memory = Memory::new(ConfigLayout::Ecam.bus_size() * 3 / 2);
    let ecam = memory.ecam(ConfigLayout::Ecam, 1, 4..=7);
    let outside = [
        ("0000:04:00.0", 0),
        ("0001:03:00.0", 0),
        ("0001:08:00.0", 0),
        ("0001:05:10.0", 0),
        ("0001:06:00.0", 0),
        ("0001:07:1f.7", 0xffc),
        ("0001:04:00.0", 0x1000),
        ("0001:04:00.0", 0xfffc),
        ("0001:04:00.0", 2),
    ];
    for (function, offset) in outside {
        assert_eq!(ecam.read(at(function), offset), u32::MAX, "{function} {offset:#x}");
        ecam.write(at(function), offset, 0);
    }
    ecam.write_u16(at("0001:04:00.0"), 1, 0xffff);
    ecam.write_u16(at("0001:04:00.0"), 0x1000, 0xffff);
    ecam.write_u8(at("0001:05:10.0"), 0, 0xff);
    assert_eq!(ecam.read(at("0001:05:0f.7"), 0xffc), 0, "the last function of the region");
    assert_eq!(memory.written(), []);
}

#[test]
fn a_base_that_is_not_aligned_is_refused() {
    let mut memory = Memory::new(4096);
    let base = NonNull::new(memory.0[GUARD..].as_mut_ptr().cast::<u8>()).unwrap();
    for by in 1..4 {
        // SAFETY: it is refused; were it not, the region would lie in the guard's memory.
        let refused = unsafe { Ecam::new(base.add(by), 64, ConfigLayout::Ecam, Segment(0), Bus(0)..=Bus(0)) };
        assert!(refused.is_none());
    }
}

/// A `ConfigRegionAccess` that notes what is asked of it.
struct Noted {
    space: FakeConfigSpace,
    asked: RefCell<Vec<(PciAddress, u16)>>,
}

impl ConfigRegionAccess for Noted {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.asked.borrow_mut().push((address, offset));
        self.space.read(address.into(), offset)
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        self.asked.borrow_mut().push((address, offset));
        self.space.write(address.into(), offset, value);
    }
}

#[test]
fn what_another_crate_reaches_is_enumerated_and_never_asked_for_what_is_not_its_own() {
    let mut space = FakeConfigSpace::new();
    space.insert(at("0002:20:03.0"), FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000));
    let buses = Bus(0x20)..=Bus(0x21);
    let noted = Noted { space, asked: RefCell::default() };
    // SAFETY: the fake answers all ones for whatever is not there.
    let region = unsafe { RegionAccess::new(&noted, Segment(2), buses.clone(), false) };
    let entry = MapEntry::new(0, Provider::Smmu(IommuKey::new(0x1000)), 0, 0x1_0000);
    let map = RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap();
    let host = HostBridge { number: HostBridgeNumber(0), segment: Segment(2), buses, map, passthrough: false };
    let found = enumerate(&region, &host).unwrap();
    assert_eq!(found.functions.iter().map(|function| function.sbdf).collect::<Vec<_>>(), [at("0002:20:03.0")]);
    assert!(noted.asked.take().iter().all(|(address, offset)| address.bus() == 0x20 && *offset < 0x100));

    for (function, offset) in [("0000:20:03.0", 0), ("0002:22:00.0", 0), ("0002:20:03.0", 0x100), ("0002:20:03.0", 1)] {
        assert_eq!(region.read(at(function), offset), u32::MAX);
        region.write(at(function), offset, 0);
    }
    assert_eq!(noted.asked.take(), []);
}

#[test]
fn a_part_of_a_register_is_written_with_the_rest_as_it_was_and_never_to_what_is_gone() {
    let mut space = FakeConfigSpace::new();
    let here = at("00:01.0");
    space.insert(here, FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000));
    space.write(here, 0x10, 0x1230_0000);
    space.write_u8(here, 0x13, 0x45);
    assert_eq!(space.read(here, 0x10), 0x4530_0000);
    space.write_u16(here, 0x12, 0x6780);
    assert_eq!(space.read(here, 0x10), 0x6780_0000);
    let back = AsRegionAccess(&space);
    // SAFETY: no address is invalid for it.
    assert_eq!(unsafe { back.read(here.into(), 0x10) }, 0x6780_0000);
    space.remove(here);
    let before = space.accesses();
    space.write_u16(here, 0x12, 0);
    assert_eq!(space.accesses(), before + 1, "it was read and not written");
}
