//! A line of a filter's log. Pure.
//!
//! The filter is ours, and what a tier sends is escaped by it; still nothing here trusts a line: the filter shares a uid
//! with the agent it guards against.

use serde::Deserialize;
use service_kit::text::harmless_line;

/// Longest detail in an event, in characters.
const MOST_DETAIL: usize = 400;
/// Longest code.
const MOST_CODE: usize = 40;

/// What was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For example `create`.
    pub(super) operation: String,
    /// Stable code, for example `privileged`.
    pub(super) reason: String,
    /// One sentence, made harmless.
    pub(super) detail: String,
    /// Equal refusals that the line stands for.
    pub(super) count: u64,
}

#[derive(Deserialize)]
struct Line {
    refused: Written,
}

#[derive(Deserialize)]
struct Written {
    operation: String,
    reason: String,
    detail: String,
    #[serde(default = "one")]
    count: u64,
}

fn one() -> u64 {
    1
}

/// Reason of a line that cannot be read: it may be anything, a refusal included, so it is counted as one.
const UNREADABLE: &str = "line-unreadable";

/// Reads a line, whatever it holds.
pub(super) fn read(bytes: &[u8]) -> Refusal {
    let unreadable = || Refusal {
        operation: "unknown".to_owned(),
        reason: UNREADABLE.to_owned(),
        detail: "a line of the log of the sandbox's filter cannot be read".to_owned(),
        count: 1,
    };
    let Ok(Line { refused: Written { operation, reason, detail, count } }) = serde_json::from_slice(bytes) else {
        return unreadable();
    };
    if !is_code(&operation) || !is_code(&reason) || count == 0 {
        return unreadable();
    }
    let detail = harmless_line(&format!("the sandbox refused docker {operation}: {detail}"), MOST_DETAIL);
    Refusal { operation, reason, detail, count }
}

/// The smallest change that would allow it, or why nothing will.
pub(super) fn fix(reason: &str) -> &'static str {
    match reason {
        UNREADABLE => "docker-filter and tier-supervisor must be of one version: run deploy/up.sh again",
        "malformed" | "framing" | "too-large" | "too-slow" | "api-version" | "parameter" | "unknown-field" => {
            "nothing will allow it: the call is not one that the sandbox understands"
        }
        "too-many" | "limits" => "nothing will allow more: ask for less, or for fewer at a time",
        _ => {
            "nothing will allow it: a sandbox runs its one image, without network, privileges, devices or mounts other than \
             the workspace"
        }
    }
}

fn is_code(text: &str) -> bool {
    (1..=MOST_CODE).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_as_the_filter_writes_them() {
        let one = read(br#"{"refused":{"operation":"create","reason":"privileged","detail":"privileged containers"}}"#);
        assert_eq!((one.operation.as_str(), one.reason.as_str(), one.count), ("create", "privileged", 1));
        assert_eq!(one.detail, "the sandbox refused docker create: privileged containers");
        let many = read(br#"{"refused":{"operation":"pull","reason":"not-offered","detail":"x","count":999}}"#);
        assert_eq!(many.count, 999);
        assert!(fix(&one.reason).contains("nothing will allow it"));
    }

    #[test]
    fn anything_else_is_one_unreadable_line() {
        for text in [
            "",
            "{}",
            "hello",
            "{\"refused\":{}}",
            "{\"refused\":{\"operation\":\"create\",\"reason\":\"privileged\",\"detail\":\"x\",\"count\":0}}",
            "{\"refused\":{\"operation\":\"create\",\"reason\":\"privileged\",\"detail\":\"x\",\"count\":-1}}",
            "{\"refused\":{\"operation\":\"Create\",\"reason\":\"privileged\",\"detail\":\"x\"}}",
            "{\"refused\":{\"operation\":\"create\",\"reason\":\"a b\",\"detail\":\"x\"}}",
            "{\"refused\":{\"operation\":\"create\",\"reason\":\"privileged\",\"detail\":\"x\"}} x",
        ] {
            let refusal = read(text.as_bytes());
            assert_eq!((refusal.reason.as_str(), refusal.count), (UNREADABLE, 1), "{text}");
        }
    }

    #[test]
    fn details_cannot_act_on_a_terminal() {
        let line = r#"{"refused":{"operation":"create","reason":"mount","detail":"a\u001b[2J\u202eb\nc"}}"#;
        let detail = read(line.as_bytes()).detail;
        assert!(!detail.contains(['\u{1b}', '\u{202e}', '\n']), "{detail:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let refusal = read(&bytes);
            prop_assert!(refusal.count >= 1 && refusal.detail.chars().count() <= MOST_DETAIL + 1);
        }
    }
}
