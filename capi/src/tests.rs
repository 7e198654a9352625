//! Promises of the border that hold for every function.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;

use core::ffi::{c_char, c_void};
use core::mem::MaybeUninit;
use core::ptr::{null, null_mut};

use crate::border;
use crate::error::iommu_error;
use crate::platform::{IOMMU_ABI_VERSION, iommu_init, iommu_platform};
use crate::status::{iommu_status, iommu_status_describe};
use crate::{board::*, bridges::*, devices::*, domains::*, faults::*, moves::*, service::*, smmus::*};

/// The tests' own harness has the host's memory: none is asked for here.
extern "C" fn allocate(_: *mut c_void, _: usize, _: usize) -> *mut c_void {
    null_mut()
}

extern "C" fn release(_: *mut c_void, _: *mut c_void, _: usize, _: usize) {}

/// One test at a time takes locks.
extern "C" fn lock(_: *mut c_void, _: *mut u64) {}

extern "C" fn abort(_: *mut c_void, _: *const c_char, _: usize) {}

/// The platform, whoever comes first.
fn initialise() {
    let platform = iommu_platform {
        size: u32::try_from(size_of::<iommu_platform>()).unwrap_or_default(),
        version: IOMMU_ABI_VERSION,
        context: null_mut(),
        allocate: Some(allocate),
        release: Some(release),
        lock: Some(lock),
        unlock: Some(lock),
        barrier: None,
        now: None,
        wake: None,
        prepare: None,
        wait: None,
        log: None,
        abort: Some(abort),
        interrupts_masked: 1,
    };
    assert!(matches!(iommu_init(Some(&platform)), iommu_status::Ok | iommu_status::AlreadyInitialised));
}

#[test]
fn a8_a_panic_does_not_get_out() {
    initialise();
    let mut error = MaybeUninit::<iommu_error>::zeroed();
    let status = border::run(Some(&mut error), || std::panic::resume_unwind(std::boxed::Box::new("a defect")));
    assert_eq!(status, iommu_status::Panicked);
    // SAFETY: every call fills it in, and zeros are a value of it.
    let error = unsafe { error.assume_init() };
    assert_eq!(error.status, iommu_status::Panicked);
    assert!(error.length > 0);
    assert_eq!(border::quietly(7, || std::panic::resume_unwind(std::boxed::Box::new("a defect"))), 7);
}

