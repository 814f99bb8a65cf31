#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use assistant_proto::config::{Confidentiality, ModelRoute};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Rebuilt, rebuild};
use crate::refusal::Refusal;

fn rebuilt(body: &[u8]) -> Result<Rebuilt, Refusal> {
    let route = ModelRoute {
        provider: String::new(),
        upstream: Vec::new(),
        confidential: Confidentiality::None,
        litellm: "10.87.4.11:4000".parse().unwrap(),
        key_file: "/none".into(),
        models: vec!["assistant".to_owned()],
    };
    let offer = policy::offer(std::slice::from_ref(&route), &"tasks".parse().unwrap(), Confidentiality::None).unwrap();
    rebuild(body, offer, &"zeroclaw-tasks".parse().unwrap())
}

fn read(body: &Value) -> Result<Rebuilt, Refusal> {
    rebuilt(body.to_string().as_bytes())
}

fn sent(body: &Value) -> Value {
    serde_json::from_slice(&read(body).expect("it is a good request").request.bytes().unwrap()).unwrap()
}

fn reason(body: &Value) -> &'static str {
    read(body).expect_err(&format!("must be refused: {body}")).denial.reason
}

/// A minimal request with some fields set.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "assistant", "messages": [{"role": "user", "content": "hello"}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn with_message(message: Value) -> Value {
    with(json!({"messages": [message]}))
}

fn with_tool(tool: Value) -> Value {
    with(json!({"tools": [tool]}))
}

fn with_schema(schema: Value) -> Value {
    with_tool(json!({"type": "function", "function": {"name": "f", "parameters": schema}}))
}

/// What ZeroClaw 0.8.7 sends in the middle of a turn, by its types `NativeChatRequest` and `NativeMessage`.
fn zeroclaw() -> Value {
    json!({
        "model": "assistant",
        "messages": [
            {"role": "system", "content": "You are an assistant."},
            {"role": "user", "content": "What is due?"},
            {"role": "assistant", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "hub__get_tasks", "arguments": "{}"},
                 "extra_content": {"google": {"thought_signature": "x"}}}],
             "reasoning_content": "I should look.", "thinking_blocks": [{"type": "thinking"}]},
            {"role": "tool", "content": "nothing", "tool_call_id": "call_1", "name": "hub__get_tasks"},
            {"role": "user", "content": [{"type": "text", "text": "and now?", "cache_control": {"type": "ephemeral"}}]},
        ],
        "temperature": 0.7,
        "stream": true,
        "stream_options": {"include_usage": true},
        "reasoning_effort": "medium",
        "tools": [{"type": "function", "function": {"name": "hub__get_tasks", "description": "Lists tasks.",
            "parameters": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
                "properties": {"day": {"type": "string"}, "$id": {"type": "object"}}}}}],
        "tool_choice": "auto",
        "max_tokens": 4096,
    })
}

#[test]
fn what_zeroclaw_sends_passes_without_its_extras() {
    let read = read(&zeroclaw()).unwrap();
    assert_eq!((read.permit.model(), read.stream), ("assistant", true));
    let mut expected = zeroclaw();
    let message = expected["messages"][2].as_object_mut().unwrap();
    message.remove("thinking_blocks");
    message["tool_calls"][0].as_object_mut().unwrap().remove("extra_content");
    expected["messages"][4]["content"][0].as_object_mut().unwrap().remove("cache_control");
    expected["tools"][0]["function"]["parameters"].as_object_mut().unwrap().remove("$schema");
    assert_eq!(serde_json::from_slice::<Value>(&read.request.bytes().unwrap()).unwrap(), expected);
}

