//! What a guest may write to the configuration space of its function (contract S-7).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use std::fmt::Write;

use iommu_assign::pci::control::{
    CAPABILITY_RULES, GuestWrites, Phase, Reason, RuleOf, Treatment, WRITE_RULES, Width, WriteAnswer,
};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{AcsControls, Capability, ConfigError, ConfigSpace, FunctionConfig, PortType, Sbdf};

fn here() -> Sbdf {
    "00:02.0".parse().unwrap()
}

fn endpoint() -> FakeFunction {
    FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000).express(PortType::Endpoint)
}

fn space(function: FakeFunction) -> FakeConfigSpace {
    let mut space = FakeConfigSpace::new();
    space.insert(here(), function);
    space
}

fn writes(function: FakeFunction) -> GuestWrites {
    let space = space(function);
    GuestWrites::read(&FunctionConfig::new(&space, here()).unwrap()).unwrap()
}

/// The reasons of a write of 32 bits, each with its bits, in the order of the bits.
fn reasons(writes: &GuestWrites, offset: u16) -> Vec<(u32, Treatment, Reason)> {
    let parts = writes.parts(offset, Width::Double, Phase::Owned);
    let mut parts: Vec<_> = parts.map(|part| (part.bits, part.treatment, part.reason)).collect();
    parts.sort_unstable_by_key(|part| part.0.trailing_zeros());
    parts
}

/// Offsets of all 32 bits of which something passes.
fn passing(writes: &GuestWrites) -> Vec<(u16, u32)> {
    let answers =
        (0..0x1000).step_by(4).map(|offset| (offset, writes.answer(offset, Width::Double, Phase::Owned).passes));
    answers.filter(|(_, passes)| *passes != 0).collect()
}

fn everything() -> FakeFunction {
    let function = endpoint().power_management(true).advanced_features().phantom_functions(1);
    let function = function.capability(Capability::MSI, &[0; 22]).capability(Capability::MSI_X, &[0; 10]);
    let function = function.capability(0x03, &[0; 6]).capability(0x09, &[0; 14]);
    let function = function.acs(AcsControls::all(), AcsControls::all()).ari().ats().pri().pasid().sr_iov(4, 1, 1);
    function.resizable_bar(3).extended(0x01, 2, &[0; 0x44]).extended(0x12, 1, &[0; 0x2c]).extended(0x23, 1, &[0; 12])
}

#[test]
fn s_7_of_all_capabilities_only_what_is_the_guests_own_matter_passes() {
    let function = endpoint();
    let express = function.last_capability();
    let expected = [(0x04, 0xf900_0014), (0x0c, 0xffff), (express + 8, 0x004f_7810), (express + 0x28, 0x031f)];
    assert_eq!(passing(&writes(function)), expected);
    assert_eq!(passing(&writes(everything())), expected, "the others add nothing");
}

#[test]
fn s_7_each_service_that_undoes_isolation_is_named() {
    let cases: [(FakeFunction, u16, u32, Reason); 9] = [
        (endpoint().ats(), 4, 0x8000_0000, Reason::Ats),
        (endpoint().pri(), 4, 1, Reason::Pri),
        (endpoint().pasid(), 4, 1 << 16, Reason::Pasid),
        (endpoint().sr_iov(4, 1, 1), 8, 1, Reason::VirtualFunctions),
        (endpoint().sr_iov(4, 1, 1), 0x24, u32::MAX, Reason::VirtualFunctions),
        (endpoint().acs(AcsControls::all(), AcsControls::all()), 4, 0x001f_0000, Reason::AccessControl),
        (endpoint().ari(), 4, 0x0073_0000, Reason::AccessControl),
        (endpoint().resizable_bar(3), 8, 0x3f00, Reason::Addresses),
        (endpoint().extended(0x12, 1, &[0; 0x2c]), 4, 0x8000, Reason::Routing),
    ];
    for (function, by, bits, reason) in cases {
        let offset = function.last_extended_capability() + by;
        let writes = writes(function);
        let answer = writes.answer(offset, Width::Double, Phase::Owned);
        assert_eq!(answer.passes, 0, "{reason:?}");
        assert!(reasons(&writes, offset).iter().any(|part| part.0 & bits == bits && part.2 == reason), "{reason:?}");
    }
    let function = endpoint();
    let control = function.last_capability() + 8;
    let of_device_control = reasons(&writes(function), control);
    let bit = |bit: u32| of_device_control.iter().find(|part| part.0 >> bit & 1 == 1).map(|part| part.2);
    assert_eq!(
        [0, 4, 5, 9, 15].map(|at| bit(at).unwrap()),
        [Reason::Errors, Reason::Harmless, Reason::Link, Reason::Phantom, Reason::Reset]
    );
}

