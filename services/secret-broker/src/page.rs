//! The page about a tier's MCP servers (`mcp_port` in tiers.yaml): HTTP/1.1 on a Unix socket that only the gates' process
//! can open. Whoever gets here has logged in there as the operator; who may come, and by which host name, is the gates' to
//! check.
//!
//! Owns what a browser may do with the page: read it. GET and HEAD, no script, nothing from elsewhere. What it says is
//! [`report`]'s. Asking for it asks no MCP server anything; only whether its container accepts connections is looked at.

pub(crate) mod report;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use askama::Template as _;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use service_kit::task::{OnEnd, Tasks};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::report::Report;
use crate::ingress::stall::Stalling;
use crate::listener;
use crate::state::Tier;

/// The gates' process opens a connection or two for each browser tab.
const CONNECTIONS_MOST: usize = 32;
/// A page that is open asks anew by a connection of its own when this one is over.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);
/// After an accept that failed for want of something (usually file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The directory's group, which is the gates', may connect; nobody else.
const SOCKET_MODE: u32 = 0o660;
const SAME_SITE: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// In the page itself, so that it needs nothing else.
const STYLE: &str = include_str!("../templates/tools.css");

/// No script, no form, no frame, nothing from anywhere; the one style is named by its hash.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

#[derive(askama::Template)]
#[template(path = "tools.html")]
struct Html<'a> {
    style: &'static str,
    report: &'a Report,
}

/// Serves a tier's page until the service drains.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn serve(tier: Arc<Tier>, socket: PathBuf, tasks: Tasks, draining: CancellationToken) -> anyhow::Result<()> {
    let listener = bind(&socket).map_err(|error| {
        anyhow::anyhow!("cannot listen on {} for the page of tier {}: {error}", socket.display(), tier.name)
    })?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MOST));
    loop {
        // Cancel-safe: neither accept nor acquire loses anything when dropped.
        let accepted = tokio::select! {
            () = draining.cancelled() => return Ok(()),
            accepted = async { (Arc::clone(&places).acquire_owned().await, listener.accept().await) } => accepted,
        };
        let (Ok(place), Ok((stream, _))) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (tier, draining) = (Arc::clone(&tier), draining.clone());
        tasks.spawn("tools-page-connection", OnEnd::Expected, async move {
            if timeout(CONNECTION_WITHIN, connection(stream, tier, draining)).await.is_err() {
                tracing::debug!("a connection to a page took too long");
            }
            drop(place);
            Ok(())
        });
    }
}

/// Binds the socket, over one that a dead process left behind.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

async fn connection(stream: UnixStream, tier: Arc<Tier>, draining: CancellationToken) {
    let service = service_fn(|request| {
        let tier = Arc::clone(&tier);
        async move { Ok::<_, std::convert::Infallible>(answer(&tier, &request).await) }
    });
    let mut connection = pin!(listener::http1().serve_connection(TokioIo::new(Stalling::new(stream)), service));
    // Cancel-safe: the connection is pinned outside and driven on after the token.
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to a page ended");
    }
}

async fn answer(tier: &Tier, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "this page can be read, and nothing else\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/" => {
            let html = Html { style: STYLE, report: &Report::of(tier).await };
            match html.render() {
                Ok(page) => made(StatusCode::OK, "text/html; charset=utf-8", page),
                Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made; this is a bug\n"),
            }
        }
        "/data.json" => match serde_json::to_string(&Report::of(tier).await) {
            Ok(json) => made(StatusCode::OK, "application/json", json),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made; this is a bug\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "there are / and /data.json here\n"),
    }
}

fn text(status: StatusCode, content: &'static str) -> Response<Full<Bytes>> {
    made(status, "text/plain; charset=utf-8", content)
}

/// hyper leaves the body away where HEAD was asked.
fn made(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(SAME_SITE, HeaderValue::from_static("same-origin"));
    let policy = POLICY.clone().unwrap_or_else(|| HeaderValue::from_static("default-src 'none'"));
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    response
}
