//! The driver without the service: its trait, called as any caller may, under the oracle.

use std::sync::Arc;

use iommu_assign::assign::{
    AddressSpace, DeviceId, DomainId, FlushRange, Iommu, IommuError, Label, Patience, Resource, Streams,
};
use iommu_assign::smmu::{Registers, Setup, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use machine::{ModelRegisters, Reached, Stage2Tables};
use smmu_model::{Config, Direction, Injection};

use super::parts::Part;
use super::presets::entries as selecting;
use super::{Bench, PAGE, SMMU, described, stream};

/// An instance with four guests. Every stream may reach every guest, but not two of them at once, where a test says nothing
/// else.
pub(crate) struct Driver<R: Registers = ModelRegisters> {
    pub(crate) bench: Bench,
    pub(crate) smmu: Arc<Smmu<Spin, R>>,
    pub(crate) tables: Vec<Stage2Tables>,
}

pub(crate) const fn device(n: u64) -> DeviceId {
    DeviceId::new(n)
}

fn devices(numbers: &[u64]) -> Vec<DeviceId> {
    numbers.iter().map(|n| device(*n)).collect()
}

/// The guests' numbers are 0 to 3; a domain's number must not be 0.
pub(crate) const fn domain(guest: u64) -> DomainId {
    DomainId::new(guest + 1)
}

pub(crate) const fn backing(guest: u64) -> u64 {
    0x1_0000_0000 + guest * 0x1000_0000
}

impl Driver {
    pub(crate) fn new(model: Config) -> Self {
        Self::with(described(SMMU, &model), Setup::default(), model)
    }

    pub(crate) fn part(part: Part) -> Self {
        Self::with(part.config, Setup::default(), part.model)
    }

    pub(crate) fn with(config: SmmuConfig, setup: Setup, model: Config) -> Self {
        Self::through(config, setup, model, |registers| registers)
    }
}

impl<R: Registers + 'static> Driver<R> {
    /// Through registers that a test has put in between.
    pub(crate) fn through(
        config: SmmuConfig,
        setup: Setup,
        model: Config,
        through: impl FnOnce(ModelRegisters) -> R,
    ) -> Self {
        let bench = Bench::new();
        let registers = through(bench.machine.add_smmu(SMMU, model));
        let smmu = Smmu::probe_with(config, setup, registers, bench.masters.clone()).expect("probe");
        bench.oracle.watch(&bench.machine, SMMU, PAGE);
        let tables = |guest| {
            let mut tables = Stage2Tables::new(&bench.machine, 0x9000_0000 + guest * 0x10_0000, 40, 40);
            tables.map(PAGE, backing(guest), true);
            tables
        };
        let tables = (0..4).map(tables).collect();
        Self { bench, smmu: Arc::new(smmu), tables }
    }

    // --- the trait, by numbers ---

    /// Makes and publishes a device. Says whether its entries are reserved.
    pub(crate) fn publish(&self, n: u64, ids: &[u32], lazy: bool) -> bool {
        let streams: Vec<(u32, u32)> = ids.iter().map(|id| (*id, 0)).collect();
        self.publish_streams(n, &streams, lazy)
    }

    pub(crate) fn publish_streams(&self, n: u64, streams: &[(u32, u32)], lazy: bool) -> bool {
        let made: Vec<_> = streams.iter().map(|(id, mask)| stream(SMMU, *id, *mask)).collect();
        let made = self.smmu.make_master(device(n), &made, lazy).expect("make");
        self.opens(n, streams, &[0, 1, 2, 3]);
        self.smmu.publish(made).expect("publish")
    }

    /// The streams of device `n` may reach these guests from now on.
    pub(crate) fn opens(&self, n: u64, streams: &[(u32, u32)], guests: &[u64]) {
        let backings: Vec<u64> = guests.iter().map(|guest| backing(*guest)).collect();
        self.bench.oracle.allow(&Label::from(format!("device {n}").as_str()), streams, &backings);
    }

    /// Whether the streams of device `n` reach two guests at once is not asked any more.
    pub(crate) fn forgets(&self, n: u64) {
        self.bench.oracle.forget(&Label::from(format!("device {n}").as_str()));
    }

    /// Publishes and reserves.
    pub(crate) fn enter(&self, n: u64, ids: &[u32], lazy: bool) -> Result<Streams, IommuError> {
        if self.publish(n, ids, lazy) { Ok(Streams::Fault) } else { self.reserve(n) }
    }

    /// Reserves under a claim that owns every device.
    pub(crate) fn reserve(&self, n: u64) -> Result<Streams, IommuError> {
        self.smmu.reserve(device(n), &|_| true)
    }

    /// Reserves under a claim that owns these devices.
    pub(crate) fn reserve_among(&self, n: u64, claimed: &[u64]) -> Result<Streams, IommuError> {
        let claimed = devices(claimed);
        self.smmu.reserve(device(n), &|other| claimed.contains(&other))
    }

    pub(crate) fn enrol(&self, n: u64) -> Result<(), IommuError> {
        self.smmu.enrol(device(n))
    }

    /// All of an add.
    pub(crate) fn add(&self, n: u64, ids: &[u32]) {
        self.add_as(n, ids, false);
    }

    pub(crate) fn add_lazily(&self, n: u64, ids: &[u32]) {
        self.add_as(n, ids, true);
    }

    fn add_as(&self, n: u64, ids: &[u32], lazy: bool) {
        self.enter(n, ids, lazy).expect("reserve");
        self.enrol(n).expect("enrol");
    }

    pub(crate) fn space(&self, guest: u64) -> AddressSpace {
        AddressSpace { domain: domain(guest), stage2: self.tables[guest as usize].stage2() }
    }

    pub(crate) fn plan(&self, numbers: &[u64], guest: u64) -> Result<(), IommuError> {
        self.smmu.plan(&devices(numbers), &self.space(guest), &|_| true)
    }

    pub(crate) fn abandon(&self, numbers: &[u64]) {
        self.smmu.abandon(&devices(numbers));
    }

    pub(crate) fn install(&self, numbers: &[u64]) -> Result<(), IommuError> {
        self.smmu.install(&devices(numbers))
    }

    /// Plan and install; what was planned is given back where the install fails.
    pub(crate) fn assign(&self, numbers: &[u64], guest: u64) -> Result<(), IommuError> {
        self.plan(numbers, guest)?;
        self.install(numbers).inspect_err(|_| self.abandon(numbers))
    }

    pub(crate) fn block(&self, numbers: &[u64]) -> Result<Streams, IommuError> {
        self.smmu.block(&devices(numbers))
    }

    pub(crate) fn withdraw(&self, n: u64) -> Result<Streams, IommuError> {
        self.smmu.withdraw(device(n))
    }

    pub(crate) fn forget(&self, guest: u64) -> Result<(), IommuError> {
        self.smmu.forget(domain(guest))
    }

    pub(crate) fn flush(&self, guest: u64, range: Option<&FlushRange>) -> Result<(), IommuError> {
        self.smmu.flush(domain(guest), range, Patience::Waiting)
    }

    // --- what a test looks at ---

    /// The guest that a write of this stream reaches.
    pub(crate) fn reaches(&self, id: u32) -> Option<u64> {
        match self.bench.dma(id) {
            Reached::Memory(at) => Some((at - backing(0)) >> 28),
            Reached::Fault => None,
            Reached::Untranslated(at) => panic!("stream {id:#x} reached {at:#x} untranslated"),
        }
    }

    /// The registers that `act` writes.
    pub(crate) fn writes(&self, act: impl FnOnce()) -> Vec<String> {
        self.bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
        act();
        let trace = self.bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
        trace.into_iter().filter(|access| access.direction == Direction::Write).map(|access| access.name).collect()
    }

    pub(crate) fn inject(&self, injection: Injection) {
        self.bench.machine.smmu(SMMU, |smmu| smmu.inject(injection));
    }

    /// The next `syncs` are slower than whatever waits for them.
    pub(crate) fn lose_syncs(&self, syncs: u32) {
        (1..=syncs).for_each(|sync| self.inject(Injection::SyncTimesOut(sync)));
    }

    /// Everything works again; a sync that was lost completes.
    pub(crate) fn recover(&self) {
        self.bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    }

    /// The domains that have a bank, by guest.
    pub(crate) fn banks(&self) -> Vec<u64> {
        let mut banks = Vec::new();
        self.smmu.usage(&mut |usage| {
            let domain = usage.domain.filter(|_| usage.resource == Resource::ContextBanks);
            banks.extend(domain.map(|domain| domain.number() - 1));
        });
        banks
    }

    /// Asserts that the shadow and the registers agree, and that no write opened anything.
    pub(crate) fn check(&self) {
        let mut differences = Vec::new();
        self.smmu.audit(&mut |difference| differences.push(difference.to_string()));
        assert_eq!(differences, [""; 0]);
        let (_, violations) = self.bench.oracle.verdict();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

pub(crate) fn timed_out<T>(result: &Result<T, IommuError>) -> bool {
    matches!(result, Err(IommuError::SyncTimeout(_)))
}

pub(crate) fn exhausted<T>(result: &Result<T, IommuError>, wanted: Resource) -> bool {
    matches!(result, Err(IommuError::Exhausted { resource, .. }) if *resource == wanted)
}

/// Validity in the SMR, and in the S2CR.
pub(crate) fn spellings(groups: u8) -> [Config; 2] {
    let plain = Config { groups, ..Config::generic_v2() };
    [Config { extended_ids: true, ..plain.clone() }, plain]
}

/// What power loss leaves: a part out of reset, with other UNKNOWN values. Until it is enabled again nothing is promised of it,
/// so that the oracle looks away.
pub(crate) fn lose_power(bench: &Bench, model: &Config, seed: u64) {
    bench.machine.observe(SMMU, Box::new(|_, _| ()));
    bench.machine.smmu(SMMU, |smmu| *smmu = smmu_model::Smmu::new(model.clone().seed(seed)));
}

/// It has come back: the oracle looks again.
pub(crate) fn watch_again(bench: &Bench) {
    bench.oracle.watch(&bench.machine, SMMU, PAGE);
    bench.oracle.look_now(&bench.machine, SMMU, PAGE);
}

/// The streams of the devices 1 to 3 of [`two_banks`].
pub(crate) const IDS: [u32; 3] = [0x10, 0x21, 0x42];

/// Whatever a part has, two banks, and an entry for each of three devices.
pub(crate) fn two_banks(part: &Part) -> Config {
    let (groups, stage2_banks) = (part.model.groups.max(3), part.model.stage2_banks.min(1));
    Config { banks: 2, groups, stage2_banks, ..part.model.clone() }
}

/// The (ID, mask) of every entry that matches, as the registers have them.
pub(crate) fn entries(bench: &Bench) -> Vec<(u32, u32)> {
    let mut entries: Vec<_> = selecting(bench).iter().map(|entry| entry.stream).collect();
    entries.sort_unstable();
    entries
}

/// Everything that a refused call must leave as it was.
pub(crate) fn state(driver: &Driver) -> (smmu_model::Smmu, Vec<String>) {
    let mut usage = Vec::new();
    driver.smmu.usage(&mut |one| usage.push(format!("{one:?}")));
    (driver.bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap(), usage)
}

/// Asserts that `act` changes nothing and touches no register.
pub(crate) fn unchanged<T>(driver: &Driver, act: impl FnOnce() -> T) -> T {
    let before = state(driver);
    let done = act();
    assert!(before == state(driver));
    done
}

/// Devices 1 and 2 are in guests 0 and 1, which have a bank each; device 3 is in fault.
pub(crate) fn two_guests(part: &Part) -> Driver {
    let driver = Driver::with(part.config.clone(), Setup::default(), two_banks(part));
    settle(&driver);
    driver
}

pub(crate) fn settle<R: iommu_assign::smmu::Registers + 'static>(driver: &Driver<R>) {
    (1..).zip(IDS).for_each(|(n, id)| driver.add(n, &[id]));
    driver.assign(&[1], 0).unwrap();
    driver.assign(&[2], 1).unwrap();
}
