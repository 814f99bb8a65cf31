//! Double of an OpenAI-compatible model (<https://platform.openai.com/docs/api-reference/chat>): what it says comes
//! from [`super::script`], so that a real ZeroClaw makes real tool calls. It reads what it needs and passes over every
//! other field: gateways such as LiteLLM add their own.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::script::{self, Offered, Step};
use super::web::{Answer, Asked, answer};

/// The one name it answers to.
pub const NAME: &str = "drill-model";

/// The model.
#[derive(Debug)]
pub struct Model {
    key: Zeroizing<String>,
    /// What it is called now.
    name: Mutex<String>,
}

impl Model {
    /// A model that knows one key.
    #[must_use]
    pub fn new(key: Zeroizing<String>) -> Self {
        Self { key, name: Mutex::new(NAME.to_owned()) }
    }

    /// `POST /model/name` with `{"name": ...}`: from now on that is its only name; without one it is its own again. None for
    /// anything else.
    #[must_use]
    pub fn control(&self, method: &str, path: &str, body: &[u8]) -> Option<Value> {
        if (method, path) != ("POST", "/model/name") {
            return None;
        }
        let asked: Value = serde_json::from_slice(body).ok()?;
        let name = asked.get("name").and_then(Value::as_str).unwrap_or(NAME).to_owned();
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&name);
        Some(json!({"name": name}))
    }

    fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers one request.
    #[must_use]
    pub fn answer(&self, asked: &Asked) -> Answer {
        let shown = asked.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if shown.and_then(|shown| shown.strip_prefix("Bearer ")) != Some(self.key.as_str()) {
            return error(401, "unknown key", false);
        }
        // Gateways add a query of their own.
        let path = asked.path.split('?').next().unwrap_or_default();
        let name = self.name();
        let me = json!({"id": name, "object": "model", "created": 0, "owned_by": "drill"});
        match (asked.method.as_str(), path.trim_end_matches('/')) {
            ("GET", "/v1/models") => {
                answer(200, "application/json", json!({"object": "list", "data": [me]}).to_string(), true)
            }
            ("GET", path) if path.strip_prefix("/v1/models/") == Some(name.as_str()) => {
                answer(200, "application/json", me.to_string(), true)
            }
            ("POST", "/v1/chat/completions") => match serde_json::from_slice::<Value>(&asked.body) {
                Ok(body) if body.get("model").and_then(Value::as_str) != Some(name.as_str()) => {
                    error(404, "no such model", true)
                }
                Ok(body) => complete(&body),
                Err(_) => error(400, "the body is not JSON", true),
            },
            _ => error(404, "no such endpoint", true),
        }
    }
}

fn error(status: u16, message: &str, authorized: bool) -> Answer {
    answer(status, "application/json", json!({"error": {"message": message}}).to_string(), authorized)
}

fn complete(body: &Value) -> Answer {
    let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let from = messages.iter().rposition(|message| role(message) == "user").unwrap_or(0);
    let asked = messages.get(from).map(content).unwrap_or_default();
    let results: Vec<String> =
        messages.iter().skip(from).filter(|message| role(message) == "tool").map(content).collect();
    let has = |tool| offered(body, tool).is_some();
    let step = script::next(&asked, &results, Offered { shell: has("shell"), tasks: has("get_tasks") });
    let message = match step {
        Step::Say(text) => json!({"role": "assistant", "content": text}),
        Step::Force { name, arguments } => call(&name, &arguments),
        Step::Tool { name, arguments } => match offered(body, &name) {
            Some(name) => call(&name, &arguments),
            None => json!({"role": "assistant", "content":
                format!("I was told to call the tool {name}, but this tier does not offer it to me.")}),
        },
    };
    let finish = if message.get("tool_calls").is_some() { "tool_calls" } else { "stop" };
    if body.get("stream").and_then(Value::as_bool) == Some(true) {
        answer(200, "text/event-stream", stream(&message, finish), true)
    } else {
        let body = json!({
            "id": "chatcmpl-drill", "object": "chat.completion", "created": 0, "model": NAME,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        });
        answer(200, "application/json", body.to_string(), true)
    }
}

