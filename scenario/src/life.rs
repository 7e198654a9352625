//! One CPU's devices. No other CPU moves them, so that it is known at every instant which guest's memory each may
//! reach, whatever happens to all other devices meanwhile.

use alloc::vec::Vec;

use iommu_assign::assign::Device;
use iommu_assign::sync::Micros;

use super::deadline;
use super::machine::{Guest, Machine};
use super::master::Master;
use super::random::Random;
use super::world::World;

/// A CPU and its groups of devices.
pub(crate) struct Life<'w, M: Machine> {
    world: &'w World<M>,
    groups: Vec<Own<'w, M>>,
    /// The page of each guest that this CPU takes out of tables and puts back.
    page: u64,
    random: Random,
}

/// A group, and where it is.
struct Own<'w, M: Machine> {
    masters: &'w [Master<M::Engine>],
    at: At<'w, M::Guest>,
}

/// Where a group is.
enum At<'w, G> {
    /// Not registered.
    Absent,
    /// Registered, in fault.
    Blocked,
    /// Assigned to this guest.
    Guest(&'w G),
}

impl<G> Clone for At<'_, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<G> Copy for At<'_, G> {}

impl<'w, M: Machine> Life<'w, M> {
    /// This CPU's share of the devices.
    pub(crate) fn new(world: &'w World<M>, cpu: usize) -> Self {
        let is_own = |turn: usize| turn.checked_rem(world.cpus) == Some(cpu);
        let share = world.groups.iter().enumerate().filter(|(turn, _)| is_own(*turn));
        let groups = share.map(|(_, masters)| Own { masters, at: At::Blocked }).collect();
        let number = u64::try_from(cpu).unwrap_or(0).saturating_add(1);
        Self { world, groups, page: number, random: Random::new(number) }
    }

    /// One operation, and a look at what its devices reach.
    pub(crate) fn step(&mut self) {
        let world = self.world;
        world.prepare();
        let index = self.random.below(self.groups.len());
        let (guest, choice) = (self.random.below(world.guests.len()), self.random.below(8));
        let Some((&Own { masters, at }, guest)) = self.groups.get(index).zip(world.guests.get(guest)) else {
            world.machine.pass(Micros::from_millis(1));
            return;
        };
        let next = match (at, choice) {
            (At::Absent, _) => self.add(masters),
            (At::Blocked, 0) => self.remove(masters),
            (At::Blocked, _) => self.assign(masters, guest),
            (At::Guest(owner), 0..3) if !core::ptr::eq(owner, guest) => self.reassign(masters, owner, guest),
            (At::Guest(owner), 3 | 4) => {
                self.unmap_and_map(masters, owner);
                at
            }
            (At::Guest(owner), 5) => {
                world.score().expect(world.service.flush(owner.domain()));
                at
            }
            (At::Guest(_), 6) => at,
            (At::Guest(_), _) => self.deassign(masters),
        };
        if let Some(own) = self.groups.get_mut(index) {
            own.at = next;
        }
        let owner = if let At::Guest(owner) = next { Some(owner) } else { None };
        masters.iter().for_each(|master| world.check(master, owner, self.page));
    }

    /// Takes everything back and removes it.
    pub(crate) fn finish(self) {
        for Own { masters, at } in &self.groups {
            if let At::Guest(_) = at {
                self.deassign(masters);
            }
            if !matches!(at, At::Absent) {
                self.remove(masters);
            }
        }
        self.world.withdraw();
    }

    /// The devices of a group that are registered.
    fn devices(&self, masters: &[Master<M::Engine>]) -> Vec<Device> {
        masters.iter().filter_map(|master| self.world.service.find(master.key()).map(|info| info.device)).collect()
    }

    fn add(&self, masters: &[Master<M::Engine>]) -> At<'w, M::Guest> {
        for master in masters {
            self.world.carry_out(|service| service.add(master.spec.clone()));
        }
        At::Blocked
    }

    fn remove(&self, masters: &[Master<M::Engine>]) -> At<'w, M::Guest> {
        let World { service, .. } = self.world;
        for master in masters.iter().rev() {
            self.world.score().expect(service.remove_and_wait(master.key(), deadline::<M::Platform>()));
        }
        At::Absent
    }

    fn assign(&self, masters: &[Master<M::Engine>], guest: &'w M::Guest) -> At<'w, M::Guest> {
        for device in self.devices(masters) {
            self.world.carry_out(|service| service.assign(&device, guest.domain()));
        }
        At::Guest(guest)
    }

    fn reassign(&self, masters: &[Master<M::Engine>], owner: &'w M::Guest, guest: &'w M::Guest) -> At<'w, M::Guest> {
        let domain = guest.domain();
        match self.devices(masters).as_slice() {
            [device] => self.world.carry_out(|service| service.reassign(device, domain)),
            [first, ..] => self.world.carry_out(|service| service.reassign_group(first, domain)),
            [] => return At::Guest(owner),
        };
        At::Guest(guest)
    }

    fn deassign(&self, masters: &[Master<M::Engine>]) -> At<'w, M::Guest> {
        match self.devices(masters).as_slice() {
            [device] => self.world.carry_out(|service| service.deassign(device)),
            [first, ..] => self.world.carry_out(|service| service.deassign_group(first)),
            [] => None,
        };
        At::Blocked
    }

    /// A page leaves the tables and nothing reaches it any more; it comes back and is reached, without a flush.
    fn unmap_and_map(&self, masters: &[Master<M::Engine>], owner: &M::Guest) {
        let world = self.world;
        owner.unmap(self.page);
        world.score().expect(owner.flush(&world.service, self.page));
        masters.iter().for_each(|master| world.check(master, None, self.page));
        owner.map(self.page);
        world.score().operations.count();
    }
}
