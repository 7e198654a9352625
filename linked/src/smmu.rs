//! The driver, and the least covers.

use iommu_assign::assign::Stream;
use iommu_assign::smmu::cover::*;
use iommu_assign::smmu::*;

use super::platform::{P, R};
use super::{exhaust, keep, keep_messages, keep_types};

pub(crate) fn keep_all() {
    keep![
        R::geometry,
        R::notes,
        R::registers,
        R::line_of,
        R::probe,
        R::probe_with,
        ContextLines::each,
        ContextLines::without_order,
        ContextLines::count,
        ContextLines::line,
        ContextLines::line_of_used,
        Mmio::new,
        quirks,
        Chip::of,
        SmmuConfig::new,
        Masters::<P>::new,
        check,
        Cube::new,
        Cube::point,
        Cube::id,
        Cube::mask,
        Cube::last,
        Cube::size,
        Cube::holds,
        Cube::meets,
        Cube::contains,
        Cube::intersection,
        Cube::span,
        Cube::widened,
        Cube::minus,
        Cube::at,
        CoverOptions::new,
        least_cover,
        lines,
        <SmmuConfig as Clone>::clone,
        <Reserved as Clone>::clone,
        geometry,
        quirks_of_one,
        remainder,
        cube,
        reserved_default,
        several,
    ];
    keep_types![
        Architecture,
        Chip,
        ContextLines,
        Cover,
        CoverError,
        CoverOptions,
        Cube,
        Effects,
        EmptyRoot,
        FaultLimits,
        Flaw,
        Geometry,
        Implementation,
        Lockstep<Mmio>,
        Masters<P>,
        Mmio,
        Notes,
        PowerError,
        ProbeError,
        Quirk,
        R,
        Remainder,
        Remedy,
        Reserved,
        Setup,
        SmmuConfig,
    ];
    keep_messages![Cube, CoverError, ProbeError];
}

fn lines(entries: &[u32]) -> Option<ContextLines> {
    ContextLines::listed(entries).ok()
}

fn geometry(registers: &Mmio, config: &SmmuConfig) -> Result<Geometry, ProbeError> {
    Geometry::read(registers, config)
}

fn quirks_of_one(config: &SmmuConfig, revision: u8) {
    exhaust(quirks_of(config, revision));
}

fn remainder(pieces: Remainder) {
    exhaust(pieces);
}

fn cube(stream: Stream) -> Cube {
    stream.into()
}

fn reserved_default() -> Setup {
    Setup::default()
}

fn several(one: Mmio, other: Mmio) -> Lockstep<Mmio> {
    [one, other].into_iter().collect()
}
