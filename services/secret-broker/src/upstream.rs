//! The only way from the broker to the internet: a CONNECT to Squid on `transit` as the tier's Squid user, then TLS that is
//! verified here, then HTTP/1.1. There is no direct dialling and no unverified mode. (Model calls go to a LiteLLM of the
//! stack, see `models`; it has a Squid user of its own.)
//!
//! It knows nothing of rules and secrets. Each Squid user has a TLS client of its own, so that no session ticket links
//! one tier's traffic to another's.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use assistant_proto::config::Mode;
use assistant_proto::name::HostName;
use assistant_proto::trace::TraceParent;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use policy::Denial;
use rustls::ClientConfig;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use service_kit::files::read_secret;
use service_kit::roots::{RootsError, trusted};
use service_kit::task::{OnEnd, Tasks};
use service_kit::trace::current_traceparent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Instrument;
use zeroize::Zeroizing;

use crate::attempt::Attempt;
use crate::body::Body;
use crate::journal::Recorded;
use crate::refusal::Refusal;

/// For TCP to Squid, CONNECT, TLS and HTTP together; Squid gives up connecting after 5 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// From the last byte of the request to the head of the answer. Models think long.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(300);
/// Squid's answer to CONNECT has a handful of short headers.
const MOST_CONNECT_ANSWER: usize = 8 * 1024;
/// Head of an answer, in bytes.
pub(crate) const MOST_ANSWER_HEAD: usize = 64 * 1024;
/// Header lines of an answer.
pub(crate) const MOST_ANSWER_HEADERS: usize = 128;

