//! PCI as the machine has it: configuration space, bus numbers, slots that things are plugged into, and what a function needs
//! when it changes owners.
//!
//! | file | what |
//! |---|---|
//! | `ecam.rs` | configuration space, mapped for the library |
//! | `buses.rs` | bus numbers and virtual functions, where no firmware has set them up |
//! | `slots.rs` | hot-plug slots |
//! | `functions.rs` | the library's hooks of a function, counted |

pub(crate) mod buses;
pub(crate) mod ecam;
pub(crate) mod functions;
pub(crate) mod slots;
