//! A domain: a guest's address space, and on which IOMMUs it may be cached.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::error::Cause;
use super::identity::{DomainId, Label};
use super::iommu::{Iommu, IommuError};
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

/// For how many IOMMUs a flush takes the list's lock once. Few domains span more.
const AT_ONCE: usize = 8;

/// One place of the list for each name and each instance that has it, so that whoever walks the list by index misses nobody.
#[derive(Clone)]
pub(super) struct Provider {
    pub(super) key: IommuKey,
    /// `None` when the instance went out of service: its registers may be another driver's by now (contract C-9).
    pub(super) iommu: Option<Outside<Arc<dyn Iommu>>>,
}

/// Where `iommu` stands on the list, or one of the same name stood that has left: another one of that name may be on its
/// way out while this one comes.
fn place(list: &[Provider], key: IommuKey, iommu: &Outside<Arc<dyn Iommu>>) -> Option<usize> {
    let itself = |provider: &Provider| provider.iommu.as_ref().is_some_and(|there| there.is_same(iommu));
    let empty = |provider: &Provider| provider.key == key && provider.iommu.is_none();
    list.iter().position(itself).or_else(|| list.iter().position(empty))
}

impl<P: Platform> Domain<P> {
    pub(super) fn new(label: Label, space: AddressSpace) -> Self {
        let mut list = Vec::new();
        // So that joining it allocates nothing, nearly always; where there is no memory now, there may be then.
        let _ = list.try_reserve_exact(AT_ONCE);
        Self(Arc::new(DomainObject { label, space, flush_list: Lock::new(list) }))
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

    /// Puts `iommus` on the flush list, before a context there goes live (contract I-9).
    ///
    /// They stay there until they go out of service or the domain ends: an IOMMU without a context of the domain answers
    /// a flush at no cost. Returns `false` when memory could not be reserved.
    pub(super) fn join<'a>(
        &self,
        held: &mut Held<'_, Unlocked>,
        iommus: impl Iterator<Item = (IommuKey, &'a Outside<Arc<dyn Iommu>>)> + Clone,
    ) -> bool {
        let mut grown: Vec<Provider> = Vec::new();
        loop {
            let mut list = self.0.flush_list.lock(held);
            let missing = iommus.clone().filter(|(key, iommu)| place(&list, *key, iommu).is_none()).count();
            let wanted = list.len().saturating_add(missing);
            if list.capacity() >= wanted || grown.capacity() >= wanted {
                if list.capacity() < wanted {
                    grown.append(&mut list);
                    core::mem::swap(&mut *list, &mut grown);
                }
                for (key, iommu) in iommus {
                    match place(&list, key, iommu).and_then(|at| list.get_mut(at)) {
                        // Its own handle, or none, stood there: nothing is released here.
                        Some(provider) => provider.iommu = Some(iommu.clone()),
                        None => list.push(Provider { key, iommu: Some(iommu.clone()) }),
                    }
                }
                drop(list);
                P::barrier();
                return true;
            }
            drop(list);
            // The new list is made outside the lock (contract A-8), and its old memory released outside it.
            grown = Vec::new();
            if grown.try_reserve_exact(wanted).is_err() {
                return false;
            }
        }
    }

    /// Takes `iommu`, which went out of service and has forgotten the domain, from the flush list.
    pub(super) fn leave(&self, held: &mut Held<'_, Unlocked>, iommu: &Outside<Arc<dyn Iommu>>) {
        let mut list = self.0.flush_list.lock(held);
        let same = |provider: &&mut Provider| provider.iommu.as_ref().is_some_and(|there| there.is_same(iommu));
        let old = list.iter_mut().find(same).and_then(|provider| provider.iommu.take());
        drop(list);
        drop(old);
    }

    /// The domain has ended, and no IOMMU has anything of it: who flushes it with an old handle reaches none.
    pub(super) fn end(&self, held: &mut Held<'_, Unlocked>) {
        let old = core::mem::take(&mut *self.0.flush_list.lock(held));
        drop(old);
    }

    /// Has every IOMMU forget the domain: after `Ok` none of them uses its tables.
    pub(super) fn forget(&self, held: &mut Held<'_, Unlocked>) -> Result<(), Cause> {
        self.on_all(held, |iommu, domain| match iommu.forget(domain) {
            // An instance goes only when all its drains are confirmed. It can be on the list still where an assign met
            // its end.
            Err(IommuError::ProviderGone) => Ok(()),
            result => result,
        })
    }

    /// Does something on every IOMMU of the flush list, also after one of them failed: returns the first failure.
    ///
    /// The list's lock is taken once for [`AT_ONCE`] of them, and nothing is allocated: atomic context may flush.
    pub(super) fn on_all(
        &self,
        held: &mut Held<'_, Unlocked>,
        act: impl Fn(&dyn Iommu, DomainId) -> Result<(), IommuError>,
    ) -> Result<(), Cause> {
        // Table bytes are visible to the walkers before any of them is told to forget (contract S-1), and an IOMMU that
        // joins the list from here on reads the new tables (C-17).
        P::barrier();
        let mut failed = None;
        let mut passed = 0_usize;
        loop {
            // A handle that is dropped here is never the last: the registry has its own (contract C-7).
            let mut some: [Option<Provider>; AT_ONCE] = [const { None }; AT_ONCE];
            let length = {
                let list = self.0.flush_list.lock(held);
                for (slot, provider) in some.iter_mut().zip(list.iter().skip(passed)) {
                    *slot = Some(provider.clone());
                }
                list.len()
            };
            for Provider { key, iommu } in some.into_iter().flatten() {
                if let Some(iommu) = iommu
                    && let Err(error) = act(iommu.call(held).as_ref(), self.id())
                {
                    failed.get_or_insert(Cause::Iommu { iommu: key, error });
                }
            }
            passed = passed.saturating_add(AT_ONCE);
            if passed >= length {
                return failed.map_or(Ok(()), Err);
            }
        }
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
