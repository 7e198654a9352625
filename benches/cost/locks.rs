//! Lock acquisitions, the longest hold and allocations of every operation (contract C-14, A-8).
//!
//! Each operation runs for a device that is alone, for one of a group of three that share a stream, and for one on two
//! SMMUs; the table shows the most of the three.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use iommu_assign::assign::{Changed, Device, FaultLine, FlushRange, IommuKey, StreamId};
use iommu_assign::smmu::Setup;
use iommu_assign::sync::trace;
use smmu_model::{Config, SyncDelay};

use super::common::everything::{Polled, elsewhere};
use super::common::{Bench, Guest, PAGE, SMMU, described, stream};

const SECOND: IommuKey = IommuKey::new(0x6000_0000);
const LEVELS: [&str; 6] = ["Instances", "Registry", "FlushList", "Masters", "StreamMap", "TlbSync"];

/// How often an operation may take a lock: for each step of the driver one hold. An add that overlaps somebody looks for each such
/// device, reserves once more, and asks twice who shares an entry: before the policy is asked, and when the groups become one.
fn most(op: &str) -> u64 {
    match op {
        "add" => 7,
        _ if op.starts_with("add") || op.starts_with("reassign") => 6,
        "find" | "fault intake" => 1,
        _ => 4,
    }
}

/// How often an operation may allocate. An add makes a device, here with four streams on two SMMUs; a deassign in a group
/// has room for the names of those that may keep its entries live.
fn most_allocations(op: &str) -> u64 {
    match op {
        "add" => 18,
        "add, to an owned group" => 10,
        _ if op.starts_with("deassign") => 1,
        _ => 0,
    }
}

/// What one operation did with the locks of one level.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    pub(super) acquisitions: u64,
    pub(super) longest_hold: u64,
}

/// The table: by operation, in the order of their running, and by level.
#[derive(Default)]
pub(super) struct Table {
    ops: Vec<&'static str>,
    rows: BTreeMap<(&'static str, &'static str), Row>,
    allocations: BTreeMap<&'static str, u64>,
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with the library's allocations counted.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !elsewhere() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs all operations and fills the table.
pub(super) fn table() -> Table {
    let mut table = Table::default();
    for kind in [Kind::Alone, Kind::Group, Kind::TwoSmmus] {
        operations(kind, &mut |op, act| {
            let ((), trace) = trace::record(act);
            if !table.ops.contains(&op) {
                table.ops.push(op);
            }
            for level in LEVELS {
                let row = table.rows.entry((op, level)).or_default();
                row.acquisitions = row.acquisitions.max(trace.most_acquisitions(level));
                row.longest_hold = row.longest_hold.max(trace.longest_hold(level));
            }
        });
        // The recorder takes memory too: allocations are counted without it.
        operations(kind, &mut |op, act| {
            let before = ALLOCATIONS.get();
            act();
            let taken = ALLOCATIONS.get() - before;
            let most = table.allocations.entry(op).or_default();
            *most = taken.max(*most);
        });
    }
    table
}

impl Table {
    pub(super) fn json(&self) {
        for (op, level, row) in self.taken() {
            let Row { acquisitions, longest_hold } = row;
            println!(
                r#"{{"op":"{op}","lock":"{level}","acquisitions":{acquisitions},"longest_hold_accesses":{longest_hold}}}"#
            );
        }
        for op in &self.ops {
            println!(r#"{{"op":"{op}","allocations":{}}}"#, self.allocations[op]);
        }
    }

    pub(super) fn print(&self) {
        println!("\nacquisitions of one lock / register accesses under its longest hold; allocations (generic v2)");
        print!("{:<30}", "operation");
        LEVELS.iter().for_each(|level| print!(" {level:>9}"));
        println!("  at most  allocations");
        for op in &self.ops {
            print!("{op:<30}");
            for level in LEVELS {
                let Row { acquisitions, longest_hold } = self.rows[&(*op, level)];
                let cell = if acquisitions == 0 { "-".into() } else { format!("{acquisitions}/{longest_hold}") };
                print!(" {cell:>9}");
            }
            println!("  {:>7} {:>12}", most(op), self.allocations[op]);
        }
    }

    /// Says what is wrong, and whether anything is.
    pub(super) fn exceeded(&self) -> bool {
        let mut exceeded = false;
        for (op, level, row) in self.taken() {
            let most = most(op);
            if row.acquisitions > most {
                exceeded = true;
                eprintln!("EXCEEDED: {op}: {level} is taken {} times, at most {most}", row.acquisitions);
            }
            // docs/locking.md: these are never held over a register.
            if ["Instances", "Registry", "FlushList"].contains(&level) && row.longest_hold > 0 {
                exceeded = true;
                eprintln!("EXCEEDED: {op}: {} register accesses under {level}", row.longest_hold);
            }
        }
        for op in &self.ops {
            let (most, taken) = (most_allocations(op), self.allocations[op]);
            if taken > most {
                exceeded = true;
                eprintln!("EXCEEDED: {op}: {taken} allocations, at most {most}");
            }
        }
        exceeded
    }

    fn taken(&self) -> impl Iterator<Item = (&'static str, &'static str, Row)> {
        let all = self.ops.iter().flat_map(|op| LEVELS.map(|level| (*op, level, self.rows[&(*op, level)])));
        all.filter(|(_, _, row)| row.acquisitions > 0)
    }
}

/// What the device is that operations are about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alone,
    Group,
    TwoSmmus,
}

struct World<'a> {
    bench: Bench,
    each: &'a mut dyn FnMut(&'static str, &mut dyn FnMut()),
}

