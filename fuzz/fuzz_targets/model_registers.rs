//! Writes anything to any part, in any order, and checks that the model never panics and never contradicts itself.
//!
//! `cargo +nightly fuzz run model_registers corpus/model_registers seeds/model_registers -- -max_len=2048 -max_total_time=600`
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use smmu_model::{
    Access, Architecture, Config, Conflict, Fault, Fixed, Injection, Memory, Outcome, PageSize, Quirks, Smmu, Source,
    SyncDelay, SyncRegister, Transaction, Unimplemented, Unknown, Verdict, WideAccess, WideInput, Wiring,
};

/// One thing that software, a device or a test does.
#[derive(Arbitrary, Debug)]
enum Step {
    Read(Place),
    ReadWide(Place),
    Write(Place, u32),
    WriteWide(Place, u64),
    /// A stage-2 descriptor in one of a few tables, so that walks get somewhere.
    Describe {
        table: u8,
        index: u16,
        output: u8,
        bits: u16,
    },
    Store {
        address: u32,
        value: u64,
    },
    Publish {
        start: u32,
        length: u16,
    },
    Fail {
        start: u32,
        length: u16,
    },
    Heal,
    Dma(Burst),
    Accept(Burst),
    Advance(u8),
    Drain,
    Program {
        bank: u8,
        vmid: u8,
        table: u8,
        entry: u8,
        stream: u16,
    },
    Sync,
    /// Invalidates everything; where the sync completes, nothing may be cached.
    Flush,
    Prefetch {
        bank: u8,
        address: u64,
    },
    Inject(Fate),
    ClearInjections,
    Reset,
}

/// A register offset: near something, or anywhere.
#[derive(Arbitrary, Debug)]
enum Place {
    Gr0(u16),
    Gr1(u16),
    Bank(u8, u16),
    Anywhere(u32),
}

#[derive(Arbitrary, Debug)]
struct Burst {
    stream: u16,
    address: u64,
    /// Keeps most addresses where tables can map them.
    near: bool,
    write: bool,
    length: u16,
    privileged: bool,
    instruction: bool,
}

#[derive(Arbitrary, Debug)]
enum Fate {
    StuckGlobal,
    StuckBank(u8),
    TimesOut(u8),
    DoesNotStick(Place),
    IsLost(u8),
    ReadsAs(Place, u32),
    AllOnes,
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let Ok(config) = config(&mut input) else { return };
    let mut smmu = Smmu::new(config.clone());
    let mut memory = Memory::new();
    let identification = identification(&mut smmu);
    if input.ratio(1, 8).unwrap_or(false) {
        smmu.start_trace();
    }
    while let Ok(step) = Step::arbitrary(&mut input) {
        take(&mut smmu, &mut memory, step);
        look(&smmu, &memory);
        if input.is_empty() {
            break;
        }
    }
    for record in smmu.take_trace() {
        assert!(record.to_string().contains(" = "));
    }
    smmu.clear_injections();
    assert_eq!(self::identification(&mut smmu), identification, "identification never changes");
    smmu.reset();
    assert_eq!(smmu, Smmu::new(config), "a reset gives the part as it was made");
});

fn take(smmu: &mut Smmu, memory: &mut Memory, step: Step) {
    match step {
        Step::Read(place) => _ = smmu.read32(offset(smmu, &place)),
        Step::ReadWide(place) => _ = smmu.read64(offset(smmu, &place)),
        Step::Write(place, value) => smmu.write32(offset(smmu, &place), value),
        Step::WriteWide(place, value) => smmu.write64(offset(smmu, &place), value),
        Step::Describe { table, index, output, bits } => {
            let at = root(table) + u64::from(index % 0x800) * 8;
            memory.write_u64(at, root(output) | u64::from(bits));
        }
        Step::Store { address, value } => memory.write_u64(u64::from(address), value),
        Step::Publish { start, length } => memory.publish(range(start, length)),
        Step::Fail { start, length } => memory.fail(range(start, length)),
        Step::Heal => memory.heal(),
        Step::Dma(burst) => whole_transaction(smmu, memory, transaction(&burst)),
        Step::Accept(burst) => {
            if smmu.in_flight().len() < 16 {
                smmu.accept(transaction(&burst));
            }
        }
        Step::Advance(which) => {
            let ids: Vec<_> = smmu.in_flight().iter().map(smmu_model::InFlight::id).collect();
            if let Some(id) = ids.get(usize::from(which) % ids.len().max(1)) {
                smmu.step(memory, *id);
            }
        }
        Step::Drain => _ = smmu.drain(memory),
        Step::Program { bank, vmid, table, entry, stream } => program(smmu, bank, vmid, table, entry, stream),
        Step::Sync => {
            smmu.write32(0x70, 1);
            for _ in 0..4 {
                smmu.read32(0x74);
            }
        }
        Step::Flush => {
            smmu.clear_injections();
            smmu.write32(0x68, 1);
            smmu.write32(0x70, 1);
            if (0..5).any(|_| smmu.read32(0x74) == 0) {
                assert!(smmu.tlb().is_empty() && smmu.walk_cache().is_empty(), "something survived a flush");
            }
        }
        Step::Prefetch { bank, address } => smmu.prefetch(memory, bank, address),
        Step::Inject(fate) => {
            let injection = injection(smmu, fate);
            smmu.inject(injection);
        }
        Step::ClearInjections => smmu.clear_injections(),
        Step::Reset => smmu.reset(),
    }
}

