//! One instance as the rest of the driver sees it: its description, its registers, and what the reset found out.

use super::access::Access;
use super::geometry::{Geometry, NO_GRANULES};
use super::mmio::Registers;
use super::quirks::{self, Effects};
use super::registers::Spelling;
use super::smmu_config::{Architecture, SmmuConfig};
use crate::assign::{Granules, IommuKey, Stage2Limits};

/// The index of a context bank, 0..=127.
pub(in crate::smmu) type BankIndex = u8;

/// What the hardware keeps of a stream-map entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::smmu) struct StreamWidths {
    pub(in crate::smmu) id_bits: u32,
    pub(in crate::smmu) mask_bits: u32,
    /// Bits that a stream ID can carry here, compared or not.
    pub(in crate::smmu) carried: u32,
}

/// What one instance is. Nothing but the registers changes after the probe.
#[derive(Debug)]
pub(in crate::smmu) struct Part<R> {
    pub(in crate::smmu) config: SmmuConfig,
    pub(in crate::smmu) geometry: Geometry,
    pub(in crate::smmu) registers: Access<R>,
    /// That of bank 0, at least 1 (quirk Q14). Where the instance's caches are its own it is 1.
    pub(in crate::smmu) first_vmid: u16,
    /// Found out by the reset.
    pub(in crate::smmu) widths: StreamWidths,
    pub(in crate::smmu) spelling: Spelling,
}

impl<R: Registers> Part<R> {
    /// The part before its reset.
    pub(in crate::smmu) fn new(config: SmmuConfig, geometry: Geometry, registers: R) -> Self {
        let effects = quirks::effects_of(&config, geometry.revision);
        let registers = Access::new(registers, effects, config.read_back);
        let spelling = Spelling { fault: Spelling::FAULT, validity: geometry.extended_ids && geometry.matching };
        Self { config, geometry, registers, first_vmid: 1, widths: StreamWidths::default(), spelling }
    }

    /// What tables its banks can follow.
    pub(in crate::smmu) fn limits(&self) -> Stage2Limits {
        let Geometry { long_granules, aarch32_long, .. } = self.geometry;
        let (ipa_bits, output_bits) = self.geometry.reach(long_granules != NO_GRANULES);
        Stage2Limits {
            ipa_bits,
            output_bits,
            granules: Granules { kib4: long_granules.kib4 || aarch32_long, ..long_granules },
            coherent: self.config.coherent,
            blocks: !self.registers.has(Effects::NO_BLOCKS),
        }
    }
}

impl<R> Part<R> {
    pub(in crate::smmu) const fn key(&self) -> IommuKey {
        self.config.key
    }

    /// The tag of a bank's translations in the TLB.
    pub(in crate::smmu) const fn vmid(&self, bank: BankIndex) -> u32 {
        self.first_vmid.wrapping_add(bank as u16) as u32
    }

    /// The context line, counted from 0 in firmware's order, that a bank raises (contract S-4, quirk Q23). `None` where
    /// nothing says which: then every line can be its own.
    pub(in crate::smmu) fn line_of(&self, bank: BankIndex) -> Option<u8> {
        let lines = &self.config.context_lines;
        match self.config.architecture {
            // The driver chooses among the interrupts that there are.
            Architecture::V1 => lines.line_of_used(self.interrupt_of(bank), self.geometry.context_interrupts),
            Architecture::V2 => lines.line_of_used(bank, self.geometry.banks),
        }
    }

    /// CBAR.IRPTNDX of a bank, in version 1.
    pub(in crate::smmu) const fn interrupt_of(&self, bank: BankIndex) -> u8 {
        match self.config.architecture {
            Architecture::V1 => match bank.checked_rem(self.geometry.context_interrupts) {
                Some(interrupt) => interrupt,
                None => 0,
            },
            Architecture::V2 => 0,
        }
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::context_lines::ContextLines;
    use super::super::registers::gr0;
    use super::super::smmu_config::EmptyRoot;
    use super::*;
    use crate::assign::PhysicalAddress;

    /// The ID registers of a part with eight banks and so many context interrupts.
    #[derive(Debug)]
    struct Identified(u32);

    impl Registers for Identified {
        fn read32(&self, offset: u32) -> u32 {
            match offset {
                gr0::IDR0 => 1 << 29 | self.0 << 16,
                gr0::IDR1 => 3 << 28 | 8,
                _ => 0,
            }
        }

        fn write32(&self, _: u32, _: u32) {}

        fn read64(&self, _: u32) -> u64 {
            0
        }

        fn write64(&self, _: u32, _: u64) {}
    }

    fn part(architecture: Architecture, context_lines: u8, interrupts: u32) -> Part<Identified> {
        let root = EmptyRoot { address: PhysicalAddress::new(0), size: 0 };
        let config = SmmuConfig::new(IommuKey::new(0), 1 << 20, architecture, root);
        let config = SmmuConfig { context_lines: ContextLines::each(context_lines), ..config };
        let geometry = Geometry::read(&Identified(interrupts), &config).expect("a part that can be driven");
        Part::new(config, geometry, Identified(interrupts))
    }

    fn lines(architecture: Architecture, listed: u8) -> [Option<u8>; 4] {
        [0, 2, 3, 7].map(|bank| part(architecture, listed, 3).line_of(bank))
    }

    #[test]
    fn q23_version_1_shares_its_interrupts_and_version_2_has_one_for_each_bank() {
        assert_eq!(lines(Architecture::V1, 3), [Some(0), Some(2), Some(0), Some(1)]);
        assert_eq!(lines(Architecture::V2, 8), [Some(0), Some(2), Some(3), Some(7)]);
    }

    #[test]
    fn q23_one_line_is_all_banks_and_too_few_are_nobodys() {
        for architecture in [Architecture::V1, Architecture::V2] {
            assert_eq!(lines(architecture, 1), [Some(0); 4]);
            assert_eq!(lines(architecture, 2), [None; 4]);
        }
        let none = part(Architecture::V1, 2, 0);
        assert_eq!((none.line_of(5), none.interrupt_of(5)), (Some(0), 0));
    }
}
