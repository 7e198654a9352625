//! From a cold or a live SMMU to one that faults every stream: the order of every write, and why.
//!
//! The order (`docs/smmu.md` has the writes):
//!
//! 1. ID registers, checked; nothing is written to what cannot be driven.
//! 2. Fault status cleared: its reset value is UNKNOWN.
//! 3. sCR0 gets the modes that change what other registers mean (extended IDs, 16-bit VMIDs), with CLIENTPD as found; sCR2
//!    switches off what could stand in for the stream map. A live unit gets "unknown and conflicting streams fault" instead.
//! 4. Every S2CR faults, then every SMR is invalid. From the last of these writes on, a live unit reaches nothing new.
//!    Entries of reserved streams are passed over: `takeover.rs` turns them.
//! 5. Everything cached is invalidated, and a *completed* sync says that nothing is in flight towards a bank.
//! 6. Only then may banks be switched off: M = 0 passes through what is still steered there.
//! 7. Everything is invalidated once more: until then a bank whose M was 1 may have walked ahead.
//! 8. sCR0 enables, last ([`enable`]).

use super::bank::tlb::{SyncTimeout, Tlb};
use super::hardware::access::Access;
use super::hardware::part::{Part, StreamWidths};
use super::hardware::quirks::Effects;
use super::hardware::registers::{ANY_VALUE, Fsr, S2cr, Scr0, Scr2, Spelling, cb, gr0};
use super::hardware::{Geometry, ProbeError, Registers};
use super::stream::cover::Cube;
use super::stream::number_set::{BankSet, Set};
use crate::assign::{Patience, Stream};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What the reset found out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) widths: StreamWidths,
    pub(super) spelling: Spelling,
    /// How many of the entries are the driver's (quirk Q13).
    pub(super) entries: u8,
    /// Banks whose prefetcher could not be switched off.
    pub(super) prefetching: u8,
    /// What a live unit keeps for reserved streams.
    pub(super) kept: Kept,
}

/// What a live unit keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// Entries that match reserved streams only.
    pub(super) entries: Set,
    /// Firmware's banks that those entries name.
    pub(super) banks: BankSet,
}

/// What in sCR2 makes streams go by another map than the SMRs and S2CRs.
const OTHER_MAP: Scr2 = Scr2::COMPINDEXENABLE.union(Scr2::EXSMRGENABLE);

/// [`OTHER_MAP`] of what was read.
pub(super) fn other_map(scr2: u32) -> Scr2 {
    Scr2::from_bits_retain(scr2) & OTHER_MAP
}

/// The value of sCR0 that is in force from the end of the reset on. Interrupts only where handlers stand (S-4).
pub(super) fn control(geometry: &Geometry, reports: bool) -> Scr0 {
    let mut control =
        Scr0::GFRE | Scr0::GCFGFRE | Scr0::VMIDPNE | Scr0::PTM | Scr0::USFCFG | Scr0::SMCFCFG | Scr0::STALLD;
    control.set(Scr0::GFIE | Scr0::GCFGFIE, reports);
    control.set(Scr0::EXIDENABLE, geometry.extended_ids);
    control.set(Scr0::VMID16EN, geometry.vmid16);
    control
}

/// Says anew whether faults that belong to no context raise interrupts, on a unit that is enabled.
pub(super) fn rewrite_control<R: Registers>(part: &Part<R>, reports: bool) {
    part.registers.write32(gr0::SCR0, control(&part.geometry, reports).bits());
}

/// Nothing unknown gets through a unit that is live, whatever becomes of its entries.
pub(super) fn guard<R: Registers>(part: &Part<R>) {
    let found = Scr0::from_bits_retain(part.registers.read32(gr0::SCR0));
    if !found.contains(Scr0::CLIENTPD) {
        part.registers.write32(gr0::SCR0, (found | Scr0::USFCFG | Scr0::SMCFCFG).bits());
    }
}

