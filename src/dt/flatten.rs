//! Writes a flattened device tree, version 17 (Devicetree Specification v0.4, chapter 5).
//!
//! By hand, for the same reasons as the reader: memory is reserved in a way that can fail, and names are as long as
//! those of the trees that come in (`docs/dependencies.md`).

use alloc::vec::Vec;

use super::DtError;
use super::blob::{BEGIN_NODE, END, END_NODE, MAGIC, PROPERTY};
use crate::few;

/// A blob in the making: nodes and properties in the order of the blob, the properties of a node before its children.
#[derive(Debug, Default)]
pub(super) struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
    /// Where the strings start, in the order of their texts.
    sorted: Vec<u32>,
}

impl Writer {
    /// Begins a node; the root's name is empty.
    pub(super) fn begin(&mut self, name: &str) -> Result<(), DtError> {
        self.cell(BEGIN_NODE)?;
        append(&mut self.structure, name.as_bytes())?;
        append(&mut self.structure, &[0])?;
        self.align()
    }

    /// Ends the node that was begun last.
    pub(super) fn end(&mut self) -> Result<(), DtError> {
        self.cell(END_NODE)
    }

    /// Adds a property to the node that was begun last.
    pub(super) fn property(&mut self, name: &str, value: &[u8]) -> Result<(), DtError> {
        let at = self.string(name)?;
        self.cell(PROPERTY)?;
        self.cell(length(value)?)?;
        self.cell(at)?;
        append(&mut self.structure, value)?;
        self.align()
    }

    /// Where the next node or property goes.
    pub(super) fn mark(&self) -> usize {
        self.structure.len()
    }

    /// Forgets what was written since a [`mark`](Self::mark).
    pub(super) fn back_to(&mut self, mark: usize) {
        self.structure.truncate(mark);
    }

    /// The blob. `reservations` is a memory reservation block with its end.
    pub(super) fn finish(mut self, reservations: &[u8], boot_cpu: u32) -> Result<Vec<u8>, DtError> {
        self.cell(END)?;
        let structure_at = HEADER.checked_add(length(reservations)?).ok_or(DtError::TooLarge)?;
        let strings_at = structure_at.checked_add(length(&self.structure)?).ok_or(DtError::TooLarge)?;
        let total = strings_at.checked_add(length(&self.strings)?).ok_or(DtError::TooLarge)?;
        let header = [
            MAGIC,
            total,
            structure_at,
            strings_at,
            HEADER,
            VERSION,
            COMPATIBLE,
            boot_cpu,
            length(&self.strings)?,
            length(&self.structure)?,
        ];
        let mut blob = Vec::new();
        blob.try_reserve_exact(usize::try_from(total).map_err(|_| DtError::TooLarge)?)?;
        for field in header {
            append(&mut blob, &field.to_be_bytes())?;
        }
        append(&mut blob, reservations)?;
        append(&mut blob, &self.structure)?;
        append(&mut blob, &self.strings)?;
        Ok(blob)
    }

    /// Where `name` stands in the strings block.
    fn string(&mut self, name: &str) -> Result<u32, DtError> {
        let text = |at: u32| {
            let rest = usize::try_from(at).ok().and_then(|at| self.strings.get(at..)).unwrap_or_default();
            rest.split(|byte| *byte == 0).next().unwrap_or_default()
        };
        match self.sorted.binary_search_by(|at| text(*at).cmp(name.as_bytes())) {
            Ok(place) => Ok(self.sorted.get(place).copied().unwrap_or_default()),
            Err(place) => {
                let at = length(&self.strings)?;
                self.sorted.try_reserve(1)?;
                few::insert_within(&mut self.sorted, place, at);
                append(&mut self.strings, name.as_bytes())?;
                append(&mut self.strings, &[0])?;
                Ok(at)
            }
        }
    }

    fn cell(&mut self, cell: u32) -> Result<(), DtError> {
        append(&mut self.structure, &cell.to_be_bytes())
    }

    fn align(&mut self) -> Result<(), DtError> {
        let padding = self.structure.len().wrapping_neg() & 3;
        append(&mut self.structure, [0; 3].get(..padding).unwrap_or_default())
    }
}

/// Copies `bytes` to the end of `to`.
pub(super) fn append(to: &mut Vec<u8>, bytes: &[u8]) -> Result<(), DtError> {
    Ok(few::append_bytes(to, bytes)?)
}

fn length(bytes: &[u8]) -> Result<u32, DtError> {
    u32::try_from(bytes.len()).map_err(|_| DtError::TooLarge)
}

const HEADER: u32 = 40;
const VERSION: u32 = 17;
/// The oldest version that readers of this blob may know.
const COMPATIBLE: u32 = 16;
