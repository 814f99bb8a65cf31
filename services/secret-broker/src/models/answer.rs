//! What comes back from LiteLLM: by which way it came, which statuses pass, and a body that is searched on its way.
//!
//! The key of the model's host is LiteLLM's, not the broker's, so an answer cannot be searched for it. A host has every
//! opportunity to say its own key back in an answer that it means as one, and it is believed not to. But the texts of
//! errors quote keys, addresses and accounts as a matter of course, so of an error only its status passes, with words of
//! ours; and no header passes as it came.

use std::sync::Arc;
use std::time::Duration;

use assistant_proto::event::Layer;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use policy::Denial;
use service_kit::text::harmless_line;
use tokio::time::timeout;

use super::litellm::{self, LiteLlm};
use crate::account::Account;
use crate::body::{Body, bounded};
use crate::ingress::wire::is_media_type;
use crate::refusal::Refusal;
use crate::rewrite::{Scrubber, scrub_body};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// A streamed answer of a model has some megabytes at most.
const BODY_MOST: u64 = 64 * 1024 * 1024;
/// Of an error's text, as far as it is looked at, and for how long it is waited for.
const ERROR_MOST: u64 = 64 * 1024;
const ERROR_WITHIN: Duration = Duration::from_secs(5);
/// How LiteLLM, and OpenAI's API behind it, say that a prompt is longer than the model can read.
const TOO_LONG: [&[u8]; 2] = [b"ContextWindowExceededError", b"context_length_exceeded"];

const API_BASE: &str = "x-litellm-model-api-base";
const API_BASE_MOST: usize = 256;
/// How many other ways LiteLLM tried. There is none that a prompt may take instead of its own.
const FALLBACKS: &str = "x-litellm-attempted-fallbacks";
/// The TEE proxy passes an answer undecrypted where its upstream says that it is not encrypted. LiteLLM hands headers of
/// the model's host on under a name of its own.
const ENCRYPTED: [&str; 2] = ["privatemode-encrypted", "llm_provider-privatemode-encrypted"];

/// Makes the tier's answer from LiteLLM's.
///
/// # Errors
/// 502 for what came by another way than the chosen one (which is counted), and for what cannot be passed on: a refused
/// key, redirects, encoded or non-JSON content.
pub(super) async fn pass(
    upstream: Response<Incoming>,
    litellm: &LiteLlm,
    model: &str,
    scrubber: &Arc<Scrubber>,
    mut account: Account,
) -> Result<Response<Body>, Refusal> {
    let container = litellm::container(litellm.class());
    let (head, body) = upstream.into_parts();
    let status = head.status.as_u16();
    account.status = status;
    account.went_to(&api_base(&head.headers));
    check_way(&head.headers, container)?;
    let failed = |reason, detail: String, fix: String| {
        Err(Refusal::elsewhere(StatusCode::BAD_GATEWAY, Denial::new(reason, detail, fix)))
    };
    match head.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return failed(
                "model-key-refused",
                format!("the model's host refused the stack's key with status {status}"),
                format!(
                    "put a valid key into .env and run deploy/up.sh; `docker logs {container}` says which one it was"
                ),
            );
        }
        StatusCode::OK => {}
        status if status.is_client_error() || status.is_server_error() => {
            let not_listed = litellm.not_listed(model);
            if not_listed.is_none() && matches!(status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) {
                litellm.doubt();
            }
            return Ok(error(status, &head.headers, body, container, not_listed, account).await);
        }
        _ => {
            return failed(
                "model-status",
                format!("the model answered with status {status}, which is never passed on"),
                format!("check OPENAI_BASE_URL in .env: it has to be the API itself; see `docker logs {container}`"),
            );
        }
    }
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let known = [JSON, EVENTS].into_iter().find(|known| is_media_type(content_type, known));
    let encoded = head.headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity");
    let Some(known) = known.filter(|_| !encoded) else {
        return failed(
            "model-content",
            format!("the model answered with status {status} and something other than plain JSON or events"),
            format!("check OPENAI_BASE_URL in .env: it has to be the API itself; see `docker logs {container}`"),
        );
    };
    let mut response = Response::new(scrub_body(scrubber, account.follow(bounded(body), BODY_MOST)));
    *response.status_mut() = head.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(known));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// An error as the tier is told of it: its status, and nothing that LiteLLM or the model's host said. One thing is read in
