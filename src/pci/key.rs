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
/// # Invariants
///
/// Packed into one number, from the highest bits down: 16 bits of host bridge, then [`PciKey::MAX_DEPTH`] fields of
/// 10 bits: 1 and the 8 bits of device and function, or all zeros past the last. A prefix is thus smaller than what
/// it is a prefix of. The lowest two bits are zero.
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
        if self.depth() >= Self::MAX_DEPTH {
            return Err(KeyError::TooDeep { parent: self });
        }
        Ok(Self(self.0 | field(self.levels(), device_function)))
    }

    /// The bridge right above, if there is one.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        if self.levels() < 2 { None } else { Some(Self(self.0 & !(FIELD << shift(self.last_level())))) }
    }

    /// Another function of the same bus.
    #[must_use]
    pub const fn sibling(self, device_function: DeviceFunction) -> Self {
        let last = self.last_level();
        Self(self.0 & !(FIELD << shift(last)) | field(last, device_function))
    }

    /// How many functions it names: 1 for a function on a root bus.
    #[must_use]
    pub const fn depth(self) -> usize {
        self.levels() as usize
    }

    /// The host bridge.
    #[must_use]
    pub const fn host(self) -> HostBridgeNumber {
        HostBridgeNumber((self.0 >> HOST_SHIFT) as u16)
    }

    /// Its own device and function number.
    #[must_use]
    pub const fn device_function(self) -> DeviceFunction {
        self.place_at(self.last_level())
    }

    /// Whether `other` is below this bridge, at any depth.
    #[must_use]
    pub const fn is_above(self, other: Self) -> bool {
        let rest = shift(self.last_level());
        self.depth() < other.depth() && self.0 >> rest == other.0 >> rest
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
        let tag = |level: u32| (number >> shift(level) & FIELD) >> 8;
        let whole = (1..=Self::MAX_DEPTH).contains(&key.depth()) && number & 3 == 0;
        (whole && (0..key.levels()).all(|level| tag(level) == 1)).then_some(key)
    }

    const fn levels(self) -> u32 {
        let fields = self.0 << HOST_BITS;
        // The lowest bit that is set lies in the last field: in it at least the 1 above the 8 bits is.
        u128::BITS.wrapping_sub(fields.trailing_zeros()).div_ceil(FIELD_BITS)
    }

    const fn last_level(self) -> u32 {
        self.levels().wrapping_sub(1)
    }

    const fn place_at(self, level: u32) -> DeviceFunction {
        DeviceFunction((self.0 >> shift(level) & 0xff) as u8)
    }
}

/// The key under which the service knows the function.
impl From<PciKey> for DeviceKey {
    fn from(key: PciKey) -> Self {
        Self::new(Source::Pci, key.number())
    }
}

/// Prints the host bridge and the way down, such as `0/00.0/00.0/03.1`.
impl fmt::Display for PciKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host())?;
        (0..self.levels()).try_for_each(|level| write!(f, "/{}", self.place_at(level)))
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
    #[error("more than {max} functions in a row below bridge {parent}", max = PciKey::MAX_DEPTH)]
    TooDeep {
        /// The bridge below which no function has a key.
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
    (1 << 8 | device_function.0 as u128) << shift(level)
}

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
