//! The broker as client of one MCP server behind the stdio wrapper: `POST http://<address>/mcp` with the wrapper's token.
//!
//! The server is a third-party program: its answers are bounded in size and time and parsed strictly. A session is
//! initialised when it is first needed and again after any failure. A tool call is never sent twice: whether the first
//! one did something cannot be known.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use assistant_proto::config::McpServer;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use service_kit::files::{FileError, read_secret};
use service_kit::task::{OnEnd, Tasks};
use service_kit::text::harmless;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use crate::models::exact;
use crate::models::wire::is_media_type;

/// The wrapper is a container of this machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The largest answer that is taken in; ZeroClaw's own limit is the same.
const ANSWER_MOST: usize = 4 * 1024 * 1024;
/// Longest error text of a server that is passed on.
const ERROR_MOST: usize = 2_000;

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The token file.
    #[error("the wrapper's token cannot be read")]
    Token(#[from] FileError),
    /// The token holds something that no header can.
    #[error("the wrapper's token cannot be sent")]
    OddToken,
    /// Nobody listens, or the connection broke.
    #[error("the MCP server's container cannot be reached")]
    Unreachable(#[source] std::io::Error),
    /// HTTP broke down under way.
    #[error("the connection to the MCP server broke")]
    Broken(#[source] hyper::Error),
    /// The wrapper refused or could not.
    #[error("the MCP server's wrapper answered with status {0}")]
    Status(StatusCode),
    /// The answer is above the cap.
    #[error("the MCP server's answer is above {} MiB", ANSWER_MOST / 1024 / 1024)]
    TooLarge,
    /// Not the answer to the question.
    #[error("the MCP server's answer is not JSON-RPC")]
    Malformed,
    /// The deadline passed.
    #[error("the MCP server did not answer in time")]
    TimedOut,
    /// The server refused to begin.
    #[error("the MCP server refused to initialise")]
    Refused,
}

impl SessionError {
    /// Whether it is certain that the server has seen nothing of the request.
    pub(super) fn nothing_sent(&self) -> bool {
        matches!(self, Self::Token(_) | Self::OddToken | Self::Unreachable(_) | Self::Refused)
    }
}

/// What a server answered: its result, or its error's code and text, made harmless.
pub(super) type Outcome = Result<Value, (i64, String)>;

/// One server of one tier.
#[derive(Debug)]
pub(super) struct Session {
    server: McpServer,
    tasks: Tasks,
    next: AtomicU64,
    /// The authorization of an initialised session. The lock is held while initialising, so that it is done once.
    ready: Mutex<Option<HeaderValue>>,
    /// What it listed last: a server that is down for a moment does not take its tools away from a new conversation.
    listed: Mutex<Option<Vec<Value>>>,
}

impl Session {
    pub(super) fn new(server: McpServer, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { server, tasks, next: AtomicU64::new(1), ready: Mutex::default(), listed: Mutex::default() })
    }

    pub(super) fn server(&self) -> &McpServer {
        &self.server
    }

    /// The server's tools as it describes them, following `nextCursor`.
    pub(super) async fn list(&self, deadline: Instant) -> Result<Vec<Value>, SessionError> {
        /// A server that pages for ever is cut off.
        const PAGES_MOST: usize = 32;
        let mut all = Vec::new();
        let mut cursor = None;
        for _ in 0..PAGES_MOST {
            let params = cursor.map_or_else(Map::new, |cursor| Map::from_iter([("cursor".to_owned(), cursor)]));
            let Ok(Value::Object(mut page)) = self.ask("tools/list", params, deadline).await? else {
                return Err(SessionError::Malformed);
            };
            let Some(Value::Array(tools)) = page.shift_remove("tools") else { return Err(SessionError::Malformed) };
            all.extend(tools);
            cursor = page.shift_remove("nextCursor").filter(Value::is_string);
            if cursor.is_none() {
                break;
            }
        }
        *self.listed.lock().await = Some(all.clone());
        Ok(all)
    }

    /// What was listed last, if ever.
    pub(super) async fn last_listed(&self) -> Option<Vec<Value>> {
        self.listed.lock().await.clone()
    }

    /// Calls a tool.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        deadline: Instant,
    ) -> Result<Outcome, SessionError> {
        let params =
            Map::from_iter([("name".to_owned(), json!(tool)), ("arguments".to_owned(), Value::Object(arguments))]);
        self.ask("tools/call", params, deadline).await
    }

    async fn ask(&self, method: &str, params: Map<String, Value>, deadline: Instant) -> Result<Outcome, SessionError> {
        let asked = async {
            let authorization = self.ready().await?;
            self.exchange(&authorization, method, params).await
        };
        let outcome = timeout_at(deadline, asked).await.unwrap_or(Err(SessionError::TimedOut));
        if outcome.is_err() {
            *self.ready.lock().await = None;
        }
        outcome
    }

    /// Initialises the session where it is not.
    async fn ready(&self) -> Result<HeaderValue, SessionError> {
        let mut ready = self.ready.lock().await;
        if let Some(authorization) = &*ready {
            return Ok(authorization.clone());
        }
        let token = read_secret(&self.server.token_file)?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut authorization = HeaderValue::from_str(&bearer).map_err(|_| SessionError::OddToken)?;
        authorization.set_sensitive(true);
        let client = json!({
            "protocolVersion": super::PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "secret-broker", "version": env!("CARGO_PKG_VERSION")},
        });
        let Value::Object(client) = client else { return Err(SessionError::Malformed) };
        match self.exchange(&authorization, "initialize", client).await? {
            Ok(Value::Object(_)) => {}
            Ok(_) => return Err(SessionError::Malformed),
            Err(_) => return Err(SessionError::Refused),
        }
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let (status, _) = self.post(&authorization, &done).await?;
        if !status.is_success() {
            return Err(SessionError::Status(status));
        }
        *ready = Some(authorization.clone());
        Ok(authorization)
    }

    async fn exchange(
        &self,
        authorization: &HeaderValue,
        method: &str,
        params: Map<String, Value>,
    ) -> Result<Outcome, SessionError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let (status, body) = self.post(authorization, &message).await?;
        if status != StatusCode::OK {
            return Err(SessionError::Status(status));
        }
        read_answer(&body, id)
    }

    /// One request on a connection of its own: the wrapper is one hop away, and a fresh connection cannot be stale.
    async fn post(&self, authorization: &HeaderValue, message: &Value) -> Result<(StatusCode, Bytes), SessionError> {
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
            .body(Full::new(Bytes::from(message.to_string())))
            .map_err(|_| SessionError::OddToken)?;
        let response = sender.send_request(request).await.map_err(SessionError::Broken)?;
        let (head, body) = response.into_parts();
        let is_json =
            head.headers.get(CONTENT_TYPE).is_some_and(|value| is_media_type(value.as_bytes(), "application/json"));
        if head.status == StatusCode::OK && !is_json {
            return Err(SessionError::Malformed);
        }
        let body = Limited::new(body, ANSWER_MOST).collect().await.map_err(|error| {
            match error.downcast::<hyper::Error>() {
                Ok(error) => SessionError::Broken(*error),
                Err(error) if error.is::<LengthLimitError>() => SessionError::TooLarge,
                Err(_) => SessionError::Malformed,
            }
        })?;
        Ok((head.status, body.to_bytes()))
    }
}

