//! Asks an agent's gateway on behalf of a page: a constant path, with the bridge's token. What comes back was written by an
//! agent that counts as hostile: it is JSON or nothing, has a size, and its text is made harmless. No header of it, and no
//! status but success, goes any further.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use service_kit::text::harmless;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::paths::Forwarded;
use crate::acp::{AcpError, Gateway};

/// For the whole answer. ZeroClaw takes these from its memory.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer.
const MOST_BYTES: usize = 1 << 20;
/// Longest text in it, in characters.
const MOST_TEXT: usize = 10_000;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be asked.
    #[error(transparent)]
    Gateway(#[from] AcpError),
    /// It answered with something else than success.
    #[error("the agent answered {0}")]
    Status(u16),
    /// It answered with something else than JSON of a sensible size.
    #[error("the agent answered with something that is not JSON of at most {MOST_BYTES} bytes")]
    NotJson,
}

/// Asks.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(gateway: &Gateway, what: Forwarded) -> Result<Value, AskError> {
    let address = gateway.address();
    let silent = |_| AcpError::Unreachable { address, source: None };
    timeout(DEADLINE, answer(gateway, what)).await.map_err(silent)?
}

async fn answer(gateway: &Gateway, what: Forwarded) -> Result<Value, AskError> {
    let address = gateway.address();
    let broken = |source: std::io::Error| AcpError::Unreachable { address, source: Some(source) };
    let stream = TcpStream::connect(address).await.map_err(broken)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| broken(std::io::Error::other(error)))?;
    let request = Request::get(what.target())
        .header(HOST, address.to_string())
        .header(AUTHORIZATION, gateway.bearer().map_err(|error| broken(std::io::Error::other(error)))?)
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| broken(std::io::Error::other(error)))?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| broken(std::io::Error::other(error)))?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|_| AskError::NotJson)?.to_bytes();
        let value: Value = serde_json::from_slice(&body).map_err(|_| AskError::NotJson)?;
        Ok(tidy(value))
    };
    let mut exchange = std::pin::pin!(exchange);
    // The connection is driven here rather than in a task of its own: it ends with the call.
    tokio::select! {
        answer = &mut exchange => answer,
        // It ended first; the answer is there, or never comes.
        _ = connection => exchange.await,
    }
}

/// With every text in it made harmless. As deep as the parser lets it be: 128 levels.
fn tidy(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(harmless(&text, MOST_TEXT)),
        Value::Array(items) => Value::Array(items.into_iter().map(tidy).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (harmless(&name, MOST_TEXT), tidy(value))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_text_is_made_harmless() {
        let value = json!({"a\u{202e}": ["\u{1b}[31m", {"b": "ok", "n": 1}]});
        assert_eq!(tidy(value), json!({"a\\u{202e}": ["\\u{1b}[31m", {"b": "ok", "n": 1}]}));
    }
}
