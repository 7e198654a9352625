//! Parts by name. Numbers are what the parts' ID registers are known to read; the rest is the architecture.

use crate::config::{
    Architecture, Config, Conflict, Fixed, PageSize, Quirks, SyncDelay, Unimplemented, Unknown, WideAccess, WideInput,
    Wiring,
};
use crate::registers::scr0;

/// What MMU-500 holds fixed in `sCR0`: conflicts fault; no GSE, STALLD, GCFGFIE, GCFGFRE.
const MMU500_CR0: Fixed =
    Fixed { mask: scr0::SMCFCFG | scr0::GSE | scr0::STALLD | scr0::GCFGFIE | scr0::GCFGFRE, value: scr0::SMCFCFG };

impl Config {
    /// A plain SMMUv2: 64 KiB pages, 32 groups, 8 banks, every granule, both stages and nesting, 48 bits.
    pub fn generic_v2() -> Self {
        Self {
            architecture: Architecture::V2,
            page_size: PageSize::Large,
            num_page_index_bits: 3,
            stage1: true,
            stage2: true,
            nested: true,
            stream_matching: true,
            groups: 32,
            extended_groups: 0,
            stream_id_bits: 15,
            smr_id: 0x7fff,
            smr_mask: 0x7fff,
            banks: 8,
            stage2_banks: 0,
            fixed_bank_type: true,
            context_interrupts: 1,
            wiring: Wiring::Separate,
            intermediate_bits: 48,
            output_bits: 48,
            upstream_bits: 49,
            granule_4k: true,
            granule_16k: true,
            granule_64k: true,
            extended_ids: false,
            vmid16: false,
            conflict: Conflict::Detected,
            conflict_reported: true,
            coherent_walk: false,
            broadcast_maintenance: false,
            cr0_fixed: Fixed::default(),
            stall: true,
            unimplemented: Unimplemented::Ignored,
            cbar_reset: None,
            sctlr_reset: None,
            actlr_reset: None,
            acr_reset: None,
            bank_write_retries: false,
            wide_input: WideInput::AddressSize,
            tlb_entries: 64,
            walk_cache_entries: 64,
            prefetch: false,
            stale_entries: 0,
            over_invalidate: false,
            sync_delay: SyncDelay::Polls(2),
            security_index_bits: 0,
            unknown: Unknown::Seed(0x5eed),
            revision: 0x10,
            peripheral_id: 0,
            quirks: Quirks::NONE,
        }
    }

    /// A plain SMMUv1: 4 KiB pages, 32 groups, 8 banks (two of them stage-2 only), 40 bits, 4 context interrupts.
    pub fn generic_v1() -> Self {
        Self {
            architecture: Architecture::V1,
            page_size: PageSize::Small,
            banks: 8,
            stage2_banks: 2,
            context_interrupts: 4,
            intermediate_bits: 40,
            output_bits: 40,
            upstream_bits: 40,
            granule_4k: false,
            granule_16k: false,
            granule_64k: false,
            ..Self::generic_v2()
        }
    }

    /// An SMMUv2 whose stream ID indexes the S2CRs (`IDR0.SMS` = 0): 7 bits, 128 S2CRs.
    pub fn stream_indexing() -> Self {
        Self { stream_matching: false, groups: 128, stream_id_bits: 7, ..Self::generic_v2() }
    }

    /// An SMMUv2 with 16-bit stream IDs and 16-bit VMIDs.
    pub fn extended() -> Self {
        Self { extended_ids: true, vmid16: true, smr_id: 0xffff, smr_mask: 0xffff, groups: 64, ..Self::generic_v2() }
    }

    /// MMU-400: SMMUv1, stage 2 only, 32 groups, 8 banks, one context interrupt, in 64 KiB of registers.
    pub fn mmu400() -> Self {
        Self {
            num_page_index_bits: 2,
            stage1: false,
            nested: false,
            stage2_banks: 8,
            context_interrupts: 1,
            upstream_bits: 40,
            conflict_reported: false,
            stall: true,
            ..Self::generic_v1()
        }
    }

    /// MMU-401 with `groups` stream-map groups and `banks` context banks: SMMUv1 with the AArch64 64 KiB granule, stage
    /// 2 only.
    pub fn mmu401(groups: u8, banks: u8) -> Self {
        Self {
            architecture: Architecture::V1Aarch64,
            granule_64k: true,
            groups,
            banks,
            stage2_banks: banks,
            ..Self::mmu400()
        }
    }

    /// The smaller MMU-401s of Juno: 2 groups, 1 bank.
    pub fn mmu401_juno_small() -> Self {
        Self::mmu401(2, 1)
    }

    /// The larger MMU-401s of Juno: 32 groups, 4 banks.
    pub fn mmu401_juno_large() -> Self {
        Self::mmu401(32, 4)
    }

