//! No lock, for a hypervisor with a single CPU: a flag that is set while it would be held.
//!
//! On one CPU a lock can only be met by what interrupts its holder. The holder cannot go on meanwhile: waiting would never
//! end, and going in would break what the lock guards. So a flag says that somebody is inside, and whoever comes while
//! it is set is handed to [`Reentry`], which does not come back.
//!
//! The library itself never re-enters: it calls nothing that it was given while it holds a lock, and what may be called
//! from interrupt handlers takes none ([`InterruptSafe`](super::InterruptSafe) is not implemented for [`OneCpu`]). The
//! service is not `Sync` either. What is left, a handler that reaches a driver or a domain by a reference of its own
//! and calls what is for waiting context, is a broken promise of the integrator's.

use core::convert::Infallible;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

use lock_api::{GuardNoSend, RawMutex};

use super::platform::{Platform, SingleCpu, strongest_barrier};

/// What a hypervisor does when the library is re-entered on its only CPU.
pub trait Reentry: fmt::Debug + Send + Sync + 'static {
    /// Stops. The caller is inside what it interrupted, and neither can go on.
    ///
    /// # Context
    ///
    /// Whatever context re-entered, with a lock of the library held below: it must not call the library.
    fn reentered() -> !;
}

/// Says it in a line of log and spins for ever, streams as they are: for hypervisors that have no way of their own to
/// stop.
#[derive(Debug)]
pub enum Halt {}

impl Reentry for Halt {
    fn reentered() -> ! {
        // The one line that is logged with a lock held: nobody will wait for that lock any more.
        log::error!("iommu-assign was re-entered on its only CPU: a handler called what is for waiting context");
        loop {
            core::hint::spin_loop();
        }
    }
}

/// A raw mutex that nobody can wait for.
///
/// An atomic flag, so that what it guards is safe also where several CPUs come in spite of all.
pub struct CheckedFlag<H> {
    inside: AtomicBool,
    reentry: PhantomData<fn() -> H>,
}

#[expect(unsafe_code, reason = "the trait is unsafe: it promises mutual exclusion")]
// SAFETY: `swap` is atomic, so that one caller alone finds the flag clear until `unlock` clears it; all others do not
// return from `lock`. Acquire and release order what was done inside.
unsafe impl<H: Reentry> RawMutex for CheckedFlag<H> {
    const INIT: Self = Self { inside: AtomicBool::new(false), reentry: PhantomData };

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        if !self.try_lock() {
            H::reentered();
        }
    }

    fn try_lock(&self) -> bool {
        !self.inside.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.inside.store(false, Ordering::Release);
    }
}

impl<H> fmt::Debug for CheckedFlag<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedFlag")
    }
}

/// The platform of a hypervisor with a single CPU, whose way to stop is `H`.
///
/// Its service cannot be shared:
///
/// ```compile_fail,E0277
/// use iommu_assign::{assign::Service, sync::OneCpu};
/// fn shared<T: Sync>() {}
/// shared::<Service<OneCpu>>();
/// ```
///
/// Any other platform's can:
///
/// ```
/// use iommu_assign::{assign::Service, sync::Spin};
/// fn shared<T: Sync>() {}
/// shared::<Service<Spin>>();
/// ```
#[derive(Debug)]
pub struct OneCpu<H = Halt>(PhantomData<H>, Infallible);

impl<H: Reentry> Platform for OneCpu<H> {
    type Lock = CheckedFlag<H>;
    type Sharing = SingleCpu;

    fn barrier() {
        strongest_barrier();
    }
}
