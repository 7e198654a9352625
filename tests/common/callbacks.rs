//! Callbacks that are closures, and their way back into the service.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use iommu_assign::assign::{DeviceHooks, HookContext, HookError, Policy, PolicyRequest, Service};
use iommu_assign::sync::{ManyCpus, Platform};

/// The service as a callback reaches it.
pub(crate) struct Way<P: Platform>(Arc<OnceLock<Weak<Service<P>>>>);

impl<P: Platform> Way<P> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// From here on it leads to `service`.
    pub(crate) fn lead_to(&self, service: &Arc<Service<P>>) {
        self.0.set(Arc::downgrade(service)).unwrap();
    }

    /// The service, once there is one.
    pub(crate) fn service(&self) -> Option<Arc<Service<P>>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl<P: Platform> Clone for Way<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

type Step = dyn Fn(&HookContext<'_>) -> Result<(), HookError> + Send + Sync;
type Last = dyn Fn(&HookContext<'_>) + Send + Sync;

/// Hooks that do what a test says, and else nothing.
pub(crate) struct Hooks {
    quiesce: Box<Step>,
    reset: Box<Step>,
    release: Box<Last>,
}

impl Hooks {
    pub(crate) fn new() -> Self {
        Self { quiesce: Box::new(|_| Ok(())), reset: Box::new(|_| Ok(())), release: Box::new(|_| ()) }
    }

    pub(crate) fn quiesce(
        self,
        act: impl Fn(&HookContext<'_>) -> Result<(), HookError> + Send + Sync + 'static,
    ) -> Self {
        Self { quiesce: Box::new(act), ..self }
    }

    pub(crate) fn reset(self, act: impl Fn(&HookContext<'_>) -> Result<(), HookError> + Send + Sync + 'static) -> Self {
        Self { reset: Box::new(act), ..self }
    }

    pub(crate) fn release(self, act: impl Fn(&HookContext<'_>) + Send + Sync + 'static) -> Self {
        Self { release: Box::new(act), ..self }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

impl DeviceHooks for Hooks {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        (self.quiesce)(context)
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        (self.reset)(context)
    }

    fn release(&self, context: &HookContext<'_>) {
        (self.release)(context);
    }
}

type Ask<P> = dyn Fn(&Service<P>, &PolicyRequest<'_>) -> bool + Send + Sync;

/// A policy that comes back into the service. It says yes as long as there is none.
pub(crate) struct Asked<P: Platform>(Way<P>, Box<Ask<P>>);

impl<P: Platform> Asked<P> {
    pub(crate) fn new(
        way: &Way<P>,
        ask: impl Fn(&Service<P>, &PolicyRequest<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(way.clone(), Box::new(ask))
    }
}

impl<P: Platform> fmt::Debug for Asked<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl<P: Platform<Sharing = ManyCpus>> Policy for Asked<P> {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        self.0.service().is_none_or(|service| (self.1)(&service, request))
    }
}
