//! Deferred release, and registrations that end with an object of their source (contract C-7).
//!
//! A source that keeps its own object for, say, a host bridge, keeps a [`SourceObject`] in it and names that in the
//! [`DeviceSpec`](super::DeviceSpec)s of all devices that hang on it. When the object goes, so do the registrations, the
//! last one first. Handles keep the memory of what they refer to.
//!
//! # Locking
//!
//! Dropping a source object takes no lock and frees nothing: it leaves a note that waiting context reads. Levels `Registry` and
//! `Instances`, one step at a time, to reap.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{Cause, Error, Removal, Service, SourceLife, SourceRecord, take_all};
use crate::sync::Platform;
use crate::sync::order::Held;

/// While it lives, so do the registrations that name it.
///
/// Dropping it is legal anywhere, interrupts included: the registrations end when waiting context calls
/// [`Service::reap`], for which the drop wakes. [`Service::end_source`] ends them at once.
#[must_use = "the registrations that name it end with it"]
pub struct SourceObject<P: Platform> {
    life: SourceLife,
    /// Of the service: some source object has gone.
    some_ended: Arc<AtomicBool>,
    platform: PhantomData<P>,
}

impl<P: Platform> SourceObject<P> {
    /// What a device's [`DeviceSpec::source`](super::DeviceSpec::source) says to end with this object.
    #[must_use]
    pub fn life(&self) -> SourceLife {
        self.life.clone()
    }
}

impl<P: Platform> Drop for SourceObject<P> {
    fn drop(&mut self) {
        self.life.0.store(true, Ordering::Release);
        self.some_ended.store(true, Ordering::Release);
        P::wake();
    }
}

impl<P: Platform> Service<P> {
    /// A new object for a source to keep.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-7.
    pub fn source_object(&self) -> SourceObject<P> {
        let life = SourceLife(Arc::new(AtomicBool::new(false)));
        let record = SourceRecord::new(life.clone());
        self.registry.lock(&mut Held::enter()).keep_source(record);
        SourceObject { life, some_ended: self.some_ended.clone(), platform: PhantomData }
    }

    /// Ends a source object and the registrations that name it, the last one first.
    ///
    /// # Errors
    ///
    /// Those of [`remove`](Self::remove): the first. What fails for one does not keep the others; where a removal is
    /// pending or a call is inside, [`reap`](Self::reap) goes on with it.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-7.
    pub fn end_source(&self, object: SourceObject<P>) -> Result<(), Error> {
        drop(object);
        self.end_sources()
    }

    /// Ends the registrations whose source object has gone, and releases the memory of what is registered no more and
    /// nothing refers to. An add does a little of the latter; this does what is left.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-7.
    pub fn reap(&self) {
        let _ = self.end_sources();
        let mut held = Held::enter();
        take_all(|| {
            let mut registry = self.registry.lock(&mut held);
            let unused = registry.unused();
            ((!unused.is_empty()).then_some(unused), registry.rounds())
        });
        take_all(|| {
            let mut instances = self.instances.lock(&mut held);
            (instances.unused(), instances.rounds())
        });
    }

    /// Removes what names a source object that has gone.
    pub(super) fn end_sources(&self) -> Result<(), Error> {
        if !self.some_ended.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let mut result = Ok(());
        let mut below = None;
        loop {
            let next = self.registry.lock(&mut Held::enter()).last_orphan(below);
            let Some(device) = next else { return result };
            below = Some(device.id());
            // A device with children of another source stays until they have gone: `HasChildren` says so.
            match self.remove(&device) {
                // Whether the operation that it met carries it out is seen the next time.
                Ok(Removal::Pending) => self.some_ended.store(true, Ordering::Release),
                Ok(_) | Err(Error { cause: Cause::NotFound, .. }) => {}
                Err(error) => {
                    self.some_ended.store(true, Ordering::Release);
                    result = result.and(Err(error));
                }
            }
        }
    }
}

impl<P: Platform> fmt::Debug for SourceObject<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceObject")
    }
}
