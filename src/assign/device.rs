//! A device: what a source offers, the object that handles keep, and what a source does for it.
//!
//! The state of a device stands in its group ([`group`](super::group)); nothing here changes after add, but for the count of
//! calls inside.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use bitflags::bitflags;

use super::{CallChain, Cause, ConflictReason, DeviceId, DeviceKey, Instance, Label, Stream};
use crate::few;
use crate::sync::atomic::AtomicU32;
use crate::sync::inflight::{InFlight, Seen};
use crate::sync::order::{Held, Unlocked};
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
    /// It does not outlive a reset of its parent, as a virtual function does not: while it is registered, its parent is
    /// neither reset nor taken from its owner ([`Cause::HasChildren`](super::Cause::HasChildren)).
    pub ends_with_parent: bool,
    /// All streams that its DMA can carry, aliases and phantom functions included.
    pub streams: Vec<Stream>,
    /// Devices with the same number are not isolated from each other by their bus (missing ACS): one group.
    pub isolation: Option<u64>,
    /// Firmware marked it for passthrough.
    pub passthrough: bool,
    /// Its stream-map entries are taken at its first assign, not at add: for a bus with more requester IDs than an IOMMU
    /// has entries. The assign may then be refused for want of entries; [`usage`](super::Service::usage) says which devices
    /// have them. Until then its DMA faults as an unknown stream's.
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
            ends_with_parent: false,
            streams,
            isolation: None,
            passthrough: false,
            lazy: false,
            source: None,
            hooks,
        }
    }
}

impl DeviceSpec {
    /// The spec again, for one try: add consumes it.
    pub(crate) fn copied(&self) -> Result<Self, Cause> {
        let streams = few::copied(&self.streams).map_err(|_| Cause::OutOfMemory)?;
        let (label, source, hooks) = (self.label.clone(), self.source.clone(), self.hooks.clone());
        Ok(Self { streams, label, source, hooks, ..*self })
    }
}

/// Whether the source object that a device's registration ends with lives ([`SourceObject`](super::SourceObject)).
#[derive(Clone)]
pub struct SourceLife(pub(super) Arc<AtomicBool>);

impl SourceLife {
    /// Whether the object has gone.
    pub(super) fn has_ended(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Whether neither the source nor a device refers to it.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl fmt::Debug for SourceLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceLife({})", if self.has_ended() { "ended" } else { "lives" })
    }
}

/// A registered device's handle.
///
/// A reference keeps the object, registration keeps the device: after [`remove`](super::Service::remove) every call
/// with an old handle gets `Gone` (contract C-7). It comes from add, look-up or traversal only (contract C-18).
#[derive(Clone)]
pub struct Device(Arc<DeviceObject>);

struct DeviceObject {
    id: DeviceId,
    key: DeviceKey,
    label: Label,
    parent: Option<DeviceKey>,
    /// Canonical, sorted, without repetition.
    streams: Box<[Stream]>,
    /// One for each IOMMU, in the order of their names.
    attachments: Box<[Attachment]>,
    isolation: Option<u64>,
    source: Option<SourceLife>,
    hooks: Outside<Arc<dyn DeviceHooks>>,
    calls: InFlight<AtomicU32>,
    /// How many devices it stands behind. Said once, when it is registered.
    depth: AtomicU16,
    /// See [`Device::is_unwanted`]. Changed and read under the registry's lock, or when the device is unregistered.
    unwanted: AtomicBool,
    /// What its spec says with yes or no.
    marks: Marks,
}

bitflags! {
    /// See the fields of the same names in [`DeviceSpec`].
    #[derive(Clone, Copy)]
    struct Marks: u8 {
        const PASSTHROUGH = 1;
        const LAZY = 2;
        const ENDS_WITH_PARENT = 4;
    }
}

/// A device's streams on one IOMMU.
pub(super) struct Attachment {
    pub(super) instance: Arc<Instance>,
    /// Which of the device's streams.
    pub(super) streams: Range<u32>,
}

impl Device {
    /// Calls may enter.
    pub(super) const OPEN: u8 = 0;
    /// A removal was asked for.
    const REVOKED: u8 = 1;

    /// `streams` are the spec's, as the object keeps them; `attachments` say where they are.
    pub(super) fn new(id: DeviceId, spec: DeviceSpec, attachments: Box<[Attachment]>) -> Self {
        let DeviceSpec { key, label, parent, ends_with_parent, streams, isolation, passthrough, lazy, source, hooks } =
            spec;
        let mut marks = Marks::empty();
        marks.set(Marks::PASSTHROUGH, passthrough);
        marks.set(Marks::LAZY, lazy);
        marks.set(Marks::ENDS_WITH_PARENT, ends_with_parent);
        Self(Arc::new(DeviceObject {
            id,
            key,
            label,
            parent,
            streams: streams.into_boxed_slice(),
            attachments,
            isolation,
            source,
            hooks: Outside::new(hooks),
            calls: InFlight::new(Self::OPEN),
            depth: AtomicU16::new(0),
            unwanted: AtomicBool::new(false),
            marks,
        }))
    }

