//! From stream-map entries to tables: context banks and the TLB.
//!
//! | file | what |
//! |---|---|
//! | `stage2.rs` | which tables a bank can follow, and its registers for them; pure |
//! | `by_domain.rs` | the banks of each domain |
//! | `tlb.rs` | invalidate and sync; which bank caches which domain |
//! | `banks.rs` | the path of a bank, and which one a plan gets |
//! | `context_bank.rs` | its registers: the only writer of CBA2R, CBAR, SCTLR, TCR, TTBR0 |

mod by_domain;
pub(in crate::smmu) mod stage2;
pub(in crate::smmu) mod tlb;
pub(in crate::smmu) mod banks;
pub(in crate::smmu) mod context_bank;
