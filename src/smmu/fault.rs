//! Fault registers read, cleared and put into words.
//!
//! # Locking
//!
//! None: interrupt handlers call this. Which domain a bank belongs to is read from an atomic that is written before the
//! bank goes live; the device is looked up later, in waiting context (contract C-16).

use super::context::BankIndex;
use super::geometry::Geometry;
use super::mmio::Registers;
use super::registers::{Fsr, Gfsr, cb, gr0, gr1, syndrome};
use crate::assign::{Access, DomainId, FaultCause, IommuKey, RawFault, StreamId};

/// Reads and clears the global fault record, if there is one.
pub(super) fn take_global(registers: &impl Registers, iommu: IommuKey) -> Option<RawFault> {
    let status = Gfsr::from_bits_retain(registers.read32(gr0::SGFSR));
    if status.is_empty() {
        return None;
    }
    let syndrome0 = registers.read32(gr0::SGFSYNR0);
    let syndrome1 = registers.read32(gr0::SGFSYNR1);
    let address = registers.read64(gr0::SGFAR);
    // The record is frozen until the status is written back; what comes after that is the next record.
    registers.write32(gr0::SGFSR, status.bits());
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

/// Reads and clears the fault record of `bank`, if there is one.
pub(super) fn take_context(
    registers: &impl Registers,
    geometry: &Geometry,
    iommu: IommuKey,
    bank: BankIndex,
    domain: DomainId,
) -> Option<RawFault> {
    let status_register = geometry.bank(bank, cb::FSR);
    let status = Fsr::from_bits_retain(registers.read32(status_register));
    if !status.intersects(Fsr::FAULTS) {
        return None;
    }
    let syndrome0 = registers.read32(geometry.bank(bank, cb::FSYNR0));
    let address = registers.read64(geometry.bank(bank, cb::FAR));
    let stream = registers.read32(geometry.gr1(gr1::cbfrsynra(bank)));
    registers.write32(status_register, status.bits());
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

const fn access(syndrome: u32, write: u32, instruction: u32) -> Access {
    if syndrome & write != 0 {
        Access::Write
    } else if syndrome & instruction != 0 {
        Access::Execute
    } else {
        Access::Read
    }
}
