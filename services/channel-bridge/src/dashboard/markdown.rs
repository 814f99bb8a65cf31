//! What an agent said, as Markdown that the dashboard's page can make nothing harmful of. Pure.
//!
//! The page renders answers as Markdown (react-markdown with GitHub's extensions), and would make links of them, to
//! wherever the agent likes. So an answer is read with the bridge's own reader, its addresses are made inert as for a
//! messenger ([`links`]), and it is written anew: every mark in it is escaped, and what remains a link is an address that
//! the tier may itself reach, spelled out.

use crate::reply::links::{self, Reach};
use crate::reply::markup::{self, Cell, Style};

/// Writes an answer anew.
#[must_use]
pub fn safe(text: &str, reach: &Reach) -> String {
    let cells = links::inert(markup::parse(text), reach);
    let mut out = Writer { out: String::with_capacity(text.len()), line_begins: true, reach };
    for run in cells.chunk_by(|a, b| a.style == b.style) {
        let style = run.first().map_or(Style::PLAIN, |cell| cell.style);
        if style.has(Style::BLOCK) {
            out.block(&text_of(run));
        } else if style.has(Style::CODE) {
            // A line of code within a line: it cannot go on into the next.
            for (index, line) in text_of(run).split('\n').enumerate() {
                if index > 0 {
                    out.line_break();
                }
                out.code(line);
            }
        } else {
            out.prose(run, mark(style));
        }
    }
    out.out
}

/// A word of the bridge itself, shown as code.
#[must_use]
pub fn code(text: &str) -> String {
    let mut out = Writer { out: String::new(), line_begins: false, reach: &Reach::default() };
    out.code(text);
    out.out
}

fn text_of(run: &[Cell]) -> String {
    run.iter().map(|cell| cell.character).collect()
}

fn mark(style: Style) -> &'static str {
    match (style.has(Style::BOLD), style.has(Style::ITALIC)) {
        (true, true) => "***",
        (true, false) => "**",
        (false, true) => "*",
        (false, false) => "",
    }
}

struct Writer<'a> {
    out: String,
    line_begins: bool,
    reach: &'a Reach,
}

impl Writer<'_> {
    fn prose(&mut self, run: &[Cell], mark: &str) {
        let text = text_of(run);
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                self.line_break();
            }
            let (indent, line) = self.beginning(line);
            self.out.push_str(indent);
            // Marks next to white space would be shown as they are.
            let inside = line.trim();
            let (before, behind) = match inside.is_empty() {
                true => (line, ""),
                false => line.split_once(inside).unwrap_or(("", "")),
            };
            self.out.push_str(before);
            if !inside.is_empty() {
                self.out.push_str(mark);
                self.words(inside);
                self.out.push_str(mark);
                self.line_begins = false;
            }
            self.out.push_str(behind);
        }
    }

    /// The mark of a list stays one: it makes no link, and lists are most of what agents write.
    fn beginning<'a>(&mut self, line: &'a str) -> (&'a str, &'a str) {
        if !self.line_begins {
            return ("", line);
        }
        let rest = line.trim_start_matches([' ', '\t']);
        let indent = line.len().saturating_sub(rest.len());
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let marked = match rest.as_bytes() {
            [b'-' | b'*' | b'+', b' ', ..] => Some(2),
            _ if (1..=3).contains(&digits) && rest.get(digits..).is_some_and(|r| r.starts_with(". ")) => {
                Some(digits.saturating_add(2))
            }
            _ => None,
        };
        // Further in it would be code.
        match marked.filter(|_| indent <= 12) {
            Some(mark) => line.split_at_checked(indent.saturating_add(mark)).unwrap_or(("", line)),
            None => ("", rest),
        }
    }

    fn words(&mut self, text: &str) {
        let characters: Vec<char> = text.chars().collect();
        for word in characters.chunk_by(|a, b| a.is_whitespace() == b.is_whitespace()) {
            let word: String = word.iter().collect();
            if word.chars().all(char::is_whitespace) {
                self.out.push_str(&word);
            } else if suspicious(&word) || links::inert_plain(&word, self.reach) != word {
                // Also what is harmless only together with what stands before or behind it in another style: for the page
                // each style is a text of its own.
                self.code(&word);
            } else if word.contains("://") {
                self.address(&word);
            } else {
                self.escaped(&word);
            }
        }
    }

    /// A word with an address that may be followed: all others are inert.
    fn address(&mut self, word: &str) {
        let begins = ["https://", "http://"].iter().filter_map(|scheme| word.find(scheme)).min();
        let ends = |rest: &str| {
            let address = rest.split(['<', '>', '"', '\'', ')', ']', '}']).next().unwrap_or_default();
            address.trim_end_matches(['.', ',', ';', ':', '!', '?', '*', '_']).len()
        };
        match begins.and_then(|at| word.split_at_checked(at)) {
            Some((before, rest)) => {
                let (address, behind) = rest.split_at_checked(ends(rest)).unwrap_or((rest, ""));
                if behind.contains("://") || links::inert_plain(address, self.reach) != address {
                    self.code(word);
                } else {
                    self.escaped(before);
                    self.out.push('<');
                    self.out.push_str(address);
                    self.out.push('>');
                    self.escaped(behind);
                }
            }
            None => self.code(word),
        }
    }

    /// Every mark is escaped (CommonMark 0.31, 2.4: any ASCII punctuation may be).
    fn escaped(&mut self, word: &str) {
        for character in word.chars() {
            if character.is_ascii_punctuation() && !matches!(character, ',' | ';' | '?' | '%' | '\'' | '"' | '/') {
                self.out.push('\\');
            }
            self.out.push(character);
        }
    }

    /// Between more backticks than it holds.
    fn code(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let fence = "`".repeat(longest_run(text).saturating_add(1));
        let pad = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) { " " } else { "" };
        // Three of them at the beginning of a line open no block: the closing ones stand on the same line.
        for part in [fence.as_str(), pad, text, pad, fence.as_str()] {
            self.out.push_str(part);
        }
        self.line_begins = false;
    }

    fn block(&mut self, text: &str) {
        let fence = "`".repeat(longest_run(text).saturating_add(1).max(3));
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
        self.out.push_str(&fence);
        self.out.push('\n');
        self.out.push_str(text.trim_end_matches('\n'));
        self.out.push('\n');
        self.out.push_str(&fence);
        self.out.push('\n');
        self.line_begins = true;
    }

    /// Two spaces make the end of a line one; at the end of a paragraph they are nothing.
    fn line_break(&mut self) {
        if !self.line_begins {
            self.out.push_str("  ");
        }
        self.out.push('\n');
        self.line_begins = true;
    }
}

