//! JSON-RPC 2.0 frames of ZeroClaw's `/acp` (zeroclaw-channels 0.8.7, `orchestrator/acp_server.rs` and `acp_channel.rs`),
//! parsed and written. Pure.
//!
//! The peer is an agent that counts as hostile. A frame is either one of the few shapes below or it is refused; what a
//! person decides on and what the decision is bound to are computed from the same parsed value. Text stays raw here and
//! is made harmless where it leaves for a person.

use aws_lc_rs::digest;
use serde_json::{Map, Value, json};

use super::large;
use super::permission::{ALLOW_ONCE, PermissionRequest, REJECT_ONCE};
use super::refused::OwnRefusal;

/// JSON-RPC: the method is not there.
const METHOD_NOT_FOUND: i64 = -32601;
/// Longest frame that becomes a tree, in bytes. A tree can take forty times its text, so ten megabytes at most.
const MOST_TREE: usize = 256 * 1024;
/// Longest id of a tool call that is kept as it is. Models choose them, and some put more than a name in them.
const MOST_CALL_ID: usize = 128;
/// ZeroClaw: the session is not in its store.
pub const SESSION_NOT_FOUND: i64 = -32000;

/// Why a frame was refused. Never repeats any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or nested deeper than 128 levels.
    #[error("it is not JSON")]
    NotJson,
    /// No object with `"jsonrpc": "2.0"`.
    #[error("it is not a JSON-RPC 2.0 object")]
    NotJsonRpc,
    /// Neither request, notification nor response, or several of them at once.
    #[error("it is neither a request nor a response")]
    Envelope,
    /// The id is none we could have sent or could answer.
    #[error("its id is not usable")]
    Id,
    /// A known method with parameters of another shape.
    #[error("its parameters have another shape than ZeroClaw 0.8.7 sends")]
    Params,
}

/// The id of a request of the peer, to be sent back as it came: a string or a whole number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Value);

/// An error the peer answered with. The message is raw text of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    /// JSON-RPC error code.
    pub code: i64,
    /// The peer's words.
    pub message: String,
}

/// A frame of the peer.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The answer to a call of ours.
    Response {
        /// Our id.
        id: u64,
        /// What came back.
        result: Result<Value, RpcError>,
    },
    /// `session/update`.
    Update {
        /// The session it belongs to.
        session: String,
        /// What happened.
        update: SessionUpdate,
    },
    /// `session/request_permission`.
    Permission {
        /// To answer with.
        id: RequestId,
        /// The session it belongs to.
        session: String,
        /// What is asked.
        request: PermissionRequest,
    },
    /// A request for something this client does not offer.
    OtherRequest {
        /// To answer with.
        id: RequestId,
    },
    /// A notification this client has no use for; JSON-RPC says to ignore it.
    OtherNotification,
}

/// A `session/update` as far as the bridge shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionUpdate {
    /// A piece of the answer.
    Text(String),
    /// A tool call began.
    ToolCall {
        /// ZeroClaw's id of the call.
        id: String,
        /// Name of the tool.
        title: String,
        /// Where it stands.
        status: ToolStatus,
    },
    /// A tool call went on; the title may be missing.
    ToolCallUpdate {
        /// ZeroClaw's id of the call.
        id: String,
        /// Name of the tool, where it is repeated.
        title: Option<String>,
        /// Where it stands.
        status: ToolStatus,
        /// Whether the agent's own policy refused it, and what of it.
        refused: Option<OwnRefusal>,
    },
    /// Thoughts, plans, and what later versions add.
    Other,
}

/// Where a tool call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolStatus {
    /// It has begun, or waits.
    Pending,
    /// It is over.
    Completed,
    /// It failed.
    Failed,
}

impl ToolStatus {
    /// As in the contract of the terminal channel.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    pub(super) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("completed") => Self::Completed,
            Some("failed") => Self::Failed,
            _ => Self::Pending,
        }
    }
}

impl Incoming {
    /// Parses one frame.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > MOST_TREE {
            return large::parse(text);
        }
        let Ok(value) = serde_json::from_str::<Value>(text) else { return Err(Malformed::NotJson) };
        let Value::Object(mut frame) = value else { return Err(Malformed::NotJsonRpc) };
        if frame.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(Malformed::NotJsonRpc);
        }
        let (id, params) = (frame.remove("id"), frame.remove("params"));
        match (frame.remove("method"), frame.remove("result"), frame.remove("error")) {
            (None, Some(result), None) => Ok(Self::Response { id: our_id(id)?, result: Ok(result) }),
            (None, None, Some(error)) => Ok(Self::Response { id: our_id(id)?, result: Err(rpc_error(&error)?) }),
            (Some(Value::String(method)), None, None) => match id {
                None => notification(&method, params),
                Some(id) => request(&method, their_id(id)?, params),
            },
            _ => Err(Malformed::Envelope),
        }
    }
}

