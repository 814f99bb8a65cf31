//! What a page is answered with, and the headers every answer has.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::files::File;
use super::paths::{HOME, Refusal};

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Of every answer. What is no page may load nothing at all.
const HEADERS: &[(&str, &str)] = &[
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-permitted-cross-domain-policies", "none"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
];
const NO_PAGE: &str = "default-src 'none'; frame-ancestors 'none'";
const POLICY: &str = "content-security-policy";
const NEVER_STORED: &str = "no-store";
/// The name changes with the content.
const STORED: &str = "private, max-age=31536000, immutable";

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(NEVER_STORED));
    headers.insert(POLICY, HeaderValue::from_static(NO_PAGE));
    answer
}

/// JSON.
pub(super) fn json(status: StatusCode, value: &Value) -> Answer {
    answer(status, "application/json", value.to_string().into())
}

/// What went wrong, in the shape the page knows from ZeroClaw.
pub(super) fn problem(status: StatusCode, code: &str, message: &str) -> Answer {
    json(status, &json!({"code": code, "message": message, "error": code}))
}

/// A refusal.
pub(super) fn refused(why: Refusal) -> Answer {
    let (status, code, message) = why.told();
    let mut answer = problem(StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN), code, message);
    if why == Refusal::Method {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    answer
}

/// A file of the dashboard.
pub(super) fn file(file: &File) -> Answer {
    let mut answer = answer(StatusCode::OK, file.kind, file.bytes.clone());
    if file.fixed {
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(STORED));
    }
    answer
}

/// The page, with its policy.
pub(super) fn page(page: Bytes, policy: &str) -> Answer {
    let mut answer = answer(StatusCode::OK, "text/html; charset=utf-8", page);
    if let Ok(policy) = HeaderValue::from_str(policy) {
        answer.headers_mut().insert(POLICY, policy);
    }
    answer
}

/// To where a person begins.
pub(super) fn home() -> Answer {
    let mut answer = answer(StatusCode::FOUND, "text/plain; charset=utf-8", Bytes::new());
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static(HOME));
    answer
}
