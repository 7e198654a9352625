//! Calls to what the integrator supplied, where a panic may unwind.
//!
//! On bare metal a panic does not come back. On the host it unwinds, and would take the claim of the running operation
//! with it: with the feature `unwind` it is caught where the call was made, and counts as a failure of the hook, so that
//! the operation ends as quarantined and nobody stays busy (contract C-20).

use super::HookError;

/// What a hook answers; a panic is its failure.
pub(super) fn hook(call: impl FnOnce() -> Result<(), HookError>) -> Result<(), HookError> {
    caught(call).unwrap_or(Err(HookError("it panicked")))
}

/// What the policy answers; a panic is no yes.
pub(super) fn verdict(call: impl FnOnce() -> bool) -> bool {
    caught(call).unwrap_or(false)
}

/// A call whose answer nobody waits for.
pub(super) fn told(call: impl FnOnce()) {
    // There is nobody to tell of a listener that panicked; the panic's own message is out.
    let _ = caught(call);
}

#[cfg(feature = "unwind")]
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    // What the hook may have left half done is its own: the library shares nothing with it but handles.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).ok()
}

#[cfg(not(feature = "unwind"))]
#[expect(clippy::unnecessary_wraps, reason = "the same signature as where a panic can be caught")]
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    Some(call())
}
