//! squid/allowlist.txt, the floor: one host per line, a leading dot for a host and everything below it.
//!
//! Owns host patterns and when one is covered by another. A host on this list permits nothing by itself.

use std::fmt;
use std::str::FromStr;

use assistant_proto::name::HostName;

use super::hosts;
use super::problem::{At, Report};

/// Which hosts are meant. The spellings are those of the broker's rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// `a.b`: this host.
    Exact(HostName),
    /// `*.a.b`: one label below it.
    OneBelow(HostName),
    /// `.a.b`: it and everything below it.
    AndBelow(HostName),
}

/// Text that is no host pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host")]
pub struct MalformedPattern;

impl FromStr for HostPattern {
    type Err = MalformedPattern;
    fn from_str(text: &str) -> Result<Self, MalformedPattern> {
        // What is a pattern is the broker's to say; this one is ordered, and knows what covers what.
        match policy::pattern::HostPattern::parse(text).ok_or(MalformedPattern)? {
            policy::pattern::HostPattern::Exact(host) => Ok(Self::Exact(host)),
            policy::pattern::HostPattern::OneBelow(host) => Ok(Self::OneBelow(host)),
            policy::pattern::HostPattern::Subtree(host) => Ok(Self::AndBelow(host)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::OneBelow(host) => write!(f, "*.{host}"),
            Self::AndBelow(host) => write!(f, ".{host}"),
        }
    }
}

impl HostPattern {
    /// Whether every host that `other` means is also meant by this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let below = |base: &HostName, host: &HostName| {
            host.as_str().strip_suffix(base.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::OneBelow(a), Self::OneBelow(b)) => a == b,
            (Self::OneBelow(a), Self::Exact(b)) => b
                .as_str()
                .strip_suffix(a.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty() && !label.contains('.')),
            (Self::AndBelow(a), Self::Exact(b) | Self::OneBelow(b) | Self::AndBelow(b)) => a == b || below(a, b),
            (Self::Exact(_) | Self::OneBelow(_), _) => false,
        }
    }

    /// As an entry of a Squid `dstdomain` list. Squid has no "one label below": the broker's rule is the narrower one.
    #[must_use]
    pub fn squid(&self) -> String {
        match self {
            Self::Exact(host) => host.to_string(),
            Self::OneBelow(host) | Self::AndBelow(host) => format!(".{host}"),
        }
    }
}

/// A Squid `dstdomain` list: sorted, without entries that another one covers. `api.x` beside `.x` would be fatal to Squid.
#[must_use]
pub(crate) fn squid_list<'a>(patterns: impl IntoIterator<Item = &'a HostPattern>) -> Vec<String> {
    let mut entries: Vec<HostPattern> = patterns
        .into_iter()
        .map(|pattern| match pattern {
            HostPattern::OneBelow(host) => HostPattern::AndBelow(host.clone()),
            other => other.clone(),
        })
        .collect();
    entries.sort();
    entries.dedup();
    let kept: Vec<String> = entries
        .iter()
        .filter(|entry| !entries.iter().any(|other| other != *entry && other.covers(entry)))
        .map(HostPattern::squid)
        .collect();
    kept
}

/// The floor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowlist {
    entries: Vec<HostPattern>,
    /// The line of each.
    lines: Vec<u32>,
}

impl Allowlist {
    /// Parses the file. Comments start with `#`, also behind an entry. `reserved` are hosts of the stack's own services.
    pub(super) fn parse(text: &str, reserved: &[HostPattern], report: &mut Report<'_>) -> Self {
        let mut lines: Vec<(At, HostPattern)> = Vec::new();
        let mut commented = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default();
            let column = entry.len().saturating_sub(entry.trim_start().len()).saturating_add(1);
            let at = At { line: index.saturating_add(1), column };
            let has_comment = entry.len() < line.len();
            let entry = entry.trim();
            if entry.is_empty() {
                continue;
            }
            if has_comment {
                commented.push(at);
            }
            match entry.parse() {
                Ok(HostPattern::OneBelow(_)) => {
                    report.problem(at, "the floor knows no \"*.\"", "write .example.com for a host and all below it");
                }
                Ok(pattern) => lines.push((at, pattern)),
                Err(MalformedPattern) => {
                    let fix = "write one host per line, lower case, like api.example.com or .example.com; \
                               no scheme, port, path or address";
                    report.problem(at, "this is not a host", fix);
                }
            }
        }
        remarks(&lines, &commented, reserved, report);
        let mut floor = Self::default();
        for (at, pattern) in lines {
            if !floor.entries.contains(&pattern) {
                floor.entries.push(pattern);
                floor.lines.push(u32::try_from(at.line).unwrap_or(u32::MAX));
            }
        }
        floor
    }

    /// Whether the floor has room for every host of the pattern.
    #[must_use]
    pub fn covers(&self, pattern: &HostPattern) -> bool {
        self.entries.iter().any(|entry| entry.covers(pattern))
    }

    /// Its entries with their lines.
    pub fn lines(&self) -> impl Iterator<Item = (u32, &HostPattern)> {
        self.lines.iter().copied().zip(&self.entries)
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[HostPattern] {
        &self.entries
    }
}

