//! What a request may carry under a rule that only reads: nothing but what a server needs to hand out a page. A header is
//! as good a way to carry something out as a body is, so the list is closed: what is on it passes, bounded and once; what
//! ordinary clients add and no server needs is dropped; everything else is refused by name.
//!
//! Read in what curl, wget, pip, uv, requests, git, apt, cargo, npm and browsers send. Ranges and framing never come here:
//! the broker removes them from every request, and it always asks for `accept-encoding: identity`.

use crate::decision::Request;
use crate::denial::Denial;

/// Longest path and longest query. Downloads that a host redirects to signed addresses of its storage have queries of one
/// and a half kilobytes.
pub const MOST_TARGET: usize = 2 * 1024;
/// Longest value of a header that passes. Registries of images are asked with the longest `Accept`, a few hundred bytes.
pub const MOST_VALUE: usize = 512;

/// Headers that go on as they are, once each.
const PASSED: &[&str] = &["accept", "accept-encoding", "accept-language", "if-modified-since", "if-none-match"];

/// Headers that clients add and that change nothing a reader needs. `user-agent` is here because the broker sends its own.
const DROPPED: &[&str] = &[
    "accept-charset",
    "cache-control",
    "cargo-protocol",
    "content-type",
    "dnt",
    "git-protocol",
    "origin",
    "pragma",
    "priority",
    "referer",
    "save-data",
    "sec-gpc",
    "upgrade-insecure-requests",
    "user-agent",
    "x-requested-with",
];
/// Families of such headers: what browsers and npm say of themselves.
const DROPPED_BEGINNINGS: &[&str] = &["sec-fetch-", "sec-ch-", "npm-", "pacote-"];

/// Whether a header, by its lower-case name, goes on under a rule that only reads.
#[must_use]
pub fn passes(name: &str) -> bool {
    PASSED.contains(&name)
}

fn drops(name: &str) -> bool {
    DROPPED.contains(&name) || DROPPED_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// What a request carries beside its line, as far as rules look at it.
#[derive(Debug, Clone)]
pub struct Carried<H> {
    /// Whether there is a body, be it empty in the end.
    pub body: bool,
    /// Each header line: lower-case name, and length of the value in bytes. Asked for only where a rule wants to know.
    pub headers: H,
}

impl Carried<std::iter::Empty<(&'static str, usize)>> {
    /// Neither body nor headers.
    #[must_use]
    pub fn nothing() -> Self {
        Self { body: false, headers: std::iter::empty() }
    }
}

/// Decides what a reading request carries. `rule` and `source` say whose decision it is.
pub(crate) fn check<'h>(
    rule: &str,
    source: &str,
    request: &Request,
    carried: Carried<impl Iterator<Item = (&'h str, usize)>>,
) -> Result<(), Denial> {
    let only_reads = format!("rule {rule} ({source}) only reads");
    if carried.body {
        return Err(Denial::new(
            "body-not-allowed",
            format!("{only_reads}, and the request has a body"),
            "send GET or HEAD without a body",
        ));
    }
    let query = request.query.as_ref().map_or(0, |query| query.as_str().len());
    if query.max(request.path.as_str().len()) > MOST_TARGET {
        return Err(Denial::new(
            "target-too-long",
            format!("{only_reads}, and the path or the query is longer than {MOST_TARGET} bytes"),
            "ask for something shorter; the limit is fixed",
        ));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (name, length) in carried.headers {
        if passes(name) {
            if seen.contains(&name) || length > MOST_VALUE {
                return Err(Denial::new(
                    "header-too-long",
                    format!("{only_reads}, and the header {name} comes twice or is longer than {MOST_VALUE} bytes"),
                    format!("send {name} once and shorter; the limit is fixed"),
                ));
            }
            seen.push(name);
        } else if !drops(name) {
            return Err(Denial::new(
                "header-not-allowed",
                format!("{only_reads}, and the header {name} is none of those a reader needs"),
                format!(
                    "leave {name} out; a host that needs it needs a rule of its own under `egress` or `credentials`"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn page(target: &str) -> Request {
        Request::parse_url("GET", &format!("https://a.example/{target}")).unwrap()
    }

    fn outcome(body: bool, target: &str, headers: &[(&str, usize)]) -> Result<(), &'static str> {
        let carried = Carried { body, headers: headers.iter().copied() };
        check("floor", "tiers.yaml:1", &page(target), carried).map_err(|denial| denial.reason)
    }

    fn with(names: &[&'static str]) -> Result<(), &'static str> {
        let headers: Vec<_> = names.iter().map(|name| (*name, 20)).collect();
        outcome(false, "", &headers)
    }

    #[test]
    fn ordinary_clients_can_read() {
        for (client, names) in [
            ("curl", &["user-agent", "accept", "accept-encoding"][..]),
            ("pip", &["user-agent", "accept", "accept-encoding", "cache-control", "if-none-match"]),
            ("requests", &["user-agent", "accept", "accept-encoding"]),
            ("git", &["user-agent", "accept", "accept-encoding", "accept-language", "pragma", "git-protocol"]),
            ("apt", &["user-agent", "accept", "accept-encoding", "cache-control", "if-modified-since"]),
            ("cargo", &["user-agent", "accept", "accept-encoding", "cargo-protocol", "if-none-match"]),
            ("npm", &["user-agent", "accept", "accept-encoding", "npm-command", "pacote-req-type"]),
            ("fetch", &["user-agent", "accept", "accept-encoding", "accept-language", "sec-fetch-mode", "sec-ch-ua"]),
        ] {
            assert_eq!(with(names), Ok(()), "{client}");
        }
    }

    #[test]
    fn what_carries_something_out_is_refused() {
        for name in ["authorization", "cookie", "x-api-key", "x-anything", "via", "from", "if-match", "sec", "x-npm-y"]
        {
            assert_eq!(with(&["accept", name]), Err("header-not-allowed"), "{name}");
        }
        assert_eq!(outcome(true, "", &[]), Err("body-not-allowed"));
        assert_eq!(with(&["accept", "accept"]), Err("header-too-long"));
        assert_eq!(outcome(false, "", &[("accept", MOST_VALUE)]), Ok(()));
        assert_eq!(outcome(false, "", &[("accept", MOST_VALUE + 1)]), Err("header-too-long"));
        let long = "q".repeat(MOST_TARGET);
        assert_eq!(outcome(false, &format!("?{long}"), &[]), Ok(()));
        assert_eq!(outcome(false, &format!("?{long}q"), &[]), Err("target-too-long"));
        // With its slash it is one byte longer.
        assert_eq!(outcome(false, &long, &[]), Err("target-too-long"));
    }

    #[test]
    fn the_refusal_names_the_header() {
        let carried = Carried { body: false, headers: [("x-odd", 1)].into_iter() };
        let denial = check("floor", "tiers.yaml:1", &page(""), carried).unwrap_err();
        assert!(denial.detail.contains("x-odd") && denial.detail.contains("rule floor (tiers.yaml:1)"), "{denial:?}");
        assert!(denial.fix.contains("x-odd"), "{denial:?}");
    }

    #[test]
    fn no_header_both_passes_and_is_dropped() {
        assert!(PASSED.iter().all(|name| !drops(name)));
        assert!(!passes("user-agent"), "the broker sends its own");
    }
}
