//! A domain: a guest's address space, and on which IOMMUs it may be cached.
//!
//! # Locking
//!
//! Level `FlushList`, one lock in each domain: taken to add an instance before a context of the domain goes live there, and to
//! copy out some instances for a flush.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::{AddressSpace, Cause, DomainId, Instance, InstanceState, Iommu, IommuError, Label, Operation};
use crate::few;
use crate::sync::Platform;
use crate::sync::levels::FlushList;
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};

/// A domain's handle. It comes from [`create_domain`](super::Service::create_domain) only (contract C-18).
pub struct Domain<P: Platform>(Arc<DomainObject<P>>);

struct DomainObject<P: Platform> {
    label: Label,
    space: AddressSpace,
    /// In the order of [`Instance::order`].
    flush_list: Lock<FlushList, Vec<Arc<Instance>>, P::Lock>,
}

/// For how many IOMMUs a new domain's list has room. Few domains span more.
const FEW: usize = 4;

impl<P: Platform> Domain<P> {
    pub(super) fn new(label: Label, space: AddressSpace) -> Self {
        let mut list = Vec::new();
        // A list that could not be reserved is reserved by the first assign, which says so where it cannot.
        let _ = list.try_reserve_exact(FEW);
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

    /// Whether the two are handles of one object: numbers are a service's own (contract C-18).
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether there is no other handle.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Puts an instance on the flush list, before a context there goes live (contract I-9). It stays there until the domain
    /// ends: an IOMMU without a context of the domain answers a flush at no cost. `false` when memory could not be reserved.
    pub(super) fn join(&self, held: &mut Held<'_, Unlocked>, instance: &Arc<Instance>) -> bool {
        let mut grown: Vec<Arc<Instance>> = Vec::new();
        loop {
            let mut list = self.0.flush_list.lock(held);
            let at = match list.binary_search_by_key(&instance.order(), |there| there.order()) {
                Ok(_) => break,
                Err(at) => at,
            };
            let wanted = list.len().saturating_add(1);
            if list.capacity() < wanted && grown.capacity() < wanted {
                drop(list);
                if grown.try_reserve_exact(wanted.saturating_mul(2)).is_err() {
                    return false;
                }
                continue;
            }
            if list.capacity() < wanted {
                few::extend_within(&mut grown, list.drain(..));
                core::mem::swap(&mut *list, &mut grown);
            }
            few::insert_within(&mut list, at, instance.clone());
            break;
        }
        P::barrier();
        true
    }

    /// Takes an instance, which is out of service, from the list.
    pub(super) fn leave(&self, held: &mut Held<'_, Unlocked>, instance: &Instance) {
        let mut list = self.0.flush_list.lock(held);
        let at = list.binary_search_by_key(&instance.order(), |there| there.order());
        let old = at.ok().and_then(|at| few::take(&mut list, at));
        drop(list);
        drop(old);
    }

    /// The domain has ended, and no IOMMU has anything of it: a flush with an old handle reaches none.
    pub(super) fn end(&self, held: &mut Held<'_, Unlocked>) {
        let old = core::mem::take(&mut *self.0.flush_list.lock(held));
        drop(old);
    }

    /// Has every IOMMU forget the domain: after `Ok` none of them uses its tables. Where one is being closed by force at this
    /// moment it is too early to say.
    pub(super) fn forget(&self, held: &mut Held<'_, Unlocked>) -> Result<(), Cause> {
        self.on_all(held, |iommu, domain| iommu.forget(domain)).map_err(|cause| match cause {
            Cause::Iommu { error: IommuError::ProviderGone, .. } => Cause::busy(Operation::UnregisterIommu),
            cause => cause,
        })
    }

    /// Does something on every IOMMU of the flush list, also after one of them failed: returns the first failure. One that is
    /// out of service has nothing cached.
    ///
    /// The list's lock is taken for each of them, and nothing is allocated: atomic context may flush.
    pub(super) fn on_all(
        &self,
        held: &mut Held<'_, Unlocked>,
        act: impl Fn(&dyn Iommu, DomainId) -> Result<(), IommuError>,
    ) -> Result<(), Cause> {
        P::barrier();
        let mut failed = None;
        let mut next = {
            let list = self.0.flush_list.lock(held);
            list.first().map(|instance| (instance.clone(), list.len() == 1))
        };
        while let Some((instance, is_last)) = next {
            match act(instance.iommu.call(held).as_ref(), self.id()) {
                Ok(()) => {}
                Err(IommuError::ProviderGone) if instance.state() == InstanceState::Gone => {}
                Err(error) => {
                    failed.get_or_insert(Cause::Iommu { iommu: instance.key, error });
                }
            }
            next = if is_last { None } else { self.following(held, &instance) };
        }
        failed.map_or(Ok(()), Err)
    }

    /// The instance that follows `after` on the flush list, and whether it is the last.
    #[inline(never)]
    fn following(&self, held: &mut Held<'_, Unlocked>, after: &Instance) -> Option<(Arc<Instance>, bool)> {
        let list = self.0.flush_list.lock(held);
        let passed = list.partition_point(|there| there.order() <= after.order());
        list.get(passed).map(|instance| (instance.clone(), passed.saturating_add(1) == list.len()))
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