#[test]
fn s_7_a_guest_does_not_move_its_function_nor_put_it_to_sleep_nor_say_where_messages_go() {
    let function = everything();
    let writes = writes(function);
    for offset in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        assert_eq!(reasons(&writes, offset), [(u32::MAX, Treatment::Emulated, Reason::Addresses)]);
    }
    let of = |id: u8| {
        let space = space(everything());
        let mut at = u16::from(space.read(here(), 0x34) as u8);
        while space.read(here(), at) as u8 != id {
            at = u16::from((space.read(here(), at) >> 8) as u8);
        }
        at
    };
    assert_eq!(reasons(&writes, of(Capability::POWER) + 4), [(u32::MAX, Treatment::Emulated, Reason::Power)]);
    assert_eq!(reasons(&writes, of(Capability::MSI) + 4), [(u32::MAX, Treatment::Emulated, Reason::Interrupts)]);
    assert_eq!(reasons(&writes, of(Capability::MSI_X)), [(u32::MAX, Treatment::Emulated, Reason::Interrupts)]);
    assert_eq!(reasons(&writes, of(Capability::ADVANCED_FEATURES) + 4)[0].2, Reason::Reset);
    assert_eq!(reasons(&writes, of(0x03))[0].2, Reason::Persistent);
    let command = reasons(&writes, 4);
    assert!(command.contains(&(0b11, Treatment::Emulated, Reason::Decoding)));
}

#[test]
fn s_7_nothing_passes_between_owners() {
    let writes = writes(everything()).with_vendor_registers();
    for offset in (0..0x1000).step_by(4) {
        let answer = writes.answer(offset, Width::Double, Phase::Transition);
        assert_eq!(answer.passes, 0);
    }
    let mastering = writes.parts(4, Width::Word, Phase::Transition).find(|part| part.bits & 4 != 0).unwrap();
    assert_eq!((mastering.treatment, mastering.reason), (Treatment::Emulated, Reason::Transition));
}

#[test]
fn s_7_all_of_a_bridge_is_routing() {
    let bridge = FakeFunction::bridge(0x1b36, 0xc, 0, 1, 1).express(PortType::RootPort);
    let writes = writes(bridge.acs(AcsControls::all(), AcsControls::all())).with_vendor_registers();
    for offset in (0..0x1000).step_by(4) {
        assert_eq!(reasons(&writes, offset), [(u32::MAX, Treatment::Ignored, Reason::Routing)]);
    }
}

#[test]
fn a_write_is_answered_in_its_own_bits_at_every_width() {
    let writes = writes(endpoint());
    let answer = |offset, width| writes.answer(offset, width, Phase::Owned);
    let (byte, word) = (answer(4, Width::Byte), answer(6, Width::Word));
    assert_eq!((byte.passes, byte.emulated, byte.ignored), (0x14, 0x43, 0xa8));
    assert_eq!((word.passes, word.emulated, word.ignored), (0xf900, 0, 0x06ff));
    for (offset, width) in [(5, Width::Word), (6, Width::Double), (0x1000, Width::Byte), (0xfffe, Width::Word)] {
        let parts: Vec<_> = writes.parts(offset, width, Phase::Owned).collect();
        assert_eq!((parts.len(), parts[0].reason), (1, Reason::Malformed), "{offset:#x}");
        let whole = [0xff, 0xffff, u32::MAX][width as usize];
        assert_eq!((answer(offset, width).passes, answer(offset, width).ignored), (0, whole), "{offset:#x}");
    }
}

