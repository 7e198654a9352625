//! What an instance is given beside its description: power, reserved streams.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::assign::{Stage2, Stream};

/// Power, clock and interconnect of an instance (contract S-5).
///
/// # Context
///
/// `get` and `put` are called in waiting context with no lock of the library held, around every use of a register; they
/// may block, and may not call the instance. `is_on` is a leaf that interrupt handlers call, and a crashing hypervisor.
pub trait Power: Send + Sync + fmt::Debug {
    /// Sees to it that registers can be accessed until [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// Why they cannot; the operation touches no register then.
    fn get(&self) -> Result<(), PowerError>;

    /// Ends what one [`get`](Self::get) began.
    fn put(&self);

    /// Whether registers can be accessed now.
    fn is_on(&self) -> bool;
}

/// Why there is no power, in the integrator's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerError(pub &'static str);

/// An instance that always has power.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysOn;

impl Power for AlwaysOn {
    fn get(&self) -> Result<(), PowerError> {
        Ok(())
    }

    fn put(&self) {}

    fn is_on(&self) -> bool {
        true
    }
}

/// Streams that firmware set up and that must go on: a display that shows a boot picture, for instance (quirk Q17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The streams, as the device tree declares them.
    pub streams: Vec<Stream>,
    /// What they may reach: tables that the integrator built for exactly these regions (contract S-6).
    pub space: Stage2,
}

/// What an instance is given beside its [`SmmuConfig`](super::SmmuConfig).
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its power.
    pub power: Arc<dyn Power>,
    /// Streams that keep a restricted translation until a device that owns them is assigned.
    pub reserved: Vec<Reserved>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { power: Arc::new(AlwaysOn), reserved: Vec::new() }
    }
}
