//! Stage-2 tables as a hypervisor builds them: 4 KiB granule, start level 1, in the machine's memory.

use iommu_assign::assign::{Granule, PhysicalAddress, Stage2, TableMemory};

use super::Machine;

/// A guest's stage-2 tables, 4 KiB pages only.
///
/// For up to 40 bits of guest addresses the walk starts at level 1, with up to two concatenated tables.
#[derive(Debug)]
pub struct Stage2Tables {
    machine: Machine,
    stage2: Stage2,
    next_table: u64,
}

const TABLE: u64 = 0x1000;
const NO_ENTRIES: [u8; 0x1000] = [0; 0x1000];
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

impl Stage2Tables {
    /// Empty tables whose memory is taken from `pool` on, which must be aligned to 8 KiB, for a guest with
    /// `ipa_bits` (31..=40) of addresses and a machine with `output_bits`.
    #[must_use]
    pub fn new(machine: &Machine, pool: u64, ipa_bits: u8, output_bits: u8) -> Self {
        let stage2 = Stage2 {
            root: PhysicalAddress::new(pool),
            ipa_bits,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits,
            tables: TableMemory::NonCacheable,
        };
        let next_table = pool.wrapping_add(2 * TABLE);
        machine.memory(|memory| {
            memory.write(pool, &NO_ENTRIES);
            memory.write(pool.wrapping_add(TABLE), &NO_ENTRIES);
        });
        Self { machine: machine.clone(), stage2, next_table }
    }

    /// What the service is told of them.
    #[must_use]
    pub const fn stage2(&self) -> Stage2 {
        self.stage2
    }

    /// Maps one page, readable and, if `writable`, writable, and publishes the tables.
    pub fn map(&mut self, guest: u64, physical: u64, writable: bool) {
        // Valid page, access flag, inner shareable, write-back, S2AP.
        let permission = if writable { 3 } else { 1 };
        let page = (physical & ADDRESS) | 1 << 10 | 3 << 8 | permission << 6 | 0xf << 2 | 3;
        let entry = self.leaf(guest);
        self.machine.memory(|memory| memory.write_u64(entry, page));
        self.publish();
    }

    /// Unmaps one page and publishes the tables. What an SMMU has cached it keeps until it is flushed.
    pub fn unmap(&mut self, guest: u64) {
        let entry = self.leaf(guest);
        self.machine.memory(|memory| memory.write_u64(entry, 0));
        self.publish();
    }

    /// Overwrites all tables, as a hypervisor does that has given their memory to someone else.
    pub fn scribble(&mut self) {
        let (start, end) = (self.stage2.root.value(), self.next_table);
        let junk = vec![0xa5; usize::try_from(end.wrapping_sub(start)).unwrap_or(0)];
        self.machine.memory(|memory| memory.write(start, &junk));
        self.publish();
    }

    fn publish(&self) {
        let range = self.stage2.root.value()..self.next_table;
        self.machine.memory(|memory| memory.publish(range));
    }

    /// Where the level-3 entry of `guest` stands; tables on the way are made as needed.
    fn leaf(&mut self, guest: u64) -> u64 {
        let mut table = self.stage2.root.value();
        // The start level's index is wider: the concatenated tables are one array.
        for index in [guest >> 30 & 0x3ff, guest >> 21 & 0x1ff] {
            let entry = table.wrapping_add(index.wrapping_mul(8));
            let found = self.machine.memory(|memory| memory.read_u64(entry));
            table = if found & 1 == 1 {
                found & ADDRESS
            } else {
                let fresh = self.next_table;
                self.next_table = fresh.wrapping_add(TABLE);
                self.machine.memory(|memory| {
                    memory.write(fresh, &NO_ENTRIES);
                    memory.write_u64(entry, fresh | 3);
                });
                fresh
            };
        }
        table.wrapping_add((guest >> 12 & 0x1ff).wrapping_mul(8))
    }
}
