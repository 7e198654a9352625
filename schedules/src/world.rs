//! The small universe in which operations meet, and its state in canonical words.

use std::fmt::Write;
use std::sync::Arc;

use iommu_assign::assign::{
    Cause, DeviceKey, DeviceSpec, DeviceState, Domain, Error, FaultLine, Granule, Iommu, IommuError, IommuKey, Label,
    Left, PhysicalAddress, Policy, PolicyRequest, Quarantine, Removal, Service, Source, Stage2, Stream, StreamId,
    StreamMask, TableMemory,
};
use iommu_assign::sync::{Explored, ManyCpus, Platform};

use crate::fake::{FakeIommu, with_lost_drain, without_power};
use crate::universe::{Answer, Op, Relation, Universe};

/// The IOMMU of the universe, and the second one where there are two.
pub(crate) const IOMMU: IommuKey = IommuKey::new(0x1000);
const SECOND: IommuKey = IommuKey::new(0x2000);

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

/// A service over fake IOMMUs, with two devices that come and go and two domains.
pub(crate) struct World<P: Platform = Explored> {
    pub(crate) service: Service<P>,
    fakes: Vec<Arc<FakeIommu>>,
    pub(crate) domains: [Domain<P>; 2],
    pub(crate) specs: Vec<DeviceSpec>,
}

impl<P: Platform<Sharing = ManyCpus>> World<P> {
    pub(crate) fn with_policy(relation: Relation, sources: [Source; 2], policy: Box<dyn Policy>) -> Self {
        let service = Service::new(policy);
        let keys = if relation == Relation::TwoIommus { vec![IOMMU, SECOND] } else { vec![IOMMU] };
        let fakes: Vec<_> = keys.iter().map(|key| Arc::new(FakeIommu::new(*key, 4, 2))).collect();
        for fake in &fakes {
            let shared: Arc<dyn Iommu> = fake.clone();
            done(service.register_iommu(shared));
        }
        let stage2 = Stage2 {
            root: PhysicalAddress::new(0x8000_0000),
            ipa_bits: 40,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits: 40,
            tables: TableMemory::NonCacheable,
        };
        let domains = ["one", "two"].map(|name| done(service.create_domain(Label::from(name), stage2)));
        let on_all =
            |id| keys.iter().map(|key| Stream::new(*key, StreamId::new(id), StreamMask::NONE)).collect::<Vec<_>>();
        let device_key = |n: usize| DeviceKey::new(if n == 0 { sources[0] } else { sources[1] }, n as u128);
        let second = if relation.shares_stream() { 1 } else { 2 };
        let mut specs = vec![
            DeviceSpec::new(device_key(0), Label::from("first"), on_all(1)),
            DeviceSpec::new(device_key(1), Label::from("second"), on_all(second)),
        ];
        if relation.is_behind() {
            specs[1].parent = Some(device_key(0));
        }
        if relation == Relation::SameBus {
            specs.iter_mut().for_each(|spec| spec.isolation = Some(7));
        }
        Self { service, fakes, domains, specs }
    }

    /// A device more, on the first IOMMU, that nobody has added yet.
    pub(crate) fn offer_third(&mut self, streams: &[u32]) {
        let stream = |id: &u32| Stream::new(IOMMU, StreamId::new(*id), StreamMask::NONE);
        let key = DeviceKey::new(Source::Dt, 2);
        self.specs.push(DeviceSpec::new(key, Label::from("third"), streams.iter().map(stream).collect()));
    }

    /// The streams of the first IOMMU that reach a domain.
    pub(crate) fn live_streams(&self) -> Vec<u32> {
        let reach = self.fakes.first().map(|fake| fake.reach()).unwrap_or_default();
        reach.into_iter().filter(|(_, domains)| !domains.is_empty()).map(|(stream, _)| stream).collect()
    }

    /// The IOMMU that fails where power does.
    fn last_iommu(&self) -> IommuKey {
        self.fakes.last().map_or(IOMMU, |fake| fake.key())
    }
}

impl<P: Platform<Sharing = ManyCpus>> Universe for World<P> {
    const NAME: &'static str = "service";
    const OPS: &'static [Op] = &Op::ALL;
    const FURTHER: bool = true;

    fn new(relation: Relation, sources: [Source; 2]) -> Self {
        Self::with_policy(relation, sources, Box::new(Anyone))
    }

    fn prepare(&self, op: Op, n: usize) {
        let needs_device = op != Op::Add;
        if n == 1 && self.specs[1].parent.is_some() {
            let _ = self.run(Op::Add, 0);
        }
        if needs_device {
            let _ = self.run(Op::Add, n);
        }
        let needs_domain = matches!(op, Op::Deassign | Op::Reassign | Op::Flush | Op::Fault) || op.removes();
        if needs_domain || Op::FAILING.contains(&op) {
            let _ = self.run(Op::Assign, n);
        }
        if op == Op::Cleanse {
            let _ = self.run(Op::Quarantine, n);
        }
    }

