//! The HTTP face: `POST /mcp` for whoever knows the token, `GET /health` for whoever asks.
//!
//! Speaks the part of MCP's Streamable HTTP that needs no state on either side: each POST carries one message and gets
//! one JSON answer. No sessions, no event streams, no batches.

use std::convert::Infallible;
use std::time::Duration;

use aws_lc_rs::{constant_time, digest};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::message::{self, FromClient};
use super::note;
use super::session::{Lost, Session};
use crate::accept;

/// Connections at once; secret-broker is the only client.
const CONNECTIONS_MOST: usize = 64;
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
const BODY_WITHIN: Duration = Duration::from_secs(30);
const BODY_MOST: usize = 4 * 1024 * 1024;
/// Above secret-broker's 110 s: it should be the one to give up.
const CALL_WITHIN: Duration = Duration::from_secs(115);

/// SHA-256 of the token clients must send. The token itself is not kept.
#[derive(Clone)]
pub struct TokenHash(digest::Digest);

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

impl TokenHash {
    /// Of a token as text.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(digest::digest(&digest::SHA256, token.as_bytes()))
    }

    /// Whether exactly one `Authorization: Bearer <token>` is there and right, in time that does not depend on how
    /// nearly right it is.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (all.next(), all.next()) else {
            return false;
        };
        let Some(token) = value.as_bytes().strip_prefix(b"Bearer ") else {
            return false;
        };
        let given = digest::digest(&digest::SHA256, token);
        constant_time::verify_slices_are_equal(given.as_ref(), self.0.as_ref()).is_ok()
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, token: TokenHash, session: Session, stop: CancellationToken) {
    let connection = |stream| connection(stream, token.clone(), session.clone());
    accept::serve(listener, CONNECTIONS_MOST, stop, note, connection).await;
}

async fn connection(stream: TcpStream, token: TokenHash, session: Session) {
    // Without it small answers wait for the peer's delayed acknowledgement. Failure only costs time.
    drop(stream.set_nodelay(true));
    let service = service_fn(|request| {
        let (token, session) = (token.clone(), session.clone());
        async move { Ok::<_, Infallible>(answer(request, &token, &session).await.unwrap_or_else(Refusal::response)) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // Peers hang up as they like; that is not worth a line.
    drop(served);
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: Request<Incoming>, token: &TokenHash, session: &Session) -> Result<Answer, Refusal> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => health(session),
        (&Method::POST, "/mcp") => {
            if !token.admits(request.headers()) {
                return Err(Refusal::new(
                    StatusCode::UNAUTHORIZED,
                    "wrong-token",
                    "the bearer token is missing or wrong",
                ));
            }
            let (id, method, params) = match message::from_client(&body(request).await?) {
                Ok(FromClient::Request { id, method, params }) => (id, method, params),
                Ok(FromClient::Notification { method }) => return noted(&method),
                Err(error) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "not-json-rpc", &error.to_string())),
            };
            call(session, &id, &method, params.as_deref()).await
        }
        (_, "/mcp" | "/health") => Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "only POST /mcp and GET /health exist",
        )),
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "no-such-path", "only POST /mcp and GET /health exist")),
    }
}

fn health(session: &Session) -> Result<Answer, Refusal> {
    session.health().map_err(|why| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "server-down", &why))?;
    Ok(json(StatusCode::OK, br#"{"status":"ok"}"#.to_vec()))
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    if request.headers().contains_key(ORIGIN) {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "from-a-browser", "no browser has business here"));
    }
    let is_json = request.headers().get(CONTENT_TYPE).is_some_and(|value| {
        let essence = value.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
    });
    if !is_json {
        let detail = "the content type must be application/json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", detail));
    }
    let collected = timeout(BODY_WITHIN, Limited::new(request.into_body(), BODY_MOST).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is above 4 MiB"))
        }
        Ok(Err(_)) => Err(Refusal::new(StatusCode::BAD_REQUEST, "broken-body", "the body did not arrive whole")),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "slow-body", "the body took longer than 30 s")),
    }
}

/// Notifications that a client of MCP may send; both are the wrapper's own business.
fn noted(method: &str) -> Result<Answer, Refusal> {
    match method {
        "notifications/initialized" | "notifications/cancelled" => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::ACCEPTED;
            Ok(response)
        }
        _ => Err(Refusal::new(StatusCode::BAD_REQUEST, "unknown-notification", "this notification is not known here")),
    }
}

async fn call(session: &Session, id: &RawValue, method: &str, params: Option<&RawValue>) -> Result<Answer, Refusal> {
    let body = match method {
        "initialize" => message::answer_body(id, Ok(&*session.initialized().await?)),
        "ping" | "tools/list" | "tools/call" => {
            let outcome = session.request(method, params, CALL_WITHIN).await?;
            message::answer_body(id, outcome.as_deref().map_err(|error| &**error))
        }
        _ => {
            let error =
                RawValue::from_string(r#"{"code":-32601,"message":"method not found"}"#.to_owned()).map_err(|_| {
                    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "an answer could not be made")
                })?;
            message::answer_body(id, Err(&error))
        }
    };
    Ok(json(StatusCode::OK, body))
}

fn json(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A refusal as the client sees it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    detail: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str, detail: &str) -> Self {
        Self { status, reason, detail: detail.to_owned() }
    }

    fn response(self) -> Answer {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'static str,
            reason: &'a str,
            detail: &'a str,
        }
        let body = Body { error: "refused by mcp-stdio", reason: self.reason, detail: &self.detail };
        let mut response = json(self.status, serde_json::to_vec(&body).unwrap_or_default());
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Lost> for Refusal {
    fn from(lost: Lost) -> Self {
        let (status, reason) = match lost {
            Lost::Down(_) => (StatusCode::SERVICE_UNAVAILABLE, "server-down"),
            Lost::Busy => (StatusCode::SERVICE_UNAVAILABLE, "server-busy"),
            Lost::Ended => (StatusCode::BAD_GATEWAY, "server-ended"),
            Lost::TooLong => (StatusCode::BAD_GATEWAY, "answer-too-large"),
            Lost::Deadline => (StatusCode::GATEWAY_TIMEOUT, "server-slow"),
        };
        Self::new(status, reason, &lost.to_string())
    }
}