#[test]
fn every_known_field_arrives() {
    let body = with(json!({
        "top_p": 0.5, "max_completion_tokens": 9, "stop": ["a", "b"], "seed": -3, "n": 1, "presence_penalty": -1.5,
        "frequency_penalty": 2.0, "parallel_tool_calls": false, "stream": false,
        "response_format": {"type": "json_schema", "json_schema":
            {"name": "answer", "description": "d", "schema": {"type": "object", "$defs": {"a": {}}, "x": {"$ref": "#/$defs/a"}}, "strict": true}},
        "tools": [{"type": "function", "function": {"name": "f", "strict": true}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }));
    let expected = body.clone();
    assert_eq!(sent(&body), expected);
    assert_eq!(sent(&with(json!({"stop": "x"})))["stop"], "x");
    assert_eq!(
        sent(&with(json!({"response_format": {"type": "json_object"}})))["response_format"],
        json!({"type": "json_object"})
    );
}

#[test]
fn null_is_the_same_as_nothing() {
    let body = with(json!({"temperature": null, "tools": null, "tool_choice": null, "stop": null, "stream": null}));
    assert_eq!(sent(&body), sent(&with(json!({}))));
    assert_eq!(sent(&with(json!({"user": "somebody", "tool_stream": true}))), sent(&with(json!({}))));
}

/// Every field by which some gateway or vendor can be made to go elsewhere, fetch, remember or run something.
#[test]
fn no_field_leads_elsewhere() {
    for name in [
        "fallbacks",
        "context_window_fallbacks",
        "content_policy_fallbacks",
        "api_base",
        "base_url",
        "api_key",
        "api_version",
        "custom_llm_provider",
        "user_config",
        "model_list",
        "models",
        "route",
        "provider",
        "plugins",
        "transforms",
        "callbacks",
        "success_callback",
        "failure_callback",
        "callback_url",
        "webhook",
        "metadata",
        "tags",
        "litellm_params",
        "litellm_metadata",
        "litellm_session_id",
        "proxy_server_request",
        "mock_response",
        "guardrails",
        "prompt_id",
        "prompt_variables",
        "extra_body",
        "extra_headers",
        "headers",
        "functions",
        "function_call",
        "web_search_options",
        "store",
        "service_tier",
        "modalities",
        "audio",
        "prediction",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "thinking",
        "chat_template_kwargs",
        "mcp_servers",
        "file_ids",
        "image_url",
        "url",
        "Model",
        "MESSAGES",
        "",
        "__proto__",
    ] {
        let mut body = with(json!({}));
        body[name] = json!("https://attacker.example");
        assert_eq!(reason(&body), "field-not-allowed", "{name}");
        body[name] = json!([{"url": "https://attacker.example"}]);
        assert_eq!(reason(&body), "field-not-allowed", "{name}");
    }
}

#[test]
fn nothing_is_fetched() {
    for kind in ["image_url", "input_image", "image", "video_url", "audio_url", "file", "input_file", "document"] {
        for role in ["system", "user", "assistant", "tool"] {
            let part = json!({"type": kind, "image_url": {"url": "https://attacker.example/x"}});
            let message = json!({"role": role, "content": [{"type": "text", "text": "look"}, part]});
            assert_eq!(reason(&with_message(message)), "url-not-allowed", "{kind} {role}");
        }
    }
    for reference in ["https://attacker.example/s.json", "//attacker.example", "s.json", "file:///etc/passwd", ""] {
        for key in ["$ref", "$dynamicRef", "$recursiveRef"] {
            assert_eq!(
                reason(&with_schema(json!({"properties": {"a": {"items": [{key: reference}]}}}))),
                "url-not-allowed"
            );
        }
        let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": reference}}});
        assert_eq!(reason(&with(json!({"response_format": format}))), "url-not-allowed");
    }
    let named = sent(&with_schema(
        json!({"$schema": "https://a.example", "$id": "https://a.example", "properties": {"$ref": {"type": "string"}}}),
    ));
    assert_eq!(named["tools"][0]["function"]["parameters"], json!({"properties": {"$ref": {"type": "string"}}}));
}

#[test]
fn nothing_is_hosted() {
    for kind in
        ["web_search", "web_search_preview", "file_search", "code_interpreter", "mcp", "computer_use", "Function", ""]
    {
        let tool = json!({"type": kind, "function": {"name": "f"}, "server_url": "https://attacker.example"});
        assert_eq!(reason(&with_tool(tool)), "hosted-tool", "{kind}");
    }
    assert_eq!(reason(&with_tool(json!({"function": {"name": "f"}}))), "malformed-request");
    let smuggled = json!({"type": "function", "function": {"name": "f"}, "server_url": "https://attacker.example"});
    assert_eq!(reason(&with_tool(smuggled)), "field-not-allowed");
    let smuggled = json!({"type": "function", "function": {"name": "f", "url": "https://attacker.example"}});
    assert_eq!(reason(&with_tool(smuggled)), "field-not-allowed");
}

#[test]
fn shapes_are_exact() {
    for (fields, expected) in [
        (json!({"model": "gpt-other"}), "model-not-offered"),
        (json!({"model": "upstream-model"}), "model-not-offered"),
        (json!({"model": null}), "malformed-request"),
        (json!({"model": ["assistant"]}), "malformed-request"),
        (json!({"messages": []}), "malformed-request"),
        (json!({"messages": "hello"}), "malformed-request"),
        (json!({"n": 2}), "malformed-request"),
        (json!({"n": 0}), "malformed-request"),
        (json!({"n": 1.5}), "malformed-request"),
        (json!({"temperature": "0.5"}), "malformed-request"),
        (json!({"temperature": 3}), "malformed-request"),
        (json!({"max_tokens": -1}), "malformed-request"),
        (json!({"max_tokens": 1e12}), "malformed-request"),
        (json!({"stream": "true"}), "malformed-request"),
        (json!({"stream_options": {"include_usage": true, "callback": "x"}}), "field-not-allowed"),
        (json!({"stop": [1]}), "malformed-request"),
        (json!({"seed": 1.5}), "malformed-request"),
        (json!({"reasoning_effort": "extreme"}), "malformed-request"),
        (json!({"response_format": {"type": "xml"}}), "malformed-request"),
        (json!({"response_format": {"type": "text", "url": "x"}}), "field-not-allowed"),
        (json!({"tool_choice": "always"}), "malformed-request"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "unoffered"}}}), "malformed-request"),
        (json!({"tool_choice": {"type": "mcp", "server_label": "x"}}), "malformed-request"),
    ] {
        assert_eq!(reason(&with(fields.clone())), expected, "{fields}");
    }
    for (message, expected) in [
        (json!({"role": "developer", "content": "x"}), "malformed-request"),
        (json!({"role": "function", "content": "x", "name": "f"}), "malformed-request"),
        (json!({"content": "x"}), "malformed-request"),
        (json!({"role": "user"}), "malformed-request"),
        (json!({"role": "user", "content": {"type": "text", "text": "x"}}), "malformed-request"),
        (json!({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}), "malformed-request"),
        (json!({"role": "user", "content": [{"type": "text", "text": "x", "url": "y"}]}), "field-not-allowed"),
        (json!({"role": "user", "content": "x", "tool_calls": []}), "field-not-allowed"),
        (json!({"role": "tool", "content": "x"}), "malformed-request"),
        (json!({"role": "tool", "content": "x", "tool_call_id": "a b"}), "malformed-request"),
        (json!({"role": "assistant", "audio": {"id": "x"}}), "field-not-allowed"),
        (json!({"role": "assistant", "function_call": {"name": "f"}}), "field-not-allowed"),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "mcp", "function": {"name": "f"}}]}),
            "malformed-request",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]}),
            "malformed-request",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}),
            "malformed-request",
        ),
    ] {
        assert_eq!(reason(&with_message(message.clone())), expected, "{message}");
    }
}

