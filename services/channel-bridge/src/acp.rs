//! The bridge's side of ZeroClaw's Agent Client Protocol over WebSocket (`/acp?agent=default`, zeroclaw-gateway 0.8.7).
//!
//! Owned here: dialling the gateway with the bridge's token, the JSON-RPC conversation, finding or making the session of
//! a conversation. Not here: what the frames mean for a person (`turn`) or who may approve (`approvals`).
//!
//! One connection per turn. ZeroClaw keeps sessions per connection and their history in a store of its own, so a turn
//! resumes its session by id. It costs a handshake; in return a restart of the agent or of the MCP ingress between turns
//! needs no code of its own, and the agent's MCP connections are always made inside a turn.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

pub mod link;
pub mod message;
pub mod permission;

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

    /// Asks `GET /health`, the one path without a token.
    ///
    /// # Errors
    /// When the answer is not 200 or does not come in time.
    pub async fn healthy(&self) -> Result<(), AcpError> {
        let address = self.address;
        let ask = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut line = [0_u8; 12];
            stream.read_exact(&mut line).await?;
            Ok(line)
        };
        let line = match timeout(CONNECT_DEADLINE, ask).await {
            Ok(Ok(line)) => line,
            Ok(Err(source)) => return Err(AcpError::Unreachable { address, source: Some(source) }),
            Err(_) => return Err(AcpError::Unreachable { address, source: None }),
        };
        let status = line.strip_prefix(b"HTTP/1.1 ").and_then(|digits| std::str::from_utf8(digits).ok());
        match status.and_then(|digits| digits.parse().ok()) {
            Some(200) => Ok(()),
            Some(status) => Err(AcpError::Refused { address, status }),
            None => Err(AcpError::Unreachable { address, source: None }),
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
