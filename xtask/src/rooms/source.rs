//! What one source file says: its modules, what it uses, what it defines, what it calls.
//!
//! Read from tokens, not by a parser of the language: comments and strings are out, tests (`#[cfg(test)]`) are skipped.

#![allow(clippy::arithmetic_side_effects, reason = "positions in a file that compiles, on the host")]

use std::collections::BTreeSet;

/// One token and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// A path that the file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    /// The inline modules around it.
    pub(super) inside: Vec<String>,
    pub(super) form: Form,
}

/// How a path stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In code.
    Inline,
    /// A `use` that binds a name. Whether it is for others: `pub use`, in whatever part of the crate.
    Use { name: String, public: bool },
    /// A `use` of everything.
    Glob { public: bool },
}

/// A call of something with `write` in its name: what stands between its parentheses, without spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) arguments: String,
    pub(super) line: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    /// `mod x;` lines in their order, with line numbers; tests left out.
    pub(super) modules: Vec<(String, usize)>,
    pub(super) paths: Vec<Path>,
    /// Names of items that the file itself defines, inline modules' left out.
    pub(super) items: BTreeSet<String>,
    pub(super) writes: Vec<Write>,
}

/// Reads a file.
pub(super) fn read(text: &str) -> Source {
    Reader { tokens: tokens(text), at: 0, depth: 0, inside: Vec::new(), source: Source::default() }.read()
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    /// Braces that are open.
    depth: usize,
    /// Inline modules that are open, each with the depth outside it.
    inside: Vec<(String, usize)>,
    source: Source,
}

const ITEMS: &[&str] = &["struct", "enum", "union", "trait", "fn", "type", "const", "static", "macro_rules"];

