//! A sequential specification: what the contract says that each [`Op`] comes to, as a small pure model.
//!
//! It shares no code with the library. Where the contract leaves a choice (which of two reasons is told, which of two
//! equal covers is taken), [`Specification::step`] names every allowed outcome with the state that follows from it; who
//! compares keeps those that were seen. A checker of concurrent histories can use it the same way (contract C-15).
//!
//! Its state is the devices with their owners and groups, and as much of each SMMU as decides whether resources suffice:
//! which entries there are (contract I-11, I-15, A-5), which drains are owed (I-6, I-8), and what is broken.

mod claims;
mod comings;
mod cover;
mod entries;
mod groups;
mod guests;
mod instances;
mod moves;
mod operations;
mod outcome;
mod queue;

use std::collections::{BTreeMap, BTreeSet};

use crate::op::{Guest, Op, Sheet, Side, Slot};
use cover::Cube;
use instances::Gone;
use queue::Waiting;

pub use outcome::{After, Lacking, Outcome, Refusal};

/// What the specification is told of an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Stream-map entries.
    pub entries: usize,
    /// Context banks.
    pub banks: usize,
    /// The bits of a stream ID that it keeps.
    pub id_bits: u32,
    /// The bits of a stream ID that an entry can ignore.
    pub mask_bits: u32,
}

/// Whose a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// No guest's.
    Blocked,
    /// No guest's, after a failure: an assign first does what it lacks.
    Quarantined(Lacks),
    /// A guest's.
    Assigned(Guest),
    /// Its removal has begun and is not complete.
    Going,
}

/// What a quarantined device lacks (contract section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lacks {
    /// A confirmed drain.
    pub drain: bool,
    /// A successful quiesce and reset.
    pub reset: bool,
}

impl Lacks {
    const RESET: Self = Self { drain: false, reset: true };
}

/// A registered device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    /// Never `Going`: a device whose DMA could not be cut is on its way out and assigned.
    owner: Owner,
    going: bool,
}

/// A registered device as a traversal shows it: whose it is, and who is in its group.
pub type Shown = (Owner, BTreeSet<Slot>);

/// The state of the machine, as far as the contract speaks of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specification {
    devices: BTreeMap<Slot, Record>,
    /// The groups, each with whether a member has left since it was last owned by no domain.
    groups: BTreeMap<BTreeSet<Slot>, bool>,
    /// Devices of which a handle was given out, ever, and more than once.
    handles: BTreeSet<Slot>,
    old_handles: BTreeSet<Slot>,
    guests: BTreeMap<Guest, Running>,
    a: State,
    b: State,
    gone: BTreeSet<Gone>,
    /// Devices with a planned assign, and to whom. Their groups are claimed.
    reserved: BTreeMap<Slot, Guest>,
    /// Devices that were asked to go, and wait for a claim to end.
    marked: BTreeSet<Slot>,
    /// Requests that have no answer: those aside, which met a claimed group, and those in line, each in its order.
    aside: Vec<Waiting>,
    line: Vec<Waiting>,
    /// Devices whose next hook fails.
    broken: BTreeSet<Slot>,
    /// The card is in its slot; its virtual functions are on.
    plugged: bool,
    on: bool,
    /// The overlays that are applied; devices of others that could not go yet; and those that went without a reset.
    sheets: BTreeSet<Sheet>,
    leaving: Vec<Slot>,
    not_reset: BTreeSet<Slot>,
}

/// A guest that was created once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Running {
    alive: bool,
    /// The frame that the second page is mapped to, and the one that it was mapped to last.
    second: Option<bool>,
    last: bool,
}

/// One SMMU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    part: Part,
    registered: bool,
    /// A forced end has begun: nothing is to be had there any more (contract C-9).
    leaving: bool,
    /// And every stream faults.
    silenced: bool,
    entries: BTreeSet<Cube>,
    /// Guests that had a bank whose drain was not confirmed. With [`Drain::Late`] it may be finished by now.
    poisoned: BTreeMap<Guest, Drain>,
    /// Devices whose drain was not confirmed.
    owed: BTreeMap<Slot, Drain>,
    /// Guests whose bank has lost its last device while it was reserved for another: it is on, and drains when that is
    /// given back.
    kept: BTreeSet<Guest>,
    /// Frames of a second page that may be cached though they are not mapped.
    stale: BTreeSet<(Guest, bool)>,
    stuck: bool,
    next_lost: bool,
    /// The sync that was lost is in flight still, for the operation that lost it goes on: none behind it completes.
    held_up: bool,
    /// Its power is there.
    powered: bool,
}

/// A drain that was not confirmed within the bound of the operation that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Drain {
    /// Its sync is complete by now, or completes with the next look. On some parts more is needed to finish the drain.
    Late,
    /// Its sync cannot complete before the SMMU works again.
    Stuck,
}

