//! The ways into the panic machinery that are left, each with its reason: lines of `from | into | reason`.

/// One line. In names `*` is anything.
#[derive(Debug)]
struct Reason {
    line: String,
    from: String,
    into: String,
    is_used: bool,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Reasons(Vec<Reason>);

impl Reasons {
    /// Reads the file. Lines that begin with `#` are comments.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let reason = |line: &str| match line.split('|').map(str::trim).collect::<Vec<_>>().as_slice() {
            [from, into, why] if !why.is_empty() => {
                Ok(Reason { line: line.to_owned(), from: (*from).to_owned(), into: (*into).to_owned(), is_used: false })
            }
            _ => Err(format!("not `from | into | reason`: {line}")),
        };
        lines.map(reason).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a line is about this one.
    pub(crate) fn explain(&mut self, from: &str, into: &str) -> bool {
        let mut found = false;
        for reason in &mut self.0 {
            if is(&reason.from, from) && is(&reason.into, into) {
                reason.is_used = true;
                found = true;
            }
        }
        found
    }

    /// Lines that were about nothing.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter(|reason| !reason.is_used).map(|reason| reason.line.clone())
    }
}

/// Whether a name is as a pattern says, in which `*` is anything.
fn is(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    let mut places = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    places.any(|at| name.get(at..).is_some_and(|name| is(rest, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_way_with_a_reason() -> Result<(), String> {
        let mut reasons = Reasons::read("# why\n\na::b | c | never\nd::* | c | never\ne | f | never\n")?;
        assert!(reasons.explain("a::b", "c"));
        assert!(!reasons.explain("a::b::c", "c"));
        assert!(reasons.explain("d::e", "c"));
        assert!(!reasons.explain("d::e", "f"));
        assert!(is("<* as d>::fmt", "<&a::b as d>::fmt") && is("*", "") && !is("<* as d>::fmt", "<a as d>::fmts"));
        assert_eq!(reasons.unused().collect::<Vec<_>>(), ["e | f | never"]);
        assert!(Reasons::read("a | b |").is_err());
        assert!(Reasons::read("a | b").is_err());
        Ok(())
    }
}
