//! The hooks of a function: quiet when its owner goes, reset before the next one comes.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::config::{ConfigError, ConfigSpace, FunctionConfig, Identity};
use super::control::{self, ControlError, Progress, Quiesce, Reset, ResetMethod, Saved};
use super::enumeration::Enumeration;
use super::function::{Function, FunctionKind};
use super::{Capabilities, Sbdf};
use crate::assign::{DeviceHooks, Error, HookContext, HookError};
use crate::sync::{self, Micros, Platform, Tried};

/// How time passes where a function is waited for.
#[derive(Clone, Copy)]
pub struct Delay(Passing);

#[derive(Clone, Copy)]
enum Passing {
    Spin(fn() -> Option<Micros>),
    Sleep(fn(Micros)),
}

impl Delay {
    /// Spins on the platform's clock. `None` where it has none.
    #[must_use]
    pub fn spinning<P: Platform>() -> Option<Self> {
        P::now().map(|_| Self(Passing::Spin(P::now)))
    }

    /// Calls `sleep`, which returns when at least so much has passed: the hypervisor's own, where others run meanwhile.
    #[must_use]
    pub const fn sleeping(sleep: fn(Micros)) -> Self {
        Self(Passing::Sleep(sleep))
    }

    pub(super) fn pass(self, time: Micros) {
        match self.0 {
            Passing::Sleep(sleep) => sleep(time),
            Passing::Spin(now) => {
                let Some(start) = now() else { return };
                while now().is_some_and(|now| now.since(start) < time) {
                    sync::pause();
                }
            }
        }
    }

    /// Tries again what meets another operation: `attempts` times, with a [`STEP`](Self::STEP) before each.
    pub(super) fn persist<T>(self, attempts: u32, attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        Error::while_busy(&mut self.again(attempts), attempt)
    }

    /// So many times yes, each after a [`STEP`](Self::STEP).
    pub(super) fn again(self, attempts: u32) -> impl FnMut() -> bool {
        let mut attempts = 0..attempts;
        move || attempts.next().map(|_| self.pass(Self::STEP)).is_some()
    }

    /// Between two looks at what takes a second at most.
    pub(super) const STEP: Micros = Micros::from_millis(10);
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Passing::Spin(_) => "Delay(spinning)",
            Passing::Sleep(_) => "Delay(sleeping)",
        })
    }
}

/// The [`DeviceHooks`] of a function ([`DeviceSpec::hooks`](crate::assign::DeviceSpec::hooks)).
///
/// | hook | what it does |
/// |---|---|
/// | `quiesce` | bus mastering off; waits until nothing is pending; ATS, PRI and PASID off |
/// | `reset` | brings the function to D0, resets it by the first [`ResetMethod`] that it has, and writes back what the reset lost |
/// | `release` | nothing |
///
/// Where a reset does not come to its end, that of the bus is tried, if the function is alone there. What is written back:
/// base addresses, their sizes, the expansion ROM, Command without bus mastering, and access control as they were before the
/// reset, since only the hypervisor writes them ([`control::GuestWrites`]); Device Control, Link Control and latencies as
/// they were when the hooks were made, since an owner may have changed them. What a reset that failed has lost is written back
/// by the next one.
///
/// The times are those of the PCI Express Base Specification: 100 ms after a reset (6.6), 10 ms for a power state (5.9), 2 ms
/// of reset on the bus, a second in which the function may say that it is to be tried again, and a second in which pending
/// transactions may end.
///
/// The reset of a physical function switches its virtual functions off: they are removed from the service before.
///
/// A function that has gone reads as all ones. Nothing is written to it from the first such read on, and the hook fails. A
/// bridge is left as it is: it begins no DMA of its own, holds no guest's data, and what is below needs it.
///
/// # Context
///
/// Waiting context. An operation owns its device's group, so that one CPU at a time is in a function's hooks. Nothing else
/// may change the function's configuration space meanwhile: the hypervisor takes the function out of its guest's view before
/// it deassigns it ([`Self::in_transition`]).
#[derive(Debug)]
pub struct FunctionHooks<C> {
    space: C,
    function: Sbdf,
    identity: Identity,
    capabilities: Capabilities,
    /// The bridge right above, where there is one.
    bridge: Option<Sbdf>,
    /// As the function was when this was made; none of a bridge.
    first: Option<Saved>,
    /// As it was before a reset that did not come to its end: what it has lost cannot be read from it any more.
    unfinished: Tried<Option<Saved>>,
    delay: Delay,
    resets: bool,
    in_transition: AtomicBool,
    /// The method of the last reset, as its place in the list, from 1; 0: none yet.
    last: AtomicU8,
}

