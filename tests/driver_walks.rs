//! Random walks over the driver's trait on small parts, where everything runs out: after every register write each stream reaches
//! what a device that has it may reach, after every call the audit is empty, and in the end everything is free.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

#[path = "common/trait_bench.rs"]
mod bench;

use std::collections::{BTreeMap, BTreeSet};

use bench::{Bench, Guest, device};
use iommu_assign::assign::{DeviceId, Iommu, IommuError, Streams};
use iommu_assign::smmu::cover::Cube;
use smmu_model::{Config, Injection, SyncRegister};

const IDS: u16 = 32;

/// Numbers without a pattern.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

struct Walk {
    bench: Bench,
    guests: Vec<Guest>,
    /// Streams of each device that is known, and its guest.
    devices: BTreeMap<u64, (Vec<Cube>, Option<usize>)>,
    /// IDs of devices that left while an entry that captures them was live.
    ghosts: Vec<(Vec<Cube>, u64)>,
    /// IDs of devices that left, with those that stay: where entries do not suffice to fit them anew, they are captured still.
    captured: Vec<(Vec<Cube>, Vec<u64>)>,
    /// Entries may run out.
    scarce: bool,
    next: u64,
    log: Vec<String>,
}

impl Walk {
    fn ids(cubes: &[Cube]) -> impl Iterator<Item = u16> {
        (0..IDS).filter(move |id| cubes.iter().any(|cube| cube.holds(u32::from(*id))))
    }

    /// Everything that each ID may reach now.
    fn watch(&self) {
        let mut allowed: BTreeMap<u16, BTreeSet<u64>> = (0..IDS).map(|id| (id, BTreeSet::new())).collect();
        let owned = self.devices.values().filter_map(|(cubes, guest)| Some((cubes, self.guests[(*guest)?].page)));
        let page_of = |number: &u64| Some(self.guests[self.devices.get(number)?.1?].page);
        let captured = self
            .captured
            .iter()
            .filter(|_| self.scarce)
            .flat_map(|(cubes, mates)| mates.iter().filter_map(page_of).map(move |page| (cubes, page)));
        for (cubes, page) in owned.chain(captured).chain(self.ghosts.iter().map(|(cubes, page)| (cubes, *page))) {
            for id in Self::ids(cubes) {
                allowed.entry(id).or_default().insert(page);
            }
        }
        self.bench.expect(allowed);
    }

    /// The devices that share entries with `number`, itself included.
    fn group(&self, number: u64) -> Vec<u64> {
        let mut group = vec![number];
        let mut at = 0;
        while let Some(one) = group.get(at).copied() {
            at += 1;
            for other in self.devices.keys() {
                let meets = self.devices[&one].0.iter().any(|a| self.devices[other].0.iter().any(|b| a.meets(*b)));
                if !group.contains(other) && (meets || self.bench.smmu.shares(device(one), device(*other))) {
                    group.push(*other);
                }
            }
        }
        group
    }

    fn step(&mut self, dice: &mut Dice) {
        let known: Vec<u64> = self.devices.keys().copied().collect();
        let chosen = known.get(usize::try_from(dice.below(known.len().max(1) as u64)).unwrap_or(0)).copied();
        match (dice.below(12), chosen) {
            (0..=2, _) | (_, None) => self.add(dice),
            (3..=5, Some(number)) => self.assign(dice, number),
            (6..=8, Some(number)) => self.block(dice, number),
            (9, Some(number)) => {
                self.bench.inject(Injection::StatusNeverClears(SyncRegister::Global));
                self.block(dice, number);
                self.assign(dice, number);
                self.withdraw(number);
                self.bench.heal();
            }
            (10, Some(number)) => {
                self.bench.power(false);
                self.block(dice, number);
                self.assign(dice, number);
                self.withdraw(number);
                self.bench.power(true);
            }
            (_, Some(number)) => self.withdraw(number),
        }
        self.watch();
        self.bench.audited();
    }

    fn add(&mut self, dice: &mut Dice) {
        self.next += 1;
        let number = self.next;
        let count = 1 + dice.below(3);
        let mut cube = || Cube::new(dice.below(32) as u32, (dice.below(32) & dice.below(32)) as u32);
        let cubes: Vec<Cube> = (0..count).map(|_| cube()).collect();
        let streams: Vec<_> = cubes.iter().map(|cube| self.bench.stream(cube.id(), cube.mask())).collect();
        let lazy = dice.below(4) == 0;
        let smmu = &self.bench.smmu;
        let Ok(made) = smmu.make_master(device(number), &streams, lazy) else { return };
        let alone = smmu.publish(made).expect("published");
        let mut claimed: BTreeSet<DeviceId> = BTreeSet::new();
        let reserved = loop {
            if alone {
                break Ok(Streams::Fault);
            }
            match smmu.reserve(device(number), &|other| claimed.contains(&other)) {
                Err(IommuError::Foreign(other)) => assert!(claimed.insert(other), "asked for twice"),
                reserved => break reserved,
            }
        };
        self.log.push(format!("add {number} {cubes:?} lazy {lazy}: {reserved:?}, claimed {claimed:?}"));
        // What an add is told is no less than what it shares.
        if reserved.is_err() {
            smmu.withdraw(device(number)).expect("it shares nothing");
            return;
        }
        // A live entry that is shared opens for the newcomer at once: the service asks the policy, this walk says yes.
        let mut group: Vec<u64> = Vec::new();
        self.devices.insert(number, (cubes.clone(), None));
        if reserved == Ok(Streams::Live) {
            group = self.group(number);
        }
        let pages = group.iter().filter_map(|other| self.devices[other].1).map(|guest| self.guests[guest].page);
        let ghosts: Vec<_> = pages.map(|page| (cubes.clone(), page)).collect();
        self.ghosts.extend(ghosts);
        self.watch();
        self.bench.smmu.enrol(device(number)).expect("enrolled");
    }

