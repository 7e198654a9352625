//! The isolation oracle: after every single register write it asks, for every watched stream, what it could reach now.
//!
//! It watches one page of guest addresses that each guest maps to memory of its own, so that where a stream arrives
//! tells whose tables led it there. What the TLB and the walk cache still hold, and transactions in flight, count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use iommu_assign::assign::{IommuKey, Label};
use machine::Machine;
use smmu_model::{Access, Memory, Smmu, Source, Verdict};

/// A device's (ID, mask) streams, and the memory that its DMA may reach now.
type Place = (Vec<(u32, u32)>, BTreeSet<u64>);

/// What the running operation allows.
#[derive(Default)]
struct Allowed {
    devices: BTreeMap<Label, Place>,
    /// Stream IDs to ask about beside those of devices.
    watched: BTreeSet<u16>,
    violations: Vec<String>,
    writes: u64,
}

/// Shared by the bench that says what is allowed and the observer that looks.
#[derive(Clone, Default)]
pub(crate) struct Oracle(Arc<Mutex<Allowed>>);

impl Oracle {
    /// Looks at every register write of `key` from now on; `page` is the guest address that it asks about.
    pub(crate) fn watch(&self, machine: &Machine, key: IommuKey, page: u64) {
        let oracle = self.clone();
        let observer = move |smmu: &Smmu, memory: &Memory| oracle.look(smmu, memory, page);
        machine.observe(key, Box::new(observer));
        // Unknown streams are watched too: the first IDs, and the last.
        self.with(|allowed| allowed.watched.extend((0..64).chain([0x7fff])));
    }

    /// A device with these streams may reach `backings` from now on.
    pub(crate) fn allow(&self, device: &Label, streams: &[(u32, u32)], backings: &[u64]) {
        self.with(|allowed| {
            for (id, mask) in streams {
                // The corners of the set, and its neighbours just outside.
                for id in [*id, id | mask, id ^ (mask + 1), id.wrapping_sub(1), id + 1] {
                    allowed.watched.insert((id & 0x7fff) as u16);
                }
            }
            allowed.devices.insert(device.clone(), (streams.to_vec(), backings.iter().copied().collect()));
        });
    }

    /// The device is gone: its streams are unknown.
    pub(crate) fn forget(&self, device: &Label) {
        self.with(|allowed| allowed.devices.remove(device));
    }

    /// What was seen so far that must not be. Also says how many writes were looked at.
    pub(crate) fn verdict(&self) -> (u64, Vec<String>) {
        self.with(|allowed| (allowed.writes, allowed.violations.clone()))
    }

    fn look(&self, smmu: &Smmu, memory: &Memory, page: u64) {
        self.with(|allowed| {
            allowed.writes += 1;
            let write = allowed.writes;
            for stream in allowed.watched.clone() {
                // The first few tell the story.
                if allowed.violations.len() < 8
                    && let Some(fault) = allowed.judge(smmu, memory, page, stream)
                {
                    allowed.violations.push(format!("after write {write}: {fault}"));
                }
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Allowed) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Allowed {
    fn judge(&self, smmu: &Smmu, memory: &Memory, page: u64, stream: u16) -> Option<String> {
        let matching = smmu.matching_entries(stream);
        if matching.len() > 1 {
            return Some(format!("I-1: stream {stream:#x} matches entries {matching:?}"));
        }
        let id = u32::from(stream);
        let holds = |streams: &[(u32, u32)]| streams.iter().any(|(base, mask)| (id ^ base) & !mask == 0);
        let may: BTreeSet<u64> = self
            .devices
            .values()
            .filter(|(streams, _)| holds(streams))
            .flat_map(|(_, backings)| backings.iter().copied())
            .collect();
        let mut now = BTreeSet::new();
        for reach in smmu.reach(memory, stream, page, Access::Write) {
            let Verdict::Reaches { physical, path } = reach.verdict else { continue };
            if path.is_untranslated() {
                return Some(format!("I-3: stream {stream:#x} passes untranslated: {path:?}"));
            }
            let backing = physical & !0xfff;
            if !may.contains(&backing) {
                return Some(format!("I-2: stream {stream:#x} reaches {backing:#x}, allowed are {may:x?}: {path:?}"));
            }
            if reach.source == Source::New {
                now.insert(backing);
            }
        }
        (now.len() > 1).then(|| format!("I-13: stream {stream:#x} could reach two owners at once: {now:x?}"))
    }
}