/// Why nothing came of a request that was permitted.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens where Squid should be.
    #[error("Squid cannot be reached")]
    SquidUnreachable(#[source] io::Error),
    /// Squid reset the connection: its way of denying, with a line in its log.
    #[error("Squid refused the connection")]
    SquidReset,
    /// Squid answered the CONNECT with something other than yes, or ended without an answer.
    #[error("Squid did not make the connection{}", status.map(|status| format!(": status {status}")).unwrap_or_default())]
    SquidRefused {
        /// Its status; none when there was no answer.
        status: Option<u16>,
    },
    /// What answered is not who it should be.
    #[error("the certificate of the host is not valid for it")]
    Unverified(#[source] rustls::Error),
    /// TLS ended before it began: Squid terminated it because of the SNI, or the host cannot speak it.
    #[error("TLS with the host failed")]
    Tls(#[source] io::Error),
    /// HTTP with the host failed.
    #[error("the host did not answer properly")]
    Http(#[source] hyper::Error),
    /// Out of time.
    #[error("no {what} within {} seconds", after.as_secs())]
    TimedOut {
        /// What was awaited.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The name cannot be put into a TLS handshake.
    #[error("the host name cannot be used with TLS")]
    Name(#[from] InvalidDnsNameError),
    /// No password for this Squid user was loaded: a bug or an incomplete configuration.
    #[error("there is no Squid user {user}")]
    NoSuchUser {
        /// Which user.
        user: String,
    },
}

impl UpstreamError {
    /// What the one who asked is told, and which layer counts it. Squid's refusals are counted from Squid's log; a host
    /// that is slow or broken refused nothing.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let denial = |reason, fix: &str| Denial::new(reason, self.to_string(), fix);
        match self {
            Self::SquidUnreachable(_) => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                denial("squid-unreachable", "see whether the container assistant-squid runs; it recovers by itself"),
            ),
            Self::SquidReset | Self::SquidRefused { status: Some(..=499) } => Refusal::elsewhere(
                StatusCode::BAD_GATEWAY,
                denial("squid-refused", "add the host to squid/allowlist.txt, and see egress.denied with layer squid"),
            ),
            // No denial of Squid's, so nothing that is counted from its log: it broke, or could not reach the host.
            Self::SquidRefused { .. } => Refusal::new(
                StatusCode::BAD_GATEWAY,
                denial(
                    "squid-failed",
                    "see whether the host exists and the container assistant-squid is well; try again",
                ),
            ),
            Self::Unverified(_) => Refusal::new(
                StatusCode::BAD_GATEWAY,
                denial(
                    "upstream-unverified",
                    "nothing allows this: the host has to show a certificate of a known authority",
                ),
            ),
            Self::Tls(_) => Refusal::elsewhere(
                StatusCode::BAD_GATEWAY,
                denial("upstream-tls", "see egress.denied with layer squid; otherwise the host itself refused"),
            ),
            Self::Http(_) => Refusal::elsewhere(
                StatusCode::BAD_GATEWAY,
                denial("upstream-failed", "try again; the host itself failed"),
            ),
            Self::TimedOut { .. } => Refusal::elsewhere(
                StatusCode::GATEWAY_TIMEOUT,
                denial("upstream-timeout", "try again; the host is slow"),
            ),
            Self::Name(_) => Refusal::new(StatusCode::BAD_GATEWAY, denial("upstream-name", "use a valid DNS name")),
            Self::NoSuchUser { .. } => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                denial("no-squid-user", "apply again: tier-supervisor renders one Squid user per tier"),
            ),
        }
    }
}

const ANSWER: &str = "answer";
const CONNECTION: &str = "connection";

/// Why the way out could not be set up at start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No certificates to believe hosts by.
    #[error("TLS with hosts outside")]
    Roots(#[from] RootsError),
    /// The password of a Squid user.
    #[error("no usable password for Squid user {user}")]
    Password {
        /// Which user.
        user: String,
        /// Why.
        #[source]
        source: service_kit::files::FileError,
    },
    /// rustls refused its own defaults: a bug.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

struct SquidUser {
    /// `Basic ...`
    authorization: Zeroizing<String>,
    tls: Arc<ClientConfig>,
}

/// Dials through Squid.
pub struct Upstream {
    squid: SocketAddrV4,
    users: BTreeMap<String, SquidUser>,
    /// Whether the last attempt to reach Squid succeeded.
    reachable: watch::Sender<bool>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("squid", &self.squid)
            .field("users", &self.users.keys())
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// Reads roots and the passwords of all Squid users that will be used.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn new<'a>(
        mode: Mode,
        squid: SocketAddrV4,
        roots: &[PathBuf],
        users_dir: &Path,
        users: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SetupError> {
        let roots = Arc::new(trusted(mode, roots)?);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut known = BTreeMap::new();
        for user in users {
            let password = read_secret(&users_dir.join(user))
                .map_err(|source| SetupError::Password { user: user.to_owned(), source })?;
            let pair = Zeroizing::new(format!("{user}:{}", password.as_str()));
            let authorization = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            let mut tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(Arc::clone(&roots))
                .with_no_client_auth();
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            known.insert(user.to_owned(), SquidUser { authorization, tls: Arc::new(tls) });
        }
        Ok(Self { squid, users: known, reachable: watch::Sender::new(true) })
    }

    /// Follows whether Squid can be reached.
    #[must_use]
    pub fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }

    /// Tries to reach Squid once, and lets [`Upstream::reachable`] know.
    pub async fn probe(&self) {
        let reached = timeout(CONNECT_DEADLINE, TcpStream::connect(self.squid)).await;
        self.note(matches!(reached, Ok(Ok(_))));
    }

    fn note(&self, reached: bool) {
        self.reachable.send_if_modified(|now| std::mem::replace(now, reached) != reached);
    }

    /// A verified connection to `host:port` through Squid as `user`. Its span is `broker.upstream`, a child of the
    /// attempt's and ends when the connection stands; Squid gets its identifiers and logs them.
    ///
    /// # Errors
    /// See [`UpstreamError`]; each has its own refusal.
    pub async fn connect(
        &self,
        tasks: &Tasks,
        attempt: &Attempt,
        user: &str,
        host: &HostName,
        port: u16,
    ) -> Result<SendRequest<Body>, UpstreamError> {
        let span = tracing::info_span!(
            parent: &attempt.span,
            "broker.upstream",
            otel.kind = "client",
            server.address = %host,
            server.port = port,
            squid.user = user,
            error = tracing::field::Empty,
        );
        let traceparent = current_traceparent(&span).unwrap_or_else(|| attempt.traceparent());
        let connecting = self.dial(tasks, user, host, port, traceparent).instrument(span.clone());
        let outcome = match timeout(CONNECT_DEADLINE, connecting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(UpstreamError::TimedOut { what: CONNECTION, after: CONNECT_DEADLINE }),
        };
        if let Err(error) = &outcome {
            span.record("error", error.to_string());
            tracing::warn!(parent: &span, error = %error, cause = ?std::error::Error::source(error), "no way out");
        }
        outcome
    }

    async fn dial(
        &self,
        tasks: &Tasks,
        user: &str,
        host: &HostName,
        port: u16,
        traceparent: TraceParent,
    ) -> Result<SendRequest<Body>, UpstreamError> {
        let user = self.users.get(user).ok_or_else(|| UpstreamError::NoSuchUser { user: user.to_owned() })?;
        let stream = TcpStream::connect(self.squid).await;
        self.note(stream.is_ok());
        let mut stream = stream.map_err(UpstreamError::SquidUnreachable)?;
        // Small requests must not wait for acknowledgements of smaller ones.
        stream.set_nodelay(true).map_err(UpstreamError::SquidUnreachable)?;
        connect_through(&mut stream, host, port, &user.authorization, traceparent).await?;
        let name = ServerName::try_from(host.as_str().to_owned())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&user.tls));
        let stream = connector.connect(name, stream).await.map_err(tls_error)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MOST_ANSWER_HEAD)
            .max_headers(MOST_ANSWER_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Http)?;
        let driver = async move {
            if let Err(error) = connection.await {
                // Whoever waits for an answer gets the error too; here it only ends the connection.
                tracing::debug!(%error, "upstream connection ended");
            }
            Ok(())
        };
        tasks.spawn("upstream-connection", OnEnd::Expected, driver);
        Ok(sender)
    }
}

