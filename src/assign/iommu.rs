//! The one trait between the assignment layer and an IOMMU driver.
//!
//! A device's way through it: [`make_master`](Iommu::make_master) makes the driver's record, with nothing locked;
//! [`publish`](Iommu::publish) puts it into the tree of masters; [`reserve`](Iommu::reserve) takes stream-map entries in
//! the shadow, and is the judge of who shares them; [`enrol`](Iommu::enrol) writes them, in fault;
//! [`plan`](Iommu::plan) reserves a context; [`install`](Iommu::install) turns the entries to it;
//! [`block`](Iommu::block) turns them back to fault and drains; [`withdraw`](Iommu::withdraw) gives everything back.
//!
//! A driver is sound on its own for any caller: each call is one transition of a device's state
//! (`Fault -> Planned -> Live -> Draining -> Fault`) under the driver's own lock, and one that does not fit is
//! [`IommuError::Busy`].
//!
//! # Locking
//!
//! The service holds no lock over any method (contract C-3).

use alloc::boxed::Box;
use core::any::Any;
use core::fmt;

use super::{
    AddressSpace, DeviceId, Difference, DomainId, FaultAnswer, FaultCounts, FaultLine, IommuError, IommuKey, RawFault,
    Stage2Limits, StormReport, Stream, StreamId, Usage,
};

/// A driver for one IOMMU instance.
///
/// # Context
///
/// Waiting context, but for [`take_faults`](IommuFaults::take_faults) and [`crash`](IommuPower::crash). Any method may be called
/// from several CPUs at once.
pub trait Iommu: IommuPower + IommuFaults + Send + Sync + fmt::Debug {
    /// The instance's name.
    fn key(&self) -> IommuKey;

    /// What tables the instance can follow.
    fn limits(&self) -> Stage2Limits;

    /// Makes the driver's record of a device with `streams` on this instance, with all memory that its life here takes. A
    /// `lazy` device takes entries of its own only when it is first assigned. Nobody knows of the record yet; dropping it is
    /// free of effects.
    ///
    /// # Errors
    ///
    /// [`IommuError::TooWide`] when an ID or mask has bits that the hardware does not keep (contract A-6),
    /// [`IommuError::Exhausted`] when the least cover of the streams is larger than the stream map,
    /// [`IommuError::OutOfMemory`], [`IommuError::ProviderGone`].
    fn make_master(&self, device: DeviceId, streams: &[Stream], lazy: bool) -> Result<Box<dyn Any + Send>, IommuError>;

    /// Puts a record that [`make_master`](Self::make_master) of this instance made into the tree of masters. Where the streams
    /// overlap nothing, the device's entries are taken in the same hold, as by [`reserve`](Self::reserve), and it is `true`.
    /// `false`: `reserve` is called next. No register access.
    ///
    /// # Errors
    ///
    /// [`IommuError::Known`], [`IommuError::Unknown`] for what another instance made, [`IommuError::ProviderGone`]. Nothing
    /// has changed then.
    fn publish(&self, master: Box<dyn Any + Send>) -> Result<bool, IommuError>;

    /// The next device after `after`, by number, whose streams or entries overlap those of `device`. A hint: it may have
    /// changed by the time that it is used.
    fn overlapping(&self, device: DeviceId, after: Option<DeviceId>) -> Option<DeviceId>;

    /// Takes the stream-map entries that the device needs, in the shadow, without a register access. What a lazy device
    /// needs beyond the entries that are there is taken by [`plan`](Self::plan).
    ///
    /// `is_claimed` says which devices the caller's claim owns. Where entries run out, the entries of the claimed devices are
    /// searched for a smaller cover, if all of these are in fault.
    ///
    /// # Errors
    ///
    /// [`IommuError::Foreign`] when an entry that the streams fall in has a user that is not claimed,
    /// [`IommuError::Exhausted`], [`IommuError::OutOfMemory`], [`IommuError::Unknown`], [`IommuError::ProviderGone`]. Nothing is
    /// taken then (contract ).
    fn reserve(&self, device: DeviceId, is_claimed: &dyn Fn(DeviceId) -> bool) -> Result<Streams, IommuError>;

    /// Writes what was reserved for the device, in fault.
    ///
    /// # Errors
    ///
    /// [`IommuError::Unknown`], [`IommuError::ProviderGone`], [`IommuError::NoPower`], [`IommuError::WriteLost`]. The caller
    /// withdraws the device then.
    fn enrol(&self, device: DeviceId) -> Result<(), IommuError>;

    /// Whether the two devices use a common stream-map entry here. `false` where one of them is not known.
    fn shares(&self, one: DeviceId, other: DeviceId) -> bool;