/// Brings the instance to a state in which every stream faults but those of `reserved` that a live unit translates.
/// What is missing is [`enable`].
pub(super) fn reset<P: Platform, R: Registers>(
    held: &mut Held<'_, Unlocked>,
    part: &Part<R>,
    tlb: &Tlb<P>,
    reserved: &[Stream],
) -> Result<Found, ProbeError> {
    let iommu = part.key();
    let control = control(&part.geometry, false);
    let modes = Scr0::EXIDENABLE | Scr0::VMID16EN;
    let found = Scr0::from_bits_retain(part.registers.read32(gr0::SCR0));
    let live = !found.contains(Scr0::CLIENTPD);
    let other_map = if part.geometry.other_map { other_map(part.registers.read32(gr0::SCR2)) } else { Scr2::empty() };
    if live && (found & modes != control & modes || !other_map.is_empty()) {
        // Changing what an SMR means under live streams would let some through elsewhere.
        return Err(ProbeError::LiveInOtherMode(iommu));
    }
    for member in part.registers.members() {
        part.registers.write32_of(member, gr0::SGFSR, part.registers.read32_of(member, gr0::SGFSR));
    }
    let spelling = part.try_spelling(live);
    let entries = part.entries_under(spelling)?;
    let kept = if live { survey(part, entries, reserved) } else { Kept::default() };
    if part.geometry.other_map {
        part.registers.write32(gr0::SCR2, part.registers.read32(gr0::SCR2) & !OTHER_MAP.bits());
    }
    // A live unit keeps translating, but from here on nothing unknown gets through: its entries are about to go.
    let meanwhile = if live { found | Scr0::USFCFG | Scr0::SMCFCFG } else { control | Scr0::CLIENTPD };
    part.registers.write32(gr0::SCR0, meanwhile.bits());

    // A zero S2CR translates through bank 0, so that each must be told to fault. FAULT comes before SMR-invalid, so that no
    // stream of a live unit is steered by half an entry.
    let lost = Set::below(entries) & !kept.entries;
    for entry in lost.each() {
        part.reset_action(entry, spelling);
    }
    let widths = if part.geometry.matching {
        for entry in lost.each() {
            part.reset_match(entry);
        }
        part.try_widths(lost.lowest().ok_or(ProbeError::NoSpareEntry(iommu))?)
    } else {
        let id_bits = u32::from(entries.saturating_sub(1));
        StreamWidths { id_bits, mask_bits: 0, carried: 0x7f }
    };

    let drain = |held: &mut Held<'_, Unlocked>| invalidate_all(held, part, tlb);
    let mut drained = drain(held);
    if drained.is_err() && end_stalls(part) {
        // Q7: a stalled transaction of a live unit is not waited for by any sync, and holds up others.
        drained = drain(held);
    }
    // What may still be steered to a bank must not find it switched off (contract I-4).
    drained.map_err(|SyncTimeout(waited)| ProbeError::SyncTimeout { iommu, waited })?;
    for bank in (BankSet::below(part.geometry.banks) & !kept.banks).each() {
        switch_off(part, bank);
    }
    let prefetching = implementation_defined(&part.registers, &part.geometry);
    // Up to here a bank whose M was 1 may have walked ahead, under a VMID that is about to get an owner.
    drain(held).map_err(|SyncTimeout(waited)| ProbeError::SyncTimeout { iommu, waited })?;
    Ok(Found { widths, spelling, entries, prefetching, kept })
}

/// What of a live unit's stream map goes on: reads every SMR and S2CR, writes nothing.
fn survey<R: Registers>(part: &Part<R>, entries: u8, reserved: &[Stream]) -> Kept {
    let mut kept = Kept::default();
    for number in (0..entries).filter(|_| !reserved.is_empty()) {
        let (Some(cube), action) = part.read_entry(number) else { continue };
        let inside = reserved.iter().any(|stream| Cube::from(*stream).contains(cube));
        if !inside || action == Some(S2cr::Fault) {
            continue;
        }
        kept.entries.put(number, true);
        if let Some(S2cr::Translate(bank)) = action
            && bank < part.geometry.banks
        {
            kept.banks.put(bank, true);
        }
    }
    kept
}

