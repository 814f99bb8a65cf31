//! What the model and the MCP ingress have in common: both are HTTP servers of ours that take in whole JSON bodies. What a
//! body may say is each ingress's own.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::body::Body;
use crate::listener::{self, Door};
use crate::proxy::unreadable;
use crate::state::{State, Tier};

pub(crate) mod exact;
pub(crate) mod room;
pub(crate) mod stall;
pub(crate) mod wire;

/// Serves a door of a tier until the service drains: `answer` gets each request and the address it came from.
///
/// # Errors
/// Never by itself.
pub(crate) async fn serve<F, Fut>(
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: TcpListener,
    door: Door,
    draining: CancellationToken,
    answer: F,
) -> anyhow::Result<()>
where
    F: Fn(SocketAddr, Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let (stop, serving, at) = (draining.clone(), Arc::clone(&state), door.clone());
    listener::accept(state, tier, listener, door, draining, move |stream, peer| {
        let answer = answer.clone();
        let (state, door, stop) = (Arc::clone(&serving), at.clone(), stop.clone());
        async move {
            if let Err(error) = wire::connection(stream, stop, move |request| answer(peer, request)).await {
                count_unreadable(&state, &door, peer, &error);
            }
            Ok(())
        }
    })
    .await
}

/// Bytes that are no HTTP/1.1 request, or a head beyond its bounds, were answered by hyper; they are counted here.
fn count_unreadable(state: &State, door: &Door, peer: SocketAddr, error: &hyper::Error) {
    if !error.is_parse() {
        tracing::debug!(%error, task = door.task, "connection ended");
        return;
    }
    let mut attempt = Attempt::begin(&state.turns, &door.id.tier, door.layer, door.protocol, "broker.unreadable");
    if let Some(principal) = state.directory.at(&door.id, peer) {
        attempt.authenticated(&principal.name);
    }
    state.count_denied(&attempt, &unreadable(error));
}
