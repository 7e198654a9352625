//! The end of a sequence: all is removed, and all must be free again (contract ).

use iommu_assign::assign::{Device, DeviceKey, DeviceSpec, Error, Label, Source, Stream, StreamId, StreamMask};

use super::{Board, Running, Violation, World};
use crate::Stage2Tables;
use crate::op::{Guest, Op, Sheet, Side, Slot};
use crate::specification::{After, Lacking, Outcome, Refusal, Specification};

impl World<'_> {
    /// Removes everything, and sees that every entry and bank can be had again.
    ///
    /// # Errors
    ///
    /// What cannot be removed, or is not free afterwards.
    pub fn finish(mut self) -> Result<(), Violation> {
        let mut ending: Vec<Op> = Side::ALL.map(Op::Heal).into_iter().chain(Side::ALL.map(Op::RestorePower)).collect();
        ending.extend(Slot::ALL.map(Op::Abandon));
        // What is on its way out keeps its key, for which an add in the queue waits.
        let going = |slot: &Slot| self.states.iter().any(|state| state.is_going(*slot));
        ending.extend(Slot::ALL.into_iter().rev().filter(going).map(Op::Remove));
        let waiting = self.states.iter().map(Specification::waiting).max().unwrap_or(0);
        ending.extend(std::iter::repeat_n(Op::Work, waiting));
        ending.push(Op::Pull);
        ending.extend(Sheet::ALL.map(Op::Revert));
        ending.extend(Slot::ALL.into_iter().rev().map(Op::Remove));
        ending.extend(Guest::ALL.map(Op::Destroy));
        let leaving = Side::ALL.into_iter().filter(|side| self.states.iter().any(|state| state.is_leaving(*side)));
        ending.extend(leaving.map(Op::ForceUnregister));
        ending.extend(Side::ALL.map(Op::Register));
        for op in ending {
            let outcome = self.run(op)?;
            let is_gone = matches!(outcome, Outcome::Done | Outcome::Removed(_) | Outcome::Skipped)
                || matches!(outcome, Outcome::Worked(..) | Outcome::Idle(0) | Outcome::Each(_))
                || outcome == Outcome::refused(Refusal::NotFound)
                || outcome == Outcome::refused(Refusal::Gone)
                || outcome == Outcome::refused(Refusal::AlreadyRegistered)
                || matches!(outcome, Outcome::Failed(Refusal::ProviderGone(_) | Refusal::Removed, After::Removed));
            if !is_gone {
                return Err(self.violation(format!("A-4: at the end, {op} comes to {outcome:?}")));
            }
        }
        if !self.nothing_has_come() {
            return Err(self.violation("A-3: a card or an overlay is there at the end".into()));
        }
        for side in Side::ALL {
            self.use_up(side).map_err(|what| self.violation(format!("A-3: SMMU {side:?}: {what}")))?;
        }
        Ok(())
    }

    /// As many devices as there are entries, as many domains as there are banks, and not one more.
    fn use_up(&mut self, side: Side) -> Result<(), String> {
        let part = self.board.part(side);
        // Where a stream ID is an index, there is nothing to run out of.
        let entries = if self.board == Board::Indexing { part.banks } else { part.entries };
        let mut fillers = Vec::new();
        for number in 0..=entries {
            match self.filler(side, number) {
                Ok(device) => fillers.push(device),
                Err(error) if number == entries => expect(&error, Refusal::Exhausted(side, Lacking::Entries))?,
                Err(error) => return Err(format!("only {number} of {entries} entries are free: {error}")),
            }
        }
        let mut used: Vec<Running> = Vec::new();
        for (number, device) in fillers.iter().enumerate().take(part.banks.saturating_add(1)) {
            let pool = 0x9000_0000_u64.wrapping_add((number as u64) << 20);
            let tables = Stage2Tables::new(&self.machine, pool, 40, 40);
            let label = Label::from(format!("filler {number}").as_str());
            let domain = self.service.create_domain(label, tables.stage2()).map_err(|error| error.to_string())?;
            match self.service.assign(device, &domain) {
                Ok(()) => {}
                Err(error) if number == part.banks => expect(&error, Refusal::Exhausted(side, Lacking::Banks))?,
                Err(error) => return Err(format!("only {number} of {} banks are free: {error}", part.banks)),
            }
            used.push(Running { domain, tables, last: false });
        }
        for device in fillers {
            self.service.remove(device.key()).map_err(|error| error.to_string())?;
        }
        for running in used {
            self.service.destroy_domain(&running.domain).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// A device whose stream merges with no other's.
    fn filler(&self, side: Side, number: usize) -> Result<Device, Error> {
        let id = u32::try_from(number).unwrap_or(u32::MAX);
        let stream = Stream::new(side.key(), StreamId::new(id), StreamMask::NONE);
        let label = Label::from(format!("filler {number}").as_str());
        let key = DeviceKey::new(Source::Dt, 0x1000_u128.wrapping_add(number as u128));
        self.service.add(DeviceSpec::new(key, label, vec![stream]))
    }
}

fn expect(error: &Error, wanted: Refusal) -> Result<(), String> {
    if Refusal::from(&error.cause) == wanted { Ok(()) } else { Err(format!("refused for another reason: {error}")) }
}
