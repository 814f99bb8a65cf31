//! `mcp-stdio`: one MCP server that speaks JSON-RPC over its standard streams, offered as HTTP to one client that knows
//! the token.
//!
//! Owns the child process and its whole process group, the handshake with it (done once a child and replayed to
//! clients, so that they may reconnect at will) and the mapping of request ids. Does not decide which tools may be
//! called (secret-broker does, on the other side of the wire), and never interprets results.

pub mod child;
pub mod environment;
pub mod ingress;
pub mod message;
pub mod session;

use std::ffi::OsString;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::visible::visible;

/// What one wrapper needs to run.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What clients must know.
    pub token: ingress::TokenHash,
    /// The program and its arguments; never empty.
    pub command: Vec<OsString>,
    /// The child's whole environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Runs until `stop`, then ends the child and returns.
///
/// # Errors
/// Where the address cannot be bound or signals cannot be received. A child that does not start is no error here: it is
/// started again and again, and `GET /health` says so.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on {}: {error}", settings.listen))?;
    note(&format!("listening on {}", listener.local_addr()?));
    let session = session::Session::new();
    let supervised = child::supervise(settings.command, settings.environment, session.clone(), stop.clone());
    let served = ingress::serve(listener, settings.token, session, stop.clone());
    let supervised = async {
        let result = supervised.await;
        // Half a wrapper is none.
        stop.cancel();
        result
    };
    tokio::join!(supervised, served).0
}

/// A line of the wrapper's own on standard error, which is the container's log.
pub(crate) fn note(text: &str) {
    eprintln!("mcp-stdio: {}", visible(text.as_bytes(), 2_000));
}
