//! Stage 2 in a context bank: which tables an instance can follow, and what the registers of a bank are for them. Pure.

use crate::assign::{DomainId, Granule, Incompatible, Stage2, TableMemory, own_space};
use crate::smmu::hardware::Geometry;
use crate::smmu::hardware::part::{BankIndex, Part};
use crate::smmu::hardware::registers::Sctlr;

/// The registers of a stage-2 bank, as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) struct BankImage {
    /// Where the part has one.
    pub(in crate::smmu) cba2r: Option<u32>,
    pub(in crate::smmu) cbar: u32,
    pub(in crate::smmu) tcr: u32,
    pub(in crate::smmu) ttbr0: u64,
}

/// SCTLR of a live bank: faults terminate, one by one; nothing stalls (quirks Q6, Q7). Where `reports` is set they raise
/// the bank's interrupt; in a quiet bank they are not even aborts on the bus.
pub(in crate::smmu) fn control(reports: bool, domain: DomainId) -> Sctlr {
    let mut control = Sctlr::M | Sctlr::TRE | Sctlr::AFE | Sctlr::HUPCF;
    let quiet = own_space::is_quiet(domain);
    control.set(Sctlr::CFRE, !quiet);
    control.set(Sctlr::CFIE, reports && !quiet);
    control
}

/// What `bank` is programmed with for `stage2`, which [`check`] has found compatible.
pub(in crate::smmu) fn image<R>(part: &Part<R>, bank: BankIndex, stage2: &Stage2) -> BankImage {
    const CBA2R_VA64: u32 = 1;
    let (geometry, vmid) = (&part.geometry, part.vmid(bank));
    let long = is_long(geometry, stage2.granule);
    let (vmid_in_cbar, vmid_in_cba2r) = if geometry.vmid16 { (0, vmid << 16) } else { (vmid, 0) };
    // CBAR.TYPE 0 is stage 2 only. IRPTNDX is there in version 1 and fixed to zero in version 2.
    let interrupt = u32::from(part.interrupt_of(bank)) << 24;
    BankImage {
        cba2r: geometry.cba2r.then_some(if long { CBA2R_VA64 } else { 0 } | vmid_in_cba2r),
        cbar: interrupt | vmid_in_cbar,
        tcr: tcr(stage2, long),
        ttbr0: stage2.root.value(),
    }
}

fn is_long(geometry: &Geometry, granule: Granule) -> bool {
    geometry.long_granules.contains(granule)
}

/// TCR in stage-2 form (IHI 0062D, SMMU_CBn_TCR).
fn tcr(stage2: &Stage2, long: bool) -> u32 {
    let (shareability, cacheability) = match stage2.tables {
        TableMemory::WriteBackInnerShareable => (3, 1),
        TableMemory::NonCacheable => (2, 0),
    };
    let walks = shareability << 12 | cacheability << 10 | cacheability << 8;
    if long {
        let output: u32 = match stage2.output_bits {
            ..=32 => 0,
            33..=36 => 1,
            37..=40 => 2,
            41..=42 => 3,
            43..=44 => 4,
            45.. => 5,
        };
        let granule = match stage2.granule {
            Granule::Kib4 => 0,
            Granule::Kib64 => 1,
            Granule::Kib16 => 2,
        };
        let size = 64_u32.saturating_sub(u32::from(stage2.ipa_bits));
        output << 16 | granule << 14 | walks | start_level_field(stage2) << 6 | size
    } else {
        // T0SZ is signed here: 32 - IPA bits, with a copy of the sign in S.
        let size = 32_u32.wrapping_sub(u32::from(stage2.ipa_bits)) & 0xf;
        let sign = if stage2.ipa_bits > 32 { 1 << 4 } else { 0 };
        1 << 31 | walks | start_level_field(stage2) << 6 | sign | size
    }
}

/// SL0: counted from the deepest level at which the granule's walk can start.
fn start_level_field(stage2: &Stage2) -> u32 {
    let deepest: u32 = if stage2.granule == Granule::Kib4 { 2 } else { 3 };
    deepest.saturating_sub(u32::from(stage2.start_level))
}

/// Whether an instance can follow a domain's tables (contract S-2), and retire its banks afterwards.
pub(in crate::smmu) fn check<R>(part: &Part<R>, stage2: &Stage2) -> Result<(), Incompatible> {
    let Stage2 { ipa_bits, output_bits, granule, start_level, root, .. } = *stage2;
    let geometry = &part.geometry;
    let long = is_long(geometry, granule);
    if !(long || geometry.aarch32_long && granule == Granule::Kib4) {
        return Err(Incompatible::Granule(granule));
    }
    let (most_ipa, most_output) = geometry.reach(long);
    if ipa_bits > most_ipa {
        return Err(Incompatible::IpaBits { wanted: ipa_bits, possible: most_ipa });
    }
    if output_bits > most_output {
        return Err(Incompatible::OutputBits { wanted: output_bits, possible: most_output });
    }
    let alignment = stage2.root_bytes().ok_or(Incompatible::StartLevel { start_level, ipa_bits, granule })?;
    if root.value() & alignment.wrapping_sub(1) != 0 {
        return Err(Incompatible::Root { root, alignment });
    }
    if root.value().wrapping_shr(u32::from(most_output)) != 0 {
        return Err(Incompatible::RootReach { root, possible: most_output });
    }
    if stage2.tables == TableMemory::WriteBackInnerShareable && !part.config.coherent {
        return Err(Incompatible::Coherency);
    }
    if alignment > part.config.empty_root.size {
        return Err(Incompatible::EmptyRoot { wanted: alignment, possible: part.config.empty_root.size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::PhysicalAddress;

    fn stage2(granule: Granule, ipa_bits: u8, start_level: u8) -> Stage2 {
        Stage2 {
            root: PhysicalAddress::new(0x8000_0000),
            ipa_bits,
            start_level,
            granule,
            output_bits: 40,
            tables: TableMemory::WriteBackInnerShareable,
        }
    }

    #[test]
    fn o17_tcr_says_what_vtcr_el2_says() {
        // 40-bit IPA, 4 KiB, start level 1 (two concatenated tables), 40-bit output, write-back inner shareable.
        assert_eq!(tcr(&stage2(Granule::Kib4, 40, 1), true), 2 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 24);
        // The same for version 1: T0SZ = -8, S = 1, EAE.
        assert_eq!(
            tcr(&stage2(Granule::Kib4, 40, 1), false),
            1 << 31 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 1 << 4 | 8
        );
        assert_eq!(tcr(&stage2(Granule::Kib4, 32, 1), false) & 0x1f, 0);
        assert_eq!(tcr(&stage2(Granule::Kib64, 42, 2), true) & 0xffff, 1 << 14 | 3 << 12 | 5 << 8 | 1 << 6 | 22);
    }
}
