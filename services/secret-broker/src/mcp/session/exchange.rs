//! One message to an MCP server's wrapper and what comes back: JSON-RPC in HTTP/1.1, bounded in size, time and room, and
//! parsed strictly. Knows nothing of sessions: those are [`super`]'s.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Map, Value, json};
use service_kit::task::OnEnd;
use service_kit::text::harmless;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{ERROR_MOST, Session, SessionError};
use crate::ingress::exact;
use crate::ingress::room::Held;
use crate::ingress::wire::is_media_type;
use crate::mcp::rpc;

/// The wrapper is a container of this machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// What a server answered: its result, or its error's code and text, made harmless.
pub(in crate::mcp) type Outcome = Result<Value, (i64, String)>;

/// A request as it goes to the server.
#[derive(Serialize)]
pub(super) struct Question<'a> {
    pub(super) jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<u64>,
    pub(super) method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) params: Option<Map<String, Value>>,
}

impl Session {
    /// A request and its answer, the answer's size and the room it takes.
    pub(super) async fn exchange(
        &self,
        authorization: &HeaderValue,
        method: &str,
        params: Map<String, Value>,
        deadline: Instant,
        most: usize,
        held: Option<Held>,
    ) -> Result<(Outcome, usize, Held), SessionError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let question = Question { jsonrpc: "2.0", id: Some(id), method, params: Some(params) };
        let (status, body, held) = self.post(authorization, question, deadline, most, held).await?;
        if status != StatusCode::OK {
            return Err(SessionError::Status(status));
        }
        Ok((read_answer(&body, id)?, body.len(), held))
    }

    /// One request on a connection of its own: the wrapper is one hop away, and a fresh connection cannot be stale.
    pub(super) async fn post(
        &self,
        authorization: &HeaderValue,
        question: Question<'_>,
        deadline: Instant,
        most: usize,
        mut held: Option<Held>,
    ) -> Result<(StatusCode, Bytes, Held), SessionError> {
        let content = serde_json::to_vec(&question).map_err(|_| SessionError::Malformed)?;
        // Servers may think for long: the question is held once, and not in its parsed form.
        drop(question);
        if let Some(held) = &mut held {
            held.shrink_to_text(content.len());
        }
        let connecting = timeout(CONNECT_WITHIN, TcpStream::connect(self.server.address)).await;
        let stream = connecting
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(SessionError::Unreachable)?;
        let (mut sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(SessionError::Broken)?;
        self.tasks.spawn("mcp-server-connection", OnEnd::Expected, async move {
            if let Err(error) = connection.await {
                // Whoever waits for the answer gets the error too.
                tracing::debug!(%error, "connection to an MCP server ended");
            }
            Ok(())
        });
        let request = Request::post("/mcp")
            .header(HOST, self.server.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, authorization.clone())
            .body(Full::new(Bytes::from(content)))
            .map_err(|_| SessionError::OddToken)?;
        let response = sender.send_request(request).await.map_err(SessionError::Broken)?;
        let (head, body) = response.into_parts();
        // What the question took goes first: who waits for room holds none.
        drop(held);
        let said = body.size_hint().upper().map_or(most, |said| usize::try_from(said).unwrap_or(usize::MAX));
        if said > most {
            return Err(SessionError::TooLarge { most });
        }
        let mut held = self.room.take(said, deadline).await.map_err(|_| SessionError::NoRoom)?;
        let is_json =
            head.headers.get(CONTENT_TYPE).is_some_and(|value| is_media_type(value.as_bytes(), "application/json"));
        if head.status == StatusCode::OK && !is_json {
            return Err(SessionError::Malformed);
        }
        let body =
            Limited::new(body, most).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => SessionError::Broken(*error),
                Err(error) if error.is::<LengthLimitError>() => SessionError::TooLarge { most },
                Err(_) => SessionError::Malformed,
            })?;
        let body = body.to_bytes();
        held.shrink(body.len());
        Ok((head.status, body, held))
    }
}

/// Reads the answer to the request of that number.
pub(super) fn read_answer(body: &[u8], expected: u64) -> Result<Outcome, SessionError> {
    let Ok(Value::Object(mut answer)) = exact::parse(body) else { return Err(SessionError::Malformed) };
    if answer.get("jsonrpc") != Some(&json!("2.0")) || answer.get("id") != Some(&json!(expected)) {
        return Err(SessionError::Malformed);
    }
    match (answer.shift_remove("result"), answer.shift_remove("error")) {
        (Some(result), None) => Ok(Ok(result)),
        (None, Some(error)) => {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or(rpc::INTERNAL);
            let text = error.get("message").and_then(Value::as_str).unwrap_or("the MCP server reported an error");
            Ok(Err((code, harmless(text, ERROR_MOST))))
        }
        _ => Err(SessionError::Malformed),
    }
}