impl Reader {
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| &token.text)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |token| token.line)
    }

    fn read(mut self) -> Source {
        while self.at < self.tokens.len() {
            self.one();
        }
        self.source
    }

    fn one(&mut self) {
        let (word, next) = (self.text(self.at).to_owned(), self.text(self.at + 1).to_owned());
        let before = self.at.checked_sub(1).map(|at| self.text(at).to_owned()).unwrap_or_default();
        match word.as_str() {
            "#" if next == "[" => return self.attribute(),
            "{" => self.depth += 1,
            "}" => {
                self.depth = self.depth.saturating_sub(1);
                if self.inside.last().is_some_and(|(_, outside)| *outside == self.depth) {
                    self.inside.pop();
                }
            }
            "mod" if self.text(self.at + 2) == ";" => {
                self.source.modules.push((next, self.line()));
                self.at += 3;
                return;
            }
            "mod" if self.text(self.at + 2) == "{" => {
                self.inside.push((next, self.depth));
                self.depth += 1;
                self.at += 3;
                return;
            }
            "use" if before != "." => return self.uses(),
            "super" | "self" | "crate" if next == "::" && before != "::" && before != "in" => return self.inline(),
            name if is_name(name) && next == "::" && before != "::" && before != "." && before != "in" => {
                return self.inline();
            }
            name if name.contains("write") && next == "(" => self.write(),
            name if ITEMS.contains(&name) && self.inside.is_empty() && self.depth == 0 => {
                let at = if next == "!" { self.at + 2 } else { self.at + 1 };
                let named = self.text(at).to_owned();
                if is_name(&named) {
                    self.source.items.insert(named);
                }
            }
            _ => (),
        }
        self.at += 1;
    }

    /// An attribute, and with `#[cfg(test)]` the item after it.
    fn attribute(&mut self) {
        let start = self.at;
        self.at += 1;
        self.balanced();
        let words: Vec<&str> = (start..self.at).map(|at| self.text(at)).collect();
        let for_tests = words.get(2) == Some(&"cfg") && words.contains(&"test") && !words.contains(&"not");
        if for_tests {
            self.skip_item();
        }
    }

    /// From an opening bracket to behind the closing one.
    fn balanced(&mut self) {
        let mut open = 0_usize;
        while self.at < self.tokens.len() {
            match self.text(self.at) {
                "(" | "[" | "{" => open += 1,
                ")" | "]" | "}" => open -= 1,
                _ => (),
            }
            self.at += 1;
            if open == 0 {
                return;
            }
        }
    }

    fn skip_item(&mut self) {
        while self.text(self.at) == "#" {
            self.at += 1;
            self.balanced();
        }
        if self.text(self.at) == "pub" {
            self.at += 1;
            if self.text(self.at) == "(" {
                self.balanced();
            }
        }
        let first = self.text(self.at).to_owned();
        let to_semicolon = ["use", "const", "static", "type", "let"].contains(&first.as_str());
        let to_semicolon = to_semicolon && self.text(self.at + 1) != "fn";
        let is_item =
            ["mod", "fn", "impl", "struct", "enum", "trait", "unsafe", "const", "async", "extern", "macro_rules"]
                .contains(&first.as_str());
        while self.at < self.tokens.len() {
            match self.text(self.at) {
                ";" => {
                    self.at += 1;
                    return;
                }
                // A field, a variant or an arm.
                "," if !is_item && !to_semicolon => {
                    self.at += 1;
                    return;
                }
                // The last one of its list.
                "}" | ")" | "]" => return,
                "{" => {
                    self.balanced();
                    if !to_semicolon {
                        return;
                    }
                }
                "(" | "[" => self.balanced(),
                _ => self.at += 1,
            }
        }
    }

    fn inside(&self) -> Vec<String> {
        self.inside.iter().map(|(name, _)| name.clone()).collect()
    }

    /// A path in code; a call at its end is looked at too.
    fn inline(&mut self) {
        let (line, mut segments) = (self.line(), vec![self.text(self.at).to_owned()]);
        while self.text(self.at + 1) == "::" && is_word(self.text(self.at + 2)) {
            self.at += 2;
            segments.push(self.text(self.at).to_owned());
        }
        let inside = self.inside();
        self.source.paths.push(Path { segments, line, inside, form: Form::Inline });
        if self.text(self.at).contains("write") && self.text(self.at + 1) == "(" {
            self.write();
        }
        self.at += 1;
    }

    fn uses(&mut self) {
        let before = self.at.checked_sub(1).map(|at| self.text(at).to_owned()).unwrap_or_default();
        let public = before == "pub" || before == ")";
        self.at += 1;
        self.tree(&[], public);
        self.at += 1;
    }

    /// One branch of a `use`, up to `;`, `,` or `}` behind it.
    fn tree(&mut self, prefix: &[String], public: bool) {
        let mut segments = prefix.to_vec();
        let line = self.line();
        loop {
            match self.text(self.at).to_owned().as_str() {
                "::" => self.at += 1,
                "{" => {
                    self.at += 1;
                    while self.at < self.tokens.len() && self.text(self.at) != "}" {
                        self.tree(&segments, public);
                        if self.text(self.at) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    self.at += 1;
                    let inside = self.inside();
                    self.source.paths.push(Path { segments, line, inside, form: Form::Glob { public } });
                    return;
                }
                word if is_word(word) && word != "as" => {
                    // `a::{self}` is `a`.
                    if word != "self" || segments.is_empty() {
                        segments.push(word.to_owned());
                    }
                    self.at += 1;
                }
                _ => break,
            }
        }
        let mut name = segments.last().cloned().unwrap_or_default();
        if self.text(self.at) == "as" {
            name = self.text(self.at + 1).to_owned();
            self.at += 2;
        }
        let inside = self.inside();
        self.source.paths.push(Path { segments, line, inside, form: Form::Use { name, public } });
    }

    /// Notes the arguments; goes no further, for they are code like any other.
    fn write(&mut self) {
        let (line, start) = (self.line(), self.at);
        self.at += 1;
        self.balanced();
        let arguments = (start + 2..self.at.saturating_sub(1)).map(|at| self.text(at)).collect();
        self.source.writes.push(Write { arguments, line });
        self.at = start;
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// A word that can begin a path into a module: no keyword.
fn is_name(text: &str) -> bool {
    is_word(text) && !["super", "self", "crate", "Self", "fn", "in", "as", "use", "mod", "pub"].contains(&text)
}

/// Words, numbers and marks; `::` is one.
fn tokens(text: &str) -> Vec<Token> {
    let letters: Vec<char> = text.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    let letter = |at: usize| letters.get(at).copied().unwrap_or('\0');
    while at < letters.len() {
        let start = at;
        match letter(at) {
            '/' if letter(at + 1) == '/' => {
                while at < letters.len() && letter(at) != '\n' {
                    at += 1;
                }
                continue;
            }
            '/' if letter(at + 1) == '*' => {
                let mut open = 0_usize;
                while at < letters.len() {
                    match (letter(at), letter(at + 1)) {
                        ('/', '*') => (open, at) = (open + 1, at + 2),
                        ('*', '/') => (open, at) = (open - 1, at + 2),
                        _ => at += 1,
                    }
                    if open == 0 {
                        break;
                    }
                }
            }
            '"' => at = string(&letters, at),
            'r' | 'b' | 'c' if literal(&letters, at).is_some() => at = literal(&letters, at).unwrap_or(at + 1),
            '\'' => at = quote(&letters, at),
            one if one.is_alphanumeric() || one == '_' => {
                while letter(at).is_alphanumeric() || letter(at) == '_' {
                    at += 1;
                }
                let text = letters.get(start..at).unwrap_or_default().iter().collect();
                found.push(Token { text, line });
            }
            ':' if letter(at + 1) == ':' => {
                found.push(Token { text: "::".into(), line });
                at += 2;
            }
            one => {
                if !one.is_whitespace() {
                    found.push(Token { text: one.into(), line });
                }
                at += 1;
            }
        }
        line += letters.get(start..at).unwrap_or_default().iter().filter(|one| **one == '\n').count();
    }
    found
}

/// Behind a string that begins at the quote.
fn string(letters: &[char], mut at: usize) -> usize {
    at += 1;
    while let Some(one) = letters.get(at) {
        match one {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// Behind a literal with a prefix (`r#"..."#`, `b"..."`, `b'x'`), if there is one here.
fn literal(letters: &[char], start: usize) -> Option<usize> {
    let mut at = start;
    let mut raw = false;
    while let Some('r' | 'b' | 'c') = letters.get(at) {
        raw |= letters.get(at) == Some(&'r');
        at += 1;
    }
    let marks = letters.iter().skip(at).take_while(|one| **one == '#').count();
    match letters.get(at + marks) {
        Some('"') if raw => {
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
            let body = at + marks + 1;
            let rest = letters.get(body..)?;
            let length = rest.windows(end.len()).position(|window| window == end)?;
            Some(body + length + end.len())
        }
        Some('"') if marks == 0 => Some(string(letters, at)),
        Some('\'') if marks == 0 && letters.get(start) == Some(&'b') => Some(quote(letters, at)),
        _ => None,
    }
}

/// Behind a character, or behind the quote of a lifetime.
fn quote(letters: &[char], at: usize) -> usize {
    match (letters.get(at + 1), letters.get(at + 2)) {
        (Some('\\'), _) => {
            let end = letters.iter().skip(at + 3).position(|one| *one == '\'');
            end.map_or(letters.len(), |end| at + 3 + end + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

#[cfg(test)]
mod tests;
