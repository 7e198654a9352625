//! Register accesses of every operation, on every part of the model: `cargo bench --bench cost`, with `-- --json` as rows.
//!
//! Then, for every operation: how often it takes each lock, what it does under it, how often it takes memory (`locks.rs`);
//! and what two threads do on two SMMUs (`threads.rs`).
//!
//! Counted, not timed: accesses are the same on every machine. A bound that is exceeded on any part makes it fail. With
//! `BOARDS_DIR` set it also prints how many stream-map entries the devices of real boards need.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a bench fails by panicking"
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod locks;
#[path = "../../instructions/src/plain.rs"]
#[expect(dead_code, reason = "the counter of instructions looks at banks and faults too")]
mod plain;
mod threads;

use std::process::ExitCode;

use common::parts::{Part, parts};
use common::{Bench, Guest, PAGE, SMMU};
use iommu_assign::assign::{Changed, Device, FaultLine, FlushRange, IommuKey, Stream, StreamId};
use iommu_assign::dt::Board;
use iommu_assign::smmu::cover::{CoverOptions, Cube, least_cover};
use iommu_assign::smmu::{Effects, Remedy, quirks_of};
use smmu_model::{Config, SyncDelay};

/// What one operation cost on one part.
struct Row {
    op: &'static str,
    /// What Xen's driver takes today.
    xen: &'static str,
    /// The bound, as a formula.
    bound: String,
    /// The bound for this part: reads, writes.
    most: (u64, u64),
    /// Entries that the operation concerns.
    entries: u64,
    cost: (u64, u64),
}

impl Row {
    fn holds(&self) -> bool {
        self.cost.0 <= self.most.0 && self.cost.1 <= self.most.1
    }
}

/// The rows of one part.
struct Sheet {
    part: &'static str,
    rows: Vec<Row>,
    /// Further accesses that the part's split registers take: a retired bank is drained twice there.
    split: (u64, u64),
}

impl Sheet {
    fn add(&mut self, op: &'static str, xen: &'static str, bound: (&str, u64, u64), entries: u64, cost: (u64, u64)) {
        let (formula, reads, writes) = bound;
        self.rows.push(Row { op, xen, bound: formula.into(), most: (reads, writes), entries, cost });
    }
}

fn measured<T>(bench: &Bench, act: impl FnOnce() -> T) -> (u64, u64) {
    let (reads, writes, _) = bench.cost(act);
    (reads, writes)
}

fn sheet(part: Part) -> Sheet {
    let model = Config { sync_delay: SyncDelay::Polls(0), ..part.model };
    let (smrs, banks) = (u64::from(model.groups), u64::from(model.banks));
    // Entries that do not merge, as many as the part has room for beside two more devices.
    let n = if model.groups >= 8 { 3 } else { 1 };
    let streams: Vec<(u32, u32)> = [(0x10, 0), (0x23, 0), (0x4c, 0)].into_iter().take(n).collect();
    let n = n as u64;
    let mut effects = Effects::empty();
    for quirk in quirks_of(&part.config, model.revision) {
        if let Remedy::Effect(effect) = quirk.remedy {
            effects |= effect;
        }
    }
    let split = if effects.contains(Effects::SPLIT_64) { (1, 1) } else { (0, 0) };
    let mut sheet = Sheet { part: part.name, rows: Vec::new(), split };
    let mut bench = Bench::new();
    bench.smmu_as(part.config, model.clone());
    let probe = bench.machine.counters(SMMU);
    let (more_reads, more_writes) =
        if effects.contains(Effects::NO_PREFETCH) { (2 * banks + 2, banks + 2) } else { (0, 0) };
    sheet.add(
        "probe and reset",
        "8 R, 8 + 2 SMR + 2 CB W",
        ("16 R, 16 + 2 SMR + 2 CB W", 16 + more_reads, 16 + 2 * smrs + 2 * banks + more_writes),
        smrs,
        (probe.reads, probe.writes),
    );
    let (mut one, two) = (bench.guest("one"), bench.guest("two"));
    let before = bench.machine.counters(SMMU);
    let device = bench.add("dma", &streams);
    let after = bench.machine.counters(SMMU);
    let add = (after.reads - before.reads, after.writes - before.writes);
    sheet.add("add", "0 (2n W at assign)", ("2n W", 0, 2 * n), n, add);
    bench.oracle.allow(device.label(), &streams, &[one.backing, two.backing]);
    if model.groups > 2 {
        moves(&mut bench, &mut sheet, &device, [&one, &two], n);
    }
    flushes(&bench, &mut sheet, &device, &mut one);
    faults(&bench, &mut sheet, &device);
    sheet.add("remove", "0 (leaks)", ("n W", 0, n), n, measured(&bench, || bench.service.remove(device.key())));
    sheet
}