/// Reads the answer to the request of that number.
fn read_answer(body: &[u8], expected: u64) -> Result<Outcome, SessionError> {
    let Ok(Value::Object(mut answer)) = exact::parse(body) else { return Err(SessionError::Malformed) };
    if answer.get("jsonrpc") != Some(&json!("2.0")) || answer.get("id") != Some(&json!(expected)) {
        return Err(SessionError::Malformed);
    }
    match (answer.shift_remove("result"), answer.shift_remove("error")) {
        (Some(result), None) => Ok(Ok(result)),
        (None, Some(error)) => {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or(super::rpc::INTERNAL);
            let text = error.get("message").and_then(Value::as_str).unwrap_or("the MCP server reported an error");
            Ok(Err((code, harmless(text, ERROR_MOST))))
        }
        _ => Err(SessionError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_question_counts() {
        assert!(matches!(read_answer(br#"{"jsonrpc":"2.0","id":4,"result":{}}"#, 4), Ok(Ok(_))));
        assert!(matches!(
            read_answer("{\"jsonrpc\":\"2.0\",\"id\":4,\"error\":{\"code\":-1,\"message\":\"a\\u001bb\"}}".as_bytes(), 4),
            Ok(Err((-1, text))) if text == "a\\u{1b}b"
        ));
        for bad in [
            "",
            "[]",
            r#"{"jsonrpc":"2.0","id":5,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":"4","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":4}"#,
            r#"{"jsonrpc":"2.0","id":4,"result":1,"error":2}"#,
            r#"{"id":4,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":4,"result":{"a":1,"a":2}}"#,
        ] {
            assert!(matches!(read_answer(bad.as_bytes(), 4), Err(SessionError::Malformed)), "{bad}");
        }
    }
}
