//! Why the prototype could not begin: one line.

use std::fmt;

/// The exit status of a [`Failure`].
pub(crate) const STATUS: u8 = 2;

/// One line that says what is wrong and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure in these words. Line breaks in them, which a path or a blob may bring, become visible characters.
    pub(crate) fn new(text: impl AsRef<str>) -> Self {
        Self(crate::report::printable(text.as_ref()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
