//! Two threads that assign and deassign, each a device of its own on an SMMU of its own: how many times the operations of
//! one thread they do. Registers are plain memory, so that what is shared is the library's own.
//!
//! A ratio of times within one run. It depends on what else the machine does, and is reported, not gated.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use iommu_assign::assign::{
    Device, DeviceKey, DeviceSpec, Domain, Granule, IommuKey, Label, PhysicalAddress, Policy, PolicyRequest, Service,
    Source, Stage2, Stream, StreamId, StreamMask, TableMemory,
};
use iommu_assign::smmu::{Architecture, ContextLines, EmptyRoot, Masters, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use smmu_model::{Config, PageSize};

use super::plain::{ENTRIES, Plain, SIZE};

/// Operations of each thread in one round.
const PAIRS: u32 = 10_000;
/// Rounds. The shortest time of each kind counts: it is the one that least else took CPUs from.
const ROUNDS: usize = 25;

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

struct World {
    service: Service<Spin>,
    pairs: [(Device, Domain<Spin>); 2],
}

fn world() -> World {
    let service = Service::new(Box::new(Anyone));
    let page_size = PageSize::Small;
    let model = Config { groups: ENTRIES, banks: ENTRIES, page_size, num_page_index_bits: 6, ..Config::generic_v2() };
    let masters = Arc::new(Masters::<Spin>::new());
    let pairs = [1_u32, 2].map(|number| {
        let key = IommuKey::new(u64::from(number) << 28);
        let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
        let config = SmmuConfig {
            context_lines: ContextLines::each(ENTRIES),
            ..SmmuConfig::new(key, SIZE.into(), Architecture::V2, empty)
        };
        let smmu = Smmu::probe(config, Plain::of(&model), Arc::clone(&masters)).unwrap();
        service.register_iommu(Arc::new(smmu)).unwrap();
        let stream = Stream::new(key, StreamId::new(0x10), StreamMask::new(0));
        let key = DeviceKey::new(Source::Dt, number.into());
        let device = service.add(DeviceSpec::new(key, Label::from("device"), vec![stream])).unwrap();
        let stage2 = Stage2 {
            root: PhysicalAddress::new(0x8000_0000 + u64::from(number) * 0x1_0000),
            ipa_bits: 40,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits: 40,
            tables: TableMemory::NonCacheable,
        };
        (device, service.create_domain(Label::from("guest"), stage2).unwrap())
    });
    World { service, pairs }
}

fn work(service: &Service<Spin>, (device, domain): &(Device, Domain<Spin>)) {
    for _ in 0..PAIRS {
        service.assign(device, domain).unwrap();
        drop(service.deassign(device).unwrap());
    }
}

fn one(world: &World) -> Duration {
    let start = Instant::now();
    work(&world.service, &world.pairs[0]);
    start.elapsed()
}

/// From when the first begins until the last is done.
fn two(world: &World) -> Duration {
    let ready = Barrier::new(2);
    std::thread::scope(|scope| {
        let threads = world.pairs.each_ref().map(|pair| {
            let ready = &ready;
            scope.spawn(move || {
                ready.wait();
                let start = Instant::now();
                work(&world.service, pair);
                (start, Instant::now())
            })
        });
        let [(start, end), (other_start, other_end)] = threads.map(|thread| thread.join().unwrap());
        end.max(other_end) - start.min(other_start)
    })
}

/// Prints the ratio.
pub(super) fn print() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("\ntwo threads on two SMMUs: there is one CPU here");
        return;
    }
    let world = world();
    one(&world);
    let (mut alone, mut together) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        alone = alone.min(one(&world));
        together = together.min(two(&world));
    }
    let times = 2.0 * alone.as_secs_f64() / together.as_secs_f64();
    println!(
        "\ntwo threads that assign and deassign on two SMMUs do {times:.2} times the operations of one (the aim is 1.7; \
         {PAIRS} pairs: {alone:.1?} alone, {together:.1?} for twice as many)"
    );
}
