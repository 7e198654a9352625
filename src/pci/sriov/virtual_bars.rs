//! The base addresses of virtual functions: in the physical function's capability, one function behind the other (9.3.3.14).

use super::super::capability::SrIov;
use super::super::config::{ConfigError, ConfigSpace, FunctionConfig};

/// A base address register for all virtual functions of a physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VirtualBar {
    /// Which of the six, 0 to 5. One of 64 bits has the next one too.
    pub index: u8,
    /// Where virtual function 0 is.
    pub address: u64,
    /// How many bytes each virtual function has: a power of two.
    pub size: u64,
    /// Whether the address has 64 bits.
    pub is_64_bit: bool,
    /// Whether reads have no side effects.
    pub is_prefetchable: bool,
}

/// A base address of one virtual function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseAddress {
    /// Which of the six, 0 to 5.
    pub index: u8,
    /// Where it is, on the bus.
    pub address: u64,
    /// How many bytes.
    pub size: u64,
    /// Whether reads have no side effects.
    pub is_prefetchable: bool,
}

impl VirtualBar {
    /// The base address of virtual function `number`, counted from 0.
    #[must_use]
    pub const fn of(&self, number: u16) -> BaseAddress {
        let &Self { index, address, size, is_prefetchable, .. } = self;
        BaseAddress { index, address: address.wrapping_add(size.wrapping_mul(number as u64)), size, is_prefetchable }
    }

    /// Whether `count` virtual functions have an address each.
    pub(super) fn has_room(&self, count: u16) -> bool {
        let last = if self.is_64_bit { u64::MAX } else { u32::MAX.into() };
        let bytes = self.size.checked_mul(count.into());
        let end = bytes.and_then(|bytes| self.address.checked_add(bytes.saturating_sub(1)));
        self.address != 0 && end.is_some_and(|end| end <= last)
    }
}

/// The base addresses of virtual functions that are off, with their sizes, which are found by writing to them (7.5.1.2.1).
/// They are put back.
///
/// # Errors
///
/// [`ConfigError::NotPresent`] when the function is gone: what was read is no size.
pub(super) fn measure<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capability: SrIov,
) -> Result<[Option<VirtualBar>; 6], ConfigError> {
    let mut bars = [None; 6];
    let mut registers = (0..).zip(capability.bars());
    while let Some((index, offset)) = registers.next() {
        let (low, mask) = probe(config, offset)?;
        let is_64_bit = mask & KIND == KIND_64;
        let upper = if is_64_bit { registers.next() } else { None };
        let (high, high_mask) = upper.map_or(Ok((0, u32::MAX)), |(_, offset)| probe(config, offset))?;
        let mask = u64::from(mask & !FLAGS) | u64::from(high_mask) << 32;
        // A register of which no bit of an address can be written is none, nor is one for ports (9.3.3.14).
        if mask & u64::from(!FLAGS) == 0 && (!is_64_bit || high_mask == 0) || low & PORTS != 0 {
            continue;
        }
        if let Some(bar) = bars.get_mut(usize::from(index)) {
            *bar = Some(VirtualBar {
                index,
                address: u64::from(low & !FLAGS) | u64::from(high) << 32,
                size: (!mask).wrapping_add(1),
                is_64_bit,
                is_prefetchable: low & PREFETCHABLE != 0,
            });
        }
    }
    config.still_present()?;
    Ok(bars)
}

/// What a register has, and which bits of it can be written. Nothing is written to a function that is gone.
fn probe<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Result<(u32, u32), ConfigError> {
    let read = || match config.read(offset) {
        // The upper half of a large one may say so.
        u32::MAX => config.still_present().map(|()| u32::MAX),
        value => Ok(value),
    };
    let value = read()?;
    config.write(offset, u32::MAX);
    let mask = read()?;
    config.write(offset, value);
    Ok((value, mask))
}

const PORTS: u32 = 1 << 0;
const KIND: u32 = 3 << 1;
const KIND_64: u32 = 2 << 1;
const PREFETCHABLE: u32 = 1 << 3;
const FLAGS: u32 = 0xf;
