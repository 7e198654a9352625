//! Which interrupt line a context interrupt raises: the one place that knows (contract S-4, quirk Q23).

use crate::few;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// The lines that the context interrupts of an instance raise, in firmware's order.
///
/// Context interrupt `n` is that of bank `n` in version 2, and the one that `CBAR.IRPTNDX` names in version 1. Lines are
/// counted from 0 in firmware's order, one that is listed several times once.
///
/// # Invariants
///
/// Lists that say the same are equal: one line for all, and a list without repetition, are kept as their count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextLines(Lines);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Lines {
    /// So many interrupts, each with a line of its own.
    Each(u8),
    /// The line of each interrupt.
    Listed(Vec<u8>),
    /// So many lines; which interrupt raises which is not said.
    Unsaid(u8),
}

impl ContextLines {
    /// One line for all context interrupts.
    pub const ONE: Self = Self(Lines::Each(1));

    /// A line for each of `interrupts` context interrupts.
    #[must_use]
    pub const fn each(interrupts: u8) -> Self {
        Self(Lines::Each(interrupts))
    }

    /// The lines of the context interrupts that firmware lists, in its order; equal entries are one line. Entries past
    /// the 128th are ignored: no instance has so many banks.
    ///
    /// # Errors
    ///
    /// `TryReserveError` when memory could not be reserved.
    pub fn listed<L: PartialEq>(entries: impl IntoIterator<Item = L>) -> Result<Self, TryReserveError> {
        let mut distinct: Vec<L> = Vec::new();
        let mut lines: Vec<u8> = Vec::new();
        for (line, entry) in (0..128).zip(entries) {
            let known = distinct.iter().position(|other| *other == entry);
            let at = known.unwrap_or(distinct.len());
            if known.is_none() {
                few::push(&mut distinct, entry)?;
            }
            // As many as entries so far, or fewer.
            few::push(&mut lines, u8::try_from(at).unwrap_or(line))?;
        }
        Ok(Self(match (distinct.len(), u8::try_from(lines.len())) {
            (1, _) => Lines::Each(1),
            (lines, Ok(interrupts)) if lines == usize::from(interrupts) => Lines::Each(interrupts),
            _ => Lines::Listed(lines),
        }))
    }

    /// As many lines, where firmware does not say which interrupt raises which: several instances that are programmed
    /// alike have a line each.
    #[must_use]
    pub fn without_order(self) -> Self {
        if self.count() <= 1 { self } else { Self(Lines::Unsaid(self.count())) }
    }

    /// How many lines there are.
    #[must_use]
    pub fn count(&self) -> u8 {
        match &self.0 {
            Lines::Each(count) | Lines::Unsaid(count) => *count,
            Lines::Listed(lines) => lines.iter().max().map_or(0, |last| last.saturating_add(1)),
        }
    }

    /// The line that context interrupt `interrupt` raises; `None` where firmware does not say, and every line must be
    /// taken for its own. Where there is one line, or none, it is line 0.
    #[must_use]
    pub fn line(&self, interrupt: u8) -> Option<u8> {
        match &self.0 {
            _ if self.count() <= 1 => Some(0),
            Lines::Each(count) => Some(interrupt).filter(|interrupt| interrupt < count),
            Lines::Listed(lines) => lines.get(usize::from(interrupt)).copied(),
            Lines::Unsaid(_) => None,
        }
    }

    /// The same, where an instance uses the first `used` context interrupts: with fewer listed than that, nothing says
    /// which of them share a line. Firmware may list more: those of banks that it keeps to itself (quirk Q15).
    #[must_use]
    pub fn line_of_used(&self, interrupt: u8, used: u8) -> Option<u8> {
        self.line(used.saturating_sub(1)).and_then(|_| self.line(interrupt))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use alloc::vec;

    use super::*;

    fn listed(entries: &[u32]) -> ContextLines {
        ContextLines::listed(entries).unwrap()
    }

    fn lines(lines: &ContextLines, banks: u8) -> Vec<Option<u8>> {
        (0..banks).map(|bank| lines.line_of_used(bank, banks)).collect()
    }

    #[test]
    fn q23_a_line_that_is_listed_twice_is_not_two_lines() {
        let found = listed(&[70, 71, 71, 72]);
        assert_eq!(found.count(), 3);
        assert_eq!(lines(&found, 4), [Some(0), Some(1), Some(1), Some(2)]);
        assert_eq!(
            lines(&found, 3),
            [Some(0), Some(1), Some(1)],
            "of three banks the last shares a line with the second"
        );
        assert_eq!(listed(&[7; 200]).line(150), Some(0));
        assert_eq!(listed(&[5, 6]), ContextLines::each(2));
    }

    #[test]
    fn q15_interrupts_of_hidden_banks_are_listed_and_do_not_count() {
        let found = listed(&[1, 2, 3, 4, 5]);
        assert_eq!(lines(&found, 2), [Some(0), Some(1)]);
        assert_eq!(lines(&found, 6), [None; 6], "too few: nothing says which share one");
    }

    #[test]
    fn q9_of_instances_in_step_each_has_a_line_and_firmware_says_no_order() {
        let found = listed(&[238, 242, 238, 238]).without_order();
        assert_eq!((found.count(), lines(&found, 4)), (2, vec![None; 4]));
        assert_eq!(listed(&[170, 170]).without_order().line(1), Some(0));
    }
}
