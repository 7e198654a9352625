//! A device as the scenario uses it: what the service is told of it, and the engine that does its DMA.

use core::fmt;

use iommu_assign::assign::{DeviceKey, DeviceSpec, Label, Source, Stream};

use super::machine::Engine;
use super::score::Score;

/// A device.
#[derive(Clone, Debug)]
pub struct Master<E> {
    /// What the service is told.
    pub spec: DeviceSpec,
    /// What does its DMA.
    pub engine: E,
}

impl<E: Engine> Master<E> {
    /// What people call it.
    pub fn label(&self) -> &Label {
        &self.spec.label
    }

    /// What the service knows it by.
    pub fn key(&self) -> DeviceKey {
        self.spec.key
    }

    /// Whether it does DMA here.
    pub fn has_engine(&self) -> bool {
        self.engine.is_there()
    }

    /// Whether it can be made to do DMA at any time: nothing of it is lost when it faults.
    pub fn can_stray(&self) -> bool {
        self.has_engine() && self.key().source() == Source::Dt
    }

    /// Accesses for the faults that they raise ([`Engine::stray`]).
    pub fn stray(&self) {
        self.engine.stray(&self.spec);
    }
}

/// Has each stream of the device `label` make an access, and compares what it came to. Returns the number of streams.
pub fn compare<R: PartialEq + fmt::Debug>(
    score: &Score,
    label: &Label,
    streams: &[Stream],
    expected: &R,
    access: impl Fn(Stream) -> R,
) -> u64 {
    for &stream in streams {
        let reached = access(stream);
        if reached != *expected {
            let id = stream.id();
            score.violation(format_args!("{label} by stream {id}: {reached:x?}, expected {expected:x?}"));
        }
    }
    u64::try_from(streams.len()).unwrap_or(u64::MAX)
}
