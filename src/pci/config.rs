//! Access to configuration space, and the header that all functions have.

use alloc::sync::Arc;

use super::{Bus, Sbdf};

/// Configuration space as the hypervisor reaches it: ECAM, or an index and a data register.
///
/// | ready here | for |
/// |---|---|
/// | [`Ecam`](super::Ecam) | configuration space that is mapped into memory |
/// | [`RegionAccess`](super::RegionAccess) | a `pci_types::ConfigRegionAccess` that the hypervisor has already |
///
/// It is not that trait itself, whose methods are `unsafe`: a wrong address here is answered with all ones, so that
/// nothing in this crate has to promise anything to read a register.
///
/// # Contract for implementers
///
/// - Called in any context, interrupts included, and from several CPUs at once: it may not block, and may not call
///   back into this library (contract C-3). An index and data pair needs a lock of its own, held over the pair only.
/// - `offset` is a multiple of 4 below 4096. Accesses are 32 bits wide, little-endian, and reach the function in the
///   order of the calls; a write is complete when it returns (PCI Express Base Specification 7.2.2: non-posted).
/// - What cannot be reached (no such function, a function that vanished, offsets from 256 up without ECAM, a bus that
///   is not behind this host bridge) reads as all ones, and writes to it are lost. A failed access must not raise an
///   exception.
pub trait ConfigSpace {
    /// Reads the 32 bits at `offset`.
    fn read(&self, function: Sbdf, offset: u16) -> u32;

    /// Writes the 32 bits at `offset`.
    fn write(&self, function: Sbdf, offset: u16, value: u32);

    /// Writes the 16 bits at `offset`, here a multiple of 2. Used for what a guest writes to registers whose meaning is not
    /// known, and nowhere else.
    ///
    /// As provided it reads 32 bits and writes them back: a bit of the other half that a 1 clears is cleared. Whoever can
    /// access 16 bits overrides it.
    fn write_u16(&self, function: Sbdf, offset: u16, value: u16) {
        write_part(self, function, offset & !1, 0xffff, value.into());
    }

    /// The same for the 8 bits at any `offset`.
    fn write_u8(&self, function: Sbdf, offset: u16, value: u8) {
        write_part(self, function, offset, 0xff, value.into());
    }
}

fn write_part<C: ConfigSpace + ?Sized>(space: &C, function: Sbdf, offset: u16, mask: u32, value: u32) {
    let shift = u32::from(offset & 3).wrapping_mul(8);
    let whole = space.read(function, offset & !3);
    // What is gone is not written to.
    if whole != u32::MAX {
        space.write(function, offset & !3, whole & !(mask << shift) | value << shift);
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<C: ConfigSpace + ?Sized> ConfigSpace for $pointer {
            fn read(&self, function: Sbdf, offset: u16) -> u32 {
                (**self).read(function, offset)
            }

            fn write(&self, function: Sbdf, offset: u16, value: u32) {
                (**self).write(function, offset, value);
            }

            fn write_u16(&self, function: Sbdf, offset: u16, value: u16) {
                (**self).write_u16(function, offset, value);
            }

            fn write_u8(&self, function: Sbdf, offset: u16, value: u8) {
                (**self).write_u8(function, offset, value);
            }
        }
    )*};
}

forward!(&C, Arc<C>);

/// What is wrong with a function's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// All ones: there is no function, or it was removed (contract A-6).
    #[error("{function} is not present: its configuration space reads all ones")]
    NotPresent {
        /// The function.
        function: Sbdf,
    },
    /// It asks to be tried again: its reset is not over (PCI Express Base Specification 2.3.2).
    #[error("{function} is not ready: it asks to be tried again")]
    NotReady {
        /// The function.
        function: Sbdf,
    },
    /// A capability list does not end: an entry comes again.
    #[error("the capability list of {function} loops at {offset:#x}")]
    CapabilityLoop {
        /// The function.
        function: Sbdf,
        /// The entry that comes again.
        offset: u16,
    },
    /// A capability list points where no capability can be.
    #[error("a capability list of {function} points to {offset:#x}, where no capability can be")]
    CapabilityPointer {
        /// The function.
        function: Sbdf,
        /// Where it points.
        offset: u16,
    },
    /// The header is of a layout that is not known.
    #[error("{function} has a header of unknown layout {layout:#x}")]
    HeaderLayout {
        /// The function.
        function: Sbdf,
        /// The layout, 7 bits.
        layout: u8,
    },
}

