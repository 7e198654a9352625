//! A bench for the driver and the service: a machine with modelled SMMUs, guests, and devices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "each test program uses its own part of the bench")]

pub(crate) mod before;
pub(crate) mod between;
pub(crate) mod callbacks;
pub(crate) mod driver;
pub(crate) mod everything;
pub(crate) mod oracle;
pub(crate) mod parts;
pub(crate) mod presets;
pub(crate) mod rig;
pub(crate) mod slots;
pub(crate) mod stopping;
pub(crate) mod supply;
pub(crate) mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_assign::assign::{
    Deassigned, Device, DeviceKey, DeviceSpec, DeviceState, Domain, Error, Finding, IommuKey, Label, Lacks, Left,
    PhysicalAddress, Policy, PolicyRequest, Removal, Service, Source, Stream, StreamId, StreamMask,
};
use iommu_assign::smmu::{
    Architecture, ContextLines, EmptyRoot, Implementation, Masters, Registers, Setup, Smmu, SmmuConfig,
};
use iommu_assign::sync::Spin;
use machine::{Machine, ModelRegisters, Reached, Stage2Tables};
use smmu_model::Config;

/// The instance that most tests use.
pub(crate) const SMMU: IommuKey = IommuKey::new(0x5000_0000);

/// Where zeroes stand for parked banks.
pub(crate) const EMPTY: EmptyRoot = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };

/// Quarantined, in fault and drained.
pub(crate) const NOT_RESET: DeviceState = DeviceState::Quarantined(Lacks { drain: false, reset: true });
/// Quarantined, and its drain was not confirmed.
pub(crate) const NOT_DRAINED: DeviceState = DeviceState::Quarantined(Lacks { drain: true, reset: true });

/// A policy that allows everything.
#[derive(Debug)]
pub(crate) struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

/// A machine, its service, and the driver's masters.
pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) service: Service<Spin>,
    pub(crate) masters: Arc<Masters<Spin>>,
    pub(crate) oracle: oracle::Oracle,
    /// Where each device is, as the tests have it.
    placed: BTreeMap<Label, Vec<u64>>,
    guests: u64,
    devices: u128,
}

impl Drop for Bench {
    /// Whatever else a test looks at: no write ever let a stream where it may not go.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (_, violations) = self.oracle.verdict();
            assert!(violations.is_empty(), "isolation: {violations:#?}");
        }
    }
}

/// A guest: its domain and tables. Guest page `PAGE` maps to `backing`.
pub(crate) struct Guest {
    pub(crate) domain: Domain<Spin>,
    pub(crate) tables: Stage2Tables,
    pub(crate) backing: u64,
}

/// The guest-physical page that every guest has mapped.
pub(crate) const PAGE: u64 = 0x4000_0000;

/// How the driver is told of a part that the model offers.
pub(crate) fn described(key: IommuKey, model: &Config) -> SmmuConfig {
    let architecture = match model.architecture {
        smmu_model::Architecture::V2 => Architecture::V2,
        _ => Architecture::V1,
    };
    let region = u64::from(model.bank_base()) * 2;
    let mut config = SmmuConfig::new(key, region, architecture, EMPTY);
    config.polls = 100;
    config.context_lines = ContextLines::each(model.banks);
    if model.architecture == smmu_model::Architecture::V1Aarch64 {
        config.implementation = Implementation::Mmu401;
    }
    config
}

impl Bench {
    /// A machine without an SMMU, where the policy allows everything.
    pub(crate) fn new() -> Self {
        Self::with_policy(Box::new(Anyone))
    }

    pub(crate) fn with_policy(policy: Box<dyn Policy>) -> Self {
        Self {
            machine: Machine::new(),
            service: Service::new(policy),
            masters: Arc::new(Masters::new()),
            oracle: oracle::Oracle::default(),
            placed: BTreeMap::new(),
            guests: 0,
            devices: 0,
        }
    }

    /// The usual bench: one generic SMMUv2.
    pub(crate) fn v2() -> Self {
        let bench = Self::new();
        bench.smmu(SMMU, Config::generic_v2());
        bench
    }

    /// Probes a part and puts it into service.
    pub(crate) fn smmu(&self, key: IommuKey, model: Config) -> Arc<Smmu<Spin, ModelRegisters>> {
        let config = described(key, &model);
        self.smmu_as(config, model)
    }

    /// The same, with the driver told something else.
    pub(crate) fn smmu_as(&self, config: SmmuConfig, model: Config) -> Arc<Smmu<Spin, ModelRegisters>> {
        let registers = self.machine.add_smmu(config.key, model);
        let key = config.key;
        let smmu = Arc::new(Smmu::probe(config, registers, self.masters.clone()).expect("probe"));
        self.oracle.watch(&self.machine, key, PAGE);
        self.service.register_iommu(smmu.clone()).expect("register");
        smmu
    }

    /// Probes one of the model's parts and puts it into service.
    pub(crate) fn part(&self, part: parts::Part) -> Arc<Smmu<Spin, ModelRegisters>> {
        self.smmu_as(part.config, part.model)
    }

