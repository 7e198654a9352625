//! Values of properties in the making, and those that are written anew for a guest.

use alloc::string::String;
use alloc::vec::Vec;

use crate::dt::cells::{Cells, DMA_RANGES};
use crate::dt::flatten::append;
use crate::dt::tree::Node;
use crate::dt::{DtError, Region};
use crate::few;

/// A property's value in the making.
#[derive(Debug, Default)]
pub(super) struct Value(Vec<u8>);

impl Value {
    pub(super) fn cells(cells: &[u32]) -> Result<Self, DtError> {
        let mut value = Self::default();
        cells.iter().try_for_each(|cell| value.cell(*cell))?;
        Ok(value)
    }

    pub(super) fn cell(&mut self, cell: u32) -> Result<(), DtError> {
        append(&mut self.0, &cell.to_be_bytes())
    }

    /// Two cells.
    pub(super) fn number(&mut self, number: u64) -> Result<(), DtError> {
        append(&mut self.0, &number.to_be_bytes())
    }

    /// A string with its NUL.
    pub(super) fn text(&mut self, text: &str) -> Result<(), DtError> {
        append(&mut self.0, text.as_bytes())?;
        append(&mut self.0, &[0])
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `name@address`; without an address where there is none.
pub(super) fn node_name(name: &str, address: Option<u64>) -> Result<String, DtError> {
    let mut text = String::new();
    let Some(address) = address else {
        push(&mut text, name)?;
        return Ok(text);
    };
    push(&mut text, name.split('@').next().unwrap_or(name))?;
    push(&mut text, "@")?;
    push_number(&mut text, address)?;
    Ok(text)
}

/// `name-number`.
pub(super) fn numbered(name: &str, number: u64) -> Result<String, DtError> {
    let mut text = String::new();
    push(&mut text, name)?;
    push(&mut text, "-")?;
    push_number(&mut text, number)?;
    Ok(text)
}

/// In hexadecimal digits.
fn push_number(text: &mut String, address: u64) -> Result<(), DtError> {
    let digits = (u64::BITS.saturating_sub(address.leading_zeros())).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = u32::try_from(address >> place.saturating_mul(4) & 0xf).unwrap_or(0);
        let digit = char::from_digit(digit, 16).unwrap_or('0');
        push(text, digit.encode_utf8(&mut [0; 4]))?;
    }
    Ok(())
}

fn push(text: &mut String, more: &str) -> Result<(), DtError> {
    Ok(few::append(text, more)?)
}

/// The `dma-ranges` of `bus` with two cells for each number; `None` where it has none or its children's addresses are its own.
/// `up`: the addresses on the other side are those that an IOMMU at the root sees.
pub(super) fn dma_ranges(bus: &Node<'_, '_>, up: bool) -> Result<Option<Value>, DtError> {
    let Some(property) = bus.property(DMA_RANGES).filter(|property| !property.value().is_empty()) else {
        return Ok(None);
    };
    let parent_cells = bus.parent().map_or(Ok(2), |parent| parent.address_cells())?;
    let widths = [bus.address_cells()?, parent_cells, bus.size_cells()?];
    let mut cells = bus.entries(DMA_RANGES, property.value(), &widths)?;
    let mut value = Value::default();
    while !cells.is_empty() {
        let mut next = |width| number(bus, &mut cells, width);
        let (child, parent, size) = (next(widths[0])?, next(widths[1])?, next(widths[2])?);
        let region = bus.region(DMA_RANGES, parent, size)?;
        let region = if up { bus.as_its_iommu_sees(region)? } else { region };
        value.number(child)?;
        value.number(region.base())?;
        value.number(region.size())?;
    }
    Ok(Some(value))
}

fn number(bus: &Node<'_, '_>, cells: &mut Cells<'_>, width: u32) -> Result<u64, DtError> {
    let too_wide = || bus.error(crate::dt::NodeFault::NumberTooWide { property: DMA_RANGES });
    cells.number(width).ok_or_else(too_wide)
}

/// The registers of a node where the guest has them: two cells for each address and size.
pub(super) fn reg(places: &[Region]) -> Result<Value, DtError> {
    let mut value = Value::default();
    for place in places {
        value.number(place.base())?;
        value.number(place.size())?;
    }
    Ok(value)
}
