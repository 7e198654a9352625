//! The machine under the image, as its device tree describes it.
//!
//! | file | what |
//! |---|---|
//! | `tree.rs` | what is read from the tree beside SMMUs, bridges and masters, which the library reads |
//! | `console.rs` | PL011 or Cadence UART, and `log` on it |
//! | `time.rs` | the architectural counter, and EL2's physical timer |
//! | `power.rs` | PSCI: the end |
//! | `cpus.rs` | PSCI: the other CPUs |
//! | `gic.rs` | GICv2 and GICv3 |
//! | `interrupts.rs` | which handler an interrupt has |

pub(crate) mod console;
pub(crate) mod cpus;
pub(crate) mod gic;
pub(crate) mod interrupts;
pub(crate) mod power;
pub(crate) mod time;
pub(crate) mod tree;
