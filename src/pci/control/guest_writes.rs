//! What a guest may write to its function, looked up write by write.

use alloc::vec::Vec;

use super::super::capability::{self, Capability, ExtendedCapability};
use super::super::config::{ConfigError, ConfigSpace, FunctionConfig, HeaderType};
use super::quiesce::ControlError;
use super::write_rules::{CAPABILITY_RULES, CapabilityRule, Reason, RuleOf, Treatment, WRITE_RULES, WriteRule};
use crate::few;

/// What a guest may write to the configuration space of its function: the tables [`CAPABILITY_RULES`] and
/// [`WRITE_RULES`] laid over the capabilities that the function has (contract S-7).
///
/// Whatever is in no table does not pass. What passes is the guest's own matter; the rest would undo what isolates the
/// function, or lets it work for the next owner.
///
/// The table of MSI-X is behind a base address: what is on its page is the hypervisor's to emulate too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestWrites {
    /// Ascending by `start`, none of them overlapping.
    extents: Vec<Extent>,
    /// All of it is the hypervisor's: a bridge.
    is_bridge: bool,
    vendor_passes: bool,
}

/// Where a capability is, or the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u16,
    /// Behind its last byte.
    end: u16,
    of: RuleOf,
}

/// How wide an access to configuration space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Double,
}

impl Width {
    const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Double => 4,
        }
    }

    const fn mask(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Double => u32::MAX,
        }
    }
}

/// Whose the function is when a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The guest's.
    Owned,
    /// Between owners: nothing passes ([`FunctionHooks::in_transition`](crate::pci::FunctionHooks::in_transition)).
    Transition,
}

/// What comes of a write, bit by bit of the value that was written. The three masks are disjoint, and together all bits of
/// the access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteAnswer {
    /// Reaches the function.
    pub passes: u32,
    /// Is the hypervisor's to make up.
    pub emulated: u32,
    /// Is lost.
    pub ignored: u32,
}

/// Some bits of a write that are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WritePart {
    /// Which bits of the value that was written.
    pub bits: u32,
    /// What comes of them.
    pub treatment: Treatment,
    /// What they could do.
    pub reason: Reason,
}