/// their text, because clients mend it by themselves: that the prompt is too long. Where the provider does not list the
/// model, that is most likely why, and it is said in those words.
async fn error(
    status: StatusCode,
    headers: &HeaderMap,
    body: Incoming,
    container: &str,
    not_listed: Option<Denial>,
    account: Account,
) -> Response<Body> {
    let trace_id = account.attempt().trace_id();
    let text = timeout(ERROR_WITHIN, account.follow(bounded(body), ERROR_MOST).collect()).await;
    let text = text.ok().and_then(Result::ok).map(|text| text.to_bytes()).unwrap_or_default();
    let too_long =
        status.is_client_error() && TOO_LONG.iter().any(|needle| memchr::memmem::find(&text, needle).is_some());
    let (reason, detail, fix) = match status {
        _ if let Some(Denial { reason, detail, fix }) = not_listed.filter(|_| !too_long) => {
            (reason, format!("{detail}; the call failed with status {}", status.as_u16()), fix)
        }
        _ if too_long => (
            "model-context-exceeded",
            "the prompt exceeds the context window of this model".to_owned(),
            "send less of the conversation".to_owned(),
        ),
        StatusCode::TOO_MANY_REQUESTS => (
            "model-busy",
            "the model's host takes no more calls now".to_owned(),
            format!("wait and ask again; if it stays, see `docker logs {container}`"),
        ),
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => (
            "model-failed",
            format!("the model's host, or LiteLLM, failed with status {}", status.as_u16()),
            format!("ask again; `docker logs {container}` may say why"),
        ),
        status => (
            "model-refused",
            format!("the model's host did not accept the call and answered with status {}", status.as_u16()),
            format!("see `docker logs {container}` for what it said; its words are not passed on"),
        ),
    };
    let mut response = Refusal::elsewhere(status, Denial::new(reason, detail, fix)).response(Layer::Models, &trace_id);
    if let Some(seconds) = retry_after(headers) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// After how many seconds to try again, if that is what the header says.
fn retry_after(headers: &HeaderMap) -> Option<u32> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.parse().ok().filter(|seconds| *seconds <= 24 * 60 * 60)
}

/// Whether the answer came by the way that was chosen for the prompt. What is not recognised counts as another.
fn check_way(headers: &HeaderMap, container: &str) -> Result<(), Refusal> {
    let all = |name: &str, expected: &str| {
        let values = headers.get_all(name);
        values.iter().all(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(expected.as_bytes()))
    };
    let refuse = |reason, detail: &str, fix: String| {
        Err(Refusal::new(StatusCode::BAD_GATEWAY, Denial::new(reason, detail, fix)))
    };
    if !all(FALLBACKS, "0") {
        return refuse(
            "model-fallback",
            "LiteLLM took another way than the one it was asked for, and its answer is not passed on",
            format!("take the fallbacks out of the configuration of {container}; nothing allows them"),
        );
    }
    if !ENCRYPTED.iter().all(|name| all(name, "true")) {
        return refuse(
            "answer-not-encrypted",
            "the model's host answered unencrypted where answers have to be, so it may not be the attested one",
            "nothing allows this; ask again, and tell the model's provider if it stays".to_owned(),
        );
    }
    Ok(())
}

/// Where LiteLLM says the prompt went, without what may be a credential in it.
fn api_base(headers: &HeaderMap) -> String {
    let text = headers.get(API_BASE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let plain = text.split(['?', '#']).next().unwrap_or_default();
    let plain = match plain.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or_default()),
        None => plain.rsplit('@').next().unwrap_or_default().to_owned(),
    };
    harmless_line(&plain, API_BASE_MOST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn only_the_chosen_way_is_accepted() {
        for (lines, expected) in [
            (&[][..], None),
            (&[(FALLBACKS, "0")], None),
            (&[(FALLBACKS, "1")], Some("model-fallback")),
            (&[(FALLBACKS, "0"), (FALLBACKS, "2")], Some("model-fallback")),
            (&[(FALLBACKS, "")], Some("model-fallback")),
            (&[(FALLBACKS, "None")], Some("model-fallback")),
            (&[(ENCRYPTED[0], "true")], None),
            (&[(ENCRYPTED[0], "false")], Some("answer-not-encrypted")),
            (&[(ENCRYPTED[0], "False ")], Some("answer-not-encrypted")),
            (&[(ENCRYPTED[1], "false")], Some("answer-not-encrypted")),
            (&[(ENCRYPTED[0], "true"), (ENCRYPTED[0], "false")], Some("answer-not-encrypted")),
            (&[(ENCRYPTED[0], "perhaps")], Some("answer-not-encrypted")),
        ] {
            let outcome = check_way(&headers(lines), "assistant-litellm");
            assert_eq!(outcome.err().map(|refusal| refusal.denial.reason), expected, "{lines:?}");
        }
    }

    #[test]
    fn no_credential_is_recorded() {
        for (value, expected) in [
            ("https://model.example/v1", "https://model.example/v1"),
            ("https://user:pw@model.example/v1?key=k#f", "https://model.example/v1"),
            ("user:pw@model.example", "model.example"),
            ("http://10.0.0.1:8080/v1/", "http://10.0.0.1:8080/v1/"),
        ] {
            assert_eq!(api_base(&headers(&[(API_BASE, value)])), expected);
        }
        assert_eq!(api_base(&HeaderMap::new()), "");
    }
}