    fn assign(&mut self, dice: &mut Dice, number: u64) {
        let group = self.group(number);
        let guest = usize::try_from(dice.below(3)).unwrap_or(0);
        let devices: Vec<DeviceId> = group.iter().copied().map(device).collect();
        let space = self.guests[guest].space();
        let planned = self.bench.smmu.plan(&devices, &space, &|other| devices.contains(&other));
        self.log.push(format!("plan {group:?} -> {guest}: {planned:?}"));
        if planned.is_err() || dice.below(8) == 0 {
            self.bench.smmu.abandon(&devices);
            return;
        }
        if let Err(error) = self.bench.smmu.block(&devices) {
            self.log.push(format!("  block: {error}"));
            // With a timeout they are in fault, and cached translations are not known to be gone.
            self.bench.smmu.abandon(&devices);
            return;
        }
        self.left(&group);
        let before: Vec<_> = group.iter().map(|one| self.devices[one].1).collect();
        for one in &group {
            self.devices.get_mut(one).expect("known").1 = Some(guest);
        }
        self.watch();
        let installed = self.bench.smmu.install(&devices);
        self.log.push(format!("  install: {installed:?}"));
        if installed.is_err() {
            self.bench.smmu.abandon(&devices);
            for (one, before) in group.iter().zip(before) {
                self.devices.get_mut(one).expect("known").1 = before;
            }
        }
    }

    fn block(&mut self, dice: &mut Dice, number: u64) {
        let group = self.group(number);
        let whole = dice.below(2) == 0;
        let some: Vec<u64> = if whole { group.clone() } else { vec![number] };
        let devices: Vec<DeviceId> = some.iter().copied().map(device).collect();
        let blocked = self.bench.smmu.block(&devices);
        self.log.push(format!("block {some:?} of {group:?}: {blocked:?}"));
        if whole && blocked.is_ok() {
            assert_eq!(blocked, Ok(Streams::Fault));
            self.left(&group);
        }
    }

    /// The whole group was put in fault and drained.
    fn left(&mut self, group: &[u64]) {
        for one in group {
            self.devices.get_mut(one).expect("known").1 = None;
        }
        let cubes: Vec<Cube> = group.iter().flat_map(|one| self.devices[one].0.clone()).collect();
        let live =
            |page: u64| self.devices.values().any(|(_, guest)| guest.is_some_and(|g| self.guests[g].page == page));
        let pages: BTreeSet<u64> = self.ghosts.iter().map(|(_, page)| *page).filter(|page| live(*page)).collect();
        self.ghosts
            .retain(|(ghost, page)| pages.contains(page) && !ghost.iter().any(|a| cubes.iter().any(|b| a.meets(*b))));
    }

    fn withdraw(&mut self, number: u64) {
        let group = self.group(number);
        let gone = self.bench.smmu.withdraw(device(number));
        self.log.push(format!("withdraw {number}: {gone:?}"));
        if gone.is_err() {
            return;
        }
        let (cubes, _) = self.devices.remove(&number).expect("known");
        if gone == Ok(Streams::Live) {
            // Its IDs stay with whoever keeps the entry, until that is in fault.
            let pages: BTreeSet<u64> =
                self.devices.values().filter_map(|(_, g)| Some(self.guests[(*g)?].page)).collect();
            self.ghosts.extend(pages.into_iter().map(|page| (cubes.clone(), page)));
        }
        self.captured.push((cubes, group));
    }

    fn finish(&mut self) {
        let known: Vec<u64> = self.devices.keys().copied().collect();
        let devices: Vec<DeviceId> = known.iter().copied().map(device).collect();
        assert_eq!(self.bench.smmu.block(&devices), Ok(Streams::Fault));
        for number in known {
            assert_eq!(self.bench.smmu.withdraw(device(number)), Ok(Streams::Fault));
        }
        for guest in &self.guests {
            self.bench.smmu.forget(guest.domain).expect("forgotten");
        }
        self.bench.empty();
    }
}