#[test]
fn what_is_not_known_does_not_pass_and_the_vendors_registers_do_if_the_caller_says_so() {
    // 0x23 is a capability of whoever names it, such as one that lets a device keep what it has read in its cache.
    let function = endpoint().capability(0x09, &[0; 6]).extended(0x23, 1, &[0; 12]);
    let (vendor, unknown) = (function.last_capability(), function.last_extended_capability());
    let strict = writes(function);
    assert_eq!(reasons(&strict, unknown + 8), [(u32::MAX, Treatment::Ignored, Reason::Unknown)]);
    assert_eq!(reasons(&strict, vendor + 4), [(u32::MAX, Treatment::Ignored, Reason::Vendor)]);
    let open = strict.with_vendor_registers();
    assert_eq!(reasons(&open, unknown + 8), [(u32::MAX, Treatment::Ignored, Reason::Unknown)]);
    assert_eq!(reasons(&open, vendor + 4), [(u32::MAX, Treatment::Passes, Reason::Vendor)]);
    assert_eq!(reasons(&open, vendor), [(u32::MAX, Treatment::Ignored, Reason::Vendor)], "where its list goes on");
}

#[test]
fn registers_that_an_old_capability_has_not_are_not_its() {
    let function = endpoint();
    let express = function.last_capability();
    let old = function.peek(express) & !0x000f_0000 | 1 << 16;
    let writes = writes(endpoint().broken(express, old));
    assert_eq!(reasons(&writes, express + 0x28), [(u32::MAX, Treatment::Ignored, Reason::Vendor)]);
    assert!(writes.answer(express + 8, Width::Word, Phase::Owned).passes != 0);
}

#[test]
fn a_capability_ends_where_the_next_begins_whatever_it_is() {
    // One that would be 60 bytes long, and one that lies in it and is known to be harmful.
    let function = endpoint();
    let express = function.last_capability();
    let inside = express + 8;
    let pointer = function.peek(express) & !0xff00 | u32::from(inside) << 8;
    let writes = writes(endpoint().broken(express, pointer).broken(inside, u32::from(Capability::MSI)));
    assert_eq!(reasons(&writes, inside + 4), [(u32::MAX, Treatment::Emulated, Reason::Interrupts)]);
    assert_eq!(passing(&writes), [(0x04, 0xf900_0014), (0x0c, 0xffff)]);
}

#[test]
fn a_guests_write_changes_what_passes_and_clears_nothing_beside_it() {
    let function = endpoint();
    let control = function.last_capability() + 8;
    let space = space(function.broken(4, 0xf810_0002).broken(control, 0x000f_0020));
    let config = FunctionConfig::new(&space, here()).unwrap();
    let writes = GuestWrites::read(&config).unwrap();
    let write = |offset, width, value| writes.write(&config, offset, width, value, Phase::Owned).unwrap();

    // Bus mastering on, memory decoding not off; no error is cleared.
    let answer = write(4, Width::Word, 0x0404);
    assert_eq!((answer.passes & 4, answer.emulated & 0x403), (4, 0x403));
    assert_eq!(space.read(here(), 4), 0xf810_0006);
    // One error is cleared by the guest's 1, the others are not.
    write(6, Width::Word, 0x8000);
    assert_eq!(space.read(here(), 4), 0x7810_0006);
    // Neither reset nor phantom functions nor another payload size; no error of the upper half is cleared.
    write(control, Width::Word, 0xf27f);
    assert_eq!(space.read(here(), control), 0x000f_7030);
    let before = space.accesses();
    assert_eq!(write(0x10, Width::Double, 0xffff_ffff).passes, 0);
    assert_eq!(space.accesses(), before, "what does not pass touches nothing");
}