fn moves(bench: &mut Bench, sheet: &mut Sheet, device: &Device, [one, two]: [&Guest; 2], n: u64) {
    let (stays, there) = (bench.add("stays", &[(0x60, 0)]), bench.add("there", &[(0x61, 0)]));
    for (mate, id) in [(&stays, 0x60), (&there, 0x61)] {
        bench.oracle.allow(mate.label(), &[(id, 0)], &[one.backing, two.backing]);
    }
    let (sr, sw) = sheet.split;
    let bench: &Bench = bench;
    let service = &bench.service;
    // A bank with no other user: the root is two writes there. One that retires is asked for a fault that was just recorded.
    let assign = |goal: &Guest| measured(bench, || service.assign(device, &goal.domain).unwrap());
    let deassign = || measured(bench, || drop(service.deassign(device).unwrap()));
    let reassign = |goal: &Guest| measured(bench, || service.reassign(device, &goal.domain).unwrap());
    sheet.add("assign, fresh bank", "n+5 W", ("n+6 W", 0, n + 6 + sw), n, assign(one));
    sheet.add("deassign, last", "n+3 W, 1 R", ("n+4 W, 2 R", 2 + sr, n + 4 + sw), n, deassign());
    service.assign(&stays, &one.domain).unwrap();
    sheet.add("assign, bank exists", "n W", ("n W", 0, n), n, assign(one));
    sheet.add("deassign, not last", "n W, no drain", ("n+2 W, 1 R", 1, n + 2), n, deassign());
    assign(one);
    sheet.add("reassign, not last to fresh", "-", ("2n+8 W, 1 R", 1, 2 * n + 8 + sw), n, reassign(two));
    sheet.add("reassign, last to existing", "2n+3 W, 1 R", ("2n+4 W, 2 R", 2 + sr, 2 * n + 4 + sw), n, reassign(one));
    service.assign(&there, &two.domain).unwrap();
    sheet.add("reassign, not last to existing", "2n W, no drain", ("2n+2 W, 1 R", 1, 2 * n + 2), n, reassign(two));
    drop(service.deassign(device).unwrap());
    drop(service.deassign(&stays).unwrap());
    assign(one);
    drop(service.deassign(&there).unwrap());
    let bound = ("2n+10 W, 2 R", 2 + sr, 2 * n + 10 + 2 * sw);
    sheet.add("reassign, last to fresh", "2n+8 W, 1 R", bound, n, reassign(two));
    drop(service.deassign(device).unwrap());
}

fn flushes(bench: &Bench, sheet: &mut Sheet, device: &Device, one: &mut Guest) {
    bench.service.assign(device, &one.domain).unwrap();
    let page = FlushRange { start: PAGE, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };
    let cost = measured(bench, || one.tables.map(PAGE + 0x1000, 0x7000_0000, true));
    sheet.add("flush after additions only", "2 W, 1 R a bank", ("0", 0, 0), 0, cost);
    let cost = measured(bench, || bench.service.flush_range(&one.domain, &page).unwrap());
    sheet.add("flush of one page, per SMMU", "2 W, 1 R", ("2 W, 1 R", 1, 2), 0, cost);
    let cost = measured(bench, || bench.service.flush(&one.domain).unwrap());
    sheet.add("flush of a domain, per SMMU", "2 W, 1 R", ("2 W, 1 R", 1, 2), 0, cost);
}

fn faults(bench: &Bench, sheet: &mut Sheet, device: &Device) {
    let all_lines = || {
        for line in 0..=u8::MAX {
            let before = bench.machine.counters(SMMU);
            let _ = bench.service.handle_fault(SMMU, FaultLine::Context(line), &mut |_| ()).unwrap();
            let after = bench.machine.counters(SMMU);
            if after.reads > before.reads {
                return (after.reads - before.reads, after.writes - before.writes);
            }
        }
        (0, 0)
    };
    let spurious = all_lines();
    let stray = StreamId::new(device.streams()[0].id().value());
    bench.machine.dma_write(SMMU, stray, PAGE + 0x8000).unwrap();
    sheet.add("context fault, per live bank", "4 R, 1 W", ("5 R, 1 W", 5, 1), 0, all_lines());
    sheet.add("context fault, spurious", "1 R", ("1 R", 1, 0), 0, spurious);
    drop(bench.service.deassign(device).unwrap());
}

