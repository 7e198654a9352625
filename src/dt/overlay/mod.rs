//! Overlays: parts of a tree that come while the machine runs, and go again.
//!
//! The order of an apply: [`merge`](merge()) puts the overlay onto the tree, [`compare`] says how the board changes, and
//! a transaction brings the service to the new board.
//!
//! | file | what |
//! |---|---|
//! | `overlay_error.rs` | why an overlay is not applied or not reverted |
//! | `by_name.rs` | look-ups by node and name |
//! | `edited.rs` | a tree that is merged into |
//! | `fixups.rs` | the references of an overlay |
//! | `merging.rs` | an overlay put onto a tree |
//! | `changes.rs` | two boards compared |
//! | `overlay_host.rs` | what the integrator does meanwhile |
//! | `transition.rs` | the service brought from one board to the next |
//! | `overlays.rs` | the current tree, and its overlays |

mod overlay_error;
mod by_name;
mod edited;
mod fixups;
mod merging;
mod changes;
mod overlay_host;
mod transition;
mod overlays;

use alloc::string::String;

pub use changes::{Change, Changed, Changes, DeviceChange, NodeChange, compare};
pub use overlay_error::{OverlayError, OverlayFault, OverlayId};
pub use overlay_host::OverlayHost;
pub use overlays::{Outcome, Overlays, merge};

use super::DtError;
use crate::few;

/// Adds a name to a path.
fn join(path: &mut String, name: &str) -> Result<(), DtError> {
    if !path.ends_with('/') {
        few::append(path, "/")?;
    }
    Ok(few::append(path, name)?)
}
