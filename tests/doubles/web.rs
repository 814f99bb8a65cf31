//! HTTPS for the doubles: TLS 1.2 and 1.3, HTTP/1.1, every request recorded. For a peer on loopback also without TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use service_kit::task::{OnEnd, Tasks};

use super::critical;
use super::record::{Arrival, Record};

/// A request body larger than this is cut off with 413.
const MOST_BODY: usize = 16 * 1024 * 1024;

/// A request that a double answers.
#[derive(Debug)]
pub struct Asked {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, whole.
    pub body: Bytes,
}

/// What a double answers.
#[derive(Debug)]
pub struct Answer {
    /// The response.
    pub response: Response<Full<Bytes>>,
    /// Whether the credential was the right one.
    pub authorized: bool,
    /// What is recorded instead of the path, where a credential is part of that.
    pub recorded_path: Option<String>,
    /// Whether the connection ends instead of an answer.
    pub hang_up: bool,
}

/// A plain-text answer without a credential.
#[must_use]
pub fn text(status: u16, body: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.to_owned(), false)
}

/// Any answer.
#[must_use]
pub fn answer(status: u16, content_type: &str, body: String, authorized: bool) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    }
    Answer { response, authorized, recorded_path: None, hang_up: false }
}

/// Serves `address:443` with answers that need not be waited for.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn start<H>(
    tasks: &Tasks,
    address: Ipv4Addr,
    tls: Arc<rustls::ServerConfig>,
    record: Arc<Record>,
    handler: H,
) -> anyhow::Result<()>
where
    H: Fn(&Asked) -> Answer + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let waiting = move |asked: Asked| {
        let handler = Arc::clone(&handler);
        async move { handler(&asked) }
    };
    serve_at(tasks, (address, 443).into(), tls, record, waiting).await.map(|_| ())
}

/// Serves an address of choice, port 0 included, with answers that may take a while. Returns where it listens.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn serve_at<H, F>(
    tasks: &Tasks,
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    record: Arc<Record>,
    handler: H,
) -> anyhow::Result<SocketAddr>
where
    H: Fn(Asked) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send,
{
    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let handler = Arc::new(handler);
    let open = tasks.clone();
    critical(tasks, format!("web-{address}"), async move {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true).ok();
            let (acceptor, handler, record) = (acceptor.clone(), Arc::clone(&handler), Arc::clone(&record));
            open.spawn("web-connection", OnEnd::Expected, async move {
                let stream = acceptor.accept(stream).await?;
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
                    async move { serve(request, &*handler, &record).await }
                });
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
                Ok(())
            });
        }
    });
    Ok(address)
}

/// Serves without TLS on a port of loopback that the kernel chooses. Returns where it listens.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn serve_plain<H>(tasks: &Tasks, record: Arc<Record>, handler: H) -> anyhow::Result<SocketAddr>
where
    H: Fn(&Asked) -> Answer + Send + Sync + 'static,
{
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let handler = Arc::new(handler);
    let open = tasks.clone();
    critical(tasks, format!("plain-{address}"), async move {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true).ok();
            let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
            open.spawn("plain-connection", OnEnd::Expected, async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
                    async move { serve(request, &|asked: Asked| std::future::ready(handler(&asked)), &record).await }
                });
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
                Ok(())
            });
        }
    });
    Ok(address)
}

async fn serve<H, F>(
    request: Request<hyper::body::Incoming>,
    handler: &H,
    record: &Record,
) -> std::io::Result<Response<Full<Bytes>>>
where
    H: Fn(Asked) -> F,
    F: Future<Output = Answer>,
{
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let host = parts.headers.get(http::header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let headers: Vec<String> = parts.headers.keys().map(ToString::to_string).collect();
    let answer = match Limited::new(body, MOST_BODY).collect().await {
        Ok(body) => {
            let asked = Asked {
                method: parts.method.clone(),
                path: path.clone(),
                headers: parts.headers,
                body: body.to_bytes(),
            };
            handler(asked).await
        }
        Err(_) => text(413, "too large or broken"),
    };
    let status = answer.response.status().as_u16();
    record.add(Arrival::Request {
        host,
        method: parts.method.to_string(),
        path: answer.recorded_path.unwrap_or(path),
        headers,
        authorized: answer.authorized,
        status,
    });
    if answer.hang_up { Err(std::io::Error::other("hung up as scripted")) } else { Ok(answer.response) }
}
