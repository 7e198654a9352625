//! The current tree: a base, and the overlays that are on it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use super::changes::{Changes, compare, push};
use super::edited::Edited;
use super::fixups::owned;
use super::merging::{self, Resolution};
use super::overlay_error::{OverlayError, OverlayFault, OverlayId};
use super::overlay_host::OverlayHost;
use super::transition::{Leaving, Transition};
use crate::assign::Service;
use crate::dt::blob::Walk;
use crate::dt::flatten::append;
use crate::dt::refusal::{Refusal, Refusals};
use crate::dt::tree::Tree;
use crate::dt::{Board, DtError};
use crate::few;
use crate::sync::Platform;

/// A board's tree, the overlays that are on it, and the way from one to the next.
///
/// It owns what firmware says at the moment. The service knows devices and SMMUs, not nodes; so the operations stand
/// here, and are handed the service. One object for a machine: overlays have an order, and `&mut self` keeps it. Other
/// sources and other CPUs use the service meanwhile as they like.
///
/// ```no_run
/// # use iommu_assign::dt::overlay::{OverlayError, OverlayHost, Overlays};
/// # fn plug(service: &iommu_assign::assign::Service<iommu_assign::sync::Spin>, base: &[u8], dtbo: &[u8], host: &mut dyn OverlayHost) -> Result<(), OverlayError> {
/// let mut overlays = Overlays::new(base)?;
/// let applied = overlays.apply(service, dtbo, host)?;
/// for device in &applied.changes.devices {
///     println!("{}: {:?}", device.path, device.change);
/// }
/// overlays.revert(service, applied.overlay, host)?;
/// # Ok(())
/// # }
/// ```
pub struct Overlays<'b> {
    base: &'b [u8],
    applied: Vec<Applied>,
    /// The base with all overlays; `None` where there is none.
    merged: Option<Vec<u8>>,
    last: u64,
    leaving: Leaving,
}

struct Applied {
    id: OverlayId,
    blob: Vec<u8>,
    resolution: Resolution,
}

/// What an apply or a revert has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The overlay.
    pub overlay: OverlayId,
    /// How the board has changed.
    pub changes: Changes,
    /// What is on its way out and could not go yet, and why: one for each device, SMMU and host bridge. Its DMA is cut unless the
    /// error says otherwise. [`Overlays::finish`] tries again.
    pub unfinished: Vec<OverlayError>,
}

impl<'b> Overlays<'b> {
    /// The tree of `base`, without overlays. Bad nodes are for [`board`](Self::board) to tell.
    ///
    /// # Errors
    ///
    /// As for [`Board::read_lenient`].
    pub fn new(base: &'b [u8]) -> Result<Self, OverlayError> {
        Board::read_lenient(base)?;
        Ok(Self { base, applied: Vec::new(), merged: None, last: 0, leaving: Leaving::default() })
    }

