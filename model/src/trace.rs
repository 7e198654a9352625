//! A record of every register access, as text that a person reads in review.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::fields;
use crate::registers::{self, Block};
use crate::smmu::Smmu;

/// Register accesses so far; a 64-bit access counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Read or write of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A read.
    Read,
    /// A write.
    Write,
}

/// One register access.
///
/// `Display` gives one line, such as `W GR0+0xc04 S2CR1 = 0x00020000 TYPE=fault`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Read or write.
    pub direction: Direction,
    /// Bits: 32 or 64.
    pub width: u8,
    /// Bytes from the base.
    pub offset: usize,
    /// The part of the register space.
    pub block: Block,
    /// Bytes from the start of that part.
    pub within: usize,
    /// The manual's name; `-` where there is no register.
    pub name: String,
    /// What was read or written.
    pub value: u64,
    /// The fields that matter, decoded; may be empty.
    pub fields: String,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Read => 'R',
            Direction::Write => 'W',
        };
        write!(f, "{direction} ")?;
        match self.block {
            Block::Gr0 => write!(f, "GR0")?,
            Block::Gr1 => write!(f, "GR1")?,
            Block::Global(page) => write!(f, "PAGE{page}")?,
            Block::Bank(n) => write!(f, "CB{n}")?,
            Block::NoBank => write!(f, "CB-")?,
            Block::Outside => write!(f, "OUTSIDE")?,
        }
        write!(f, "+{:#05x} {} = ", self.within, self.name)?;
        match self.width {
            64 => write!(f, "{:#018x}", self.value)?,
            _ => write!(f, "{:#010x}", self.value)?,
        }
        if self.fields.is_empty() { Ok(()) } else { write!(f, " {}", self.fields) }
    }
}

impl Smmu {
    /// Starts recording, or starts anew. Recording is off at first.
    pub fn start_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// What was recorded so far, oldest first; empty when recording is off.
    pub fn trace(&self) -> &[Record] {
        self.trace.as_deref().unwrap_or(&[])
    }

    /// Stops recording and gives what was recorded.
    pub fn take_trace(&mut self) -> Vec<Record> {
        self.trace.take().unwrap_or_default()
    }

    pub(crate) fn record(&mut self, direction: Direction, width: u8, offset: usize, value: u64) {
        if self.trace.is_none() {
            return;
        }
        let (block, within) = registers::locate(&self.config, offset);
        let name = registers::name(block, within);
        let fields = fields::decode(self, block, within, value);
        let record = Record { direction, width, offset, block, within, name, value, fields };
        if let Some(trace) = &mut self.trace {
            trace.push(record);
        }
    }
}
