//! The one trait between the assignment layer and an IOMMU driver.
//!
//! A device's way through it: [`new_master`](Iommu::new_master) makes what the driver keeps of it;
//! [`publish`](Iommu::publish) makes its streams known and says whom they meet; [`allot`](Iommu::allot) keeps what the
//! streams need; [`enrol`](Iommu::enrol) writes it, in fault; [`plan`](Iommu::plan) reserves all that a move into a domain
//! can lack; [`install`](Iommu::install) moves; [`block`](Iommu::block) brings back to fault, and [`cut`](Iommu::cut) too
//! where the next call comes soon; [`withdraw`](Iommu::withdraw) takes everything back.
//!
//! # Locking
//!
//! The service holds no lock over any method (contract C-3). A driver is sound on its own for any caller: it takes its
//! own locks, and answers [`IommuError::Busy`] where two callers would change the same device at once.

use alloc::boxed::Box;
use core::any::Any;
use core::fmt;

use super::fault::{FaultAnswer, FaultCounts, FaultLine, RawFault};
use super::identity::{DeviceId, DomainId};
use super::space::{AddressSpace, Stage2Limits};
use super::spec::{IommuKey, Stream, StreamId};

mod error;

pub use error::{Difference, IommuError, Resource, Usage};

/// A driver for one IOMMU instance.
///
/// # Context
///
/// Waiting context, but for [`take_faults`](Iommu::take_faults), which an interrupt handler calls. Any method may be
/// called from several CPUs at once.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// The instance's name.
    fn key(&self) -> IommuKey;

    /// What tables the instance can follow.
    fn limits(&self) -> Stage2Limits;

    /// Makes what the driver keeps of a device with `streams` here, and all memory that it takes to bring it in. Nobody
    /// hears of it yet.
    ///
    /// Devices with the same `kin` may share entries though their streams do not meet: they are members of one group
    /// ([`DeviceSpec::merge_with_group`](super::DeviceSpec::merge_with_group)). Where the driver does not merge entries, or
    /// while one of them is not in fault, this has no effect.
    ///
    /// # Errors
    ///
    /// [`IommuError::TooWide`] when an ID or mask has bits that the hardware does not keep, [`IommuError::OutOfMemory`],
    /// [`IommuError::ProviderGone`].
    fn new_master(&self, device: DeviceId, streams: &[Stream], kin: Option<u64>) -> Result<NewMaster, IommuError>;

    /// Makes the device known, without a register access, and says whom its streams meet: of devices that share an entry
    /// at least one, and of each entry that is live at least one of those that keep it live.
    ///
    /// # Errors
    ///
    /// [`IommuError::Known`] when the device is published already, or this was; [`IommuError::Unknown`] for what another
    /// instance made, [`IommuError::OutOfMemory`], [`IommuError::ProviderGone`]. Nothing has changed then.
    fn publish(&self, master: &mut NewMaster, met: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError>;

    /// Keeps the entries that the device needs, without a register access. Returns how many it will use.
    ///
    /// What is kept is the device's until it is enrolled, or `master` is dropped.
    ///
    /// # Errors
    ///
    /// [`IommuError::Exhausted`] when the entries do not suffice, [`IommuError::OutOfMemory`],
    /// [`IommuError::Unknown`], [`IommuError::ProviderGone`]: nothing is kept then (contract ).
    fn allot(&self, master: &mut NewMaster) -> Result<usize, IommuError>;

    /// Writes the entries that the device was allotted, and leaves its streams in fault.
    ///
    /// # Errors
    ///
    /// [`IommuError::Unknown`] where the device was withdrawn, [`IommuError::ProviderGone`], [`IommuError::NoPower`],
    /// [`IommuError::WriteLost`]. What [`allot`](Self::allot) says only where it was not called before, or where a caller has changed the device's
    /// group in between, or has brought IDs that the driver was told nobody has. Nothing is written then, but for
    /// [`IommuError::WriteLost`]: the device, and of its group whoever was to share a new entry, has none then, and gets
    /// it with the next move.
    fn enrol(&self, master: &mut NewMaster) -> Result<(), IommuError>;

    /// Tells which of `devices` use the same entries, over any number of steps: behind the first of each such lot, each
    /// other one. Devices that are not known here share nothing.
    ///
    /// # Errors
    ///
    /// [`IommuError::OutOfMemory`]: not all were told, or none.
    fn sharing(&self, devices: &[DeviceId], tell: &mut dyn FnMut(Sharing)) -> Result<(), IommuError>;

    /// Reserves all that moving `devices` into `space` can lack. Writes nothing.
    ///
    /// A context that this very move frees counts (contract A-1). Says whose DMA would go `along`: each of `devices`, with
    /// each other device that shares an entry with it (contract I-11).
    ///
    /// # Errors
    ///
    /// [`IommuError::Incompatible`], [`IommuError::Exhausted`], [`IommuError::Busy`], [`IommuError::SyncTimeout`]
    /// where an earlier drain of a device has still not completed: nothing is reserved then.
    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
    ) -> Result<Prepared, IommuError>;

    /// Finishes what earlier drains left unconfirmed: posts what is missing and waits for it, within the usual bound.
    /// Says whether anything that [`plan`](Self::plan) had to refuse has become free. The service calls it where `plan`
    /// said [`Exhausted`](IommuError::Exhausted), before it believes it (contract A-4).
    ///
    /// Costs no register access where nothing is left unconfirmed.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: the hardware does not confirm it now either, and all stays as it was.
    fn reclaim(&self) -> Result<bool, IommuError> {
        Ok(false)
    }

    /// Gives back what `plan` reserved for `devices`: without power too, then what needs registers is left to the next
    /// [`reclaim`](Self::reclaim), [`flush`](Self::flush) or [`forget`](Self::forget).
    fn abandon(&self, devices: &[DeviceId], prepared: Prepared);

    /// Moves `devices`, which are in fault, into the space that was planned for them.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`] when the context that was to be reused did not drain, [`IommuError::Busy`] when somebody
    /// has come in between whom the plan does not know, [`IommuError::NoPower`], [`IommuError::ProviderGone`],
    /// [`IommuError::WriteLost`]: the devices stay in fault and the plan is given back.
    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError>;

    /// Puts `devices` in fault, invalidates, and waits until what was in flight has left; retires contexts that have
    /// become unused (contract I-6, I-7).
    ///
    /// Devices that are in fault already are left alone, at no cost. Where devices outside `devices` keep an entry live
    /// that matches their streams, each of those is told once.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: the devices are in fault, but the hardware has not said that it drained; what it
    /// may still use is poisoned (contract I-8). [`IommuError::WriteLost`]: an entry did not take fault.
    /// [`IommuError::OutOfMemory`]: all is done, but not all could be told.
    fn block(&self, devices: &[DeviceId], tell: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError>;

    /// [`block`](Self::block), but that what the drain ends with (contexts that have become unused are retired) may be left
    /// to what comes next for these devices: [`install`](Self::install), [`abandon`](Self::abandon),
    /// [`withdraw`](Self::withdraw) or `block`. So `cut` is for whoever calls one of these soon.
    ///
    /// When it returns the devices are in fault, and what was in flight has left, as after `block`. What is left open is in
    /// nobody's way: whoever else needs it ends it.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`], [`IommuError::WriteLost`], as for `block`.
    fn cut(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        match self.block(devices, &mut |_| ()) {
            // Who keeps an entry live was not asked for.
            Err(IommuError::OutOfMemory) => Ok(()),
            blocked => blocked,
        }
    }

    /// Forgets `device`, which is in fault: its entries, where it was the last to use them, become free. Tells who keeps
    /// an entry live that matches its streams, and what [`sharing`](Self::sharing) says of `rest`, the devices of its
    /// group that stay, from now on.
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] when the device is still in a domain: nothing is changed. [`IommuError::OutOfMemory`]: it is
    /// forgotten, but not all could be told.
    fn withdraw(&self, device: DeviceId, rest: &[DeviceId], tell: &mut dyn FnMut(Withdrawn)) -> Result<(), IommuError>;

    /// Removes what the instance has cached of `domain`. A domain without a context here costs no register access.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: stale translations may still be in use.
    fn flush(&self, domain: DomainId) -> Result<(), IommuError>;

    /// [`flush`](Self::flush) of a domain that ends: no device is in it, and after `Ok` its tables, the root included, are
    /// not read any more and may become somebody else's memory (contract I-8).
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: the tables may still be read.
    fn forget(&self, domain: DomainId) -> Result<(), IommuError> {
        self.flush(domain)
    }

    /// [`flush`](Self::flush) of part of the domain's addresses, by page where the hardware can and it is worth it, with
    /// the bound on polls that the caller's context allows.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: stale translations may still be in use.
    ///
    /// # Context
    ///
    /// With [`Patience::Atomic`] atomic context, and interrupts where the platform's lock masks them.
    fn flush_range(&self, domain: DomainId, range: &FlushRange, patience: Patience) -> Result<(), IommuError> {
        let _ = (range, patience);
        self.flush(domain)
    }

    /// Reads, clears and reports what faulted on `line`, and says whether the line should be masked.
    ///
    /// Records beyond a stream's limit are counted, not reported.
    ///
    /// # Context
    ///
    /// Interrupt handlers call it: it takes no lock, allocates and frees nothing (contract C-16). `report` runs in the
    /// same context.
    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer;

    /// Who owns a stream ID here: the device whose streams contain it.
    fn owner_of(&self, stream: StreamId) -> Option<DeviceId>;

    /// Compares what the driver believes with the registers and with its own counts. Changes nothing.
    fn audit(&self, report: &mut dyn FnMut(Difference));

    // --- faults, beyond one record ---

    /// Lets faults raise interrupts: the integrator's handlers stand on all of the instance's lines (contract S-4).
    ///
    /// # Errors
    ///
    /// [`IommuError::Unsupported`], [`IommuError::ProviderGone`].
    fn enable_reports(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// The worker's part of fault handling: names every stream that has stormed since the last call with its number
    /// of faults, and starts all streams' counts anew. What it names should be quarantined before its line is unmasked.
    fn tend_faults(&self, storming: &mut dyn FnMut(StreamId, u32)) {
        let _ = storming;
    }

    /// What was counted instead of being reported.
    fn fault_counts(&self) -> FaultCounts {
        FaultCounts::default()
    }

    /// Streams that no entry matched, with how often they came. At most as many as the instance has room for; further
    /// ones are in [`FaultCounts::unknown_elsewhere`].
    fn unknown_streams(&self, report: &mut dyn FnMut(StreamId, u32)) {
        let _ = report;
    }

    /// The domains whose live contexts report on `line`: with more than one, a storm of one is heard by all.
    fn coupled(&self, line: FaultLine, report: &mut dyn FnMut(DomainId)) {
        let _ = (line, report);
    }

    // --- limits, power, end of life ---

    /// Who uses what there is a fixed number of (contract A-5).
    fn usage(&self, report: &mut dyn FnMut(Usage)) {
        let _ = report;
    }

    /// The instance is about to lose its power: from now on its registers are not touched, and what changes is kept for
    /// [`resume`](Self::resume). All of its masters must have been stopped (contract S-5).
    ///
    /// New calls wait outside while those in flight are waited for, within the usual bound (contract C-1).
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] where a call in flight does not end in that time: it goes on in service.
    fn suspend(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// Resets the instance and brings back what it translated, with what changed meanwhile.
    ///
    /// # Errors
    ///
    /// [`IommuError::NotResumed`]: it stays suspended, and every stream faults or the instance is not enabled.
    fn resume(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// Takes the instance, which has neither a device nor a drain left, out of service for good: no register is touched
    /// from now on, and what comes late gets [`IommuError::ProviderGone`] (contract C-9).
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] while a call is in flight: it stays in service.
    fn retire(&self) -> Result<(), IommuError> {
        Ok(())
    }

    /// Takes the instance out of service for good: every stream faults, with clients enabled, and no register is
    /// touched afterwards. What acquires or flushes gets [`IommuError::ProviderGone`] from now on; what releases is done
    /// in software and says the same (contract C-9, S-8).
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] where a call in flight does not end within the usual bound: nothing that acquires gets in, call
    /// again. [`IommuError::SyncTimeout`]: the same, and every stream faults.
    fn close(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// Every stream to fault, for a hypervisor that is crashing: takes no lock, minds no other call, and polls a
    /// bounded number of times (contract S-8). The driver's own state is not kept: nothing but this may follow.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: every stream faults, but what was in flight may not have drained.
    /// [`IommuError::NoPower`]: nothing was touched.
    ///
    /// # Context
    ///
    /// Any.
    fn crash(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// In which domain `device` is here, as the driver believes; `None` when in fault.
    ///
    /// # Errors
    ///
    /// [`IommuError::Unknown`] for a device that was never published.
    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError>;
}

/// Two devices that use the same entry.
pub type Sharing = (DeviceId, DeviceId);

/// What there is to tell when a device has been forgotten ([`Iommu::withdraw`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// This device keeps an entry live that matches streams of the one that has gone (contract I-6, I-15).
    Keeper(DeviceId),
    /// These two, of those that stay, use the same entry.
    Sharing(Sharing),
}

