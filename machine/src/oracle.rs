//! The isolation oracle: after every single register write it asks, for every watched stream, what it could reach now.
//!
//! It watches one page of guest addresses that each guest maps to memory of its own, so that where a stream arrives
//! tells whose tables led it there. What the TLB and the walk cache still hold, and transactions in flight, count. So does
//! what no register reports: a sync over the one in flight, a bank that firmware hides, an access outside.
//!
//! # Locking
//!
//! One mutex, inside those of the machine: the observer takes it while the SMMU and the memory are held.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use iommu_assign::assign::{IommuKey, Label};
use smmu_model::{Access, Hazard, Memory, Smmu, Source, Verdict};

use super::{Machine, lock};

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
///
/// It does not tell instances apart: devices that use the same stream ID at two SMMUs need an oracle for each SMMU.
#[derive(Clone, Default)]
pub struct Oracle(Arc<Mutex<Allowed>>);

impl Oracle {
    /// Looks at every register write of `key` from now on; `page` is the guest address that it asks about. Beside the
    /// streams of devices it asks about the first stream IDs and the last one, which belong to nobody.
    pub fn watch(&self, machine: &Machine, key: IommuKey, page: u64) {
        self.watch_only(machine, key, page, (0..64).chain([0x7fff]));
    }

    /// [`watch`](Self::watch), with `strangers` as the stream IDs beside those of devices.
    pub fn watch_only(&self, machine: &Machine, key: IommuKey, page: u64, strangers: impl IntoIterator<Item = u16>) {
        let oracle = self.clone();
        let observer = move |smmu: &Smmu, memory: &Memory| {
            oracle.with(|allowed| allowed.writes = allowed.writes.wrapping_add(1));
            oracle.look(smmu, memory, page);
        };
        machine.observe(key, Box::new(observer));
        self.with(|allowed| allowed.watched.extend(strangers));
    }

    /// Asks now, without a write: what an operation left when it returned.
    pub fn look_now(&self, machine: &Machine, key: IommuKey, page: u64) {
        machine.with_memory(key, |smmu, memory| self.look(smmu, memory, page));
    }

    /// A device with these streams may reach `backings` from now on.
    pub fn allow(&self, device: &Label, streams: &[(u32, u32)], backings: &[u64]) {
        let place = (streams.to_vec(), backings.iter().copied().collect());
        self.with(|allowed| {
            if allowed.devices.get(device) == Some(&place) {
                return;
            }
            for (id, mask) in streams {
                // The corners of the set, and its neighbours just outside.
                for id in [*id, id | mask, id ^ mask.wrapping_add(1), id.wrapping_sub(1), id.wrapping_add(1)] {
                    allowed.watched.extend(u16::try_from(id & 0x7fff));
                }
            }
            allowed.devices.insert(device.clone(), place);
        });
    }

    /// The device is gone: its streams are unknown.
    pub fn forget(&self, device: &Label) {
        self.with(|allowed| allowed.devices.remove(device));
    }

    /// What was seen so far that must not be. Also says how many writes were looked at.
    #[must_use]
    pub fn verdict(&self) -> (u64, Vec<String>) {
        self.with(|allowed| (allowed.writes, allowed.violations.clone()))
    }

    /// Asks of this SMMU now: what an operation left, or, for SMMUs that share their caches, what a write to another did.
    pub fn look(&self, smmu: &Smmu, memory: &Memory, page: u64) {
        self.with(|allowed| {
            // The first few tell the story.
            if allowed.violations.len() < 8 {
                let found = allowed.judge(smmu, memory, page);
                let write = allowed.writes;
                allowed.violations.extend(found.into_iter().map(|fault| format!("after write {write}: {fault}")));
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Allowed) -> T) -> T {
        act(&mut lock(&self.0))
    }
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (writes, violations) = self.verdict();
        write!(f, "Oracle({writes} writes, {} violations)", violations.len())
    }
}

impl Allowed {
    fn judge(&self, smmu: &Smmu, memory: &Memory, page: u64) -> Vec<String> {
        let wrong = |hazard: &&Hazard| !matches!(hazard, Hazard::Unmodelled(_) | Hazard::PoweredOff);
        let mut found: Vec<String> = smmu
            .hazards()
            .iter()
            .filter(wrong)
            .map(|hazard| format!("a register was used wrongly: {hazard:?}"))
            .collect();
        let mut reached: BTreeMap<&Label, BTreeSet<u64>> = BTreeMap::new();
        for &stream in &self.watched {
            let owners: Vec<(&Label, &Place)> =
                self.devices.iter().filter(|(_, (streams, _))| holds(streams, stream)).collect();
            match judge_stream(smmu, memory, page, stream, &owners) {
                Ok(now) => owners.iter().for_each(|(label, _)| reached.entry(label).or_default().extend(&now)),
                Err(fault) => found.push(fault),
            }
        }
        let mixed = reached.into_iter().filter(|(_, now)| now.len() > 1);
        found.extend(mixed.map(|(label, now)| format!("I-13: {label} could reach two owners at once: {now:x?}")));
        found
    }
}

/// Where a new transaction of `stream` could arrive, all of which its `owners` may reach.
fn judge_stream(
    smmu: &Smmu,
    memory: &Memory,
    page: u64,
    stream: u16,
    owners: &[(&Label, &Place)],
) -> Result<BTreeSet<u64>, String> {
    let matching = smmu.matching_entries(stream);
    if matching.len() > 1 {
        return Err(format!("I-1: stream {stream:#x} matches entries {matching:?}"));
    }
    let may: BTreeSet<u64> = owners.iter().flat_map(|(_, (_, backings))| backings.iter().copied()).collect();
    let mut now = BTreeSet::new();
    for reach in smmu.reach(memory, stream, page, Access::Write) {
        let Verdict::Reaches { physical, path } = reach.verdict else { continue };
        if path.is_untranslated() {
            return Err(format!("I-3: stream {stream:#x} passes untranslated: {path:?}"));
        }
        let backing = physical & !0xfff;
        if !may.contains(&backing) {
            return Err(format!("I-2: stream {stream:#x} reaches {backing:#x}, allowed are {may:x?}: {path:?}"));
        }
        if reach.source == Source::New {
            now.insert(backing);
        }
    }
    Ok(now)
}

fn holds(streams: &[(u32, u32)], stream: u16) -> bool {
    streams.iter().any(|(id, mask)| (u32::from(stream) ^ id) & !mask == 0)
}
