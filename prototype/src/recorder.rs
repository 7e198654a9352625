//! Keeps the score: each line of the scenario is an expectation that held or did not.

use smmu_model::Counters;

use crate::report::{Page, WIDTH, printable, shortened, width, wrapped};

/// The scenario's lines, and how many expectations held.
#[derive(Debug)]
pub(crate) struct Recorder {
    page: Page,
    steps: usize,
    held: usize,
    failed: Vec<String>,
    /// Lines about DMA and faults are counted here instead of shown, where they say what was shown before.
    untold: Option<usize>,
    /// What came out, in a line each, before the score.
    conclusions: Vec<String>,
}

/// One line: an operation, what came of it, and whether that was expected.
#[derive(Debug)]
#[must_use = "a line counts when it is told what was expected"]
pub(crate) struct Line<'a> {
    recorder: &'a mut Recorder,
    operation: &'static str,
    subject: String,
    result: String,
    cost: Option<Counters>,
    details: Vec<String>,
}

impl Recorder {
    /// A score of nothing, written below what `page` has.
    pub(crate) const fn new(page: Page) -> Self {
        Self { page, steps: 0, held: 0, failed: Vec::new(), untold: None, conclusions: Vec::new() }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps = self.steps.saturating_add(1);
        let title = format!("{}. {title}", self.steps);
        self.page.gap();
        let room = WIDTH.saturating_sub(COSTS);
        self.page.line(format!(
            "{:<room$}{:>READS$} {:>WRITES$}",
            shortened(&printable(&title), room),
            "reads",
            "writes"
        ));
    }

    /// From here on, lines about DMA and faults are shown only where they fail: they repeat what was shown before.
    pub(crate) const fn be_brief(&mut self) {
        self.untold = Some(0);
    }

    /// Ends [`be_brief`](Self::be_brief), and says how many lines were not shown.
    pub(crate) fn be_explicit(&mut self) {
        if let Some(untold) = self.untold.take().filter(|untold| *untold > 0) {
            let more = if untold == 1 { "expectation" } else { "expectations" };
            self.note(&format!("In their hooks all of them did DMA, as above: {untold} more {more} held."));
        }
    }

    /// How many steps there were.
    pub(crate) const fn steps(&self) -> usize {
        self.steps
    }

    /// Says what came out of it all, at the end.
    pub(crate) fn conclude(&mut self, text: String) {
        self.conclusions.push(text);
    }

    /// Says something about the step.
    pub(crate) fn note(&mut self, text: &str) {
        self.page.text(2, text);
    }

    /// Says what happened, where there is nothing to expect.
    pub(crate) fn event(&mut self, operation: &'static str, subject: &str, result: &str) {
        let (subject, result) = (printable(subject), shortened(&printable(result), RESULT));
        let last = self.begin("", operation, &subject);
        self.page.line(format!("{last} {result}"));
    }

    /// What stands before a result. A name is never cut: a subject that is too long begins on a line of its own.
    fn begin(&mut self, verdict: &str, operation: &str, subject: &str) -> String {
        let mut lines = wrapped(subject, SUBJECT);
        let last = lines.pop().unwrap_or_default();
        let mut start = format!("  {verdict:<6} {operation:<8} ");
        for line in lines {
            self.page.line(format!("{start}{line}"));
            start = " ".repeat(DETAIL);
        }
        format!("{start}{last:<SUBJECT$}")
    }

    /// Begins a line.
    pub(crate) fn line(&mut self, operation: &'static str, subject: impl Into<String>) -> Line<'_> {
        let (subject, result) = (subject.into(), String::new());
        Line { recorder: self, operation, subject, result, cost: None, details: Vec::new() }
    }

    /// The whole text with a summary, and the exit status: 0 only if all that was expected held.
    pub(crate) fn finish(mut self) -> (String, u8) {
        let all = self.held.saturating_add(self.failed.len());
        self.page.gap();
        for text in std::mem::take(&mut self.conclusions) {
            self.page.text(0, &text);
        }
        if self.failed.is_empty() && self.held > 0 {
            self.page.line(format!("All {all} expectations held."));
            return (self.page.into_text(), 0);
        }
        for failed in &self.failed {
            self.page.text(0, &format!("FAILED: {failed}"));
        }
        self.page.line(format!("{} of {all} expectations held.", self.held));
        (self.page.into_text(), 1)
    }
}

impl Line<'_> {
    /// What came of it, in a few words.
    pub(crate) fn result(mut self, result: impl Into<String>) -> Self {
        self.result = result.into();
        self
    }