/// Sends a request whose permit was stored, and waits for the head of its answer. A connection that had already ended gives the request back.
///
/// # Errors
/// `Err((error, Some(request)))` when nothing of it was sent and a fresh connection may be tried.
#[allow(clippy::result_large_err, reason = "the request comes back whole so that it can be sent again")]
pub async fn send(
    sender: &mut SendRequest<Body>,
    request: Request<Body>,
    _recorded: &Recorded,
) -> Result<Response<Incoming>, (UpstreamError, Option<Request<Body>>)> {
    match timeout(ANSWER_DEADLINE, sender.try_send_request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(mut error)) => {
            let unsent = error.take_message();
            Err((UpstreamError::Http(error.into_error()), unsent))
        }
        Err(_) => Err((UpstreamError::TimedOut { what: ANSWER, after: ANSWER_DEADLINE }, None)),
    }
}

/// Speaks the CONNECT. Squid denies by resetting the connection (`deny_info TCP_RESET`).
async fn connect_through(
    stream: &mut TcpStream,
    host: &HostName,
    port: u16,
    authorization: &str,
    traceparent: TraceParent,
) -> Result<(), UpstreamError> {
    let head = Zeroizing::new(format!(
        "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nProxy-Authorization: {authorization}\r\ntraceparent: {traceparent}\r\n\r\n"
    ));
    let hung_up = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionReset => UpstreamError::SquidReset,
        _ => UpstreamError::SquidRefused { status: None },
    };
    stream.write_all(head.as_bytes()).await.map_err(hung_up)?;
    let mut answer = Vec::with_capacity(512);
    let end = loop {
        if let Some(end) = memchr::memmem::find(&answer, b"\r\n\r\n") {
            break end.saturating_add(4);
        }
        if answer.len() > MOST_CONNECT_ANSWER {
            return Err(UpstreamError::SquidRefused { status: None });
        }
        if stream.read_buf(&mut answer).await.map_err(hung_up)? == 0 {
            return Err(UpstreamError::SquidRefused { status: None });
        }
    };
    match status(&answer) {
        // A TLS server speaks second: bytes behind the head are not the host's.
        Some(200) if answer.len() == end => Ok(()),
        status => Err(UpstreamError::SquidRefused { status }),
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

fn tls_error(error: io::Error) -> UpstreamError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner @ rustls::Error::InvalidCertificate(_)) => UpstreamError::Unverified(inner.clone()),
        _ => UpstreamError::Tls(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        for (line, expected) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 407 x\r\n", Some(407)),
            ("SSH-2.0 200\r\n", None),
            ("HTTP/1.1\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(line.as_bytes()), expected, "{line:?}");
        }
    }
}