pub(super) fn our_id(id: Option<Value>) -> Result<u64, Malformed> {
    id.as_ref().and_then(Value::as_u64).ok_or(Malformed::Id)
}

pub(super) fn their_id(id: Value) -> Result<RequestId, Malformed> {
    let usable = match &id {
        Value::String(text) => text.len() <= 128,
        Value::Number(number) => number.is_u64() || number.is_i64(),
        _ => false,
    };
    if usable { Ok(RequestId(id)) } else { Err(Malformed::Id) }
}

fn rpc_error(error: &Value) -> Result<RpcError, Malformed> {
    let code = error.get("code").and_then(Value::as_i64).ok_or(Malformed::Params)?;
    let message = error.get("message").and_then(Value::as_str).ok_or(Malformed::Params)?;
    Ok(RpcError { code, message: message.to_owned() })
}

fn notification(method: &str, params: Option<Value>) -> Result<Incoming, Malformed> {
    if method != "session/update" {
        return Ok(Incoming::OtherNotification);
    }
    let params = object(params)?;
    let session = text(&params, "sessionId")?.to_owned();
    let update = params.get("update").and_then(Value::as_object).ok_or(Malformed::Params)?;
    let update = match text(update, "sessionUpdate")? {
        "agent_message_chunk" => {
            let content = update.get("content").and_then(Value::as_object).ok_or(Malformed::Params)?;
            if text(content, "type")? == "text" {
                SessionUpdate::Text(text(content, "text")?.to_owned())
            } else {
                SessionUpdate::Other
            }
        }
        "tool_call" => SessionUpdate::ToolCall {
            id: call_id(text(update, "toolCallId")?),
            title: text(update, "title")?.to_owned(),
            status: ToolStatus::parse(update.get("status").and_then(Value::as_str)),
        },
        "tool_call_update" => {
            let refused = update.get("rawOutput").and_then(Value::as_str).and_then(OwnRefusal::read);
            let status = ToolStatus::parse(update.get("status").and_then(Value::as_str));
            SessionUpdate::ToolCallUpdate {
                id: call_id(text(update, "toolCallId")?),
                title: update.get("title").and_then(Value::as_str).map(str::to_owned),
                status: if refused.is_some() { ToolStatus::Failed } else { status },
                refused,
            }
        }
        _ => SessionUpdate::Other,
    };
    Ok(Incoming::Update { session, update })
}

fn request(method: &str, id: RequestId, params: Option<Value>) -> Result<Incoming, Malformed> {
    if method != "session/request_permission" {
        return Ok(Incoming::OtherRequest { id });
    }
    let params = object(params)?;
    let session = text(&params, "sessionId")?.to_owned();
    let request = PermissionRequest::parse(&params)?;
    Ok(Incoming::Permission { id, session, request })
}

fn object(params: Option<Value>) -> Result<Map<String, Value>, Malformed> {
    match params {
        Some(Value::Object(params)) => Ok(params),
        _ => Err(Malformed::Params),
    }
}

/// The id of a tool call, or what stands for one that is too long to be remembered.
pub(super) fn call_id(id: &str) -> String {
    if id.len() <= MOST_CALL_ID { id.to_owned() } else { hex::encode(digest::digest(&digest::SHA256, id.as_bytes())) }
}

pub(super) fn text<'a>(object: &'a Map<String, Value>, field: &str) -> Result<&'a str, Malformed> {
    object.get(field).and_then(Value::as_str).ok_or(Malformed::Params)
}

