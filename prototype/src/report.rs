//! Lines that fit a terminal: widths, tables, wrapped text.
//!
//! Everything that comes from a blob goes through [`printable`], so that a node's name cannot steer a terminal.

use std::fmt::Write;

/// How wide a line may be.
pub(crate) const WIDTH: usize = 100;

/// Text under construction.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

impl Page {
    /// An empty page.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a line, without trailing blanks.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref().replace(HARD_BLANK, " ").trim_end());
        self.0.push('\n');
    }

    /// Adds an empty line.
    pub(crate) fn gap(&mut self) {
        self.0.push('\n');
    }

    /// Adds a heading with a rule to the right edge.
    pub(crate) fn heading(&mut self, title: &str) {
        let title = shortened(&printable(title), WIDTH.saturating_sub(4));
        let rule = "─".repeat(WIDTH.saturating_sub(width(&title)).saturating_sub(1));
        self.gap();
        self.line(format!("{title} {rule}"));
    }

    /// Adds text that is wrapped, each line behind `indent` blanks.
    pub(crate) fn text(&mut self, indent: usize, text: &str) {
        for line in wrapped(&printable(text), WIDTH.saturating_sub(indent)) {
            self.line(format!("{:indent$}{line}", ""));
        }
    }

    /// What was written.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// How a column is set, and how it gives way where a line is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// To the left, in full.
    Left,
    /// To the right, in full.
    Right,
    /// To the left; what is too long goes on in the next line, from a slash on where there is one.
    Path,
    /// To the left, wrapped between words.
    Wrap,
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Set)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&'static str, Set)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Writes the table with each line behind `indent` blanks. Without rows there is no table.
    pub(crate) fn print(&self, page: &mut Page, indent: usize) {
        if self.rows.is_empty() {
            return;
        }
        let widths = self.widths(WIDTH.saturating_sub(indent));
        let titles = self.columns.iter().map(|(title, _)| vec![(*title).to_owned()]).collect();
        self.print_row(page, indent, &widths, titles);
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns).zip(&widths);
            let cells = cells.map(|((cell, (_, set)), width)| match set {
                Set::Path => broken(cell, *width),
                Set::Wrap => wrapped(cell, *width),
                Set::Left | Set::Right => vec![cell.clone()],
            });
            self.print_row(page, indent, &widths, cells.collect());
        }
    }

    fn print_row(&self, page: &mut Page, indent: usize, widths: &[usize], cells: Vec<Vec<String>>) {
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..height {
            let mut line = " ".repeat(indent);
            for ((cell, (_, set)), width) in cells.iter().zip(&self.columns).zip(widths) {
                let text = cell.get(at).map_or("", String::as_str);
                // Writing to a string does not fail.
                let _ = match set {
                    Set::Right => write!(line, "{text:>width$}{:GAP$}", ""),
                    _ => write!(line, "{text:<width$}{:GAP$}", ""),
                };
            }
            page.line(line);
        }
    }

    /// Column widths that fit: the widest wrapped column gives way first, then the widest path, and so on by turns.
    fn widths(&self, room: usize) -> Vec<usize> {
        let natural = |index: usize, title: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| width(cell));
            cells.chain([width(title)]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(index, (title, _))| natural(index, title)).collect();
        let room = room.saturating_sub(GAP.saturating_mul(self.columns.len().saturating_sub(1)));
        for (set, least) in GIVING_WAY {
            while widths.iter().sum::<usize>() > room {
                let columns = self.columns.iter().zip(&mut widths);
                let given = columns.filter(|((_, of), width)| *of == set && **width > least);
                match given.max_by_key(|(_, width)| **width) {
                    Some((_, width)) => *width = width.saturating_sub(1),
                    None => break,
                }
            }
        }
        widths
    }
}

/// How many columns a text takes: one for each character.
pub(crate) fn width(text: &str) -> usize {
    text.chars().count()
}

/// The text in at most `room` characters. A path that is too long keeps its first component and as many of the last
/// ones as fit, other text its end.
pub(crate) fn shortened(text: &str, room: usize) -> String {
    let length = width(text);
    if length <= room {
        return text.to_owned();
    }
    let tails = || text.match_indices('/').skip(1).filter_map(|(slash, _)| text.get(slash..));
    let first =
        text.match_indices('/').nth(1).and_then(|(slash, _)| text.get(..slash)).filter(|_| text.starts_with('/'));
    let both = first.and_then(|first| tails().map(|tail| format!("{first}/…{tail}")).find(|both| width(both) <= room));
    both.or_else(|| tails().map(|tail| format!("…{tail}")).find(|tail| width(tail) <= room)).unwrap_or_else(|| {
        let kept: String = text.chars().skip(length.saturating_sub(room.saturating_sub(1))).collect();
        format!("…{kept}")
    })
}