impl State {
    fn new(part: Part) -> Self {
        Self {
            part,
            registered: true,
            leaving: false,
            silenced: false,
            entries: BTreeSet::new(),
            poisoned: BTreeMap::new(),
            owed: BTreeMap::new(),
            kept: BTreeSet::new(),
            stale: BTreeSet::new(),
            stuck: false,
            next_lost: false,
            held_up: false,
            powered: true,
        }
    }

    /// A sync that is started now, and must complete for the operation to go on.
    fn sync(&mut self) -> bool {
        !std::mem::take(&mut self.next_lost) && !self.stuck
    }

    /// How a drain stands whose sync has just failed.
    const fn failed_drain(&self) -> Drain {
        if self.stuck { Drain::Stuck } else { Drain::Late }
    }

    /// The ways in which an owed drain can be finished: whether it is confirmed, and what follows. A new sync may be needed.
    fn finish(&self, drain: Drain) -> Vec<(bool, Self)> {
        let mut again = self.clone();
        match drain {
            Drain::Stuck => vec![(false, again)],
            Drain::Late if again.sync() => vec![(true, again)],
            Drain::Late => vec![(true, self.clone()), (false, again)],
        }
    }

    /// The operation goes on after one of its parts, which began with `before`.
    fn go_on(&mut self, before: &Self) {
        if before.next_lost && !self.next_lost && !self.stuck {
            (self.held_up, self.stuck) = (true, true);
            self.poisoned.values_mut().chain(self.owed.values_mut()).for_each(|drain| *drain = Drain::Stuck);
        }
    }

    /// The SMMU works again: syncs that stuck complete.
    fn heal(&mut self) {
        (self.stuck, self.next_lost) = (false, false);
        self.poisoned.values_mut().chain(self.owed.values_mut()).for_each(|drain| *drain = Drain::Late);
    }
}

impl Specification {
    /// Two SMMUs in service, no device, no guest.
    #[must_use]
    pub fn new([a, b]: [Part; 2]) -> Self {
        Self {
            devices: BTreeMap::new(),
            groups: BTreeMap::new(),
            handles: BTreeSet::new(),
            old_handles: BTreeSet::new(),
            guests: BTreeMap::new(),
            a: State::new(a),
            b: State::new(b),
            gone: BTreeSet::new(),
            reserved: BTreeMap::new(),
            marked: BTreeSet::new(),
            aside: Vec::new(),
            line: Vec::new(),
            broken: BTreeSet::new(),
            plugged: false,
            on: false,
            sheets: BTreeSet::new(),
            leaving: Vec::new(),
            not_reset: BTreeSet::new(),
        }
    }

    /// Everything that `op` may come to, each with the state that follows. Never empty.
    #[must_use]
    pub fn step(&self, op: Op) -> Vec<(Outcome, Self)> {
        let mut steps = operations::step(self, op);
        for (_, next) in &mut steps {
            for side in Side::ALL {
                let here = next.side_mut(side);
                if std::mem::take(&mut here.held_up) {
                    here.heal();
                }
            }
        }
        steps
    }

    /// An operation goes on after one of its parts, which began with `before`.
    fn go_on(&mut self, before: &Self) {
        Side::ALL.into_iter().for_each(|side| self.side_mut(side).go_on(before.side(side)));
    }

    /// What `op` may come to beside [`step`](Self::step) where a forced unregister overlaps it (contract C-9): it was begun
    /// with an SMMU in service, and `self` is how it finds that when it comes to it.
    #[must_use]
    pub fn overtaken(&self, op: Op) -> Vec<(Outcome, Self)> {
        instances::overtaken(self, op)
    }

    /// The registered devices.
    #[must_use]
    pub fn shown(&self) -> BTreeMap<Slot, Shown> {
        let shown = |record: &Record| if record.going { Owner::Going } else { record.owner };
        self.devices.iter().map(|(slot, record)| (*slot, (shown(record), self.group(*slot)))).collect()
    }

    /// The guest that a stream ID reaches: the owner of any device on the entry that captures it.
    #[must_use]
    pub fn reach(&self, side: Side, id: u32) -> Option<Guest> {
        if self.side(side).silenced {
            return None;
        }
        let entry = self.side(side).entries.iter().find(|cube| cover::captures(**cube, id))?;
        self.users(side, *entry).find_map(|user| self.owner(user))
    }

    /// The operations of which one is carried out when this is done: those in the queue, when it is the worker's turn.
    #[must_use]
    pub fn carries_out(&self, op: Op) -> Vec<Op> {
        match op {
            Op::Work => self.aside.iter().chain(&self.line).map(Waiting::op).collect(),
            op => vec![op],
        }
    }

