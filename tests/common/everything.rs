//! Every operation of the service, once and more, over two modelled SMMUs: for tests that look at something in all of
//! them. All that the library is given notes whether it was called with a lock held, and so does each poll of a sync.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use iommu_assign::assign::{
    Changed, Device, DeviceHooks, DeviceKey, DeviceSpec, Domain, Event, EventSink, FaultLine, FlushRange, HookContext,
    HookError, IommuKey, Label, Policy, PolicyRequest, Quarantine, Removal, Request, RequestQueue, Service, Source,
    Stage2, StreamId,
};
use iommu_assign::smmu::{FaultLimits, Masters, Power, PowerError, Registers, Setup, Smmu};
use iommu_assign::sync::{ManyCpus, Platform, Spin, TimedOut, Waiter, trace};
use machine::{Machine, ModelRegisters, Stage2Tables};
use smmu_model::{Config, Injection, SyncRegister};

use super::{PAGE, SMMU, described, stream};

const SECOND: IommuKey = IommuKey::new(0x6000_0000);

thread_local! {
    /// The model is at work, or these notes are.
    static ELSEWHERE: Cell<bool> = const { Cell::new(false) };
    /// For each kind of callback: how often it came, and the locks under which it ever came.
    static CALLED: RefCell<BTreeMap<&'static str, (u64, BTreeSet<&'static str>)>> = const { RefCell::new(BTreeMap::new()) };
}

/// What was called back on this thread so far, and under which locks.
pub(crate) fn called() -> BTreeMap<&'static str, (u64, BTreeSet<&'static str>)> {
    CALLED.with_borrow(Clone::clone)
}

/// Whether what runs is not the library's own: the model behind a register access, or what notes a callback.
pub(crate) fn elsewhere() -> bool {
    ELSEWHERE.get()
}

fn outside_the_library<T>(act: impl FnOnce() -> T) -> T {
    let before = ELSEWHERE.replace(true);
    let done = act();
    ELSEWHERE.set(before);
    done
}

/// A callback of this kind has come.
pub(crate) fn note(kind: &'static str) {
    outside_the_library(|| {
        let held = trace::held();
        CALLED.with_borrow_mut(|called| {
            let (count, under) = called.entry(kind).or_default();
            *count += 1;
            under.extend(held);
        });
    });
}

/// A platform whose wake-ups and waits are noted.
#[derive(Debug)]
pub(crate) enum Host {}

impl Platform for Host {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = ManyCpus;

    fn barrier() {}

    fn wake() {
        note("wake");
    }
}

impl Waiter for Host {
    type Ticket = ();
    type Deadline = ();

    fn prepare() {
        note("prepare");
    }

    fn wait((): (), _: Option<()>) -> Result<(), TimedOut> {
        note("wait");
        Err(TimedOut)
    }
}

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        note("policy");
        true
    }
}

#[derive(Debug)]
struct Listener;

impl EventSink for Listener {
    fn event(&self, _: &Event) {
        note("event");
    }
}

#[derive(Debug)]
struct Supply;

impl Power for Supply {
    fn get(&self) -> Result<(), PowerError> {
        note("power get");
        Ok(())
    }

    fn put(&self) {
        note("power put");
    }

    fn get_if_on(&self) -> bool {
        note("power get if on");
        true
    }
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        note("log");
        // The line itself is the library's to write.
        let _ = record.args().to_string();
    }

    fn flush(&self) {}
}

