//! What a request into which a secret is put may carry in its headers. With the secret in it, every header is an order to
//! the host in the owner's name, and hosts know headers that change which order it is: another method, path, account or
//! object than the one that was decided on. Nobody knows all of those, so the list is closed: what is on it says what the
//! body is, which answer is wanted, or what the client is called; everything else is refused by name.
//!
//! Read in what curl, requests, axios, fetch, the client libraries of Google, Microsoft Graph, GitHub, Stripe, Notion,
//! OpenAI and Anthropic, and CalDAV clients send. Left out on purpose: `destination` (WebDAV), `x-goog-copy-source`,
//! `x-ms-copy-source`, `x-ms-rename-source` (another object), `x-amz-target` (another operation), `x-ms-range` (a part of
//! an answer), `sudo`, `stripe-account` and their like (another account).
//!
//! Headers whose names say that they are credentials, and those that reroute, are refused before, by the broker.

use crate::decision::Permit;
use crate::denial::Denial;

const PASSED: &[&str] = &[
    // What is sent.
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
    "date",
    "digest",
    "idempotency-key",
    "mime-version",
    "repr-digest",
    "slug",
    "x-idempotency-key",
    // Which answer is wanted.
    "accept",
    "accept-charset",
    "accept-datetime",
    "accept-encoding",
    "accept-language",
    "brief",
    "cache-control",
    "consistencylevel",
    "depth",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-schedule-tag-match",
    "if-unmodified-since",
    "pragma",
    "prefer",
    "priority",
    "schedule-reply",
    "want-digest",
    "x-accept-language",
    "x-locale",
    "x-ratelimit-precision",
    "x-timezone",
    "x-timezone-offset",
    // Who asks, as clients say it themselves, and how they call the request.
    "client-request-id",
    "correlation-id",
    "dnt",
    "origin",
    "referer",
    "request-id",
    "return-client-request-id",
    "save-data",
    "sdkversion",
    "sec-gpc",
    "upgrade-insecure-requests",
    "user-agent",
    "x-app-name",
    "x-client-name",
    "x-correlation-id",
    "x-request-id",
    "x-requested-with",
    "x-user-agent",
    // Google.
    "x-goog-acl",
    "x-goog-allowed-resources",
    "x-goog-api-client",
    "x-goog-content-length-range",
    "x-goog-content-sha256",
    "x-goog-custom-time",
    "x-goog-date",
    "x-goog-fieldmask",
    "x-goog-gcs-idempotency-token",
    "x-goog-hash",
    "x-goog-request-params",
    "x-goog-request-reason",
    "x-goog-resumable",
    "x-goog-storage-class",
    "x-goog-user-project",
    "x-server-timeout",
    "x-upload-content-length",
    "x-upload-content-type",
    // Others.
    "anthropic-beta",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "x-audit-log-reason",
    "x-github-next-global-id",
    "x-ms-blob-type",
    "x-ms-client-request-id",
    "x-ms-date",
    "x-ms-return-client-request-id",
    "x-ms-useragent",
    "x-stripe-client-telemetry",
    "x-stripe-client-user-agent",
];

/// Families of such headers: what browsers and client libraries say of themselves, metadata and uploads at Google.
const BEGINNINGS: &[&str] =
    &["sec-ch-ua", "sec-fetch-", "x-stainless-", "x-goog-if-", "x-goog-meta-", "x-goog-upload-"];

/// `notion-version`, `x-github-api-version`: the form of the API that a client was written for.
const VERSION: &str = "version";

/// Whether a header, by its lower-case name, is known to change nothing that is decided on.
#[must_use]
pub fn passes(name: &str) -> bool {
    let version = name.strip_suffix(VERSION).is_some_and(|before| before.ends_with('-') && before.len() > 1);
    PASSED.contains(&name) || version || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Decides on the headers of a request into which a secret is put; those of one that gets none are not looked at. `names`
/// are lower-case.
///
/// # Errors
/// `header-not-allowed`, with the name.
pub fn check<'h>(permit: &Permit, mut names: impl Iterator<Item = &'h str>) -> Result<(), Denial> {
    let Some(injection) = permit.injection() else { return Ok(()) };
    let Some(name) = names.find(|name| *name != injection.header() && !passes(name)) else { return Ok(()) };
    Err(Denial::new(
        "header-not-allowed",
        format!(
            "rule {} ({}) puts a secret into the request, and the header {name} is none of those that are known not to \
             change what is asked for",
            permit.rule(),
            permit.source()
        ),
        format!("leave {name} out; the list of headers is fixed"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use assistant_proto::config::{Inject, Place, Rule};

    use super::*;
    use crate::{Carried, Request, TierPolicy, decide};

    fn permit(inject: bool) -> Permit {
        let rule = Rule {
            id: "r".to_owned(),
            source: "tiers.yaml:7".to_owned(),
            principals: vec!["mcp-tasks-a".parse().unwrap()],
            hosts: vec!["a.example".to_owned()],
            methods: Vec::new(),
            paths: Vec::new(),
            read_only: false,
            inject: inject.then(|| Inject {
                secret: "s".parse().unwrap(),
                placeholder: "PLACEHOLDER".to_owned(),
                place: Place::Header { name: "x-own-place".to_owned(), template: "{}".to_owned() },
            }),
        };
        let policy = TierPolicy::compile(&"tasks".parse().unwrap(), &[rule]).unwrap();
        let request = Request::parse_url("GET", "https://a.example/x").unwrap();
        decide(&policy, &"mcp-tasks-a".parse().unwrap(), &request, Carried::nothing()).unwrap()
    }

    #[test]
    fn real_clients_pass() {
        let permit = permit(true);
        for (client, names) in [
            ("requests", &["user-agent", "accept", "accept-encoding", "content-type", "x-own-place"][..]),
            ("google", &["x-goog-api-client", "x-goog-user-project", "x-goog-request-params", "user-agent"]),
            ("google upload", &["x-upload-content-type", "x-goog-upload-protocol", "x-goog-if-generation-match"]),
            ("github", &["accept", "x-github-api-version", "if-none-match"]),
            ("notion", &["notion-version", "content-type"]),
            ("stripe", &["stripe-version", "idempotency-key", "x-stripe-client-user-agent"]),
            ("openai", &["openai-beta", "x-stainless-retry-count", "x-stainless-lang", "anthropic-version"]),
            ("graph", &["consistencylevel", "client-request-id", "prefer", "sdkversion"]),
            ("fetch", &["accept-language", "sec-fetch-mode", "sec-ch-ua-platform", "referer", "api-version"]),
            ("caldav", &["depth", "brief", "if-match", "prefer"]),
        ] {
            assert_eq!(check(&permit, names.iter().copied()), Ok(()), "{client}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for name in [
            "destination",
            "sudo",
            "x-goog-copy-source",
            "x-ms-copy-source",
            "x-ms-range",
            "x-amz-target",
            "stripe-account",
            "x-anything",
            "-version",
            "version",
            "via",
            "from",
            "x-goog",
        ] {
            let denial = check(&permit(true), ["accept", name].into_iter()).unwrap_err();
            assert_eq!(denial.reason, "header-not-allowed");
            assert!(denial.detail.contains(&format!("the header {name} ")) && denial.detail.contains("tiers.yaml:7"));
            assert!(denial.fix.contains(name));
            // Without a secret the host does nothing in anybody's name.
            assert_eq!(check(&permit(false), [name].into_iter()), Ok(()), "{name}");
        }
    }
}
