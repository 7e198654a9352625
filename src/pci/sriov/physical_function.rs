//! A physical function, and what is read at its virtual functions.

use alloc::vec::Vec;

use super::super::capability::{Capabilities, SrIov};
use super::super::config::{ConfigError, ConfigSpace, FunctionConfig};
use super::super::enumeration::Enumeration;
use super::super::function::{Function, FunctionKind};
use super::super::host_bridge::HostBridge;
use super::super::key::PciKey;
use super::super::quirk_table::{FunctionQuirk, KNOWN_QUIRKS, Quirks};
use super::super::topology::{self, Alias, AliasKind, Isolation, IsolationCause};
use super::SriovError;
use super::virtual_places::{VirtualPlaces, device_of};
use crate::few;

/// A function that can have virtual functions.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalFunction<'a, C: ?Sized> {
    pub(super) space: &'a C,
    pub(super) host: &'a HostBridge,
    pub(super) found: &'a Enumeration,
    pub(super) function: &'a Function,
    pub(super) page_bytes: Option<u64>,
    quirks: Quirks<'a>,
}

impl<'a, C: ConfigSpace + ?Sized> PhysicalFunction<'a, C> {
    /// The physical function of this key. `host` and `found` are the host bridge behind which it was found, and all that was
    /// found there.
    ///
    /// # Errors
    ///
    /// [`SriovError::NotPhysical`].
    pub fn new(space: &'a C, host: &'a HostBridge, found: &'a Enumeration, key: PciKey) -> Result<Self, SriovError> {
        let function = found.function(key).filter(|function| function.capabilities.sr_iov.is_some());
        let function = function.ok_or(SriovError::NotPhysical)?;
        Ok(Self { space, host, found, function, page_bytes: None, quirks: Quirks(&[KNOWN_QUIRKS]) })
    }

    /// The same with other tables of quirks: those that it was [enumerated with](super::super::enumerate_with).
    #[must_use]
    pub const fn with_quirks(mut self, quirks: &'a [&'a [FunctionQuirk]]) -> Self {
        self.quirks = Quirks(quirks);
        self
    }

    /// The same with base addresses of virtual functions aligned to pages of so many bytes: the size in which guests get
    /// them mapped. Otherwise the page size stays as it is, which is 4 KiB after a reset.
    #[must_use]
    pub const fn with_pages_of(mut self, bytes: u64) -> Self {
        self.page_bytes = Some(bytes);
        self
    }

    /// What enumeration found.
    #[must_use]
    pub const fn function(&self) -> &'a Function {
        self.function
    }

    /// The virtual functions that are on now, ascending by number. Reads only.
    ///
    /// # Errors
    ///
    /// Why one of them cannot be a device of its own; [`SriovError::Config`] also while they are starting up.
    pub fn virtual_functions(&self) -> Result<Vec<Function>, SriovError> {
        let (_, capability) = self.open()?;
        let places = VirtualPlaces::new(self.function.sbdf, capability.count, &capability);
        let mut functions = Vec::new();
        if capability.enabled {
            places.check(self.host, self.found, self.function)?;
            functions.try_reserve_exact(capability.count.into()).map_err(|_| SriovError::OutOfMemory)?;
            for number in 0..capability.count {
                few::push_within(&mut functions, self.read(number, &places, &capability)?);
            }
        }
        Ok(functions)
    }

    /// Its configuration space and its capability as they are now.
    pub(super) fn open(&self) -> Result<(FunctionConfig<'a, C>, SrIov), SriovError> {
        let config = self.function.config(self.space)?;
        let capabilities = Capabilities::read(&config)?;
        if config.ids() != (self.function.vendor, self.function.device) {
            // Another card was plugged in since enumeration.
            return Err(ConfigError::NotPresent { function: self.function.sbdf }.into());
        }
        Ok((config, capabilities.sr_iov.ok_or(SriovError::NotPhysical)?))
    }

    /// What is known of a virtual function before it is on.
    pub(super) fn outline(
        &self,
        number: u16,
        places: &VirtualPlaces,
        capability: &SrIov,
        subsystem: Option<(u16, u16)>,
    ) -> Result<Function, SriovError> {
        let (physical, sbdf) = (self.function, places.place(number)?);
        let key = physical.key.virtual_function(number)?;
        let own = Alias { rid: sbdf.requester_id(), kind: AliasKind::Own };
        let ids = (physical.vendor, capability.device_id);
        let from_above = physical.requester_ids.iter().filter(|alias| matches!(alias.kind, AliasKind::Bridge(_)));
        let mut requester_ids = Vec::new();
        for alias in
            core::iter::once(own).chain(self.quirks.aliases(own.rid, ids, subsystem)).chain(from_above.copied())
        {
            few::push(&mut requester_ids, alias).map_err(|_| SriovError::OutOfMemory)?;
        }
        Ok(Function {
            sbdf,
            key,
            kind: FunctionKind::Virtual,
            vendor: physical.vendor,
            device: capability.device_id,
            class: physical.class,
            capabilities: Capabilities::default(),
            requester_ids,
            isolation: physical.isolation,
        })
    }

    /// A virtual function that is on.
    pub(super) fn read(&self, number: u16, places: &VirtualPlaces, capability: &SrIov) -> Result<Function, SriovError> {
        let outline = self.outline(number, places, capability, None)?;
        let config = outline.config(self.space)?;
        let subsystem = config.subsystem();
        let mut function = self.outline(number, places, capability, Some(subsystem))?;
        let capabilities = Capabilities::read(&config)?;
        function.isolation = self.isolation(&function, &capabilities)?;
        function.capabilities = capabilities;
        Ok(function)
    }

    /// What cannot be kept apart from a virtual function: see the [module](super).
    fn isolation(&self, function: &Function, capabilities: &Capabilities) -> Result<Isolation, SriovError> {
        let physical = self.function;
        if physical.isolation.cause != IsolationCause::Apart {
            return Ok(physical.isolation);
        }
        let by_itself = topology::has_access_control(capabilities)
            || self.quirks.keep_apart((function.vendor, function.device), capabilities);
        // Services that it has and that are off do not keep the physical function from them.
        let now = Capabilities::read(&physical.config(self.space)?)?;
        let by_itself = by_itself && (now.acs.is_none() || topology::has_access_control(&now));
        let with_physical = capabilities.acs.is_none()
            && (topology::has_access_control(&physical.capabilities)
                || self.quirks.keep_apart((physical.vendor, physical.device), &physical.capabilities));
        if by_itself || with_physical {
            return Ok(Isolation { group: function.key, cause: IsolationCause::Apart });
        }
        let mut peers = device_of(self.found, physical).filter(|peer| peer.key != physical.key);
        match peers.next() {
            Some(peer) => Err(SriovError::NotApart { function: function.sbdf, peer: peer.sbdf }),
            None => Ok(Isolation { group: physical.isolation.group, cause: IsolationCause::Device }),
        }
    }
}
