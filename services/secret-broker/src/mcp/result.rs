//! What of a server's answer to a tool call reaches the agent: text, and whether it was an error.
//!
//! Content of other kinds becomes a sentence that says so. Images would come back to the model ingress, which refuses
//! them; links would ask the agent, or the messenger behind it, to fetch.

use serde_json::{Value, json};
use service_kit::text::harmless;

/// The result that is passed on.
pub(super) fn rebuild(result: &Value) -> Value {
    let parts = result.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut content: Vec<Value> = parts.iter().map(part).collect();
    if content.is_empty()
        && let Some(structured) = result.get("structuredContent")
    {
        content.push(text(structured.to_string()));
    }
    json!({"content": content, "isError": is_error(result)})
}

/// Whether the tool itself says that it failed.
pub(super) fn is_error(result: &Value) -> bool {
    result.get("isError").and_then(Value::as_bool) == Some(true)
}

fn part(part: &Value) -> Value {
    let embedded = part.get("resource").and_then(|resource| resource.get("text"));
    match (part.get("type").and_then(Value::as_str), part.get("text"), embedded) {
        (Some("text"), Some(Value::String(content)), _) => text(content.clone()),
        (Some("resource"), _, Some(Value::String(content))) => text(content.clone()),
        (kind, _, _) => {
            let kind = harmless(kind.unwrap_or("unknown kind"), 32);
            text(format!("[content of type {kind} was left out: only text is passed to the agent]"))
        }
    }
}

fn text(content: String) -> Value {
    json!({"type": "text", "text": content})
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
            rebuild(&result),
            json!({
                "content": [said("one"), left_out("image"), said("two"), left_out("resource_link"), left_out("text"), left_out("unknown kind")],
                "isError": true,
            })
        );
    }

    #[test]
    fn odd_results_are_empty_successes() {
        for odd in [json!(null), json!([]), json!({"content": "x"}), json!({"isError": "yes"})] {
            assert_eq!(rebuild(&odd), json!({"content": [], "isError": false}), "{odd}");
        }
        let structured = json!({"structuredContent": {"a": 1}});
        assert_eq!(rebuild(&structured)["content"][0]["text"], "{\"a\":1}");
    }
}
