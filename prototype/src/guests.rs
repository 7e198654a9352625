//! Guests: a domain each, with stage-2 tables of its own.

use iommu_assign::assign::{Domain, Label, Stage2Limits};
use iommu_assign::sync::Spin;
use machine::{Machine, Stage2Tables};

/// The guest-physical page that every guest has mapped, each to memory of its own.
pub(crate) const PAGE: u64 = 0x4000_0000;

/// A guest-physical page that no guest has mapped.
pub(crate) const HOLE: u64 = 0x4010_0000;

/// A guest.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) label: Label,
    pub(crate) domain: Domain<Spin>,
    pub(crate) tables: Stage2Tables,
    /// Where [`PAGE`] is in physical memory.
    pub(crate) backing: u64,
}

/// Tables for guest `number`, with [`PAGE`] mapped, such as IOMMUs with these limits can follow. And where it is mapped.
pub(crate) fn tables(machine: &Machine, number: u64, limits: Stage2Limits) -> (Stage2Tables, u64) {
    let pool = TABLES.saturating_add(number.saturating_mul(0x10_0000));
    let backing = MEMORY.saturating_add(number.saturating_mul(0x1000_0000));
    let output_bits = match limits.output_bits {
        40.. => 40,
        36.. => 36,
        _ => 32,
    };
    let mut tables = Stage2Tables::new(machine, pool, limits.ipa_bits.clamp(31, 40), output_bits);
    tables.map(PAGE, backing, true);
    (tables, backing)
}

/// Where tables are made; above the zeros of [`EMPTY_ROOT`](crate::presets::EMPTY_ROOT).
const TABLES: u64 = 0x2000_0000;

/// Where guests' memory is.
const MEMORY: u64 = 0x8000_0000;