/// What a driver has made of a device that is about to be added, with all memory that this takes (contract A-8).
///
/// Whoever adds hands it to [`Iommu::publish`], [`Iommu::allot`] and [`Iommu::enrol`] of the instance that made it.
pub struct NewMaster {
    device: DeviceId,
    made: Box<dyn Any + Send>,
}

impl NewMaster {
    /// The driver's own record of `device`.
    #[must_use]
    pub fn new<T: Any + Send>(device: DeviceId, made: Box<T>) -> Self {
        Self { device, made }
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// The driver's own record, if it is one of these.
    #[must_use]
    pub fn made<T: Any + Send>(&mut self) -> Option<&mut T> {
        self.made.downcast_mut()
    }
}

impl fmt::Debug for NewMaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewMaster({})", self.device)
    }
}

/// What a driver has reserved for one move. Given to [`Iommu::install`] or [`Iommu::abandon`].
#[derive(Debug)]
#[must_use = "what was reserved stays reserved until it is installed or abandoned"]
pub struct Prepared {
    /// The space that the devices move to.
    pub space: AddressSpace,
    /// The driver's own number for what it reserved.
    pub ticket: u64,
    /// What the driver keeps of its plan beside.
    pub kept: Option<Box<dyn Any + Send>>,
}

/// Part of a domain's addresses whose translation was removed or narrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushRange {
    /// The first guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes that one changed entry of the tables translated: a page, or a block. A power of two, 4 KiB or more.
    pub leaf: u64,
    /// What was changed.
    pub changed: Changed,
}

/// What of the tables was changed (contract I-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Entries that translate. The tables that they stand in stay.
    Leaf,
    /// Entries that name tables too: the memory of tables is about to be given to someone else.
    TablesFreed,
}

/// How long a caller can wait for the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Waiting context: the full bound.
    Waiting,
    /// Atomic context: a bound of its own, much smaller.
    Atomic,
}

/// Domains that are the service's own (contract I-2). No guest has these numbers.
pub mod own_space {
    use super::DomainId;

    /// The empty root, without reports: where a storming stream ends.
    pub const EMPTY: DomainId = DomainId::new(u64::MAX);
    /// The integrator's scratch page, without reports: for devices that do not bear faults.
    pub const SCRATCH: DomainId = DomainId::new(u64::MAX - 1);
    /// What the streams that firmware reserved may reach.
    pub const RESERVED: DomainId = DomainId::new(u64::MAX - 2);

    /// Whether it is one of these.
    #[must_use]
    pub const fn is_own(domain: DomainId) -> bool {
        domain.number() >= RESERVED.number()
    }

    /// Whether its faults are to be heard by nobody.
    #[must_use]
    pub const fn is_quiet(domain: DomainId) -> bool {
        domain.number() >= SCRATCH.number()
    }
}