#[test]
fn bodies_are_read_in_one_way() {
    for body in [
        r#"{"model":"assistant","model":"other","messages":[{"role":"user","content":"x"}]}"#,
        r#"{"model":"assistant","messages":[{"role":"user","content":"x","content":"y"}]}"#,
        r#"{"model":"assistant","messages":[{"role":"user","content":"x"}]}{}"#,
        "",
    ] {
        assert_eq!(rebuilt(body.as_bytes()).unwrap_err().denial.reason, "not-json", "{body}");
    }
    assert_eq!(rebuilt(b"[]").unwrap_err().denial.reason, "malformed-request");
}

#[test]
fn refusals_repeat_no_content() {
    let secret = "the content of a prompt";
    for body in [
        with(json!({"temperature": secret})),
        with(json!({"model": secret})),
        with(json!({"unknown": secret})),
        with_message(json!({"role": secret, "content": secret})),
        with_message(json!({"role": "user", "content": [{"type": secret}]})),
        with_schema(json!({"$ref": secret})),
    ] {
        let refusal = read(&body).unwrap_err();
        let text = format!("{} {}", refusal.denial.detail, refusal.denial.fix);
        assert!(!text.contains(secret), "{text}");
    }
}

proptest! {
    /// Whatever is put anywhere into a good request: it is refused, or what is sent has no key and no string that leads
    /// elsewhere.
    #[test]
    fn a_foreign_key_never_arrives(path in proptest::collection::vec(0_usize..6, 0..8), key in "[a-z_]{1,12}") {
        let mut body = zeroclaw();
        let mut pointer = String::new();
        for step in path {
            let next = match body.pointer(&pointer).unwrap() {
                Value::Object(map) if !map.is_empty() => map.keys().nth(step % map.len()).unwrap().clone(),
                Value::Array(items) if !items.is_empty() => (step % items.len()).to_string(),
                _ => break,
            };
            let deeper = format!("{pointer}/{}", next.replace('~', "~0").replace('/', "~1"));
            if !matches!(body.pointer(&deeper), Some(Value::Object(_) | Value::Array(_))) {
                break;
            }
            pointer = deeper;
        }
        if let Some(Value::Object(map)) = body.pointer_mut(&pointer) {
            map.insert(format!("x_{key}"), json!("https://attacker.example"));
        }
        if let Ok(read) = read(&body) {
            let mut sent: Value = serde_json::from_slice(&read.request.bytes().unwrap()).unwrap();
            // JSON Schema is the one place where keys are the caller's own: they are data for the model.
            sent["tools"][0]["function"]["parameters"] = Value::Null;
            prop_assert!(!sent.to_string().contains("attacker.example"), "{}", sent);
        }
    }

    #[test]
    fn anything_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(rebuilt(&bytes).is_err());
    }
}
