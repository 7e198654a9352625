//! What an instance is given beside its description: power, reserved streams.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::assign::{Stage2, Stream};

/// Power, clock and interconnect of an instance (contract S-5).
///
/// # Context
///
/// They are called with no lock of the library held, and may not call the instance. `get` is called in waiting context and may
/// block. `get_if_on` and `put` wait for nothing: interrupt handlers call them, a flush in atomic context, and a crashing
/// hypervisor. What takes time to switch off is left to a worker.
pub trait Power: Send + Sync + fmt::Debug {
    /// Sees to it that registers can be accessed until [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// Why they cannot; the operation touches no register then.
    fn get(&self) -> Result<(), PowerError>;

    /// Does what [`get`](Self::get) does where the power is on, whoever has it; else says `false` and does nothing.
    ///
    /// To look whether it is on would not be enough: another holder may give it back in the next moment.
    fn get_if_on(&self) -> bool;

    /// Ends what one [`get`](Self::get) or [`get_if_on`](Self::get_if_on) began.
    fn put(&self);
}

/// Why there is no power, in the integrator's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerError(pub &'static str);

/// Streams that firmware set up and that must go on: a display that shows a boot picture, for instance (quirk Q17). Where
/// a device tree says which, [`Board::reserved`](crate::dt::Board::reserved) offers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The streams, as the device tree declares them.
    pub streams: Vec<Stream>,
    /// What they may reach: tables that the integrator built for exactly these regions (contract S-6).
    pub space: Stage2,
}

/// What an instance is given beside its [`SmmuConfig`](super::SmmuConfig).
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its power; `None` where it is always on.
    pub power: Option<Arc<dyn Power>>,
    /// Streams that keep a restricted translation until a device that owns them is assigned.
    pub reserved: Vec<Reserved>,
}