    /// Reserves all that moving `devices` into `space` can lack: a context, and the entries of lazy devices, which are judged
    /// as by [`reserve`](Self::reserve). A context that this very move frees counts (contract A-1). Finishes a drain that one
    /// of `devices` owes, and drains that keep back all contexts there are; otherwise no register access.
    ///
    /// # Errors
    ///
    /// [`IommuError::Incompatible`], [`IommuError::Exhausted`], [`IommuError::Busy`] where a context is on its way to another
    /// domain or is draining, and where a device has a plan or is named twice, [`IommuError::Foreign`], [`IommuError::SyncTimeout`] where an owed drain is still not confirmed,
    /// [`IommuError::NoPower`], [`IommuError::ProviderGone`]. Nothing is reserved then.
    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError>;

    /// Gives back what [`plan`](Self::plan) reserved for `devices`. Legal for devices without a plan.
    fn abandon(&self, devices: &[DeviceId]);

    /// Moves `devices`, which are in fault, into the space that was planned for them.
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] for a device that is not in fault or has no plan, [`IommuError::SyncTimeout`],
    /// [`IommuError::NoPower`], [`IommuError::ProviderGone`], [`IommuError::WriteLost`]. The plan stays the caller's to abandon;
    /// after `WriteLost` the caller blocks the devices, which may be live.
    fn install(&self, devices: &[DeviceId]) -> Result<(), IommuError>;

    /// Puts `devices` in fault, invalidates, waits until what was in flight has left, and retires contexts that have become
    /// unused (contract I-6, I-7). Also finishes a drain that one of `devices` owes. Costs no register access where all of them
    /// are in fault and owe nothing. Says whether entries of theirs translate still, kept live by devices outside `devices`.
    ///
    /// # Errors
    ///
    /// [`IommuError::NoPower`]: nothing has changed. [`IommuError::SyncTimeout`]: the devices are in fault but owe the drain;
    /// what it held is poisoned (contract I-8). [`IommuError::WriteLost`]: an entry did not take FAULT.
    /// [`IommuError::ProviderGone`]: done in software, the instance faults everything.
    fn block(&self, devices: &[DeviceId]) -> Result<Streams, IommuError>;

    /// Forgets `device`, which is in fault: its entries, where it was the last to use them, become free; those that capture
    /// more than the devices that stay have are fitted anew, or when they are next in fault (contract I-15). Says whether an
    /// entry that captured its streams stays live.
    ///
    /// # Errors
    ///
    /// [`IommuError::Unknown`], [`IommuError::Busy`] when the device is not in fault, [`IommuError::NoPower`],
    /// [`IommuError::SyncTimeout`] where an owed drain is still not confirmed: the device stays known.
    /// [`IommuError::ProviderGone`]: it is forgotten, in software.
    fn withdraw(&self, device: DeviceId) -> Result<Streams, IommuError>;

    /// Removes what the instance has cached of `domain`, or of part of it: by page where the hardware can and it is worth it.
    /// A domain without a context here costs no register access.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: stale translations may still be in use. [`IommuError::NoPower`],
    /// [`IommuError::ProviderGone`].
    ///
    /// # Context
    ///
    /// With [`Patience::Atomic`] atomic context, and interrupts where the platform's lock masks them.
    fn flush(&self, domain: DomainId, range: Option<&FlushRange>, patience: Patience) -> Result<(), IommuError>;

    /// A domain without devices ends: after `Ok` its tables, the root included, are not read any more (contract I-8).
    ///
    /// # Errors
    ///
    /// [`IommuError::InUse`] where a device is in the domain still, [`IommuError::SyncTimeout`], [`IommuError::NoPower`]: the
    /// tables may still be read.
    fn forget(&self, domain: DomainId) -> Result<(), IommuError>;

    /// The device whose streams contain an ID. With `domain`, only where an entry translates the ID through that domain's
    /// context: some parts record a stream that did not fault.
    fn owner_of(&self, stream: StreamId, domain: Option<DomainId>) -> Option<DeviceId>;

    /// The next device after `after`, by number, that the driver knows, with the domain that it is in as the driver believes;
    /// `None` for it when in fault or in a space of the service's own.
    fn next_known(&self, after: Option<DeviceId>) -> Option<(DeviceId, Option<DomainId>)>;

    /// Compares what the driver believes with the registers, each that exists, and with its own counts. Changes nothing.
    fn audit(&self, report: &mut dyn FnMut(Difference));

    /// Who uses what there is a fixed number of (contract A-5). `report` must not call the driver.
    fn usage(&self, report: &mut dyn FnMut(Usage)) {
        let _ = report;
    }
}

