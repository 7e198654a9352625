//! Every message of the service, as the tables of `docs/errors.md`: they are read there, and this test holds them to the code.

extern crate std;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use std::println;

use super::*;
use crate::assign::{DeviceId, Granule, PhysicalAddress, Resource, Stream, StreamId, StreamMask};
use crate::sync::{Micros, Waited};

const DOCUMENT: &str = include_str!("../../docs/errors.md");
const SMMU: IommuKey = IommuKey::new(0x7fb3_0000);
const RUNNING: Operation = Operation::Assign;

/// One row for each variant of an enum, under the variant's name. The patterns go into a `match` without a wildcard, so that
/// a variant without a row does not compile.
macro_rules! every {
    ($type:ty: $($pattern:pat => $row:expr,)*) => {{
        const _: fn(&$type) = |one| match one { $($pattern => {})* };
        [$((variant(stringify!($pattern)), $row)),*]
    }};
}

/// The variant that a pattern is about.
fn variant(pattern: &str) -> &str {
    let name = pattern.rsplit("::").next().unwrap_or(pattern);
    name.split([' ', '(', '{']).next().unwrap_or(name)
}

fn usb() -> Label {
    Label::from("/soc/usb@7ffb0000")
}

fn guest() -> Label {
    Label::from("guest A")
}

/// A failed operation, with a subject that fits it.
fn failed(operation: Operation, cause: Cause) -> Error {
    let subject = match operation {
        Operation::Add
        | Operation::Assign
        | Operation::Deassign
        | Operation::Quarantine
        | Operation::Reassign
        | Operation::Remove => usb(),
        Operation::CreateDomain | Operation::DestroyDomain | Operation::Flush | Operation::RedeemTables => guest(),
        Operation::CrashIommu
        | Operation::EnableReports
        | Operation::HandleFault
        | Operation::RegisterIommu
        | Operation::ResumeIommu
        | Operation::Shutdown
        | Operation::SuspendIommu
        | Operation::TendFaults
        | Operation::UnregisterIommu
        | Operation::Usage => Label::of_iommu(SMMU),
    };
    Error::unchanged(operation, subject, cause)
}

fn table(head: &str, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let columns = head.matches('|').count().saturating_sub(1);
    let rows: String = rows.into_iter().map(|cells| format!("| {} |\n", cells.join(" | "))).collect();
    format!("{head}\n|{}\n{rows}", "---|".repeat(columns))
}

/// The rows of failed operations.
fn lines<'a>(head: &str, rows: impl IntoIterator<Item = (&'a str, (Error, &'a str))>) -> String {
    let cells = |(name, (error, advice)): (&str, (Error, &str))| {
        [format!("`{name}`"), error.cause.blame().to_string(), format!("`{error}`"), advice.into()].into()
    };
    table(head, rows.into_iter().map(cells))
}

