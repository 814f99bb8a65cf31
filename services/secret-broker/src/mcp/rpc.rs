//! JSON-RPC 2.0 as far as MCP needs it: one message a body, read in exactly one way.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value, json};

use crate::ingress::exact;
use crate::refusal::Refusal;

/// JSON-RPC: the method does not exist.
pub(super) const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC: the parameters are wrong.
pub(super) const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC: something went wrong here.
pub(super) const INTERNAL: i64 = -32603;
/// Ours, in the range JSON-RPC leaves to servers: policy refused.
pub(super) const REFUSED: i64 = -32001;

/// A request's id: what the answer carries.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(Number),
    Text(String),
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    Request { id: Id, method: String, params: Map<String, Value> },
    Notification { method: String },
}

/// An error as JSON-RPC carries it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Value>,
}

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// A refusal, with everything an HTTP refusal says. ZeroClaw shows the model only code and message, so the message
    /// says what to do.
    pub(super) fn refused(refusal: &Refusal, trace_id: &str) -> Self {
        let denial = &refusal.denial;
        Self {
            code: REFUSED,
            message: format!("{}: {}. {}", denial.reason, denial.detail, denial.fix),
            data: Some(json!({
                "error": "refused by secret-broker",
                "reason": denial.reason,
                "detail": denial.detail,
                "fix": denial.fix,
                "trace_id": trace_id,
            })),
        }
    }
}

/// Reads a body.
///
/// # Errors
/// 400 when it is not exactly one request or notification.
pub(super) fn read(body: &[u8]) -> Result<Message, Refusal> {
    let refuse =
        |detail: String| Refusal::bad_request("not-json-rpc", detail, "send one JSON-RPC 2.0 message, not a batch");
    let value =
        exact::parse(body).map_err(|error| refuse(format!("the body cannot be read in exactly one way: {error}")))?;
    let malformed = || refuse("the body is not one JSON-RPC 2.0 request or notification".to_owned());
    let Value::Object(mut fields) = value else { return Err(malformed()) };
    let version = fields.shift_remove("jsonrpc");
    let id = fields.shift_remove("id");
    let method = fields.shift_remove("method");
    let params = fields.shift_remove("params");
    let (Some(Value::String(version)), Some(Value::String(method)), true) = (version, method, fields.is_empty()) else {
        return Err(malformed());
    };
    if version != "2.0" || method.len() > 128 {
        return Err(malformed());
    }
    let params = match params {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return Err(malformed()),
    };
    match id {
        None => Ok(Message::Notification { method }),
        Some(Value::Number(number)) => Ok(Message::Request { id: Id::Number(number), method, params }),
        Some(Value::String(text)) if text.len() <= 128 => Ok(Message::Request { id: Id::Text(text), method, params }),
        Some(_) => Err(malformed()),
    }
}

/// What a request is answered with.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Made(Value),
    /// Serialised already.
    Written(Box<RawValue>),
}

#[derive(Serialize)]
struct Response<'a> {
    jsonrpc: &'static str,
    id: &'a Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

/// The body of an answer. Empty should it ever be impossible to write; clients take that for a failure.
pub(super) fn answer(id: &Id, outcome: &Result<Answer, RpcError>) -> Vec<u8> {
    let (result, error) = (outcome.as_ref().ok(), outcome.as_ref().err());
    serde_json::to_vec(&Response { jsonrpc: "2.0", id, result, error }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_zeroclaw_sends() {
        let body = br#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"x","arguments":{}}}"#;
        let Message::Request { id, method, params } = read(body).unwrap() else { panic!("a request") };
        assert_eq!((id, method.as_str(), params.len()), (Id::Number(3.into()), "tools/call", 2));
        let body = br#"{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}"#;
        assert_eq!(read(body).unwrap(), Message::Notification { method: "notifications/initialized".to_owned() });
    }

    #[test]
    fn anything_else_is_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","more":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        ] {
            assert_eq!(read(body.as_bytes()).unwrap_err().denial.reason, "not-json-rpc", "{body}");
        }
    }

    #[test]
    fn answers_carry_the_id_as_it_came() {
        let text = |id, outcome| String::from_utf8(answer(&id, &outcome)).unwrap();
        assert_eq!(text(Id::Number(7.into()), Ok(Answer::Made(json!({})))), r#"{"jsonrpc":"2.0","id":7,"result":{}}"#);
        let written = RawValue::from_string(r#"{"tools":[]}"#.to_owned()).unwrap();
        assert_eq!(
            text(Id::Number(8.into()), Ok(Answer::Written(written))),
            r#"{"jsonrpc":"2.0","id":8,"result":{"tools":[]}}"#
        );
        assert_eq!(
            text(Id::Text("a".to_owned()), Err(RpcError::new(INVALID_PARAMS, "no"))),
            r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32602,"message":"no"}}"#
        );
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(read(&bytes));
        }
    }
}
