//! Colour: on a terminal that wants it, and nowhere else.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// Whether what is written to `out` may be coloured: it is a terminal, it can show colours, and
/// nobody said no (`NO_COLOR`, no-color.org).
pub(crate) fn wanted(out: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name);
    decide(out.is_terminal(), set("NO_COLOR").as_deref(), set("TERM").as_deref())
}

fn decide(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| term != "dumb")
}

/// `word: ` before what is said on stderr, coloured by its kind where that is wanted.
pub(crate) fn label(word: &str) -> String {
    let colour = match word {
        "error" => "1;31",
        "warning" => "1;33",
        _ => "1;36",
    };
    match wanted(&std::io::stderr()) {
        true => format!("\u{1b}[{colour}m{word}:\u{1b}[0m "),
        false => format!("{word}: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let text = |text: &'static str| Some(OsStr::new(text));
        assert!(decide(true, None, text("xterm")));
        assert!(decide(true, text(""), text("xterm")));
        assert!(!decide(true, text("1"), text("xterm")));
        assert!(!decide(true, None, text("dumb")));
        assert!(!decide(true, None, None));
        assert!(!decide(false, None, text("xterm")));
    }
}
