//! Where a function is: segment, bus, device and function, and the 16 bits of it that its DMA carries.

use core::fmt;
use core::str::FromStr;

use pci_types::PciAddress;

/// A PCI segment group: one configuration space of 256 buses. Firmware numbers them (`linux,pci-domain`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(pub u16);

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({:#x})", self.0)
    }
}

/// A bus number. Software assigns them, and may assign them anew: no identity is made of one (contract C-18).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bus(pub u8);

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bus({:#x})", self.0)
    }
}

/// The low byte of a requester ID: 5 bits of device, 3 of function; behind an ARI port 8 bits of function
/// (PCI Express Base Specification, 2.2.6.2 and 6.13).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceFunction(pub u8);

impl DeviceFunction {
    /// Function `function` (0 to 7) of device `device` (0 to 31); nothing for numbers outside.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self(device << 3 | function)) } else { None }
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 & 7
    }

    /// Function 0 of the same device.
    #[must_use]
    pub const fn first_of_device(self) -> Self {
        Self(self.0 & !7)
    }
}

impl fmt::Display for DeviceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

impl fmt::Debug for DeviceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceFunction({self})")
    }
}

/// The address of a function, printed and parsed as `ssss:bb:dd.f` in hexadecimal.
///
/// Parsing also takes `bb:dd.f`, which means segment 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf {
    /// The segment.
    pub segment: Segment,
    /// The bus.
    pub bus: Bus,
    /// The device and function.
    pub device_function: DeviceFunction,
}

impl Sbdf {
    /// The function at this place.
    #[must_use]
    pub const fn new(segment: Segment, bus: Bus, device_function: DeviceFunction) -> Self {
        Self { segment, bus, device_function }
    }

    /// What its DMA carries.
    #[must_use]
    pub const fn requester_id(self) -> RequesterId {
        RequesterId::new(self.bus, self.device_function)
    }

    /// Another function of the same bus.
    #[must_use]
    pub const fn sibling(self, device_function: DeviceFunction) -> Self {
        Self { device_function, ..self }
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{}", self.segment.0, self.bus.0, self.device_function)
    }
}

impl fmt::Debug for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sbdf({self})")
    }
}

/// The text is not the address of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It has not the form `ssss:bb:dd.f` or `bb:dd.f`.
    #[error("a PCI address has the form ssss:bb:dd.f")]
    Form,
    /// A number is not hexadecimal, or has more digits than its place.
    #[error("a number in the PCI address is not hexadecimal or has too many digits")]
    Number,
    /// The device is above 1f or the function above 7.
    #[error("a PCI address has at most device 1f and function 7")]
    Range,
}

impl FromStr for Sbdf {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (bus, device_function) = text.rsplit_once(':').ok_or(AddressError::Form)?;
        let (segment, bus) = bus.rsplit_once(':').unwrap_or(("0", bus));
        let (device, function) = device_function.split_once('.').ok_or(AddressError::Form)?;
        let segment = hex(segment, 4)?;
        let bus = u8::try_from(hex(bus, 2)?).map_err(|_| AddressError::Number)?;
        let device = u8::try_from(hex(device, 2)?).map_err(|_| AddressError::Number)?;
        let function = u8::try_from(hex(function, 1)?).map_err(|_| AddressError::Number)?;
        let device_function = DeviceFunction::new(device, function).ok_or(AddressError::Range)?;
        Ok(Self::new(Segment(segment), Bus(bus), device_function))
    }
}

impl From<PciAddress> for Sbdf {
    fn from(address: PciAddress) -> Self {
        // Its fields are cut to 5 and 3 bits when it is made.
        let device_function = DeviceFunction(address.device() << 3 | address.function() & 7);
        Self::new(Segment(address.segment()), Bus(address.bus()), device_function)
    }
}

impl From<Sbdf> for PciAddress {
    fn from(address: Sbdf) -> Self {
        let place = address.device_function;
        Self::new(address.segment.0, address.bus.0, place.device(), place.function())
    }
}

/// What a transaction carries to say who sent it: bus, device and function, 16 bits, without the segment.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// The requester ID of a function on a bus.
    #[must_use]
    pub const fn new(bus: Bus, device_function: DeviceFunction) -> Self {
        Self(u16::from_be_bytes([bus.0, device_function.0]))
    }

    /// The bus part.
    #[must_use]
    pub const fn bus(self) -> Bus {
        Bus(self.0.to_be_bytes()[0])
    }

    /// The device and function part.
    #[must_use]
    pub const fn device_function(self) -> DeviceFunction {
        DeviceFunction(self.0.to_be_bytes()[1])
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{}", self.bus().0, self.device_function())
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequesterId({self})")
    }
}

fn hex(text: &str, digits: usize) -> Result<u16, AddressError> {
    // `from_str_radix` also takes a sign.
    let plain = !text.is_empty() && text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !plain {
        return Err(AddressError::Number);
    }
    u16::from_str_radix(text, 16).map_err(|_| AddressError::Number)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn addresses_are_printed_as_they_are_parsed() {
        for text in ["0000:00:00.0", "abcd:ff:1f.7", "0001:02:03.4"] {
            assert_eq!(text.parse::<Sbdf>().unwrap().to_string(), text);
        }
        assert_eq!("02:03.4".parse::<Sbdf>().unwrap().to_string(), "0000:02:03.4");
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        let cases = [
            ("", AddressError::Form),
            ("00.0", AddressError::Form),
            ("00:00", AddressError::Form),
            ("1:2:3:4.0", AddressError::Number),
            ("00:00.", AddressError::Number),
            ("00:+1.0", AddressError::Number),
            ("100:00:00.00", AddressError::Number),
            ("12345:00:00.0", AddressError::Number),
            ("00:20.0", AddressError::Range),
            ("00:1f.8", AddressError::Range),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Sbdf>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_requester_id_is_bus_then_device_then_function() {
        let function: Sbdf = "0007:12:03.4".parse().unwrap();
        assert_eq!(function.requester_id(), RequesterId(0x121c));
        assert_eq!(
            (RequesterId(0x121c).bus(), RequesterId(0x121c).device_function()),
            (Bus(0x12), DeviceFunction(0x1c))
        );
        assert_eq!(RequesterId(0x121c).to_string(), "12:03.4");
    }

    #[test]
    fn foreign_addresses_convert_both_ways() {
        let function: Sbdf = "beef:12:1f.7".parse().unwrap();
        let foreign = PciAddress::from(function);
        assert_eq!(foreign, PciAddress::new(0xbeef, 0x12, 0x1f, 7));
        assert_eq!(Sbdf::from(foreign), function);
    }
}
