//! The machine code of the image: its functions, what each refers to, and which of them never return.
//!
//! The image is linked with its relocations kept, so that every call and every address that is taken is known without a
//! disassembler.

use std::collections::{BTreeMap, BTreeSet};

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

/// One function.
#[derive(Debug)]
pub(crate) struct Function {
    /// Demangled, without the compiler's hash.
    pub(crate) name: String,
    /// Each reference to another function: from which address, to which function's start.
    pub(crate) references: Vec<(u64, u64)>,
    pub(crate) size: u64,
    /// It ends in a call that does not return, on every way.
    pub(crate) never_returns: bool,
}

/// All functions, by where they start.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) functions: BTreeMap<u64, Function>,
}

/// The machine code of `ret`, and of a jump to a register with that register left out.
const RETURN: u32 = 0xd65f_03c0;
const JUMP_TO_REGISTER: u32 = 0xd61f_0000;
/// An unconditional jump, with its distance left out.
const JUMP: u32 = 0b000101 << 26;

/// The entry of every panic: the handler that the image brings.
const HANDLER: &str = "rust_begin_unwind";

impl Image {
    /// Reads an executable for aarch64.
    pub(crate) fn read(file: &object::File<'_>) -> Result<Self, object::Error> {
        let mut sizes: BTreeMap<u64, (u64, String)> = BTreeMap::new();
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name()?));
            sizes.insert(symbol.address(), (symbol.size(), name));
        }
        let mut image = Self { functions: BTreeMap::new() };
        let mut jumps = BTreeMap::new();
        for section in file.sections().filter(|section| section.kind() == object::SectionKind::Text) {
            let (base, code) = (section.address(), section.data()?);
            let mut references: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
            for (at, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                let target = file.symbol_by_index(index)?.address().wrapping_add_signed(relocation.addend());
                let (Some(from), Some(to)) = (around(&sizes, at), around(&sizes, target)) else { continue };
                if from != to {
                    references.entry(from).or_default().push((at, to));
                }
            }
            for (start, (size, name)) in &sizes {
                let Some(first) = start.checked_sub(base).and_then(|at| usize::try_from(at).ok()) else { continue };
                let last = first.saturating_add(usize::try_from(*size).unwrap_or(0));
                let Some(body) = code.get(first..last) else { continue };
                let references = references.remove(start).unwrap_or_default();
                let mut returns = false;
                let mut outside = Vec::new();
                for (instruction, at) in body.as_chunks::<4>().0.iter().zip((*start..).step_by(4)) {
                    let instruction = u32::from_le_bytes(*instruction);
                    returns |= instruction == RETURN || instruction & !(0x1f << 5) == JUMP_TO_REGISTER;
                    if instruction & (0x3f << 26) == JUMP {
                        outside.extend(references.iter().filter(|(from, _)| *from == at).map(|(_, to)| *to));
                    }
                }
                jumps.insert(*start, outside);
                image
                    .functions
                    .insert(*start, Function { name: name.clone(), references, size: *size, never_returns: !returns });
            }
        }
        image.follow(&jumps);
        Ok(image)
    }

    /// A function whose last jump goes to one that returns returns, too.
    fn follow(&mut self, jumps: &BTreeMap<u64, Vec<u64>>) {
        loop {
            let returns = |to: &u64| self.functions.get(to).is_none_or(|function| !function.never_returns);
            let found: Vec<u64> = jumps
                .iter()
                .filter(|(from, to)| !returns(from) && to.iter().any(returns))
                .map(|(from, _)| *from)
                .collect();
            if found.is_empty() {
                return;
            }
            for from in found {
                if let Some(function) = self.functions.get_mut(&from) {
                    function.never_returns = false;
                }
            }
        }
    }

    /// The panic machinery: functions that do not return and come to the panic handler.
    pub(crate) fn machinery(&self) -> BTreeSet<u64> {
        let is_handler = |function: &Function| function.name.contains(HANDLER);
        let mut found: BTreeSet<u64> =
            self.functions.iter().filter(|(_, function)| is_handler(function)).map(|(start, _)| *start).collect();
        loop {
            let more: Vec<u64> = self
                .functions
                .iter()
                .filter(|(start, function)| {
                    function.never_returns
                        && !found.contains(start)
                        && function.references.iter().any(|(_, to)| found.contains(to))
                })
                .map(|(start, _)| *start)
                .collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    /// Who refers to each function: from which function, at which address.
    pub(crate) fn callers(&self) -> BTreeMap<u64, Vec<(u64, u64)>> {
        let mut callers: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for (start, function) in &self.functions {
            for (at, to) in &function.references {
                callers.entry(*to).or_default().push((*start, *at));
            }
        }
        callers
    }

    /// Bytes of machine code.
    pub(crate) fn size(&self) -> u64 {
        self.functions.values().map(|function| function.size).sum()
    }

    pub(crate) fn name(&self, start: u64) -> &str {
        self.functions.get(&start).map_or("?", |function| &function.name)
    }
}

/// The function around an address.
fn around(sizes: &BTreeMap<u64, (u64, String)>, address: u64) -> Option<u64> {
    let (start, (size, _)) = sizes.range(..=address).next_back()?;
    (address.wrapping_sub(*start) < *size).then_some(*start)
}