    /// The tree as a blob: the base itself, byte for byte, where no overlay is applied.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        self.merged.as_deref().unwrap_or(self.base)
    }

    /// What the tree says. It is read anew: its numbers ([`NodeId`](crate::dt::NodeId)) are those of this tree, not of one
    /// before.
    ///
    /// # Errors
    ///
    /// [`DtError::OutOfMemory`].
    pub fn board(&self) -> Result<Board<'_>, DtError> {
        Board::read_lenient(self.blob())
    }

    /// The overlays that are applied, in that order.
    pub fn applied(&self) -> impl Iterator<Item = OverlayId> {
        self.applied.iter().map(|applied| applied.id)
    }

    /// What [`apply`](Self::apply) would change. Nothing is changed.
    ///
    /// # Errors
    ///
    /// What `apply` would say of the overlay and the tree; what the service would say is not known before.
    pub fn preview(&self, overlay: &[u8]) -> Result<Changes, OverlayError> {
        let (merged, _) = self.with(overlay, OverlayId(self.last.saturating_add(1)))?;
        Ok(compare(&self.board()?, &self.next_board(&merged)?)?)
    }

    /// Puts an overlay onto the tree, and brings the service to the board that follows: SMMUs that come are probed and
    /// registered, then devices that come are added, parents first. An overlay can make devices go, too: by
    /// `status = "disabled"`.
    ///
    /// All or nothing: where one step is refused, all before it are undone in reverse, and the tree is as it was.
    /// A device that is to go is removed whatever its state, and last: what could be refused comes before.
    ///
    /// # Errors
    ///
    /// [`OverlayError::Overlay`], [`OverlayError::Fault`], [`OverlayError::Refused`] for what the overlay says,
    /// [`OverlayError::Host`] for what the integrator says, [`OverlayError::Service`] for what the service says
    /// ([`is_busy`](OverlayError::is_busy): try again). [`OverlayError::NotRestored`] where devices that change could not be
    /// put back. [`OverlayError::Unfinished`] where an earlier operation is not finished.
    ///
    /// # Context
    ///
    /// Waiting context, outside any callback. It allocates. Contract A-1, C-5, C-8, C-18.
    pub fn apply<P: Platform>(
        &mut self,
        service: &Service<P>,
        overlay: &[u8],
        host: &mut dyn OverlayHost,
    ) -> Result<Outcome, OverlayError> {
        self.finish(service, host)?;
        let id = OverlayId(self.last.saturating_add(1));
        let (merged, resolution) = self.with(overlay, id)?;
        let mut blob = Vec::new();
        append(&mut blob, overlay)?;
        self.applied.try_reserve(1)?;
        let outcome = self.change(service, host, id, &merged)?;
        few::push_within(&mut self.applied, Applied { id, blob, resolution });
        self.merged = Some(merged);
        self.last = id.0;
        Ok(outcome)
    }

    /// Takes an overlay off the tree, and brings the service to the board that follows: devices that it brought are
    /// removed, children first, then its SMMUs are taken out of service; what it made go comes back.
    ///
    /// It need not be the last one: the others stay as they are, phandles included.
    ///
    /// # Errors
    ///
    /// [`OverlayError::NotApplied`]; [`OverlayFault::ReferredTo`] where a later one refers to a node that it brought;
    /// [`OverlayFault::OutOfOrder`] where a later one could not be reverted after it; else as for [`apply`](Self::apply).
    ///
    /// # Context
    ///
    /// As for `apply`.
    pub fn revert<P: Platform>(
        &mut self,
        service: &Service<P>,
        overlay: OverlayId,
        host: &mut dyn OverlayHost,
    ) -> Result<Outcome, OverlayError> {
        self.finish(service, host)?;
        let at = self.applied.iter().position(|applied| applied.id == overlay);
        let at = at.ok_or(OverlayError::NotApplied(overlay))?;
        for later in &self.applied {
            if let Some(path) = later.resolution.needs(overlay) {
                return Err(OverlayError::at(owned(path)?, OverlayFault::ReferredTo { by: later.id }));
            }
        }
        let merged = self.without(at)?;
        let outcome = self.change(service, host, overlay, merged.as_deref().unwrap_or(self.base))?;
        few::take(&mut self.applied, at);
        self.merged = merged;
        Ok(outcome)
    }

    /// Tries again to let go of what an earlier operation left behind. Without such there is nothing to do.
    ///
    /// # Errors
    ///
    /// [`OverlayError::Unfinished`], with the first that cannot go yet.
    ///
    /// # Context
    ///
    /// As for [`apply`](Self::apply).
    pub fn finish<P: Platform>(
        &mut self,
        service: &Service<P>,
        host: &mut dyn OverlayHost,
    ) -> Result<(), OverlayError> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        // Room for what may be said of it, before anything changes.
        let mut room = Box::new(OverlayError::Tree(DtError::OutOfMemory));
        let mut failures = Vec::new();
        failures.try_reserve(1)?;
        Transition { service, host, leaving: &mut self.leaving }.depart(&mut failures);
        match failures.into_iter().next() {
            Some(first) => {
                *room = first;
                Err(OverlayError::Unfinished(room))
            }
            None => Ok(()),
        }
    }

    /// Whether nothing is on its way out.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Brings the service to the board of `merged`.
    fn change<P: Platform>(
        &mut self,
        service: &Service<P>,
        host: &mut dyn OverlayHost,
        overlay: OverlayId,
        merged: &[u8],
    ) -> Result<Outcome, OverlayError> {
        let new = self.next_board(merged)?;
        let old = Board::read_lenient(self.merged.as_deref().unwrap_or(self.base))?;
        let changes = compare(&old, &new)?;
        changes.check_in_use()?;
        let unfinished = Transition { service, host, leaving: &mut self.leaving }.run(&old, &new)?;
        Ok(Outcome { overlay, changes, unfinished })
    }

    /// Reads a tree that is to follow. A node that is refused in it, and is not in the base, refuses it: so no tree on the way
    /// has a bad node that the base has not, and each can be gone back to.
    fn next_board<'m>(&self, merged: &'m [u8]) -> Result<Board<'m>, OverlayError> {
        let (base, mut new) = (Board::read_lenient(self.base)?, Board::read_lenient(merged)?);
        let mut known: Vec<&str> = Vec::new();
        for refusal in base.refusals().iter().filter(|refusal| refusal.is_malformed()) {
            push(&mut known, refusal.path.as_str())?;
        }
        few::sort(&mut known, &|one, other| one < other);
        let is_new = |refusal: &Refusal| refusal.is_malformed() && known.binary_search(&refusal.path.as_str()).is_err();
        let refused = new.refusals.iter().position(is_new);
        match refused.and_then(|at| few::take(&mut new.refusals, at)) {
            Some(refusal) => Err(OverlayError::Refused(refusal)),
            None => Ok(new),
        }
    }

    /// The tree with one overlay more.
    fn with(&self, overlay: &[u8], id: OverlayId) -> Result<(Vec<u8>, Resolution), OverlayError> {
        if let Some(applied) = self.applied.iter().find(|applied| applied.blob == overlay) {
            let first = owned(applied.resolution.first_target())?;
            return Err(OverlayError::at(first, OverlayFault::AppliedAlready { by: applied.id }));
        }
        let overlay = Tree::read(overlay).map_err(|error| match error {
            DtError::OutOfMemory => error.into(),
            error => OverlayError::Overlay(error),
        })?;
        self.merge(&self.applied, |edited| merging::resolve(edited, &overlay, id))
    }

    /// The tree without the overlay at `at`; `None` is the base. Each later one could be reverted from there, the last first:
    /// the trees between are good ones, and nothing that is in use changes from one to the next.
    fn without(&self, at: usize) -> Result<Option<Vec<u8>>, OverlayError> {
        let (before, later) = (self.applied.iter().take(at), self.applied.iter().skip(at.saturating_add(1)));
        let mut tree = if at == 0 { None } else { Some(self.merge(before.clone(), |_| Ok(()))?.0) };
        for (count, last) in later.clone().enumerate() {
            let applied = before.clone().chain(later.clone().take(count.saturating_add(1)));
            let (next, ()) = self.merge(applied, |_| Ok(()))?;
            self.can_follow(tree.as_deref().unwrap_or(self.base), &next)
                .map_err(|error| error.out_of_order(last.id))?;
            tree = Some(next);
        }
        Ok(tree)
    }

    fn can_follow(&self, old: &[u8], new: &[u8]) -> Result<(), OverlayError> {
        let (old, new) = (Board::read_lenient(old)?, self.next_board(new)?);
        compare(&old, &new)?.check_in_use()
    }

    /// The base with these overlays, and with what `more` adds.
    fn merge<'s, T>(
        &'s self,
        applied: impl IntoIterator<Item = &'s Applied>,
        more: impl FnOnce(&mut Edited<'s>) -> Result<T, OverlayError>,
    ) -> Result<(Vec<u8>, T), OverlayError> {
        let walk = Walk::new(self.base).map_err(DtError::from)?;
        let (reservations, boot_cpu) = (walk.reservations(), walk.boot_cpu());
        let mut edited = Edited::new(&Tree::read_lenient(self.base, &mut Refusals::default())?)?;
        for applied in applied {
            merging::replay(&mut edited, &Tree::read(&applied.blob)?, applied.id, &applied.resolution)?;
        }
        let found = more(&mut edited)?;
        Ok((edited.write(reservations, boot_cpu)?, found))
    }
}

/// The tree of `base` with `overlay` on it, as a blob: for a board that is read with its overlays at boot.
///
/// Reads what the device-tree compiler writes (`dtc -@`): fragments with `target` or `target-path`, `__fixups__`,
/// `__local_fixups__`, `__symbols__`. Memory reservations and the boot CPU are the base's.
///
/// # Errors
///
/// [`OverlayError::Overlay`] and [`OverlayError::Fault`] for the overlay; [`OverlayError::Tree`] for a base that cannot be
/// read, and where there is no memory.
///
/// # Context
///
/// Any that may allocate.
pub fn merge(base: &[u8], overlay: &[u8]) -> Result<Vec<u8>, OverlayError> {
    Overlays::new(base)?.with(overlay, OverlayId(1)).map(|(merged, _)| merged)
}

impl fmt::Debug for Overlays<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlays")
            .field("applied", &self.applied.len())
            .field("bytes", &self.blob().len())
            .field("leaving", &self.leaving)
            .finish()
    }
}
