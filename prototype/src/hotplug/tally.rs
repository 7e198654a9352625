//! What the operations came to, and what must not have been.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is done, in the order of the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Arrive,
    Request,
    Leave,
    SwitchOn,
    SwitchOff,
    Apply,
    Revert,
    Create,
    Assign,
    Reassign,
    Deassign,
    Flush,
    Destroy,
}

impl Work {
    /// Which thread does it.
    pub(super) const fn thread(self) -> &'static str {
        match self {
            Self::Arrive | Self::Request | Self::Leave | Self::SwitchOn | Self::SwitchOff => FUNCTIONS,
            Self::Apply | Self::Revert => OVERLAYS,
            _ => GUESTS,
        }
    }

    /// In the words of the summary.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Arrive => "function arrives",
            Self::Request => "function is taken out",
            Self::Leave => "function is pulled out",
            Self::SwitchOn => "virtual functions on",
            Self::SwitchOff => "virtual functions off",
            Self::Apply => "overlay applied",
            Self::Revert => "overlay reverted",
            Self::Create => "guest created",
            Self::Assign => "device assigned",
            Self::Reassign => "device reassigned",
            Self::Deassign => "device deassigned",
            Self::Flush => "guest flushed",
            Self::Destroy => "guest destroyed",
        }
    }
}

/// The threads.
pub(super) const FUNCTIONS: &str = "functions";
pub(super) const OVERLAYS: &str = "overlays";
pub(super) const GUESTS: &str = "guests";

/// What one kind of operation came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) done: usize,
    /// By reason.
    pub(super) refused: BTreeMap<&'static str, usize>,
}

impl Row {
    pub(super) fn all_refused(&self) -> usize {
        self.refused.values().fold(0, |sum, more| sum.saturating_add(*more))
    }
}

/// The score of all threads.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Score>);

/// What is in a [`Tally`].
#[derive(Clone, Debug, Default)]
pub(super) struct Score {
    pub(super) rows: BTreeMap<Work, Row>,
    /// Cards that came or went.
    pub(super) events: usize,
    /// What must not have been.
    pub(super) violations: Vec<String>,
}

impl Score {
    /// How many there were of each of these, whatever they came to.
    pub(super) fn count(&self, which: impl Fn(Work) -> bool) -> usize {
        let rows = self.rows.iter().filter(|(work, _)| which(**work));
        rows.fold(0, |sum, (_, row)| sum.saturating_add(row.done).saturating_add(row.all_refused()))
    }
}

impl Tally {
    pub(super) fn done(&self, work: Work) {
        let mut score = self.lock();
        let row = score.rows.entry(work).or_default();
        row.done = row.done.saturating_add(1);
    }

    pub(super) fn refused(&self, work: Work, reason: &'static str) {
        let mut score = self.lock();
        let count = score.rows.entry(work).or_default().refused.entry(reason).or_default();
        *count = count.saturating_add(1);
    }

    /// A card came or went.
    pub(super) fn event(&self) {
        let mut score = self.lock();
        score.events = score.events.saturating_add(1);
    }

    pub(super) fn violation(&self, what: impl Into<String>) {
        self.lock().violations.push(what.into());
    }

    pub(super) fn score(&self) -> Score {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Score> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
