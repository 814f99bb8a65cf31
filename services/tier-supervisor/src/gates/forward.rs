//! The way of a request to what is behind a site, and of the answer back: one connection each, streamed both ways, with
//! the headers of both taken apart and put together anew.
//!
//! It does not ask who sent a request. What is behind a site believes that whoever asks has logged in, so what says so, or
//! could be taken for it, is ours to write: nothing of the kind comes from the browser.

use std::error::Error;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::judge::Names;
use crate::desired::Upstream;

/// A body on its way.
pub(super) type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;
/// Ends when the session of an answer does.
pub(super) type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Until the head of an answer: a query over weeks of metrics takes long, and so does an upload.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// An answer's head; Grafana's are some 2 KiB.
const MOST_HEAD: usize = 64 << 10;

/// What tells the upstream that the gate let this through, and as which site. No browser can send it.
pub(super) const SITE: HeaderName = HeaderName::from_static("assistant-site");

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("is not there: {0}")]
    Away(String),
    #[error("broke off")]
    Broken,
    #[error("did not answer within {} seconds", ANSWER_WITHIN.as_secs())]
    Slow,
}

impl Unanswered {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Away(_) | Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Belongs to one connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a browser may not say to what is behind a site. Cookies are the gate's; of the rest each says who asks, for whom,
/// by which way, or as part of which trace.
const NOT_OF_BROWSER: [&str; 10] = [
    "cookie",
    "authorization",
    "forwarded",
    "via",
    "x-real-ip",
    "expect",
    "content-length",
    "traceparent",
    "tracestate",
    "baggage",
];
const NOT_OF_BROWSER_BEGINNING: [&str; 3] = ["x-forwarded-", "assistant-", "x-webauth-"];

/// What the upstream may not say to a browser: cookies, and that other sites may read what it says.
const NOT_OF_UPSTREAM: [&str; 4] = ["set-cookie", "set-cookie2", "strict-transport-security", "alt-svc"];
const NOT_OF_UPSTREAM_BEGINNING: &str = "access-control-";

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    remove_if(headers, |name| named.contains(name) || HOP_BY_HOP.contains(name));
}

fn remove_if(headers: &mut HeaderMap, gone: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| gone(name)).cloned().collect();
    for name in names {
        while headers.remove(&name).is_some() {}
    }
}

/// The headers of a request as they go on. Host stays: it is the site's.
fn of_request(headers: &mut HeaderMap, names: &Names, websocket: bool) {
    remove_hop_by_hop(headers);
    remove_if(headers, |name| {
        let name = name.as_str();
        // Some programs take `x_forwarded_for` for `x-forwarded-for`; no browser sends such a name.
        name.contains('_')
            || NOT_OF_BROWSER.contains(&name)
            || NOT_OF_BROWSER_BEGINNING.iter().any(|beginning| name.starts_with(beginning))
    });
    if let Ok(site) = HeaderValue::from_str(&names.name) {
        headers.insert(SITE, site);
    }
    if websocket {
        upgrade(headers);
    }
}

/// The headers of an answer as they go back.
fn of_answer(headers: &mut HeaderMap, keeps_length: bool, websocket: bool) {
    let framed_otherwise = headers.contains_key(header::TRANSFER_ENCODING);
    remove_hop_by_hop(headers);
    remove_if(headers, |name| {
        NOT_OF_UPSTREAM.contains(&name.as_str())
            || name.as_str().starts_with(NOT_OF_UPSTREAM_BEGINNING)
            || (*name == header::CONTENT_LENGTH && (!keeps_length || framed_otherwise))
    });
    if websocket {
        upgrade(headers);
    }
    dress(headers);
}

fn upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// What every answer of a site says, whoever wrote it.
pub(super) fn dress(headers: &mut HeaderMap) {
    // Beside the page's own policy: a browser obeys each of several.
    headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("frame-ancestors 'none'"));
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: with it a form would not say which page sent it.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether a request says in two ways how long it is: the two ends of a connection could then cut it differently.
pub(super) fn is_ambiguous(headers: &HeaderMap) -> bool {
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    lengths > 1 || (chunked && lengths > 0)
}

