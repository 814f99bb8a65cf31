//! Asks Jaeger for one trace: a small HTTP client with a deadline and a cap, for one peer on the telemetry network.
//! What Jaeger returns is not believed to be anything but data; `tree` makes it harmless.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::tree::{self, MalformedTrace, Node};

/// From the connection to the last byte.
const DEADLINE: Duration = Duration::from_secs(5);
/// A trace of ten thousand spans is a tenth of this.
const MOST_BODY_BYTES: usize = 64 * 1024 * 1024;

/// Why there is no trace to show.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// Jaeger has no span of it (yet).
    #[error("no span of this trace has arrived")]
    NotFound,
    /// No answer in time, or no connection.
    #[error("Jaeger does not answer")]
    Unreachable(#[source] std::io::Error),
    /// It broke off, or sent more than is taken.
    #[error("Jaeger's answer could not be read")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another status than 200 and 404.
    #[error("Jaeger answered with status {0}")]
    Status(StatusCode),
    /// Not a trace.
    #[error(transparent)]
    Malformed(#[from] MalformedTrace),
}

/// `jaeger_url` of the configuration is not `http://host:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form http://<address>:<port>")]
pub struct NotAnOrigin;

/// Where Jaeger answers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jaeger {
    authority: String,
}

impl Jaeger {
    /// From `http://host:port`.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn new(url: &str) -> Result<Self, NotAnOrigin> {
        let uri: Uri = url.parse().map_err(|_| NotAnOrigin)?;
        let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        match uri.authority() {
            Some(authority) if plain && uri.port_u16().is_some() && !authority.as_str().contains('@') => {
                Ok(Self { authority: authority.as_str().to_owned() })
            }
            _ => Err(NotAnOrigin),
        }
    }

    /// The trace as a tree, depth first.
    ///
    /// # Errors
    /// See [`ShowError`].
    pub async fn trace(&self, id: &TraceId) -> Result<Vec<Node>, ShowError> {
        let body = tokio::time::timeout(DEADLINE, self.fetch(&format!("/api/traces/{}", id.0)))
            .await
            .map_err(|_| ShowError::Unreachable(std::io::ErrorKind::TimedOut.into()))??;
        Ok(tree::parse(&body)?)
    }

    async fn fetch(&self, path: &str) -> Result<Bytes, ShowError> {
        let stream = TcpStream::connect(&self.authority).await.map_err(ShowError::Unreachable)?;
        let broken = |error: hyper::Error| ShowError::Broken(Box::new(error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::get(path)
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|error| ShowError::Broken(Box::new(error)))?;
        // The connection is driven here rather than in a task of its own: it ends with the call.
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Err(ShowError::NotFound),
                status => return Err(ShowError::Status(status)),
            }
            let body =
                Limited::new(response.into_body(), MOST_BODY_BYTES).collect().await.map_err(ShowError::Broken)?;
            Ok(body.to_bytes())
        };
        tokio::pin!(exchange, connection);
        let mut connected = true;
        loop {
            tokio::select! {
                outcome = &mut exchange => return outcome,
                ended = &mut connection, if connected => {
                    ended.map_err(broken)?;
                    // The answer may still be complete; the exchange decides.
                    connected = false;
                }
            }
        }
    }
}

/// A trace id: 32 lower-case hex digits, not all zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceId(String);

/// Not a trace id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a trace id is 32 hex digits, for example the trace_id of an event")]
pub struct NotATraceId;

impl std::str::FromStr for TraceId {
    type Err = NotATraceId;
    fn from_str(text: &str) -> Result<Self, NotATraceId> {
        let text = text.trim().to_ascii_lowercase();
        let fits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) && text.bytes().any(|b| b != b'0');
        if fits { Ok(Self(text)) } else { Err(NotATraceId) }
    }
}

impl TraceId {
    /// As 32 lower-case hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_origin() {
        assert!(Jaeger::new("http://10.87.2.7:16686").is_ok());
        for bad in ["", "10.87.2.7:16686", "https://a:1", "http://a", "http://u@a:1", "http://a:1/x", "http://a:1?x"] {
            assert!(Jaeger::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_trace_ids() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(format!(" {}\n", id.to_uppercase()).parse(), Ok(TraceId(id.to_owned())));
        for bad in ["", "4bf92f", "../../api/services00000000000000000", "00000000000000000000000000000000"] {
            assert_eq!(bad.parse::<TraceId>(), Err(NotATraceId), "{bad}");
        }
    }
}
