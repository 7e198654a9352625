//! What a context bank does to an address: the checks before it, the TLB, and the walk through stage-2 tables.

use alloc::vec;
use alloc::vec::Vec;

use crate::config::{WideInput, code_size};
use crate::fault::{ContextFaultKind, GlobalFaultKind};
use crate::memory::Memory;
use crate::registers::{bank_attributes, field, sctlr};
use crate::smmu::Smmu;
use crate::tlb::{Leaf, Table};
use crate::transaction::{Access, Path, Transaction};

/// One bank's registers as a transaction saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BankView {
    n: u8,
    vmid: u16,
    cbar: u32,
    cba2r: u32,
    sctlr: u32,
    tcr: u32,
    ttbr0: u64,
}

/// The registers that decide a transaction's translation, as it saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    entry: u8,
    first: BankView,
    second: Option<BankView>,
}

impl View {
    /// The first bank, when `n` is the second one of a nested pair.
    pub(crate) fn nested_under(&self, n: u8) -> Option<u8> {
        self.second.is_some_and(|second| second.n == n).then_some(self.first.n)
    }
}

/// One thing that can become of a transaction in a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Pass { physical: u64, path: Path },
    Fault { bank: u8, kind: ContextFaultKind, level: u8 },
    Unmodelled { bank: u8 },
}

/// What a translation leaves in the caches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fill {
    pub(crate) leaf: Option<Leaf>,
    pub(crate) tables: Vec<Table>,
}

/// Shape of a table tree.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    /// Bits of a page: 12, 14 or 16.
    granule: u32,
    start: u32,
    input_bits: u32,
    root: u64,
    /// Bits that an output or table address may have.
    limit: u32,
}

impl Geometry {
    /// Lowest address bit that a level's index uses.
    fn shift(&self, level: u32) -> u32 {
        let stride = self.granule.wrapping_sub(3);
        self.granule.wrapping_add(stride.wrapping_mul(3u32.wrapping_sub(level)))
    }

    /// Address bits that the start level's index uses, concatenated tables included.
    fn start_bits(&self) -> Option<u32> {
        self.input_bits.checked_sub(self.shift(self.start))
    }

    fn is_valid(&self) -> bool {
        let most = self.granule.wrapping_sub(3).wrapping_add(4);
        (25..=48).contains(&self.input_bits) && self.start_bits().is_some_and(|bits| (1..=most).contains(&bits))
    }

    /// Address of the descriptor for `input` in the table of `level`.
    fn descriptor(&self, table: u64, level: u32, input: u64) -> u64 {
        let stride = self.granule.wrapping_sub(3);
        let bits = if level == self.start { self.start_bits().unwrap_or(stride) } else { stride };
        let index = (input >> self.shift(level)) & ones(bits);
        table.wrapping_add(index << 3)
    }

    fn may_be_block(&self, level: u32) -> bool {
        level == 3 || level == 2 || (level == 1 && self.granule == 12)
    }

    fn is_too_large(&self, address: u64) -> bool {
        address & !ones(self.limit) != 0
    }
}

impl Smmu {
    /// Reads the registers of the bank that a stream-map entry names, and checks what they ask for, in the manual's
    /// order.
    pub(crate) fn latch(&self, entry: u8, n: u8) -> Result<View, (GlobalFaultKind, u8, bool)> {
        use GlobalFaultKind::{InvalidContext, UnimplementedBank};
        let first = self.view_of(n).ok_or((UnimplementedBank, n, false))?;
        let config = &self.config;
        let (stage1, stage2, nested) = match first.cbar & bank_attributes::TYPE {
            bank_attributes::STAGE2 => (false, true, false),
            bank_attributes::STAGE1_BYPASS => (true, false, false),
            bank_attributes::NESTED => (true, true, true),
            _ => return Err((InvalidContext, n, true)),
        };
        let lacks = (stage1 && !config.stage1) || (stage2 && !config.stage2) || (nested && !config.nested);
        if lacks || (stage1 && n < config.stage2_banks) {
            return Err((InvalidContext, n, true));
        }
        if !nested {
            return Ok(View { entry, first, second: None });
        }
        let other = (field(first.cbar, 8, 8) & 0xff) as u8;
        let second = self.view_of(other).ok_or((UnimplementedBank, other, true))?;
        let formats = first.cba2r & bank_attributes::VA64 != 0 && second.cba2r & bank_attributes::VA64 == 0;
        if second.cbar & bank_attributes::TYPE != bank_attributes::STAGE2 || formats {
            return Err((InvalidContext, other, true));
        }
        Ok(View { entry, first, second: Some(second) })
    }