/// What GitHub's extension makes a link of without a scheme, or might.
fn suspicious(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    lower.contains("www.") || lower.contains('@') || lower.contains("mailto:") || lower.contains("xmpp:")
}

fn longest_run(text: &str) -> usize {
    text.split(|character| character != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        let reach = Reach::parse(["serv.amazingmarvin.com"]).unwrap_or_default();
        safe(text, &reach)
    }

    #[test]
    fn what_models_write_is_still_readable() {
        assert_eq!(shown("You have **two** tasks:\n- one\n- two"), "You have **two** tasks\\:  \n- one  \n- two");
        assert_eq!(shown("1. a\n2. b"), "1. a  \n2. b");
        assert_eq!(shown("run `ls -l` now"), "run `ls -l` now");
        assert_eq!(shown("```sh\nls\n```\nafter"), "```\nls\n```\n\nafter");
        assert_eq!(shown("a * b _c_ #1"), "a \\* b *c* \\#1");
        assert_eq!(shown("see https://serv.amazingmarvin.com/a?b=1."), "see <https://serv.amazingmarvin.com/a?b=1>\\.");
    }

    #[test]
    fn links_to_elsewhere_are_inert() {
        for text in [
            "https://evil.example/?secret",
            "[click](https://evil.example/x)",
            "[click](//evil.example/x)",
            "[click](https&#58;//evil.example/x)",
            "[a]\n\n[a]: https://evil.example/x",
            "<https://evil.example/x>",
            "![x](https://evil.example/x.png)",
            "www.evil.example",
            "a,www.evil.example/x",
            "(www.evil.example)",
            "someone@evil.example",
            "mailto:someone@evil.example",
            "<a href=\"https://evil.example\">x</a>",
            "https://serv.amazingmarvin.com@evil.example/",
            "https://serv.amazingmarvin.com/](https://evil.example/)",
            "ht\u{200b}tps://evil.example",
            "&lt;https://evil.example&gt;",
            // Reachable as a whole, and another host where the style changes.
            "**https://serv.am**azingmarvin.com/x",
            "https://serv.am*azingmarvin.com/x*",
            "`a`https://serv.am**azingmarvin.com**",
        ] {
            let shown = shown(text);
            assert!(links(&shown).is_empty(), "{text}: {shown}");
        }
    }

    /// Addresses in what was written, outside of code and not escaped: what a Markdown reader could make a link of.
    fn links(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut rest = text;
        let mut plain = String::new();
        while let Some(at) = rest.find('`') {
            let (before, behind) = rest.split_at(at);
            // An escaped backtick opens nothing.
            if before.ends_with('\\') {
                plain.push_str(before);
                plain.push('`');
                rest = behind.strip_prefix('`').unwrap_or_default();
                continue;
            }
            plain.push_str(before);
            plain.push(' ');
            let fence = behind.len() - behind.trim_start_matches('`').len();
            let mark = "`".repeat(fence);
            let inside = behind.get(fence..).unwrap_or_default();
            rest = inside.split_once(&mark).map_or("", |(_, rest)| rest);
        }
        plain.push_str(rest);
        let lower = plain.to_ascii_lowercase();
        for mark in ["://", "www.", "@", "]("] {
            for (at, _) in lower.match_indices(mark) {
                let around: String = lower.chars().skip(at.saturating_sub(12)).take(60).collect();
                if !lower.get(..at).is_some_and(|before| before.ends_with("<https"))
                    || !lower
                        .get(at..)
                        .and_then(|rest| rest.strip_prefix("://serv.amazingmarvin.com"))
                        .is_some_and(|rest| rest.starts_with(['/', '?', '#', '>', ':']))
                {
                    found.push(around);
                }
            }
        }
        found
    }

    proptest! {
        /// Whatever is said, no address of another host is left that could be followed.
        #[test]
        fn nothing_else_becomes_a_link(pieces in proptest::collection::vec(prop_oneof![
            Just("https://"), Just("evil.example"), Just("serv.amazingmarvin.com"), Just("["), Just("]"), Just("("),
            Just(")"), Just("<"), Just(">"), Just("`"), Just("```"), Just("\n"), Just(" "), Just("www."), Just("@"),
            Just("\\"), Just("*"), Just("**"), Just("https://serv.am"), Just("azingmarvin.com"), Just("a"), Just("/"), Just("&#58;"), Just("!"), Just("- "), Just("    "),
        ], 0..14)) {
            let text = pieces.concat();
            let shown = shown(&text);
            prop_assert!(links(&shown).is_empty(), "{:?}: {:?}", text, shown);
        }
    }
}
