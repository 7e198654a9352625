//! Fault registers read, cleared and put into words; storms counted.
//!
//! # Locking
//!
//! None: interrupt handlers call this. Which domain a bank belongs to is read from an atomic that is written before the
//! bank goes live; the device is looked up later, in waiting context (contract C-16). Counts stand in tables of atomics
//! of a fixed size.

use core::sync::atomic::{AtomicU64, Ordering};

use super::access::Access;
use super::config::FaultLimits;
use super::context::BankIndex;
use super::geometry::Geometry;
use super::mmio::Registers;
use super::registers::{Fsr, Gfsr, cb, gr0, gr1, syndrome};
use crate::assign::{Access as Wanted, DomainId, FaultCause, FaultCounts, IommuKey, RawFault, StreamId};

/// Streams that are counted one by one between two calls of the worker; further ones are reported without a limit.
const STREAMS: usize = 64;
/// Unknown streams that are counted one by one.
const UNKNOWN: usize = 32;

/// What the intake has counted.
#[derive(Debug)]
pub(super) struct Counters {
    streams: Table<STREAMS>,
    unknown: Table<UNKNOWN>,
    lost: AtomicU64,
    limited: AtomicU64,
    unknown_elsewhere: AtomicU64,
}

/// Counts by stream ID: each slot is 0, or (ID + 1) above a 32-bit count.
#[derive(Debug)]
struct Table<const N: usize>([AtomicU64; N]);

/// What is to be done with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) report: bool,
    pub(super) storm: bool,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self {
            streams: Table::new(),
            unknown: Table::new(),
            lost: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            unknown_elsewhere: AtomicU64::new(0),
        }
    }

    /// Counts a record.
    pub(super) fn judge(&self, fault: &RawFault, limits: FaultLimits) -> Judgement {
        if fault.more_lost {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        let Some(stream) = fault.stream else { return Judgement { report: true, storm: false } };
        if fault.cause == FaultCause::UnknownStream && self.unknown.count(stream).is_none() {
            self.unknown_elsewhere.fetch_add(1, Ordering::Relaxed);
        }
        let count = self.streams.count(stream).unwrap_or(0);
        let report = count <= limits.records;
        if !report {
            self.limited.fetch_add(1, Ordering::Relaxed);
        }
        Judgement { report, storm: count >= limits.storm.max(limits.records) }
    }

    /// Names the streams that stormed, and forgets all counts by stream.
    pub(super) fn tend(&self, limits: FaultLimits, storming: &mut dyn FnMut(StreamId, u32)) {
        for (stream, count) in self.streams.drain().filter(|(_, count)| *count >= limits.storm.max(limits.records)) {
            storming(stream, count);
        }
    }

    pub(super) fn unknown(&self, report: &mut dyn FnMut(StreamId, u32)) {
        self.unknown.0.iter().filter_map(|slot| split(slot.load(Ordering::Relaxed))).for_each(|(id, n)| report(id, n));
    }

    pub(super) fn totals(&self) -> FaultCounts {
        FaultCounts {
            lost: self.lost.load(Ordering::Relaxed),
            limited: self.limited.load(Ordering::Relaxed),
            unknown_elsewhere: self.unknown_elsewhere.load(Ordering::Relaxed),
        }
    }
}

impl<const N: usize> Table<N> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }

    /// Counts one more of `stream` and says how many there are now; `None` when the table is full of others.
    fn count(&self, stream: StreamId) -> Option<u32> {
        let first = (u64::from(stream.value()).wrapping_add(1)) << 32 | 1;
        for slot in &self.0 {
            let grow = |seen: u64| match split(seen) {
                None => Some(first),
                Some((id, count)) if id == stream && count < u32::MAX => Some(seen.wrapping_add(1)),
                Some(_) => None,
            };
            match slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow) {
                Ok(before) => return Some(split(before).map_or(1, |(_, count)| count.saturating_add(1))),
                Err(full) if split(full).is_some_and(|(id, _)| id == stream) => return Some(u32::MAX),
                Err(_) => {}
            }
        }
        None
    }

    fn drain(&self) -> impl Iterator<Item = (StreamId, u32)> {
        self.0.iter().filter_map(|slot| split(slot.swap(0, Ordering::Relaxed)))
    }
}