/// Whether to invalidate pages or the whole VMID: writes to registers, and reads by the walker afterwards, of a device
/// that goes on using `working` pages.
fn threshold() {
    println!("\nflush of k pages while 64 are in use (generic v2): register writes + walker's reads to refill");
    println!("{:>4} {:>10} {:>14}", "k", "by page", "whole VMID");
    for k in [1, 8, 16, 24, 32] {
        let costs = [true, false].map(|by_page| {
            let bench = &mut Bench::v2();
            let mut guest = bench.guest("guest");
            let device = bench.add("dma", &[(0x10, 0)]);
            (1..64).for_each(|page| guest.tables.map(PAGE + page * 0x1000, 0x7000_0000 + page * 0x1000, true));
            bench.assign(&device, &guest).unwrap();
            let touch = |bench: &Bench| {
                for page in 0..64 {
                    let _ = bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + page * 0x1000);
                }
            };
            touch(bench);
            let cached = |bench: &Bench| {
                bench.machine.smmu(SMMU, |smmu| smmu.tlb().len() + smmu.walk_cache().len()).unwrap() as u64
            };
            let full = cached(bench);
            let range = FlushRange { start: PAGE, size: k * 0x1000, leaf: 0x1000, changed: Changed::Leaf };
            let (_, writes) = measured(bench, || {
                if by_page {
                    bench.service.flush_range(&guest.domain, &range).unwrap();
                } else {
                    bench.service.flush(&guest.domain).unwrap();
                }
            });
            // The flushed pages are gone for good and need no refill.
            (writes, (full - cached(bench)).saturating_sub(k))
        });
        let [(writes, refill), (whole, whole_refill)] = costs;
        println!("{k:>4} {:>10} {:>14}", format!("{writes} + {refill}"), format!("{whole} + {whole_refill}"));
    }
}

/// Entries that the devices of each real board need, one by one and with groups packed.
fn boards() {
    let Some(directory) = std::env::var_os("BOARDS_DIR") else { return };
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "dtb"));
    files.sort();
    println!(
        "\nentries for the devices of a board: one for each specifier, and the least that groups can be packed into"
    );
    for path in files {
        let blob = std::fs::read(&path).unwrap();
        let Ok(board) = Board::read(&blob) else { continue };
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for smmu in board.smmus() {
            let (single, merged) = entries(&board, smmu.key);
            if single > 0 {
                println!("{name:<24} {:<40} {single:>4} {merged:>4}", smmu.path);
            }
        }
    }
}

fn entries(board: &Board<'_>, smmu: IommuKey) -> (usize, usize) {
    let mut groups: Vec<Vec<Stream>> = Vec::new();
    for device in board.devices().iter().filter(|device| device.enabled) {
        let mut joined: Vec<Stream> = device.streams.iter().filter(|stream| stream.iommu() == smmu).copied().collect();
        let overlaps = |group: &Vec<Stream>| group.iter().any(|one| joined.iter().any(|two| one.overlaps(*two)));
        let (overlapping, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(overlaps);
        joined.extend(overlapping.concat());
        joined.sort_unstable();
        joined.dedup();
        groups = apart;
        groups.push(joined);
    }
    let enabled = board.devices().iter().filter(|device| device.enabled);
    let counts = enabled.flat_map(|device| &device.specifiers).filter(|count| count.smmu == smmu);
    let single = counts.map(|count| count.count).sum();
    let options = CoverOptions::new(0x7fff, 0x7fff);
    let merged = groups.iter().map(|group| {
        let cubes: Vec<Cube> = group.iter().map(|stream| Cube::from(*stream)).collect();
        least_cover(&cubes, &options).unwrap().cubes.len()
    });
    (single, merged.sum())
}

fn main() -> ExitCode {
    let json = std::env::args().any(|argument| argument == "--json");
    let sheets: Vec<Sheet> = parts().into_iter().map(sheet).collect();
    let reference = sheets.iter().find(|sheet| sheet.part == "generic v2").unwrap();
    let locks = locks::table();
    if json {
        for Row { op, entries, cost: (reads, writes), .. } in &reference.rows {
            println!(r#"{{"op":"{op}","entries":{entries},"reads":{reads},"writes":{writes}}}"#);
        }
        locks.json();
    } else {
        println!("n = 3 entries; generic v2\n");
        println!("{:<32} {:<26} {:<28} measured", "operation", "Xen today", "at most");
        for Row { op, xen, bound, cost: (reads, writes), .. } in &reference.rows {
            println!("{op:<32} {xen:<26} {bound:<28} {reads} R, {writes} W");
        }
        println!("\nprobe and reset of each part");
        for sheet in &sheets {
            let Row { most, cost, .. } = &sheet.rows[0];
            println!("{:<24} {} R, {} W (at most {} R, {} W)", sheet.part, cost.0, cost.1, most.0, most.1);
        }
        for Sheet { part, split: (reads, writes), .. } in sheets.iter().filter(|sheet| sheet.split != (0, 0)) {
            println!(
                "\n{part}: 64-bit writes are split. A bank's root takes two, and one that retires a second drain (I-7):"
            );
            println!("  {reads} R and {writes} W beyond the bounds above, for each");
        }
        locks.print();
        threads::print();
        threshold();
        boards();
    }
    let mut exceeded = locks.exceeded();
    for sheet in &sheets {
        for row in sheet.rows.iter().filter(|row| !row.holds()) {
            exceeded = true;
            eprintln!("EXCEEDED on {}: {}: {:?}, at most {:?} (reads, writes)", sheet.part, row.op, row.cost, row.most);
        }
    }
    if exceeded { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