    /// What it cost.
    pub(crate) const fn cost(mut self, cost: Counters) -> Self {
        self.cost = Some(cost);
        self
    }

    /// More about it, below.
    pub(crate) fn detail(mut self, text: impl Into<String>) -> Self {
        self.details.push(text.into());
        self
    }

    /// Ends the line: `held` says whether what came of it is what was `expected`.
    pub(crate) fn expect(mut self, held: bool, expected: &str) {
        if width(&self.result) > RESULT {
            self.details.insert(0, std::mem::take(&mut self.result));
        }
        let Self { recorder, operation, subject, result, cost, details } = self;
        if let Some(untold) = recorder.untold.as_mut().filter(|_| held && matches!(operation, "dma" | "fault")) {
            *untold = untold.saturating_add(1);
            recorder.held = recorder.held.saturating_add(1);
            return;
        }
        let verdict = if held { "ok" } else { "FAILED" };
        let (subject, result) = (printable(&subject), printable(&result));
        let costs = cost.map_or_else(String::new, |cost| format!("{:>READS$} {:>WRITES$}", cost.reads, cost.writes));
        let start = recorder.begin(verdict, operation, &subject);
        recorder.page.line(format!("{start} {result:<RESULT$} {costs}"));
        for line in details.iter().flat_map(|text| wrapped(&printable(text), WIDTH.saturating_sub(DETAIL))) {
            recorder.page.line(format!("{:DETAIL$}{line}", ""));
        }
        if held {
            recorder.held = recorder.held.saturating_add(1);
        } else {
            recorder.page.text(DETAIL, &format!("expected: {expected}"));
            recorder.failed.push(format!("step {}: {operation} {subject}: expected: {expected}", recorder.steps));
        }
    }
}

/// Where the subject of a line begins: verdict and operation stand before it.
const DETAIL: usize = 18;
const SUBJECT: usize = 41;
const RESULT: usize = 27;
const READS: usize = 5;
const WRITES: usize = 6;
const COSTS: usize = READS + WRITES + 1;

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn brief_lines_count_and_only_failures_are_shown() {
        let mut recorder = Recorder::new(Page::default());
        recorder.step("one");
        recorder.be_brief();
        recorder.line("dma", "seen before").expect(true, "a fault");
        recorder.line("dma", "not as before").expect(false, "a fault");
        recorder.line("deassign", "always told").expect(true, "done");
        recorder.be_explicit();
        let (text, status) = recorder.finish();
        assert_eq!(status, 1);
        assert!(
            !text.contains("seen before") && text.contains("not as before") && text.contains("always told"),
            "{text}"
        );
        assert!(text.contains("1 more expectation held") && text.contains("2 of 3 expectations held"), "{text}");
    }

    fn played(verdicts: &[bool]) -> (String, u8) {
        let mut recorder = Recorder::new(Page::new());
        recorder.step("A step");
        for held in verdicts {
            let cost = Counters { reads: 12, writes: 3 };
            recorder.line("dma", "device id 0x10").result("faults").cost(cost).expect(*held, "to fault");
        }
        recorder.finish()
    }

    #[test]
    fn all_held_is_status_0() {
        let (text, status) = played(&[true, true]);
        assert_eq!((status, text.lines().last()), (0, Some("All 2 expectations held.")));
    }

    #[test]
    fn one_violated_expectation_is_status_1_and_is_named() {
        let (text, status) = played(&[true, false, true]);
        assert_eq!((status, text.lines().last()), (1, Some("2 of 3 expectations held.")));
        assert!(text.contains("  FAILED dma      device id 0x10"), "{text}");
        assert!(text.contains("expected: to fault"), "{text}");
        assert!(text.contains("FAILED: step 1: dma device id 0x10: expected: to fault"), "{text}");
    }

    #[test]
    fn nothing_expected_is_no_success() {
        assert_eq!(played(&[]).1, 1);
    }

    #[test]
    fn lines_fit_and_costs_stand_in_one_column() {
        let mut recorder = Recorder::new(Page::new());
        recorder.step(&"long title ".repeat(20));
        let line = recorder.line("reassign", "x".repeat(80)).result("y".repeat(60));
        line.cost(Counters { reads: 99_999, writes: 999_999 }).detail("z ".repeat(200)).expect(false, &"w ".repeat(90));
        let (text, _) = recorder.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| width(line) <= WIDTH), "{text}");
        assert_eq!((width(lines[1]), width(lines[3])), (WIDTH, WIDTH), "{text}");
    }
}
