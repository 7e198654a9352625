//! A device: what a source offers, the object that references keep, and the state that registration keeps.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::identity::{DeviceId, DeviceKey, DomainId, Label, Source};
use super::iommu::Iommu;
use super::policy::{DeviceHooks, NoHooks};
use super::source::SourceLife;
use super::spec::{IommuKey, Stream};
use crate::sync::Once;
use crate::sync::atomic::AtomicU32;
use crate::sync::inflight::{InFlight, Seen};
use crate::sync::outside::Outside;

/// A device as its source offers it to [`add`](super::Service::add).
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// What the source calls it.
    pub key: DeviceKey,
    /// What people call it.
    pub label: Label,
    /// The device that it stands behind, which must be registered.
    pub parent: Option<DeviceKey>,
    /// All streams that its DMA can carry, aliases and phantom functions included.
    pub streams: Vec<Stream>,
    /// Devices with the same number are not isolated from each other by their bus (missing ACS): one group.
    pub isolation: Option<u64>,
    /// Its IDs may be merged into one stream-map entry with those of devices that its bus does not keep apart from it
    /// ([`isolation`](Self::isolation)) and that say the same: the eight functions of a device are one entry then
    /// instead of eight.
    ///
    /// It must be asked for, because an entry couples those who share it: to assign one lets the DMA of all through
    /// (the policy is asked about each, with [`Why::Shares`](super::Why::Shares)), and after a deassign of one it is
    /// [still reachable](super::Deassigned::still_reachable) while another is assigned. Entries are merged while all of
    /// them are in fault (contract I-15); a device that joins an assigned group has entries of its own until then. Of no
    /// effect with [`lazy`](Self::lazy).
    pub merge_with_group: bool,
    /// Firmware marked it for passthrough.
    pub passthrough: bool,
    /// Its stream-map entries are taken at its first assign, not at add: for a bus with more requester IDs than an IOMMU
    /// has entries. The assign may then be refused for want of entries; [`usage`](super::Service::usage) says who has
    /// them. Until then its DMA faults as an unknown stream's.
    pub lazy: bool,
    /// The object of its source with which its registration ends ([`SourceObject`](super::SourceObject)).
    pub source: Option<SourceLife>,
    /// What the source does for it.
    pub hooks: Arc<dyn DeviceHooks>,
}

impl DeviceSpec {
    /// A device without parent, marks or hooks.
    #[must_use]
    pub fn new(key: DeviceKey, label: Label, streams: Vec<Stream>) -> Self {
        let hooks = Arc::new(NoHooks);
        Self {
            key,
            label,
            parent: None,
            streams,
            isolation: None,
            merge_with_group: false,
            passthrough: false,
            lazy: false,
            source: None,
            hooks,
        }
    }
}

/// A registered device's handle.
///
/// A reference keeps the object, registration keeps the device: after [`remove`](super::Service::remove) every call
/// with an old handle gets `Gone` (contract C-7). It comes from add, look-up or traversal only (contract C-18).
#[derive(Clone)]
pub struct Device(Arc<DeviceObject>);

/// What never changes of a device, from add to the last reference.
struct DeviceObject {
    id: DeviceId,
    key: DeviceKey,
    label: Label,
    parent: Option<DeviceKey>,
    streams: Vec<Stream>,
    isolation: Option<u64>,
    merge_with_group: bool,
    passthrough: bool,
    lazy: bool,
    source: Option<SourceLife>,
    hooks: Outside<Arc<dyn DeviceHooks>>,
    place: Once<Place>,
    calls: InFlight<AtomicU32>,
}

/// What is known of a device from the moment of its registration on.
pub(super) struct Place {
    /// How many devices it stands behind.
    pub(super) depth: u16,
    pub(super) attachments: Vec<Attachment>,
}

/// A device's streams on one IOMMU.
pub(super) struct Attachment {
    pub(super) key: IommuKey,
    pub(super) iommu: Outside<Arc<dyn Iommu>>,
    pub(super) streams: Vec<Stream>,
}

impl Device {
    /// Calls may enter.
    pub(super) const OPEN: u8 = 0;
    /// A removal was asked for.
    const REVOKED: u8 = 1;
    /// Calls may enter, but somebody waits for a moment when none is inside.
    const AWAITED: u8 = 2;

