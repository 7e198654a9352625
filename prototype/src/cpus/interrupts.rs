//! Interrupts of a CPU that is a thread: a mask, a timer, and the line of all SMMUs.
//!
//! A thread is not interrupted just anywhere. It takes what is pending after every lock that it lets go, before every poll, while
//! it waits, and after an access that faults. So a handler runs on the CPU's own thread, in the middle of the operation that it
//! interrupts, and never under a lock, as on hardware. Interrupts between any two instructions only the bare-metal image has.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iommu_assign::sync::{Interrupts, Micros};

/// The mask of the CPU that calls.
#[derive(Debug)]
pub(super) enum Mask {}

impl Interrupts for Mask {
    /// Whether they were masked.
    type State = bool;

    fn save_and_mask() -> bool {
        CPU.with(|cpu| cpu.masked.replace(true))
    }

    fn restore(state: bool) {
        CPU.with(|cpu| cpu.masked.set(state));
        take();
    }
}

/// The line on which SMMUs report faults: it may be up.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<AtomicBool>);

impl Line {
    pub(super) fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn acknowledge(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::SeqCst)
    }
}

/// The handlers of a CPU.
pub(super) struct Handlers {
    /// The timer's.
    pub(super) tick: Box<dyn Fn()>,
    /// The SMMUs', on the CPU that their line is routed to.
    pub(super) faults: Option<(Line, Box<dyn Fn()>)>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handlers")
    }
}

struct Cpu {
    number: Cell<usize>,
    masked: Cell<bool>,
    /// When the timer interrupts.
    due: Cell<Option<Instant>>,
    handlers: RefCell<Option<Rc<Handlers>>>,
}

thread_local! {
    static CPU: Cpu = const {
        Cpu { number: Cell::new(0), masked: Cell::new(false), due: Cell::new(None), handlers: RefCell::new(None) }
    };
}

/// The thread that calls is this CPU from here on, with these handlers.
pub(super) fn start(number: usize, handlers: Handlers) {
    CPU.with(|cpu| {
        cpu.number.set(number);
        cpu.handlers.replace(Some(Rc::new(handlers)));
    });
}

/// The thread that calls is no CPU any more.
pub(super) fn stop() {
    CPU.with(|cpu| {
        cpu.due.set(None);
        cpu.handlers.replace(None);
    });
}

/// The number of the CPU that calls.
pub(super) fn cpu() -> usize {
    CPU.with(|cpu| cpu.number.get())
}

/// Sets the timer of the CPU that calls, or turns it off.
pub(super) fn set_timer(span: Option<Micros>) {
    let due = span.and_then(|span| Instant::now().checked_add(Duration::from_micros(span.value())));
    CPU.with(|cpu| cpu.due.set(due));
}

/// Takes what is pending, unless interrupts are masked.
pub(super) fn take() {
    CPU.with(|cpu| {
        while !cpu.masked.get() {
            let Some(handlers) = cpu.handlers.borrow().clone() else { return };
            let is_due = cpu.due.get().is_some_and(|due| Instant::now() >= due);
            let faults = handlers.faults.as_ref().filter(|(line, _)| line.acknowledge());
            if !is_due && faults.is_none() {
                return;
            }
            cpu.masked.set(true);
            if is_due {
                cpu.due.set(None);
                (handlers.tick)();
            }
            if let Some((_, handler)) = faults {
                handler();
            }
            cpu.masked.set(false);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_interrupt_is_taken_when_the_outer_mask_ends() {
        let taken = Rc::new(Cell::new(0));
        let (line, count) = (Line::default(), taken.clone());
        let handler = Box::new(move || {
            // Masked in the handler, however often a lock is taken in it.
            Mask::restore(Mask::save_and_mask());
            count.set(count.get() + 1);
        });
        start(3, Handlers { tick: Box::new(|| ()), faults: Some((line.clone(), handler)) });
        let outer = Mask::save_and_mask();
        let inner = Mask::save_and_mask();
        line.raise();
        Mask::restore(inner);
        assert_eq!((cpu(), taken.get()), (3, 0));
        Mask::restore(outer);
        assert_eq!(taken.get(), 1);
        stop();
        line.raise();
        take();
        assert_eq!(taken.get(), 1);
    }
}