fn causes() -> String {
    let conflict = |reason| Cause::GroupConflict { with: "/soc/usb@7ffc0000".into(), reason };
    let root = Incompatible::Root { root: PhysicalAddress::new(0x10_0800), alignment: 0x2000 };
    let hook = Cause::Hook { step: "reset", reason: "no answer" };
    let quarantined = Error { left: Left::Quarantined, ..failed(Operation::Reassign, hook) };
    let inside = Error { left: Left::Going, ..failed(Operation::Remove, Cause::StillInUse { calls: 2 }) };
    let overtaken = Error { left: Left::Removed, ..failed(Operation::Assign, Cause::Removed) };
    let few = IommuError::Exhausted { resource: Resource::ContextBanks, needed: 1, free: 0, total: 8 };
    let rows = every! { Cause:
        Cause::AlreadyAssigned { .. } => (failed(RUNNING, Cause::AlreadyAssigned { domain: guest() }), "Reassign it, or deassign it first."),
        Cause::AlreadyRegistered { .. } => (failed(Operation::Add, Cause::AlreadyRegistered { by: "usb0".into() }), "Remove that device first. Two sources may offer one device."),
        Cause::Busy { .. } => (failed(Operation::Deassign, Cause::busy(RUNNING)), "Try again, or use `Service::wait`."),
        Cause::Cancelled => (failed(RUNNING, Cause::Cancelled), "Nothing: the caller cancelled the request."),
        Cause::Denied { .. } => (failed(RUNNING, Cause::Denied { domain: guest() }), "Mark the device for passing through, or change the policy."),
        Cause::DomainGone { .. } => (failed(RUNNING, Cause::DomainGone { domain: guest() }), "Drop the domain's handle."),
        Cause::NoStreams => (failed(Operation::Add, Cause::NoStreams), "Do not pass it through: no IOMMU sees its DMA."),
        Cause::Gone => (failed(RUNNING, Cause::Gone), "Drop the handle. The key may be registered anew: `Service::find`."),
        Cause::GroupConflict { .. } => (failed(RUNNING, conflict(ConflictReason::SharedStream(SMMU))), "Give the whole group to one domain: `assign_group`."),
        Cause::HasChildren { .. } => (failed(Operation::Remove, Cause::HasChildren { children: 3, first: "0000:01:00.0".into() }), "Remove these first, or use `remove_tree`. Virtual functions: `switch_off`."),
        Cause::Hook { .. } => (quarantined, "Assign it later: what it lacks is tried again before."),
        Cause::Incompatible(..) => (failed(Operation::CreateDomain, Cause::Incompatible(root)), "Build the tables as the message says."),
        Cause::InUse { .. } => (failed(Operation::DestroyDomain, Cause::InUse { devices: 2, first: usb() }), "Deassign or remove these first."),
        Cause::Iommu { .. } => (failed(RUNNING, Cause::Iommu { iommu: SMMU, error: few }), "See the next table."),
        Cause::NotAssigned => (failed(Operation::Deassign, Cause::NotAssigned), "Nothing: its DMA faults already."),
        Cause::NotFound => (failed(Operation::Remove, Cause::NotFound), "Nothing where it was removed before; else look at the name."),
        Cause::OutOfMemory => (failed(Operation::Add, Cause::OutOfMemory), "Try again when there is memory."),
        Cause::ParentMissing => (failed(Operation::Add, Cause::ParentMissing), "Add the parent first."),
        Cause::ProviderMissing(..) => (failed(Operation::Add, Cause::ProviderMissing(SMMU)), "Offer it again at the event `IommuRegistered`."),
        Cause::Removed => (overtaken, "Drop the handle."),
        Cause::SourceEnded => (failed(Operation::Add, Cause::SourceEnded), "Make a new source object, if the device is there still."),
        Cause::StillInUse { .. } => (inside, "Remove it again when the calls have left: `remove_and_wait`."),
        Cause::TimedOut { .. } => (failed(Operation::Deassign, Cause::TimedOut { running: RUNNING }), "Wait longer, or find out why that operation does not end."),
        Cause::WouldDeadlock { .. } => (failed(Operation::Deassign, Cause::WouldDeadlock { running: RUNNING }), "Return from the callback first."),
    };
    let [_, (_, bus)] = every! { ConflictReason:
        ConflictReason::SharedStream(..) => (failed(RUNNING, conflict(ConflictReason::SharedStream(SMMU))), ""),
        ConflictReason::SharedBus => (failed(RUNNING, conflict(ConflictReason::SharedBus)), "The same. A port with ACS would keep them apart."),
    };
    let rows = rows.into_iter().flat_map(|row| {
        let too = (row.0 == "GroupConflict").then(|| (row.0, bus.clone()));
        [Some(row), too].into_iter().flatten()
    });
    lines("| cause | who acts | the line | what to do |", rows)
}