    /// How many requests have no answer yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.aside.len().saturating_add(self.line.len())
    }

    /// The stream IDs that an operation may open on its way to `Done`, and to whom.
    #[must_use]
    pub fn opens(&self, op: Op) -> Option<(BTreeSet<(Side, u32)>, Guest)> {
        let (movers, guest) = match op {
            Op::Assign(slot, guest) | Op::Reassign(slot, guest) => (BTreeSet::from([slot]), guest),
            Op::AssignGroup(slot, guest) | Op::ReassignGroup(slot, guest) => (self.group(slot), guest),
            Op::Commit(slot) => (BTreeSet::from([slot]), *self.reserved.get(&slot)?),
            _ => return None,
        };
        let entries = Side::ALL.into_iter().flat_map(|side| {
            let moved: BTreeSet<Cube> = movers.iter().flat_map(|mover| self.used(*mover, side)).collect();
            moved.into_iter().flat_map(cover::ids).map(move |id| (side, id))
        });
        Some((entries.collect(), guest))
    }

    /// Whether a move may have to finish an earlier operation's drain before it can say what it comes to.
    #[must_use]
    pub fn owes_drains(&self) -> bool {
        Side::ALL.into_iter().any(|side| !self.side(side).poisoned.is_empty() || !self.side(side).owed.is_empty())
    }

    /// Whether a registered device is with the SMMU that is in service, not with one that went.
    #[must_use]
    pub fn is_served(&self, slot: Slot, side: Side) -> bool {
        self.devices.contains_key(&slot) && self.is_at(slot, side)
    }

    /// Whether an SMMU is in service.
    #[must_use]
    pub fn is_registered(&self, side: Side) -> bool {
        self.side(side).registered
    }

    /// Whether a forced end of an SMMU has begun and not ended.
    #[must_use]
    pub fn is_leaving(&self, side: Side) -> bool {
        self.side(side).leaving
    }

    /// Whether the removal of a device has begun and is not complete.
    #[must_use]
    pub fn is_going(&self, slot: Slot) -> bool {
        self.devices.get(&slot).is_some_and(|record| record.going)
    }

    /// Whether a guest's domain exists.
    #[must_use]
    pub fn is_running(&self, guest: Guest) -> bool {
        self.guests.get(&guest).is_some_and(|running| running.alive)
    }

    /// Which of two frames a guest's second page is mapped to.
    #[must_use]
    pub fn second(&self, guest: Guest) -> Option<bool> {
        self.guests.get(&guest).and_then(|running| running.second)
    }

    // --- look-ups ---

    const fn side(&self, side: Side) -> &State {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    const fn side_mut(&mut self, side: Side) -> &mut State {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    fn owner(&self, slot: Slot) -> Option<Guest> {
        match self.devices.get(&slot)?.owner {
            Owner::Assigned(guest) => Some(guest),
            _ => None,
        }
    }

    /// Whether a device is registered that a reset of this one would end.
    fn has_dependents(&self, slot: Slot) -> bool {
        self.devices.keys().any(|child| child.parent() == Some(slot) && child.ends_with_parent())
    }

    fn is_quarantined(&self, slot: Slot) -> bool {
        self.devices.get(&slot).is_some_and(|record| matches!(record.owner, Owner::Quarantined(_)))
    }

    /// Whether a registered device is on its way out.
    fn is_leaving_device(&self, slot: Slot) -> bool {
        self.marked.contains(&slot) || self.is_going(slot)
    }

    /// Whether a registered device is with an SMMU that went.
    fn is_stranded(&self, slot: Slot, side: Side) -> bool {
        self.gone.iter().any(|gone| gone.side == side && gone.devices.contains(&slot))
    }

    /// Whether a device is with the SMMU that is in service.
    fn is_at(&self, slot: Slot, side: Side) -> bool {
        is_on(slot, side) && !self.is_stranded(slot, side)
    }

    /// The registered devices with a stream that an entry captures.
    fn users(&self, side: Side, cube: Cube) -> impl Iterator<Item = Slot> {
        let all = self.devices.keys().copied();
        all.filter(move |slot| meets_cube(*slot, side, cube) && !self.is_stranded(*slot, side))
    }

    /// Whether an entry translates.
    fn is_live(&self, side: Side, cube: Cube) -> bool {
        self.users(side, cube).any(|user| self.owner(user).is_some())
    }

    /// The entries that capture a device's streams.
    fn used(&self, slot: Slot, side: Side) -> BTreeSet<Cube> {
        let here = self.side(side).entries.iter().copied().filter(|_| self.is_at(slot, side));
        here.filter(|cube| meets_cube(slot, side, *cube)).collect()
    }

    /// The guests with a bank that translates.
    fn live_banks(&self, side: Side) -> BTreeSet<Guest> {
        let here = self.devices.keys().filter(|slot| self.is_at(**slot, side));
        here.filter_map(|slot| self.owner(*slot)).collect()
    }

    fn settle(&mut self, slots: &BTreeSet<Slot>, owner: Owner) {
        for (_, record) in self.devices.iter_mut().filter(|(slot, _)| slots.contains(*slot)) {
            record.owner = owner;
        }
    }
}

/// Whether a device has a stream at an SMMU.
fn is_on(slot: Slot, side: Side) -> bool {
    slot.streams().iter().any(|(at, ..)| *at == side)
}

fn meets_cube(slot: Slot, side: Side, cube: Cube) -> bool {
    let (id, mask) = cube;
    slot.streams().iter().any(|(at, base, ignored)| *at == side && (id ^ base) & !(mask | ignored) == 0)
}
