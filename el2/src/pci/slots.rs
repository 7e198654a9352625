//! Hot-plug slots (PCI Express Base Specification 6.7 and 7.5.3.9 to 7.5.3.11), polled.
//!
//! A slot says that something was plugged in, or that someone pressed its button, or that what was there has gone. What
//! follows is the hypervisor's: power on and look, or take the function from its guest and power off.

use iommu_assign::pci::{ConfigSpace, Ecam, Function, PciKey, Sbdf};

/// A port with a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The port.
    pub(crate) port: Sbdf,
    /// The port's identity: what is plugged in is below it.
    pub(crate) key: PciKey,
    /// Where the port's PCI Express capability is.
    capability: u16,
}

/// What happened at a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The button was pressed, or presence changed, and something is there.
    Attention,
    /// Nothing is there any more.
    Gone,
}

const CAPABILITIES: u16 = 0x14;
/// Slot Control in the lower half, Slot Status above.
const CONTROL: u16 = 0x18;
const HOT_PLUG_CAPABLE: u32 = 1 << 6;
const SLOT_IMPLEMENTED: u32 = 1 << 24;
const BUTTON_PRESSED: u32 = 1 << 16;
const PRESENCE_CHANGED: u32 = 1 << 19;
const ALL_EVENTS: u32 = 0x11f << 16;
const PRESENT: u32 = 1 << 22;
const POWER_INDICATOR: u32 = 3 << 8;
const INDICATOR_ON: u32 = 1 << 8;
const INDICATOR_OFF: u32 = 3 << 8;
const POWER_OFF: u32 = 1 << 10;

impl Slot {
    /// The slot of a port that has one for hot-plug.
    pub(crate) fn of(space: &Ecam, function: &Function) -> Option<Self> {
        let express = function.capabilities.express.filter(|express| express.port_type.is_downstream_port())?;
        let slot = Self { port: function.sbdf, key: function.key, capability: express.offset };
        let has_slot = slot.read(space, 0) & SLOT_IMPLEMENTED != 0;
        (has_slot && slot.read(space, CAPABILITIES) & HOT_PLUG_CAPABLE != 0).then_some(slot)
    }

    /// What has happened since the last call.
    pub(crate) fn poll(&self, space: &Ecam) -> Option<Event> {
        let status = self.read(space, CONTROL);
        if status & (BUTTON_PRESSED | PRESENCE_CHANGED) == 0 {
            return None;
        }
        self.write(space, CONTROL, status & 0xffff | ALL_EVENTS);
        Some(if status & PRESENT != 0 { Event::Attention } else { Event::Gone })
    }

    /// Whether something is plugged in.
    pub(crate) fn is_occupied(&self, space: &Ecam) -> bool {
        self.read(space, CONTROL) & PRESENT != 0
    }

    /// Switches the slot's power on.
    pub(crate) fn power_on(&self, space: &Ecam) {
        self.switch(space, INDICATOR_ON);
    }

    /// Switches the slot's power off: what is there may be pulled, and answers no more.
    pub(crate) fn power_off(&self, space: &Ecam) {
        self.switch(space, INDICATOR_OFF | POWER_OFF);
    }

    fn switch(&self, space: &Ecam, to: u32) {
        let control = self.read(space, CONTROL) & 0xffff & !(POWER_INDICATOR | POWER_OFF);
        self.write(space, CONTROL, control | to);
    }

    fn read(&self, space: &Ecam, offset: u16) -> u32 {
        space.read(self.port, self.capability + offset)
    }

    fn write(&self, space: &Ecam, offset: u16, value: u32) {
        space.write(self.port, self.capability + offset, value);
    }
}