/// Every function, with nothing where a pointer goes.
#[test]
fn null_is_an_answer_everywhere() {
    initialise();
    let refused = [
        iommu_service_new(None, None, None, None),
        iommu_service_put(None),
        iommu_reap(None),
        iommu_get_limits(None, None),
        iommu_write_tree(None, None, null_mut()),
        iommu_each_usage(None, 1, None, null_mut()),
        iommu_audit(None, None, null_mut(), None),
        iommu_register(None, None, None, None, None),
        iommu_unregister(None, None, 1, None),
        iommu_force_unregister(None, 1, None),
        iommu_shutdown(None, None),
        iommu_suspend(None, 1, None),
        iommu_resume(None, 1, None),
        iommu_enable_reports(None, 1, None),
        iommu_instance_find(None, 1, None),
        iommu_crash(None),
        iommu_create_domain(None, null(), None, None, None),
        iommu_destroy_domain(None, None, None, None),
        iommu_retire_domain(None, None, None, None),
        iommu_tables_redeem(None, None),
        iommu_tables_redeem(Some(&mut None), None),
        iommu_domain_get(None, None),
        iommu_flush(None, None, None),
        iommu_flush_range(None, None, None, None),
        iommu_flush_range_atomic(None, None, None, None),
        iommu_flush_range_in_interrupt(None, None, None),
        iommu_add(None, None, None, None, None),
        iommu_remove(None, None, None, None, None),
        iommu_remove_tree(None, None, None, None, None),
        iommu_source_new(None, None),
        iommu_source_end(None, None, None),
        iommu_find(None, None, None),
        iommu_next_device(None, None, None, None),
        iommu_device_get(None, None),
        iommu_device_get_key(None, None),
        iommu_device_enter(None, None),
        iommu_assign(None, None, None, None, None),
        iommu_assign_group(None, None, None, None, None),
        iommu_reassign(None, None, None, None, None),
        iommu_reassign_group(None, None, None, None, None),
        iommu_deassign(None, None, None, None, None),
        iommu_deassign_group(None, None, None, None, None),
        iommu_quarantine_group(None, None, None, None, None),
        iommu_test_assign(None, None, None, None),
        iommu_reserve(None, None, None, None, None),
        iommu_reservation_commit(None, None),
        iommu_reservation_abandon(None, None),
        iommu_take_faults(None, 0, None, null_mut(), None),
        iommu_handle_fault(None, 1, 0, None, null_mut(), None, None),
        iommu_tend_faults(None, 1, None, None, null_mut(), None),
        iommu_get_fault_counts(None, None),
        iommu_each_unknown_stream(None, None, null_mut()),
        iommu_board_read(null(), 1, 0, None, None),
        iommu_board_get_smmu(None, 0, 0, 0, None, None),
        iommu_board_smmu_mirror(None, 0, 0, None, None),
        iommu_board_get_device(None, 0, None, None),
        iommu_board_add(None, None, None, 0, None, None, None),
        iommu_board_get_reserved(None, 0, None, None),
        iommu_board_get_bridge(None, 0, None, None),
        iommu_board_requester_stream(None, 0, 0, None, None),
    ];
    for (index, status) in refused.into_iter().enumerate() {
        assert_eq!(status, iommu_status::InvalidArgument, "call {index}");
    }
    let counts = [
        iommu_board_smmus(None),
        iommu_board_devices(None),
        iommu_board_bridges(None),
        iommu_board_reserved_ranges(None),
        iommu_board_refusals(None),
        iommu_board_refusal(None, 0, null_mut(), 0),
        iommu_board_smmu_path(None, 0, null_mut(), 0),
        iommu_board_smmu_interrupt(None, 0, 0, null_mut(), 0),
        iommu_board_device_path(None, 0, null_mut(), 0),
        iommu_board_device_streams(None, 0, null_mut(), 0),
        iommu_device_name(None, null_mut(), 0),
        iommu_device_streams(None, null_mut(), 0),
    ];
    assert_eq!(counts, [0; 12]);
    assert_eq!((iommu_generation(None), iommu_domain_id(None)), (0, 0));
    assert_eq!(iommu_status_describe(u32::MAX, null_mut(), 9), 0, "a size without a buffer");
    iommu_instance_put(None);
    iommu_domain_put(None);
    iommu_tables_put(None);
    iommu_source_put(None);
    iommu_device_put(None);
    iommu_device_leave(None);
    iommu_board_put(None);

    let named = include_str!("tests.rs");
    for (function, _) in functions() {
        assert!(named.contains(&std::format!("{function}(")), "{function} is not called here");
    }
}

/// Each function of the interface with the lines that stand over it.
fn functions() -> Vec<(String, String)> {
    let mut functions = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let mut comment = String::new();
        for line in text.lines() {
            if let Some(said) = line.strip_prefix("///") {
                comment.push_str(said);
                comment.push('\n');
            } else if let Some(rest) = line.strip_prefix("pub extern \"C\" fn ") {
                let name = rest.split('(').next().unwrap_or_default();
                functions.push((name.to_string(), core::mem::take(&mut comment)));
            } else if !line.starts_with("#[") {
                comment.clear();
            }
        }
    }
    functions
}

#[test]
fn each_function_says_its_context_and_what_it_returns() {
    let header = include_str!("../include/iommu_assign.h");
    let functions = functions();
    let names: BTreeSet<&str> = functions.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), functions.len());
    assert!(names.len() > 70, "{} functions were found", names.len());
    for (name, comment) in &functions {
        assert!(comment.contains("Context: "), "{name} does not say where it may be called");
        let is_void = header.contains(&std::format!("\nvoid {name}("));
        assert!(is_void || comment.contains("@return"), "{name} does not say what it returns");
    }
}