/// The layout of the header (PCI Express Base Specification 7.5.1.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderType {
    /// Type 0: an endpoint.
    Endpoint,
    /// Type 1: a bridge, with the buses that it forwards to.
    Bridge {
        /// The bus that it is on, as software told it.
        primary: Bus,
        /// The bus right below it.
        secondary: Bus,
        /// The last bus below it.
        subordinate: Bus,
    },
    /// Type 2: a CardBus bridge.
    CardBus,
}

/// One function's configuration space.
#[derive(Clone, Copy, Debug)]
pub struct FunctionConfig<'a, C: ?Sized> {
    space: &'a C,
    function: Sbdf,
    identity: Identity,
}

/// How a function says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// In its own registers.
    Own,
    /// A virtual function: both of its IDs read all ones, and these are meant (9.3.4.1.1, 9.3.4.1.2).
    Virtual { vendor: u16, device: u16 },
}

impl<'a, C: ConfigSpace + ?Sized> FunctionConfig<'a, C> {
    /// The configuration space of a function that answers.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotPresent`], [`ConfigError::NotReady`].
    pub fn new(space: &'a C, function: Sbdf) -> Result<Self, ConfigError> {
        Self::open(space, function, Identity::Own)
    }

    pub(super) fn open(space: &'a C, function: Sbdf, identity: Identity) -> Result<Self, ConfigError> {
        let config = Self { space, function, identity };
        config.still_present()?;
        Ok(config)
    }