fn call(name: &str, arguments: &Value) -> Value {
    json!({"role": "assistant", "content": null, "tool_calls": [{
        "index": 0,
        "id": format!("call_{}", uuid::Uuid::new_v4().simple()),
        "type": "function",
        "function": {"name": name, "arguments": arguments.to_string()},
    }]})
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn content(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// The offered tool of that name, or whose name ends in `__<name>`.
fn offered(body: &Value, name: &str) -> Option<String> {
    let tools = body.get("tools").and_then(Value::as_array)?;
    let names: Vec<&str> = tools.iter().filter_map(|tool| tool.get("function")?.get("name")?.as_str()).collect();
    let suffix = format!("__{name}");
    names
        .iter()
        .find(|offered| **offered == name)
        .or_else(|| names.iter().find(|offered| offered.ends_with(&suffix)))
        .map(|name| (*name).to_owned())
}

fn stream(message: &Value, finish: &str) -> String {
    let chunk = |delta: Value, finish: Option<&str>| {
        let body = json!({
            "id": "chatcmpl-drill", "object": "chat.completion.chunk", "created": 0, "model": NAME,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        format!("data: {body}\n\n")
    };
    let mut out = chunk(json!({"role": "assistant"}), None);
    if let Some(calls) = message.get("tool_calls") {
        out.push_str(&chunk(json!({"tool_calls": calls}), None));
    } else {
        let text = message.get("content").and_then(Value::as_str).unwrap_or_default();
        for word in text.split_inclusive(' ') {
            out.push_str(&chunk(json!({"content": word}), None));
        }
    }
    out.push_str(&chunk(json!({}), Some(finish)));
    let usage = json!({
        "id": "chatcmpl-drill", "object": "chat.completion.chunk", "created": 0, "model": NAME, "choices": [],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    });
    out.push_str(&format!("data: {usage}\n\ndata: [DONE]\n\n"));
    out
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    fn asked(method: http::Method, path: &str, body: &str) -> Asked {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, http::HeaderValue::from_static("Bearer k"));
        headers.insert("x-stainless-lang", http::HeaderValue::from_static("python"));
        Asked { method, path: path.to_owned(), headers, body: body.to_owned().into() }
    }

    #[test]
    fn what_a_gateway_adds_does_not_matter() {
        let model = Model::new(Zeroizing::new("k".to_owned()));
        let status = |asked: Asked| model.answer(&asked).response.status().as_u16();
        for path in ["/v1/models", "/v1/models?limit=1", "/v1/models/", "/v1/models/drill-model"] {
            assert_eq!(status(asked(http::Method::GET, path, "")), 200, "{path}");
        }
        assert_eq!(status(asked(http::Method::GET, "/v1/models/other", "")), 404);
        let body = json!({"model": NAME, "messages": [{"role": "user", "content": [{"type": "text", "text": "!say x"}],
            "provider_specific_fields": null}], "stream": true, "stream_options": {"include_usage": true}, "user": "u",
            "extra_body": {}, "metadata": {"a": "b"}, "drop_params": true, "max_tokens": 5});
        assert_eq!(status(asked(http::Method::POST, "/v1/chat/completions?api-version=1", &body.to_string())), 200);
    }

    #[test]
    fn it_has_one_name_at_a_time() {
        let model = Model::new(Zeroizing::new("k".to_owned()));
        let status = |asked: Asked| model.answer(&asked).response.status().as_u16();
        let call = |name: &str| {
            let body = json!({"model": name, "messages": [{"role": "user", "content": "!say x"}]});
            status(asked(http::Method::POST, "/v1/chat/completions", &body.to_string()))
        };
        assert_eq!((call(NAME), call("other")), (200, 404));
        assert_eq!(model.control("POST", "/model/name", br#"{"name": "other"}"#), Some(json!({"name": "other"})));
        assert_eq!((call(NAME), call("other")), (404, 200));
        assert_eq!(model.control("POST", "/model/name", b"{}"), Some(json!({"name": NAME})));
        assert_eq!((call(NAME), model.control("GET", "/model/name", b"{}")), (200, None));
    }

    #[test]
    fn the_guide_is_that_of_the_tier() {
        let model = Model::new(Zeroizing::new("k".to_owned()));
        let said = |tools: &[&str]| {
            let tools: Vec<Value> =
                tools.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
            let body = json!({"model": NAME, "messages": [{"role": "user", "content": "hello"}], "tools": tools});
            let Answer { response, .. } =
                model.answer(&asked(http::Method::POST, "/v1/chat/completions", &body.to_string()));
            let body = response.into_body().collect().now_or_never().and_then(Result::ok).map(|body| body.to_bytes());
            String::from_utf8_lossy(&body.unwrap_or_default()).into_owned()
        };
        for (tools, part) in [
            (&["shell", "file_read", "hub__get_tasks"][..], "nats sub"),
            (&["file_read", "hub__get_tasks", "hub__create_task"], "no shell at all"),
            (&["shell", "file_read"], "run docker ps"),
        ] {
            assert!(said(tools).contains(part), "{tools:?}");
        }
    }

    #[test]
    fn tools_are_found_by_their_end() {
        let body = json!({"tools": [{"type": "function", "function": {"name": "hub__get_tasks"}}]});
        assert_eq!(offered(&body, "get_tasks").as_deref(), Some("hub__get_tasks"));
        assert_eq!(offered(&body, "tasks"), None);
    }
}
