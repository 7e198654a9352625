//! The stable identity of a function: where it is plugged, not how its bus is numbered (contract C-18).

use core::fmt;

use super::DeviceFunction;
use crate::assign::{DeviceKey, Source};

/// The integrator's number for a host bridge: the same in every run, different for each host bridge.
///
/// The segment is a good one where each segment has one host bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostBridgeNumber(pub u16);

impl fmt::Display for HostBridgeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The identity of a function: its host bridge, and the device and function numbers of each bridge on the way down
/// and of the function itself.
///
/// Renumbering buses does not change it; moving a card to another slot does. In ascending order a bridge comes before
/// all that is below it, and that before the bridge's next sibling.
///
/// A virtual function stands behind its physical function and has a number there. Its place is no part of its identity:
/// it depends on how many there are, and on the bus number.
///
/// # Invariants
///
/// Packed into one number, from the highest bits down: 16 bits of host bridge, then [`PciKey::MAX_DEPTH`] fields of
/// 10 bits: 1 and the 8 bits of device and function, or all zeros past the last. A virtual function's number is two
/// fields behind its physical function's: 2 and its upper 8 bits, 3 and its lower 8 bits. A prefix is thus smaller than
/// what it is a prefix of. The lowest two bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciKey(u128);

impl PciKey {
    /// How many functions a key can name from the root bus down: ten bridges and a function.
    ///
    /// A PCI Express fabric of three switches in a row, with a PCI bridge at the end, has nine.
    pub const MAX_DEPTH: usize = 11;

    /// A function on a root bus.
    #[must_use]
    pub const fn root(host: HostBridgeNumber, device_function: DeviceFunction) -> Self {
        Self(((host.0 as u128) << HOST_SHIFT) | field(0, device_function))
    }

    /// A function on the bus below this bridge.
    ///
    /// # Errors
    ///
    /// [`KeyError::TooDeep`] below [`PciKey::MAX_DEPTH`] functions.
    pub const fn child(self, device_function: DeviceFunction) -> Result<Self, KeyError> {
        if self.levels() as usize >= Self::MAX_DEPTH || self.virtual_number().is_some() {
            return Err(KeyError::TooDeep { parent: self });
        }
        Ok(Self(self.0 | field(self.levels(), device_function)))
    }

    /// The virtual function of this number, counted from 0, of this physical function.
    ///
    /// # Errors
    ///
    /// [`KeyError::TooDeep`] where a key has no room for the number, which takes that of two functions; and of a virtual
    /// function, which has none of its own.
    pub const fn virtual_function(self, number: u16) -> Result<Self, KeyError> {
        let levels = self.levels();
        if levels.wrapping_add(2) as usize > Self::MAX_DEPTH || self.virtual_number().is_some() {
            return Err(KeyError::TooDeep { parent: self });
        }
        let [upper, lower] = number.to_be_bytes();
        let number = tagged(levels, UPPER, upper) | tagged(levels.wrapping_add(1), LOWER, lower);
        Ok(Self(self.0 | number))
    }

    /// The number of a virtual function, counted from 0; `None` for any other function.
    #[must_use]
    pub const fn virtual_number(self) -> Option<u16> {
        let last = self.last_level();
        if self.tag_at(last) != LOWER {
            return None;
        }
        Some(u16::from_be_bytes([self.place_at(last.wrapping_sub(1)).0, self.place_at(last).0]))
    }