fn operations(kind: Kind, each: &mut dyn FnMut(&'static str, &mut dyn FnMut())) {
    let mut bench = Bench::new();
    for key in [SMMU, SECOND] {
        let model = Config { sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() };
        let through = |registers| Polled::new(registers, &model);
        bench.smmu_through(described(key, &model), Setup::default(), model.clone(), through);
    }
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let mut world = World { bench, each };
    let spare = world.bench.guest("spare");
    let mates: Vec<Device> = match kind {
        Kind::Group => ["mate", "other mate"].map(|name| world.plain(name, &[(SMMU, 0x10)], &[])).into(),
        _ => Vec::new(),
    };
    let both = [&one, &two];
    let device = match kind {
        Kind::TwoSmmus => world.measured_add(&[(SMMU, 0x10), (SMMU, 0x23), (SMMU, 0x4c), (SECOND, 0x11)], &both),
        _ => world.measured_add(&[(SMMU, 0x10), (SMMU, 0x23), (SMMU, 0x4c)], &both),
    };
    let shared = mates.iter().map(|mate| (mate, vec![(0x10, 0)]));
    for (mate, streams) in shared {
        world.bench.oracle.allow(mate.label(), &streams, &[one.backing, two.backing]);
    }
    let others = [(SMMU, 0x60), (SECOND, 0x60)];
    let stays = world.plain("stays", &others, &both);
    let there = world.plain("there", &others.map(|(key, id)| (key, id + 1)), &both);
    world.moves(&device, [&stays, &there], both);
    world.run("find", |bench| bench.service.find(device.key()).map(drop));
    world.hot(&device, &one);
    world.run("remove, assigned", |bench| bench.service.remove(device.key()).map(drop).unwrap());
    let again = world.measured_add(&[(SMMU, 0x10)], &both);
    world.run("remove", |bench| bench.service.remove(again.key()).map(drop).unwrap());
    world.owned(&one);
    world.packed_anew(&one);
    world.lazy(&two);
    world.run("destroy domain", |bench| bench.service.destroy_domain(&spare.domain).unwrap());
}

impl World<'_> {
    fn run<T>(&mut self, op: &'static str, act: impl FnOnce(&Bench) -> T) -> T {
        let (mut act, mut done) = (Some(act), None);
        let bench = &self.bench;
        (self.each)(op, &mut || done = act.take().map(|act| act(bench)));
        done.unwrap()
    }

    fn spec(&mut self, name: &str, streams: &[(IommuKey, u32)], may: &[&Guest]) -> iommu_assign::assign::DeviceSpec {
        let mut spec = self.bench.spec(name, &[]);
        spec.streams = streams.iter().map(|(key, id)| stream(*key, *id, 0)).collect();
        let ids: Vec<(u32, u32)> = streams.iter().map(|(_, id)| (*id, 0)).collect();
        let backings: Vec<u64> = may.iter().map(|guest| guest.backing).collect();
        self.bench.oracle.allow(&spec.label, &ids, &backings);
        spec
    }

    fn plain(&mut self, name: &str, streams: &[(IommuKey, u32)], may: &[&Guest]) -> Device {
        let spec = self.spec(name, streams, may);
        self.bench.service.add(spec).unwrap()
    }

    fn measured_add(&mut self, streams: &[(IommuKey, u32)], may: &[&Guest]) -> Device {
        let spec = self.spec("dma", streams, may);
        self.run("add", |bench| bench.service.add(spec)).unwrap()
    }

    fn moves(&mut self, device: &Device, [stays, there]: [&Device; 2], [one, two]: [&Guest; 2]) {
        let assign = |bench: &Bench, device: &Device, goal: &Guest| bench.service.assign(device, &goal.domain).unwrap();
        let deassign = |bench: &Bench, device: &Device| drop(bench.service.deassign(device).unwrap());
        let reassign = |bench: &Bench, goal: &Guest| bench.service.reassign(device, &goal.domain).unwrap();
        self.run("assign, fresh bank", |bench| assign(bench, device, one));
        self.run("deassign, last", |bench| deassign(bench, device));
        assign(&self.bench, stays, one);
        self.run("assign, bank exists", |bench| assign(bench, device, one));
        self.run("deassign, not last", |bench| deassign(bench, device));
        assign(&self.bench, device, one);
        self.run("reassign, not last to fresh", |bench| reassign(bench, two));
        self.run("reassign, last to existing", |bench| reassign(bench, one));
        assign(&self.bench, there, two);
        self.run("reassign, not last to existing", |bench| reassign(bench, two));
        deassign(&self.bench, stays);
        deassign(&self.bench, there);
        self.run("reassign, last to fresh", |bench| reassign(bench, one));
    }

    /// Adds to a group that has an owner: over a stream that is live, and over a bus that does not isolate.
    fn owned(&mut self, one: &Guest) {
        for (name, late, streams) in [("by stream", "shares", (SMMU, 0x50)), ("by bus", "beside", (SMMU, 0x51))] {
            let on_bus = |spec| iommu_assign::assign::DeviceSpec { isolation: Some(7), ..spec };
            let spec = on_bus(self.spec(name, &[(SMMU, 0x50)], &[one]));
            let owned = self.bench.service.add(spec).unwrap();
            self.bench.service.assign(&owned, &one.domain).unwrap();
            let spec = on_bus(self.spec(late, &[streams], &[one]));
            let late = self.run("add, to an owned group", |bench| bench.service.add(spec)).unwrap();
            self.bench.service.remove(late.key()).unwrap();
            self.bench.service.remove(owned.key()).unwrap();
        }
    }

    /// Removals after which the rest of the group has other entries.
    fn packed_anew(&mut self, one: &Guest) {
        let _stays = self.plain("keeps", &[(SMMU, 0x71)], &[one]);
        let leaves = self.plain("leaves", &[(SMMU, 0x70), (SMMU, 0x71)], &[one]);
        self.run("remove, packed anew", |bench| bench.service.remove(leaves.key()).map(drop).unwrap());
        let leaves = self.plain("leaves", &[(SMMU, 0x70), (SMMU, 0x71)], &[one]);
        // A group that falls into three: each gets an entry of its own.
        let _parts = [0x90, 0x92, 0x95].map(|id| self.plain("part", &[(SMMU, id)], &[]));
        let joined = self.plain("joined", &[0x90, 0x91, 0x92, 0x93, 0x94, 0x95].map(|id| (SMMU, id)), &[]);
        self.run("remove, several parts left", |bench| bench.service.remove(joined.key()).map(drop).unwrap());
        // 0x70 is matched by the one entry of both.
        self.bench.oracle.allow(&"keeps".into(), &[(0x70, 1)], &[one.backing]);
        self.bench.service.assign(&leaves, &one.domain).unwrap();
        self.run("remove, assigned, packed anew", |bench| bench.service.remove(leaves.key()).map(drop).unwrap());
    }

    fn lazy(&mut self, two: &Guest) {
        let spec = self.spec("lazy", &[(SMMU, 0x78)], &[two]);
        let lazy = self.bench.service.add(iommu_assign::assign::DeviceSpec { lazy: true, ..spec }).unwrap();
        self.run("assign, added lazily", |bench| bench.service.assign(&lazy, &two.domain).unwrap());
    }

    fn hot(&mut self, device: &Device, one: &Guest) {
        let page = FlushRange { start: PAGE, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };
        self.run("flush of one page", |bench| bench.service.flush_range(&one.domain, &page).unwrap());
        self.run("flush of a domain", |bench| bench.service.flush(&one.domain).unwrap());
        let id = device.streams()[0].id().value();
        self.bench.machine.dma_write(SMMU, StreamId::new(id), PAGE + 0x8000).unwrap();
        let handle = self.bench.service.iommu(SMMU).unwrap();
        let lines = 0..=u8::MAX;
        self.run("fault intake", |_| {
            let mut taken = 0;
            for line in lines.clone() {
                let _ = handle.take_faults(FaultLine::Context(line), &mut |_| taken += 1);
            }
            assert_eq!(taken, 1);
        });
    }
}
