//! Inside a granted tunnel: TLS with a leaf of ours, and only for the host the tunnel was granted for. What is not TLS,
//! or names another host in SNI, is refused; nothing is ever passed through unread.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use policy::{Denial, HostPermit};
use service_kit::text::harmless;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::framing::Followed;
use crate::listener;
use crate::proxy::unreadable;
use crate::refusal::Refusal;
use crate::relay::Relay;
use crate::state::{State, Tier};

/// From the beginning of the tunnel to the end of the handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(15);

/// How often an idle upstream connection is looked for.
const IDLE_CHECK: Duration = Duration::from_secs(2);

/// Serves a tunnel until either side ends it or the service drains. `attempt` is the CONNECT's.
///
/// # Errors
/// Only what is worth a line in the log; refusals are counted and answered here.
pub async fn run(
    state: &Arc<State>,
    tier: &Arc<Tier>,
    permit: HostPermit,
    attempt: Attempt,
    upgraded: Upgraded,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let stream = match timeout(HANDSHAKE_DEADLINE, handshake(state, &permit, upgraded)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(Broken::Refused(refusal))) => {
            state.count_denied(&attempt, &refusal);
            return Ok(());
        }
        Ok(Err(Broken::Left(error))) => {
            // Usually a client that does not trust the stack's CA: its own configuration, not an attempt that was refused.
            tracing::info!(parent: &attempt.span, tier = %tier.name, host = %permit.target(), %error, "TLS with the container failed");
            return Ok(());
        }
        Ok(Err(Broken::Ours(error))) => return Err(error.into()),
        Err(_) => {
            state.count_denied(&attempt, &no_tls_in_time());
            return Ok(());
        }
    };
    // The CONNECT and its span are over; requests have their own.
    drop(attempt);
    let stream = Followed::new(stream);
    let relay = Arc::new(Relay::new(Arc::clone(state), Arc::clone(tier), permit, stream.ambiguity()));
    let answering = Arc::clone(&relay);
    let service = service_fn(move |request: Request<Incoming>| {
        let relay = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(relay.answer(request).await) }
    });
    let mut connection = pin!(listener::http1().serve_connection(TokioIo::new(stream), service));
    let mut idle = tokio::time::interval(IDLE_CHECK);
    let outcome = loop {
        // Cancel-safe: the connection is only ever polled in place.
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
            _ = idle.tick() => relay.close_idle(),
        }
    };
    match outcome {
        Err(error) if error.is_parse() => state.count_denied(&relay.begin(), &unreadable(&error)),
        Err(error) => tracing::debug!(%error, "tunnel ended"),
        Ok(()) => {}
    }
    Ok(())
}

enum Broken {
    /// By us.
    Refused(Refusal),
    /// By the peer.
    Left(io::Error),
    /// By a fault of ours.
    Ours(crate::authority::AuthorityError),
}

async fn handshake(
    state: &State,
    permit: &HostPermit,
    upgraded: Upgraded,
) -> Result<TlsStream<TokioIo<Upgraded>>, Broken> {
    let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), TokioIo::new(upgraded));
    let start = acceptor.await.map_err(|error| {
        // InvalidData is rustls saying that these bytes are no ClientHello; everything else is the connection's end.
        if error.kind() == io::ErrorKind::InvalidData { Broken::Refused(not_tls()) } else { Broken::Left(error) }
    })?;
    if let Err(refusal) = check_sni(start.client_hello().server_name(), permit) {
        // Fails by design, after an alert that the client understands.
        if let Ok(_stream) = start.into_stream(state.authority.refusing()).await {
            tracing::error!("a handshake without certificate succeeded; this is a bug");
        }
        return Err(Broken::Refused(refusal));
    }
    let config = state.authority.leaf(permit).map_err(Broken::Ours)?;
    start.into_stream(config).await.map_err(Broken::Left)
}

fn not_tls() -> Refusal {
    Refusal::bad_request(
        "not-tls",
        "what came through the tunnel is not TLS, and nothing else is passed on",
        "speak TLS in the tunnel",
    )
}

fn no_tls_in_time() -> Refusal {
    Refusal::new(
        StatusCode::REQUEST_TIMEOUT,
        Denial::new(
            "no-tls-in-time",
            format!("there was no TLS in the tunnel within {} seconds, so it was closed", HANDSHAKE_DEADLINE.as_secs()),
            "open a tunnel only when there is something to send, and speak TLS in it",
        ),
    )
}

fn check_sni(name: Option<&str>, permit: &HostPermit) -> Result<(), Refusal> {
    let host = permit.target().host();
    let mismatch = |reason, detail: String| {
        let fix = format!("open the tunnel to the host that TLS names, and name {host} in this one");
        Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, Denial::new(reason, detail, fix)))
    };
    match name {
        None => mismatch("sni-missing", format!("TLS in the tunnel to {host} names no host")),
        Some(name) if policy::target::parse_host(name).is_ok_and(|name| name == *host) => Ok(()),
        Some(name) => {
            mismatch("sni-mismatch", format!("TLS in the tunnel to {host} names {} instead", harmless(name, 253)))
        }
    }
}
