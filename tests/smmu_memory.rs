//! Lists that find no memory: the answer is an error, not a short list, and what should have been done is done (contract
//! A-8, I-6, I-15).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::everything::{Polled, elsewhere};
use common::{Anyone, Bench, SMMU, described};
use iommu_assign::assign::{
    AddressSpace, Cause, Device, DeviceId, DeviceState, Difference, Domain, DomainId, FaultAnswer, FaultLine, Iommu,
    IommuError, IommuKey, Left, NewMaster, Prepared, RawFault, Removal, Service, Sharing, Stage2Limits, Stream,
    StreamId, Withdrawn,
};
use iommu_assign::smmu::Setup;
use iommu_assign::sync::Spin;
use machine::Reached;
use smmu_model::Config;

/// The system's allocator, which has nothing for a thread that says so, but for the hardware behind a register.
struct Empty;

thread_local! {
    static IS_EMPTY: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator as it came; returning null is allowed at any time.
unsafe impl GlobalAlloc for Empty {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_EMPTY.get() && !elsewhere() {
            return std::ptr::null_mut();
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
static ALLOCATOR: Empty = Empty;

/// Runs `act` with no memory to be had.
fn without_memory<T>(act: impl FnOnce() -> T) -> T {
    IS_EMPTY.set(true);
    let done = act();
    IS_EMPTY.set(false);
    done
}

/// More devices than a list has room for in place, behind one entry: the last one's streams bring them together.
const MEMBERS: u32 = 12;

struct Rig {
    bench: Bench,
    smmu: Arc<dyn Iommu>,
    service: Service<Spin>,
    domain: Domain<Spin>,
    backing: u64,
    /// The last of them has the streams of all.
    devices: Vec<Device>,
    driver: Arc<Starved>,
}

impl Rig {
    fn new() -> Self {
        let mut bench = Bench::new();
        let model = Config::generic_v2();
        let through = |registers| Polled::new(registers, &model);
        let smmu: Arc<dyn Iommu> =
            bench.smmu_through(described(SMMU, &model), Setup::default(), model.clone(), through);
        let service = Service::new(Box::new(Anyone));
        let driver = Arc::new(Starved { inner: smmu.clone(), is_starved: AtomicBool::new(false) });
        service.register_iommu(driver.clone()).unwrap();
        let guest = bench.guest("guest");
        let domain = service.create_domain("guest".into(), guest.domain.space().stage2).unwrap();
        let ids = 0x10..0x10 + MEMBERS - 1;
        let all: Vec<(u32, u32)> = ids.clone().map(|id| (id, 0)).collect();
        let one = ids.map(|id| vec![(id, 0)]);
        let specs: Vec<_> = one.chain([all.clone()]).map(|streams| bench.spec("member", &streams)).collect();
        bench.oracle.allow(&"member".into(), &all, &[guest.backing]);
        let devices = specs.into_iter().map(|spec| service.add(spec).unwrap()).collect();
        Self { bench, smmu, service, domain, backing: guest.backing, devices, driver }
    }

    fn ids(&self) -> Vec<DeviceId> {
        self.devices.iter().map(Device::id).collect()
    }

    fn groups(&self) -> usize {
        let mut groups: Vec<_> = self.service.devices().map(|info| info.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.len()
    }
}

/// A driver that finds no memory where it lists who shares and who keeps, while that is asked for.
struct Starved {
    inner: Arc<dyn Iommu>,
    is_starved: AtomicBool,
}

impl Starved {
    fn run<T>(&self, act: impl FnOnce() -> T) -> T {
        if self.is_starved.load(Ordering::Relaxed) { without_memory(act) } else { act() }
    }
}

impl std::fmt::Debug for Starved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Starved")
    }
}

impl Iommu for Starved {
    fn key(&self) -> IommuKey {
        self.inner.key()
    }

    fn limits(&self) -> Stage2Limits {
        self.inner.limits()
    }

    fn new_master(&self, device: DeviceId, streams: &[Stream], kin: Option<u64>) -> Result<NewMaster, IommuError> {
        self.inner.new_master(device, streams, kin)
    }

    fn publish(&self, master: &mut NewMaster, met: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.inner.publish(master, met)
    }

    fn allot(&self, master: &mut NewMaster) -> Result<usize, IommuError> {
        self.inner.allot(master)
    }

    fn enrol(&self, master: &mut NewMaster) -> Result<(), IommuError> {
        self.inner.enrol(master)
    }

    fn sharing(&self, devices: &[DeviceId], tell: &mut dyn FnMut(Sharing)) -> Result<(), IommuError> {
        self.run(|| self.inner.sharing(devices, tell))
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
    ) -> Result<Prepared, IommuError> {
        self.inner.plan(devices, space, along)
    }

    fn abandon(&self, devices: &[DeviceId], prepared: Prepared) {
        self.inner.abandon(devices, prepared);
    }

    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError> {
        self.inner.install(devices, prepared)
    }

    fn block(&self, devices: &[DeviceId], tell: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.run(|| self.inner.block(devices, tell))
    }

    fn cut(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        self.run(|| self.inner.cut(devices))
    }

    fn withdraw(&self, device: DeviceId, rest: &[DeviceId], tell: &mut dyn FnMut(Withdrawn)) -> Result<(), IommuError> {
        self.run(|| self.inner.withdraw(device, rest, tell))
    }

    fn flush(&self, domain: DomainId) -> Result<(), IommuError> {
        self.inner.flush(domain)
    }

    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.inner.take_faults(line, report)
    }

    fn owner_of(&self, stream: StreamId) -> Option<DeviceId> {
        self.inner.owner_of(stream)
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        self.inner.audit(report);
    }

    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        self.inner.placement(device)
    }
}

