//! IOMMU instances as the service keeps them: by name, and with what holds them in service.
//!
//! # Locking
//!
//! Level `Instances` guards which instances are found by name. An instance's own state and count of devices are changed under
//! the registry's lock only; they are atomics because every attachment refers to the instance.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use intrusive_collections::{
    Bound, KeyAdapter, LinkedList, LinkedListAtomicLink, RBTree, RBTreeAtomicLink, intrusive_adapter,
};

use super::{Cause, Graveyard, Iommu, IommuKey, Operation};
use crate::sync::outside::Outside;

/// An instance that was registered.
pub(super) struct Instance {
    link: RBTreeAtomicLink,
    gone: LinkedListAtomicLink,
    pub(super) key: IommuKey,
    /// Tells it from a later instance of the same name (contract C-9).
    pub(super) number: u64,
    pub(super) iommu: Outside<Arc<dyn Iommu>>,
    /// Registered devices with a stream on it.
    devices: AtomicUsize,
    /// Those of them that were asked to go.
    leaving: AtomicUsize,
    state: AtomicU8,
}

/// Whether devices may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstanceState {
    /// They may.
    InService = 0,
    /// It is being taken out of service: the exclusive hold (contract C-1).
    Leaving = 1,
    /// It is out of service.
    Gone = 2,
}

intrusive_adapter!(ByKey = Arc<Instance>: Instance { link => RBTreeAtomicLink });
intrusive_adapter!(GoneInstances = Arc<Instance>: Instance { gone => LinkedListAtomicLink });

impl<'a> KeyAdapter<'a> for ByKey {
    type Key = IommuKey;

    fn get_key(&self, instance: &'a Instance) -> IommuKey {
        instance.key
    }
}

impl Instance {
    pub(super) fn new(number: u64, iommu: Arc<dyn Iommu>) -> Arc<Self> {
        Arc::new(Self {
            link: RBTreeAtomicLink::new(),
            gone: LinkedListAtomicLink::new(),
            key: iommu.key(),
            number,
            iommu: Outside::new(iommu),
            devices: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            state: AtomicU8::new(InstanceState::InService as u8),
        })
    }

    /// Its place in the order in which operations go through instances.
    pub(super) fn order(&self) -> (IommuKey, u64) {
        (self.key, self.number)
    }

    // --- under the registry's lock ---

    pub(super) fn state(&self) -> InstanceState {
        match self.state.load(Ordering::Relaxed) {
            0 => InstanceState::InService,
            1 => InstanceState::Leaving,
            _ => InstanceState::Gone,
        }
    }

    pub(super) fn set_state(&self, state: InstanceState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Why no device may be registered with streams on it, if none may.
    pub(super) fn refusal(&self) -> Option<Cause> {
        match self.state() {
            InstanceState::InService => None,
            InstanceState::Leaving => Some(Cause::busy(Operation::UnregisterIommu)),
            InstanceState::Gone => Some(Cause::ProviderMissing(self.key)),
        }
    }

    pub(super) fn devices(&self) -> usize {
        self.devices.load(Ordering::Relaxed)
    }

    /// Whether all devices that are registered on it were asked to go.
    pub(super) fn is_being_left(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) == self.devices()
    }

    /// Counts a device that was asked to go, or that is not going any more.
    pub(super) fn count_leaving(&self, by: isize) {
        let leaving = self.leaving.load(Ordering::Relaxed);
        self.leaving.store(leaving.saturating_add_signed(by), Ordering::Relaxed);
    }

    /// Counts a device in, or out.
    pub(super) fn count(&self, by: isize) {
        self.devices.store(self.devices().saturating_add_signed(by), Ordering::Relaxed);
    }
}

/// The instances in service, by name, and those that went and are referred to still.
pub(super) struct Instances {
    by_key: RBTree<ByKey>,
    gone: Graveyard<GoneInstances>,
    last_number: u64,
}

impl Instances {
    pub(super) fn new() -> Self {
        Self {
            by_key: RBTree::new(ByKey::new()),
            gone: Graveyard::new(LinkedList::new(GoneInstances::new())),
            last_number: 0,
        }
    }

    pub(super) const fn next_number(&mut self) -> u64 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    pub(super) fn find(&self, key: IommuKey) -> Option<Arc<Instance>> {
        self.by_key.find(&key).clone_pointer()
    }

    /// The first instance whose name is above `after`.
    pub(super) fn next(&self, after: Option<IommuKey>) -> Option<Arc<Instance>> {
        self.by_key.lower_bound(after.as_ref().map_or(Bound::Unbounded, Bound::Excluded)).clone_pointer()
    }

    /// Says whether there was none under its name.
    pub(super) fn insert(&mut self, instance: Arc<Instance>) -> bool {
        let free = self.by_key.find(&instance.key).is_null();
        if free {
            self.by_key.insert(instance);
        }
        free
    }

    /// Takes this very instance out, and keeps it until no handle refers to it. Says whether it was there.
    pub(super) fn bury(&mut self, instance: &Arc<Instance>) -> bool {
        let mut cursor = self.by_key.find_mut(&instance.key);
        if cursor.get().is_none_or(|there| there.number != instance.number) {
            return false;
        }
        cursor.remove().map(|instance| self.gone.bury(instance)).is_some()
    }

    /// Takes an instance that went and to which nothing refers any more, if there is one among the next few.
    pub(super) fn unused(&mut self) -> Option<Arc<Instance>> {
        self.gone.take(|instance| Arc::strong_count(instance) == 1)
    }

    /// In how many goes of [`unused`](Self::unused) all are looked at.
    pub(super) const fn rounds(&self) -> usize {
        self.gone.rounds()
    }
}