/// A source's hooks; the first quiesce asks for the removal of its own device where `removes` is set.
struct Hooks {
    service: OnceLock<Weak<Service<Host>>>,
    removes: bool,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

impl DeviceHooks for Hooks {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        note("quiesce");
        if let Some(service) = self.service.get().and_then(Weak::upgrade).filter(|_| self.removes) {
            assert_eq!(service.remove(context.device.key()), Ok(Removal::Pending));
        }
        Ok(())
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        note("reset");
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {
        note("release");
    }
}

/// A modelled SMMU's registers, polls noted.
#[derive(Debug)]
pub(crate) struct Polled {
    registers: ModelRegisters,
    banks: u32,
}

impl Polled {
    /// The registers of a part of this make.
    pub(crate) fn new(registers: ModelRegisters, model: &Config) -> Self {
        Self { registers, banks: model.bank_base() }
    }
}

impl Registers for Polled {
    fn read32(&self, offset: u32) -> u32 {
        if offset == 0x74 || (offset >= self.banks && offset & 0xfff == 0x7f4) {
            note("poll");
        }
        outside_the_library(|| self.registers.read32(offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        outside_the_library(|| self.registers.write32(offset, value));
    }

    fn read64(&self, offset: u32) -> u64 {
        outside_the_library(|| self.registers.read64(offset))
    }

    fn write64(&self, offset: u32, value: u64) {
        outside_the_library(|| self.registers.write64(offset, value));
    }
}

/// Runs one operation, whose name is given.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&'static str, &mut dyn FnMut());

struct Run<'a> {
    each: Each<'a>,
    machine: Machine,
    service: Arc<Service<Host>>,
    masters: Arc<Masters<Host>>,
    devices: u128,
    pools: u64,
}

/// Runs every operation, each through `each`.
pub(crate) fn every_operation(each: Each<'_>) {
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Trace);
    let service = Service::with_events(Box::new(Anyone), Box::new(Listener));
    let mut run = Run {
        each,
        machine: Machine::new(),
        service: Arc::new(service),
        masters: Arc::default(),
        devices: 0,
        pools: 0,
    };
    run.instance(SMMU);
    run.instance(SECOND);
    run.moves();
    run.groups();
    run.faults();
    run.stuck();
    run.dark();
    run.removals();
    run.queued();
    run.ending();
}

impl Run<'_> {
    fn op<T>(&mut self, name: &'static str, act: impl FnOnce(&Service<Host>) -> T) -> T {
        let service = self.service.clone();
        let (mut act, mut done) = (Some(act), None);
        (self.each)(name, &mut || done = act.take().map(|act| act(&service)));
        done.unwrap()
    }

    fn instance(&mut self, key: IommuKey) {
        let model = Config::generic_v2();
        let mut config = described(key, &model);
        config.fault_limits = FaultLimits { records: 2, storm: 3, ..config.fault_limits };
        let registers = Polled::new(self.machine.add_smmu(key, model.clone()), &model);
        let setup = Setup { power: Some(Arc::new(Supply)), ..Setup::default() };
        let masters = self.masters.clone();
        let mut probed = None;
        self.op("probe", |_| probed = Some(Smmu::probe_with(config, setup, registers, masters).unwrap()));
        let smmu = Arc::new(probed.unwrap());
        self.op("register_iommu", |service| service.register_iommu(smmu)).unwrap();
    }

    fn tables(&mut self) -> Stage2 {
        self.pools += 1;
        let mut tables = Stage2Tables::new(&self.machine, 0x8000_0000 + self.pools * 0x10_0000, 40, 40);
        tables.map(PAGE, 0x1_0000_0000 + self.pools * 0x10_0000, true);
        tables.stage2()
    }

    fn domain(&mut self, name: &str) -> Domain<Host> {
        let stage2 = self.tables();
        self.op("create_domain", |service| service.create_domain(Label::from(name), stage2)).unwrap()
    }

    fn spec(&mut self, name: &str, streams: &[(IommuKey, u32)]) -> DeviceSpec {
        self.devices += 1;
        let streams = streams.iter().map(|(key, id)| stream(*key, *id, 0)).collect();
        let mut spec = DeviceSpec::new(DeviceKey::new(Source::Dt, self.devices), Label::from(name), streams);
        spec.hooks = Arc::new(Hooks { service: OnceLock::new(), removes: false });
        spec
    }

    fn add(&mut self, spec: DeviceSpec) -> Device {
        self.op("add", |service| service.add(spec)).unwrap()
    }

    fn plain(&mut self, name: &str, streams: &[(IommuKey, u32)]) -> Device {
        let spec = self.spec(name, streams);
        self.add(spec)
    }

    fn remove(&mut self, device: &Device) {
        assert_eq!(self.op("remove", |service| service.remove(device.key())), Ok(Removal::Done));
    }