fn walk(config: Config, seed: u64) {
    let scarce = config.groups < 64;
    let bench = Bench::new(config);
    let guests = (1..=3).map(|number| Guest::new(&bench, number)).collect();
    let mut walk = Walk {
        bench,
        guests,
        devices: BTreeMap::new(),
        ghosts: Vec::new(),
        captured: Vec::new(),
        scarce,
        next: 0,
        log: Vec::new(),
    };
    walk.watch();
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..60).for_each(|_| walk.step(&mut dice));
        walk.finish();
    }));
    assert!(walked.is_ok(), "seed {seed}:\n{}", walk.log.join("\n"));
}

fn small(groups: u8, banks: u8) -> Config {
    Config { groups, banks, stage2_banks: 0, ..Config::generic_v2() }
}

#[test]
fn random_walks_on_small_parts_keep_every_stream_where_it_may_go() {
    let seeds = std::env::var("WALKS").ok().and_then(|walks| walks.parse().ok()).unwrap_or(12);
    for seed in 0..seeds {
        walk(small(5, 2), seed);
        walk(small(12, 1), seed);
        walk(small(127, 2), seed);
        walk(Config { groups: 8, banks: 2, ..Config::ap806() }, seed);
        walk(Config { groups: 10, ..Config::extended() }, seed);
        walk(Config { banks: 2, ..Config::stream_indexing() }, seed);
    }
}

#[test]
fn c15_callers_that_claim_nothing_leave_everything_in_order() {
    for config in [small(6, 2), Config { groups: 6, banks: 2, ..Config::ap806() }] {
        for seed in 0..2 {
            let bench = Bench::new(config.clone());
            let guests: Vec<Guest> = (1..=3).map(|number| Guest::new(&bench, number)).collect();
            let pages: Vec<u64> = guests.iter().map(|guest| guest.page).collect();
            bench.expect((0..IDS).map(|id| (id, pages.iter().copied().collect())).collect());
            let next = std::sync::atomic::AtomicU64::new(1);
            let known = std::sync::Mutex::new(Vec::<u64>::new());
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (bench, guests, next, known) = (&bench, &guests, &next, &known);
                    scope.spawn(move || {
                        let mut dice = Dice((seed * 8 + thread + 1_u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                        for _ in 0..150 {
                            concurrent_step(bench, guests, next, known, &mut dice);
                        }
                    });
                }
            });
            let known = known.into_inner().expect("no thread failed");
            let devices: Vec<DeviceId> = known.iter().copied().map(device).collect();
            devices.iter().for_each(|device| bench.smmu.abandon(&[*device]));
            bench.audited();
            assert_eq!(bench.smmu.block(&devices), Ok(Streams::Fault));
            for device in devices {
                assert_eq!(bench.smmu.withdraw(device), Ok(Streams::Fault));
            }
            for guest in &guests {
                bench.smmu.forget(guest.domain).expect("forgotten");
            }
            bench.empty();
        }
    }
}

fn concurrent_step(
    bench: &Bench,
    guests: &[Guest],
    next: &std::sync::atomic::AtomicU64,
    known: &std::sync::Mutex<Vec<u64>>,
    dice: &mut Dice,
) {
    let all = known.lock().expect("no thread failed").clone();
    let chosen = all.get(usize::try_from(dice.below(all.len().max(1) as u64)).unwrap_or(0)).copied();
    let guest = &guests[usize::try_from(dice.below(3)).unwrap_or(0)];
    let smmu = &bench.smmu;
    match (dice.below(8), chosen) {
        (0, _) | (_, None) => {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let stream = bench.stream(dice.below(32) as u32, (dice.below(8) & dice.below(8)) as u32);
            let made = smmu.make_master(device(number), &[stream], dice.below(4) == 0).expect("made");
            if smmu.publish(made).expect("published") || smmu.reserve(device(number), &|_| true).is_ok() {
                smmu.enrol(device(number)).expect("enrolled");
                known.lock().expect("no thread failed").push(number);
            } else {
                smmu.withdraw(device(number)).expect("it has nothing");
            }
        }
        (1..=3, Some(number)) => {
            if smmu.plan(&[device(number)], &guest.space(), &|_| true).is_ok()
                && smmu.install(&[device(number)]).is_err()
            {
                smmu.abandon(&[device(number)]);
            }
        }
        (4 | 5, Some(number)) => drop(smmu.block(&[device(number)])),
        (6, Some(_)) => drop(smmu.flush(guest.domain, None, iommu_assign::assign::Patience::Waiting)),
        (_, Some(number)) => {
            // One caller alone takes it out.
            let mine = {
                let mut all = known.lock().expect("no thread failed");
                let place = all.iter().position(|one| *one == number);
                place.map(|place| all.swap_remove(place)).is_some()
            };
            if mine && smmu.withdraw(device(number)).is_err() {
                known.lock().expect("no thread failed").push(number);
            }
            let _ = smmu.forget(guest.domain);
        }
    }
}
