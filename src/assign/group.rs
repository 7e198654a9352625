//! A group: devices that the hardware or the bus cannot tell apart, with one owner. It is what operations exclude each other by.
//!
//! # Invariants
//!
//! 1. A group is owned by one place: the record of its leader in the registry, a claim, or the frame of an operation that
//!    lends it to nested ones. Only what owns it reads or changes it.
//! 2. All members that are assigned are assigned to one domain. During a move `target` is the domain that they go to, with the
//!    level of the operation that moves them.
//! 3. A group of n members keeps n - 1 emptied groups in `spare`, so that a split takes no memory.

use alloc::boxed::Box;
use core::cell::Cell;
use core::fmt;
use core::num::NonZeroU16;

use intrusive_collections::{LinkedList, LinkedListLink, intrusive_adapter};

use super::{ConflictReason, Device, DeviceId, DeviceKey, DomainId, IommuKey, Label};
use crate::sync::order::{Held, Unlocked};

/// Where a device's DMA goes (contract section 1, "owner").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// Being added; not yet in any group's ownership.
    Adding,
    /// In fault. Where every device starts.
    Blocked,
    /// In fault, or in its scratch page, owned by no domain, and lacking what is named. An assign does that first.
    Quarantined(Lacks),
    /// Its DMA is translated by the domain's tables.
    Assigned(DomainId),
    /// Its removal has begun and is not complete: it refuses every call but another removal.
    Going,
}

/// What a quarantined device lacks before it may be assigned (contract I-6, I-14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// A confirmed drain: what it had in flight may still reach its last owner's memory.
    pub drain: bool,
    /// A successful quiesce and reset: it may carry something over from its last owner.
    pub reset: bool,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adding => f.write_str("being added"),
            Self::Blocked => f.write_str("blocked"),
            Self::Quarantined(lacks) => {
                f.write_str("quarantined")?;
                match (lacks.drain, lacks.reset) {
                    (true, true) => f.write_str(": lacks a drain and a reset"),
                    (true, false) => f.write_str(": lacks a drain"),
                    (false, true) => f.write_str(": lacks a reset"),
                    (false, false) => Ok(()),
                }
            }
            Self::Assigned(domain) => write!(f, "assigned to {domain}"),
            Self::Going => f.write_str("going"),
        }
    }
}

impl DeviceState {
    /// The domain that it is assigned to.
    pub(super) const fn owner(self) -> Option<DomainId> {
        match self {
            Self::Assigned(domain) => Some(domain),
            _ => None,
        }
    }

    pub(super) const fn is_quarantined(self) -> bool {
        matches!(self, Self::Quarantined(_))
    }
}

/// A device as a traversal shows it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The handle.
    pub device: Device,
    /// Its state when the traversal passed.
    pub state: DeviceState,
    /// The group's name: the key of one of its members, the same for all of them.
    pub group: DeviceKey,
    /// The domain's name, where it is assigned.
    pub domain: Option<Label>,
}

/// A device in its group.
pub(super) struct Member {
    link: LinkedListLink,
    pub(super) device: Device,
    pub(super) state: Cell<DeviceState>,
    /// Its removal has begun and was not complete.
    pub(super) going: Cell<bool>,
    /// The level of the operation that is about it, 0 for none: a nested operation leaves it alone.
    pub(super) work: Cell<u16>,
    /// That operation does not move it, but must cleanse it: it shares an entry with what moves.
    pub(super) along: Cell<bool>,
    /// Nobody has moved it since it was registered anew: it carries over what the owner left in it that it had then.
    pub(super) untouched: Cell<bool>,
}

intrusive_adapter!(pub(super) Members = Box<Member>: Member { link => LinkedListLink });

