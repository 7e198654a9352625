//! whatever a configuration space answers, nothing panics and everything ends.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

use std::cell::Cell;

use iommu_assign::assign::IommuKey;
use iommu_assign::pci::control::{GuestWrites, Phase, Quiesce, Reset, Width, turn_translation_services_off};
use iommu_assign::pci::{
    AliasKind, Bus, Capabilities, ConfigSpace, DeviceFunction, FunctionConfig, HostBridge, HostBridgeNumber, MapEntry,
    MapError, PciKey, Provider, RequesterId, RequesterIdMap, Sbdf, Segment, enumerate,
};
use proptest::prelude::*;

/// Answers by a hash of the place, the offset and, where it lies, the number of the access.
#[derive(Debug)]
struct Noise {
    seed: u64,
    /// Of 65536 words so many are noise; the others look like those of a function or a bridge.
    noise: u16,
    /// A word changes from read to read.
    lies: bool,
    accesses: Cell<u64>,
}

impl ConfigSpace for Noise {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.accesses.set(self.accesses.get() + 1);
        let rid = u64::from(function.requester_id().0);
        let time = if self.lies { self.accesses.get() } else { 0 };
        let mut hash = self.seed ^ rid << 32 ^ u64::from(offset) << 48 ^ time;
        for _ in 0..3 {
            hash = (hash ^ hash >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let [low, high, more, ..] = hash.to_le_bytes();
        let value = u32::try_from(hash >> 32).unwrap();
        if u16::from_le_bytes([low, high]) < self.noise {
            return value;
        }
        match offset {
            0x00 if more < 0xc0 => u32::MAX,
            0x00 => 0x10d3_8086,
            0x04 => 0x0010_0000,
            0x0c => value & 0x0081_0000,
            0x18 => u32::from_le_bytes([function.bus.0, function.bus.0.wrapping_add(1), 0xff, 0]),
            0x34 => 0x40,
            0x40..0x100 => 0x10 | (value & 0x00f0_0000) | u32::from((offset + 0x10) & 0xfc) << 8,
            0x100.. => (value & 0x1f) | 0x1_0000 | u32::from(offset.wrapping_add(0x40) & 0xffc) << 20,
            _ => value,
        }
    }

    fn write(&self, _: Sbdf, _: u16, _: u32) {
        self.accesses.set(self.accesses.get() + 1);
    }
}

fn noise() -> impl Strategy<Value = Noise> {
    let amount = prop::sample::select(vec![0, 50, 500, 5000, u16::MAX]);
    (any::<u64>(), amount, any::<bool>()).prop_map(|(seed, noise, lies)| Noise {
        seed,
        noise,
        lies,
        accesses: Cell::new(0),
    })
}

fn host(map: RequesterIdMap, last: u8) -> HostBridge {
    HostBridge { number: HostBridgeNumber(0), segment: Segment(0), buses: Bus(0)..=Bus(last), map, passthrough: false }
}

fn whole_map() -> RequesterIdMap {
    let entry = MapEntry::new(0, Provider::Smmu(IommuKey::new(0)), 0, 0x10000);
    RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn enumeration_ends_with_sound_answers(space in noise(), last in prop::sample::select(vec![0u8, 3, 255])) {
        let host = host(whole_map(), last);
        let found = enumerate(&space, &host).unwrap();
        // 256 functions a bus at most, each with two bounded walks.
        let bound = (u64::from(last) + 1) * 256 * (64 + 1024 + 64);
        prop_assert!(space.accesses.get() <= bound, "{} accesses", space.accesses.get());
        prop_assert!(found.functions.is_sorted_by(|one, two| one.key < two.key), "keys are unique");
        for function in &found.functions {
            prop_assert!(function.sbdf.bus.0 <= last);
            prop_assert_eq!(function.requester_ids[0].kind, AliasKind::Own);
            prop_assert_eq!(PciKey::from_number(function.key.number()), Some(function.key));
            prop_assert!(host.streams(function).unwrap().len() <= function.requester_ids.len());
            if let Some(parent) = function.key.parent() {
                prop_assert!(found.functions.binary_search_by_key(&parent, |bridge| bridge.key).is_ok());
            }
        }
    }

    #[test]
    fn walks_and_controls_end(space in noise(), rid in any::<u16>()) {
        let rid = RequesterId(rid);
        let place = Sbdf::new(Segment(0), rid.bus(), rid.device_function());
        let Ok(config) = FunctionConfig::new(&space, place) else { return Ok(()) };
        let Ok(capabilities) = Capabilities::read(&config) else { return Ok(()) };
        if let Ok(writes) = GuestWrites::read(&config) {
            let writes = writes.with_vendor_registers();
            for offset in (0..0x1000).step_by(4) {
                let answer = writes.answer(offset, Width::Double, Phase::Owned);
                prop_assert_eq!(answer.passes ^ answer.emulated ^ answer.ignored, u32::MAX);
            }
        }
        let _ = turn_translation_services_off(&config, &capabilities);
        if let Ok(mut quiesce) = Quiesce::begin(&config, &capabilities, 8) {
            let steps = (0..10).map_while(|_| quiesce.step(&config).ok()).count();
            prop_assert!(steps <= 10);
        }
        if let Ok(mut reset) = Reset::begin(&config, &capabilities, 8) {
            let _ = (0..10).map_while(|_| reset.step(&space).ok()).count();
        }
    }

    #[test]
    fn maps_agree_with_the_binding(
        entries in prop::collection::vec((any::<u16>(), any::<bool>(), any::<u32>(), 0u32..0x200), 0..6),
        mask in prop::sample::select(vec![0, 0x31f, 0xff00, 0xffff, u32::MAX]),
        rid in any::<u16>(),
    ) {
        let smmu = IommuKey::new(0x1000);
        let entries: Vec<MapEntry> = entries
            .into_iter()
            .map(|(base, ours, stream, length)| {
                let iommu = if ours { Provider::Smmu(smmu) } else { Provider::Foreign };
                MapEntry::new(u32::from(base) & mask, iommu, stream, length)
            })
            .collect();
        let Ok(map) = RequesterIdMap::new(entries.iter().copied(), mask) else { return Ok(()) };
        // The first hit in the order of the property, as other readers of the binding take it.
        let masked = u64::from(u32::from(rid) & mask);
        let hit = entries.iter().find(|entry| {
            (u64::from(entry.rid_base)..u64::from(entry.rid_base) + u64::from(entry.length)).contains(&masked)
        });
        let rid = RequesterId(rid);
        match (map.translate(rid), hit) {
            (Err(MapError::Unmapped { rid: named }), None) => prop_assert_eq!(named, rid),
            (Err(MapError::Foreign { rid: named }), Some(entry)) => {
                prop_assert_eq!((named, entry.iommu), (rid, Provider::Foreign));
            }
            (Ok((iommu, id)), Some(entry)) => {
                prop_assert_eq!(Provider::Smmu(iommu), entry.iommu);
                let expected = u64::from(entry.stream_base) + masked - u64::from(entry.rid_base);
                prop_assert_eq!(u64::from(id.value()), expected);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn c_18_keys_are_ordered_like_the_ways_that_they_name(
        one in prop::collection::vec(any::<u8>(), 1..=11),
        two in prop::collection::vec(any::<u8>(), 1..=11),
    ) {
        let key = |way: &[u8]| {
            let root = PciKey::root(HostBridgeNumber(3), DeviceFunction(way[0]));
            way[1..].iter().fold(root, |key, next| key.child(DeviceFunction(*next)).unwrap())
        };
        prop_assert_eq!(key(&one).cmp(&key(&two)), one.cmp(&two));
        prop_assert_eq!(key(&one).is_above(key(&two)), two.len() > one.len() && two.starts_with(&one));
        prop_assert_eq!(key(&one).depth(), one.len());
        prop_assert_eq!(PciKey::from_number(key(&one).number()), Some(key(&one)));
    }

    #[test]
    fn numbers_are_keys_or_refused(number in any::<u128>()) {
        if let Some(key) = PciKey::from_number(number) {
            prop_assert!((1..=PciKey::MAX_DEPTH).contains(&key.depth()));
        }
    }

    #[test]
    fn addresses_survive_being_printed(number in any::<u32>(), text in "[0-9a-f:.+ ]{0,14}") {
        let [a, b, bus, place] = number.to_le_bytes();
        let address = Sbdf::new(Segment(u16::from_le_bytes([a, b])), Bus(bus), DeviceFunction(place));
        prop_assert_eq!(address.to_string().parse::<Sbdf>(), Ok(address));
        let _ = text.parse::<Sbdf>();
    }
}
