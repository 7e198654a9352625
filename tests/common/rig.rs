//! A service that callbacks come back into, over one modelled SMMU whose driver can be stopped between two steps.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use iommu_assign::assign::{
    Cause, Device, DeviceInfo, DeviceKey, DeviceSpec, DeviceState, Domain, Error, HookContext, PolicyRequest, Service,
};
use iommu_assign::smmu::Smmu;
use iommu_assign::sync::{ManyCpus, Platform, Spin, TimedOut, Waiter};
use machine::ModelRegisters;
use smmu_model::Config;

use super::between::Between;
use super::callbacks::{Asked, Hooks, Way};
use super::{Bench, SMMU};

thread_local! {
    static WAKES: Cell<u64> = const { Cell::new(0) };
    static SLEEPS: Cell<u64> = const { Cell::new(0) };
}

/// A platform on which only the test's own thread wakes: a wait that would sleep is told that time is up.
#[derive(Debug)]
pub(crate) enum Alone {}

impl Alone {
    /// How often this thread would have slept.
    pub(crate) fn sleeps() -> u64 {
        SLEEPS.get()
    }
}

impl Platform for Alone {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = ManyCpus;

    fn barrier() {}

    fn wake() {
        WAKES.set(WAKES.get() + 1);
    }
}

impl Waiter for Alone {
    type Ticket = u64;
    type Deadline = ();

    fn prepare() -> u64 {
        WAKES.get()
    }

    fn wait(ticket: u64, _: Option<()>) -> Result<(), TimedOut> {
        if WAKES.get() != ticket {
            return Ok(());
        }
        SLEEPS.set(SLEEPS.get() + 1);
        Err(TimedOut)
    }
}

/// The service, and two domains. Streams 0x10 to 0x1f may go to both, one at a time: what these tests are about is which
/// operation may do what when.
pub(crate) struct Rig<P: Platform> {
    pub(crate) bench: Bench,
    pub(crate) service: Arc<Service<P>>,
    pub(crate) driver: Arc<Between<P>>,
    pub(crate) way: Way<P>,
    pub(crate) domains: [Domain<P>; 2],
    /// Where their page is.
    pub(crate) backing: [u64; 2],
}

impl<P: Platform<Sharing = ManyCpus>> Rig<P> {
    pub(crate) fn new() -> Self {
        Self::asking(|_, _| true)
    }

    /// With a policy of the test's own.
    pub(crate) fn asking(ask: impl Fn(&Service<P>, &PolicyRequest<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::on(Config::generic_v2(), ask)
    }

    pub(crate) fn on(
        model: Config,
        ask: impl Fn(&Service<P>, &PolicyRequest<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let mut bench = Bench::new();
        let inner = bench.smmu(SMMU, model);
        let way = Way::new();
        let service = Arc::new(Service::new(Box::new(Asked::new(&way, ask))));
        way.lead_to(&service);
        let driver = Between::new(inner, &way);
        service.register_iommu(driver.clone()).unwrap();
        let guests = [bench.guest("one"), bench.guest("two")];
        let domains = [("one", &guests[0]), ("two", &guests[1])]
            .map(|(name, guest)| service.create_domain(name.into(), guest.domain.space().stage2).unwrap());
        let backing = guests.map(|guest| guest.backing);
        for id in 0x10..0x20 {
            bench.oracle.allow(&format!("stream {id:#x}").as_str().into(), &[(id, 0)], &backing);
        }
        Self { bench, service, driver, way, domains, backing }
    }

    pub(crate) fn spec(&mut self, name: &str, stream: u32) -> DeviceSpec {
        self.bench.spec(name, &[(stream, 0)])
    }

    pub(crate) fn add(&mut self, name: &str, stream: u32) -> Device {
        let spec = self.spec(name, stream);
        self.service.add(spec).unwrap()
    }

    /// Two devices that are one group by their bus alone: they share no entry.
    pub(crate) fn on_one_bus(&mut self) -> [DeviceSpec; 2] {
        [("first", 0x10), ("mate", 0x11)].map(|(name, id)| DeviceSpec { isolation: Some(7), ..self.spec(name, id) })
    }

    /// `spec`, whose reset does this, and what came of it each time.
    pub(crate) fn hooked<T: Send + 'static>(
        &self,
        spec: DeviceSpec,
        act: impl Fn(&Service<P>, &HookContext<'_>) -> T + Send + Sync + 'static,
    ) -> (DeviceSpec, Arc<Mutex<Vec<T>>>) {
        let seen: Arc<Mutex<Vec<T>>> = Arc::default();
        let record = seen.clone();
        let way = self.way.clone();
        let hooks = Hooks::new().reset(move |context| {
            let came = act(&way.service().unwrap(), context);
            record.lock().unwrap().push(came);
            Ok(())
        });
        (DeviceSpec { hooks: Arc::new(hooks), ..spec }, seen)
    }

    /// Probes the same part once more.
    pub(crate) fn again(&self) -> Arc<Smmu<Spin, ModelRegisters>> {
        self.bench.service.force_unregister_iommu(SMMU).unwrap();
        self.bench.smmu(SMMU, Config::generic_v2())
    }

    pub(crate) fn info(&self, key: DeviceKey) -> Option<DeviceInfo> {
        self.service.find(key)
    }

    pub(crate) fn state(&self, device: &Device) -> Option<DeviceState> {
        self.info(device.key()).map(|info| info.state)
    }

    pub(crate) fn group(&self, device: &Device) -> DeviceKey {
        self.info(device.key()).unwrap().group
    }

    /// Asserts that registers, driver and registry agree.
    pub(crate) fn audit(&self) {
        self.service.audit(&mut |finding| panic!("audit: {finding}"));
    }
}

pub(crate) fn cause<T: std::fmt::Debug>(result: &Result<T, Error>) -> &Cause {
    &result.as_ref().unwrap_err().cause
}
