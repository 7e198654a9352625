//! Names of functions.

/// A path without what it is generic over, and without the closures inside: `<a::B<C> as d::E<F>>::g::<H>::{closure#0}` is
/// `<a::B as d::E>::g`, and `<a::B<C>>::g` is `a::B::g`.
pub(crate) fn plain(name: &str) -> String {
    let name = name.split("::{closure").next().unwrap_or(name);
    let mut out = String::new();
    let mut rest = name;
    while let Some(at) = rest.find('<') {
        let (before, from) = rest.split_at(at);
        let (inside, behind) = bracket(from);
        out.push_str(before);
        rest = behind;
        if out.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == '>') {
            // What a type is generic over.
        } else if out.ends_with("::") {
            // What a function is.
            out.truncate(out.len().saturating_sub(2));
        } else if let Some((of, as_)) = split(inside, " as ") {
            out.push_str(&format!("<{} as {}>", plain(of), plain(as_)));
        } else {
            out.push_str(&plain(inside));
        }
    }
    out.push_str(rest);
    out
}

/// What is between the first bracket and its partner, and what is behind.
fn bracket(text: &str) -> (&str, &str) {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (at, character) in text.char_indices() {
        match character {
            '<' => depth = depth.saturating_add(1),
            '>' if before != '-' => depth = depth.saturating_sub(1),
            _ => (),
        }
        if depth == 0 {
            return (text.get(1..at).unwrap_or_default(), text.get(at.saturating_add(1)..).unwrap_or_default());
        }
        before = character;
    }
    (text.get(1..).unwrap_or_default(), "")
}

/// Splits at a separator that is in no bracket.
fn split<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    text.match_indices(separator).map(|(at, _)| at).find_map(|at| {
        let (before, after) = text.split_at_checked(at)?;
        let count = |bracket: char| before.matches(bracket).count();
        (count('<') == count('>')).then(|| (before, after.get(separator.len()..).unwrap_or_default()))
    })
}

/// Whether a line begins a function that is for others.
pub(crate) fn is_public_function(line: &str) -> bool {
    let Some(rest) = line.trim_start().strip_prefix("pub ") else { return false };
    let words = rest.split_whitespace().take_while(|word| *word != "fn");
    rest.contains("fn ") && words.clone().all(|word| ["const", "unsafe"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_without_what_it_is_generic_over() {
        assert_eq!(plain("<a::B<c::D<e>>>::g::<h::I>::{closure#0}"), "a::B::g");
        assert_eq!(plain("<a::B<C> as d::E<F>>::g"), "<a::B as d::E>::g");
        assert_eq!(plain("a::b::<fn(u8) -> u8>"), "a::b");
        assert_eq!(plain("<[u8]>::sort::<u8>"), "[u8]::sort");
        assert_eq!(plain("memcpy"), "memcpy");
    }

    #[test]
    fn a_public_function_is_known_by_its_line() {
        assert!(is_public_function("    pub const fn new() -> Self {"));
        assert!(is_public_function("pub unsafe fn new<T>("));
        assert!(!is_public_function("    pub(crate) fn new() -> Self {"));
        assert!(!is_public_function("    pub call: Option<fn (u8)>,"));
        assert!(!is_public_function("/// pub fn of a comment"));
    }
}
