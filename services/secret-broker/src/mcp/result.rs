//! What of a server's answer to a tool call reaches the agent: text, and whether it was an error.
//!
//! Content of other kinds becomes a sentence that says so. Images would come back to the model ingress, which refuses
//! them; links would ask the agent, or the messenger behind it, to fetch.

use serde_json::{Map, Value, json};
use service_kit::text::harmless;

/// The result that is passed on. Takes the server's apart: it may be large, and there should be one of it.
pub(super) fn rebuild(mut result: Value) -> Value {
    let is_error = is_error(&result);
    let mut take = |name: &str| result.as_object_mut().and_then(|fields| fields.shift_remove(name));
    let mut content: Vec<Value> = match take("content") {
        Some(Value::Array(parts)) => parts.into_iter().map(part).collect(),
        _ => Vec::new(),
    };
    if content.is_empty()
        && let Some(structured) = take("structuredContent")
    {
        content.push(text(structured.to_string()));
    }
    let mut rebuilt = json!({"isError": is_error});
    rebuilt["content"] = Value::Array(content);
    rebuilt
}

/// Whether the tool itself says that it failed.
pub(super) fn is_error(result: &Value) -> bool {
    result.get("isError").and_then(Value::as_bool) == Some(true)
}

fn part(part: Value) -> Value {
    let Value::Object(mut part) = part else { return left_out(None) };
    let kind = part.shift_remove("type");
    let kind = kind.as_ref().and_then(Value::as_str);
    let content = match kind {
        Some("text") => part.shift_remove("text"),
        Some("resource") => part
            .shift_remove("resource")
            .and_then(|mut resource| resource.as_object_mut().and_then(|resource| resource.shift_remove("text"))),
        _ => None,
    };
    match content {
        Some(Value::String(content)) => text(content),
        _ => left_out(kind),
    }
}

fn left_out(kind: Option<&str>) -> Value {
    let kind = harmless(kind.unwrap_or("unknown kind"), 32);
    text(format!("[content of type {kind} was left out: only text is passed to the agent]"))
}

fn text(content: String) -> Value {
    Value::Object(Map::from_iter([("type".to_owned(), json!("text")), ("text".to_owned(), Value::String(content))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_passes_and_the_rest_is_named() {
        let result = json!({
            "content": [
                {"type": "text", "text": "one", "annotations": {"audience": ["user"]}},
                {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                {"type": "resource", "resource": {"uri": "file:///x", "text": "two"}},
                {"type": "resource_link", "uri": "https://attacker.example", "name": "click"},
                {"type": "text", "text": 3},
                "odd",
            ],
            "isError": true,
            "_meta": {"x": 1},
        });
        let left_out = |kind: &str| json!({"type": "text", "text": format!("[content of type {kind} was left out: only text is passed to the agent]")});
        let said = |content: &str| json!({"type": "text", "text": content});
        assert_eq!(
            rebuild(result),
            json!({
                "content": [said("one"), left_out("image"), said("two"), left_out("resource_link"), left_out("text"), left_out("unknown kind")],
                "isError": true,
            })
        );
    }

    #[test]
    fn odd_results_are_empty_successes() {
        for odd in [json!(null), json!([]), json!({"content": "x"}), json!({"isError": "yes"})] {
            assert_eq!(rebuild(odd.clone()), json!({"content": [], "isError": false}), "{odd}");
        }
        let structured = json!({"structuredContent": {"a": 1}});
        assert_eq!(rebuild(structured)["content"][0]["text"], "{\"a\":1}");
    }
}