/// Power, and the end of an instance's life.
pub trait IommuPower {
    /// Sees to it that registers can be accessed until [`release_power`](Self::release_power): for an operation that spans
    /// several instances and must not find the second without power when the first has changed. A suspended instance is held too,
    /// since it may be resumed meanwhile; one that is out of service needs no power, and it is Ok. Calls nest: each is ended by
    /// one release.
    ///
    /// # Errors
    ///
    /// [`IommuError::NoPower`], [`IommuError::Busy`]: nothing is held.
    fn hold_power(&self) -> Result<(), IommuError> {
        Ok(())
    }

    /// Ends what one [`hold_power`](Self::hold_power) began.
    fn release_power(&self) {}

    /// The instance is about to lose its power: from now on its registers are not touched, and what changes is kept for
    /// [`resume`](Self::resume). All of its masters must have been stopped (contract S-5). New calls wait outside while those
    /// in flight are waited for, within the usual bound (contract C-1).
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
    /// [`IommuError::NotResumed`], [`IommuError::NoPower`], [`IommuError::SyncTimeout`]: it stays suspended, and every stream
    /// faults or the instance is not enabled.
    fn resume(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// Takes the instance, which has no device left, out of service for good: streams that firmware reserved go to fault, drains
    /// that are owed are finished, no register is touched from then on, and what comes late gets [`IommuError::ProviderGone`] (contract C-9). A suspended instance is
    /// resumed for it.
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] while a call is in flight, [`IommuError::SyncTimeout`], [`IommuError::NoPower`],
    /// [`IommuError::NotResumed`]: it stays in service, or suspended.
    fn retire(&self) -> Result<(), IommuError> {
        Ok(())
    }

    /// Takes the instance out of service for good: every stream faults, with clients enabled, and no register is touched
    /// afterwards. What acquires or flushes gets [`IommuError::ProviderGone`] from now on; what releases is done in software and
    /// says the same (contract C-9, S-8). A suspended instance is resumed for it.
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] where a call in flight does not end within the usual bound: nothing that acquires gets in, call
    /// again. [`IommuError::SyncTimeout`]: the same, and every stream faults. [`IommuError::NotResumed`],
    /// [`IommuError::NoPower`]: it could not be silenced.
    fn close(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// Every stream to fault, for a hypervisor that is crashing: takes no lock, minds no other call, and polls a bounded
    /// number of times (contract S-8). A suspended instance that has power is put in fault too; one that is out of service is
    /// not touched. Nothing but this may follow.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: every stream faults, but what was in flight may not have drained.
    /// [`IommuError::NoPower`]: nothing was touched. [`IommuError::WriteLost`]: an entry did not take FAULT.
    ///
    /// # Context
    ///
    /// Any.
    fn crash(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }
}

/// Faults: intake in interrupt context, tending by a worker (contract A-12).
pub trait IommuFaults {
    /// Reads, clears and reports what faulted on `line`, and says whether the line should be masked. Records beyond a limit
    /// are counted, not reported.
    ///
    /// # Context
    ///
    /// Interrupt handlers call it: it takes no lock, allocates and frees nothing (contract C-16). `report` runs in the same
    /// context.
    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer;

    /// Lets faults raise interrupts: the integrator's handlers stand on all of the instance's lines (contract S-4).
    ///
    /// # Errors
    ///
    /// [`IommuError::Unsupported`], [`IommuError::NoPower`], [`IommuError::ProviderGone`].
    fn enable_reports(&self) -> Result<(), IommuError> {
        Err(IommuError::Unsupported)
    }

    /// The worker's part: names what has stormed since the last call, and starts all counts anew. A storm of streams that no
    /// device has is ended here, by silencing the global report; the next call without such a storm lets it report again.
    fn tend_faults(&self, storming: &mut dyn FnMut(StormReport)) {
        let _ = storming;
    }

    /// What was counted instead of being reported.
    fn fault_counts(&self) -> FaultCounts {
        FaultCounts::default()
    }

    /// Streams that no entry matched, with how often they came. At most as many as the instance has room for.
    fn unknown_streams(&self, report: &mut dyn FnMut(StreamId, u32)) {
        let _ = report;
    }

    /// The domains whose live contexts report on `line`: with more than one, a storm of one is heard by all.
    fn coupled(&self, line: FaultLine, report: &mut dyn FnMut(DomainId)) {
        let _ = (line, report);
    }
}

/// What the streams of a device do, as far as entries decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// None of them translates.
    Fault,
    /// At least one falls in an entry that another device keeps live.
    Live,
}

/// Part of a domain's addresses whose translation was removed or narrowed.
#[derive(Clone, Copy, PartialEq, Eq)]
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

impl fmt::Debug for FlushRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size, leaf, changed } = self;
        write!(f, "FlushRange({start:#x} + {size:#x} by {leaf:#x}, {changed:?})")
    }
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

    /// Whether its faults are to be reported to nobody.
    #[must_use]
    pub const fn is_quiet(domain: DomainId) -> bool {
        domain.number() >= SCRATCH.number()
    }
}
