//! From a cold or a live SMMU to one that faults every stream: the order of every write, and why.
//!
//! The order (IHI 0062D and rules O8, O13, O14 of the field):
//!
//! 1. ID registers, checked; nothing is written to what cannot be driven.
//! 2. Fault status cleared: its reset value is UNKNOWN.
//! 3. sCR0 gets the modes that change what other registers mean (extended IDs, 16-bit VMIDs), with CLIENTPD as found;
//!    a live unit gets "unknown and conflicting streams fault" instead.
//! 4. Every S2CR faults, then every SMR is invalid. From the last of these writes on, a live unit reaches nothing new.
//! 5. Everything cached is invalidated, and a *completed* sync says that nothing is in flight towards a bank.
//! 6. Only then may banks be switched off: M = 0 passes through what is still steered there.
//! 7. sCR0 enables, last.

use super::config::{Implementation, SmmuConfig};
use super::geometry::{Geometry, ProbeError};
use super::mmio::Registers;
use super::registers::{ANY_VALUE, S2cr, Scr0, cb, gr0, smr};
use super::tlb::Tlb;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What the hardware keeps of a stream-map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamWidths {
    pub(super) id_bits: u32,
    pub(super) mask_bits: u32,
}

/// The value of sCR0 that is in force from the end of the reset on.
pub(super) fn control(geometry: &Geometry) -> Scr0 {
    let mut control = Scr0::GFRE
        | Scr0::GFIE
        | Scr0::GCFGFRE
        | Scr0::GCFGFIE
        | Scr0::VMIDPNE
        | Scr0::PTM
        | Scr0::USFCFG
        | Scr0::SMCFCFG
        | Scr0::STALLD;
    control.set(Scr0::EXIDENABLE, geometry.extended_ids);
    control.set(Scr0::VMID16EN, geometry.vmid16);
    control
}

/// Brings the instance to a state in which every stream faults, and enables it.
pub(super) fn reset<P: Platform>(
    held: &mut Held<'_, Unlocked>,
    registers: &impl Registers,
    config: &SmmuConfig,
    geometry: &Geometry,
    tlb: &Tlb<P>,
) -> Result<StreamWidths, ProbeError> {
    let iommu = config.key;
    let control = control(geometry);
    let modes = Scr0::EXIDENABLE | Scr0::VMID16EN;
    let found = Scr0::from_bits_retain(registers.read32(gr0::SCR0));
    let live = !found.contains(Scr0::CLIENTPD);
    if live && found & modes != control & modes {
        // Changing what an SMR means under live streams would let some through elsewhere.
        return Err(ProbeError::LiveInOtherMode(iommu));
    }
    registers.write32(gr0::SGFSR, registers.read32(gr0::SGFSR));
    // A live unit keeps translating, but from here on nothing unknown gets through: its entries are about to go.
    let meanwhile = if live { found | Scr0::USFCFG | Scr0::SMCFCFG } else { control | Scr0::CLIENTPD };
    registers.write32(gr0::SCR0, meanwhile.bits());

    // O8: a zero S2CR translates through bank 0, so that each must be told to fault. FAULT comes before
    // SMR-invalid, so that no stream of a live unit is steered by half an entry.
    for entry in 0..geometry.entries {
        registers.write32(gr0::s2cr(entry), S2cr::Fault.encode(false));
    }
    let widths = if geometry.matching {
        for entry in 0..geometry.entries {
            registers.write32(gr0::smr(entry), 0);
        }
        probe_widths(registers, geometry)
    } else {
        StreamWidths { id_bits: u32::from(geometry.entries.saturating_sub(1)), mask_bits: 0 }
    };

    let ticket = tlb.post(held, registers, |registers| {
        registers.write32(gr0::TLBIALLNSNH, ANY_VALUE);
        registers.write32(gr0::TLBIALLH, ANY_VALUE);
    });
    if tlb.wait(held, registers, ticket, config.polls).is_err() {
        // O14: what may still be steered to a bank must not find it switched off.
        return Err(ProbeError::SyncTimeout { iommu, polls: config.polls });
    }
    for bank in 0..geometry.banks {
        registers.write32(geometry.bank(bank, cb::SCTLR), 0);
        // Write one to clear: all status bits go, whatever they were.
        registers.write32(geometry.bank(bank, cb::FSR), u32::MAX);
    }
    implementation_defined(registers, config, geometry);

    P::barrier();
    registers.write32(gr0::SCR0, control.bits());
    let taken = registers.read32(gr0::SCR0);
    let needed = Scr0::USFCFG | Scr0::SMCFCFG | (control & modes);
    let isolating = Scr0::from_bits_retain(taken);
    if !isolating.contains(needed) || isolating.contains(Scr0::CLIENTPD) {
        return Err(ProbeError::ControlNotTaken { iommu, written: control.bits(), found: taken });
    }
    Ok(widths)
}

/// Finds out which ID and mask bits an SMR keeps: ID first, since ID bits under a mask may not be kept.
fn probe_widths(registers: &impl Registers, geometry: &Geometry) -> StreamWidths {
    // Entry 0 is invalid and its S2CR faults; with extended IDs the missing EXIDVALID keeps it from matching.
    let all = if geometry.extended_ids { 0xffff } else { 0x7fff };
    registers.write32(gr0::smr(0), all);
    let (_, id_bits, _) = smr::decode(registers.read32(gr0::smr(0)), geometry.extended_ids);
    registers.write32(gr0::smr(0), all << 16);
    let (_, _, mask_bits) = smr::decode(registers.read32(gr0::smr(0)), geometry.extended_ids);
    registers.write32(gr0::smr(0), 0);
    StreamWidths { id_bits, mask_bits: mask_bits & id_bits }
}

/// What an implementation wants before it translates.
fn implementation_defined(registers: &impl Registers, config: &SmmuConfig, geometry: &Geometry) {
    const SACR_CACHE_LOCK: u32 = 1 << 26;
    const ACTLR_CPRE: u32 = 1 << 1;
    let mmu500 = matches!(
        config.implementation,
        Implementation::Mmu500 | Implementation::MarvellAp806 | Implementation::Nvidia | Implementation::QualcommMmu500
    );
    if !mmu500 {
        return;
    }
    if geometry.revision >> 4 >= 2 {
        // Q3: from r2 on, no bank's ACTLR takes a write while the lock is set.
        let sacr = registers.read32(gr0::SACR);
        registers.write32(gr0::SACR, sacr & !SACR_CACHE_LOCK);
    }
    for bank in 0..geometry.banks {
        // Q4: the prefetcher walks with stale context (errata 841119, 826419, 562869, 1047329).
        let actlr = geometry.bank(bank, cb::ACTLR);
        registers.write32(actlr, registers.read32(actlr) & !ACTLR_CPRE);
    }
}