    /// The same, through registers that a test has put in between, and with a setup of its own.
    pub(crate) fn smmu_through<R: Registers + 'static>(
        &self,
        config: SmmuConfig,
        setup: Setup,
        model: Config,
        through: impl FnOnce(ModelRegisters) -> R,
    ) -> Arc<Smmu<Spin, R>> {
        let registers = self.machine.add_smmu(config.key, model);
        let key = config.key;
        let smmu = Arc::new(Smmu::probe_with(config, setup, through(registers), self.masters.clone()).expect("probe"));
        self.oracle.watch(&self.machine, key, PAGE);
        self.service.register_iommu(smmu.clone()).expect("register");
        smmu
    }

    /// A new guest with one page mapped.
    pub(crate) fn guest(&mut self, name: &str) -> Guest {
        self.guests += 1;
        let pool = 0x8000_0000 + self.guests * 0x10_0000;
        let backing = 0x1_0000_0000 + self.guests * 0x1000_0000;
        let mut tables = Stage2Tables::new(&self.machine, pool, 40, 40);
        tables.map(PAGE, backing, true);
        let domain = self.service.create_domain(Label::from(name), tables.stage2()).expect("create");
        Guest { domain, tables, backing }
    }

    /// What a source would offer: a device with these (ID, mask) streams on [`SMMU`].
    pub(crate) fn spec(&mut self, name: &str, streams: &[(u32, u32)]) -> DeviceSpec {
        self.devices += 1;
        let streams = streams.iter().map(|(id, mask)| stream(SMMU, *id, *mask)).collect();
        DeviceSpec::new(DeviceKey::new(Source::Dt, self.devices), Label::from(name), streams)
    }

    /// Adds a device with these (ID, mask) streams on [`SMMU`].
    pub(crate) fn add(&mut self, name: &str, streams: &[(u32, u32)]) -> Device {
        let spec = self.spec(name, streams);
        self.service.add(spec).expect("add")
    }

    // --- operations under the oracle ---

    pub(crate) fn assign(&mut self, device: &Device, guest: &Guest) -> Result<(), Error> {
        self.under_oracle(
            device,
            &[guest.backing],
            |service| service.assign(device, &guest.domain),
            |_| vec![guest.backing],
        )
    }

    pub(crate) fn reassign(&mut self, device: &Device, guest: &Guest) -> Result<(), Error> {
        self.under_oracle(
            device,
            &[guest.backing],
            |service| service.reassign(device, &guest.domain),
            |_| vec![guest.backing],
        )
    }

    pub(crate) fn deassign(&mut self, device: &Device) -> Result<Deassigned, Error> {
        self.under_oracle(device, &[], |service| service.deassign(device), |_| vec![])
    }

    pub(crate) fn remove(&mut self, device: &Device) -> Result<Removal, Error> {
        let removed = self.under_oracle(device, &[], |service| service.remove(device.key()), |_| vec![]);
        if removed.is_ok() {
            self.oracle.forget(device.label());
        }
        removed
    }

    /// The test knows that `device`, in fault, shares an entry with one that goes to `guest`.
    pub(crate) fn shares(&mut self, device: &Device, guest: &Guest) {
        self.oracle.allow(device.label(), &pairs(device), &[guest.backing]);
    }

    /// Runs an operation: meanwhile the device may be where it was or where it goes, afterwards only where it is.
    fn under_oracle<T>(
        &mut self,
        device: &Device,
        goal: &[u64],
        operation: impl FnOnce(&Service<Spin>) -> Result<T, Error>,
        then: impl FnOnce(&T) -> Vec<u64>,
    ) -> Result<T, Error> {
        let streams = pairs(device);
        let before = self.placed.get(device.label()).cloned().unwrap_or_default();
        let during: Vec<u64> = before.iter().chain(goal).copied().collect();
        self.oracle.allow(device.label(), &streams, &during);
        let result = operation(&self.service);
        let after = match &result {
            Ok(done) => then(done),
            Err(error) if matches!(error.left, Left::Unchanged | Left::PartlyAssigned | Left::GoingLive) => before,
            Err(_) => vec![],
        };
        self.oracle.allow(device.label(), &streams, &after);
        self.placed.insert(device.label().clone(), after);
        result
    }

    pub(crate) fn state(&self, device: &Device) -> DeviceState {
        self.service.find(device.key()).expect("registered").state
    }

    /// What a write by `stream` of [`SMMU`] to guest page [`PAGE`] comes to.
    pub(crate) fn dma(&self, stream: u32) -> Reached {
        self.machine.dma_write(SMMU, StreamId::new(stream), PAGE).unwrap()
    }

    /// Asserts that registers, shadow and registry agree.
    pub(crate) fn audit(&self) {
        let mut findings: Vec<Finding> = Vec::new();
        self.service.audit(&mut |finding| findings.push(finding.clone()));
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "audit: {lines:#?}");
    }

    /// Register reads and writes of [`SMMU`] while `act` runs.
    pub(crate) fn cost<T>(&self, act: impl FnOnce() -> T) -> (u64, u64, T) {
        let before = self.machine.counters(SMMU);
        let result = act();
        let after = self.machine.counters(SMMU);
        (after.reads - before.reads, after.writes - before.writes, result)
    }
}

fn pairs(device: &Device) -> Vec<(u32, u32)> {
    device.streams().iter().map(|stream| (stream.id().value(), stream.mask().value())).collect()
}

pub(crate) fn stream(iommu: IommuKey, id: u32, mask: u32) -> Stream {
    Stream::new(iommu, StreamId::new(id), StreamMask::new(mask))
}
