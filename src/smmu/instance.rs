//! One SMMU instance: the driver's state, and what every operation does first.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::bank::banks::Banks;
use super::bank::context_bank::BankPort;
use super::bank::tlb::{SyncTimeout, Tlb};
use super::faults::fault_records::FaultRecords;
use super::gate::{Gate, Inside, Mode, Purpose};
use super::hardware::part::Part;
use super::hardware::{Geometry, Registers};
use super::stream::map::Entries;
use super::stream::masters::Masters;
use super::stream::user::Users;
use super::supply::Supply;
use crate::assign::IommuError;
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::levels;
use crate::sync::lock::Lock;
use crate::sync::order::{Held, Unlocked};

/// An SMMU that faults every stream but those that it was told to translate.
///
/// # Locking
///
/// `Masters` is shared by all instances; `StreamMap` and `TlbSync` are each instance's own. A stream map's lock is never held
/// together with another's (contract C-13), and no lock is held while a status register is polled (C-14).
pub struct Smmu<P: Platform, R: Registers> {
    pub(super) part: Part<R>,
    pub(super) masters: Arc<Masters<P>>,
    pub(super) shadow: Lock<levels::StreamMap, Shadow, P::Lock>,
    pub(super) tlb: Tlb<P>,
    /// The syncs of the banks; empty where banks have none.
    pub(super) bank_tlbs: Vec<Tlb<P>>,
    pub(super) faults: FaultRecords,
    pub(super) gate: Gate,
    pub(super) power: Supply,
    pub(super) notes: Notes,
}

/// What the lock of level `StreamMap` guards.
pub(super) struct Shadow {
    pub(super) entries: Entries,
    pub(super) users: Users,
    pub(super) banks: Banks,
}

/// What probe found odd and worked around (contract A-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notes {
    /// Firmware gives a region of another size than IDR1 says: bytes by firmware, bytes by IDR1 (quirk Q20).
    pub region: Option<(u64, u64)>,
    /// IDR0.CTTW says otherwise than firmware, which is believed (quirk Q19).
    pub coherency_differs: bool,
    /// Banks whose prefetcher is locked on (quirk Q3).
    pub prefetching: u8,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// What the ID registers say.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.part.geometry
    }

    /// What was odd at probe.
    #[must_use]
    pub const fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The registers, for a test or a tool that looks at them from outside.
    #[must_use]
    pub const fn registers(&self) -> &R {
        self.part.registers.raw()
    }

    pub(super) fn port(&self) -> BankPort<'_, P, R> {
        BankPort { part: &self.part, tlb: &self.tlb, faults: &self.faults }
    }

    /// Enters without touching a register.
    pub(super) fn enter(&self, purpose: Purpose) -> Result<Inside<'_>, IommuError> {
        self.gate.enter::<P>(purpose, || self.part.config.looks())
    }

    pub(super) fn get_power(&self, held: &mut Held<'_, Unlocked>) -> Result<(), IommuError> {
        self.power.take(held).map_err(|error| IommuError::NoPower(error.0))
    }

    /// Does something with the registers, between get and put of the power hook (contract S-5). Without power nothing has
    /// changed, in the shadow neither.
    ///
    /// On an instance that is out of service only what releases is done, in software, and says so (contract C-9).
    pub(super) fn powered<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        purpose: Purpose,
        act: impl FnOnce(&mut Held<'_, Unlocked>) -> Result<T, IommuError>,
    ) -> Result<T, IommuError> {
        let inside = self.enter(purpose)?;
        match inside.mode {
            Mode::Suspended => act(held),
            Mode::Gone => act(held).and(Err(IommuError::ProviderGone)),
            _ if broken!("power_after_change") => {
                let done = act(held);
                self.get_power(held)?;
                self.power.give(held);
                done
            }
            _ => {
                self.get_power(held)?;
                let done = act(held);
                self.power.give(held);
                done
            }
        }
    }
}

pub(super) const fn timed_out(timeout: SyncTimeout) -> IommuError {
    IommuError::SyncTimeout(timeout.0)
}

impl<P: Platform, R: Registers> fmt::Debug for Smmu<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Smmu({}, {:?})", self.part.key(), self.part.geometry)
    }
}
