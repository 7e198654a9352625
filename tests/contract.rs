//! The contract on the way of a device: each test names the line that it proves.

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

use common::{Bench, PAGE, SMMU};
use iommu_assign::assign::{Cause, DeviceState};
use machine::Reached;

#[test]
fn a_device_reaches_its_owner_and_nobody_else_from_add_to_remove() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    assert_eq!(bench.dma(0x10), Reached::Fault, "unknown streams fault");
    let device = bench.add("dma", &[(0x10, 0x3)]);
    assert_eq!(bench.dma(0x10), Reached::Fault, "blocked after add");
    bench.assign(&device, &one).unwrap();
    assert_eq!(bench.dma(0x13), Reached::Memory(one.backing));
    bench.audit();
    bench.reassign(&device, &two).unwrap();
    assert_eq!(bench.dma(0x13), Reached::Memory(two.backing));
    bench.audit();
    assert_eq!(bench.deassign(&device).unwrap().still_reachable, []);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.audit();
    bench.remove(&device).unwrap();
    assert_eq!(bench.assign(&device, &one).unwrap_err().cause, Cause::Gone);
    assert_eq!(bench.service.next_device(None).map(|info| info.state), None::<DeviceState>);
    bench.audit();
    bench.service.destroy_domain(&one.domain).unwrap();
    bench.service.destroy_domain(&two.domain).unwrap();
    let _ = (PAGE, SMMU);
}
