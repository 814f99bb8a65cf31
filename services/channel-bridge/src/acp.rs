//! The bridge's side of ZeroClaw's Agent Client Protocol over WebSocket (`/acp?agent=default`, zeroclaw-gateway 0.8.7).
//!
//! Owned here: dialling the gateway with the bridge's token, the JSON-RPC conversation, finding or making the session of
//! a conversation. Not here: what the frames mean for a person (`turn`) or who may approve (`approvals`).
//!
//! One connection per turn. ZeroClaw keeps sessions per connection and their history in a store of its own, so a turn
//! resumes its session by id. It costs a handshake; in return a restart of the agent or of the MCP ingress between turns
//! needs no code of its own, and the agent's MCP connections are always made inside a turn.

use std::net::SocketAddrV4;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, InvalidHeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

mod large;
pub mod link;
pub mod message;
pub mod permission;
pub mod refused;

pub use link::Link;
use message::{Malformed, RpcError, SESSION_NOT_FOUND};

/// For a TCP connection and a handshake on a network of the same machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// For `initialize`, which only reads configuration.
const INITIALIZE_DEADLINE: Duration = Duration::from_secs(15);
/// For a session: the agent is built and connects to its MCP servers, the slowest of which may just be starting.
const SESSION_DEADLINE: Duration = Duration::from_secs(120);
/// Session ids are UUIDs; whatever is longer is not one.
const MOST_SESSION_ID: usize = 128;