impl GuestWrites {
    /// Finds the capabilities of a function. They stay where they are for as long as it is there.
    ///
    /// # Errors
    ///
    /// [`ControlError::Config`] as for [`Capabilities::read`](crate::pci::Capabilities::read);
    /// [`ControlError::OutOfMemory`].
    ///
    /// # Context
    ///
    /// Waiting context: it allocates.
    pub fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>) -> Result<Self, ControlError> {
        let function = config.function();
        let is_bridge = config.header_type()? != HeaderType::Endpoint;
        let mut extents = Vec::new();
        let mut result = Ok(());
        let mut find = |start: u16, of: RuleOf| {
            if few::push(&mut extents, Extent { start, end: end_of(config, start, of), of }).is_err() {
                result = Err(ControlError::OutOfMemory { function });
            }
        };
        find(0, RuleOf::Header);
        capability::walk(config, |Capability { id, offset }| find(offset, RuleOf::Standard(id)))?;
        let extended = |found: ExtendedCapability| find(found.offset, RuleOf::Extended(found.id));
        capability::walk_extended(config, extended)?;
        config.still_present()?;
        result?;
        few::sort(&mut extents, &|one, other| one.start < other.start);
        let mut end = u16::MAX;
        for extent in extents.iter_mut().rev() {
            // Nothing of one is in the next one, whatever the function says.
            extent.end = extent.end.min(end);
            end = extent.start;
        }
        Ok(Self { extents, is_bridge, vendor_passes: false })
    }

    /// The same where registers of the vendor's pass, in capabilities for them and in none. Some drivers need them, and
    /// nobody here knows what they do: for functions that the caller knows.
    #[must_use]
    pub const fn with_vendor_registers(mut self) -> Self {
        self.vendor_passes = true;
        self
    }

    /// What comes of a write of this width at `offset`.
    #[must_use]
    pub fn answer(&self, offset: u16, width: Width, phase: Phase) -> WriteAnswer {
        self.parts(offset, width, phase).fold(WriteAnswer::default(), |mut answer, part| {
            match part.treatment {
                Treatment::Passes => answer.passes |= part.bits,
                Treatment::Emulated => answer.emulated |= part.bits,
                Treatment::Ignored => answer.ignored |= part.bits,
            }
            answer
        })
    }

    /// The same in parts, with the reason of each. Every bit of the access is in one part.
    pub fn parts(&self, offset: u16, width: Width, phase: Phase) -> impl Iterator<Item = WritePart> + '_ {
        let exists = offset.is_multiple_of(width.bytes()) && offset < 0x1000;
        let shift = if exists { u32::from(offset & 3).wrapping_mul(8) } else { 0 };
        let (register, extent) = (offset & 0xffc, self.extent(offset & 0xffc));
        let rules = rules(extent, register).filter(move |_| exists && !self.is_bridge);
        let covered = rules.clone().fold(0, |covered, rule| covered | rule.bits);
        let rest = match extent {
            _ if !exists => (Treatment::Ignored, Reason::Malformed),
            _ if self.is_bridge => (Treatment::Ignored, Reason::Routing),
            Some(extent) => {
                rule_of(extent.of).map_or((Treatment::Ignored, Reason::Unknown), |rule| (rule.treatment, rule.reason))
            }
            None => (Treatment::Ignored, Reason::Vendor),
        };
        let rest = match rest {
            (Treatment::Ignored, Reason::Vendor) if self.vendor_passes && !is_first(extent, register) => {
                (Treatment::Passes, Reason::Vendor)
            }
            rest => rest,
        };
        let parts = rules.map(|rule| (rule.bits, rule.treatment, rule.reason));
        let parts = parts.chain(core::iter::once((!covered, rest.0, rest.1)));
        parts.filter_map(move |(bits, treatment, reason)| {
            let bits = bits >> shift & width.mask();
            let (treatment, reason) = match (treatment, phase) {
                (Treatment::Passes, Phase::Transition) => (Treatment::Emulated, Reason::Transition),
                kept => (kept.0, reason),
            };
            (bits != 0).then_some(WritePart { bits, treatment, reason })
        })
    }

    /// Writes what passes of a guest's write to the function, and tells what of it did.
    ///
    /// Bits of the same 32 that are not the guest's are as they were, and none that a 1 clears is cleared beside those that
    /// the guest clears.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotPresent`], [`ConfigError::NotReady`]: nothing was written.
    ///
    /// # Context
    ///
    /// Any. One CPU at a time, as all of [`control`](super): the register is read, changed and written back.
    pub fn write<C: ConfigSpace + ?Sized>(
        &self,
        config: &FunctionConfig<'_, C>,
        offset: u16,
        width: Width,
        value: u32,
        phase: Phase,
    ) -> Result<WriteAnswer, ConfigError> {
        let answer = self.answer(offset, width, phase);
        if answer.passes == 0 {
            return Ok(answer);
        }
        let (space, function, register) = (config.space(), config.function(), offset & 0xffc);
        let before = config.read(register);
        if before == u32::MAX {
            config.still_present()?;
        }
        // The parts of one register are of one kind: the vendor's are all of it.
        if self.parts(offset, width, phase).any(|part| part.reason == Reason::Vendor) {
            match width {
                Width::Byte => space.write_u8(function, offset, (value & 0xff) as u8),
                Width::Word => space.write_u16(function, offset, (value & 0xffff) as u16),
                Width::Double => space.write(function, offset, value),
            }
            return Ok(answer);
        }
        let shift = u32::from(offset & 3).wrapping_mul(8);
        let (passes, value) = (answer.passes << shift, value << shift);
        let clears = rules(self.extent(register), register).filter(|rule| rule.clears);
        let clears = clears.fold(0, |clears, rule| clears | rule.bits);
        config.write(register, before & !passes & !clears | value & passes);
        Ok(answer)
    }

    fn extent(&self, register: u16) -> Option<Extent> {
        self.extents.iter().find(|extent| (extent.start..extent.end).contains(&register)).copied()
    }
}

/// The rules of one register.
fn rules(extent: Option<Extent>, register: u16) -> impl Iterator<Item = &'static WriteRule> + Clone {
    WRITE_RULES.iter().filter(move |rule| {
        let by = extent.filter(|extent| extent.of == rule.of).and_then(|extent| register.checked_sub(extent.start));
        let place = by.and_then(|by| by.checked_sub(rule.register)).map(|by| by >> 2);
        place.is_some_and(|place| place < rule.registers)
    })
}

fn rule_of(of: RuleOf) -> Option<&'static CapabilityRule> {
    CAPABILITY_RULES.iter().find(|rule| rule.of == of)
}

/// Whether it is the header of a capability: ID and pointer are the function's own.
fn is_first(extent: Option<Extent>, register: u16) -> bool {
    extent.is_some_and(|extent| extent.start == register)
}

/// Where a capability that begins at `start` ends at the latest.
fn end_of<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, start: u16, of: RuleOf) -> u16 {
    let last = if matches!(of, RuleOf::Extended(_)) { 0x1000 } else { 0x100 };
    let is_old = of == RuleOf::Standard(Capability::EXPRESS) && config.read_u16(start | 2) & 0xf < 2;
    let length = if is_old { EXPRESS_1 } else { rule_of(of).map_or(last, |rule| rule.length) };
    start.saturating_add(length).min(last)
}

/// Bytes of PCI Express before version 2, whose second registers do not exist.
const EXPRESS_1: u16 = 0x24;