    /// Everything that can become of a transaction in its banks now: first what the model itself does, then what a part
    /// could do instead, since it may have dropped any cached entry. What is cached is dated `age`.
    pub(crate) fn decide(&self, memory: &Memory, view: &View, what: &Transaction, age: u64) -> Vec<(Decision, Fill)> {
        let banks = [Some(view.first), view.second];
        if let Some(bank) = banks.into_iter().flatten().find(|bank| self.ends_everything(bank.n)) {
            return vec![fault(bank.n, ContextFaultKind::HitUnderFault, 0)];
        }
        let kind = view.first.cbar & bank_attributes::TYPE;
        if kind == bank_attributes::STAGE2 {
            return self.stage2(memory, view.entry, &view.first, what, age);
        }
        if view.first.cba2r & bank_attributes::VA64 == 0 && what.address >> 32 != 0 {
            return vec![fault(view.first.n, ContextFaultKind::Translation, 1)];
        }
        match (view.first.sctlr & sctlr::M != 0, view.second) {
            (true, _) => vec![(Decision::Unmodelled { bank: view.first.n }, Fill::default())],
            (false, None) => vec![self.identity(view.entry, view.first.n, what)],
            (false, Some(second)) => self.stage2(memory, view.entry, &second, what, age),
        }
    }

    fn view_of(&self, n: u8) -> Option<BankView> {
        let bank = self.banks.get(usize::from(n))?;
        Some(BankView {
            n,
            vmid: self.vmid_of(n),
            cbar: bank.cbar,
            cba2r: bank.cba2r,
            sctlr: bank.sctlr,
            tcr: bank.tcr,
            ttbr0: bank.ttbr[0],
        })
    }

    /// Hit under a previous context fault is off, and there is one.
    fn ends_everything(&self, n: u8) -> bool {
        let Some(bank) = self.banks.get(usize::from(n)) else { return false };
        bank.is_faulted() && bank.sctlr & sctlr::HUPCF == 0
    }

    fn identity(&self, entry: u8, bank: u8, what: &Transaction) -> (Decision, Fill) {
        let physical = self.truncated(what.address);
        (Decision::Pass { physical, path: Path::BankOff { entry, bank } }, Fill::default())
    }

