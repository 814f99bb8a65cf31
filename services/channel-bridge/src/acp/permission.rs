//! `session/request_permission`: what is asked, and what kind of question it is. Pure.
//!
//! The request describes itself, and its author counts as hostile: the text says what the agent *claims* it will do. The
//! walls around the tier hold whatever is approved here.

use aws_lc_rs::digest;
use serde_json::{Map, Value};

use super::message::{Malformed, text};

/// Options an honest agent offers: four for an approval, a handful for a question.
const MOST_OPTIONS: usize = 32;
/// The only option that is ever chosen for YES. `allow-always` would hand the agent a standing permission.
pub(super) const ALLOW_ONCE: &str = "allow-once";
/// The option for NO, for silence and for everything that goes wrong.
pub(super) const REJECT_ONCE: &str = "reject-once";

/// What the agent wants a person to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionRequest {
    /// Everything it says about the action: title, then content, then raw input. Raw text of the agent.
    pub action: String,
    /// SHA-256 over the whole `toolCall` as it was parsed. A decision is bound to it.
    pub fingerprint: [u8; 32],
    options: Vec<PermissionOption>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PermissionOption {
    id: String,
    kind: String,
    name: String,
}

/// What kind of question a permission request is, by its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// ZeroClaw's approval gate: may this tool run?
    Approval,
    /// The tool `ask_user`: choices in words. The bridge shows them; the answer is the next message.
    Choice(Vec<String>),
    /// Options the bridge does not know: refused.
    Unknown,
}

impl PermissionRequest {
    /// Reads the parameters of `session/request_permission`.
    pub(super) fn parse(params: &Map<String, Value>) -> Result<Self, Malformed> {
        let tool_call = params.get("toolCall").filter(|value| value.is_object()).ok_or(Malformed::Params)?;
        let offered = params.get("options").and_then(Value::as_array).ok_or(Malformed::Params)?;
        if offered.is_empty() || offered.len() > MOST_OPTIONS {
            return Err(Malformed::Params);
        }
        let mut options = Vec::with_capacity(offered.len());
        for option in offered {
            let option = option.as_object().ok_or(Malformed::Params)?;
            options.push(PermissionOption {
                id: text(option, "optionId")?.to_owned(),
                kind: text(option, "kind")?.to_owned(),
                name: text(option, "name")?.to_owned(),
            });
        }
        Ok(Self { action: action(tool_call), fingerprint: fingerprint(tool_call), options })
    }

    /// Which kind it is. An approval needs both ways out: without `reject-once` there would be no safe answer.
    #[must_use]
    pub fn question(&self) -> Question {
        let has = |id: &str, kind: &str| self.options.iter().any(|option| option.id == id && option.kind == kind);
        if has(ALLOW_ONCE, "allow_once") && has(REJECT_ONCE, "reject_once") {
            Question::Approval
        } else if self.options.iter().all(|option| option.id.starts_with("choice-")) {
            Question::Choice(self.options.iter().map(|option| option.name.clone()).collect())
        } else {
            Question::Unknown
        }
    }
}

/// Everything the request says about the action. ZeroClaw cuts each argument after 80 characters for most tools
/// (`summarize_args`); an ellipsis is therefore pointed out.
fn action(tool_call: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(title) = tool_call.get("title").and_then(Value::as_str) {
        parts.push(title.to_owned());
    }
    let content = tool_call.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for item in content {
        match item.get("content").and_then(|content| content.get("text")).and_then(Value::as_str) {
            Some(text) => parts.push(text.to_owned()),
            None => parts.push(item.to_string()),
        }
    }
    match tool_call.get("rawInput") {
        None | Some(Value::Null) => {}
        // `{"tool": name}` says no more than the title.
        Some(Value::Object(input)) if input.len() == 1 && input.contains_key("tool") && !content.is_empty() => {}
        Some(input) => parts.push(input.to_string()),
    }
    let mut action = parts.join("\n");
    if action.contains('\u{2026}') {
        action.push_str("\n(The agent shortened this: what stands for \u{2026} is not known here.)");
    }
    action
}

fn fingerprint(tool_call: &Value) -> [u8; 32] {
    let mut fingerprint = [0; 32];
    let digest = digest::digest(&digest::SHA256, tool_call.to_string().as_bytes());
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test may panic")]

    use serde_json::json;

    use super::*;
    use crate::acp::message::Incoming;

    fn permission(options: &Value, tool_call: &Value) -> Result<Incoming, Malformed> {
        Incoming::parse(
            &json!({"jsonrpc": "2.0", "id": "zc-out-0", "method": "session/request_permission",
                "params": {"sessionId": "s", "options": options, "toolCall": tool_call}})
            .to_string(),
        )
    }

    fn approval_options() -> Value {
        json!([
            {"optionId": "allow-once", "name": "Allow once", "kind": "allow_once"},
            {"optionId": "allow-always", "name": "Always allow", "kind": "allow_always"},
            {"optionId": "reject-once", "name": "Reject", "kind": "reject_once"},
        ])
    }

    fn asked(options: &Value, tool_call: &Value) -> PermissionRequest {
        match permission(options, tool_call) {
            Ok(Incoming::Permission { request, .. }) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hostile_requests_are_refused() {
        let many: Vec<Value> = (0..=MOST_OPTIONS).map(|_| approval_options()[0].clone()).collect();
        for options in [json!([]), json!({}), json!([1]), json!([{"optionId": "allow-once"}]), json!(many)] {
            assert_eq!(permission(&options, &json!({})), Err(Malformed::Params), "{options}");
        }
        assert_eq!(permission(&approval_options(), &json!("text")), Err(Malformed::Params));
    }

    #[test]
    fn only_a_question_with_both_ways_out_is_an_approval() {
        let call = json!({"title": "Approve shell?"});
        assert_eq!(asked(&approval_options(), &call).question(), Question::Approval);
        let choices = json!([{"optionId": "choice-0", "name": "red", "kind": "allow_once"},
                             {"optionId": "choice-1", "name": "blue", "kind": "reject_once"}]);
        assert_eq!(asked(&choices, &call).question(), Question::Choice(vec!["red".into(), "blue".into()]));
        let lies = [
            json!([{"optionId": "allow-once", "name": "a", "kind": "allow_once"}]),
            json!([{"optionId": "allow-once", "name": "a", "kind": "reject_once"},
                   {"optionId": "reject-once", "name": "b", "kind": "allow_once"}]),
            json!([{"optionId": "allow-always", "name": "a", "kind": "allow_always"},
                   {"optionId": "reject-once", "name": "b", "kind": "reject_once"}]),
        ];
        for options in lies {
            assert_eq!(asked(&options, &call).question(), Question::Unknown, "{options}");
        }
    }

    #[test]
    fn the_action_is_complete_and_bound() {
        let call = json!({"title": "Approve shell?", "rawInput": {"tool": "shell"},
            "content": [{"type": "content", "content": {"type": "text", "text": "command: ls \u{2026}"}}]});
        let request = asked(&approval_options(), &call);
        assert!(request.action.starts_with("Approve shell?\ncommand: ls \u{2026}\n(The agent shortened this"));
        let write = json!({"title": "Approve file_write?", "rawInput": {"path": "a", "newText": "b"},
            "content": [{"type": "diff", "path": "a", "newText": "b"}]});
        let written = asked(&approval_options(), &write);
        assert_eq!(written.action.matches("newText").count(), 2);
        assert_ne!(request.fingerprint, written.fingerprint);
        let bare = asked(&approval_options(), &json!({"rawInput": {"tool": "shell"}}));
        assert_eq!(bare.action, r#"{"tool":"shell"}"#);
    }
}