    pub(super) fn new(id: DeviceId, spec: DeviceSpec) -> Self {
        let DeviceSpec { key, label, parent, streams, isolation, merge_with_group, passthrough, lazy, source, hooks } =
            spec;
        let hooks = Outside::new(hooks);
        let (place, calls) = (Once::new(), InFlight::new(Self::OPEN));
        Self(Arc::new(DeviceObject {
            id,
            key,
            label,
            parent,
            streams,
            isolation,
            merge_with_group,
            passthrough,
            lazy,
            source,
            hooks,
            place,
            calls,
        }))
    }

    /// Where it stands, said once, when it is registered.
    pub(super) fn put(&self, place: Place) {
        self.0.place.call_once(|| place);
    }

    /// This registration's number.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.0.id
    }

    /// What the source calls it.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        self.0.key
    }

    /// What people call it.
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.0.label
    }

    /// The device that it stands behind.
    #[must_use]
    pub fn parent(&self) -> Option<DeviceKey> {
        self.0.parent
    }

    /// How many devices it stands behind.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.0.place.get().map_or(0, |place| place.depth)
    }

    /// All its streams, canonical and without repetition.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.0.streams
    }

    /// Whether firmware marked it for passthrough.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.0.passthrough
    }

    /// Whether it stands for a stream that no source has described.
    pub(super) fn is_stray(&self) -> bool {
        self.0.key.source() == Source::Stray
    }

    /// Whether its entries are taken at its first assign.
    pub(super) fn is_lazy(&self) -> bool {
        self.0.lazy
    }

    pub(super) fn isolation(&self) -> Option<u64> {
        self.0.isolation
    }

    /// Devices that have asked to be made one for the hardware, where their bus does not keep them apart anyway, have the
    /// same number.
    pub(super) fn kin(&self) -> Option<u64> {
        self.isolation().filter(|_| self.0.merge_with_group && !self.0.lazy)
    }

    pub(super) fn hooks(&self) -> &Outside<Arc<dyn DeviceHooks>> {
        &self.0.hooks
    }

    pub(super) fn attachments(&self) -> &[Attachment] {
        self.0.place.get().map_or(&[], |place| &place.attachments)
    }

    /// Whether the object of its source has gone.
    pub(super) fn is_orphan(&self) -> bool {
        self.0.source.as_ref().is_some_and(SourceLife::has_ended)
    }

    pub(super) fn calls(&self) -> &InFlight<AtomicU32> {
        &self.0.calls
    }

    /// Whether nobody else has a handle.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// How many calls are inside.
    pub(super) fn in_flight(&self) -> u32 {
        self.0.calls.seen().calls
    }

    /// Whether calls may enter in `state`.
    pub(super) const fn admits(state: u8) -> bool {
        state != Self::REVOKED
    }

    /// Whether calls are inside. Where they are, the last one to leave wakes.
    pub(super) fn await_calls(&self) -> bool {
        let awaited =
            |seen: Seen| (seen.calls > 0).then_some(if seen.state == Self::OPEN { Self::AWAITED } else { seen.state });
        self.0.calls.change(awaited).is_ok()
    }

    /// Lets no call enter from now on.
    pub(super) fn revoke(&self) {
        // It names a state for whatever it sees, so that it cannot be refused.
        let _ = self.0.calls.change(|_| Some(Self::REVOKED));
    }

    /// Whether the hardware or the bus cannot tell the two apart, and where.
    pub(super) fn meets(&self, other: &Self) -> Option<super::error::ConflictReason> {
        use super::error::ConflictReason;
        if let Some(stream) =
            self.streams().iter().find(|stream| other.streams().iter().any(|theirs| stream.meets(*theirs)))
        {
            return Some(ConflictReason::SharedStream(stream.iommu()));
        }
        (self.isolation().is_some() && self.isolation() == other.isolation()).then_some(ConflictReason::SharedBus)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} {})", self.0.id.number(), self.0.label)
    }
}

/// Who a device's DMA belongs to (contract section 1, "owner").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// Being added; not yet in any group's ownership.
    Adding,
    /// In fault. Where every device starts.
    Blocked,
    /// In fault after something failed: owned by nobody.
    Quarantined,
    /// Its DMA is translated by the domain's tables.
    Assigned(DomainId),
}

/// A device as a traversal shows it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The handle.
    pub device: Device,
    /// Its state when the traversal passed.
    pub state: DeviceState,
    /// The group's name: the key of one of its members, the same for all of them.
    pub group: DeviceKey,
    /// The domain's name, where it is assigned.
    pub domain: Option<Label>,
}