/// What went wrong between the bridge and an agent.
#[derive(Debug, thiserror::Error)]
pub enum AcpError {
    /// Nobody listens, or nobody answers.
    #[error("the agent's gateway at {address} does not answer")]
    Unreachable {
        /// Where.
        address: SocketAddrV4,
        /// Why, where the system said so.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The handshake was answered with another status.
    #[error("the agent's gateway at {address} answered {status} to the handshake")]
    Refused {
        /// Where.
        address: SocketAddrV4,
        /// HTTP status.
        status: u16,
    },
    /// The handshake failed otherwise.
    #[error("the agent's gateway at {address} does not speak WebSocket as ZeroClaw 0.8.7 does")]
    Handshake {
        /// Where.
        address: SocketAddrV4,
        /// Why.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The connection ended.
    #[error("the connection to the agent broke")]
    Disconnected,
    /// No answer in time.
    #[error("the agent did not answer {call} within {} seconds", deadline.as_secs())]
    Silent {
        /// What it should have answered.
        call: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// A frame was refused.
    #[error("the agent sent something that is not ACP: {0}")]
    Malformed(#[from] Malformed),
    /// More than any turn needs.
    #[error("the agent sent more than any turn needs, so it was cut off")]
    TooMuch,
    /// It answered with an error. The text is the agent's own, made harmless.
    #[error("the agent answered {call} with an error: {text}")]
    Rpc {
        /// What it answered.
        call: &'static str,
        /// JSON-RPC code.
        code: i64,
        /// Its words, made harmless.
        text: String,
    },
    /// A well-formed answer that lacks what it must hold.
    #[error("the agent answered {0} without what the answer must hold")]
    Incomplete(&'static str),
}

impl AcpError {
    /// Whether trying again shortly may help: the agent may just be starting.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Disconnected => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    pub(crate) fn rpc(call: &'static str, error: &RpcError) -> Self {
        Self::Rpc { call, code: error.code, text: service_kit::text::harmless_line(&error.message, 500) }
    }
}

/// An agent's gateway, and the token that opens it.
#[derive(Clone)]
pub struct Gateway {
    address: SocketAddrV4,
    token: Arc<Zeroizing<String>>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A session, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// ZeroClaw's id.
    pub id: String,
    /// Whether the agent knew the conversation already.
    pub resumed: bool,
}

impl Gateway {
    /// A gateway that has not been dialled yet.
    #[must_use]
    pub fn new(address: SocketAddrV4, token: Zeroizing<String>) -> Self {
        Self { address, token: Arc::new(token) }
    }

    /// Where it is.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// What opens it, for a header.
    pub(crate) fn bearer(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        let bearer = Zeroizing::new(format!("Bearer {}", self.token.as_str()));
        let mut bearer = HeaderValue::from_str(&bearer)?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }

    /// Asks `GET /health`, the one path without a token.
    ///
    /// # Errors
    /// When the answer is not 200 or does not come in time.
    pub async fn healthy(&self) -> Result<(), AcpError> {
        let address = self.address;
        match timeout(CONNECT_DEADLINE, health(address)).await {
            Ok(Ok(StatusCode::OK)) => Ok(()),
            Ok(Ok(status)) => Err(AcpError::Refused { address, status: status.as_u16() }),
            Ok(Err(source)) => Err(AcpError::Unreachable { address, source: Some(source) }),
            Err(_) => Err(AcpError::Unreachable { address, source: None }),
        }
    }

    /// Dials the gateway and introduces the bridge.
    ///
    /// # Errors
    /// See [`AcpError`].
    pub async fn connect(&self) -> Result<(Link, Features), AcpError> {
        let mut link = timeout(CONNECT_DEADLINE, Link::open(self.address, &self.token))
            .await
            .map_err(|_| AcpError::Unreachable { address: self.address, source: None })??;
        // No `elicitation`, files or terminal: what the bridge does not announce, ZeroClaw does not ask for.
        let introduction = json!({"protocolVersion": 1, "clientCapabilities": {},
            "clientInfo": {"name": "channel-bridge", "version": env!("CARGO_PKG_VERSION")}});
        let answer = link.call("initialize", &introduction, INITIALIZE_DEADLINE).await?;
        if answer.get("protocolVersion").and_then(Value::as_u64) != Some(1) {
            return Err(AcpError::Incomplete("initialize"));
        }
        let agent = answer.get("agentCapabilities");
        let features = Features {
            load: agent.and_then(|agent| agent.get("loadSession")).and_then(Value::as_bool) == Some(true),
            resume: agent
                .and_then(|agent| agent.get("sessionCapabilities"))
                .is_some_and(|capabilities| capabilities.get("resume").is_some()),
        };
        Ok((link, features))
    }
}

/// The status of `GET /health`. The body is not read.
async fn health(address: SocketAddrV4) -> std::io::Result<StatusCode> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    let request = Request::get("/health")
        .header(HOST, address.to_string())
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(std::io::Error::other)?;
    // The connection is driven here rather than in a task of its own: it ends with the call.
    let response = match select(pin!(sender.send_request(request)), pin!(connection)).await {
        Either::Left((response, _)) => response,
        // It ended first; the answer is there, or never comes.
        Either::Right((_, response)) => response.await,
    };
    response.map(|response| response.status()).map_err(std::io::Error::other)
}

/// What the agent says it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    load: bool,
    resume: bool,
}

/// Takes up the known session, or makes a new one when there is none or the agent no longer has it.
///
/// `session/resume` is preferred to `session/load`: both seed the agent with its history, but `load` also replays all of
/// it to the client, which has shown it already.
///
/// # Errors
/// See [`AcpError`].
pub async fn session(link: &mut Link, features: Features, known: Option<String>) -> Result<Session, AcpError> {
    let method = match features {
        Features { resume: true, .. } => Some("session/resume"),
        Features { load: true, .. } => Some("session/load"),
        _ => None,
    };
    if let (Some(id), Some(method)) = (known, method) {
        match link.call(method, &json!({"sessionId": id}), SESSION_DEADLINE).await {
            Ok(_) => return Ok(Session { id, resumed: true }),
            Err(AcpError::Rpc { code: SESSION_NOT_FOUND, .. }) => {
                tracing::warn!("the agent no longer has the session of this conversation; it starts afresh");
            }
            Err(error) => return Err(error),
        }
    }
    let answer = link.call("session/new", &json!({}), SESSION_DEADLINE).await?;
    let id = answer.get("sessionId").and_then(Value::as_str).filter(|id| is_session_id(id));
    let id = id.ok_or(AcpError::Incomplete("session/new"))?.to_owned();
    Ok(Session { id, resumed: false })
}

fn is_session_id(id: &str) -> bool {
    (1..=MOST_SESSION_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Asks a peer that answers these bytes and then leaves, or says nothing more.
    async fn asked(answer: &'static str, leaves: bool) -> (String, Result<(), AcpError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("not IPv4") };
        let gateway = Gateway::new(address, Zeroizing::new("secret".to_owned()));
        let peer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            (String::from_utf8(request[..length].to_vec()).unwrap(), (!leaves).then_some(stream))
        };
        let ((request, _stream), health) = tokio::join!(peer, gateway.healthy());
        (request, health)
    }

    #[tokio::test]
    async fn health_is_a_status_and_nothing_else() {
        for leaves in [true, false] {
            // A body that never comes is not waited for.
            let (request, health) = asked("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", leaves).await;
            assert!(health.is_ok(), "{health:?}");
            assert!(request.starts_with("GET /health HTTP/1.1\r\n") && !request.contains("secret"), "{request}");
            let (_, health) = asked("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", leaves).await;
            assert!(matches!(health, Err(AcpError::Refused { status: 503, .. })), "{health:?}");
            let (_, health) = asked("SSH-2.0-OpenSSH_9.2\r\n", leaves).await;
            assert!(matches!(health, Err(AcpError::Unreachable { source: Some(_), .. })), "{health:?}");
        }
        let (_, health) = asked("", true).await;
        assert!(matches!(health, Err(AcpError::Unreachable { source: Some(_), .. })), "{health:?}");
    }
}