    /// This registration's number.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.0.id
    }

    /// As its source offered it.
    pub(super) fn spec(&self, held: &mut Held<'_, Unlocked>) -> Result<DeviceSpec, Cause> {
        let DeviceObject { key, label, parent, isolation, source, .. } = &*self.0;
        let streams = few::copied(self.streams()).map_err(|_| Cause::OutOfMemory)?;
        Ok(DeviceSpec {
            key: *key,
            label: label.clone(),
            parent: *parent,
            ends_with_parent: self.ends_with_parent(),
            streams,
            isolation: *isolation,
            passthrough: self.passthrough(),
            lazy: self.is_lazy(),
            source: source.clone(),
            hooks: self.0.hooks.call(held).clone(),
        })
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
        self.0.depth.load(Ordering::Relaxed)
    }

    pub(super) fn set_depth(&self, depth: u16) {
        self.0.depth.store(depth, Ordering::Relaxed);
    }

    /// Whether its removal was asked for when it was being asked for already: of a device that is taken out to be registered
    /// anew, somebody wants it to stay out.
    pub(super) fn is_unwanted(&self) -> bool {
        self.0.unwanted.load(Ordering::Relaxed)
    }

    pub(super) fn set_unwanted(&self) {
        self.0.unwanted.store(true, Ordering::Relaxed);
    }

    /// All its streams, canonical and without repetition.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.0.streams
    }

    /// Whether firmware marked it for passthrough.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.0.marks.contains(Marks::PASSTHROUGH)
    }

    /// Whether its entries are taken at its first assign.
    pub(super) fn is_lazy(&self) -> bool {
        self.0.marks.contains(Marks::LAZY)
    }

    /// Whether a reset of its parent ends it.
    pub(super) fn ends_with_parent(&self) -> bool {
        self.0.marks.contains(Marks::ENDS_WITH_PARENT)
    }

    pub(crate) fn isolation(&self) -> Option<u64> {
        self.0.isolation
    }

    pub(super) fn hooks(&self) -> &Outside<Arc<dyn DeviceHooks>> {
        &self.0.hooks
    }

    pub(super) fn attachments(&self) -> &[Attachment] {
        &self.0.attachments
    }

    /// Its attachment to this very instance.
    pub(super) fn attachment_to(&self, instance: &Instance) -> Option<&Attachment> {
        self.attachments().iter().find(|attachment| attachment.instance.number == instance.number)
    }

    /// Its streams on one IOMMU.
    pub(super) fn streams_on(&self, attachment: &Attachment) -> &[Stream] {
        let Range { start, end } = attachment.streams;
        self.streams().get(start as usize..end as usize).unwrap_or(&[])
    }

    /// Whether the object of its source has gone.
    pub(super) fn is_orphan(&self) -> bool {
        self.0.source.as_ref().is_some_and(SourceLife::has_ended)
    }

    /// The word that counts the calls inside.
    pub(super) fn calls(&self) -> &InFlight<AtomicU32> {
        &self.0.calls
    }

    /// Whether the two are handles of one object: numbers are a service's own (contract C-18).
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether there is no other handle.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// How many calls are inside.
    pub(super) fn in_flight(&self) -> u32 {
        let Seen { calls, .. } = self.0.calls.seen();
        calls
    }

    /// Whether calls may enter in `state`.
    pub(super) const fn admits(state: u8) -> bool {
        state != Self::REVOKED
    }

    /// Lets no call enter from now on.
    pub(super) fn revoke(&self) {
        let _ = self.0.calls.change(|_| Some(Self::REVOKED));
    }

    /// Whether the hardware or the bus cannot tell the two apart by what their sources say, and where.
    pub(super) fn overlaps(&self, other: &Self) -> Option<ConflictReason> {
        let common = |stream: &&Stream| other.streams().iter().any(|theirs| stream.overlaps(*theirs));
        if let Some(stream) = self.streams().iter().find(common) {
            return Some(ConflictReason::SharedStream(stream.iommu()));
        }
        let same_bus = self.isolation().is_some() && self.isolation() == other.isolation();
        same_bus.then_some(ConflictReason::SharedBus)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} {})", self.0.id.number(), self.0.label)
    }
}

/// What a source does for one of its devices.
///
/// | hook | called by | when |
/// |---|---|---|
/// | `quiesce`, then `reset` | deassign, reassign, and an assign of a quarantined device | its streams are in fault and have drained |
/// | `release` | remove, or the operation that a removal overtook | it is unregistered |
///
/// # Context
///
/// Called with no lock of the library held, from the waiting context of the operation; a reset may take its time. A
/// hook may come back through [`Service::within`](super::Service::within) with its context's chain.
pub trait DeviceHooks: Send + Sync + fmt::Debug {
    /// Stops the device from starting new DMA. Its streams are in fault already.
    ///
    /// # Errors
    ///
    /// What went wrong; the operation ends with the device quarantined.
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError>;

    /// Brings the device to a state that carries nothing over from one owner to the next.
    ///
    /// # Errors
    ///
    /// What went wrong; the operation ends with the device quarantined.
    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError>;

    /// The device is unregistered: the source may let go of its own things. Not called for a device whose add failed.
    fn release(&self, context: &HookContext<'_>);
}

/// What a hook is told.
#[derive(Debug)]
#[non_exhaustive]
pub struct HookContext<'a> {
    /// The device.
    pub device: &'a Device,
    /// What runs above the hook.
    pub chain: CallChain<'a>,
}

/// Why a hook failed, in the source's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookError(pub &'static str);

/// Hooks for a device that cannot be stopped or reset from outside: streams in fault are all that confines it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl DeviceHooks for NoHooks {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}
