//! What an operator reads when an operation fails: the operation, the subject by its name, the cause, what is left. The
//! wording of every cause is held by `docs/errors.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Bench, SMMU};
use iommu_assign::assign::{
    Cause, DeviceKey, Error, FaultLine, Incompatible, IommuKey, Operation, PhysicalAddress, Quarantine, Source, Stage2,
    Target,
};

const NOWHERE: IommuKey = IommuKey::new(0x7fff_0000);
/// As the hash of a path is: nobody can tell what it was.
const HASH: DeviceKey = DeviceKey::new(Source::Dt, 0x8f3a_11d0_95c2_77e1);

#[test]
fn every_operation_on_an_iommu_says_what_it_was_and_on_which() {
    let bench = Bench::v2();
    let service = &bench.service;
    let failed = [
        service.handle_fault(NOWHERE, FaultLine::Global, &mut |_| ()).unwrap_err(),
        service.tend_faults(NOWHERE, Quarantine::Faults, &mut |_| ()).unwrap_err(),
        service.enable_reports(NOWHERE).unwrap_err(),
        service.suspend_iommu(NOWHERE).unwrap_err(),
        service.resume_iommu(NOWHERE).unwrap_err(),
        service.usage(NOWHERE, &mut |_| ()).unwrap_err(),
        service.unregister_iommu(NOWHERE).unwrap_err(),
        service.force_unregister_iommu(NOWHERE).unwrap_err(),
    ];
    let told: Vec<String> = failed.iter().map(Error::to_string).collect();
    let begins = ["handle faults of", "tend faults of", "enable reports of", "suspend", "resume", "list usage of"];
    for (told, begin) in told.iter().zip(begins.into_iter().chain(["unregister"; 2])) {
        assert_eq!(*told, format!("{begin} iommu@7fff0000: nothing of this name is registered; nothing changed"));
    }
}

#[test]
fn what_is_not_found_has_the_name_that_its_caller_knows() {
    let mut bench = Bench::v2();
    let named = || Target::Named(HASH, "/soc/usb@7ffb0000".into());
    let told = "remove /soc/usb@7ffb0000: nothing of this name is registered; nothing changed";
    assert_eq!(bench.service.remove(named()).unwrap_err().to_string(), told);
    assert_eq!(bench.service.remove_tree(named()).unwrap_err().to_string(), told);
    let told = "remove dt:8f3a11d095c277e1: nothing of this name is registered; nothing changed";
    assert_eq!(bench.service.remove(HASH).unwrap_err().to_string(), told, "a key alone has no name");
    // A handle names its registration: a later one under the same key stays.
    let spec = bench.spec("dma", &[(0x10, 0)]);
    let first = bench.service.add(spec.clone()).unwrap();
    bench.service.remove(&first).unwrap();
    let second = bench.service.add(spec).unwrap();
    let told = "remove dma: nothing of this name is registered; nothing changed";
    assert_eq!(bench.service.remove(&first).unwrap_err().to_string(), told);
    assert_eq!(bench.service.remove_tree(&first).unwrap_err().to_string(), told);
    assert!(bench.service.find(second.key()).is_some());
    bench.service.remove_tree(&second).unwrap();
}

#[test]
fn what_keeps_something_in_use_is_named() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    for (name, id) in [("one", 0x10), ("two", 0x11), ("three", 0x12)] {
        let device = bench.add(name, &[(id, 0)]);
        if name != "one" {
            bench.assign(&device, &guest).unwrap();
        }
    }
    let told = |error: Error| error.to_string();
    assert_eq!(
        told(bench.service.destroy_domain(&guest.domain).unwrap_err()),
        "destroy domain guest: two and 1 other device still use it; nothing changed"
    );
    assert_eq!(
        told(bench.service.unregister_iommu(SMMU).unwrap_err()),
        "unregister iommu@50000000: one and 2 other devices still use it; nothing changed"
    );
}

#[test]
fn s2_a_domain_that_no_smmu_could_follow_is_not_made() {
    let mut bench = Bench::v2();
    let good = bench.guest("good").domain.space().stage2;
    let root = PhysicalAddress::new(0x10_0800);
    let made = bench.service.create_domain("guest A".into(), Stage2 { root, ..good });
    let error = made.unwrap_err();
    let alignment = good.root_bytes().unwrap();
    assert_eq!(error.operation, Operation::CreateDomain);
    assert_eq!(error.cause, Cause::Incompatible(Incompatible::Root { root, alignment }));
    let told = format!(
        "create domain guest A: the domain's table root 0x100800 is not aligned to the {alignment:#x} bytes of its start \
         level; nothing changed"
    );
    assert_eq!(error.to_string(), told);
}