#[test]
fn the_vendors_registers_are_written_as_wide_as_the_guest_writes() {
    struct Narrow(FakeConfigSpace, std::cell::RefCell<Vec<(u16, u32)>>);
    impl ConfigSpace for Narrow {
        fn read(&self, function: Sbdf, offset: u16) -> u32 {
            self.0.read(function, offset)
        }
        fn write(&self, _: Sbdf, offset: u16, value: u32) {
            self.1.borrow_mut().push((offset, value));
        }
        fn write_u16(&self, _: Sbdf, offset: u16, value: u16) {
            self.1.borrow_mut().push((offset, value.into()));
        }
        fn write_u8(&self, _: Sbdf, offset: u16, value: u8) {
            self.1.borrow_mut().push((offset, value.into()));
        }
    }
    let space = Narrow(space(endpoint()), std::cell::RefCell::default());
    let config = FunctionConfig::new(&space, here()).unwrap();
    let writes = GuestWrites::read(&config).unwrap().with_vendor_registers();
    for (offset, width, value) in [(0xe1, Width::Byte, 0x1ff), (0xe2, Width::Word, 0x1_2345), (0xe4, Width::Double, 7)]
    {
        writes.write(&config, offset, width, value, Phase::Owned).unwrap();
    }
    assert_eq!(space.1.take(), [(0xe1, 0xff), (0xe2, 0x2345), (0xe4, 7)]);
}

#[test]
fn a_6_nothing_is_written_to_a_function_that_is_gone() {
    let space = space(endpoint());
    let config = FunctionConfig::new(&space, here()).unwrap();
    let writes = GuestWrites::read(&config).unwrap().with_vendor_registers();
    space.remove(here());
    let gone = Err(ConfigError::NotPresent { function: here() });
    for offset in [0x04, 0xe0] {
        assert_eq!(writes.write(&config, offset, Width::Double, 0, Phase::Owned), gone);
    }
    assert_eq!(writes.write(&config, 0x10, Width::Double, 0, Phase::Owned).map(|it: WriteAnswer| it.passes), Ok(0));
    assert!(GuestWrites::read(&config).is_err());
}

/// `cargo test --test pci_guest_writes the_table -- --nocapture` prints the tables.
#[test]
fn the_table_is_in_the_document() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pci.md")).unwrap();
    let treatment = |treatment| match treatment {
        Treatment::Passes => "passes",
        Treatment::Emulated => "emulated",
        Treatment::Ignored => "ignored",
    };
    let place = |of| match of {
        RuleOf::Header => String::new(),
        RuleOf::Standard(id) => format!("{id:#04x}"),
        RuleOf::Extended(id) => format!("{id:#06x}"),
    };
    let mut table = String::from("| capability | ID | a write is | it could change |\n|---|---|---|---|\n");
    for rule in CAPABILITY_RULES {
        let _ =
            writeln!(table, "| {} | {} | {} | {} |", rule.name, place(rule.of), treatment(rule.treatment), rule.reason);
    }
    table.push_str("\n| register | at | bits | a write is | it could change |\n|---|---|---|---|---|\n");
    for rule in WRITE_RULES {
        let at = match rule.of {
            RuleOf::Header => format!("{:#x}", rule.register),
            _ => format!("PCI Express + {:#x}", rule.register),
        };
        let row = if rule.registers > 1 { format!(", {} in a row", rule.registers) } else { String::new() };
        let clears = if rule.clears { " (a 1 clears)" } else { "" };
        let what = treatment(rule.treatment);
        let _ =
            writeln!(table, "| {} | {at}{row} | `{:08x}` | {what}{clears} | {} |", rule.name, rule.bits, rule.reason);
    }
    println!("{table}");
    for line in table.lines() {
        assert!(document.contains(line), "docs/pci.md lacks: {line}");
    }
}
