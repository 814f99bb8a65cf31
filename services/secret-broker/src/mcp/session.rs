//! The broker as client of one MCP server behind the stdio wrapper: `POST http://<address>/mcp` with the wrapper's token.
//!
//! The server is a third-party program: its answers are bounded in size and time and parsed strictly. A session is
//! initialised when it is first needed and again after any failure. A tool call is never sent twice: whether the first
//! one did something cannot be known.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use crate::ingress::exact;
use crate::ingress::wire::is_media_type;
use crate::journal::Recorded;

/// The wrapper is a container of this machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The largest answer that is taken in; ZeroClaw's own limit is the same.
const ANSWER_MOST: usize = 4 * 1024 * 1024;
/// What a server may say in all when it is asked for its tools; an allowed tool needs a few kilobytes.
const LIST_MOST: usize = 1024 * 1024;
/// Tools that a server may list, allowed or not.
const LISTED_MOST: usize = 512;
/// A server that pages for ever is cut off.
const PAGES_MOST: usize = 32;
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
    #[error("the MCP server's answer is above {} MiB", most.div_ceil(1024 * 1024))]
    TooLarge {
        /// The cap, in bytes.
        most: usize,
    },
    /// It lists more tools than [`LISTED_MOST`].
    #[error("the MCP server lists more than {LISTED_MOST} tools")]
    TooMany,
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
    /// What is initialised. Never locked across an await, so that forgetting it takes no time.
    current: Mutex<Current>,
    /// Held while initialising, so that it is done once.
    initialising: tokio::sync::Mutex<()>,
    /// What it listed last: a server that is down for a moment does not take its tools away from a new conversation.
    listed: Mutex<Option<Listed>>,
    /// Held while listing, so that the server is asked once however many want to know.
    listing: tokio::sync::Mutex<()>,
}

/// The session as it stands.
#[derive(Debug, Default)]
struct Current {
    /// Counts initialisations: who failed in an earlier one must not undo a later one.
    generation: u64,
    /// None while it is not initialised.
    authorization: Option<HeaderValue>,
}

#[derive(Debug)]
struct Listed {
    tools: Arc<Vec<Value>>,
    at: Instant,
}

impl Session {
    pub(super) fn new(server: McpServer, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            server,
            tasks,
            next: AtomicU64::new(1),
            current: Mutex::default(),
            initialising: tokio::sync::Mutex::default(),
            listed: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn server(&self) -> &McpServer {
        &self.server
    }

    /// The allowed ones of the server's tools as it describes them, following `nextCursor`. Who comes while a list is
    /// being made gets that list.
    pub(super) async fn list(&self, deadline: Instant) -> Result<Arc<Vec<Value>>, SessionError> {
        let asked = Instant::now();
        let Ok(_listing) = timeout_at(deadline, self.listing.lock()).await else { return Err(SessionError::TimedOut) };
        if let Some(listed) = self.listed().as_ref().filter(|listed| listed.at > asked) {
            return Ok(Arc::clone(&listed.tools));
        }
        let tools = Arc::new(self.list_anew(deadline).await?);
        *self.listed() = Some(Listed { tools: Arc::clone(&tools), at: Instant::now() });
        Ok(tools)
    }

    async fn list_anew(&self, deadline: Instant) -> Result<Vec<Value>, SessionError> {
        let mut kept: Vec<Value> = Vec::new();
        let (mut tools_left, mut bytes_left) = (LISTED_MOST, LIST_MOST);
        let mut cursor = None;
        for _ in 0..PAGES_MOST {
            let params = cursor.map_or_else(Map::new, |cursor| Map::from_iter([("cursor".to_owned(), cursor)]));
            let (outcome, size) = self.ask("tools/list", params, deadline, bytes_left).await?;
            bytes_left = bytes_left.saturating_sub(size);
            let Ok(Value::Object(mut page)) = outcome else { return Err(SessionError::Malformed) };
            let Some(Value::Array(tools)) = page.shift_remove("tools") else { return Err(SessionError::Malformed) };
            tools_left = tools_left.checked_sub(tools.len()).ok_or(SessionError::TooMany)?;
            for tool in tools {
                let name = tool.get("name");
                let allowed =
                    name.and_then(Value::as_str).is_some_and(|name| self.server.tools.iter().any(|t| t == name));
                if allowed && !kept.iter().any(|other| other.get("name") == name) {
                    kept.push(tool);
                }
            }
            cursor = page.shift_remove("nextCursor").filter(Value::is_string);
            if cursor.is_none() {
                break;
            }
        }
        Ok(kept)
    }

    /// What was listed last, if ever.
    pub(super) fn last_listed(&self) -> Option<Arc<Vec<Value>>> {
        self.listed().as_ref().map(|listed| Arc::clone(&listed.tools))
    }

    /// Calls a tool, once the decision is stored.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        deadline: Instant,
        _recorded: &Recorded,
    ) -> Result<Outcome, SessionError> {
        let params =
            Map::from_iter([("name".to_owned(), json!(tool)), ("arguments".to_owned(), Value::Object(arguments))]);
        self.ask("tools/call", params, deadline, ANSWER_MOST).await.map(|(outcome, _)| outcome)
    }

