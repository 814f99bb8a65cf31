//! One HTTP request along a route, on a connection of its own or on one that is kept.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use assistant_tests::harness::place::Place;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For any one request; far above what the drill needs.
const DEADLINE: Duration = Duration::from_secs(20);
/// An answer to CONNECT.
const MOST_HEAD: usize = 8 * 1024;
/// Requests of a kept connection before the clock runs: leaf certificate, upstream connection and caches are there then.
const WARM_UP: usize = 5;

/// A way to a host.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// As it stands in the table.
    pub(crate) name: &'static str,
    /// From where.
    pub(crate) place: Place,
    /// What is dialled.
    pub(crate) dial: SocketAddrV4,
    /// For a proxy: the value of `Proxy-Authorization`.
    pub(crate) tunnel: Option<String>,
    /// What is believed; none for plain HTTP.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Host, in CONNECT, SNI and `Host`.
    pub(crate) host: &'static str,
    /// What is asked.
    pub(crate) ask: Ask,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Route {
    /// `count` requests, each on a connection of its own: from before the connection to the last byte of the answer.
    ///
    /// # Errors
    /// When one is not answered with 200.
    pub(crate) async fn fresh(&self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let route = self.clone();
        let work = move || async move {
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let began = Instant::now();
                times.push(route.converse(0, 1).await?.last_byte.saturating_duration_since(began));
            }
            Ok(times)
        };
        self.place.run(work).await.with_context(|| self.name)
    }

    /// `count` requests, one after the other on one connection that has seen a few before.
    ///
    /// # Errors
    /// As [`Route::fresh`].
    pub(crate) async fn kept(&self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let route = self.clone();
        let work = move || async move { Ok(route.converse(WARM_UP, count).await?.times) };
        self.place.run(work).await.with_context(|| self.name)
    }

    async fn converse(&self, warm_up: usize, count: usize) -> anyhow::Result<Conversation> {
        let stream = timeout(DEADLINE, self.open()).await.context("no connection in time")??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let asking = async move {
            for _ in 0..warm_up {
                self.once(&mut sender).await?;
            }
            let mut times = Vec::with_capacity(count);
            let mut last_byte = Instant::now();
            for _ in 0..count {
                let began = Instant::now();
                self.once(&mut sender).await?;
                last_byte = Instant::now();
                times.push(last_byte.saturating_duration_since(began));
            }
            anyhow::Ok(Conversation { times, last_byte })
        };
        // The sender goes with `asking`, which lets the connection end; how it ends does not matter any more then.
        let (asked, ended) = tokio::join!(asking, connection);
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
        asked
    }

    async fn open(&self) -> anyhow::Result<Box<dyn Stream>> {
        let mut stream = TcpStream::connect(self.dial).await.with_context(|| format!("cannot reach {}", self.dial))?;
        stream.set_nodelay(true)?;
        if let Some(authorization) = &self.tunnel {
            let status = connect(&mut stream, self.host, authorization).await?;
            anyhow::ensure!(status == "200", "CONNECT was answered with {status}");
        }
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host)?;
        Ok(Box::new(tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
    }

    async fn once(&self, sender: &mut http1::SendRequest<Full<Bytes>>) -> anyhow::Result<()> {
        let ask = &self.ask;
        let mut request = Request::builder().method(&ask.method).uri(ask.path).header(http::header::HOST, self.host);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(ask.body.clone()))?;
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
            Ok(())
        };
        timeout(DEADLINE, answered).await.context("no answer in time")?
    }
}

struct Conversation {
    times: Vec<Duration>,
    last_byte: Instant,
}

/// Asks a proxy for a tunnel; gives the status.
///
/// # Errors
/// When no answer comes that could be one.
pub(crate) async fn connect(stream: &mut TcpStream, host: &str, authorization: &str) -> anyhow::Result<String> {
    let head =
        format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\nProxy-Authorization: {authorization}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    // What is in the tunnel speaks only after we did, so nothing beyond the head can come.
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        anyhow::ensure!(answer.len() < MOST_HEAD, "the answer to CONNECT is too long");
        let got = stream.read_buf(&mut answer).await?;
        anyhow::ensure!(got > 0, "the proxy closed the connection");
    }
    let line = String::from_utf8_lossy(&answer);
    Ok(line.split(' ').nth(1).unwrap_or_default().to_owned())
}
