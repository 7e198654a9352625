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

/// One place of the list for each name, so that whoever walks the list by index misses nobody.
#[derive(Clone)]
pub(super) struct Provider {
    pub(super) key: IommuKey,
    /// `None` when the instance went out of service: its registers may be another driver's by now (contract C-9).
    pub(super) iommu: Option<Outside<Arc<dyn Iommu>>>,
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

    /// Whether nobody else has a handle.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Puts `iommu` on the flush list, before a context there goes live (contract I-9).
    ///
    /// It stays there until it goes out of service or the domain ends: an IOMMU without a context of the domain answers a
    /// flush at no cost. Returns `false` when memory could not be reserved.
    pub(super) fn join(&self, held: &mut Held<'_, Unlocked>, key: IommuKey, iommu: &Outside<Arc<dyn Iommu>>) -> bool {
        let wanted = {
            let mut list = self.0.flush_list.lock(held);
            if let Some(provider) = list.iter_mut().find(|provider| provider.key == key) {
                let old = provider.stand_in(iommu);
                drop(list);
                drop(old);
                P::barrier();
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
        if grown.capacity() <= list.len() || list.iter().any(|provider| provider.key == key) {
            drop(list);
            return self.join(held, key, iommu);
        }
        grown.append(&mut list);
        grown.push(Provider { key, iommu: Some(iommu.clone()) });
        let old = core::mem::replace(&mut *list, grown);
        drop(list);
        drop(old);
        P::barrier();
        true
    }

    /// Takes `iommu`, which went out of service and has forgotten the domain, from the flush list.
    pub(super) fn leave(&self, held: &mut Held<'_, Unlocked>, iommu: &Outside<Arc<dyn Iommu>>) {
        let mut list = self.0.flush_list.lock(held);
        let same = |provider: &&mut Provider| provider.iommu.as_ref().is_some_and(|there| there.is_same(iommu));
        let old = list.iter_mut().find(same).and_then(|provider| provider.iommu.take());
        drop(list);
        drop(old);
    }

    /// The `index`th place of the flush list.
    pub(super) fn provider(&self, held: &mut Held<'_, Unlocked>, index: usize) -> Option<Provider> {
        self.0.flush_list.lock(held).get(index).cloned()
    }
}

impl Provider {
    /// Puts `iommu` in this place. Returns who stood there, to be dropped when the lock is free.
    fn stand_in(&mut self, iommu: &Outside<Arc<dyn Iommu>>) -> Option<Outside<Arc<dyn Iommu>>> {
        let known = self.iommu.as_ref().is_some_and(|there| there.is_same(iommu));
        if known { None } else { self.iommu.replace(iommu.clone()) }
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