/// What is worth saying about a floor that can be used.
fn remarks(lines: &[(At, HostPattern)], commented: &[At], reserved: &[HostPattern], report: &mut Report<'_>) {
    for (index, (at, pattern)) in lines.iter().enumerate() {
        let earlier = lines.get(..index).unwrap_or_default();
        if let Some((first, _)) = earlier.iter().find(|(_, other)| other == pattern) {
            report.remark(*at, format!("{pattern} stands in line {} already", first.line), "remove one");
            continue;
        }
        if let Some((other, wider)) = lines.iter().find(|(_, other)| other != pattern && other.covers(pattern)) {
            report.remark(*at, format!("{pattern} is part of {wider} in line {}", other.line), "remove one");
        }
        if reserved.iter().any(|reserved| reserved.covers(pattern)) {
            let what = format!("{pattern} is open to the stack's own services only, and needs no line here");
            report.remark(*at, what, "remove it");
        } else if matches!(pattern, HostPattern::AndBelow(_)) && hosts::is_shared(pattern) {
            let what = format!(
                "{pattern} is shared hosting: anyone can have a name or a bucket there and see what is asked of it"
            );
            report.remark(*at, what, "name the hosts that you need; no tier reaches this without naming it");
        }
    }
    together(
        commented,
        "a comment stands behind the host; it is left out here, but other programs may take it for part of the host",
        "put comments on lines of their own",
        report,
    );
    let building: Vec<At> =
        lines.iter().filter(|(_, pattern)| hosts::is_for_building_a_sandbox(pattern)).map(|(at, _)| *at).collect();
    together(
        &building,
        "this was needed to build the sandbox inside the stack, which is no longer done",
        "remove it, unless a tier is to read from there",
        report,
    );
}

/// One remark for many lines.
fn together(places: &[At], what: &str, fix: &str, report: &mut Report<'_>) {
    let [first, rest @ ..] = places else { return };
    let others: Vec<String> = rest.iter().map(|at| at.line.to_string()).collect();
    let also = match rest.len() {
        0 => String::new(),
        _ => format!(" (also lines {})", others.join(", ")),
    };
    report.remark(*first, format!("{what}{also}"), fix);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn covering() {
        for (wide, narrow, covers) in [
            ("a.b", "a.b", true),
            ("a.b", "x.a.b", false),
            (".a.b", "a.b", true),
            (".a.b", "x.a.b", true),
            (".a.b", "x.y.a.b", true),
            (".a.b", "xa.b", false),
            (".a.b", "*.a.b", true),
            (".a.b", ".x.a.b", true),
            (".x.a.b", ".a.b", false),
            ("*.a.b", "x.a.b", true),
            ("*.a.b", "a.b", false),
            ("*.a.b", "x.y.a.b", false),
            ("*.a.b", ".a.b", false),
            ("a.b", ".a.b", false),
        ] {
            assert_eq!(pattern(wide).covers(&pattern(narrow)), covers, "{wide} {narrow}");
        }
    }

    #[test]
    fn spellings() {
        for bad in [
            "",
            ".",
            "*",
            "*.",
            "com",
            ".com",
            "A.b",
            "a.b:443",
            "https://a.b",
            "a.b/c",
            "10.0.0.1",
            "*.*.a.b",
            "..a.b",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn files_with_comments_and_every_bad_line() {
        let (mut problems, mut remarks) = (Vec::new(), Vec::new());
        let mut report = Report { file: "allowlist.txt", problems: &mut problems, remarks: &mut remarks };
        let text = "# x\na.example  # why\n\n  .b.example\nhttp://c\n*.d.example\n";
        let floor = Allowlist::parse(text, &[], &mut report);
        assert_eq!(floor.entries(), [pattern("a.example"), pattern(".b.example")]);
        let lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [5, 6]);
    }

    #[test]
    fn what_is_worth_saying_about_a_floor() {
        let (mut problems, mut remarks) = (Vec::new(), Vec::new());
        let mut report = Report { file: "allowlist.txt", problems: &mut problems, remarks: &mut remarks };
        let text = "api.privatemode.ai\n.googleapis.com\na.example # x\na.example # y\n.b.example\nx.b.example\ncgr.dev\n\
                    github.com\nmodel.example\n";
        let floor = Allowlist::parse(text, &[pattern(".privatemode.ai"), pattern("model.example")], &mut report);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(floor.entries().len(), 8, "a host that stands there twice is one entry");
        let said: Vec<(usize, &str)> = remarks.iter().map(|remark| (remark.line, remark.what.as_str())).collect();
        for (line, what) in [
            (1, "the stack's own services only"),
            (2, "is shared hosting"),
            (4, "stands in line 3 already"),
            (6, "is part of .b.example in line 5"),
            (9, "the stack's own services only"),
            (
                3,
                "a comment stands behind the host; it is left out here, but other programs may take it for part of the host (also lines 4)",
            ),
            (7, "no longer done (also lines 8)"),
        ] {
            assert!(said.iter().any(|(at, text)| *at == line && text.contains(what)), "{line} {what}\n{said:#?}");
        }
        assert_eq!(said.len(), 7, "{said:#?}");
    }

    #[test]
    fn squid_gets_no_covered_entry() {
        let list = [pattern("api.x.example"), pattern(".x.example"), pattern("*.y.example"), pattern("y.example")];
        assert_eq!(squid_list(&list), [".x.example", ".y.example"]);
    }

    proptest! {
        #[test]
        fn squid_lists_never_hold_a_name_and_its_parent(
            raw in proptest::collection::vec("(\\*\\.|\\.)?[ab](\\.[ab]){1,3}", 0..12)
        ) {
            let patterns: Vec<HostPattern> = raw.iter().filter_map(|text| text.parse().ok()).collect();
            let list = squid_list(&patterns);
            for a in &list {
                for b in list.iter().filter(|b| *b != a) {
                    prop_assert!(!(a.starts_with('.') && format!(".{b}").ends_with(a.as_str())), "{a} {b}");
                }
            }
            for wanted in &patterns {
                prop_assert!(list.iter().any(|entry| pattern(entry).covers(wanted)), "{wanted} lost");
            }
        }
    }
}
