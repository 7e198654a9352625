//! A domain: a guest's address space, and on which IOMMUs it may be cached.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::identity::{DomainId, Label};
use super::iommu::Iommu;
use super::levels::FlushList;
use super::space::AddressSpace;
use super::spec::IommuKey;
use crate::sync::Platform;
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// A domain's handle. It comes from [`create_domain`](super::Service::create_domain) only (contract C-18).
pub struct Domain<P: Platform>(Arc<DomainObject<P>>);

struct DomainObject<P: Platform> {
    label: Label,
    space: AddressSpace,
    flush_list: Lock<FlushList, Vec<Provider>, P::Lock>,
}

struct Provider {
    key: IommuKey,
    iommu: Outside<Arc<dyn Iommu>>,
}

impl<P: Platform> Domain<P> {
    pub(super) fn new(label: Label, space: AddressSpace) -> Self {
        Self(Arc::new(DomainObject { label, space, flush_list: Lock::new(Vec::new()) }))
    }

    /// The domain's number.
    #[must_use]
    pub fn id(&self) -> DomainId {
        self.0.space.domain
    }

    /// What people call it.
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.0.label
    }

    /// Its tables.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        &self.0.space
    }

    /// Puts `iommu` on the flush list, before a context there goes live (contract I-9).
    ///
    /// It stays there until the domain ends: an IOMMU without a context of the domain answers a flush at no cost.
    /// Returns `false` when memory could not be reserved.
    pub(super) fn join(&self, held: &mut Held<'_, Unlocked>, key: IommuKey, iommu: &Outside<Arc<dyn Iommu>>) -> bool {
        let known = |list: &Vec<Provider>| list.iter().any(|provider| provider.key == key);
        let wanted = {
            let list = self.0.flush_list.lock(held);
            if known(&list) {
                return true;
            }
            list.len().saturating_add(1)
        };
        // The new list is made outside the lock (contract A-8) and its old memory released outside it.
        let mut grown = Vec::new();
        if grown.try_reserve_exact(wanted).is_err() {
            return false;
        }
        let mut list = self.0.flush_list.lock(held);
        if known(&list) {
            return true;
        }
        if grown.capacity() <= list.len() {
            drop(list);
            return self.join(held, key, iommu);
        }
        grown.append(&mut list);
        grown.push(Provider { key, iommu: iommu.clone() });
        let old = core::mem::replace(&mut *list, grown);
        drop(list);
        drop(old);
        P::barrier();
        true
    }

    /// The `index`th IOMMU of the flush list.
    pub(super) fn provider(
        &self,
        held: &mut Held<'_, Unlocked>,
        index: usize,
    ) -> Option<(IommuKey, Outside<Arc<dyn Iommu>>)> {
        self.0.flush_list.lock(held).get(index).map(|provider| (provider.key, provider.iommu.clone()))
    }
}

impl<P: Platform> Clone for Domain<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Platform> fmt::Debug for Domain<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({} {})", self.id().number(), self.label())
    }
}
