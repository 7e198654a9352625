//! One CPU's devices. No other CPU moves them, so that it is known at every instant which guest's memory each may
//! reach, whatever happens to all other devices meanwhile.

use alloc::vec::Vec;

use iommu_assign::assign::Device;
use iommu_assign::sync::Micros;

use super::random::Random;
use super::score::{self, ACCESSES, OPERATIONS, expect};
use super::ticks;
use super::world::World;
use crate::iommu::guests::Guest;
use crate::iommu::masters::Master;
use crate::machine::time;

/// How long an operation may stay busy.
const PATIENCE: Micros = Micros::from_millis(20_000);

/// A CPU and its groups of devices.
pub(crate) struct Life<'w> {
    world: &'w World,
    groups: Vec<Own<'w>>,
    /// The page of each guest that this CPU takes out of tables and puts back.
    page: u64,
    random: Random,
}

/// A group, and where it is.
struct Own<'w> {
    masters: &'w [Master],
    at: At,
}

/// Where a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Not registered.
    Absent,
    /// Registered, in fault.
    Blocked,
    /// Assigned to this guest.
    Guest(usize),
}

/// When an operation must have been carried out.
pub(crate) fn deadline() -> Option<Micros> {
    Some(Micros::new(time::now().value() + PATIENCE.value()))
}

impl<'w> Life<'w> {
    /// This CPU's share of the devices.
    pub(crate) fn new(world: &'w World, cpu: usize) -> Self {
        let share = world.groups.iter().enumerate().filter(|(turn, _)| turn % world.cpus == cpu);
        let groups = share.map(|(_, masters)| Own { masters, at: At::Blocked }).collect();
        Self { world, groups, page: cpu as u64 + 1, random: Random::new(cpu as u64 + 1) }
    }

    /// One operation, and a look at what its devices reach.
    pub(crate) fn step(&mut self) {
        ticks::prepare(self.world);
        if self.groups.is_empty() {
            time::pass(Micros::from_millis(1));
            return;
        }
        let index = self.random.below(self.groups.len());
        let (guest, choice) = (self.random.below(self.world.guests.len()), self.random.below(8));
        let Own { masters, at } = self.groups[index];
        let next = match (at, choice) {
            (At::Absent, _) => self.add(masters),
            (At::Blocked, 0) => self.remove(masters),
            (At::Blocked, _) => self.assign(masters, guest),
            (At::Guest(owner), 0..3) if owner != guest => self.reassign(masters, owner, guest),
            (At::Guest(owner), 3 | 4) => {
                self.unmap_and_map(masters, owner);
                At::Guest(owner)
            }
            (At::Guest(owner), 5) => {
                expect(self.world.service.flush(&self.world.guests[owner].domain));
                At::Guest(owner)
            }
            (At::Guest(owner), 6) => At::Guest(owner),
            (At::Guest(_), _) => self.deassign(masters),
        };
        self.groups[index].at = next;
        self.check(masters, next);
    }

    /// Takes everything back and removes it.
    pub(crate) fn finish(&mut self) {
        for index in 0..self.groups.len() {
            let Own { masters, at } = self.groups[index];
            if let At::Guest(_) = at {
                self.deassign(masters);
            }
            if at != At::Absent {
                self.remove(masters);
            }
            self.groups[index].at = At::Absent;
        }
        ticks::finish(self.world);
    }

    /// The devices of a group that are registered.
    fn devices(&self, masters: &[Master]) -> Vec<Device> {
        masters.iter().filter_map(|master| self.world.service.find(master.key()).map(|info| info.device)).collect()
    }

    fn add(&self, masters: &[Master]) -> At {
        for master in masters {
            expect(self.world.service.wait(deadline(), |service| service.add(master.spec.clone())));
        }
        At::Blocked
    }

    fn remove(&self, masters: &[Master]) -> At {
        for master in masters.iter().rev() {
            expect(self.world.service.remove_and_wait(master.key(), deadline()));
        }
        At::Absent
    }

    fn assign(&self, masters: &[Master], guest: usize) -> At {
        let domain = &self.world.guests[guest].domain;
        for device in self.devices(masters) {
            expect(self.world.service.wait(deadline(), |service| service.assign(&device, domain)));
        }
        At::Guest(guest)
    }

    fn reassign(&self, masters: &[Master], owner: usize, guest: usize) -> At {
        let domain = &self.world.guests[guest].domain;
        let devices = self.devices(masters);
        match devices.as_slice() {
            [device] => expect(self.world.service.wait(deadline(), |service| service.reassign(device, domain))),
            [first, ..] => expect(self.world.service.wait(deadline(), |service| service.reassign_group(first, domain))),
            [] => return At::Guest(owner),
        };
        At::Guest(guest)
    }

    fn deassign(&self, masters: &[Master]) -> At {
        let devices = self.devices(masters);
        match devices.as_slice() {
            [device] => expect(self.world.service.wait(deadline(), |service| service.deassign(device))),
            [first, ..] => expect(self.world.service.wait(deadline(), |service| service.deassign_group(first))),
            [] => None,
        };
        At::Blocked
    }

    /// A page leaves the tables and nothing reaches it any more; it comes back and is reached, without a flush.
    fn unmap_and_map(&self, masters: &[Master], owner: usize) {
        let guest = &self.world.guests[owner];
        expect(guest.unmap(&self.world.service, self.page));
        for master in masters {
            score::add(&ACCESSES, master.check(None, &self.world.guests, self.page));
        }
        guest.map(self.page);
        score::count(&OPERATIONS);
    }

    fn check(&self, masters: &[Master], at: At) {
        let owner: Option<&Guest> = match at {
            At::Guest(owner) => Some(&self.world.guests[owner]),
            _ => None,
        };
        for master in masters {
            score::add(&ACCESSES, master.check(owner, &self.world.guests, self.page));
        }
    }
}
