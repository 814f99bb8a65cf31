//! Frames too large to become a tree: read field by field, with everything that is not needed skipped. Pure.
//!
//! ZeroClaw sends a tool's whole output, three times over, in one frame; the bridge shows none of it. What such a frame
//! costs here is the frame itself. Not here: frames of usual size (`message`), how large a frame may be at all (`link`).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use serde_json::value::RawValue;

use super::message::{Incoming, Malformed, SessionUpdate, ToolStatus, call_id, our_id, their_id};

/// Ids are shorter; a longer one never becomes a value.
const MOST_ID: usize = 256;

#[derive(Deserialize)]
struct Frame<'a> {
    jsonrpc: Option<&'a str>,
    method: Option<String>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdateParams<'a> {
    #[serde(borrow)]
    session_id: Cow<'a, str>,
    #[serde(borrow)]
    update: Update<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Update<'a> {
    #[serde(borrow)]
    session_update: Cow<'a, str>,
    tool_call_id: Option<String>,
    title: Option<String>,
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Finished<'a> {
    #[serde(borrow)]
    stop_reason: Cow<'a, str>,
}

/// Parses one frame. A request is answered as one that is not offered: what is asked in so many words cannot be shown. Of
/// a piece of the answer and of a result only that they came is kept; the pieces of the answer stand for its whole.
pub(super) fn parse(text: &str) -> Result<Incoming, Malformed> {
    let frame: Frame<'_> = serde_json::from_str(text).map_err(|_| Malformed::NotJsonRpc)?;
    if frame.jsonrpc != Some("2.0") {
        return Err(Malformed::NotJsonRpc);
    }
    match (frame.method, frame.id, frame.result) {
        (Some(method), None, None) if method == "session/update" => update(frame.params),
        (Some(_), None, None) => Ok(Incoming::OtherNotification),
        (Some(_), Some(id), None) => Ok(Incoming::OtherRequest { id: their_id(value(id)?)? }),
        (None, Some(id), Some(result)) => {
            let finished: Finished<'_> = serde_json::from_str(result.get()).map_err(|_| Malformed::Params)?;
            Ok(Incoming::Response {
                id: our_id(Some(value(id)?))?,
                result: Ok(json!({"stopReason": finished.stop_reason})),
            })
        }
        _ => Err(Malformed::Envelope),
    }
}

fn update(params: Option<&RawValue>) -> Result<Incoming, Malformed> {
    let params = params.ok_or(Malformed::Params)?.get();
    let UpdateParams { session_id, update } = serde_json::from_str(params).map_err(|_| Malformed::Params)?;
    let status = ToolStatus::parse(update.status.as_deref());
    let update = match (&*update.session_update, update.tool_call_id, update.title) {
        ("tool_call", Some(id), Some(title)) => SessionUpdate::ToolCall { id: call_id(&id), title, status },
        // A refusal is a sentence, and does not come in so many words.
        ("tool_call_update", Some(id), title) => {
            SessionUpdate::ToolCallUpdate { id: call_id(&id), title, status, refused: None }
        }
        ("tool_call" | "tool_call_update", _, _) => return Err(Malformed::Params),
        _ => SessionUpdate::Other,
    };
    Ok(Incoming::Update { session: session_id.into_owned(), update })
}

fn value(raw: &RawValue) -> Result<Value, Malformed> {
    if raw.get().len() > MOST_ID {
        return Err(Malformed::Id);
    }
    serde_json::from_str(raw.get()).map_err(|_| Malformed::Id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far beyond what becomes a tree.
    fn padded(mut frame: Value, place: &str) -> String {
        if let Some(at) = frame.pointer_mut(place) {
            *at = json!("x".repeat(1 << 20));
        }
        frame.to_string()
    }

    #[test]
    fn a_large_output_shows_as_a_tool_call() {
        let frame = json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "s", "update":
            {"sessionUpdate": "tool_call_update", "toolCallId": "c1", "title": "shell", "status": "completed",
             "rawOutput": null, "content": [{"type": "content"}]}}});
        let expected = SessionUpdate::ToolCallUpdate {
            id: "c1".to_owned(),
            title: Some("shell".to_owned()),
            status: ToolStatus::Completed,
            refused: None,
        };
        let parsed = Incoming::parse(&padded(frame, "/params/update/rawOutput"));
        assert_eq!(parsed, Ok(Incoming::Update { session: "s".to_owned(), update: expected }));
    }

    #[test]
    fn a_large_request_is_refused_and_a_large_result_is_only_an_end() {
        let request = json!({"jsonrpc": "2.0", "id": "zc-out-1", "method": "session/request_permission",
            "params": {"sessionId": "s", "options": [], "toolCall": {"title": null}}});
        let parsed = Incoming::parse(&padded(request, "/params/toolCall/title"));
        assert_eq!(their_id(json!("zc-out-1")).map(|id| Incoming::OtherRequest { id }), parsed);
        let result = json!({"jsonrpc": "2.0", "id": 3, "result": {"stopReason": "end_turn", "content": null}});
        let parsed = Incoming::parse(&padded(result, "/result/content"));
        assert_eq!(parsed, Ok(Incoming::Response { id: 3, result: Ok(json!({"stopReason": "end_turn"})) }));
    }

    #[test]
    fn what_would_be_a_large_tree_is_refused_or_skipped() {
        let bomb = format!("[{}0]", "0,".repeat(1 << 20));
        let table = [
            (bomb.clone(), Err(Malformed::NotJsonRpc)),
            (format!(r#"{{"jsonrpc":"2.0","id":{bomb},"method":"x"}}"#), Err(Malformed::Id)),
            (format!(r#"{{"jsonrpc":"2.0","id":1,"result":{bomb}}}"#), Err(Malformed::Params)),
            (format!(r#"{{"jsonrpc":"2.0","id":1,"error":{bomb}}}"#), Err(Malformed::Envelope)),
            (format!(r#"{{"jsonrpc":"2.0","method":"session/update","params":{bomb}}}"#), Err(Malformed::Params)),
            (format!(r#"{{"jsonrpc":"2.0","method":"x","params":{bomb}}}"#), Ok(Incoming::OtherNotification)),
        ];
        for (frame, expected) in table {
            assert_eq!(Incoming::parse(&frame), expected, "{}", frame.get(..60).unwrap_or_default());
        }
    }
}