/// Sends a request on, and gives the answer; `ending` cuts its body off. Of a WebSocket the answer's connection is still
/// to be taken over.
pub(super) async fn forward(
    upstream: &Upstream,
    names: &Names,
    tasks: &Tasks,
    request: Request<Incoming>,
    websocket: bool,
    ending: impl FnOnce() -> Ending,
) -> Result<Response<Incoming>, Unanswered> {
    let (mut parts, body) = request.into_parts();
    of_request(&mut parts.headers, names, websocket);
    parts.version = Version::HTTP_11;
    // Only the path: which host it is for is in Host.
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = Uri::try_from(path).map_err(|_| Unanswered::Broken)?;
    let body = Cut { body, ending: ending() }.boxed_unsync();
    let mut sender = match upstream {
        Upstream::Tcp(address) => connect(tasks, TcpStream::connect(address)).await?,
        Upstream::Unix(path) => connect(tasks, dial(path)).await?,
    };
    match timeout(ANSWER_WITHIN, sender.send_request(Request::from_parts(parts, body))).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Unanswered::Broken),
        Err(_) => Err(Unanswered::Slow),
    }
}

/// A connection for one request. There is never another one on it, so that no answer can be taken for another's.
async fn connect<S>(tasks: &Tasks, dial: impl Future<Output = io::Result<S>>) -> Result<SendRequest<Body>, Unanswered>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = match timeout(CONNECT_WITHIN, dial).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Unanswered::Away(error.kind().to_string())),
        Err(_) => return Err(Unanswered::Away("it takes no connections".to_owned())),
    };
    let handshake = hyper::client::conn::http1::Builder::new().max_buf_size(MOST_HEAD).handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(|_| Unanswered::Broken)?;
    tasks.spawn("gate-upstream", OnEnd::Expected, async move {
        // It ends with the answer, or when nobody wants that any more; its error is the answer's, too.
        drop(connection.with_upgrades().await);
        Ok(())
    });
    Ok(sender)
}

/// The directory belongs to the service, and a link there could lead to somebody else's socket: it is opened without
/// following one, and only then connected to.
async fn dial(path: &Path) -> io::Result<UnixStream> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string())).await
}

/// An answer as it goes back to the browser.
pub(super) fn answer(method: &Method, answer: Response<Incoming>, websocket: bool, ending: Ending) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let keeps_length = *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
    parts.version = Version::HTTP_11;
    of_answer(&mut parts.headers, keeps_length, websocket);
    Response::from_parts(parts, Cut { body, ending }.boxed_unsync())
}

/// A body that breaks off when its session ends.
struct Cut {
    body: Incoming,
    ending: Ending,
}

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ending.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the session has ended".into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn left(headers: &HeaderMap) -> Vec<String> {
        let mut left: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        left
    }

    #[test]
    fn nothing_of_a_browser_says_who_asks() {
        let mut sent = headers(&[
            ("host", "tasks.localhost:3001"),
            ("accept", "text/html"),
            ("origin", "http://tasks.localhost:3001"),
            ("x-grafana-org-id", "1"),
            ("connection", "keep-alive, x-named"),
            ("x-named", "a"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("cookie", "assistant-tasks=x; other=y"),
            ("authorization", "Bearer x"),
            ("proxy-authorization", "Basic x"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil.example"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-webauth-user", "admin"),
            ("assistant-site", "jaeger"),
            ("assistant_site", "jaeger"),
            ("traceparent", "00-1-2-3"),
        ]);
        sent.append(SITE, HeaderValue::from_static("grafana"));
        of_request(&mut sent, &Names::new("tasks", 3001), false);
        let expected = [
            "accept: text/html",
            "assistant-site: tasks",
            "host: tasks.localhost:3001",
            "origin: http://tasks.localhost:3001",
            "x-grafana-org-id: 1",
        ];
        assert_eq!(left(&sent), expected);
    }

    #[test]
    fn nothing_of_an_upstream_opens_the_site_to_others() {
        let mut sent = headers(&[
            ("content-type", "text/html"),
            ("content-security-policy", "default-src 'self'; frame-ancestors *"),
            ("x-frame-options", "ALLOWALL"),
            ("set-cookie", "a=b"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("connection", "close"),
            ("content-length", "3"),
            ("referrer-policy", "unsafe-url"),
        ]);
        of_answer(&mut sent, false, false);
        let expected = [
            "content-security-policy: default-src 'self'; frame-ancestors *",
            "content-security-policy: frame-ancestors 'none'",
            "content-type: text/html",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
            "referrer-policy: same-origin",
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
        ];
        assert_eq!(left(&sent), expected);
        let mut head = headers(&[("content-length", "3")]);
        of_answer(&mut head, true, false);
        assert_eq!(head.get("content-length").unwrap(), "3");
    }

    #[tokio::test]
    async fn a_link_among_the_sockets_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("tasks.sock"), dir.path().join("link.sock"));
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        dial(&socket).await.unwrap();
        assert!(dial(&link).await.is_err(), "a link was followed");
        UnixStream::connect(&link).await.unwrap();
    }
}
