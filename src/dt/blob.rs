//! The flattened device tree, read once from front to back (Devicetree Specification v0.4, chapter 5).
//!
//! # Invariants
//!
//! B1. No byte outside the first `totalsize` bytes is read, and no name or value reaches out of its block.
//! B2. The events of a structure that was read to its end nest: one root, each `Begin` with its `End`, the
//!     properties of a node before its first child, at most [`MAX_DEPTH`] nodes deep.
//! B3. Names are printable ASCII without blanks, so that an error can be printed on any console.

use super::blob_error::{BlobError, BlobErrorKind, Block, MAX_DEPTH, MAX_NAME};

/// One step of the walk through the structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    Begin { name: &'a str },
    Property { name: &'a str, value: &'a [u8] },
    End,
}

/// The one walk through a blob: header and memory reservations at once, the structure event by event.
#[derive(Clone, Debug)]
pub(super) struct Walk<'a> {
    structure: Cursor<'a>,
    reservations: &'a [u8],
    boot_cpu: u32,
    strings: &'a [u8],
    strings_offset: usize,
    depth: usize,
    root_seen: bool,
    child_seen: bool,
    finished: bool,
}

impl<'a> Walk<'a> {
    /// Checks the header and the memory reservations of `blob`, whose bytes past `totalsize` are ignored.
    ///
    /// # Errors
    ///
    /// What of the two is malformed.
    pub(super) fn new(blob: &'a [u8]) -> Result<Self, BlobError> {
        let truncated = |total| BlobError::new(blob.len(), BlobErrorKind::Truncated { total, present: blob.len() });
        let mut header = Cursor { bytes: blob, position: 0, offset: 0, block: Block::Structure };
        let mut field = || header.cell().map_err(|_| truncated(HEADER_SIZE_16));
        let magic = field()?;
        if magic != MAGIC {
            return Err(BlobError::new(0, BlobErrorKind::BadMagic(magic)));
        }
        let [total, structure, strings, reservations, version, compatible] =
            [field()?, field()?, field()?, field()?, field()?, field()?];
        let [boot_cpu, strings_size] = [field()?, field()?];
        if version < 16 || compatible > 17 || compatible > version {
            return Err(BlobError::new(VERSION_OFFSET, BlobErrorKind::Version { version, compatible }));
        }
        let structure_size =
            if version >= 17 { Some(header.cell().map_err(|_| truncated(HEADER_SIZE_17))?) } else { None };
        let total = to_usize(total);
        let whole = blob.get(..total).ok_or_else(|| truncated(total))?;
        let least = if version >= 17 { HEADER_SIZE_17 } else { HEADER_SIZE_16 };
        if total < least {
            return Err(BlobError::new(4, BlobErrorKind::Truncated { total: least, present: total }));
        }

        let mut reserved = Cursor::block(whole, Block::MemoryReservations, reservations, None)?;
        reserved.skip_reservations()?;
        let strings = Cursor::block(whole, Block::Strings, strings, Some(strings_size))?;
        Ok(Self {
            structure: Cursor::block(whole, Block::Structure, structure, structure_size)?,
            reservations: reserved.bytes.get(..reserved.position).unwrap_or_default(),
            boot_cpu,
            strings: strings.bytes,
            strings_offset: strings.offset,
            depth: 0,
            root_seen: false,
            child_seen: false,
            finished: false,
        })
    }

    /// The memory reservations as they are written, with the pair of zeros that ends them.
    pub(super) const fn reservations(&self) -> &'a [u8] {
        self.reservations
    }

    /// The physical ID of the CPU that the header says boots.
    pub(super) const fn boot_cpu(&self) -> u32 {
        self.boot_cpu
    }

    /// The next event, or `None` past the end of the structure.
    ///
    /// # Errors
    ///
    /// What is malformed there; the walk cannot go on after it.
    pub(super) fn step(&mut self) -> Result<Option<Event<'a>>, BlobError> {
        while !self.finished {
            let at = self.structure.absolute();
            match self.structure.cell()? {
                BEGIN_NODE => return self.begin(at).map(Some),
                END_NODE => return self.end(at).map(Some),
                PROPERTY => return self.property(at).map(Some),
                NOP => {}
                END if self.depth > 0 => return Err(BlobError::new(at, BlobErrorKind::UnclosedNode)),
                END if !self.root_seen => return Err(BlobError::new(at, BlobErrorKind::NoRoot)),
                END => self.finished = true,
                token => return Err(BlobError::new(at, BlobErrorKind::UnknownToken(token))),
            }
        }
        Ok(None)
    }

    fn begin(&mut self, at: usize) -> Result<Event<'a>, BlobError> {
        let name_at = self.structure.absolute();
        let name = self.structure.name()?;
        self.structure.align()?;
        if self.depth == 0 {
            if self.root_seen {
                return Err(BlobError::new(at, BlobErrorKind::SecondRoot));
            }
            self.root_seen = true;
            // Old boot loaders name the root "/"; every reader takes both.
            if !matches!(name, "" | "/") {
                return Err(BlobError::new(name_at, BlobErrorKind::RootName));
            }
        } else if name.is_empty() {
            return Err(BlobError::new(name_at, BlobErrorKind::EmptyName));
        } else if name.contains('/') {
            return Err(BlobError::new(name_at, BlobErrorKind::NameCharacter));
        }
        self.depth = match self.depth.checked_add(1) {
            Some(depth) if depth <= MAX_DEPTH => depth,
            _ => return Err(BlobError::new(at, BlobErrorKind::TooDeep)),
        };
        self.child_seen = false;
        Ok(Event::Begin { name })
    }

    fn end(&mut self, at: usize) -> Result<Event<'a>, BlobError> {
        let unmatched = BlobError::new(at, BlobErrorKind::UnmatchedEnd);
        self.depth = self.depth.checked_sub(1).ok_or(unmatched)?;
        self.child_seen = true;
        Ok(Event::End)
    }

    fn property(&mut self, at: usize) -> Result<Event<'a>, BlobError> {
        if self.depth == 0 {
            return Err(BlobError::new(at, BlobErrorKind::PropertyOutsideNode));
        }
        if self.child_seen {
            return Err(BlobError::new(at, BlobErrorKind::PropertyAfterChild));
        }
        let length = self.structure.cell()?;
        let name_at = self.structure.absolute();
        let name_offset = self.structure.cell()?;
        let value = self.structure.take(to_usize(length))?;
        self.structure.align()?;

        let outside = BlobError::new(name_at, BlobErrorKind::NameOutside(name_offset));
        let position = to_usize(name_offset);
        let mut name = Cursor { bytes: self.strings, position, offset: self.strings_offset, block: Block::Strings };
        if position >= self.strings.len() {
            return Err(outside);
        }
        let name = name.name()?;
        if name.is_empty() {
            return Err(BlobError::new(name_at, BlobErrorKind::EmptyName));
        }
        Ok(Event::Property { name, value })
    }
}