/// A group.
pub(super) struct Group {
    pub(super) members: LinkedList<Members>,
    pub(super) target: Option<(DomainId, NonZeroU16)>,
    /// The member in whose record it stands when it is not claimed.
    pub(super) leader: DeviceId,
    /// A member has left since it was last split: the others may not belong together any more.
    pub(super) loose: bool,
    /// The frames that it was taken from, bit n for level n: it goes back to the innermost, and from none to the registry.
    pub(super) lenders: u64,
    /// The member that is to be removed next.
    pub(super) doomed: Option<DeviceId>,
    spare: Groups,
    /// The next one, where several groups are in one place.
    next: Option<Box<Group>>,
}

/// Several groups in one place, linked through themselves, so that putting one there takes no memory.
#[derive(Default)]
pub(super) struct Groups(Option<Box<Group>>);

impl Member {
    pub(super) fn new(device: Device) -> Box<Self> {
        Box::new(Self {
            link: LinkedListLink::new(),
            device,
            state: Cell::new(DeviceState::Adding),
            going: Cell::new(false),
            work: Cell::new(0),
            along: Cell::new(false),
            untouched: Cell::new(false),
        })
    }

    /// Whether it moves by the operation of this level.
    pub(super) fn moves(&self, level: u16) -> bool {
        self.work.get() == level && !self.along.get()
    }
}

impl Group {
    /// The group of one device.
    pub(super) fn of(member: Box<Member>) -> Box<Self> {
        let leader = member.device.id();
        let mut members = LinkedList::new(Members::new());
        members.push_back(member);
        Box::new(Self {
            members,
            target: None,
            leader,
            loose: false,
            lenders: 0,
            doomed: None,
            spare: Groups::default(),
            next: None,
        })
    }

    pub(super) fn member(&self, id: DeviceId) -> Option<&Member> {
        self.members.iter().find(|member| member.device.id() == id)
    }

    pub(super) fn contains(&self, id: DeviceId) -> bool {
        self.member(id).is_some()
    }

    /// The domain of an assigned member.
    pub(super) fn assigned_to(&self) -> Option<DomainId> {
        self.members.iter().find_map(|member| member.state.get().owner())
    }

    /// The domain that owns the group, or that it is on its way to.
    pub(super) fn owner(&self) -> Option<DomainId> {
        self.target.map(|(domain, _)| domain).or_else(|| self.assigned_to())
    }

    /// Takes all members of `other`; its box is kept as a spare. Of the frames that lent the two, the outermost gets it back.
    pub(super) fn merge(&mut self, mut other: Box<Self>) {
        let innermost = |lenders: u64| if lenders == 0 { u32::MAX } else { lenders.ilog2() };
        if innermost(other.lenders) < innermost(self.lenders) {
            self.lenders = other.lenders;
        }
        self.members.back_mut().splice_after(other.members.take());
        self.target = match (self.target, other.target) {
            (Some(one), Some(two)) => Some(if two.1 < one.1 { two } else { one }),
            (one, two) => one.or(two),
        };
        self.loose |= other.loose;
        while let Some(spare) = other.spare.pop() {
            self.spare.push(spare);
        }
        self.spare.push(other);
    }

    /// Takes a member out, with the spare that it brought. What is left is loose.
    pub(super) fn take(&mut self, id: DeviceId) -> Option<(Box<Member>, Option<Box<Self>>)> {
        let mut cursor = self.members.front_mut();
        while let Some(member) = cursor.get() {
            if member.device.id() == id {
                let member = cursor.remove()?;
                self.loose = true;
                return Some((member, self.spare.pop()));
            }
            cursor.move_next();
        }
        None
    }

    /// The member that leads: the one that did, while it is there, else the first.
    fn leading(&self) -> Option<&Device> {
        let lead = self.member(self.leader).or_else(|| self.members.front().get());
        lead.map(|member| &member.device)
    }

    /// Names the member that leads.
    pub(super) fn name_leader(&mut self) {
        self.leader = self.leading().map_or(self.leader, Device::id);
    }

    /// Its place in the order of claims (contract C-5): that of its leader.
    pub(super) fn position(&self) -> Option<(u16, DeviceKey)> {
        self.leading().map(|device| (device.depth(), device.key()))
    }

