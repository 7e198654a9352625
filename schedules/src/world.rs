//! The small universe in which operations meet, and its state in canonical words.

use std::fmt::Write;
use std::sync::Arc;

use iommu_assign::assign::{
    Cause, DeviceKey, DeviceSpec, DeviceState, Domain, FaultLine, Granule, Iommu, IommuError, IommuKey, Label,
    PhysicalAddress, Policy, PolicyRequest, Service, Source, Stage2, Stream, StreamId, StreamMask, TableMemory,
};
use iommu_assign::sync::{Explored, ManyCpus, Platform};

use crate::fake::FakeIommu;
use crate::universe::{Answer, Op, Relation, Universe};

/// The IOMMU of the universe.
pub(crate) const IOMMU: IommuKey = IommuKey::new(0x1000);

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

/// A service over a fake IOMMU, with two devices that come and go and two domains.
pub(crate) struct World<P: Platform = Explored> {
    pub(crate) service: Service<P>,
    fake: Arc<FakeIommu>,
    pub(crate) domains: [Domain<P>; 2],
    pub(crate) specs: [DeviceSpec; 2],
}

impl<P: Platform<Sharing = ManyCpus>> Universe for World<P> {
    const NAME: &'static str = "service";
    const OPS: &'static [Op] = &Op::ALL;

    fn new(relation: Relation, sources: [Source; 2]) -> Self {
        let service = Service::new(Box::new(Anyone));
        let fake = Arc::new(FakeIommu::new(IOMMU, 4, 2));
        let shared: Arc<dyn Iommu> = fake.clone();
        done(service.register_iommu(shared));
        let stage2 = Stage2 {
            root: PhysicalAddress::new(0x8000_0000),
            ipa_bits: 40,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits: 40,
            tables: TableMemory::NonCacheable,
        };
        let domains = ["one", "two"].map(|name| done(service.create_domain(Label::from(name), stage2)));
        let stream = |id| Stream::new(IOMMU, StreamId::new(id), StreamMask::NONE);
        let key = |n: usize| DeviceKey::new(if n == 0 { sources[0] } else { sources[1] }, n as u128);
        let second = if relation == Relation::SameGroup { 1 } else { 2 };
        let mut specs = [
            DeviceSpec::new(key(0), Label::from("first"), vec![stream(1)]),
            DeviceSpec::new(key(1), Label::from("second"), vec![stream(second)]),
        ];
        if relation == Relation::ParentChild {
            specs[1].parent = Some(key(0));
        }
        Self { service, fake, domains, specs }
    }

    fn prepare(&self, op: Op, n: usize) {
        let needs_device = op != Op::Add;
        if n == 1 && self.specs[1].parent.is_some() {
            let _ = self.run(Op::Add, 0);
        }
        if needs_device {
            let _ = self.run(Op::Add, n);
        }
        if matches!(op, Op::Remove | Op::RemoveTree | Op::Deassign | Op::Reassign | Op::Flush | Op::Fault) {
            let _ = self.run(Op::Assign, n);
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
            Op::Remove => answer(self.service.remove(spec.key).map(drop).map_err(|error| error.cause)),
            Op::RemoveTree => answer(self.service.remove_tree(spec.key).map(drop).map_err(|error| error.cause)),
            Op::Assign => handle()
                .map_or_else(missing, |device| answer(self.service.assign(&device, one).map_err(|error| error.cause))),
            Op::Deassign => handle().map_or_else(missing, |device| {
                answer(self.service.deassign(&device).map(drop).map_err(|error| error.cause))
            }),
            Op::Reassign => handle().map_or_else(missing, |device| {
                answer(self.service.reassign(&device, two).map_err(|error| error.cause))
            }),
            Op::DestroyDomain => answer(self.service.destroy_domain(one).map_err(|error| error.cause)),
            Op::Flush => {
                let epoch = self.fake.tables_changed();
                let flushed = self.service.flush(one).map_err(|error| error.cause);
                if flushed.is_ok() {
                    self.fake.flushed(one.id(), epoch);
                }
                answer(flushed)
            }
            Op::Fault => answer(self.service.handle_fault(IOMMU, FaultLine::Global, &mut |_| ()).map(drop)),
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
        let _ = write!(text, "streams {:?}; ", self.fake.reach());
        let _ = write!(text, "IOMMU {}", if self.service.limits().is_some() { "there" } else { "gone" });
        self.service.audit(&mut |finding| panic!("audit: {finding}"));
        text
    }

    fn take_down(&self) {
        for n in [1, 0] {
            let answer = self.run(Op::Remove, n);
            assert!(
                matches!(answer, Answer::Done) || answer == Answer::Refused("Gone".into()),
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
        assert!(self.fake.reach().is_empty(), "A-3: the driver keeps a device that is gone");
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
