//! Which names are names of credentials, by common usage. One answer for headers and query parameters, in requests and
//! answers, whatever the spelling: `X-Api-Key`, `api_key`, `apiKey`, `apikey[]`.
//!
//! It looks at names only. A credential in the path or in a body is not found here.

use http::header::{HeaderMap, HeaderName};

/// Makes a name a credential's wherever it occurs in it: no harmless name is made of these.
const ANYWHERE: &[&str] = &[
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "cookie",
    "session",
    "signature",
    "authoriz",
    "authentication",
    "oauth",
    "xauth",
    "apikey",
    "accesskey",
    "bearer",
];
/// Does so as a word of its own only: `author`, `keyword` and `design` are harmless.
const AS_WORD: &[&str] = &["key", "auth", "sig", "jwt", "pwd", "pass"];
/// Whole names that hold such a word and are credentials nowhere: positions in lists, and the key by which a server knows
/// a repeated request.
const HARMLESS: &[&str] = &[
    "pagetoken",
    "nextpagetoken",
    "prevpagetoken",
    "nexttoken",
    "continuationtoken",
    "synctoken",
    "idempotencykey",
    "xidempotencykey",
    "sortkey",
    "partitionkey",
    "surrogatekey",
];

/// Whether a header or query parameter of this name is a credential.
#[must_use]
pub fn is_credential(name: &str) -> bool {
    let words = words(name);
    let joined = words.concat();
    !HARMLESS.contains(&joined.as_str())
        && (ANYWHERE.iter().any(|part| joined.contains(part))
            || words.iter().any(|word| AS_WORD.contains(&word.as_str())))
}

/// Drops, from the head of an answer to a request with an injected secret, what a host issues in exchange for one: a
/// cookie or token would be as good as the secret, and it is not masked. Says how many values that were.
pub fn drop_issued(headers: &mut HeaderMap) -> usize {
    let issued: Vec<HeaderName> = headers.keys().filter(|name| is_issued(name.as_str())).cloned().collect();
    let before = headers.len();
    for name in issued {
        headers.remove(name);
    }
    before.saturating_sub(headers.len())
}

fn is_issued(name: &str) -> bool {
    matches!(name, "set-cookie" | "set-cookie2" | "authorization" | "authentication-info" | "token")
        || name.ends_with("-token")
        || name.starts_with("x-auth-")
}

/// A name cut at everything that is no letter or digit and where lower case changes to upper, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for character in name.chars() {
        if !character.is_ascii_alphanumeric() || (was_lower && character.is_ascii_uppercase()) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (character.is_ascii_alphanumeric(), words.last_mut()) {
            word.push(character.to_ascii_lowercase());
        }
        was_lower = character.is_ascii_lowercase() || character.is_ascii_digit();
    }
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn credentials_in_any_spelling() {
        for name in [
            "token",
            "key",
            "auth",
            "sig",
            "signature",
            "session",
            "access_token",
            "accessToken",
            "ACCESS_TOKEN",
            "api_key",
            "api-key",
            "apikey",
            "apiKey",
            "APIKey",
            "ApiKey",
            "secret",
            "client_secret",
            "password",
            "jwt",
            "X-Amz-Signature",
            "X-Amz-Credential",
            "x-goog-api-key",
            "x-functions-key",
            "ocp-apim-subscription-key",
            "authorization",
            "x-authorization",
            "cookie",
            "session_id",
            "sessionid",
            "PHPSESSION",
            "x-auth",
            "x-xauthtoken",
            "authtoken",
            "oauth_verifier",
            "token[]",
            "user.password",
            "user[password]",
            "pwd",
            "pass",
            "x_api_key",
            "refresh-token",
            "x-csrf-token",
            "id_token",
        ] {
            assert!(is_credential(name), "{name}");
        }
    }

    #[test]
    fn harmless_names() {
        for name in [
            "",
            "code",
            "state",
            "q",
            "page",
            "pageToken",
            "page_token",
            "nextPageToken",
            "idempotency-key",
            "Idempotency-Key",
            "sortKey",
            "author",
            "authors",
            "keyword",
            "keywords",
            "design",
            "signal",
            "passage",
            "compass",
            "startkey",
            "accept",
            "user-agent",
            "content-type",
            "if-none-match",
            "monkey",
            "origin",
            "sec-fetch-site",
            "x-request-id",
        ] {
            assert!(!is_credential(name), "{name}");
        }
    }

    #[test]
    fn what_a_host_issues_is_dropped_and_counted() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("authorization", "Bearer x"),
            ("x-refresh-token", "x"),
            ("x-csrf-token", "x"),
            ("x-auth-user", "x"),
            ("x-ratelimit-remaining-tokens", "5"),
            ("content-type", "text/plain"),
            ("etag", "x"),
        ] {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        assert_eq!(drop_issued(&mut headers), 6);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "etag", "x-ratelimit-remaining-tokens"]);
    }
}
