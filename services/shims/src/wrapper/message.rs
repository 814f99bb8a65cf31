//! JSON-RPC 2.0 as both sides speak it: strict towards the HTTP client, tolerant only in what a child may add.
//!
//! Parameters and results are carried as the bytes they came in, never parsed into another form and back: what
//! secret-broker decided on is what the server gets.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What an HTTP client sent.
#[derive(Debug)]
pub enum FromClient {
    /// Expects an answer.
    Request {
        /// The client's own id, a number or a string.
        id: Box<RawValue>,
        /// JSON-RPC method.
        method: String,
        /// Parameters, as sent.
        params: Option<Box<RawValue>>,
    },
    /// Expects none.
    Notification {
        /// JSON-RPC method.
        method: String,
    },
}

/// Why a client's body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedMessage {
    /// Not JSON, a batch, or a field that JSON-RPC does not know.
    #[error("the body is not one JSON-RPC 2.0 message")]
    Shape,
    /// An id that is neither a number nor a short string.
    #[error("the id is neither a number nor a string of at most 128 bytes")]
    Id,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientEnvelope<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// Parses a client's body: exactly one request or notification.
///
/// # Errors
/// See [`MalformedMessage`].
pub fn from_client(body: &[u8]) -> Result<FromClient, MalformedMessage> {
    let envelope: ClientEnvelope<'_> = serde_json::from_slice(body).map_err(|_| MalformedMessage::Shape)?;
    if envelope.jsonrpc != "2.0" {
        return Err(MalformedMessage::Shape);
    }
    match envelope.id {
        None => Ok(FromClient::Notification { method: envelope.method }),
        Some(id) if is_id(id) => Ok(FromClient::Request {
            id: id.to_owned(),
            method: envelope.method,
            params: envelope.params.map(ToOwned::to_owned),
        }),
        Some(_) => Err(MalformedMessage::Id),
    }
}

fn is_id(id: &RawValue) -> bool {
    let text = id.get();
    text.len() <= 128 && text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit())
}

/// What a child wrote on a line.
#[derive(Debug)]
pub enum FromChild {
    /// The answer to our request of that number.
    Answer {
        /// Our number.
        id: u64,
        /// `result` or `error`, as written.
        outcome: Result<Box<RawValue>, Box<RawValue>>,
    },
    /// A request of the server's own (sampling, roots, ping).
    Ask {
        /// The server's id.
        id: Box<RawValue>,
        /// JSON-RPC method.
        method: String,
    },
    /// A notification; nobody here needs them.
    Notice,
    /// Something else: servers do print stray lines to standard output.
    Noise,
}

#[derive(Deserialize)]
struct ChildEnvelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Sorts a line of a child.
#[must_use]
pub fn from_child(line: &[u8]) -> FromChild {
    let Ok(envelope) = serde_json::from_slice::<ChildEnvelope<'_>>(line) else {
        return FromChild::Noise;
    };
    match envelope {
        ChildEnvelope { id: Some(id), method: Some(method), result: None, error: None } if is_id(id) => {
            FromChild::Ask { id: id.to_owned(), method }
        }
        ChildEnvelope { id: None, method: Some(_), result: None, error: None } => FromChild::Notice,
        ChildEnvelope { id: Some(id), method: None, result, error } => match (id.get().parse(), result, error) {
            (Ok(id), Some(result), None) => FromChild::Answer { id, outcome: Ok(result.to_owned()) },
            (Ok(id), None, Some(error)) => FromChild::Answer { id, outcome: Err(error.to_owned()) },
            _ => FromChild::Noise,
        },
        _ => FromChild::Noise,
    }
}

#[derive(Serialize)]
struct Outgoing<'a, I: Serialize> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<I>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
}

impl<I: Serialize> Outgoing<'_, I> {
    fn empty(id: Option<I>) -> Self {
        Self { jsonrpc: "2.0", id, method: None, params: None, result: None, error: None }
    }
}

/// A request to the child, as one line with its end. `id` none makes a notification.
#[must_use]
pub fn request_line(id: Option<u64>, method: &str, params: Option<&RawValue>) -> Vec<u8> {
    line(&Outgoing { method: Some(method), params, ..Outgoing::empty(id) })
}

/// An answer to a request of the child's own, as one line with its end.
#[must_use]
pub fn answer_line(id: &RawValue, outcome: Result<&RawValue, &RawValue>) -> Vec<u8> {
    line(&Outgoing { result: outcome.ok(), error: outcome.err(), ..Outgoing::empty(Some(id)) })
}

/// An answer to an HTTP client.
#[must_use]
pub fn answer_body(id: &RawValue, outcome: Result<&RawValue, &RawValue>) -> Vec<u8> {
    serde_json::to_vec(&Outgoing { result: outcome.ok(), error: outcome.err(), ..Outgoing::empty(Some(id)) })
        .unwrap_or_default()
}

/// Raw parts keep the white space they came with. In valid JSON a line end can only be white space (inside strings it
/// must be escaped), so blanking it keeps the meaning and the framing.
fn line<I: Serialize>(message: &Outgoing<'_, I>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    for byte in &mut bytes {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn clients_speak_exactly_json_rpc() {
        assert!(matches!(
            from_client(br#"{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"a":1}}"#),
            Ok(FromClient::Request { .. })
        ));
        assert!(matches!(
            from_client(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
            Ok(FromClient::Notification { .. })
        ));
        for bad in [
            "",
            "[]",
            "{}",
            "nonsense",
            r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","extra":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"x"}]"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x"} "trailing""#,
        ] {
            assert_eq!(from_client(bad.as_bytes()).unwrap_err(), MalformedMessage::Shape, "{bad}");
        }
        let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"x"}}"#, "i".repeat(200));
        for bad in [r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#, r#"{"jsonrpc":"2.0","id":true,"method":"x"}"#, &long] {
            assert_eq!(from_client(bad.as_bytes()).unwrap_err(), MalformedMessage::Id, "{bad}");
        }
    }

    #[test]
    fn a_line_stays_a_line() {
        let params = RawValue::from_string("{\"a\":\n 1,\r\n\"b\":\"x\\ny\"}".to_owned()).unwrap();
        let line = request_line(Some(7), "tools/call", Some(&params));
        let text = String::from_utf8(line).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], 7);
        assert_eq!(value["params"]["b"], "x\ny");
    }

    #[test]
    fn lines_of_a_child_are_sorted() {
        assert!(matches!(
            from_child(br#"{"jsonrpc":"2.0","id":3,"result":{}}"#),
            FromChild::Answer { id: 3, outcome: Ok(_) }
        ));
        assert!(matches!(
            from_child(br#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":""}}"#),
            FromChild::Answer { id: 3, outcome: Err(_) }
        ));
        assert!(matches!(from_child(br#"{"id":"s","method":"ping"}"#), FromChild::Ask { .. }));
        assert!(matches!(from_child(br#"{"method":"notifications/progress","params":{}}"#), FromChild::Notice));
        for noise in
            ["", "starting up", "[]", r#"{"id":3}"#, r#"{"id":"3","result":1}"#, r#"{"id":3,"result":1,"error":2}"#]
        {
            assert!(matches!(from_child(noise.as_bytes()), FromChild::Noise), "{noise}");
        }
    }

    proptest! {
        #[test]
        fn parsers_survive_anything(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(from_client(&bytes));
            drop(from_child(&bytes));
        }
    }
}