/// The stream and the count of a slot.
fn split(slot: u64) -> Option<(StreamId, u32)> {
    let [count, above] = super::access::halves(slot);
    above.checked_sub(1).map(|id| (StreamId::new(id), count))
}

/// Reads and clears the global fault record of one member, if there is one.
pub(super) fn take_global<R: Registers>(registers: &Access<R>, member: usize, iommu: IommuKey) -> Option<RawFault> {
    let status = Gfsr::from_bits_retain(registers.read32_of(member, gr0::SGFSR));
    if status.is_empty() {
        return None;
    }
    let syndrome0 = registers.read32_of(member, gr0::SGFSYNR0);
    let syndrome1 = registers.read32_of(member, gr0::SGFSYNR1);
    let address = registers.read64_of(member, gr0::SGFAR);
    // The record is frozen until the status is written back; what comes after that is the next record.
    registers.write32_of(member, gr0::SGFSR, status.bits());
    let cause = match status {
        _ if status.contains(Gfsr::USF) => FaultCause::UnknownStream,
        _ if status.contains(Gfsr::SMCF) => FaultCause::StreamConflict,
        _ if status.contains(Gfsr::ICF) => FaultCause::Blocked,
        _ if status.intersects(Gfsr::UCBF | Gfsr::UCIF) => FaultCause::BadContext,
        _ if status.contains(Gfsr::CAF) => FaultCause::Configuration,
        _ if status.contains(Gfsr::EF) => FaultCause::External,
        _ => FaultCause::Other,
    };
    // For a configuration access the address is a register's and no stream is involved.
    let stream = cause != FaultCause::Configuration;
    Some(RawFault {
        iommu,
        bank: None,
        domain: None,
        stream: stream.then(|| StreamId::new(syndrome1 & syndrome::STREAM_ID)),
        address: Some(address),
        access: access(syndrome0, syndrome::GFSYNR0_WNR, syndrome::GFSYNR0_IND),
        cause,
        more_lost: status.contains(Gfsr::MULTI),
    })
}

/// Reads and clears the fault record of `bank` in one member, if there is one.
pub(super) fn take_context<R: Registers>(
    registers: &Access<R>,
    member: usize,
    geometry: &Geometry,
    iommu: IommuKey,
    bank: BankIndex,
    domain: DomainId,
) -> Option<RawFault> {
    let status_register = geometry.bank(bank, cb::FSR);
    let status = Fsr::from_bits_retain(registers.read32_of(member, status_register));
    if !status.intersects(Fsr::FAULTS) {
        return None;
    }
    let syndrome0 = registers.read32_of(member, geometry.bank(bank, cb::FSYNR0));
    let address = registers.read64_of(member, geometry.bank(bank, cb::FAR));
    let stream = registers.read32_of(member, geometry.gr1(gr1::cbfrsynra(bank)));
    registers.write32_of(member, status_register, status.bits());
    let cause = match status {
        _ if status.contains(Fsr::TF) => FaultCause::Translation,
        _ if status.contains(Fsr::PF) => FaultCause::Permission,
        _ if status.contains(Fsr::AFF) => FaultCause::AccessFlag,
        _ if status.contains(Fsr::ASF) => FaultCause::AddressSize,
        _ if status.contains(Fsr::EF) => FaultCause::External,
        _ => FaultCause::Other,
    };
    Some(RawFault {
        iommu,
        bank: Some(bank),
        domain: Some(domain),
        stream: Some(StreamId::new(stream & syndrome::STREAM_ID)),
        address: Some(address),
        access: access(syndrome0, syndrome::FSYNR0_WNR, syndrome::FSYNR0_IND),
        cause,
        more_lost: status.contains(Fsr::MULTI),
    })
}

const fn access(syndrome: u32, write: u32, instruction: u32) -> Wanted {
    if syndrome & write != 0 {
        Wanted::Write
    } else if syndrome & instruction != 0 {
        Wanted::Execute
    } else {
        Wanted::Read
    }
}