/// The last write: from here on streams are matched, and what no entry matches faults.
pub(super) fn enable<P: Platform, R: Registers>(part: &Part<R>, reports: bool) -> Result<(), ProbeError> {
    let Part { geometry, registers, .. } = part;
    let (iommu, control) = (part.key(), control(geometry, reports));
    for member in registers.members() {
        let found = if geometry.other_map { registers.read32_of(member, gr0::SCR2) } else { 0 };
        if !other_map(found).is_empty() {
            let written = found & !OTHER_MAP.bits();
            return Err(ProbeError::ControlNotTaken { iommu, register: "sCR2", written, found });
        }
    }
    P::barrier();
    registers.write32(gr0::SCR0, control.bits());
    for member in registers.members() {
        let taken = registers.read32_of(member, gr0::SCR0);
        let needed = Scr0::USFCFG | Scr0::SMCFCFG | (control & (Scr0::EXIDENABLE | Scr0::VMID16EN));
        let isolating = Scr0::from_bits_retain(taken);
        if !isolating.contains(needed) || isolating.contains(Scr0::CLIENTPD) {
            let (register, written) = ("sCR0", control.bits());
            return Err(ProbeError::ControlNotTaken { iommu, register, written, found: taken });
        }
    }
    Ok(())
}

/// Invalidates everything that a non-secure stage 2 can have cached, and waits until it is done.
pub(super) fn invalidate_all<P: Platform, R: Registers>(
    held: &mut Held<'_, Unlocked>,
    part: &Part<R>,
    tlb: &Tlb<P>,
) -> Result<(), SyncTimeout> {
    let ticket = tlb.post(held, &part.registers, |registers| {
        registers.write32(gr0::TLBIALLNSNH, ANY_VALUE);
        registers.write32(gr0::TLBIALLH, ANY_VALUE);
    });
    tlb.wait(held, &part.registers, ticket, || part.config.bound(Patience::Waiting))
}

/// Switches off a bank that nothing is steered to.
pub(super) fn switch_off<R: Registers>(part: &Part<R>, bank: u8) {
    let Part { geometry, registers, .. } = part;
    registers.write32(geometry.bank(bank, cb::SCTLR), 0);
    // Write one to clear: all status bits go, whatever they were.
    registers.write32(geometry.bank(bank, cb::FSR), u32::MAX);
}

/// Ends what is stalled in any bank. Says whether anything was.
fn end_stalls<R: Registers>(part: &Part<R>) -> bool {
    const TERMINATE: u32 = 1;
    let Part { geometry, registers, .. } = part;
    let mut any = false;
    for bank in 0..geometry.banks {
        let status = Fsr::from_bits_retain(registers.status(geometry.bank(bank, cb::FSR)));
        if status.contains(Fsr::SS) {
            registers.write32(geometry.bank(bank, cb::FSR), u32::MAX);
            registers.write32(geometry.bank(bank, cb::RESUME), TERMINATE);
            any = true;
        }
    }
    any
}

/// What an implementation wants before it translates. Returns how many banks prefetch still.
fn implementation_defined<R: Registers>(registers: &Access<R>, geometry: &Geometry) -> u8 {
    const SACR_CACHE_LOCK: u32 = 1 << 26;
    const ACTLR_CPRE: u32 = 1 << 1;
    let mut prefetching = 0_u8;
    if registers.has(Effects::UNLOCK_ACTLR) {
        // Q3: no bank's ACTLR takes a write while the lock is set.
        registers.write32(gr0::SACR, registers.read32(gr0::SACR) & !SACR_CACHE_LOCK);
    }
    if registers.has(Effects::NO_PREFETCH) {
        for bank in 0..geometry.banks {
            // Q4: the prefetcher walks with stale context.
            let actlr = geometry.bank(bank, cb::ACTLR);
            registers.write32(actlr, registers.read32(actlr) & !ACTLR_CPRE);
            if registers.read32(actlr) & ACTLR_CPRE != 0 {
                prefetching = prefetching.saturating_add(1);
            }
        }
    }
    prefetching
}
