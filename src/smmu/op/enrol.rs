//! A device comes, and goes.
//!
//! # Locking
//!
//! `publish`, `reserve` and `withdraw` change the tree and the map in one step: `Masters`, then `StreamMap` inside it. `enrol`
//! takes `StreamMap` alone. Nothing is allocated or freed under either.

use alloc::boxed::Box;
use core::any::Any;

use crate::assign::{DeviceId, DomainId, IommuError, Resource, Stream, StreamId, Streams};
use crate::few;
use crate::smmu::bank::banks::Banks;
use crate::smmu::gate::Purpose;
use crate::smmu::hardware::Registers;
use crate::smmu::instance::{Shadow, Smmu};
use crate::smmu::stream::cover::{CoverError, CoverOptions, Cube, least_cover};
use crate::smmu::stream::masters::{Tree, is_reserved};
use crate::smmu::stream::number_set::Set;
use crate::smmu::stream::placing::Placing;
use crate::smmu::stream::user::{Cubes, StreamUser};
use crate::sync::Platform;
use crate::sync::levels;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Makes all that a device needs on this instance.
    pub(in crate::smmu) fn make_device(
        &self,
        device: DeviceId,
        streams: &[Stream],
        lazy: bool,
    ) -> Result<Box<StreamUser>, IommuError> {
        let single = if let [stream] = streams { Some(self.cube_of(*stream)?) } else { None };
        let (cubes, count) = match single.filter(|cube| cube.mask() & !self.part.widths.mask_bits == 0) {
            Some(cube) => (Cubes::from([cube; 2]), 1),
            None => {
                let mut cubes = self.admit(streams)?;
                let count = cubes.len();
                self.cover(&mut cubes)?;
                (cubes, count)
            }
        };
        Ok(StreamUser::new(self.part.key(), device, cubes, count, lazy))
    }

    /// The streams as the hardware would hold them, or the one that it cannot hold (contract A-6).
    fn admit(&self, streams: &[Stream]) -> Result<Cubes, IommuError> {
        let mut cubes = Cubes::new();
        // Their cover goes behind them.
        cubes.try_reserve_exact(streams.len().saturating_mul(2)).map_err(|_| IommuError::OutOfMemory)?;
        for &stream in streams {
            few::put(&mut cubes, self.cube_of(stream)?);
        }
        if cubes.len() > 1 {
            few::sort(&mut cubes, &Cube::is_before);
            cubes.dedup();
        }
        Ok(cubes)
    }

    fn cube_of(&self, stream: Stream) -> Result<Cube, IommuError> {
        let (id_bits, mask_bits) = (self.part.widths.id_bits, self.part.widths.mask_bits);
        let (id, mask) = (stream.id().value(), stream.mask().value());
        // Q22: a bit that no SMR compares is ignored whether the mask says so or not; one that no stream carries
        // here cannot be meant.
        if id & !id_bits != 0 || mask & !self.part.widths.carried != 0 {
            return Err(IommuError::TooWide { stream, id_bits, mask_bits });
        }
        Ok(Cube::new(id, mask & id_bits))
    }

    /// Appends the fewest entries that capture exactly these streams.
    fn cover(&self, streams: &mut Cubes) -> Result<(), IommuError> {
        let widths = &self.part.widths;
        if let Some(cube) = one_cube(streams).filter(|cube| cube.mask() & !widths.mask_bits == 0) {
            // There is room for as many as there are streams.
            few::put(streams, cube);
            return Ok(());
        }
        let total = usize::from(self.part.geometry.entries);
        let too_many = |count: usize| {
            let needed = count.saturating_sub(total);
            IommuError::Exhausted { resource: Resource::StreamMapEntries, needed, free: 0, total }
        };
        let options = CoverOptions::new(widths.id_bits, widths.mask_bits);
        let least = least_cover(streams, &options).map_err(|error| match error {
            CoverError::OutOfMemory => IommuError::OutOfMemory,
            _ => too_many(total.saturating_add(1)),
        });
        let cubes = least?.cubes;
        if cubes.len() > total {
            return Err(too_many(cubes.len()));
        }
        streams.try_reserve_exact(cubes.len()).map_err(|_| IommuError::OutOfMemory)?;
        few::put_all(streams, cubes);
        Ok(())
    }

    /// Puts a device into the tree and into the map. Where it overlaps nothing it takes its entries, and it is `true`.
    pub(in crate::smmu) fn publish_device(&self, master: Box<dyn Any + Send>) -> Result<bool, IommuError> {
        let _inside = self.enter(Purpose::Acquire)?;
        let made = master.downcast::<StreamUser>().ok().filter(|user| user.iommu == self.part.key());
        let user = made.ok_or(IommuError::Unknown)?;
        let mut nodes = user.nodes.take();
        let published = self.locked(&mut Held::enter(), |tree, Shadow { entries, users, .. }, _| {
            if users.find(user.device).is_some() {
                return Err(user);
            }
            let reserved = tree.insert(&mut nodes) && entries.reserve_alone(&user);
            users.insert(user);
            Ok(reserved)
        });
        published.map_err(|_| IommuError::Known)
    }

    /// Runs `act` with the tree and the map locked. What it gives back is dropped when both are free.
    fn locked<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        act: impl FnOnce(&mut Tree, &mut Shadow, &mut Held<'_, levels::StreamMap>) -> T,
    ) -> T {
        let mut guard = self.masters.tree.lock(held);
        let (tree, held) = guard.split();
        let mut guard = self.shadow.lock(held);
        let (shadow, held) = guard.split();
        act(tree, shadow, held)
    }

    /// [`locked`](Self::locked), to place entries.
    pub(super) fn placing<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        act: impl FnOnce(&mut Placing<'_>, &mut Banks, &mut Held<'_, levels::StreamMap>) -> T,
    ) -> T {
        self.locked(held, |tree, Shadow { entries, users, banks }, held| {
            act(&mut Placing { tree, iommu: self.part.key(), entries, users }, banks, held)
        })
    }

    /// The least device after `after` whose streams or entries overlap those of `device`.
    pub(in crate::smmu) fn next_overlapping(&self, device: DeviceId, after: Option<DeviceId>) -> Option<DeviceId> {
        self.placing(&mut Held::enter(), |Placing { tree, iommu, entries, users }, _, _| {
            let user = users.find(device)?;
            let mut found: Option<DeviceId> = None;
            let mut look = |wanted: Cube| {
                tree.each_overlap(*iommu, wanted, &mut |other| {
                    let follows = Some(other) > after && other != device && !is_reserved(other);
                    if follows && found.is_none_or(|found| other < found) {
                        found = Some(other);
                    }
                    true
                });
            };
            let around = user.entries.get() | entries.surplus;
            for stream in user.streams() {
                look(*stream);
                // What an entry captures beyond the stream belongs to others.
                let beyond = entries.overlapping(around, *stream).filter(|(_, cube)| !stream.contains(*cube));
                beyond.for_each(|(_, cube)| look(cube));
            }
            found
        })
    }

    /// Takes the entries that a device needs, in the shadow.
    pub(in crate::smmu) fn reserve_device(
        &self,
        device: DeviceId,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<Streams, IommuError> {
        let _inside = self.enter(Purpose::Acquire)?;
        let mut held = Held::enter();
        let reserved = self.placing(&mut held, |placing, _, _| {
            let user = placing.users.find(device).ok_or(IommuError::Unknown)?;
            placing.reserve(user, is_claimed, false)
        });
        match reserved {
            // A group that is packed anew is in fault.
            Err(IommuError::Exhausted { .. }) if self.repack(&mut held, &[device], is_claimed)? => Ok(Streams::Fault),
            reserved => reserved,
        }
    }

    /// Writes what was reserved for a device.
    pub(in crate::smmu) fn enrol_device(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
    ) -> Result<(), IommuError> {
        let mut shadow = self.shadow.lock(held);
        let Shadow { entries, users, .. } = &mut *shadow;
        let user = users.joined(device).ok_or(IommuError::Unknown)?;
        let wanted = if user.repacked.take() { entries.stale } else { user.entries.get() };
        let lazy_only = user.lazy && user.bank.get().is_none();
        if lazy_only {
            // The first plan takes its entries, and the first install writes them.
            return Ok(());
        }
        written(entries.write(&self.part, wanted))
    }

    /// Forgets a device. `Ok` says whether an entry that captured its streams stays live.
    pub(in crate::smmu) fn withdraw_device(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
    ) -> Result<Streams, IommuError> {
        loop {
            if let Some(streams) = self.try_withdraw(held, device, true)? {
                return Ok(streams);
            }
            self.finish_owed(held, &[device])?;
        }
    }

    /// Forgets a device. `None` where it owes a drain, or, without `power`, where an entry is to be invalidated. An entry that is
    /// refitted without power is written by what uses it next.
    pub(in crate::smmu) fn try_withdraw(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        power: bool,
    ) -> Result<Option<Streams>, IommuError> {
        let withdrawn = self.locked(held, |tree, Shadow { entries, users, .. }, _| {
            entries.settle(self.tlb.completed());
            let known = users.find(device).ok_or(IommuError::Unknown)?;
            let invalidated = |number| {
                let entry = entries.at(number);
                entry.written.is_some() && entry.registered == known.pairs_in_used(entry)
            };
            if entries.owed(known.entries.get()).is_some() || (!power && known.entries.get().each().any(invalidated)) {
                return Ok(None);
            }
            if !known.is_at_rest() {
                return Err(IommuError::Busy);
            }
            let user = users.take(device).ok_or(IommuError::Unknown)?;
            user.nodes.set(tree.take(user.iommu, device, user.streams()));
            let (mut changed, streams) = Placing { tree, iommu: user.iommu, entries: &mut *entries, users }.part(&user);
            if user.repacked.get() {
                changed |= entries.stale;
            }
            // A mismatch leaves an entry in fault, which an audit names.
            if power {
                let _ = entries.write(&self.part, changed);
            }
            Ok(Some((streams, user)))
        });
        Ok(withdrawn?.map(|(streams, _)| streams))
    }

    /// Whether both use a common entry.
    pub(in crate::smmu) fn share_entries(&self, one: DeviceId, other: DeviceId) -> bool {
        let mut held = Held::enter();
        let shadow = self.shadow.lock(&mut held);
        let entries = |device| shadow.users.find(device).map_or(Set::EMPTY, |user| user.entries.get());
        !(entries(one) & entries(other)).is_empty()
    }

    /// The device that has a stream ID; with `domain` only where an entry translates it through that domain's bank.
    pub(in crate::smmu) fn find_owner(&self, stream: StreamId, domain: Option<DomainId>) -> Option<DeviceId> {
        let id = stream.value() & self.part.widths.id_bits;
        self.placing(&mut Held::enter(), |Placing { tree, iommu, entries, users }, banks, _| {
            let domain_of = |user: &StreamUser| {
                let (number, _) = entries.overlapping(user.entries.get(), Cube::point(id)).next()?;
                entries.bank_of(number).and_then(|bank| banks.at(bank).domain())
            };
            let wanted = |user: &StreamUser| domain.is_none() || domain_of(user) == domain;
            let mut owner: Option<DeviceId> = None;
            tree.each_overlap(*iommu, Cube::point(id), &mut |device| {
                let known = !is_reserved(device) && users.find(device).is_some_and(wanted);
                if known && owner.is_none_or(|owner| device < owner) {
                    owner = Some(device);
                }
                true
            });
            owner
        })
    }
}

