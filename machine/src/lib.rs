//! A machine on the host, for tests and for the prototype: memory, modelled SMMUs, guests' stage-2 tables, and DMA.
//!
//! It stands between the library and the model, which do not know each other: the library reaches the model through
//! [`ModelRegisters`], the model walks the tables that [`Stage2Tables`] writes.
//!
//! # Locking
//!
//! One mutex for the memory and one for each SMMU, the SMMU's first. No code of the library runs under either.

#![forbid(unsafe_code)]

pub mod op;
pub mod oracle;
mod parts;
mod registers;
pub mod specification;
mod tables;
pub mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::{IommuKey, StreamId};
use smmu_model::{Config, Counters, Memory, Outcome, Smmu, Transaction};

pub use parts::part_of;
pub use registers::{ModelRegisters, Observer};
pub use tables::Stage2Tables;

/// Memory and SMMUs, shared by whoever holds a clone.
#[derive(Clone, Default)]
pub struct Machine(Arc<Parts>);

#[derive(Default)]
struct Parts {
    memory: Mutex<Memory>,
    smmus: Mutex<BTreeMap<IommuKey, Arc<Mutex<Slot>>>>,
}

/// A modelled SMMU, and who watches its registers.
struct Slot {
    smmu: Smmu,
    observer: Option<Observer>,
}

/// What a device's DMA came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It was carried out at this physical address.
    Memory(u64),
    /// It was carried out untranslated: nothing stood in its way.
    Untranslated(u64),
    /// It was ended by a fault.
    Fault,
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(physical) => write!(f, "memory at {physical:#x}"),
            Self::Untranslated(physical) => write!(f, "UNTRANSLATED memory at {physical:#x}"),
            Self::Fault => f.write_str("fault"),
        }
    }
}

impl Machine {
    /// A machine whose memory starts empty, and whose walkers see only what was published.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an SMMU at `key` and returns the way to its registers.
    #[must_use]
    pub fn add_smmu(&self, key: IommuKey, config: Config) -> ModelRegisters {
        let slot = Arc::new(Mutex::new(Slot { smmu: Smmu::new(config), observer: None }));
        lock(&self.0.smmus).insert(key, slot.clone());
        ModelRegisters::new(slot, self.clone())
    }

    /// Does something with the memory.
    pub fn memory<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut lock(&self.0.memory))
    }

    /// Does something with the SMMU at `key`. `None` when there is none.
    pub fn smmu<T>(&self, key: IommuKey, act: impl FnOnce(&mut Smmu) -> T) -> Option<T> {
        let slot = self.slot(key)?;
        let mut slot = lock(&slot);
        Some(act(&mut slot.smmu))
    }

    /// Does something with the SMMU at `key` that involves memory. `None` when there is none.
    pub fn with_memory<T>(&self, key: IommuKey, act: impl FnOnce(&mut Smmu, &mut Memory) -> T) -> Option<T> {
        let slot = self.slot(key)?;
        let mut slot = lock(&slot);
        Some(act(&mut slot.smmu, &mut lock(&self.0.memory)))
    }

    /// Has `observer` called after each register write of the SMMU at `key`.
    pub fn observe(&self, key: IommuKey, observer: Observer) {
        if let Some(slot) = self.slot(key) {
            lock(&slot).observer = Some(observer);
        }
    }

    /// How often the registers of the SMMU at `key` were read and written.
    #[must_use]
    pub fn counters(&self, key: IommuKey) -> Counters {
        self.smmu(key, |smmu| smmu.counters()).unwrap_or_default()
    }

    /// The accesses of all SMMUs together.
    #[must_use]
    pub fn all_counters(&self) -> Counters {
        let keys: Vec<IommuKey> = lock(&self.0.smmus).keys().copied().collect();
        keys.into_iter().map(|key| self.counters(key)).fold(Counters::default(), |sum, one| Counters {
            reads: sum.reads.wrapping_add(one.reads),
            writes: sum.writes.wrapping_add(one.writes),
        })
    }

    /// One DMA transaction at the SMMU `key`: the model's own answer. `None` when no SMMU is there.
    pub fn dma(&self, key: IommuKey, transaction: Transaction) -> Option<Outcome> {
        self.with_memory(key, |smmu, memory| smmu.dma(memory, transaction))
    }

    /// One DMA write of a word by `stream` to `address`. `None` when no SMMU is there, or the stream ID is wider than a
    /// bus carries.
    #[must_use]
    pub fn dma_write(&self, key: IommuKey, stream: StreamId, address: u64) -> Option<Reached> {
        let stream = u16::try_from(stream.value()).ok()?;
        let outcome = self.dma(key, Transaction::write(stream, address, &0xd3a_u64.to_le_bytes()))?;
        Some(match outcome {
            Outcome::Completed { physical, path, .. } if path.is_untranslated() => Reached::Untranslated(physical),
            Outcome::Completed { physical, .. } => Reached::Memory(physical),
            _ => Reached::Fault,
        })
    }

    fn slot(&self, key: IommuKey) -> Option<Arc<Mutex<Slot>>> {
        lock(&self.0.smmus).get(&key).cloned()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({} SMMUs)", lock(&self.0.smmus).len())
    }
}

/// A poisoned mutex means that an assertion failed elsewhere: its message is the one to read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