    fn assign(&mut self, device: &Device, domain: &Domain<Host>) {
        self.op("assign", |service| service.assign(device, domain)).unwrap();
    }

    fn moves(&mut self) {
        let (one, two) = (self.domain("one"), self.domain("two"));
        let spec = self.spec("dma", &[(SMMU, 0x10), (SMMU, 0x23), (SECOND, 0x10)]);
        let dma = self.add(spec.clone());
        let mate = self.plain("mate", &[(SMMU, 0x40)]);
        self.op("add, refused", |service| service.add(spec)).unwrap_err();
        let spec = self.spec("nowhere", &[(IommuKey::new(0x7000_0000), 1)]);
        self.op("add, refused", |service| service.add(spec)).unwrap_err();
        let mut spec = self.spec("later", &[(SMMU, 0x50)]);
        spec.lazy = true;
        let lazy = self.add(spec);
        self.op("test_assign", |service| service.test_assign(&lazy, &one)).unwrap();
        self.op("reserve, abandon", |service| service.reserve(&dma, &one).unwrap().abandon()).unwrap();
        self.op("wait", |service| {
            let reservation = service.reserve(&dma, &one).unwrap();
            service.wait(None, |service| service.assign(&dma, &two)).unwrap_err();
            reservation.abandon().unwrap();
        });
        self.op("reserve, commit", |service| service.reserve(&dma, &one).unwrap().commit()).unwrap();
        self.op("assign, refused", |service| service.assign(&dma, &two)).unwrap_err();
        self.assign(&mate, &one);
        self.assign(&lazy, &two);
        self.op("reassign", |service| service.reassign(&dma, &two)).unwrap();
        self.op("reassign", |service| service.reassign(&mate, &two)).unwrap();
        for changed in [Changed::Leaf, Changed::TablesFreed] {
            let range = FlushRange { start: PAGE, size: 0x2000, leaf: 0x1000, changed };
            self.op("flush_range", |service| service.flush_range(&two, &range)).unwrap();
            self.op("flush_range_atomic", |service| service.flush_range_atomic(&two, &range)).unwrap();
        }
        self.op("flush", |service| service.flush(&two)).unwrap();
        self.op("destroy_domain, refused", |service| service.destroy_domain(&two)).unwrap_err();
        self.op("look", |service| {
            assert!(service.find(dma.key()).is_some() && service.limits().is_some());
            assert_eq!((service.devices().count(), service.generation()), (3, service.generation()));
            service.audit(&mut |finding| panic!("{finding}"));
            service.usage(SMMU, &mut |_| note("usage sink")).unwrap();
            service.write_tree(&mut Page).unwrap();
        });
        for device in [&dma, &mate, &lazy] {
            self.op("deassign", |service| service.deassign(device).map(drop)).unwrap();
            self.op("deassign, refused", |service| service.deassign(device).map(drop)).unwrap_err();
            self.remove(device);
        }
        for domain in [one, two] {
            self.op("destroy_domain", |service| service.destroy_domain(&domain)).unwrap();
        }
    }

    /// Devices that meet, and a bus that keeps its functions not apart.
    fn groups(&mut self) {
        let (one, two) = (self.domain("one"), self.domain("two"));
        let left = self.plain("left", &[(SMMU, 0x80), (SECOND, 0x80)]);
        let right = self.plain("right", &[(SMMU, 0x81), (SECOND, 0x81)]);
        let bridge = self.plain("both", &[(SMMU, 0x80), (SMMU, 0x81)]);
        self.op("assign_group", |service| service.assign_group(&left, &one)).unwrap();
        self.op("reassign_group", |service| service.reassign_group(&left, &two)).unwrap();
        let still = self.op("deassign", |service| service.deassign(&left)).unwrap();
        assert!(!still.still_reachable.is_empty());
        // A newcomer would share a live entry: the policy is asked.
        let late = self.plain("late", &[(SMMU, 0x81)]);
        self.op("deassign_group", |service| service.deassign_group(&right).map(drop)).unwrap();
        self.remove(&bridge);
        let mut functions = Vec::new();
        for (name, id) in [("function 0", 0x90), ("function 1", 0x91)] {
            let mut spec = self.spec(name, &[(SMMU, id)]);
            spec.isolation = Some(7);
            functions.push(self.add(spec));
        }
        self.op("assign_group", |service| service.assign_group(&functions[0], &one)).unwrap();
        for device in [left, right, late].iter().chain(&functions) {
            self.remove(device);
        }
    }

