//! Fault records, as interrupt handlers take them: nothing is waited for, and nothing allocated (contract C-16).
//!
//! | file | what |
//! |---|---|
//! | `fault_counters.rs` | how often what has faulted |
//! | `fault_reading.rs` | fault registers into words |
//! | `fault_storms.rs` | what a storm is blamed on; pure |
//! | `fault_records.rs` | intake, retirement, and the worker's part |

mod fault_counters;
mod fault_reading;
mod fault_storms;
pub(in crate::smmu) mod fault_records;