impl<C: ConfigSpace> FunctionHooks<C> {
    /// The hooks of `function`, one of `found` or a virtual function of one, whose ATS, PRI and PASID are turned off now:
    /// such requests go round the SMMU.
    ///
    /// `space` is an `Arc` of the host bridge's configuration space, or a reference that lives as long.
    ///
    /// # Errors
    ///
    /// [`ControlError::StaysOn`]: the function must not be offered. [`ConfigError::NotPresent`], [`ConfigError::NotReady`].
    pub fn new(space: C, function: &Function, found: &Enumeration, delay: Delay) -> Result<Self, ControlError> {
        let config = function.config(&space)?;
        let identity = config.identity();
        control::turn_translation_services_off(&config, &function.capabilities)?;
        let is_endpoint = matches!(function.kind, FunctionKind::Endpoint | FunctionKind::Virtual);
        let first = if is_endpoint { Some(Saved::read(&config, &function.capabilities)?) } else { None };
        // Above a virtual function is its physical one.
        let above = function.key.parent().filter(|_| function.kind != FunctionKind::Virtual);
        let bridge = above.and_then(|key| found.function(key)).map(|bridge| bridge.sbdf);
        Ok(Self {
            space,
            function: function.sbdf,
            identity,
            capabilities: function.capabilities,
            bridge,
            first,
            unfinished: Tried::new(None),
            delay,
            resets: true,
            in_transition: AtomicBool::new(false),
            last: AtomicU8::new(0),
        })
    }

    /// The same without a reset, for a function that the caller knows to carry nothing over from one owner to the next. A
    /// function that has no method of being reset cannot be given to a second owner otherwise: its hook fails.
    #[must_use]
    pub const fn without_reset(mut self) -> Self {
        self.resets = false;
        self
    }

    /// Whether the function is between owners: from the beginning of `quiesce` until a reset was successful. A guest's
    /// writes must not reach it ([`Phase::Transition`](control::Phase)).
    pub fn in_transition(&self) -> bool {
        self.in_transition.load(Ordering::Acquire)
    }

    /// By which method the last reset was done, if there was one.
    pub fn last_reset(&self) -> Option<ResetMethod> {
        let index = usize::from(self.last.load(Ordering::Relaxed)).checked_sub(1)?;
        ResetMethod::ALL.get(index).copied()
    }

    fn config(&self) -> Result<FunctionConfig<'_, C>, ConfigError> {
        FunctionConfig::open(&self.space, self.function, self.identity)
    }

    fn make_quiet(&self) -> Result<(), ControlError> {
        let config = self.config()?;
        let mut quiesce = Quiesce::begin(&config, &self.capabilities, STEPS)?;
        while quiesce.step(&config)? == Progress::Waiting {
            self.delay.pass(STEP);
        }
        control::turn_translation_services_off(&config, &self.capabilities)
    }

    fn reset_by_any(&self, first: &Saved) -> Result<(), ControlError> {
        let config = self.config()?;
        let function = self.function;
        control::check_numbering(&config, &self.capabilities)?;
        let unfinished = *self.unfinished.lock();
        let saved = match unfinished {
            Some(saved) => saved,
            None => Saved::read(&config, &self.capabilities)?.with_controls_of(first),
        };
        // Going to D0 may lose the addresses already.
        *self.unfinished.lock() = Some(saved);
        if let Some(time) = control::power_up(&config, &self.capabilities)? {
            self.delay.pass(time);
            config.still_present()?;
        }
        let mut result = Err(ControlError::NoReset { function });
        for (place, method) in (1..).zip(ResetMethod::ALL) {
            // A function that does not answer can be reset by its bus only.
            if !matches!(result, Err(ControlError::NoReset { .. })) && method != ResetMethod::Bus {
                continue;
            }
            match self.reset_by(method, &config, saved) {
                Ok(()) => {
                    *self.unfinished.lock() = None;
                    self.last.store(place, Ordering::Relaxed);
                    return Ok(());
                }
                // What stood in the way before is the better reason.
                Err(ControlError::NoReset { .. }) => {}
                Err(error @ ControlError::ResetTimeout { .. }) => result = Err(error),
                Err(error) => return Err(error),
            }
        }
        result
    }

    fn reset_by(&self, method: ResetMethod, config: &FunctionConfig<'_, C>, saved: Saved) -> Result<(), ControlError> {
        let mut reset = Reset::begin_saved(method, config, &self.capabilities, self.bridge, saved, STEPS)?;
        loop {
            self.delay.pass(reset.delay());
            if reset.step(&self.space)? == Progress::Done {
                return Ok(());
            }
        }
    }
}

impl<C: ConfigSpace + Send + Sync + fmt::Debug> DeviceHooks for FunctionHooks<C> {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        if self.first.is_none() {
            return Ok(());
        }
        self.in_transition.store(true, Ordering::Release);
        self.make_quiet().map_err(|error| told(context, error))
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        if let Some(first) = self.first.as_ref().filter(|_| self.resets) {
            self.reset_by_any(first).map_err(|error| told(context, error))?;
        }
        self.in_transition.store(false, Ordering::Release);
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}

/// The error in a hook's words; the log has it in full.
fn told(context: &HookContext<'_>, error: ControlError) -> HookError {
    log::warn!("{}: {error}", context.device.label());
    HookError(error.short())
}

/// Between two looks at something that takes time.
const STEP: Micros = Micros::from_millis(1);
/// A second in all.
const STEPS: u32 = 1000;