    /// Splits a group that is in fault throughout into what still belongs together: what overlaps, shares a bus, or shares a
    /// stream-map entry. The first part stays, the others are returned.
    pub(super) fn split(&mut self, held: &mut Held<'_, Unlocked>) -> Groups {
        let mut parts = Groups::default();
        self.loose = false;
        loop {
            let (part, size) = self.take_part(held);
            if self.members.is_empty() {
                self.members = part;
                return parts;
            }
            let Some(mut other) = self.spare.pop() else {
                // Cannot be (invariant 3). Together they are safe: they have one owner.
                self.members.back_mut().splice_after(part);
                return parts;
            };
            for spare in (1..size).filter_map(|_| self.spare.pop()) {
                other.spare.push(spare);
            }
            (other.members, other.target, other.loose, other.lenders) = (part, None, false, self.lenders);
            parts.push(other);
        }
    }

    /// Takes out the first member and what belongs to it, over any number of steps; with their number.
    fn take_part(&mut self, held: &mut Held<'_, Unlocked>) -> (LinkedList<Members>, usize) {
        let (mut part, mut size) = (LinkedList::new(Members::new()), 0_usize);
        let mut reached = LinkedList::new(Members::new());
        let mut next = self.members.pop_front();
        while let Some(one) = next {
            let mut cursor = self.members.front_mut();
            while let Some(member) = cursor.get() {
                if belong_together(held, &one.device, &member.device).is_none() {
                    cursor.move_next();
                } else if let Some(member) = cursor.remove() {
                    reached.push_back(member);
                }
            }
            part.push_back(one);
            size = size.saturating_add(1);
            next = reached.pop_front();
        }
        (part, size)
    }
}

/// Why a device joins a group, if it does.
pub(super) fn why_joined(held: &mut Held<'_, Unlocked>, device: &Device, group: &Group) -> Option<ConflictReason> {
    group.members.iter().find_map(|member| belong_together(held, device, &member.device))
}

/// Why two devices are one group, if they are: the hardware or the bus cannot tell them apart.
pub(super) fn belong_together(held: &mut Held<'_, Unlocked>, one: &Device, other: &Device) -> Option<ConflictReason> {
    one.overlaps(other).or_else(|| shared_at(held, one, other).map(ConflictReason::SharedStream))
}

/// The first IOMMU on which two devices use a common stream-map entry.
pub(super) fn shared_at(held: &mut Held<'_, Unlocked>, one: &Device, other: &Device) -> Option<IommuKey> {
    let mut instances = one.attachments().iter().map(|at| &at.instance);
    let shared = instances.find(|instance| {
        other.attachment_to(instance).is_some() && instance.iommu.call(held).shares(one.id(), other.id())
    });
    shared.map(|instance| instance.key)
}

impl Groups {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn push(&mut self, mut group: Box<Group>) {
        group.next = self.0.take();
        self.0 = Some(group);
    }

    pub(super) fn pop(&mut self) -> Option<Box<Group>> {
        let mut group = self.0.take()?;
        self.0 = group.next.take();
        Some(group)
    }

    pub(super) fn append(&mut self, mut others: Self) {
        while let Some(group) = others.pop() {
            self.push(group);
        }
    }

    pub(super) fn iter_mut(&mut self, mut act: impl FnMut(&mut Group)) {
        let mut next = self.0.as_deref_mut();
        while let Some(group) = next {
            act(group);
            next = group.next.as_deref_mut();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Group> {
        core::iter::successors(self.0.as_deref(), |group| group.next.as_deref())
    }

    /// Takes out the first group that `wanted` accepts.
    pub(super) fn take(&mut self, mut wanted: impl FnMut(&Group) -> bool) -> Option<Box<Group>> {
        let mut passed = Self::default();
        let mut found = None;
        while let Some(group) = self.pop() {
            if wanted(&group) {
                found = Some(group);
                break;
            }
            passed.push(group);
        }
        while let Some(group) = passed.pop() {
            self.push(group);
        }
        found
    }
}
