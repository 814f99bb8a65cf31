//! The model ingress against a stand-in for LiteLLM: what reaches it, what comes back of its answer, and how connections
//! to it are used again without ever sending a prompt twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::string_slice, reason = "a test may panic")]

mod answers;
mod calls;
mod connections;
mod providers;
#[allow(dead_code, reason = "shared with the tests of the MCP ingress")]
#[path = "../ingress/stand.rs"]
mod stand;

use http::Response;
use serde_json::{Value, json};

use crate::stand::{Answer, DoubleBody, Setup, Stand, content};

pub(crate) const CHAT: &str = "/v1/chat/completions";

pub(crate) fn hello() -> Value {
    json!({"model": "assistant", "messages": [{"role": "user", "content": "hello"}]})
}

pub(crate) fn with_json(status: u16, body: &Value) -> Response<DoubleBody> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(content(body.to_string()))
        .unwrap()
}

/// A model that says one thing.
pub(crate) async fn saying(setup: Setup, status: u16, body: Value) -> Stand {
    Stand::new(setup, move |_| with_json(status, &body)).await
}

pub(crate) fn reason(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body["error"]["code"], body["reason"], "as OpenAI's API has it: {body}");
    let message = body["error"]["message"].as_str().unwrap();
    for field in ["detail", "fix"] {
        assert!(message.contains(body[field].as_str().unwrap()), "{body}");
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {body}");
    }
    assert_eq!(body["trace_id"].as_str().map(str::len), Some(32), "{body}");
    body["reason"].as_str().unwrap().to_owned()
}