    fn run(&self, op: Op, n: usize) -> Answer {
        let spec = &self.specs[n];
        let handle = || self.service.find(spec.key).map(|info| info.device);
        let [one, two] = &self.domains;
        // A handle that was looked up in time and a look-up that came too late tell the same.
        let missing = || Answer::Refused("Gone".into());
        match op {
            Op::Add => answer(self.service.add(spec.clone()).map(drop).map_err(|error| error.cause)),
            Op::Remove => removed(self.service.remove(spec.key)),
            Op::LossyRemove => removed(with_lost_drain(|| self.service.remove(spec.key))),
            Op::RemoveTree => removed(self.service.remove_tree(spec.key)),
            Op::Assign | Op::Cleanse => handle()
                .map_or_else(missing, |device| answer(self.service.assign(&device, one).map_err(|error| error.cause))),
            Op::Deassign => handle().map_or_else(missing, |device| {
                answer(self.service.deassign(&device).map(drop).map_err(|error| error.cause))
            }),
            Op::LossyDeassign => handle().map_or_else(missing, |device| {
                let done = with_lost_drain(|| self.service.deassign(&device));
                answer(done.map(drop).map_err(|error| error.cause))
            }),
            Op::PowerlessDeassign => handle().map_or_else(missing, |device| {
                let done = without_power(self.last_iommu(), || self.service.deassign(&device));
                if let Err(Error { cause: Cause::Iommu { .. }, left, .. }) = &done {
                    assert_eq!(*left, Left::Unchanged, "A-1: without power something has changed");
                }
                answer(done.map(drop).map_err(|error| error.cause))
            }),
            Op::Quarantine => handle().map_or_else(missing, |device| {
                answer(self.service.quarantine(&device, Quarantine::Faults).map_err(|error| error.cause))
            }),
            Op::Reassign => handle().map_or_else(missing, |device| {
                answer(self.service.reassign(&device, two).map_err(|error| error.cause))
            }),
            Op::DestroyDomain => answer(self.service.destroy_domain(one).map_err(|error| error.cause)),
            Op::Flush => {
                let epochs: Vec<u64> = self.fakes.iter().map(|fake| fake.tables_changed()).collect();
                let flushed = self.service.flush(one).map_err(|error| error.cause);
                if flushed.is_ok() {
                    self.fakes.iter().zip(epochs).for_each(|(fake, epoch)| fake.flushed(one.id(), epoch));
                }
                answer(flushed)
            }
            Op::Fault => {
                let handled = self.service.handle_fault(IOMMU, FaultLine::Global, &mut |_| ());
                answer(handled.map(drop).map_err(|error| error.cause))
            }
            Op::UnregisterIommu => answer(self.service.unregister_iommu(IOMMU).map_err(|error| error.cause)),
        }
    }

    fn state(&self) -> String {
        let mut text = String::new();
        for info in self.service.devices() {
            let state = match info.state {
                DeviceState::Assigned(_) => {
                    format!("assigned to {}", info.domain.map_or(String::new(), |name| name.to_string()))
                }
                other => format!("{other:?}"),
            };
            let _ = write!(text, "{}: {state}, group of {}; ", info.device.label(), info.group);
        }
        for fake in &self.fakes {
            fake.check_quiet();
            let _ = write!(text, "streams {:?}; ", fake.reach());
        }
        let _ = write!(text, "IOMMU {}", if self.service.limits().is_some() { "there" } else { "gone" });
        self.service.audit(&mut |finding| panic!("audit: {finding}"));
        text
    }

    fn take_down(&self) {
        for n in (0..self.specs.len()).rev() {
            let answer = self.run(Op::Remove, n);
            // An IOMMU out of service says so; the device is gone all the same.
            let without_iommu = answer == Answer::Refused("Iommu".into()) && self.service.limits().is_none();
            assert!(
                matches!(answer, Answer::Done) || answer == Answer::Refused("Gone".into()) || without_iommu,
                "A-4: {answer:?} on removing device {n} at the end"
            );
        }
        for domain in &self.domains {
            let destroyed = answer(self.service.destroy_domain(domain).map_err(|error| error.cause));
            assert!(
                destroyed == Answer::Done || destroyed == Answer::Refused("Gone".into()),
                "A-4: {destroyed:?} on destroying {} at the end",
                domain.label()
            );
        }
        assert_eq!(self.service.devices().count(), 0, "C-2: a removal was lost");
        for fake in &self.fakes {
            assert!(fake.reach().is_empty(), "A-3: the driver keeps a device that is gone");
        }
    }
}

fn removed(result: Result<Removal, Error>) -> Answer {
    match result {
        Ok(Removal::Pending) => Answer::Pending,
        result => answer(result.map(drop).map_err(|error| error.cause)),
    }
}

fn answer(result: Result<(), Cause>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(Cause::Busy { .. }) => Answer::Busy,
        Err(Cause::Removed) => Answer::Removed,
        // Which device was met first does not matter.
        Err(Cause::Iommu { error: IommuError::Exhausted { resource, .. }, .. }) => {
            Answer::Refused(format!("{resource} exhausted"))
        }
        Err(Cause::NotFound) => Answer::Refused("Gone".into()),
        Err(Cause::InUse { .. }) => Answer::Refused("InUse".into()),
        Err(cause) => Answer::Refused(format!("{cause:?}").split([' ', '(']).next().unwrap_or_default().into()),
    }
}

fn done<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the universe cannot be made: {error}"))
}