fn iommu_errors() -> String {
    let by = |operation, left, error| Error { left, ..failed(operation, Cause::Iommu { iommu: SMMU, error }) };
    let waited = Waited { polls: 1_000, time: Some(Micros::new(1_000)) };
    let stream = Stream::new(SMMU, StreamId::new(0x1_4000), StreamMask::new(0x3f));
    let exhausted = IommuError::Exhausted { resource: Resource::StreamMapEntries, needed: 3, free: 1, total: 128 };
    let wide = IommuError::TooWide { stream, id_bits: 0x7fff, mask_bits: 0x7fff };
    let incompatible = IommuError::Incompatible(Incompatible::Coherency);
    let (same, removing) = (Left::Unchanged, Operation::Remove);
    let rows = every! { IommuError:
        IommuError::Busy => (by(Operation::SuspendIommu, same, IommuError::Busy), "Try again."),
        IommuError::Incompatible(..) => (by(RUNNING, same, incompatible), "Build the domain's tables within `Service::limits`."),
        IommuError::Exhausted { .. } => (by(Operation::Add, same, exhausted), "Look at who uses them: `Service::usage`."),
        IommuError::Known => (by(Operation::Add, same, IommuError::Known), "Not from the service: a caller of the driver's own published it."),
        IommuError::NoPower(..) => (by(removing, Left::GoingLive, IommuError::NoPower("its power domain is off")), "Give it power, then try again."),
        IommuError::NotResumed(..) => (by(Operation::ResumeIommu, same, IommuError::NotResumed("the reset failed")), "Reset the SMMU, then resume it again; else `force_unregister_iommu`."),
        IommuError::ProviderGone => (by(removing, Left::Removed, IommuError::ProviderGone), "Nothing: it faults every stream and is not touched."),
        IommuError::Foreign(..) => (by(Operation::Add, same, IommuError::Foreign(DeviceId::new(7))), "Not from the service, which says `Busy`: a caller of the driver's own claims that device too."),
        IommuError::InUse => (by(Operation::DestroyDomain, same, IommuError::InUse), "Not from the service: a caller of the driver's own blocks the device first."),
        IommuError::OutOfMemory => (by(RUNNING, same, IommuError::OutOfMemory), "Try again when there is memory."),
        IommuError::SyncTimeout(..) => (by(Operation::Flush, Left::Stale, IommuError::SyncTimeout(waited)), "Try again. Until it succeeds the memory of those tables, and what they mapped, must stay."),
        IommuError::TooWide { .. } => (by(Operation::Add, same, wide), "Correct the device tree: this SMMU cannot see such an ID."),
        IommuError::Unknown => (by(RUNNING, same, IommuError::Unknown), "Not from the service: the driver was not told of the device."),
        IommuError::Unsupported => (by(Operation::SuspendIommu, same, IommuError::Unsupported), "Do without."),
        IommuError::WriteLost { .. } => (by(RUNNING, Left::Quarantined, IommuError::WriteLost { register: "S2CR" }), "Look at what traps or ignores the write: firmware, or a broken part."),
    };
    lines("| error | who acts | the line | what to do |", rows)
}

fn incompatibilities() -> String {
    let (wanted, granule) = (44, Granule::Kib4);
    let rows = every! { Incompatible:
        Incompatible::IpaBits { .. } => Incompatible::IpaBits { wanted, possible: 40 },
        Incompatible::OutputBits { .. } => Incompatible::OutputBits { wanted, possible: 40 },
        Incompatible::OutputSize(..) => Incompatible::OutputSize(41),
        Incompatible::Granule(..) => Incompatible::Granule(Granule::Kib16),
        Incompatible::StartLevel { .. } => Incompatible::StartLevel { start_level: 1, ipa_bits: wanted, granule },
        Incompatible::Root { .. } => Incompatible::Root { root: PhysicalAddress::new(0x10_0800), alignment: 0x2000 },
        Incompatible::RootReach { .. } => Incompatible::RootReach { root: PhysicalAddress::new(1 << 44), possible: 40 },
        Incompatible::Coherency => Incompatible::Coherency,
        Incompatible::EmptyRoot { .. } => Incompatible::EmptyRoot { wanted: 0x4000, possible: 0x1000 },
    };
    let cells = |(name, what): (&str, Incompatible)| {
        // By `create_domain` where no SMMU could follow the tables.
        let anywhere = matches!(name, "OutputSize" | "StartLevel" | "Root");
        let cause = if anywhere {
            Cause::Incompatible(what)
        } else {
            Cause::Iommu { iommu: SMMU, error: IommuError::Incompatible(what) }
        };
        let operation = if anywhere { Operation::CreateDomain } else { RUNNING };
        [format!("`{name}`"), format!("`{}`", failed(operation, cause))].into()
    };
    table("| reason | the line |", rows.map(cells))
}

