//! Power lost and regained, and the end: suspend, resume, close, crash.
//!
//! # Locking
//!
//! [`Gate`](super::gate::Gate) sees to it that nobody is inside while the instance changes; the stream map's lock is
//! taken all the same where the map is read. `crash` takes none.

use super::gate::{Changing, Mode, Purpose};
use super::hardware::registers::{ANY_VALUE, gr0};
use super::hardware::{ProbeError, Registers};
use super::instance::{Shadow, Smmu, timed_out};
use super::op::enrol::written;
use super::reset;
use crate::assign::{IommuError, IommuPower, Patience};
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Watch};

impl<P: Platform, R: Registers> IommuPower for Smmu<P, R> {
    fn hold_power(&self) -> Result<(), IommuError> {
        let inside = self.enter(Purpose::Release)?;
        // A suspended instance may be resumed before the power is given back. One that is gone touches no register any more: it
        // makes no difference that what is given back for it then was another's.
        if inside.mode == Mode::Gone { Ok(()) } else { self.get_power(&mut Held::enter()) }
    }

    fn release_power(&self) {
        self.power.give(&mut Held::enter());
    }

    /// Nothing is written: the integrator takes the power away.
    fn suspend(&self) -> Result<(), IommuError> {
        let changing = self.gate.change::<P>(Mode::Running, self.part.config.looks())?;
        self.part.registers.set_dark(true);
        changing.finish(Mode::Suspended);
        Ok(())
    }

    fn resume(&self) -> Result<(), IommuError> {
        let held = &mut Held::enter();
        let changing = self.gate.change::<P>(Mode::Suspended, self.part.config.looks())?;
        self.get_power(held)?;
        self.part.registers.set_dark(false);
        let replayed = self.replay(held);
        if replayed.is_err() {
            // It may be enabled, with a part of its entries. What does not hold now is not there to be believed.
            reset::guard(&self.part);
            let _ = self.stop(held);
            self.part.registers.set_dark(true);
        }
        self.power.give(held);
        replayed?;
        changing.finish(Mode::Running);
        Ok(())
    }

    /// Out of service. Its devices have gone; what firmware reserved goes now, and drains that are owed are finished.
    fn retire(&self) -> Result<(), IommuError> {
        let held = &mut Held::enter();
        match self.gate.mode() {
            Mode::Running => loop {
                if self.shadow.lock(held).banks.each().any(|(_, bank)| bank.domain().is_some()) {
                    self.powered(held, Purpose::Release, |held| {
                        self.block_reserved(held)?;
                        self.finish_drains(held, |_, _| true, None)
                    })?;
                }
                let changing = self.gate.change::<P>(Mode::Running, self.part.config.looks())?;
                // A call that has just left may have waited for its drain in vain.
                if !self.shadow.lock(held).banks.each().any(|(_, bank)| bank.is_poisoned()) {
                    self.numb(held, changing);
                    return Ok(());
                }
            },
            // Nothing says what a unit that was suspended does when its power returns: it is put in fault first.
            Mode::Suspended => {
                self.resume()?;
                self.retire()
            }
            // A forced end has begun already, and is to be finished as that.
            Mode::Leaving => self.close(),
            Mode::Changing => Err(IommuError::Busy),
            Mode::Gone => Ok(()),
        }
    }

    fn close(&self) -> Result<(), IommuError> {
        let held = &mut Held::enter();
        loop {
            match self.gate.close::<P>(self.part.config.looks())? {
                Mode::Gone => return Ok(()),
                // Nothing says what a unit that was suspended does when its power returns: it is put in fault first.
                Mode::Suspended => self.resume()?,
                _ => break,
            }
        }
        let changing = self.gate.change::<P>(Mode::Leaving, self.part.config.looks())?;
        self.get_power(held)?;
        let stopped = self.stop(held);
        self.power.give(held);
        stopped?;
        self.numb(held, changing);
        Ok(())
    }

    /// `stop` without a lock, and without a look at the shadow: another CPU may have died in the middle of anything.
    fn crash(&self) -> Result<(), IommuError> {
        // It faults everything, and its registers may be another driver's.
        if self.gate.mode() == Mode::Gone {
            return Ok(());
        }
        // An access to what has no power can hang the bus, and with it all that is still to be stopped.
        if !self.power.take_if_on(&mut Held::enter()) {
            return Err(IommuError::NoPower("it is off, and a crash cannot switch it on"));
        }
        let was_dark = self.part.registers.is_dark();
        self.part.registers.set_dark(false);
        let holds = self.fault_all();
        if was_dark {
            // Nothing says whether a suspended unit was enabled: it may have come out of reset.
            reset::rewrite_control(&self.part, false);
        }
        P::barrier();
        self.part.registers.write32(gr0::TLBIALLNSNH, ANY_VALUE);
        self.part.registers.write32(gr0::STLBGSYNC, ANY_VALUE);
        let mut watch = Watch::<P>::start(self.part.config.bound(Patience::Atomic));
        loop {
            let is_last = watch.is_last();
            if self.part.registers.status(gr0::STLBGSTATUS) & 1 == 0 {
                return written(holds);
            }
            if is_last {
                return Err(IommuError::SyncTimeout(watch.waited()));
            }
        }
    }
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// The reset, then everything that the shadow says, in the order of its making; the enabling write last.
    fn replay(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let found = reset::reset(held, &self.part, &self.tlb, &[]).map_err(not_resumed)?;
        if found.widths != self.part.widths || found.spelling != self.part.spelling {
            return Err(IommuError::NotResumed("its stream-map entries are not what they were"));
        }
        {
            let mut guard = self.shadow.lock(held);
            let (Shadow { entries, banks, .. }, held) = guard.split();
            // The reset has drained all: what was poisoned is free, or goes on to the domain that it was promised to.
            for index in self.port().reset(held, banks).each() {
                self.port().reprogram(held, banks, index).map_err(|register| IommuError::WriteLost { register })?;
            }
            // What is only reserved is written when its device is enrolled.
            written(entries.replay(&self.part))?;
        }
        reset::enable::<P, R>(&self.part, self.faults.reports(None)).map_err(not_resumed)
    }

    /// No register is touched from now on (contract C-9).
    fn numb(&self, held: &mut Held<'_, Unlocked>, changing: Changing<'_>) {
        self.part.registers.set_dark(true);
        self.faults.forget_banks();
        changing.finish(Mode::Gone);
        self.forget_reserved(held);
    }

    /// Every entry to fault, and what was in flight drained. Clients stay enabled: sCR0.CLIENTPD = 1 would let all pass.
    fn stop(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let holds = self.fault_all();
        reset::invalidate_all(held, &self.part, &self.tlb).map_err(timed_out)?;
        written(holds)
    }

    /// Every entry to fault, those included that firmware made. Says whether they hold.
    fn fault_all(&self) -> bool {
        let reset = |number| self.part.reset_action(number, self.part.spelling);
        // Each of them, also after one that did not hold.
        (0..self.part.geometry.entries).filter(|number| !reset(*number)).count() == 0
    }
}

const fn not_resumed(error: ProbeError) -> IommuError {
    match error {
        ProbeError::SyncTimeout { waited, .. } => IommuError::SyncTimeout(waited),
        ProbeError::LiveInOtherMode(_) => IommuError::NotResumed("it came back enabled in another mode"),
        ProbeError::ControlNotTaken { .. } => IommuError::NotResumed("sCR0 or sCR2 did not take what was written"),
        _ => IommuError::NotResumed("the reset failed"),
    }
}
