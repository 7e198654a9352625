//! How a flattened device tree can be malformed, and where.

use core::fmt;

use thiserror::Error;

/// Where a blob is malformed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{kind} (byte {offset:#x})")]
pub struct BlobError {
    offset: usize,
    kind: BlobErrorKind,
}

impl BlobError {
    /// Where, in bytes from the start of the blob.
    #[must_use]
    pub const fn offset(self) -> usize {
        self.offset
    }

    /// What is wrong there.
    #[must_use]
    pub const fn kind(self) -> BlobErrorKind {
        self.kind
    }

    pub(super) const fn new(offset: usize, kind: BlobErrorKind) -> Self {
        Self { offset, kind }
    }
}

/// How a blob can be malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlobErrorKind {
    /// The first four bytes are not those of a device tree.
    #[error("it starts with {0:#010x}, not with the device tree's magic number")]
    BadMagic(u32),
    /// A block ends before what it began is complete.
    #[error("the {0} ends too early")]
    BlockEnd(Block),
    /// The header places a block outside the blob.
    #[error("the header places the {block} at {start:#x}, and not all of it is in the blob")]
    BlockOutside {
        /// The block.
        block: Block,
        /// Where it starts.
        start: u32,
    },
    /// A name is empty that may not be.
    #[error("a name is empty")]
    EmptyName,
    /// The header places a block at an offset that is not aligned.
    #[error("the header places the {block} at {start:#x}, which is not aligned")]
    Misaligned {
        /// The block.
        block: Block,
        /// Where it starts.
        start: u32,
    },
    /// A name has a character that is not printable ASCII, or a node's name has a slash.
    #[error("a name has a character that no name may have")]
    NameCharacter,
    /// A name does not end inside its block.
    #[error("a name does not end")]
    NameEnd,
    /// A name has more than [`MAX_NAME`] characters.
    #[error("a name has more than {MAX_NAME} characters")]
    NameTooLong,
    /// A property's name lies outside the strings block.
    #[error("a property's name at {0:#x} lies outside the strings block")]
    NameOutside(u32),
    /// The structure ends without a node.
    #[error("there is no root node")]
    NoRoot,
    /// A property follows a child of its node.
    #[error("a property follows a child node")]
    PropertyAfterChild,
    /// A property stands outside any node.
    #[error("a property stands outside any node")]
    PropertyOutsideNode,
    /// The root node has a name.
    #[error("the root node has a name")]
    RootName,
    /// There is a second root node.
    #[error("there is a second root node")]
    SecondRoot,
    /// Nodes are nested deeper than [`MAX_DEPTH`].
    #[error("nodes are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// The blob is shorter than its header, or than its header says.
    #[error("truncated: {total} bytes are needed and {present} are there")]
    Truncated {
        /// How many bytes the header says, or is itself.
        total: usize,
        /// How many there are.
        present: usize,
    },
    /// The structure ends inside a node.
    #[error("the structure ends inside a node")]
    UnclosedNode,
    /// A token is none of the five.
    #[error("{0:#x} is no token")]
    UnknownToken(u32),
    /// A node ends that never began.
    #[error("a node ends that never began")]
    UnmatchedEnd,
    /// The format is older than version 16, or not compatible with version 17.
    #[error("format version {version}, compatible down to {compatible}, is not one of 16 and 17")]
    Version {
        /// The blob's version.
        version: u32,
        /// The oldest version that it is compatible with.
        compatible: u32,
    },
}

/// A block of the flattened format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Block {
    /// Ranges of memory that boot programs must not use.
    MemoryReservations,
    /// Nodes and properties.
    Structure,
    /// Names of properties.
    Strings,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MemoryReservations => "memory reservation block",
            Self::Structure => "structure block",
            Self::Strings => "strings block",
        })
    }
}

/// How deep nodes may be nested, the root counted: real trees end at 8, and the bound keeps paths short.
pub const MAX_DEPTH: usize = 64;

/// How long a name may be. The specification says 31; blobs in the field have more, and none comes near this. Without a
/// bound a small blob could take hours to read: all its properties can share one name as long as itself, and all its
/// nodes' paths can go through one.
pub const MAX_NAME: usize = 255;
