//! What of a message's head belongs to one connection, and what goes on to the next. Framing and connection headers are
//! made anew on each leg, never copied (RFC 9110, section 7.6.1).

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    IF_RANGE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::{StatusCode, Version};
use policy::Denial;

use crate::refusal::Refusal;

/// What requests that the broker makes in its own name, or for a tier that only reads, say of their sender.
pub(crate) const USER_AGENT_VALUE: &str = "secure-assistant-stack";

const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    // Advertises other ways to the host; there are none.
    ALT_SVC,
];

/// Headers of a request that the broker makes itself or that must not reach the host: ranges would let a tier read a
/// secret in two answers, each of them clean, and a tier's own trace context would claim a place in somebody's trace.
const OWN_OF_REQUEST: [HeaderName; 9] = [
    HOST,
    CONTENT_LENGTH,
    ACCEPT_ENCODING,
    EXPECT,
    RANGE,
    IF_RANGE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
];

/// Removes what belongs to the connection only, including what `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        remove_all(headers, name);
    }
}

/// The headers of a request as they go on, with `accept-encoding: identity`: what comes back has to be readable.
#[must_use]
pub fn of_request(mut headers: HeaderMap) -> HeaderMap {
    remove_hop_by_hop(&mut headers);
    for name in &OWN_OF_REQUEST {
        remove_all(&mut headers, name);
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// Takes out what a rule that only reads does not let through; what it refuses was refused before. Who asks is the same
/// for all tiers.
pub fn keep_for_reading(headers: &mut HeaderMap) {
    let dropped: Vec<HeaderName> =
        headers.keys().filter(|name| !policy::reading::passes(name.as_str())).cloned().collect();
    for name in &dropped {
        remove_all(headers, name);
    }
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
}

/// The headers of an answer as they go back. `keep_length` where the body's own length says nothing (HEAD, 304).
pub fn of_answer(headers: &mut HeaderMap, keep_length: bool) {
    let framed_otherwise = headers.contains_key(TRANSFER_ENCODING);
    remove_hop_by_hop(headers);
    if !keep_length || framed_otherwise {
        remove_all(headers, &CONTENT_LENGTH);
    }
}

/// Refuses what the next hop could read differently, and what would turn the connection into something that cannot be
/// looked into.
///
/// # Errors
/// `upgrade-refused`, `conflicting-length`, `malformed-request`.
pub fn check_request(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(UPGRADE) {
        return Err(Refusal::forbidden(
            "upgrade-refused",
            "the request asks to change the protocol, and what follows could not be looked into",
            "use plain HTTPS requests; WebSocket and HTTP/2 upgrades are not supported",
        ));
    }
    if version != Version::HTTP_11 && version != Version::HTTP_10 {
        return Err(Refusal::bad_request("malformed-request", "the request is not HTTP/1.1", "use HTTP/1.1"));
    }
    let mut coding = headers.get_all(TRANSFER_ENCODING).iter();
    let first = coding.next();
    let plain = first.is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked")) && coding.next().is_none();
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    if !plain || lengths > 1 || (lengths == 1 && first.is_some()) {
        return Err(conflicting_length());
    }
    Ok(())
}

/// For requests whose end can be read in more than one way; see `framing`.
#[must_use]
pub fn conflicting_length() -> Refusal {
    Refusal::bad_request(
        "conflicting-length",
        "where the request ends can be read in more than one way",
        "send either content-length or transfer-encoding: chunked, once, and end each line with CRLF",
    )
}

/// Refuses an answer that cannot be looked into.
///
/// # Errors
/// 502 `answer-encoded`, `answer-partial` or `answer-upgraded`.
pub fn check_answer(status: StatusCode, headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse =
        |reason, detail: &str, fix: &str| Err(Refusal::new(StatusCode::BAD_GATEWAY, Denial::new(reason, detail, fix)));
    let identity = |value: &HeaderValue| {
        let value = value.as_bytes().trim_ascii();
        value.is_empty() || value.eq_ignore_ascii_case(b"identity")
    };
    let chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if !headers.get_all(CONTENT_ENCODING).iter().all(identity)
        || !headers.get_all(TRANSFER_ENCODING).iter().all(chunked)
    {
        return refuse(
            "answer-encoded",
            "the host sent a compressed answer although it was asked not to, and secrets could not be found in it",
            "nothing allows this for now",
        );
    }
    if status == StatusCode::PARTIAL_CONTENT {
        return refuse(
            "answer-partial",
            "the host sent a part of something although nobody asked for a part, and a secret could lie across parts",
            "nothing allows this",
        );
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return refuse(
            "answer-upgraded",
            "the host changed the protocol although nobody asked it to",
            "nothing allows this",
        );
    }
    Ok(())
}

fn remove_all(headers: &mut HeaderMap, name: &HeaderName) {
    // `remove` takes every value of the name.
    headers.remove(name);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        map.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_belongs_to_a_connection_stays_there() {
        let map = of_request(headers(&[
            ("connection", "close, X-Secret-Hop"),
            ("connection", "x-other"),
            ("x-secret-hop", "1"),
            ("x-other", "1"),
            ("keep-alive", "5"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers"),
            ("host", "a.example"),
            ("content-length", "5"),
            ("accept-encoding", "gzip"),
            ("range", "bytes=0-1"),
            ("expect", "100-continue"),
            ("x-api-token", "p"),
            ("accept", "*/*"),
        ]));
        let mut left = names(&map);
        left.sort_unstable();
        assert_eq!(left, ["accept", "accept-encoding", "x-api-token"]);
        assert_eq!(map[ACCEPT_ENCODING], "identity");
    }

    #[test]
    fn a_reader_says_little() {
        let mut map = headers(&[
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
            ("if-none-match", "\"e\""),
            ("user-agent", "curl/8.5.0 on host x"),
            ("referer", "https://a.example/"),
            ("cookie", "a=b"),
        ]);
        keep_for_reading(&mut map);
        let mut left = names(&map);
        left.sort_unstable();
        assert_eq!(left, ["accept", "accept-encoding", "if-none-match", "user-agent"]);
        assert_eq!(map[USER_AGENT], "secure-assistant-stack");
    }

    #[test]
    fn ambiguous_requests() {
        for (lines, expected) in [
            (vec![("content-length", "5")], None),
            (vec![("transfer-encoding", "chunked")], None),
            (vec![("transfer-encoding", "gzip, chunked")], Some("conflicting-length")),
            (vec![("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Some("conflicting-length")),
            (vec![("transfer-encoding", "chunked"), ("content-length", "5")], Some("conflicting-length")),
            (vec![("content-length", "5"), ("content-length", "5")], Some("conflicting-length")),
            (vec![("upgrade", "websocket"), ("connection", "upgrade")], Some("upgrade-refused")),
        ] {
            let outcome = check_request(Version::HTTP_11, &headers(&lines));
            assert_eq!(outcome.err().map(|refusal| refusal.denial.reason), expected, "{lines:?}");
        }
        assert!(check_request(Version::HTTP_2, &HeaderMap::new()).is_err());
    }

    #[test]
    fn answers_have_to_be_readable() {
        for (status, lines, expected) in [
            (200, vec![("content-encoding", "identity")], None),
            (200, vec![("transfer-encoding", "chunked")], None),
            (200, vec![("content-encoding", "gzip")], Some("answer-encoded")),
            (200, vec![("content-encoding", "identity"), ("content-encoding", "br")], Some("answer-encoded")),
            (200, vec![("transfer-encoding", "gzip, chunked")], Some("answer-encoded")),
            (206, vec![], Some("answer-partial")),
            (101, vec![], Some("answer-upgraded")),
            (302, vec![("location", "https://elsewhere.example/")], None),
        ] {
            let outcome = check_answer(StatusCode::from_u16(status).unwrap(), &headers(&lines));
            assert_eq!(outcome.err().map(|refusal| refusal.denial.reason), expected, "{status} {lines:?}");
        }
    }

    #[test]
    fn lengths_of_answers() {
        let mut kept = headers(&[("content-length", "5"), ("alt-svc", "h3"), ("connection", "keep-alive")]);
        of_answer(&mut kept, true);
        assert_eq!(names(&kept), ["content-length"]);
        let mut chunked = headers(&[("content-length", "5"), ("transfer-encoding", "chunked")]);
        of_answer(&mut chunked, true);
        assert!(chunked.is_empty());
    }
}
