//! Back to fault, and the end of a domain.
//!
//! # Locking
//!
//! `StreamMap` to put entries in fault, and once more when the drain has ended, with `Masters` around it where an entry is to
//! be refitted. `TlbSync` to post. None while a status is polled (contract C-14).

use super::drain::Drain;
use crate::assign::{DeviceId, DomainId, IommuError, Streams};
use crate::smmu::bank::banks::{Bank, BankState};
use crate::smmu::bank::tlb::SyncTimeout;
use crate::smmu::hardware::Registers;
use crate::smmu::instance::{Shadow, Smmu, timed_out};
use crate::smmu::stream::number_set::Set;
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Watch, pause};

/// An entry did not take FAULT (read-back mode only).
const STUCK: IommuError = IommuError::WriteLost { register: "S2CR" };

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Puts devices in fault, drains, and retires the banks that no device uses any more.
    pub(in crate::smmu) fn block_devices(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
    ) -> Result<Streams, IommuError> {
        // To fault, and the invalidation behind that.
        let (mut drain, mut lost) = (Drain::default(), false);
        let (ticket, owes) = {
            let mut guard = self.shadow.lock(held);
            let (shadow, held) = guard.split();
            let Shadow { entries, users, banks } = shadow;
            let members = users.all_of(devices);
            entries.settle(self.tlb.completed());
            let owes = !entries.owing.is_empty() && entries.owed(members.clone().entries()).is_some();
            for user in members.clone() {
                lost |= !self.detach(entries, banks, user, &mut drain);
            }
            if drain.banks.is_empty() && !owes {
                return if lost { Err(STUCK) } else { Ok(entries.streams(members.entries())) };
            }
            let posts = !drain.banks.is_empty();
            let ticket = posts.then(|| self.post_drain(held, entries, banks, &mut drain));
            (ticket, owes)
        };
        // Wait, then retire the banks.
        let drained = ticket.map_or(Ok(None), |ticket| self.drain(held, &drain, ticket, devices));
        let streams = match drained {
            Ok(Some(streams)) => streams,
            _ => self.refit_all(held, devices),
        };
        drained?;
        if owes {
            self.finish_owed(held, devices)?;
        }
        if lost { Err(STUCK) } else { Ok(streams) }
    }

    /// Fits entries that a device has left, and that are in fault now, to what their users have.
    #[cold]
    #[inline(never)]
    fn refit_all(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Streams {
        self.placing(held, |placing, _, _| {
            let idle = placing.entries.surplus & !placing.entries.live;
            let changed = idle.each().fold(Set::EMPTY, |changed, number| changed | placing.refit(number));
            // A mismatch leaves an entry in fault, which an audit names.
            let _ = placing.entries.write(&self.part, changed);
            placing.entries.streams(placing.users.all_of(devices).entries())
        })
    }

    /// After `Ok` the hardware does not read the domain's tables any more.
    pub(in crate::smmu) fn forget_domain(
        &self,
        held: &mut Held<'_, Unlocked>,
        domain: DomainId,
    ) -> Result<(), IommuError> {
        {
            let shadow = self.shadow.lock(held);
            let in_use = |bank: &Bank| {
                let planned = bank.next.is_some_and(|next| next.domain == domain);
                let used = matches!(bank.state, BankState::Live(_) | BankState::Reserved(_)) && !bank.is_idle();
                planned || (used && bank.domain() == Some(domain))
            };
            if shadow.banks.each().any(|(_, bank)| in_use(bank)) {
                return Err(IommuError::InUse);
            }
        }
        self.finish_drains(held, |_, bank| bank.domain() == Some(domain), None)?;
        self.await_drains(held, domain).map_err(timed_out)
    }

    /// Waits until no bank of `domain` may walk the domain's tables any more: another call may be finishing its drain just
    /// now, or an entry may name it for good (read-back mode).
    fn await_drains(&self, held: &mut Held<'_, Unlocked>, domain: DomainId) -> Result<(), SyncTimeout> {
        let port = self.port();
        let walks = |bank: &Bank| match bank.state {
            BankState::Draining(theirs) => theirs == domain,
            BankState::Poisoned(theirs, _) => theirs == domain && (bank.is_poisoned() || port.walks_on(bank)),
            BankState::Free | BankState::Reserved(_) | BankState::Live(_) => false,
        };
        let mut watch = Watch::<P>::start(self.part.config.looks());
        loop {
            let is_last = watch.is_last();
            if !self.shadow.lock(held).banks.each().any(|(_, bank)| walks(bank)) {
                return Ok(());
            }
            if is_last {
                return Err(SyncTimeout(watch.waited()));
            }
            pause();
        }
    }
}
