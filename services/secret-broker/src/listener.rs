//! Accepting connections: the loop that all ingresses share. It bounds connections (`connections`) and ends when the
//! service drains; what is said on a connection is the ingress's own.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use assistant_proto::event::Layer;
use http_body_util::BodyExt;
use service_kit::task::OnEnd;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::connections::Full;
use crate::identity::ListenerId;
use crate::state::{State, Tier};

/// The head of a request, in bytes; also the most that is buffered for a peer.
pub const MOST_HEAD: usize = 32 * 1024;
/// Header lines of a request.
pub const MOST_HEADERS: usize = 100;
/// From the first byte a peer could have sent to the end of a head; also how long a connection may idle.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// After an accept that failed for want of something (usually file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which door a listener is.
#[derive(Debug, Clone)]
pub struct Door {
    /// Whose network.
    pub id: ListenerId,
    /// For events.
    pub layer: Layer,
    /// For events, `https`, `http` or `mcp`.
    pub protocol: &'static str,
    /// Name of the connection tasks.
    pub task: &'static str,
}

/// An HTTP/1.1 server with this module's bounds; every ingress serves with it.
#[must_use]
pub fn http1() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MOST_HEAD)
        .max_headers(MOST_HEADERS);
    builder
}

/// Accepts until `draining`, and runs `serve` for each connection in a task of its own that holds its place among the
/// tier's connections.
///
/// # Errors
/// Never by itself: accept errors pass.
pub async fn accept<F, Fut>(
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: TcpListener,
    door: Door,
    draining: CancellationToken,
    serve: F,
) -> anyhow::Result<()>
where
    F: Fn(TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    loop {
        // Cancel-safe: accept loses no connection when dropped.
        let accepted = tokio::select! {
            () = draining.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, task = door.task, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "peer is gone");
            continue;
        }
        let principal = state.directory.at(&door.id, peer).map(|principal| &principal.name);
        match tier.connections.admit(door.id.network, principal) {
            Ok(admission) => {
                let connection = serve(stream, peer);
                state.tasks.spawn(door.task, OnEnd::Expected, async move {
                    let outcome = connection.await;
                    drop(admission);
                    outcome
                });
            }
            Err(full) => turn_away(&state, &door, full, stream, peer).await,
        }
    }
}

/// Over a limit: says so without spending a task on it.
async fn turn_away(state: &State, door: &Door, full: Full, stream: TcpStream, peer: SocketAddr) {
    let mut attempt = Attempt::begin(&state.turns, &door.id.tier, door.layer, door.protocol, "broker.accept");
    if let Some(principal) = state.directory.at(&door.id, peer) {
        attempt.authenticated(&principal.name);
    }
    let (head, body) = state.deny(&attempt, &full.refusal()).into_parts();
    let Ok(body) = body.collect().await else { return };
    let body = body.to_bytes();
    let mut answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        head.status,
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    // The socket's buffer is empty, so this takes it whole or the peer is gone; either way nothing is awaited.
    if let Err(error) = stream.try_write(&answer) {
        tracing::debug!(%error, "peer is gone");
    }
}
