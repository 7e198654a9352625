//! Pairs of SMMUs that a [`World`](super::World) can have: small ones, so that things run out.

use iommu_assign::assign::{IommuKey, PhysicalAddress};
use iommu_assign::smmu::{Architecture, ContextLines, EmptyRoot, Implementation, SmmuConfig};
use smmu_model::{Config, Conflict};

use crate::op::Side;
use crate::specification::Part;

/// Which parts the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Board {
    /// Plain SMMUv2, few entries and banks.
    Small,
    /// Plain SMMUv2, with enough of all: what runs out is never the reason.
    Roomy,
    /// SMMUv1, and an MMU-400 that reports no conflicts.
    Version1,
    /// MMU-401, one with 2 entries and 1 bank.
    Mmu401,
    /// MMU-500, whose prefetches and conflicts are the worst that the architecture allows.
    Mmu500,
    /// Extended stream IDs and 16-bit VMIDs.
    Extended,
    /// A stream ID is the index of its entry.
    Indexing,
    /// 64-bit registers must be written in halves.
    Split,
}

/// Where zeroes stand for parked banks.
const EMPTY: EmptyRoot = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };

impl Board {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Small,
        Self::Roomy,
        Self::Version1,
        Self::Mmu401,
        Self::Mmu500,
        Self::Extended,
        Self::Indexing,
        Self::Split,
    ];

    /// The part at `side`.
    #[must_use]
    pub fn model(self, side: Side) -> Config {
        let sized = |config: Config, a: (u8, u8), b: (u8, u8)| {
            let (groups, banks) = if side == Side::A { a } else { b };
            Config { groups, banks, stage2_banks: config.stage2_banks.min(banks), ..config }
        };
        match (self, side) {
            (Self::Small, _) => sized(Config::generic_v2(), (5, 2), (3, 1)),
            (Self::Roomy, _) => sized(Config::generic_v2(), (16, 4), (16, 4)),
            (Self::Version1, Side::A) => sized(Config::generic_v1(), (6, 2), (6, 2)),
            (Self::Version1, Side::B) => sized(Config::mmu400(), (3, 2), (3, 2)),
            (Self::Mmu401, Side::A) => Config::mmu401(7, 2),
            (Self::Mmu401, Side::B) => Config::mmu401_juno_small(),
            (Self::Mmu500, _) => {
                let worst = Config { prefetch: true, conflict: Conflict::Varies, ..Config::mmu500_zynqmp() };
                sized(worst, (6, 2), (4, 2))
            }
            (Self::Extended, _) => sized(Config::extended(), (6, 2), (4, 2)),
            (Self::Indexing, _) => Config { banks: 2, ..Config::stream_indexing() },
            (Self::Split, _) => sized(Config::ap806(), (6, 2), (4, 1)),
        }
    }

    /// How the driver is told of that part.
    #[must_use]
    pub fn config(self, side: Side) -> SmmuConfig {
        let model = self.model(side);
        let key: IommuKey = side.key();
        let architecture = match model.architecture {
            smmu_model::Architecture::V2 => Architecture::V2,
            _ => Architecture::V1,
        };
        let region = u64::from(model.bank_base()).wrapping_mul(2);
        let mut config = SmmuConfig::new(key, region, architecture, EMPTY);
        config.polls = 8;
        config.context_lines = ContextLines::each(model.banks);
        config.implementation = match self {
            Self::Mmu401 => Implementation::Mmu401,
            Self::Mmu500 => Implementation::Mmu500,
            Self::Split => Implementation::MarvellAp806,
            _ => Implementation::Generic,
        };
        config
    }

    /// What the specification is told of it.
    #[must_use]
    pub fn part(self, side: Side) -> Part {
        let model = self.model(side);
        let banks = model.banks.into();
        if model.stream_matching {
            let (id_bits, mask_bits) = (model.smr_id.into(), model.smr_mask.into());
            Part { entries: model.groups.into(), banks, id_bits, mask_bits }
        } else {
            let entries = 1_usize << model.stream_id_bits.min(7);
            Part { entries, banks, id_bits: !(u32::MAX << model.stream_id_bits), mask_bits: 0 }
        }
    }
}