    fn faults(&mut self) {
        let one = self.domain("one");
        let device = self.plain("noisy", &[(SMMU, 0x10)]);
        self.op("enable_reports", |service| service.enable_reports(SMMU)).unwrap();
        let (silent, scratch) = (self.tables(), self.tables());
        for place in [Quarantine::Faults, Quarantine::Silence(silent), Quarantine::Scratch(scratch)] {
            self.assign(&device, &one);
            for line in [FaultLine::Context(0), FaultLine::Global].repeat(8) {
                for id in [0x10, 0x66] {
                    let _ = self.machine.dma_write(SMMU, StreamId::new(id), PAGE + 0x8000);
                }
                let handle = |service: &Service<Host>| service.handle_fault(SMMU, line, &mut |_| note("fault sink"));
                let _ = self.op("handle_fault", handle).unwrap();
            }
            let storms = |_: &_| note("storm sink");
            self.op("tend_faults", |service| service.tend_faults(SMMU, place, &mut |storm| storms(storm))).unwrap();
            self.op("quarantine", |service| service.quarantine(&device, place)).unwrap();
        }
        self.assign(&device, &one);
        let _ = self.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + 0x8000);
        let _ = self.machine.dma_write(SMMU, StreamId::new(0x67), PAGE);
        let handle = self.op("iommu", |service| service.iommu(SMMU)).unwrap();
        self.op("take_faults", |_| {
            for line in [FaultLine::Context(0), FaultLine::Global] {
                let _ = handle.take_faults(line, &mut |_| note("intake sink"));
            }
        });
        self.op("handle counts", |_| {
            handle.unknown_streams(&mut |_, _| note("unknown sink"));
            handle.fault_counts()
        });
        self.remove(&device);
    }

    /// A sync that is not confirmed, and what is left of it.
    fn stuck(&mut self) {
        let (one, two) = (self.domain("one"), self.domain("two"));
        let device = self.plain("stuck", &[(SMMU, 0x10)]);
        let jam = Injection::StatusNeverClears(SyncRegister::Global);
        for heals_by_assign in [false, true] {
            self.assign(&device, &one);
            self.machine.smmu(SMMU, |smmu| smmu.inject(jam));
            self.op("deassign, stuck", |service| service.deassign(&device).map(drop)).unwrap_err();
            self.op("flush, stuck", |service| service.flush(&one)).unwrap_err();
            self.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
            if heals_by_assign {
                self.assign(&device, &two);
            } else {
                self.op("flush", |service| service.flush(&one)).unwrap();
            }
        }
        self.machine.smmu(SMMU, |smmu| smmu.inject(jam));
        self.op("remove, stuck", |service| service.remove(device.key()).map(drop)).unwrap_err();
        let token = self.op("retire_domain", |service| service.retire_domain(&two)).unwrap().unwrap();
        self.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
        self.op("redeem", |_| token.redeem().map_err(|(_, cause)| cause)).unwrap();
        self.op("retire_domain", |service| service.retire_domain(&one).map(drop)).unwrap();
    }

    /// Without power.
    fn dark(&mut self) {
        let (one, two) = (self.domain("one"), self.domain("two"));
        let (stays, moves) = (self.plain("stays", &[(SMMU, 0x10)]), self.plain("moves", &[(SMMU, 0x11)]));
        self.assign(&stays, &one);
        self.assign(&moves, &one);
        self.op("suspend_iommu", |service| service.suspend_iommu(SMMU)).unwrap();
        self.op("reassign", |service| service.reassign(&moves, &two)).unwrap();
        self.op("flush", |service| service.flush(&one)).unwrap();
        self.op("resume_iommu", |service| service.resume_iommu(SMMU)).unwrap();
        self.remove(&stays);
        self.remove(&moves);
    }

    fn removals(&mut self) {
        let one = self.domain("one");
        let hooks = Arc::new(Hooks { service: OnceLock::new(), removes: true });
        let _ = hooks.service.set(Arc::downgrade(&self.service));
        let mut spec = self.spec("removes itself", &[(SMMU, 0x10)]);
        spec.hooks = hooks;
        let device = self.add(spec);
        self.assign(&device, &one);
        self.op("deassign, removed", |service| service.deassign(&device).map(drop)).unwrap_err();
        let parent = self.plain("parent", &[(SMMU, 0x10)]);
        for id in [0x11, 0x12] {
            let mut spec = self.spec("child", &[(SMMU, id), (SECOND, id)]);
            spec.parent = Some(parent.key());
            let child = self.add(spec);
            self.assign(&child, &one);
        }
        self.op("remove, refused", |service| service.remove(parent.key()).map(drop)).unwrap_err();
        self.op("remove_tree", |service| service.remove_tree(parent.key()).map(drop)).unwrap();
        let device = self.plain("last", &[(SMMU, 0x10)]);
        self.op("remove_and_wait", |service| service.remove_and_wait(device.key(), None)).unwrap();
    }

    fn queued(&mut self) {
        let queue = RequestQueue::new();
        let one = self.domain("one");
        let hooks = Arc::new(Hooks { service: OnceLock::new(), removes: true });
        let _ = hooks.service.set(Arc::downgrade(&self.service));
        let mut spec = self.spec("asked for", &[(SMMU, 0x10)]);
        spec.hooks = hooks;
        let key = spec.key;
        let requests = [Request::Add(spec), Request::Assign(key.into(), one), Request::Remove(key.into())];
        let mut completions = Vec::with_capacity(requests.len());
        for request in requests {
            let ready = self.op("queue prepare", |_| queue.prepare(request));
            completions.push(self.op("queue submit", |_| queue.submit(ready)));
        }
        let cancelled = self.op("queue prepare", |_| queue.prepare(Request::Remove(key.into())));
        let cancelled = self.op("queue submit", |_| queue.submit(cancelled));
        self.op("queue cancel, poll, drop", |_| {
            assert!(cancelled.cancel() && cancelled.poll().is_some());
            drop(cancelled);
        });
        let waiting = self.op("queue drain", |service| queue.worker().map(|mut worker| worker.drain(service)));
        assert_eq!(waiting, Some(0));
        self.op("queue cancel, poll, drop", |_| {
            assert!(completions.iter().all(|completion| matches!(completion.poll(), Some(Ok(_)))));
            for completion in completions.drain(..) {
                drop(completion);
            }
        });
        self.op("queue drain", |service| queue.worker().map(|mut worker| worker.drain(service)));
    }

    fn ending(&mut self) {
        let one = self.domain("one");
        let device = self.plain("left behind", &[(SMMU, 0x10), (SECOND, 0x10)]);
        self.assign(&device, &one);
        self.op("unregister_iommu, refused", |service| service.unregister_iommu(SECOND)).unwrap_err();
        self.op("force_unregister_iommu", |service| service.force_unregister_iommu(SECOND)).unwrap();
        let _ = self.op("deassign, provider gone", |service| service.deassign(&device).map(drop));
        let _ = self.op("remove, provider gone", |service| service.remove(device.key()).map(drop));
        self.instance(SECOND);
        self.op("unregister_iommu", |service| service.unregister_iommu(SECOND)).unwrap();
        self.instance(SECOND);
        let device = self.plain("at the end", &[(SMMU, 0x10)]);
        self.assign(&device, &one);
        let handle = self.op("iommu", |service| service.iommu(SECOND)).unwrap();
        self.op("crash", |_| handle.crash()).unwrap();
        self.op("shutdown", Service::shutdown).unwrap();
    }
}

/// Where the tree of devices is written to.
struct Page;

impl fmt::Write for Page {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        note("page");
        Ok(())
    }
}