#[test]
fn a8_i6_a_block_that_cannot_list_who_keeps_an_entry_says_so() {
    let rig = Rig::new();
    for device in &rig.devices {
        rig.service.assign(device, &rig.domain).unwrap();
    }
    let last = rig.ids()[MEMBERS as usize - 1];
    let mut told = 0;
    let blocked = without_memory(|| rig.smmu.block(&[last], &mut |_| told += 1));
    assert_eq!(blocked, Err(IommuError::OutOfMemory));
    assert_eq!(rig.smmu.placement(last), Ok(None), "it is in fault all the same");
    assert_eq!(told, 0, "nobody takes a part for all");
    assert_eq!(rig.smmu.block(&[last], &mut |_| told += 1), Ok(()));
    assert_eq!(told, MEMBERS - 1);
}

#[test]
fn a8_i15_sharing_that_cannot_be_listed_is_an_error() {
    let rig = Rig::new();
    let ids = rig.ids();
    let mut told = 0;
    assert_eq!(without_memory(|| rig.smmu.sharing(&ids, &mut |_| told += 1)), Err(IommuError::OutOfMemory));
    assert_eq!(told, 0);
    rig.smmu.sharing(&ids, &mut |_| told += 1).unwrap();
    assert_eq!(told, MEMBERS - 1);
}

#[test]
fn a8_i6_a_deassign_that_cannot_say_who_keeps_an_entry_leaves_quarantine() {
    let rig = Rig::new();
    for device in &rig.devices {
        rig.service.assign(device, &rig.domain).unwrap();
    }
    let last = rig.devices.last().unwrap();
    rig.driver.is_starved.store(true, Ordering::Relaxed);
    let error = rig.service.deassign(last).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::OutOfMemory, .. }), "{error}");
    assert_eq!(error.left, Left::Quarantined);
    assert_eq!(rig.service.find(last.key()).map(|info| info.state), Some(DeviceState::Quarantined));
    assert_eq!(rig.bench.dma(0x10), Reached::Memory(rig.backing), "which is what could not be said");
}

#[test]
fn a8_c8_a_removal_that_cannot_say_who_keeps_an_entry_is_done_and_says_so() {
    let rig = Rig::new();
    let (last, mates) = rig.devices.split_last().unwrap();
    for device in mates {
        rig.service.assign(device, &rig.domain).unwrap();
    }
    rig.driver.is_starved.store(true, Ordering::Relaxed);
    let error = rig.service.remove(last.key()).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::OutOfMemory, .. }), "{error}");
    assert_eq!(error.left, Left::Removed);
    assert_eq!(rig.smmu.placement(last.id()), Err(IommuError::Unknown));
}

#[test]
fn a8_i15_a_group_whose_sharing_cannot_be_listed_does_not_fall_apart() {
    let rig = Rig::new();
    let (last, mates) = rig.devices.split_last().unwrap();
    rig.service.assign(&mates[0], &rig.domain).unwrap();
    rig.driver.is_starved.store(true, Ordering::Relaxed);
    let kept = Removal::StillReachable(vec![mates[0].label().clone()]);
    assert_eq!(rig.service.remove(last.key()), Ok(kept));
    assert_eq!(rig.groups(), 1, "four entries would be in eleven groups");
    // Memory is back: whoever ends the next claim on the group makes it what it is.
    rig.driver.is_starved.store(false, Ordering::Relaxed);
    drop(rig.service.deassign(&mates[0]).unwrap());
    assert_eq!(rig.groups(), 4, "what was in fault was packed all the same");
}

#[test]
fn a8_a_device_that_was_made_ready_is_added_without_memory() {
    let mut rig = Rig::new();
    let free = rig.bench.spec("free", &[(0x40, 0)]);
    let mates = [0x41, 0x41].map(|id| rig.bench.spec("mate", &[(id, 0)]));
    let new = [free].into_iter().chain(mates).map(|spec| rig.service.new_device(spec).unwrap());
    for new in new.collect::<Vec<_>>() {
        let added = without_memory(|| rig.service.add_new(new));
        assert!(added.is_ok_and(|device| rig.smmu.placement(device.id()) == Ok(None)));
    }
}

#[test]
fn a8_a2_an_add_that_meets_more_than_it_brings_room_for_needs_memory_and_changes_nothing_without() {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    let through = |registers| Polled::new(registers, &model);
    let smmu: Arc<dyn Iommu> = bench.smmu_through(described(SMMU, &model), Setup::default(), model.clone(), through);
    let service: Service<Spin> = Service::new(Box::new(Anyone));
    service.register_iommu(smmu.clone()).unwrap();
    let all: Vec<(u32, u32)> = (0..MEMBERS).map(|n| (0x10 + n, 0)).collect();
    for id in &all {
        service.add(bench.spec("member", &[*id])).unwrap();
    }
    let spec = bench.spec("late", &all);
    let new = service.new_device(spec.clone()).unwrap();
    let (reads, writes, added) = bench.cost(|| without_memory(|| service.add_new(new)));
    let error = added.unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::OutOfMemory, .. }), "{error}");
    assert_eq!((reads, writes), (0, 0));
    assert_eq!(error.left, Left::Unchanged);
    assert!(service.find(spec.key).is_none());
    service.add(spec).unwrap();
}
