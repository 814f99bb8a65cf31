//! What the model and the MCP ingress have in common on the wire: a connection served until the service drains, and a
//! JSON body taken in within its bounds.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use policy::Denial;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::room::{Held, Room};
use super::stall::Stalling;
use crate::body::Body;
use crate::listener;
use crate::refusal::Refusal;

/// How long a request body may take to arrive. Both peers are containers of this machine.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// How long a request waits for room; clients wait for longer.
const ROOM_WITHIN: Duration = Duration::from_secs(15);

/// Serves one connection. When the service drains, the request under way is finished and the connection closed.
///
/// # Errors
/// What ended it early. Peers hang up as they like; whether it is worth counting is the caller's to tell.
pub(crate) async fn connection<F, Fut>(
    stream: TcpStream,
    draining: CancellationToken,
    answer: F,
) -> Result<(), hyper::Error>
where
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(listener::http1().serve_connection(TokioIo::new(Stalling::new(stream)), service));
    // Cancel-safe: the connection is pinned outside and driven on after the token.
    tokio::select! {
        served = connection.as_mut() => served,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// The request's method and path, when it is addressed to this door and nothing else: origin form, no query, and not from
/// a browser. `None` is for what cannot be meant for a door.
pub(crate) fn target(request: &Request<Incoming>) -> Option<(Method, String)> {
    let uri = request.uri();
    let plain = uri.scheme().is_none() && uri.authority().is_none() && uri.query().is_none();
    let browser = request.headers().contains_key(ORIGIN);
    (plain && !browser).then(|| (request.method().clone(), uri.path().to_owned()))
}

/// The refusal for a path or method that this door does not serve.
pub(crate) fn not_served(served: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        Denial::new(
            "path-not-served",
            "the request is for a path or method that this door does not serve",
            format!("this door serves {served}, and nothing else"),
        ),
    )
}

/// Takes in a JSON body of at most `most` bytes, once there is room for it and for what is parsed from it. The room is to
/// be held as long as either is.
///
/// # Errors
/// 4xx with what is wrong with it; 503 `no-room`.
pub(crate) async fn json_body(request: Request<Incoming>, most: usize, room: &Room) -> Result<(Bytes, Held), Refusal> {
    check_headers(request.headers())?;
    let said = request.body().size_hint().upper();
    let expected = said.map_or(most, |said| usize::try_from(said).unwrap_or(usize::MAX));
    if expected > most {
        return Err(too_large(most));
    }
    let mut held = room.take(expected, Instant::now() + ROOM_WITHIN).await?;
    match timeout(BODY_WITHIN, Limited::new(request.into_body(), most).collect()).await {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            held.shrink(body.len());
            Ok((body, held))
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(most)),
        Ok(Err(_)) => Err(Refusal::bad_request("broken-body", "the body did not arrive whole", "send it again")),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            Denial::new(
                "slow-body",
                format!("the body took longer than {} seconds", BODY_WITHIN.as_secs()),
                "send it at once",
            ),
        )),
    }
}

fn too_large(most: usize) -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Denial::new(
            "body-too-large",
            format!("the body is larger than {} KiB", most / 1024),
            "send less; the limit is fixed",
        ),
    )
}

fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let is_json = match (types.next(), types.next()) {
        (Some(value), None) => is_media_type(value.as_bytes(), "application/json"),
        _ => false,
    };
    if !is_json {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Denial::new("not-json", "the content type is not application/json", "send JSON, and say so"),
        ));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Denial::new("encoded-body", "the body has a content encoding", "send it plainly"),
        ));
    }
    Ok(())
}

/// Whether a content type is this one, parameters aside.
pub(crate) fn is_media_type(value: &[u8], expected: &str) -> bool {
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(expected.as_bytes())
}