/// What can be asked at any instant.
fn look(smmu: &Smmu, memory: &Memory) {
    for one in smmu.reach_of_all_in_flight(memory) {
        assert_ne!(one.source, Source::New);
    }
    let lines = (0..4).filter(|line| smmu.context_irq(*line)).count();
    assert!(lines <= usize::from(smmu.config().banks.max(1)), "no more lines than banks");
    smmu.global_irq();
    smmu.config_irq();
}

/// The probe foretells what the transaction then does, and asking changes nothing.
fn whole_transaction(smmu: &mut Smmu, memory: &mut Memory, transaction: Transaction) {
    let before = smmu.clone();
    let foretold = smmu.reach_of(memory, &transaction);
    assert_eq!(*smmu, before, "asking changes nothing");
    let outcome = smmu.dma(memory, transaction);
    let agrees = |verdict: &Verdict| match (&outcome, verdict) {
        (
            Outcome::Completed { physical, path, .. } | Outcome::BusError { physical, path },
            Verdict::Reaches { physical: at, path: by },
        ) => physical == at && path == by,
        (
            Outcome::Faulted { fault: Fault::Global { kind, .. }, .. },
            Verdict::Faults(Fault::Global { kind: other, .. }),
        ) => kind == other,
        (Outcome::Faulted { fault, .. }, Verdict::Faults(other)) => fault == other,
        (Outcome::Stalled { bank, .. }, Verdict::Waits(Some(other))) => bank == other,
        (Outcome::Blocked { .. }, Verdict::Waits(None)) => true,
        _ => false,
    };
    let agreed = foretold.iter().any(|one| one.source == Source::New && agrees(&one.verdict));
    assert!(agreed, "{outcome:?} was not foretold by {foretold:?}");
}

/// A bank and an entry as a driver would set them, so that translations are common.
fn program(smmu: &mut Smmu, bank: u8, vmid: u8, table: u8, entry: u8, stream: u16) {
    smmu.write32(0, 0x0020_0406);
    smmu.write32(smmu.cba2r(bank), 1);
    smmu.write32(smmu.cbar(bank), u32::from(vmid));
    smmu.write32(smmu.bank(bank, 0x30), 0x0005_0059);
    smmu.write64(smmu.bank(bank, 0x20), root(table));
    smmu.write32(smmu.bank(bank, 0x58), u32::MAX);
    smmu.write32(smmu.bank(bank, 0x00), 0x167);
    smmu.write32(smmu.s2cr(entry), u32::from(bank));
    smmu.write32(smmu.smr(entry), 0x8000_0000 | u32::from(stream));
}

fn identification(smmu: &mut Smmu) -> Vec<u32> {
    (0x20..0x40).chain(0xfd0..0x1000).step_by(4).map(|at| smmu.read32(at)).collect()
}

fn offset(smmu: &Smmu, place: &Place) -> usize {
    match place {
        Place::Gr0(at) => usize::from(*at & 0xfff),
        Place::Gr1(at) => smmu.gr1(usize::from(*at & 0xfff)),
        Place::Bank(n, at) => smmu.bank(*n, usize::from(*at & 0xfff)),
        Place::Anywhere(at) => *at as usize,
    }
}

fn root(table: u8) -> u64 {
    0x10_0000 + u64::from(table & 7) * 0x4000
}

fn range(start: u32, length: u16) -> core::ops::Range<u64> {
    u64::from(start)..u64::from(start) + u64::from(length)
}

fn transaction(burst: &Burst) -> Transaction {
    let address = if burst.near { burst.address & 0x7f_ffff_f000 } else { burst.address };
    let mut transaction = Transaction::read(burst.stream, address, burst.length);
    if burst.write {
        transaction.access = Access::Write;
        transaction.data = vec![0x5a; usize::from(burst.length & 0xff)];
    }
    transaction.privileged = burst.privileged;
    transaction.instruction = burst.instruction;
    transaction
}

