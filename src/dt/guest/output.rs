//! Where the nodes of a guest's tree are written to, and what is missing is listed.

use alloc::string::String;
use alloc::vec::Vec;

use super::dependencies::{Dependency, Missing};
use super::guest_error::GuestError;
use crate::dt::DtError;
use crate::dt::flatten::Writer;
use crate::dt::tree::Node;
use crate::few;

/// What is being written.
pub(super) struct Output<'o> {
    pub(super) writer: &'o mut Writer,
    pub(super) missing: &'o mut Vec<Missing>,
    pub(super) next_phandle: &'o mut u32,
    pub(super) interrupt_controller: u32,
}

pub(super) fn copy(text: &str) -> Result<String, DtError> {
    Ok(few::text(text)?)
}

impl Output<'_> {
    pub(super) fn phandle(&mut self, node: &Node<'_, '_>) -> Result<u32, GuestError> {
        let phandle = *self.next_phandle;
        if matches!(phandle, 0 | u32::MAX) {
            return Err(GuestError::PhandlesExhausted { path: node.path()? });
        }
        *self.next_phandle = phandle.saturating_add(1);
        Ok(phandle)
    }

    pub(super) fn miss(
        &mut self,
        node: &Node<'_, '_>,
        kind: Dependency,
        property: &str,
        name: Option<&str>,
        target: Option<Node<'_, '_>>,
        specifier: &[u32],
    ) -> Result<(), GuestError> {
        self.add(Missing {
            node: node.path()?,
            kind,
            property: Some(copy(property)?),
            name: name.map(copy).transpose()?,
            target: target.map(|target| target.path()).transpose()?,
            specifier: few::copied(specifier)?,
        })
    }

    pub(super) fn add(&mut self, missing: Missing) -> Result<(), GuestError> {
        few::push(self.missing, missing)?;
        Ok(())
    }
}
