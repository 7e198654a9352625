//! Power lost and regained, and the end: suspend, resume, close, crash.
//!
//! # Locking
//!
//! [`Gate`](super::gate::Gate) sees to it that nobody is inside while the instance changes; the stream map's lock is
//! taken all the same where the map is read. `crash` takes none.

use super::context::{Bank, BankState};
use super::gate::{Changing, Mode, Purpose};
use super::geometry::ProbeError;
use super::instance::Smmu;
use super::mmio::Registers;
use super::moves::timed_out;
use super::probe;
use super::registers::{ANY_VALUE, S2cr, gr0};
use crate::assign::{IommuError, Patience};
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Watch};

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Nothing is written: the integrator takes the power away.
    pub(super) fn go_dark(&self) -> Result<(), IommuError> {
        let changing = self.gate.change::<P>(Mode::Running, self.config.looks())?;
        self.registers.set_dark(true);
        changing.finish(Mode::Suspended);
        Ok(())
    }

    pub(super) fn come_back(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let changing = self.gate.change::<P>(Mode::Suspended, self.config.looks())?;
        self.power.call(held).get().map_err(|error| IommuError::NoPower(error.0))?;
        self.registers.set_dark(false);
        let replayed = self.replay(held);
        if replayed.is_err() {
            self.registers.set_dark(true);
        }
        self.power.call(held).put();
        replayed?;
        changing.finish(Mode::Running);
        Ok(())
    }

    /// The reset, then everything that the shadow says, in the order of its making; the enabling write last.
    fn replay(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let part = self.part();
        let found = probe::reset(held, &part, &self.tlb, &[]).map_err(not_resumed)?;
        if found.widths != self.widths || found.spelling != self.spelling {
            return Err(IommuError::NotResumed("its stream-map entries are not what they were"));
        }
        {
            let mut map = self.map.lock(held);
            for index in 0..self.geometry.banks {
                let Some(bank) = map.bank_mut(index) else { continue };
                *bank = Bank { on: false, stuck: false, left_on: None, ..*bank };
            }
            // The reset has drained all. A bank that is promised goes on to that.
            self.end_all_announced(&mut map);
            for index in 0..self.geometry.banks {
                let Some(bank) = map.bank_mut(index) else { continue };
                match bank.state {
                    BankState::Live(space) => {
                        let programmed = self.program_bank(&mut map, index, &space);
                        if let Some(bank) = map.bank_mut(index) {
                            // Also where it did not hold: its entries name it still, and the next resume tries again.
                            bank.state = BankState::Live(space);
                        }
                        programmed?;
                    }
                    BankState::Draining(_) | BankState::Poisoned(..) => {
                        *bank = Bank { state: BankState::Free, ..*bank }
                    }
                    BankState::Free | BankState::Reserved(_) => {}
                }
            }
            // What is only allotted is written when its device is enrolled.
            for (number, entry) in map.entries() {
                if let Some(cube) = entry.cube {
                    let mut holds = self.write_new_entry(number, cube);
                    if entry.action != S2cr::Fault {
                        holds &= self.write_s2cr(number, entry.action, true);
                    }
                    if !holds {
                        return Err(IommuError::WriteLost { register: "SMR or S2CR" });
                    }
                }
            }
        }
        probe::enable::<P, R>(&part, self.reports_enabled()).map_err(not_resumed)
    }

    pub(super) fn go_away(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let mode = self.gate.close::<P>(self.config.looks())?;
        if mode == Mode::Gone {
            return Ok(());
        }
        let changing = self.gate.change::<P>(mode, self.config.looks())?;
        if mode == Mode::Leaving {
            self.power.call(held).get().map_err(|error| IommuError::NoPower(error.0))?;
            let stopped = self.stop(held);
            self.power.call(held).put();
            stopped?;
        }
        self.numb(changing);
        Ok(())
    }

    /// Out of service without a register access: nothing is left that could translate.
    pub(super) fn step_down(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let mode = self.gate.try_enter(Purpose::Release).map_or_else(|mode| mode, |inside| inside.mode);
        match mode {
            Mode::Running | Mode::Suspended => {
                let changing = self.gate.change::<P>(mode, self.config.looks())?;
                self.numb(changing);
                Ok(())
            }
            // A forced end has begun already, and is to be finished as that.
            Mode::Leaving => self.go_away(held),
            Mode::Changing => Err(IommuError::Busy),
            Mode::Gone => Ok(()),
        }
    }

    /// No register is touched from now on (contract C-9).
    fn numb(&self, changing: Changing<'_>) {
        self.registers.set_dark(true);
        for slot in &self.bank_domains {
            slot.store(0, core::sync::atomic::Ordering::Release);
        }
        changing.finish(Mode::Gone);
    }

    /// Every entry to fault, and what was in flight drained. Clients stay enabled: sCR0.CLIENTPD = 1 would let all pass.
    fn stop(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        let mut holds = true;
        {
            let map = self.map.lock(held);
            for (number, _) in map.entries().filter(|(_, entry)| entry.cube.is_some()) {
                holds &= self.write_s2cr(number, S2cr::Fault, true);
            }
        }
        self.flush_everything(held).map_err(timed_out)?;
        if holds { Ok(()) } else { Err(IommuError::WriteLost { register: "S2CR" }) }
    }

    /// `stop` without a lock, and without a look at the shadow: another CPU may have died in the middle of anything.
    pub(super) fn stop_now(&self) -> Result<(), IommuError> {
        if self.registers.is_dark() {
            return Ok(());
        }
        // An access to what has no power can hang the bus, and with it all that is still to be stopped.
        if !self.power.call(&mut Held::enter()).is_on() {
            return Err(IommuError::NoPower("it is off, and a crash cannot switch it on"));
        }
        for entry in 0..self.geometry.entries {
            // With extended IDs this takes the entry's validity too: an unmatched stream faults as well.
            self.registers.write32(gr0::s2cr(entry), self.spelling.write(S2cr::Fault, false));
        }
        P::barrier();
        self.registers.write32(gr0::TLBIALLNSNH, ANY_VALUE);
        self.registers.write32(gr0::STLBGSYNC, ANY_VALUE);
        let mut watch = Watch::<P>::start(self.config.bound(Patience::Atomic));
        loop {
            let is_last = watch.is_last();
            if self.registers.status(gr0::STLBGSTATUS) & 1 == 0 {
                return Ok(());
            }
            if is_last {
                return Err(IommuError::SyncTimeout(watch.waited()));
            }
        }
    }
}

const fn not_resumed(error: ProbeError) -> IommuError {
    match error {
        ProbeError::SyncTimeout { waited, .. } => IommuError::SyncTimeout(waited),
        ProbeError::LiveInOtherMode(_) => IommuError::NotResumed("it came back enabled in another mode"),
        ProbeError::ControlNotTaken { .. } => IommuError::NotResumed("sCR0 did not take what was written"),
        _ => IommuError::NotResumed("the reset failed"),
    }
}