    /// The space that it is part of.
    pub(super) const fn space(&self) -> &'a C {
        self.space
    }

    pub(super) const fn identity(&self) -> Identity {
        self.identity
    }

    /// Whose it is.
    #[must_use]
    pub const fn function(&self) -> Sbdf {
        self.function
    }

    /// Confirms that the function still answers.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotPresent`], [`ConfigError::NotReady`].
    pub fn still_present(&self) -> Result<(), ConfigError> {
        let function = self.function;
        // No vendor has these IDs; some bridges answer with zeros for what is not there.
        match (self.read(VENDOR) & 0xffff, self.identity) {
            (1, _) => Err(ConfigError::NotReady { function }),
            (0 | 0xffff, Identity::Own) => Err(ConfigError::NotPresent { function }),
            (_, Identity::Own) => Ok(()),
            // Each PCI Express function has capabilities, and bits of Command are always 0 (7.5.1.1.3, 7.5.1.1.4).
            (_, Identity::Virtual { .. }) => match self.read(COMMAND) {
                u32::MAX => Err(ConfigError::NotPresent { function }),
                value if value >> 16 & u32::from(HAS_CAPABILITIES) == 0 => Err(ConfigError::NotPresent { function }),
                _ => Ok(()),
            },
        }
    }

    /// Reads the 32 bits at `offset`, which is rounded down to a multiple of 4.
    #[must_use]
    pub fn read(&self, offset: u16) -> u32 {
        self.space.read(self.function, offset & 0xffc)
    }

    /// Reads 16 bits at an even `offset`.
    #[must_use]
    pub fn read_u16(&self, offset: u16) -> u16 {
        let [low, second, third, high] = self.read(offset).to_le_bytes();
        if offset & 2 == 0 { u16::from_le_bytes([low, second]) } else { u16::from_le_bytes([third, high]) }
    }

    /// Writes the 32 bits at `offset`, which is rounded down to a multiple of 4.
    pub fn write(&self, offset: u16, value: u32) {
        self.space.write(self.function, offset & 0xffc, value);
    }

    /// Changes 16 bits at an even `offset`: the bits of `clear` off, those of `set` on.
    ///
    /// The other half of the 32 bits is written as `other_half`, since it may hold bits that a 1 clears.
    ///
    /// # Errors
    ///
    /// The function has gone, and nothing is written: all ones that were read from it would reach what comes in its place.
    pub(super) fn change_u16(
        &self,
        offset: u16,
        clear: u16,
        set: u16,
        other_half: OtherHalf,
    ) -> Result<(), ConfigError> {
        let whole = self.read(offset);
        if whole == u32::MAX {
            self.still_present()?;
        }
        let [low, second, third, high] = whole.to_le_bytes();
        let (low, high) = (u16::from_le_bytes([low, second]), u16::from_le_bytes([third, high]));
        let (value, rest) = if offset & 2 == 0 { (low, high) } else { (high, low) };
        let value = value & !clear | set;
        let other = match other_half {
            OtherHalf::Keep => rest,
            OtherHalf::Zero => 0,
        };
        let (low, high) = if offset & 2 == 0 { (value, other) } else { (other, value) };
        self.write(offset, u32::from(low) | u32::from(high) << 16);
        Ok(())
    }

    /// Vendor and device ID.
    #[must_use]
    pub fn ids(&self) -> (u16, u16) {
        match self.identity {
            Identity::Own => (self.read_u16(VENDOR), self.read_u16(VENDOR | 2)),
            Identity::Virtual { vendor, device } => (vendor, device),
        }
    }

    /// Subsystem vendor ID and subsystem ID of an endpoint. Other layouts have something else there.
    #[must_use]
    pub fn subsystem(&self) -> (u16, u16) {
        (self.read_u16(SUBSYSTEM), self.read_u16(SUBSYSTEM | 2))
    }

    /// Class code: base class, subclass and interface in 24 bits.
    #[must_use]
    pub fn class(&self) -> u32 {
        self.read(CLASS) >> 8
    }

    /// Whether the device says that it has more functions than this one.
    #[must_use]
    pub fn is_multi_function(&self) -> bool {
        self.read(HEADER_TYPE) & MULTI_FUNCTION != 0
    }

    /// The layout of the header, with the bus numbers of a bridge.
    ///
    /// # Errors
    ///
    /// [`ConfigError::HeaderLayout`] for a layout that is not known, [`ConfigError::NotPresent`] if the function
    /// vanished.
    pub fn header_type(&self) -> Result<HeaderType, ConfigError> {
        let [.., layout, _] = self.read(HEADER_TYPE).to_le_bytes();
        match layout & 0x7f {
            0 => Ok(HeaderType::Endpoint),
            1 => {
                let [primary, secondary, subordinate, _] = self.read(BUS_NUMBERS).to_le_bytes();
                // A function that vanishes after its header was read has three times 0xff here.
                self.still_present()?;
                Ok(HeaderType::Bridge {
                    primary: Bus(primary),
                    secondary: Bus(secondary),
                    subordinate: Bus(subordinate),
                })
            }
            2 => Ok(HeaderType::CardBus),
            layout => {
                self.still_present()?;
                Err(ConfigError::HeaderLayout { function: self.function, layout })
            }
        }
    }
}

/// What to write to the half of a register that is not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherHalf {
    /// It has no bits that a 1 clears.
    Keep,
    /// All its bits are cleared by a 1, or read-only.
    Zero,
}

const VENDOR: u16 = 0x00;
/// The Command register; Status is the upper half.
pub(super) const COMMAND: u16 = 0x04;
pub(super) const STATUS: u16 = 0x06;
/// Status bit 4 (7.5.1.1.4).
pub(super) const HAS_CAPABILITIES: u16 = 1 << 4;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0c;
const SUBSYSTEM: u16 = 0x2c;
const MULTI_FUNCTION: u32 = 1 << 23;
/// Primary, secondary and subordinate bus number of a bridge.
pub(super) const BUS_NUMBERS: u16 = 0x18;
