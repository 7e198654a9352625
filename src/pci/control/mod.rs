//! Keeping a function quiet while it changes owners, and what a guest must not write (contract S-7).
//!
//! Nothing here waits: what takes time is begun, and then [stepped](Quiesce::step) by a caller who decides how time
//! passes between the steps. Each has a bound on its steps. Section numbers are of the PCI Express Base
//! Specification, revision 6.
//!
//! Any context. The caller sees to it that one CPU at a time does this to a function: the registers are read, changed
//! and written back.
//!
//! | file | what |
//! |---|---|
//! | `quiesce.rs` | bus mastering off and nothing pending; ATS, PRI and PASID off |
//! | `saved.rs` | what a reset loses: read before, written back after |
//! | `bus_reset.rs` | the reset of a bus that one function has for itself |
//! | `function_reset.rs` | a function's reset, by each method that there is |
//! | `write_rules.rs` | the table of what comes of a guest's writes |
//! | `guest_writes.rs` | the same for one function, looked up write by write |

mod quiesce;
mod saved;
mod bus_reset;
mod function_reset;
mod write_rules;
mod guest_writes;

pub(super) use function_reset::check_numbering;
pub use function_reset::{Reset, ResetMethod, power_up};
pub use guest_writes::{GuestWrites, Phase, Width, WriteAnswer, WritePart};
pub(super) use quiesce::BUS_MASTER;
pub use quiesce::{ControlError, Progress, Quiesce, Service, turn_translation_services_off};
pub(super) use saved::Saved;
pub use write_rules::{CAPABILITY_RULES, CapabilityRule, Reason, RuleOf, Treatment, WRITE_RULES, WriteRule};
