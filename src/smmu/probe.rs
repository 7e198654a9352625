//! From a cold or a live SMMU to one that faults every stream: the order of every write, and why.
//!
//! The order (`docs/smmu.md` has the writes):
//!
//! 1. ID registers, checked; nothing is written to what cannot be driven.
//! 2. Fault status cleared: its reset value is UNKNOWN.
//! 3. sCR0 gets the modes that change what other registers mean (extended IDs, 16-bit VMIDs), with CLIENTPD as found;
//!    a live unit gets "unknown and conflicting streams fault" instead.
//! 4. Every S2CR faults, then every SMR is invalid. From the last of these writes on, a live unit reaches nothing new.
//!    Entries of reserved streams are passed over: [`reserved`](super::reserved) turns them.
//! 5. Everything cached is invalidated, and a *completed* sync says that nothing is in flight towards a bank.
//! 6. Only then may banks be switched off: M = 0 passes through what is still steered there.
//! 7. Everything is invalidated once more: until then a bank whose M was 1 may have walked ahead.
//! 8. sCR0 enables, last ([`enable`]).

use super::access::Access;
use super::config::SmmuConfig;
use super::geometry::{Geometry, ProbeError};
use super::mmio::Registers;
use super::quirks::Effects;
use super::registers::{ANY_VALUE, Fsr, S2cr, Scr0, Spelling, cb, gr0, smr};
use super::reserved::{self, Kept};
use super::stream_map::one;
use super::tlb::{SyncTimeout, Ticket, Tlb};
use crate::assign::{Patience, Stream};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What the hardware keeps of a stream-map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamWidths {
    pub(super) id_bits: u32,
    pub(super) mask_bits: u32,
    /// Bits that a stream ID can carry here, compared or not.
    pub(super) carried: u32,
}

/// What the reset found out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) widths: StreamWidths,
    pub(super) spelling: Spelling,
    /// Banks whose prefetcher could not be switched off.
    pub(super) prefetching: u8,
    /// What a live unit keeps for reserved streams.
    pub(super) kept: Kept,
}

/// The part that is reset.
pub(super) struct Part<'a, R> {
    pub(super) config: &'a SmmuConfig,
    pub(super) geometry: &'a Geometry,
    pub(super) registers: &'a Access<R>,
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

/// Brings the instance to a state in which every stream faults but those of `reserved` that a live unit translates.
/// What is missing is [`enable`].
pub(super) fn reset<P: Platform, R: Registers>(
    held: &mut Held<'_, Unlocked>,
    part: &Part<'_, R>,
    tlb: &Tlb<P>,
    reserved: &[Stream],
) -> Result<Found, ProbeError> {
    let Part { config, geometry, registers } = part;
    let iommu = config.key;
    let control = control(geometry, false);
    let modes = Scr0::EXIDENABLE | Scr0::VMID16EN;
    let found = Scr0::from_bits_retain(registers.read32(gr0::SCR0));
    let live = !found.contains(Scr0::CLIENTPD);
    if live && found & modes != control & modes {
        // Changing what an SMR means under live streams would let some through elsewhere.
        return Err(ProbeError::LiveInOtherMode(iommu));
    }
    for member in registers.members() {
        registers.write32_of(member, gr0::SGFSR, registers.read32_of(member, gr0::SGFSR));
    }
    let spelling = spelling(part, live);
    let kept = if live { reserved::survey(part, spelling, reserved) } else { Kept::default() };
    // A live unit keeps translating, but from here on nothing unknown gets through: its entries are about to go.
    let meanwhile = if live { found | Scr0::USFCFG | Scr0::SMCFCFG } else { control | Scr0::CLIENTPD };
    registers.write32(gr0::SCR0, meanwhile.bits());

    // A zero S2CR translates through bank 0, so that each must be told to fault. FAULT comes before SMR-invalid, so that no
    // stream of a live unit is steered by half an entry.
    let lost = |entry: &u8| kept.entries & one(*entry) == 0;
    for entry in (0..geometry.entries).filter(lost) {
        registers.write32(gr0::s2cr(entry), spelling.write(S2cr::Fault, false));
    }
    let carried = if geometry.extended_ids { 0xffff } else { 0x7fff };
    let widths = if geometry.matching {
        for entry in (0..geometry.entries).filter(lost) {
            registers.write32(gr0::smr(entry), 0);
        }
        let spare = (0..geometry.entries).find(lost).ok_or(ProbeError::NoSpareEntry(iommu))?;
        probe_widths(registers, geometry, spare, carried)
    } else {
        StreamWidths { id_bits: u32::from(geometry.entries.saturating_sub(1)), mask_bits: 0, carried: 0x7f }
    };

    let ticket = post_everything(held, registers, tlb);
    let bound = config.bound(Patience::Waiting);
    let mut drained = tlb.wait(held, registers, ticket, bound);
    if drained.is_err() && end_stalls(part) {
        // Q7: a stalled transaction of a live unit is not waited for by any sync, and holds up others.
        let ticket = post_everything(held, registers, tlb);
        drained = tlb.wait(held, registers, ticket, bound);
    }
    // What may still be steered to a bank must not find it switched off (contract I-4).
    drained.map_err(|SyncTimeout(waited)| ProbeError::SyncTimeout { iommu, waited })?;
    for bank in (0..geometry.banks).filter(|bank| kept.banks & one(*bank) == 0) {
        switch_off(registers, geometry, bank);
    }
    let prefetching = implementation_defined(registers, geometry);
    // Up to here a bank whose M was 1 may have walked ahead, under a VMID that is about to get an owner.
    let ticket = post_everything(held, registers, tlb);
    tlb.wait(held, registers, ticket, bound)
        .map_err(|SyncTimeout(waited)| ProbeError::SyncTimeout { iommu, waited })?;
    Ok(Found { widths, spelling, prefetching, kept })
}

