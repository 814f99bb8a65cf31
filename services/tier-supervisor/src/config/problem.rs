//! What is wrong with a file that a person writes, and the collection of it.

use std::fmt;

/// One thing that is wrong, or worth saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File as the person named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong. Never a value that could be a secret.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.what)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "; {}", self.fix) }
    }
}

/// Every problem of one reading, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// Line, from 1.
    pub(super) line: usize,
    /// Column, from 1.
    pub(super) column: usize,
}

/// Where problems and remarks of one file go.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) file: &'a str,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) remarks: &'a mut Vec<Problem>,
}

impl Report<'_> {
    /// Something that stops the file from being used.
    pub(super) fn problem(&mut self, at: At, what: impl Into<String>, fix: impl Into<String>) {
        let problem = self.at(at, what.into(), fix.into());
        self.problems.push(problem);
    }

    /// Something that is not as one could think, but safe.
    pub(super) fn remark(&mut self, at: At, what: impl Into<String>, fix: impl Into<String>) {
        let remark = self.at(at, what.into(), fix.into());
        self.remarks.push(remark);
    }

    /// The same collection for another file.
    pub(super) fn for_file<'b>(&'b mut self, file: &'b str) -> Report<'b> {
        Report { file, problems: self.problems, remarks: self.remarks }
    }

    fn at(&self, at: At, what: String, fix: String) -> Problem {
        Problem { file: self.file.to_owned(), line: at.line, column: at.column, what, fix }
    }
}

/// `did you mean "x"?` for a name that is close to a known one; otherwise the known ones.
pub(super) fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let best = known
        .iter()
        .map(|candidate| (distance(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min();
    match best {
        Some((_, candidate)) => format!("did you mean \"{candidate}\"?"),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("use one of: {}", known.join(", ")),
    }
}

/// Whether the name of a field may be repeated in a message: a key can be a secret that was pasted in the wrong place.
pub(super) fn shown(name: &str) -> String {
    let plain = name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'-' || b == b'.');
    if plain { format!("\"{name}\"") } else { "(not shown)".to_owned() }
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let at = |r: &[usize], j: usize| r.get(j).copied().unwrap_or(usize::MAX / 2);
            let above = rows.get(i - 1).map(Vec::as_slice).unwrap_or_default();
            let substituted = at(above, j - 1) + usize::from(a.get(i - 1) != b.get(j - 1));
            let mut best = substituted.min(at(above, j) + 1).min(at(&row, j - 1) + 1);
            if i > 1 && j > 1 && a.get(i - 1) == b.get(j - 2) && a.get(i - 2) == b.get(j - 1) {
                let before = rows.get(i - 2).map(Vec::as_slice).unwrap_or_default();
                best = best.min(at(before, j - 2) + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn suggests_what_is_close_and_lists_otherwise() {
        let known = ["identity", "port", "credentials", "commands"];
        for (typed, meant) in
            [("identiy", "identity"), ("prot", "port"), ("credential", "credentials"), ("comands", "commands")]
        {
            assert_eq!(suggestion(typed, known), format!("did you mean \"{meant}\"?"));
        }
        assert_eq!(suggestion("volume", known), "use one of: identity, port, credentials, commands");
        assert_eq!(suggestion("x", []), "remove it");
    }

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("ab", "ba", 1), ("kitten", "sitting", 3), ("port", "port", 0)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn keys_that_could_be_secrets_are_not_shown() {
        assert_eq!(shown("identiy"), "\"identiy\"");
        for hidden in ["sk-4f3A9", "eyJhbGciOi", "a".repeat(41).as_str(), "x y", "\u{202e}"] {
            assert_eq!(shown(hidden), "(not shown)");
        }
    }
}