    /// MMU-500 as ZynqMP has it: `IDR0` 0xfc013e30 (whose top bit reads as zero from the Non-secure side), `IDR1`
    /// 0x30000f10, `IDR2` 0x5555; 48 groups, 16 banks.
    pub fn mmu500_zynqmp() -> Self {
        Self {
            page_size: PageSize::Small,
            groups: 48,
            banks: 16,
            granule_16k: false,
            conflict_reported: false,
            coherent_walk: false,
            broadcast_maintenance: true,
            cr0_fixed: MMU500_CR0,
            cbar_reset: Some(0x0002_0000),
            sctlr_reset: Some(0x0000_0100),
            actlr_reset: Some(0x3),
            acr_reset: Some(0x0400_0004),
            wiring: Wiring::Combined,
            security_index_bits: 15,
            revision: 0x21,
            peripheral_id: 0x001b_b481,
            quirks: Quirks { cache_lock: true, stall_blocks_all: true, ..Quirks::NONE },
            ..Self::generic_v2()
        }
    }

    /// MMU-500 as Layerscape parts have it: 64 KiB pages, 128 groups, 64 banks.
    pub fn mmu500_layerscape() -> Self {
        Self {
            page_size: PageSize::Large,
            num_page_index_bits: 5,
            groups: 128,
            banks: 64,
            wiring: Wiring::Separate,
            quirks: Quirks { cache_lock: true, ..Quirks::NONE },
            ..Self::mmu500_zynqmp()
        }
    }

    /// MMU-500 of Marvell AP806: 64-bit accesses are lost.
    pub fn ap806() -> Self {
        Self {
            quirks: Quirks { wide_access: WideAccess::Lost, cache_lock: true, ..Quirks::NONE },
            ..Self::mmu500_layerscape()
        }
    }

    /// A Qualcomm part behind its firmware: bypass is stored as fault, fault writes and zero-valued maintenance writes
    /// are lost, 255 groups are reported of which 128 exist, and banks 7 and up must not be touched.
    pub fn qualcomm() -> Self {
        let quirks = Quirks {
            bypass_becomes_fault: true,
            fault_write_ignored: true,
            zero_maintenance_lost: true,
            reported_groups: Some(255),
            hidden_banks_from: Some(7),
            ..Quirks::NONE
        };
        Self { page_size: PageSize::Small, groups: 128, banks: 21, num_page_index_bits: 4, ..Self::generic_v2() }
            .quirks(quirks)
    }

    /// An MMU-500 of Qualcomm's with nobody between it and software, which was started at EL2: 200 groups, all of them real.
    pub fn qualcomm_el2() -> Self {
        Self { page_size: PageSize::Small, groups: 200, ..Self::mmu500_layerscape() }
    }

    /// An SMMUv2 with 32 groups, and 64 extended ones that can take their place.
    pub fn extended_groups() -> Self {
        Self { extended_groups: 64, ..Self::generic_v2() }
    }

    /// A Qualcomm msm8974 SMMUv1: banks stand at 0x8000 although `IDR1` says 0x4000, and walks are not coherent
    /// although `IDR0` says so.
    pub fn msm8974() -> Self {
        let quirks =
            Quirks { bank_base: Some(0x8000), reported_coherent_walk: Some(true), cache_lock: false, ..Quirks::NONE };
        Self { num_page_index_bits: 1, groups: 4, banks: 3, stage2_banks: 0, ..Self::generic_v1() }.quirks(quirks)
    }

    /// One instance of NVIDIA's Tegra194/234; see [`Chip::lockstep`](crate::Chip::lockstep) for the pair.
    pub fn tegra194() -> Self {
        Self {
            quirks: Quirks { walk_cache_sticks: true, cache_lock: true, ..Quirks::NONE },
            ..Self::mmu500_layerscape()
        }
    }

    /// Tegra186: only the stream ID bits that mask 0x7f80 leaves take part.
    pub fn tegra186() -> Self {
        Self { smr_id: 0x007f, smr_mask: 0x7fff, ..Self::mmu500_layerscape() }
    }

    /// One SMMU of Cavium CN88xx: no stall, no configuration faults, `VMIDPNE` reserved; see
    /// [`Chip::shared_vmids`](crate::Chip::shared_vmids).
    pub fn cn88xx() -> Self {
        let mask =
            scr0::SMCFCFG | scr0::GSE | scr0::STALLD | scr0::VMIDPNE | scr0::GCFGFIE | scr0::GCFGFRE | scr0::EXIDENABLE;
        Self {
            num_page_index_bits: 7,
            banks: 128,
            groups: 128,
            vmid16: true,
            stall: false,
            cr0_fixed: Fixed { mask, value: scr0::SMCFCFG },
            ..Self::generic_v2()
        }
    }

    /// An MMU-400 as Calxeda wired it: accesses arrive as Secure.
    pub fn calxeda() -> Self {
        Self::mmu400().quirks(Quirks { secure_accesses: true, ..Quirks::NONE })
    }

    /// The same part with as many register pages as `region` bytes hold, and no bank beyond: of 64 KiB where 8 MiB and more
    /// are given, as boards have it.
    pub fn fit(mut self, region: u64) -> Self {
        self.page_size = if region >= 0x80_0000 { PageSize::Large } else { PageSize::Small };
        let fits = |bits: &u8| u64::from(self.page_bytes()) << 2 << bits <= region;
        self.num_page_index_bits = (0..=7).rev().find(fits).unwrap_or(0);
        self.banks = self.banks.min(u8::try_from(self.pages()).unwrap_or(u8::MAX));
        self.stage2_banks = self.stage2_banks.min(self.banks);
        self
    }
}