/// A block, and how far it has been read: `position` in the block, which lies at `offset` in the blob.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    offset: usize,
    block: Block,
}

impl<'a> Cursor<'a> {
    /// The block that starts at `start`, `size` bytes long or, where the format says no size, up to the blob's end.
    fn block(blob: &'a [u8], block: Block, start: u32, size: Option<u32>) -> Result<Self, BlobError> {
        let (field, align) = match block {
            Block::Structure => (8, 4),
            Block::Strings => (12, 1),
            Block::MemoryReservations => (16, 8),
        };
        let outside = BlobError::new(field, BlobErrorKind::BlockOutside { block, start });
        let offset = to_usize(start);
        let rest = blob.get(offset..).ok_or(outside)?;
        let bytes = match size {
            Some(size) => rest.get(..to_usize(size)).ok_or(outside)?,
            None => rest,
        };
        if !offset.is_multiple_of(align) {
            return Err(BlobError::new(field, BlobErrorKind::Misaligned { block, start }));
        }
        Ok(Self { bytes, position: 0, offset, block })
    }

    /// Where the next byte lies in the blob.
    fn absolute(&self) -> usize {
        self.offset.saturating_add(self.position)
    }

    fn too_early(&self) -> BlobError {
        BlobError::new(self.absolute(), BlobErrorKind::BlockEnd(self.block))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], BlobError> {
        let end = self.position.checked_add(count).ok_or(self.too_early())?;
        let taken = self.bytes.get(self.position..end).ok_or(self.too_early())?;
        self.position = end;
        Ok(taken)
    }

    fn cell(&mut self) -> Result<u32, BlobError> {
        let error = self.too_early();
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| error)
    }

    /// Skips to the next multiple of four; the padding may be missing at the very end of a block.
    fn align(&mut self) -> Result<(), BlobError> {
        self.position = self.position.checked_next_multiple_of(4).ok_or(self.too_early())?;
        Ok(())
    }

    /// A NUL-terminated name.
    fn name(&mut self) -> Result<&'a str, BlobError> {
        let at = self.absolute();
        let unterminated = BlobError::new(at, BlobErrorKind::NameEnd);
        let rest = self.bytes.get(self.position..).ok_or(unterminated)?;
        let length = match rest.iter().take(MAX_NAME.saturating_add(1)).position(|&byte| byte == 0) {
            Some(length) => length,
            None if rest.len() > MAX_NAME => return Err(BlobError::new(at, BlobErrorKind::NameTooLong)),
            None => return Err(unterminated),
        };
        let name = self.take(length)?;
        self.take(1)?;
        let character = BlobError::new(at, BlobErrorKind::NameCharacter);
        if !name.iter().all(u8::is_ascii_graphic) {
            return Err(character);
        }
        core::str::from_utf8(name).map_err(|_| character)
    }

    /// Reads pairs of (address, size) up to the pair of zeros that ends them.
    fn skip_reservations(&mut self) -> Result<(), BlobError> {
        while self.take(16)?.iter().any(|&byte| byte != 0) {}
        Ok(())
    }
}

const fn to_usize(value: u32) -> usize {
    // Lossless where the library runs: 64-bit targets.
    value as usize
}

pub(super) const MAGIC: u32 = 0xd00d_feed;
const VERSION_OFFSET: usize = 20;
const HEADER_SIZE_16: usize = 36;
const HEADER_SIZE_17: usize = 40;

pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROPERTY: u32 = 3;
const NOP: u32 = 4;
pub(super) const END: u32 = 9;
