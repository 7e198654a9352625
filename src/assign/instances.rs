//! Which IOMMU instances are in service: what look-ups by name find.
//!
//! What else is known of an instance, its devices and the holds on it, stands in the [`Registry`](super::registry).
//!
//! # Locking
//!
//! Level `Instances`. It nests inside `Registry` where an instance comes or goes, so that both change together; look-ups
//! take it alone.

use alloc::boxed::Box;
use alloc::sync::Arc;

use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink, intrusive_adapter};

use super::iommu::Iommu;
use super::spec::IommuKey;
use crate::sync::outside::Outside;

/// An instance in service.
pub(super) struct Instance {
    link: RBTreeLink,
    key: IommuKey,
    iommu: Outside<Arc<dyn Iommu>>,
}

intrusive_adapter!(ByKey = Box<Instance>: Instance { link => RBTreeLink });

impl<'a> KeyAdapter<'a> for ByKey {
    type Key = IommuKey;

    fn get_key(&self, instance: &'a Instance) -> IommuKey {
        instance.key
    }
}

impl Instance {
    pub(super) fn new(key: IommuKey, iommu: Outside<Arc<dyn Iommu>>) -> Box<Self> {
        Box::new(Self { link: RBTreeLink::new(), key, iommu })
    }
}

/// The instances in service, by name.
pub(super) struct Instances(RBTree<ByKey>);

impl Instances {
    pub(super) const fn new() -> Self {
        Self(RBTree::new(ByKey::NEW))
    }

    pub(super) fn find(&self, key: IommuKey) -> Option<&Outside<Arc<dyn Iommu>>> {
        self.0.find(&key).get().map(|instance| &instance.iommu)
    }

    /// The caller has seen to it that there is none under its key.
    pub(super) fn insert(&mut self, instance: Box<Instance>) {
        self.0.insert(instance);
    }

    /// Takes an instance out; the caller drops it when the locks are free.
    #[must_use = "it is to be dropped when the locks are free"]
    pub(super) fn take(&mut self, key: IommuKey) -> Option<Box<Instance>> {
        self.0.find_mut(&key).remove()
    }
}