    fn stage2(
        &self,
        memory: &Memory,
        entry: u8,
        bank: &BankView,
        what: &Transaction,
        age: u64,
    ) -> Vec<(Decision, Fill)> {
        let narrow = bank.cba2r & bank_attributes::VA64 == 0;
        let off = bank.sctlr & sctlr::M == 0;
        if narrow && what.address >> 40 != 0 {
            let kind = match self.config.wide_input {
                WideInput::AddressSize if off && self.config.is_v2() => ContextFaultKind::AddressSize,
                _ => ContextFaultKind::Translation,
            };
            return vec![fault(bank.n, kind, 1)];
        }
        if off {
            return vec![self.identity(entry, bank.n, what)];
        }
        let shape = match self.geometry(bank) {
            Ok(shape) => shape,
            Err(kind) => return vec![fault(bank.n, kind, 1)],
        };
        let input_bits = shape.input_bits.min(u32::from(self.config.intermediate_bits));
        if what.address & !ones(input_bits) != 0 {
            return vec![fault(bank.n, ContextFaultKind::Translation, 1)];
        }
        let hits = self.tlb.leaves.iter().filter(|leaf| leaf.covers(bank.vmid, what.address));
        let mut all: Vec<_> = hits.map(|leaf| (permitted(entry, bank, what, leaf, true), Fill::default())).collect();
        let mut tables: Vec<_> = self
            .tlb
            .tables
            .iter()
            .filter(|table| table.covers(bank.vmid, what.address) && u32::from(table.granule) == shape.granule)
            .collect();
        tables.sort_by_key(|table| core::cmp::Reverse(table.level));
        let warm =
            tables.into_iter().map(|table| (table.table, u32::from(table.level), table.root, table.age.min(age)));
        let cold = core::iter::once((shape.root, shape.start, shape.root, age));
        for (table, level, root, age) in warm.chain(cold) {
            all.push(self.walk(memory, &shape, Start { table, level, root, age }, entry, bank, what));
        }
        all
    }

    fn geometry(&self, bank: &BankView) -> Result<Geometry, ContextFaultKind> {
        let output = u32::from(self.config.output_bits);
        let root = bank.ttbr0 & ones(48);
        let shape = if bank.cba2r & bank_attributes::VA64 == 0 {
            let start = match field(bank.tcr, 6, 2) {
                0 => 2,
                1 => 1,
                _ => return Err(ContextFaultKind::Translation),
            };
            // T0SZ is a signed number of four bits: -8 to 7.
            let size = field(bank.tcr, 0, 4);
            let input_bits = if size & 8 != 0 { 48u32.wrapping_sub(size) } else { 32u32.wrapping_sub(size) };
            Geometry { granule: 12, start, input_bits, root, limit: output.min(40) }
        } else {
            let config = &self.config;
            let (granule, implemented) = match field(bank.tcr, 14, 2) {
                0 => (12, config.granule_4k),
                1 => (16, config.granule_64k),
                2 => (14, config.granule_16k),
                _ => (0, false),
            };
            let deepest = if granule == 12 { 2 } else { 3 };
            let start = u32::checked_sub(deepest, field(bank.tcr, 6, 2));
            let (true, Some(start)) = (implemented, start.filter(|start| granule == 12 || *start > 0)) else {
                return Err(ContextFaultKind::Translation);
            };
            let input_bits = 64u32.wrapping_sub(field(bank.tcr, 0, 6));
            let limit = output.min(u32::from(code_size(field(bank.tcr, 16, 3))));
            Geometry { granule, start, input_bits, root, limit }
        };
        if !shape.is_valid() {
            return Err(ContextFaultKind::Translation);
        }
        if shape.is_too_large(root) {
            return Err(self.too_large());
        }
        // The bits below the table's own alignment are not part of its address.
        let aligned = shape.start_bits().map_or(0, |bits| root & !ones(bits.wrapping_add(3)));
        Ok(Geometry { root: aligned, ..shape })
    }

    /// Only v2 tells addresses that are too large from those that are not mapped.
    fn too_large(&self) -> ContextFaultKind {
        if self.config.is_v2() { ContextFaultKind::AddressSize } else { ContextFaultKind::Translation }
    }

