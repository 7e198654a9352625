//! A configuration space made of memory: for host tests and prototypes (feature `fakes`).
//!
//! It behaves where isolation depends on it: read-only bits, bits that a 1 clears, a reset that takes a while, all
//! ones after a removal, transactions that stay pending, virtual functions that come and go. It can also be broken on purpose.
//!
//! ```
//! use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
//! use iommu_assign::pci::{ConfigSpace, PortType};
//!
//! let mut space = FakeConfigSpace::new();
//! let port = "00:01.0".parse()?;
//! space.insert(port, FakeFunction::bridge(0x1b36, 0x000c, 0, 1, 1).express(PortType::RootPort));
//! space.insert("01:00.0".parse()?, FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000).express(PortType::Endpoint));
//! assert_eq!(space.read(port, 0), 0x000c_1b36);
//! # Ok::<(), iommu_assign::pci::AddressError>(())
//! ```
//!
//! | file | what |
//! |---|---|
//! | `fake_registers.rs` | 4 KiB of registers, what a write can change, what a reset leaves |
//! | `fake_sriov.rs` | its SR-IOV capability |
//! | `fake_function.rs` | a function, built capability by capability |
//! | `fake_resets.rs` | resets by other ways than PCI Express |
//! | `fake_virtual.rs` | a function with virtual functions |
//! | `fake_space.rs` | the functions of a segment |

mod fake_registers;
mod fake_resets;
mod fake_sriov;
mod fake_function;
mod fake_virtual;
mod fake_space;

pub use fake_function::FakeFunction;
pub use fake_space::FakeConfigSpace;