fn injection(smmu: &Smmu, fate: Fate) -> Injection {
    match fate {
        Fate::StuckGlobal => Injection::StatusNeverClears(SyncRegister::Global),
        Fate::StuckBank(n) => Injection::StatusNeverClears(SyncRegister::Bank(n)),
        Fate::TimesOut(k) => Injection::SyncTimesOut(u32::from(k)),
        Fate::DoesNotStick(place) => Injection::WriteDoesNotStick(offset(smmu, &place)),
        Fate::IsLost(k) => Injection::WriteIsLost(u32::from(k)),
        Fate::ReadsAs(place, value) => Injection::ReadsAs(offset(smmu, &place), value),
        Fate::AllOnes => Injection::AllOnes,
    }
}

/// Any part, a preset or not, possible or not.
fn config(input: &mut Unstructured<'_>) -> arbitrary::Result<Config> {
    let presets = [
        Config::generic_v1,
        Config::generic_v2,
        Config::stream_indexing,
        Config::extended,
        Config::mmu400,
        Config::mmu401_juno_small,
        Config::mmu401_juno_large,
        Config::mmu500_zynqmp,
        Config::mmu500_layerscape,
        Config::ap806,
        Config::qualcomm,
        Config::msm8974,
        Config::tegra186,
        Config::tegra194,
        Config::cn88xx,
        Config::calxeda,
    ];
    let config = input.choose(&presets)?().seed(input.arbitrary()?);
    if input.ratio(1, 2)? { odd(config, input) } else { Ok(config) }
}

/// The same with fields changed, without regard to whether such a part could be.
fn odd(base: Config, input: &mut Unstructured<'_>) -> arbitrary::Result<Config> {
    use Architecture::{V1, V1Aarch64, V2};
    let quirks = Quirks {
        wide_access: *input.choose(&[WideAccess::Atomic, WideAccess::Lost, WideAccess::LowWord])?,
        bypass_becomes_fault: input.arbitrary()?,
        fault_write_ignored: input.arbitrary()?,
        zero_maintenance_lost: input.arbitrary()?,
        hidden_banks_from: input.arbitrary()?,
        reported_groups: input.arbitrary()?,
        reported_banks: input.arbitrary()?,
        secure_accesses: input.arbitrary()?,
        bank_base: input.arbitrary()?,
        reported_coherent_walk: input.arbitrary()?,
        stall_blocks_all: input.arbitrary()?,
        cache_lock: input.arbitrary()?,
        walk_cache_sticks: input.arbitrary()?,
    };
    Ok(Config {
        architecture: *input.choose(&[V1, V1Aarch64, V2])?,
        page_size: *input.choose(&[PageSize::Small, PageSize::Large])?,
        num_page_index_bits: input.arbitrary()?,
        stage1: input.arbitrary()?,
        stage2: input.arbitrary()?,
        nested: input.arbitrary()?,
        stream_matching: input.arbitrary()?,
        groups: input.arbitrary()?,
        stream_id_bits: input.arbitrary()?,
        smr_id: input.arbitrary()?,
        smr_mask: input.arbitrary()?,
        banks: input.arbitrary()?,
        stage2_banks: input.arbitrary()?,
        fixed_bank_type: input.arbitrary()?,
        context_interrupts: input.arbitrary()?,
        wiring: *input.choose(&[Wiring::Separate, Wiring::Combined])?,
        intermediate_bits: input.arbitrary()?,
        output_bits: input.arbitrary()?,
        upstream_bits: input.arbitrary()?,
        granule_4k: input.arbitrary()?,
        granule_16k: input.arbitrary()?,
        granule_64k: input.arbitrary()?,
        extended_ids: input.arbitrary()?,
        vmid16: input.arbitrary()?,
        conflict: *input.choose(&[Conflict::Detected, Conflict::Lowest, Conflict::Highest, Conflict::Varies])?,
        cr0_fixed: Fixed { mask: input.arbitrary()?, value: input.arbitrary()? },
        stall: input.arbitrary()?,
        unimplemented: *input.choose(&[Unimplemented::Ignored, Unimplemented::Fault])?,
        bank_write_retries: input.arbitrary()?,
        wide_input: *input.choose(&[WideInput::AddressSize, WideInput::Translation])?,
        tlb_entries: input.int_in_range(0..=16)?,
        walk_cache_entries: input.int_in_range(0..=16)?,
        prefetch: input.arbitrary()?,
        stale_entries: input.int_in_range(0..=8)?,
        over_invalidate: input.arbitrary()?,
        sync_delay: *input.choose(&[SyncDelay::Polls(0), SyncDelay::Polls(3), SyncDelay::Never])?,
        unknown: *input.choose(&[base.unknown, Unknown::Zeroes, Unknown::Ones])?,
        quirks,
        ..base
    })
}