    fn walk(
        &self,
        memory: &Memory,
        shape: &Geometry,
        start: Start,
        entry: u8,
        bank: &BankView,
        what: &Transaction,
    ) -> (Decision, Fill) {
        let Start { mut table, level, root, age } = start;
        let mut fill = Fill::default();
        for level in level..=3 {
            let number = (level & 3) as u8;
            let failed = |kind| Decision::Fault { bank: bank.n, kind, level: number };
            let at = shape.descriptor(table, level, what.address);
            let Some(descriptor) = memory.descriptor(at, self.config.coherent_walk) else {
                return (failed(ContextFaultKind::External), fill);
            };
            let is_table = match (descriptor & 3, level) {
                (3, 0..=2) => true,
                (3, _) => false,
                (1, 0..=2) if shape.may_be_block(level) => false,
                _ => return (failed(ContextFaultKind::Translation), fill),
            };
            let width = if is_table { shape.granule } else { shape.shift(level) };
            let output = descriptor & ones(48) & !ones(width);
            if shape.is_too_large(output) {
                return (failed(self.too_large()), fill);
            }
            let input = what.address & !ones(shape.shift(level));
            let size = 1u64.wrapping_shl(shape.shift(level));
            if is_table {
                table = output;
                let granule = (shape.granule & 0xff) as u8;
                let level = number.wrapping_add(1);
                fill.tables.push(Table { vmid: bank.vmid, input, size, table, level, granule, root, age });
                continue;
            }
            let accessed = descriptor & (1 << 10) != 0;
            if !accessed && bank.sctlr & sctlr::AFFD == 0 {
                return (failed(ContextFaultKind::AccessFlag), fill);
            }
            let leaf = Leaf {
                vmid: bank.vmid,
                input,
                size,
                output,
                permissions: ((descriptor >> 6) & 3) as u8,
                execute_never: descriptor & (1 << 54) != 0,
                level: number,
                root,
                age,
            };
            let decision = permitted(entry, bank, what, &leaf, false);
            fill.leaf = accessed.then_some(leaf);
            return (decision, fill);
        }
        (Decision::Fault { bank: bank.n, kind: ContextFaultKind::Translation, level: 3 }, fill)
    }
}

/// Where a walk begins: at the root, or at a cached table.
struct Start {
    table: u64,
    level: u32,
    root: u64,
    age: u64,
}

/// What a leaf makes of a transaction.
fn permitted(entry: u8, bank: &BankView, what: &Transaction, leaf: &Leaf, cached: bool) -> Decision {
    let needed = match what.access {
        Access::Read => 1,
        Access::Write => 2,
    };
    if leaf.permissions & needed == 0 || (what.instruction && leaf.execute_never) {
        return Decision::Fault { bank: bank.n, kind: ContextFaultKind::Permission, level: leaf.level };
    }
    let physical = leaf.output | (what.address & leaf.size.wrapping_sub(1));
    let path = Path::Translated { entry, bank: bank.n, vmid: bank.vmid, root: leaf.root, cached };
    Decision::Pass { physical, path }
}

fn fault(bank: u8, kind: ContextFaultKind, level: u8) -> (Decision, Fill) {
    (Decision::Fault { bank, kind, level }, Fill::default())
}

/// A number whose lowest `bits` bits are ones.
fn ones(bits: u32) -> u64 {
    1u64.checked_shl(bits).map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(granule: u32, start: u32, size: u32) -> Geometry {
        Geometry { granule, start, input_bits: 64 - size, root: 0, limit: 48 }
    }

    /// The manual's table of T0SZ ranges and of the number x from which the root's alignment follows: x - T0SZ.
    #[test]
    fn ranges_and_alignments_are_the_manuals() {
        let rows = [
            (12, 0, 16..=24, 28),
            (12, 1, 21..=33, 37),
            (12, 2, 30..=39, 46),
            (14, 1, 16..=27, 31),
            (14, 2, 24..=38, 42),
            (14, 3, 35..=39, 53),
            (16, 1, 16..=21, 25),
            (16, 2, 18..=34, 38),
            (16, 3, 31..=39, 51),
        ];
        for (granule, start, sizes, x) in rows {
            for size in 0..=63 {
                let shape = shape(granule, start, size);
                assert_eq!(shape.is_valid(), sizes.contains(&size), "granule {granule}, level {start}, T0SZ {size}");
                if shape.is_valid() {
                    assert_eq!(shape.start_bits().map(|bits| bits + 3), Some(x - size));
                }
            }
        }
    }
}