    /// The bridge right above, if there is one; of a virtual function its physical function.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        let own = self.own_level();
        if own == 0 || self.levels() == 0 { None } else { Some(Self(self.above(own))) }
    }

    /// Another function of the same bus; of a virtual function that of its physical function.
    #[must_use]
    pub const fn sibling(self, device_function: DeviceFunction) -> Self {
        let last = self.physical_level();
        Self(self.above(last) | field(last, device_function))
    }

    /// How many functions it names: 1 for a function on a root bus.
    #[must_use]
    pub const fn depth(self) -> usize {
        self.own_level().wrapping_add(1) as usize
    }

    /// The host bridge.
    #[must_use]
    pub const fn host(self) -> HostBridgeNumber {
        HostBridgeNumber((self.0 >> HOST_SHIFT) as u16)
    }

    /// Its own device and function number; of a virtual function those of its physical function.
    #[must_use]
    pub const fn device_function(self) -> DeviceFunction {
        self.place_at(self.physical_level())
    }

    /// Whether `other` is below this bridge, at any depth, or a virtual function of this physical function or of one below.
    #[must_use]
    pub const fn is_above(self, other: Self) -> bool {
        let rest = shift(self.last_level());
        self.levels() < other.levels() && self.0 >> rest == other.0 >> rest
    }

    /// The packed number: unique among all functions.
    #[must_use]
    pub const fn number(self) -> u128 {
        self.0
    }

    /// The key with this number, if it is one.
    #[must_use]
    pub fn from_number(number: u128) -> Option<Self> {
        let key = Self(number);
        let levels = key.levels();
        let is_whole = (1..=Self::MAX_DEPTH).contains(&(levels as usize)) && number & 3 == 0;
        let places = if key.tag_at(key.last_level()) == LOWER { levels.saturating_sub(2) } else { levels };
        let has_places = places > 0 && (0..places).all(|level| key.tag_at(level) == PLACE);
        let has_number = places == levels || key.tag_at(places) == UPPER;
        (is_whole && has_places && has_number).then_some(key)
    }

    /// The function that the service knows under this key, if it is one.
    #[must_use]
    pub fn of(key: DeviceKey) -> Option<Self> {
        Self::from_number(key.number()).filter(|_| key.source() == Source::Pci)
    }

    const fn levels(self) -> u32 {
        let fields = self.0 << HOST_BITS;
        // The lowest bit that is set lies in the last field: in it at least the 1 above the 8 bits is.
        u128::BITS.wrapping_sub(fields.trailing_zeros()).div_ceil(FIELD_BITS)
    }

    const fn last_level(self) -> u32 {
        self.levels().wrapping_sub(1)
    }

    /// Where its own name begins, behind what is above it.
    const fn own_level(self) -> u32 {
        let last = self.last_level();
        if self.virtual_number().is_some() { last.wrapping_sub(1) } else { last }
    }

    /// The fields above a level.
    const fn above(self, level: u32) -> u128 {
        self.0 & (u128::MAX << shift(level) << FIELD_BITS)
    }

    /// Where its place is; of a virtual function that of its physical function.
    const fn physical_level(self) -> u32 {
        let last = self.last_level();
        if self.virtual_number().is_some() { last.wrapping_sub(2) } else { last }
    }

    const fn place_at(self, level: u32) -> DeviceFunction {
        DeviceFunction((self.0 >> shift(level) & 0xff) as u8)
    }

    const fn tag_at(self, level: u32) -> u128 {
        (self.0 >> shift(level) & FIELD) >> 8
    }
}

/// The key under which the service knows the function.
impl From<PciKey> for DeviceKey {
    fn from(key: PciKey) -> Self {
        Self::new(Source::Pci, key.number())
    }
}

/// Prints the host bridge and the way down, such as `0/00.0/00.0/03.1`, and `0/00.0/03.1/vf5`.
impl fmt::Display for PciKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host())?;
        let places = self.physical_level().wrapping_add(1);
        (0..places).try_for_each(|level| write!(f, "/{}", self.place_at(level)))?;
        self.virtual_number().map_or(Ok(()), |number| write!(f, "/vf{number}"))
    }
}

impl fmt::Debug for PciKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciKey({self})")
    }
}

/// A function has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There are more bridges in a row than a key can name.
    #[error("more than {max} functions in a row below {parent}", max = PciKey::MAX_DEPTH)]
    TooDeep {
        /// The function below which no other has a key.
        parent: PciKey,
    },
}

const HOST_BITS: u32 = 16;
const HOST_SHIFT: u32 = u128::BITS - HOST_BITS;
const FIELD_BITS: u32 = 10;
const FIELD: u128 = (1 << FIELD_BITS) - 1;

/// Where the field of a level (0: root bus) begins.
const fn shift(level: u32) -> u32 {
    HOST_SHIFT.wrapping_sub(level.wrapping_add(1).wrapping_mul(FIELD_BITS)) & 127
}

const fn field(level: u32, device_function: DeviceFunction) -> u128 {
    tagged(level, PLACE, device_function.0)
}

const fn tagged(level: u32, tag: u128, value: u8) -> u128 {
    (tag << 8 | value as u128) << shift(level)
}

