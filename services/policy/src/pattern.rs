//! Patterns of rules: hosts, methods, paths. Parsed once, matched on canonical values only.

use assistant_proto::name::HostName;

use crate::path::{RequestPath, normalise};

/// Which hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// `a.b`
    Exact(HostName),
    /// `*.a.b`: exactly one label below.
    OneBelow(HostName),
    /// `.a.b`: the host and everything below it.
    Subtree(HostName),
}

impl HostPattern {
    /// Parses a pattern; patterns are in canonical spelling already (lower case, no final dot).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let host = |text: &str| text.parse::<HostName>().ok();
        if let Some(base) = text.strip_prefix("*.") {
            host(base).map(Self::OneBelow)
        } else if let Some(base) = text.strip_prefix('.') {
            host(base).map(Self::Subtree)
        } else {
            host(text).map(Self::Exact)
        }
    }

    /// Whether a host is one of them.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        let below = |base: &HostName| host.as_str().strip_suffix(base.as_str()).and_then(|rest| rest.strip_suffix('.'));
        match self {
            Self::Exact(base) => base == host,
            Self::OneBelow(base) => below(base).is_some_and(|label| !label.is_empty() && !label.contains('.')),
            Self::Subtree(base) => base == host || below(base).is_some_and(|labels| !labels.is_empty()),
        }
    }
}

/// Which paths, by segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    /// `**` at the end: any number of further segments, none included.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// In its one spelling.
    Literal(String),
    /// `*`: one segment, not empty.
    Any,
}

impl PathPattern {
    /// Parses `/a/*/b/**`. `None` when it does not begin with `/`, has `**` elsewhere than at the end, a `*` within a
    /// segment, a dot segment, or anything a request may not have.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
        let open = parts.last() == Some(&"**");
        if open {
            parts.pop();
        }
        let last = parts.len().saturating_sub(1);
        let segments = parts
            .iter()
            .enumerate()
            .map(|(index, part)| match *part {
                "*" => Some(Segment::Any),
                // Only a final slash makes an empty segment.
                "" if index < last || open => None,
                part if part.contains('*') => None,
                part => normalise(part).ok().filter(|part| part != "." && part != "..").map(Segment::Literal),
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self { segments, open })
    }

    /// Whether a path is one of them.
    #[must_use]
    pub fn matches(&self, path: &RequestPath) -> bool {
        let mut rest = path.segments();
        let begins = self.segments.iter().all(|pattern| {
            rest.next().is_some_and(|segment| match pattern {
                Segment::Literal(literal) => literal == segment,
                Segment::Any => !segment.is_empty(),
            })
        });
        begins && (self.open || rest.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts() {
        let table = [
            ("a.example", "a.example", true),
            ("a.example", "b.a.example", false),
            ("a.example", "xa.example", false),
            ("*.a.example", "b.a.example", true),
            ("*.a.example", "a.example", false),
            ("*.a.example", "c.b.a.example", false),
            ("*.a.example", "ba.example", false),
            (".a.example", "a.example", true),
            (".a.example", "b.a.example", true),
            (".a.example", "c.b.a.example", true),
            (".a.example", "ba.example", false),
        ];
        for (pattern, host, expected) in table {
            let pattern = HostPattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(&host.parse().unwrap()), expected, "{pattern:?} {host}");
        }
        for bad in
            ["", "*", "*.", ".", "*.*.a.example", "a.*.example", "A.example", "*.example.", "com", ".com", "1.2.3.4"]
        {
            assert!(HostPattern::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        let table = [
            ("/", "/", true),
            ("/", "/a", false),
            ("/api/addTask", "/api/addTask", true),
            ("/api/addTask", "/api/addTask/", false),
            ("/api/addTask", "/api/addtask", false),
            ("/api/addTask", "/api/%61ddTask", true),
            ("/api/*", "/api/x", true),
            ("/api/*", "/api/", false),
            ("/api/*", "/api/x/y", false),
            ("/api/**", "/api", true),
            ("/api/**", "/api/", true),
            ("/api/**", "/api/x/y", true),
            ("/api/**", "/api2", false),
            ("/api/**", "/api/../secret", false),
            ("/**", "/", true),
            ("/**", "/x", true),
            ("/*/x", "/a/x", true),
            ("/*/x", "/a/b/x", false),
            ("/a/", "/a/", true),
            ("/a/", "/a", false),
        ];
        for (pattern, path, expected) in table {
            let parsed = PathPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(&RequestPath::parse(path).unwrap()), expected, "{pattern} {path}");
        }
        for bad in
            ["", "api", "/a/**/b", "/a*", "/***", "//", "/a//b", "/./a", "/a/..", "/%2e%2e/a", "/a%2fb", "/a//**"]
        {
            assert!(PathPattern::parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_literal_pattern_matches_only_itself(a in "(/[a-c]{1,2}){1,3}", b in "(/[a-c]{1,2}){1,3}") {
            let pattern = PathPattern::parse(&a).unwrap();
            prop_assert_eq!(pattern.matches(&RequestPath::parse(&b).unwrap()), a == b);
        }
    }
}