    /// Asks within a session, and gives the answer and its size. A failure ends the session it happened in.
    async fn ask(
        &self,
        method: &str,
        params: Map<String, Value>,
        deadline: Instant,
        most: usize,
    ) -> Result<(Outcome, usize), SessionError> {
        let mut used = None;
        let asked = async {
            let (generation, authorization) = self.ready().await?;
            used = Some(generation);
            self.exchange(&authorization, method, params, most).await
        };
        let outcome = timeout_at(deadline, asked).await.unwrap_or(Err(SessionError::TimedOut));
        if let (Err(_), Some(generation)) = (&outcome, used) {
            self.forget(generation);
        }
        outcome
    }

    /// Ends the session of that generation, if it is still that one.
    fn forget(&self, generation: u64) {
        let mut current = self.current();
        if current.generation == generation {
            current.authorization = None;
        }
    }

    fn initialised(&self) -> Option<(u64, HeaderValue)> {
        let current = self.current();
        current.authorization.clone().map(|authorization| (current.generation, authorization))
    }

    /// Initialises the session where it is not. Gives its generation and authorization.
    async fn ready(&self) -> Result<(u64, HeaderValue), SessionError> {
        if let Some(ready) = self.initialised() {
            return Ok(ready);
        }
        let _initialising = self.initialising.lock().await;
        if let Some(ready) = self.initialised() {
            return Ok(ready);
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
        match self.exchange(&authorization, "initialize", client, LIST_MOST).await? {
            (Ok(Value::Object(_)), _) => {}
            (Ok(_), _) => return Err(SessionError::Malformed),
            (Err(_), _) => return Err(SessionError::Refused),
        }
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let (status, _) = self.post(&authorization, &done, LIST_MOST).await?;
        if !status.is_success() {
            return Err(SessionError::Status(status));
        }
        let mut current = self.current();
        current.generation = current.generation.saturating_add(1);
        current.authorization = Some(authorization.clone());
        Ok((current.generation, authorization))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> MutexGuard<'_, Option<Listed>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(
        &self,
        authorization: &HeaderValue,
        method: &str,
        params: Map<String, Value>,
        most: usize,
    ) -> Result<(Outcome, usize), SessionError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let (status, body) = self.post(authorization, &message, most).await?;
        if status != StatusCode::OK {
            return Err(SessionError::Status(status));
        }
        Ok((read_answer(&body, id)?, body.len()))
    }

    /// One request on a connection of its own: the wrapper is one hop away, and a fresh connection cannot be stale.
    async fn post(
        &self,
        authorization: &HeaderValue,
        message: &Value,
        most: usize,
    ) -> Result<(StatusCode, Bytes), SessionError> {
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
        let body =
            Limited::new(body, most).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => SessionError::Broken(*error),
                Err(error) if error.is::<LengthLimitError>() => SessionError::TooLarge { most },
                Err(_) => SessionError::Malformed,
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
mod tests;