fn leftovers() -> String {
    let rows = every! { Left:
        Left::Unchanged => Left::Unchanged,
        Left::Quarantined => Left::Quarantined,
        Left::PartlyAssigned => Left::PartlyAssigned,
        Left::Going => Left::Going,
        Left::GoingLive => Left::GoingLive,
        Left::Pending => Left::Pending,
        Left::Removed => Left::Removed,
        Left::Stale => Left::Stale,
        Left::Closing => Left::Closing,
    };
    table("| left | the line's end |", rows.map(|(name, left)| [format!("`{name}`"), format!("`; {left}`")].into()))
}

fn operations() -> String {
    let rows = every! { Operation:
        Operation::Add => Operation::Add,
        Operation::Assign => Operation::Assign,
        Operation::CrashIommu => Operation::CrashIommu,
        Operation::CreateDomain => Operation::CreateDomain,
        Operation::Deassign => Operation::Deassign,
        Operation::DestroyDomain => Operation::DestroyDomain,
        Operation::EnableReports => Operation::EnableReports,
        Operation::Flush => Operation::Flush,
        Operation::HandleFault => Operation::HandleFault,
        Operation::Quarantine => Operation::Quarantine,
        Operation::Reassign => Operation::Reassign,
        Operation::RedeemTables => Operation::RedeemTables,
        Operation::RegisterIommu => Operation::RegisterIommu,
        Operation::Remove => Operation::Remove,
        Operation::ResumeIommu => Operation::ResumeIommu,
        Operation::Shutdown => Operation::Shutdown,
        Operation::SuspendIommu => Operation::SuspendIommu,
        Operation::TendFaults => Operation::TendFaults,
        Operation::UnregisterIommu => Operation::UnregisterIommu,
        Operation::Usage => Operation::Usage,
    };
    let line = |operation| failed(operation, Cause::NotFound).to_string();
    let begin = |operation| format!("`{}`", line(operation).split_inclusive(": ").next().unwrap_or_default().trim());
    table("| operation | the line's beginning |", rows.map(|(name, one)| [format!("`{name}`"), begin(one)].into()))
}

/// `cargo test -p iommu-assign every_message -- --nocapture` prints the tables.
#[test]
fn every_message_is_in_the_document() {
    let tables = [operations(), causes(), iommu_errors(), incompatibilities(), leftovers()];
    tables.iter().for_each(|table| println!("{table}"));
    let missing = tables.iter().flat_map(|table| table.lines()).find(|line| !DOCUMENT.contains(line));
    assert_eq!(missing, None, "docs/errors.md must have what is printed above");
}

/// What a person finds in a device tree or a memory map is printed as it stands there.
#[test]
fn keys_and_addresses_are_hexadecimal_in_debug_output() {
    use crate::assign::{Changed, DeviceKey, FlushRange, Source};
    let stream = Stream::new(SMMU, StreamId::new(0x20), StreamMask::new(0xf));
    let range = FlushRange { start: 0x4000_0000, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };
    let printed = format!(
        "{:?} {stream:?} {:?} {range:?}",
        DeviceKey::new(Source::Pci, 0xbeef),
        PhysicalAddress::new(0x8000_0000),
    );
    let expected = "DeviceKey(pci:beef) Stream { iommu: IommuKey(0x7fb30000), id: StreamId(0x20), mask: StreamMask(0xf) } \
                    PhysicalAddress(0x80000000) FlushRange(0x40000000 + 0x1000 by 0x1000, Leaf)";
    assert_eq!(printed, expected);
}