/// What stands above the 8 bits of a field: a device and function, or the halves of a virtual function's number.
const PLACE: u128 = 1;
const UPPER: u128 = 2;
const LOWER: u128 = 3;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    const HOST: HostBridgeNumber = HostBridgeNumber(2);

    fn key(way: &[u8]) -> PciKey {
        let (first, rest) = way.split_first().unwrap();
        let root = PciKey::root(HOST, DeviceFunction(*first));
        rest.iter().fold(root, |key, next| key.child(DeviceFunction(*next)).unwrap())
    }

    #[test]
    fn c_18_an_ancestor_sorts_before_its_descendants_and_they_before_its_sibling() {
        let ordered = [&[0][..], &[0, 0], &[0, 0, 0], &[0, 0, 255], &[0, 1], &[0, 255, 255], &[1], &[8, 0], &[255]];
        let keys: Vec<PciKey> = ordered.iter().map(|way| key(way)).collect();
        assert!(keys.is_sorted());
        assert!(keys.last().unwrap() < &PciKey::root(HostBridgeNumber(3), DeviceFunction(0)));
    }

    #[test]
    fn the_way_up_ends_at_the_root_bus() {
        let leaf = key(&[0x08, 0, 0x1f]);
        assert_eq!((leaf.depth(), leaf.host(), leaf.device_function()), (3, HOST, DeviceFunction(0x1f)));
        assert_eq!(leaf.parent(), Some(key(&[0x08, 0])));
        assert_eq!(leaf.parent().unwrap().parent(), Some(key(&[0x08])));
        assert_eq!(key(&[0x08]).parent(), None);
        assert_eq!(leaf.sibling(DeviceFunction(0)), key(&[0x08, 0, 0]));
        assert_eq!(leaf.to_string(), "2/01.0/00.0/03.7");
    }

    #[test]
    fn above_is_a_proper_prefix() {
        assert!(key(&[1]).is_above(key(&[1, 2, 3])));
        assert!(!key(&[1]).is_above(key(&[1])));
        assert!(!key(&[1, 2]).is_above(key(&[1])));
        assert!(!key(&[1, 2]).is_above(key(&[1, 3, 2])));
        assert!(!PciKey::root(HostBridgeNumber(9), DeviceFunction(1)).is_above(key(&[1, 2])));
    }

    #[test]
    fn depth_is_bounded() {
        let deepest = key(&[0xff; PciKey::MAX_DEPTH]);
        assert_eq!(deepest.depth(), PciKey::MAX_DEPTH);
        assert_eq!(deepest.child(DeviceFunction(0)), Err(KeyError::TooDeep { parent: deepest }));
        assert_eq!(deepest.number() & 3, 0);
    }

    #[test]
    fn c_18_a_virtual_function_is_named_by_its_number_behind_its_physical_function() {
        let physical = key(&[8, 0x1f]);
        let number = |number| physical.virtual_function(number).unwrap();
        let all = [physical, number(0), number(1), number(0xff), number(0x100), number(0xffff), key(&[8, 0x20])];
        assert!(all.is_sorted(), "behind its physical function, before that one's sibling");
        for n in [0, 1, 0xff, 0x100, 0xffff] {
            let virtual_function = number(n);
            assert_eq!(virtual_function.virtual_number(), Some(n));
            assert_eq!(virtual_function.parent(), Some(physical));
            assert_eq!((virtual_function.depth(), virtual_function.host()), (3, HOST));
            assert_eq!(virtual_function.device_function(), DeviceFunction(0x1f));
            assert_eq!(virtual_function.sibling(DeviceFunction(0)), key(&[8, 0]));
            assert_eq!(PciKey::from_number(virtual_function.number()), Some(virtual_function));
            assert!(physical.is_above(virtual_function) && key(&[8]).is_above(virtual_function));
            assert!(!virtual_function.is_above(physical) && !key(&[8, 0x1e]).is_above(virtual_function));
            assert_eq!(virtual_function.virtual_function(0), Err(KeyError::TooDeep { parent: virtual_function }));
            assert_eq!(virtual_function.child(DeviceFunction(0)), Err(KeyError::TooDeep { parent: virtual_function }));
        }
        assert_eq!((physical.virtual_number(), number(258).to_string()), (None, "2/01.0/03.7/vf258".to_string()));
        let (deep, deeper) = (key(&[1; PciKey::MAX_DEPTH - 2]), key(&[1; PciKey::MAX_DEPTH - 1]));
        assert_eq!(deep.virtual_function(7).unwrap().virtual_number(), Some(7));
        assert_eq!(deeper.virtual_function(7), Err(KeyError::TooDeep { parent: deeper }));
        // Halves that stand alone, in the wrong order, or behind nothing.
        let halves = [(2, UPPER), (2, LOWER)].map(|(level, tag)| physical.number() | tagged(level, tag, 0));
        let wrong = physical.number() | tagged(2, LOWER, 0) | tagged(3, UPPER, 0);
        let rootless = u128::from(HOST.0) << HOST_SHIFT | tagged(0, UPPER, 0) | tagged(1, LOWER, 0);
        for number in halves.into_iter().chain([wrong, rootless]) {
            assert_eq!(PciKey::from_number(number), None, "{number:x}");
        }
    }

    #[test]
    fn numbers_that_are_no_key_are_refused() {
        for way in [&[0u8][..], &[0xff; 11], &[0, 1, 2]] {
            assert_eq!(PciKey::from_number(key(way).number()), Some(key(way)));
        }
        let leaf = key(&[1, 2, 3]).number();
        for number in [0, 1, u128::MAX, leaf | 1, leaf ^ 1 << 110, leaf ^ 1 << 111, 0xffff << HOST_SHIFT] {
            assert_eq!(PciKey::from_number(number), None, "{number:x}");
        }
    }
}
