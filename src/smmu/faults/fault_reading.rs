//! Fault registers read, cleared and put into words.
//!
//! # Locking
//!
//! None: interrupt handlers call this.

use crate::assign::{Access, FaultCause, RawFault, StreamId};
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::part::{BankIndex, Part};
use crate::smmu::hardware::registers::{Fsr, Gfsr, cb, gr0, gr1, syndrome};

/// Status bits and what they mean; what stands first is told.
const GLOBAL: [(u32, FaultCause); 6] = [
    (Gfsr::USF.bits(), FaultCause::UnknownStream),
    (Gfsr::SMCF.bits(), FaultCause::StreamConflict),
    (Gfsr::ICF.bits(), FaultCause::Blocked),
    (Gfsr::UCBF.union(Gfsr::UCIF).bits(), FaultCause::BadContext),
    (Gfsr::CAF.bits(), FaultCause::Configuration),
    (Gfsr::EF.bits(), FaultCause::External),
];
const CONTEXT: [(u32, FaultCause); 5] = [
    (Fsr::TF.bits(), FaultCause::Translation),
    (Fsr::PF.bits(), FaultCause::Permission),
    (Fsr::AFF.bits(), FaultCause::AccessFlag),
    (Fsr::ASF.bits(), FaultCause::AddressSize),
    (Fsr::EF.bits(), FaultCause::External),
];

/// Reads and clears the record of `bank`, or the global one, in one member, if there is one. Whose the bank is the
/// caller knows.
pub(in crate::smmu) fn take<R: Registers>(part: &Part<R>, member: usize, bank: Option<BankIndex>) -> Option<RawFault> {
    let (status, faults) = match bank {
        None => (gr0::SGFSR, u32::MAX),
        Some(bank) => (part.geometry.bank(bank, cb::FSR), Fsr::FAULTS.bits()),
    };
    let found = part.registers.read32_of(member, status);
    (found & faults != 0).then(|| take_found(part, member, bank, status, found))
}

/// Reads and clears a record that is there: `found` stands in its register `status`.
#[inline(never)]
fn take_found<R: Registers>(
    part: &Part<R>,
    member: usize,
    bank: Option<BankIndex>,
    status: u32,
    found: u32,
) -> RawFault {
    let Part { registers, geometry, .. } = part;
    let [syndrome, address, stream] = match bank {
        None => [gr0::SGFSYNR0, gr0::SGFAR, gr0::SGFSYNR1],
        Some(bank) => {
            let at = |register| geometry.bank(bank, register);
            [at(cb::FSYNR0), at(cb::FAR), geometry.gr1(gr1::cbfrsynra(bank))]
        }
    };
    let (causes, write, execute) = match bank {
        None => (&GLOBAL[..], syndrome::GFSYNR0_WNR, syndrome::GFSYNR0_IND),
        Some(_) => (&CONTEXT[..], syndrome::FSYNR0_WNR, syndrome::FSYNR0_IND),
    };
    let cause = causes.iter().find(|(bits, _)| found & bits != 0).map_or(FaultCause::Other, |(_, cause)| *cause);
    let wanted = registers.read32_of(member, syndrome);
    let address = registers.read64_of(member, address);
    let stream = registers.read32_of(member, stream) & syndrome::STREAM_ID;
    // The record is frozen until the status is written back; what comes after that is the next record.
    registers.write32_of(member, status, found);
    RawFault {
        iommu: part.key(),
        bank,
        domain: None,
        // For a configuration access the address is a register's and no stream is involved.
        stream: (cause != FaultCause::Configuration).then(|| StreamId::new(stream)),
        address: Some(address),
        access: match wanted {
            _ if wanted & write != 0 => Access::Write,
            _ if wanted & execute != 0 => Access::Execute,
            _ => Access::Read,
        },
        cause,
        more_lost: found & Fsr::MULTI.bits() != 0,
    }
}