/// A path in lines of at most `room` characters, broken before slashes where components are not too long.
pub(crate) fn broken(path: &str, room: usize) -> Vec<String> {
    let room = room.max(1);
    let mut lines = vec![String::new()];
    let pieces = path.split_inclusive('/').flat_map(|piece| match piece.strip_suffix('/') {
        Some(name) => vec![name.to_owned(), "/".to_owned()],
        None => vec![piece.to_owned()],
    });
    let mut slash = false;
    for piece in pieces {
        if piece == "/" {
            // It begins what comes behind it.
            if slash {
                push(&mut lines, "/", room);
            }
            slash = true;
            continue;
        }
        push(&mut lines, &format!("{}{piece}", if slash { "/" } else { "" }), room);
        slash = false;
    }
    if slash {
        push(&mut lines, "/", room);
    }
    lines
}

fn push(lines: &mut Vec<String>, piece: &str, room: usize) {
    if lines.last().is_some_and(|line| !line.is_empty() && width(line).saturating_add(width(piece)) > room) {
        lines.push(String::new());
    }
    for one in piece.chars() {
        if lines.last().is_none_or(|line| width(line) >= room) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push(one);
        }
    }
}

/// The text in lines of at most `room` characters, broken between words where words are not too long.
pub(crate) fn wrapped(text: &str, room: usize) -> Vec<String> {
    let room = room.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_ascii_whitespace() {
        let mut word = word.to_owned();
        if !line.is_empty() && width(&line).saturating_add(1).saturating_add(width(&word)) > room {
            lines.push(std::mem::take(&mut line));
        }
        while width(&word) > room {
            let rest = word.chars().skip(room).collect();
            lines.push(word.chars().take(room).collect());
            word = rest;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// The text with everything that is no plain character shown as `?`.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { '?' } else { one }).collect()
}

/// A blank at which no line is broken; it is printed as a plain one.
pub(crate) const HARD_BLANK: char = '\u{a0}';

/// Which columns give way until they are how wide, in turn. Most names have 30 letters at most.
const GIVING_WAY: [(Set, usize); 5] =
    [(Set::Wrap, 44), (Set::Path, 30), (Set::Wrap, 24), (Set::Path, 16), (Set::Wrap, 12)];

/// Blanks between columns.
const GAP: usize = 2;

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_keeps_its_tail() {
        assert_eq!(shortened("/soc/a@1", 8), "/soc/a@1");
        assert_eq!(shortened("/soc@0/bus@1/bridge@3/device@2", 20), "/soc@0/…/device@2");
        assert_eq!(shortened("/soc@0/bus@1/bridge@3/device@2", 29), "/soc@0/…/bridge@3/device@2");
        assert_eq!(shortened("/soc@0/bus@1/device@2", 12), "…/device@2");
        assert_eq!(shortened("a-name-without-any-slash", 8), "…y-slash");
    }

    #[test]
    fn a_path_that_is_too_long_goes_on_in_the_next_line_and_loses_nothing() {
        assert_eq!(broken("/soc/a@1", 8), ["/soc/a@1"]);
        assert_eq!(broken("/soc@0/bus@1/device@2", 14), ["/soc@0/bus@1", "/device@2"]);
        assert_eq!(broken("remoteproc-adsp//compute-cb@3", 20), ["remoteproc-adsp/", "/compute-cb@3"]);
        for path in ["/a-very-long-component/b", "no-slash-at-all", "a//b", "/", "/x/"] {
            let lines = broken(path, 6);
            assert!(lines.iter().all(|line| width(line) <= 6), "{lines:?}");
            assert_eq!(lines.concat(), path);
        }
    }

    #[test]
    fn text_is_wrapped_between_words_and_long_words_are_cut() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn tables_stay_inside_the_width_and_aligned() {
        let mut table = Table::new(&[("path", Set::Path), ("streams", Set::Wrap), ("n", Set::Right)]);
        table.row(["/x".repeat(90), "0x1 ".repeat(60), "7".to_owned()]);
        table.row(["/short".to_owned(), "0x1".to_owned(), "12".to_owned()]);
        let mut page = Page::new();
        table.print(&mut page, 2);
        let text = page.into_text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| width(line) <= WIDTH), "{text}");
        assert!(width(lines[0]) == width(lines[1]) && lines[1].ends_with(" 7"), "{text}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a?[2Jb?c");
    }
}