/// Whether what was written to entries holds.
pub(in crate::smmu) const fn written(holds: bool) -> Result<(), IommuError> {
    if holds { Ok(()) } else { Err(IommuError::WriteLost { register: "SMR or S2CR" }) }
}

/// The cube that a few streams are together, where they are one: a fast path beside the search.
fn one_cube(streams: &[Cube]) -> Option<Cube> {
    let (first, rest) = streams.split_first()?;
    if rest.is_empty() {
        return Some(*first);
    }
    let span = rest.iter().fold(*first, |all, cube| all.span(*cube));
    let disjoint = |index: usize| {
        let (before, from) = streams.split_at_checked(index)?;
        from.first().map(|cube| before.iter().all(|other| !other.meets(*cube)))
    };
    let all_disjoint = streams.len() <= 8 && (1..streams.len()).all(|index| disjoint(index) == Some(true));
    let size = streams.iter().map(|cube| cube.size()).fold(0, u64::saturating_add);
    (all_disjoint && size == span.size()).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_streams_are_one_cube_only_where_they_fill_it() {
        let four = [0x10, 0x11, 0x12, 0x13].map(Cube::point);
        assert_eq!(one_cube(&four), Some(Cube::new(0x10, 3)));
        assert_eq!(one_cube(&[Cube::point(1), Cube::point(3)]), Some(Cube::new(1, 2)));
        assert_eq!(one_cube(&[Cube::point(1), Cube::point(4)]), None);
        assert_eq!(one_cube(&[Cube::new(0, 1), Cube::point(0), Cube::point(3)]), None);
        assert_eq!(one_cube(&[]), None);
    }
}