/// The last write: from here on streams are matched, and what no entry matches faults.
pub(super) fn enable<P: Platform, R: Registers>(part: &Part<'_, R>, reports: bool) -> Result<(), ProbeError> {
    let Part { config, geometry, registers } = part;
    let control = control(geometry, reports);
    P::barrier();
    registers.write32(gr0::SCR0, control.bits());
    for member in registers.members() {
        let taken = registers.read32_of(member, gr0::SCR0);
        let needed = Scr0::USFCFG | Scr0::SMCFCFG | (control & (Scr0::EXIDENABLE | Scr0::VMID16EN));
        let isolating = Scr0::from_bits_retain(taken);
        if !isolating.contains(needed) || isolating.contains(Scr0::CLIENTPD) {
            let iommu = config.key;
            return Err(ProbeError::ControlNotTaken { iommu, written: control.bits(), found: taken });
        }
    }
    Ok(())
}

/// Invalidates everything that a non-secure stage 2 can have cached.
pub(super) fn post_everything<P: Platform, R: Registers>(
    held: &mut Held<'_, Unlocked>,
    registers: &Access<R>,
    tlb: &Tlb<P>,
) -> Ticket {
    tlb.post(held, registers, |registers| {
        registers.write32(gr0::TLBIALLNSNH, ANY_VALUE);
        registers.write32(gr0::TLBIALLH, ANY_VALUE);
    })
}

/// Switches off a bank that nothing is steered to.
pub(super) fn switch_off<R: Registers>(registers: &Access<R>, geometry: &Geometry, bank: u8) {
    registers.write32(geometry.bank(bank, cb::SCTLR), 0);
    // Write one to clear: all status bits go, whatever they were.
    registers.write32(geometry.bank(bank, cb::FSR), u32::MAX);
}

/// Q12: finds out whether this part's firmware stores TYPE = fault, or takes bypass for it.
fn spelling<R: Registers>(part: &Part<'_, R>, live: bool) -> Spelling {
    let Part { geometry, registers, .. } = part;
    let mut spelling = Spelling { fault: Spelling::FAULT, validity: geometry.extended_ids && geometry.matching };
    if !registers.has(Effects::TRY_FAULT_WRITE) {
        return spelling;
    }
    // With clients disabled, or on an entry that matches nothing, what is tried has no effect on any stream. A live
    // unit without a free entry loses its last one a moment early.
    let unmatched = |entry: &u8| {
        let (valid, ..) = smr::decode(registers.read32(gr0::smr(*entry)), geometry.extended_ids);
        let valid = if spelling.validity { spelling.is_valid(registers.read32(gr0::s2cr(*entry))) } else { valid };
        geometry.matching && !valid
    };
    let last = geometry.entries.saturating_sub(1);
    let entry = if live { (0..geometry.entries).rev().find(unmatched).unwrap_or(last) } else { last };
    registers.write32(gr0::s2cr(entry), Spelling::BYPASS);
    if S2cr::decode(registers.read32(gr0::s2cr(entry))) == Some(S2cr::Fault) {
        spelling.fault = Spelling::BYPASS;
    }
    spelling
}

/// Ends what is stalled in any bank. Says whether anything was.
fn end_stalls<R: Registers>(part: &Part<'_, R>) -> bool {
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

/// Finds out which ID and mask bits an SMR keeps: ID first, since ID bits under a mask may not be kept.
fn probe_widths<R: Registers>(registers: &Access<R>, geometry: &Geometry, spare: u8, carried: u32) -> StreamWidths {
    // The entry is invalid and its S2CR faults; with extended IDs the missing EXIDVALID keeps it from matching.
    let register = gr0::smr(spare);
    registers.write32(register, carried);
    let (_, id_bits, _) = smr::decode(registers.read32(register), geometry.extended_ids);
    registers.write32(register, carried << 16);
    let (_, _, mask_bits) = smr::decode(registers.read32(register), geometry.extended_ids);
    registers.write32(register, 0);
    StreamWidths { id_bits, mask_bits: mask_bits & id_bits, carried }
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