/// A call of ours.
#[must_use]
pub fn call(id: u64, method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

/// A notification of ours.
#[must_use]
pub fn notify(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()
}

/// The answer to an approval: once, or not this time.
#[must_use]
pub fn decided(id: &RequestId, approved: bool) -> String {
    let option = if approved { ALLOW_ONCE } else { REJECT_ONCE };
    json!({"jsonrpc": "2.0", "id": id.0, "result": {"outcome": {"outcome": "selected", "optionId": option}}})
        .to_string()
}

/// The answer to a question nobody here decides.
#[must_use]
pub fn withdrawn(id: &RequestId) -> String {
    json!({"jsonrpc": "2.0", "id": id.0, "result": {"outcome": {"outcome": "cancelled"}}}).to_string()
}

/// The answer to a request this client does not offer.
#[must_use]
pub fn not_offered(id: &RequestId) -> String {
    json!({"jsonrpc": "2.0", "id": id.0, "error": {"code": METHOD_NOT_FOUND, "message": "not offered"}}).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_zeroclaw_sends() {
        let chunk = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":
            {"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hi"}}}}"#;
        assert_eq!(
            Incoming::parse(chunk),
            Ok(Incoming::Update { session: "s".into(), update: SessionUpdate::Text("hi".into()) })
        );
        let tool = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":
            "tool_call","toolCallId":"c1","name":"hub__add","title":"hub__add","kind":"execute","rawInput":{},
            "status":"pending"}}}"#;
        let expected =
            SessionUpdate::ToolCall { id: "c1".into(), title: "hub__add".into(), status: ToolStatus::Pending };
        assert_eq!(Incoming::parse(tool), Ok(Incoming::Update { session: "s".into(), update: expected }));
        let refused = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":
            "tool_call_update","toolCallId":"c1","name":"shell","title":"shell","kind":"execute","status":"completed",
            "rawOutput":"Error: Command not allowed by security policy: rm x"}}}"#;
        let expected = SessionUpdate::ToolCallUpdate {
            id: "c1".into(),
            title: Some("shell".into()),
            status: ToolStatus::Failed,
            refused: Some(OwnRefusal::Command),
        };
        assert_eq!(Incoming::parse(refused), Ok(Incoming::Update { session: "s".into(), update: expected }));
        let result = r#"{"jsonrpc":"2.0","result":{"stopReason":"end_turn"},"id":3}"#;
        assert_eq!(
            Incoming::parse(result),
            Ok(Incoming::Response { id: 3, result: Ok(json!({"stopReason": "end_turn"})) })
        );
        let error = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Session not found: x"},"id":3}"#;
        assert_eq!(
            Incoming::parse(error),
            Ok(Incoming::Response {
                id: 3,
                result: Err(RpcError { code: SESSION_NOT_FOUND, message: "Session not found: x".into() })
            })
        );
        let trimmed = r#"{"jsonrpc":"2.0","method":"_zeroclaw/history_trimmed","params":{}}"#;
        assert_eq!(Incoming::parse(trimmed), Ok(Incoming::OtherNotification));
    }

    #[test]
    fn hostile_frames_are_refused() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let table: [(&str, Malformed); 16] = [
            ("", Malformed::NotJson),
            ("\u{0}", Malformed::NotJson),
            (&deep, Malformed::NotJson),
            ("[]", Malformed::NotJsonRpc),
            ("null", Malformed::NotJsonRpc),
            (r#"{"id":1,"result":{}}"#, Malformed::NotJsonRpc),
            (r#"{"jsonrpc":"1.0","id":1,"result":{}}"#, Malformed::NotJsonRpc),
            (r#"{"jsonrpc":"2.0"}"#, Malformed::Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":""}}"#, Malformed::Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"method":"session/update","result":{}}"#, Malformed::Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, Malformed::Envelope),
            (r#"{"jsonrpc":"2.0","id":null,"result":{}}"#, Malformed::Id),
            (r#"{"jsonrpc":"2.0","id":-1,"result":{}}"#, Malformed::Id),
            (r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#, Malformed::Id),
            (
                r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":[]}}"#,
                Malformed::Params,
            ),
            (r#"{"jsonrpc":"2.0","id":1,"error":"no"}"#, Malformed::Params),
        ];
        for (frame, why) in table {
            assert_eq!(Incoming::parse(frame), Err(why), "{}", frame.get(..60.min(frame.len())).unwrap_or_default());
        }
    }

    #[test]
    fn ids_of_tool_calls_are_bounded_and_still_tell_calls_apart() {
        let ids = ["c".repeat(128), "c".repeat(129), "c".repeat(100_000)];
        let seen = ids.map(|id| {
            let frame = json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "s", "update":
                {"sessionUpdate": "tool_call", "toolCallId": id, "title": "t", "status": "pending"}}});
            match Incoming::parse(&frame.to_string()) {
                Ok(Incoming::Update { update: SessionUpdate::ToolCall { id, .. }, .. }) => id,
                other => panic!("{other:?}"),
            }
        });
        assert!(seen.iter().all(|id| id.len() <= 128), "{seen:?}");
        assert!(seen[0] != seen[1] && seen[1] != seen[2]);
    }

    #[test]
    fn never_allow_always() {
        let id = RequestId(json!("zc-out-0"));
        assert!(decided(&id, true).contains(r#""optionId":"allow-once""#));
        assert!(decided(&id, false).contains(r#""optionId":"reject-once""#));
        assert!(withdrawn(&id).contains(r#""outcome":"cancelled""#));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,200}") {
            let _parsed = Incoming::parse(&text);
        }

        #[test]
        fn any_shape_is_parsed_or_refused(
            method in "(session/update|session/request_permission|x)",
            session in prop_oneof![Just(json!("s")), Just(json!(1)), Just(Value::Null)],
            kind in prop_oneof![Just(json!("tool_call")), Just(json!("agent_message_chunk")), Just(json!([]))],
            id in prop_oneof![Just(None), Just(Some(json!(1))), Just(Some(json!([])))],
        ) {
            let mut frame = json!({"jsonrpc": "2.0", "method": method,
                "params": {"sessionId": session, "update": {"sessionUpdate": kind}, "toolCall": {}, "options": kind}});
            if let Some(id) = id {
                frame["id"] = id;
            }
            if let Ok(Incoming::Update { session, .. }) = Incoming::parse(&frame.to_string()) {
                prop_assert_eq!(session, "s");
            }
        }
    }
}
