//! The other end of the control socket: somebody on Telegram, as tests and tools of a drill need them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::SentMessage;

/// Between two looks at what was sent.
const LOOK: Duration = Duration::from_millis(50);

/// Somebody.
#[derive(Debug, Clone)]
pub struct Person {
    /// The control socket of the drill's internet.
    pub socket: PathBuf,
    /// Their numeric id.
    pub user: i64,
    /// Where they write; the private chat with the bot where it is not said.
    pub chat: Option<i64>,
}

/// What the double knows.
#[derive(Debug, Deserialize)]
pub struct State {
    /// What the bot sent.
    pub messages: Vec<SentMessage>,
    /// How often it showed that it is typing.
    pub typing: u64,
    /// Calls of any kind.
    pub calls: u64,
    /// Updates that were not acknowledged.
    pub waiting: u64,
    /// Faults that are still to come.
    pub faults: u64,
}

impl Person {
    /// Writes something; returns the update's id.
    ///
    /// # Errors
    /// When the doubles do not answer.
    pub async fn write(&self, text: &str) -> anyhow::Result<i64> {
        self.post(json!({"text": text})).await
    }

    /// Writes a message with any fields of its own below `message`.
    ///
    /// # Errors
    /// When the doubles do not answer, or do not take it.
    pub async fn post(&self, mut message: Value) -> anyhow::Result<i64> {
        let object = message.as_object_mut().context("a message is an object")?;
        object.insert("user_id".to_owned(), json!(self.user));
        object.insert("chat_id".to_owned(), json!(self.chat));
        let answer = ask(&self.socket, Method::POST, "/telegram/message", &message).await?;
        answer.get("update_id").and_then(Value::as_i64).context("the double did not take the message")
    }

    /// Waits for the first message to their chat after `after` that `wanted` says yes to.
    ///
    /// # Errors
    /// When it does not come in time; the error says what came instead.
    pub async fn hears(
        &self,
        after: u64,
        within: Duration,
        wanted: impl Fn(&SentMessage) -> bool,
    ) -> anyhow::Result<SentMessage> {
        let end = Instant::now() + within;
        loop {
            let mut sent = sent(&self.socket, after).await?.messages;
            sent.retain(|message| message.chat_id == self.chat.unwrap_or(self.user));
            if let Some(at) = sent.iter().position(&wanted) {
                return Ok(sent.swap_remove(at));
            }
            anyhow::ensure!(Instant::now() < end, "it did not come within {within:?}; what came: {sent:?}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What the bot sent after the message with sequence `after`, and what else is known.
///
/// # Errors
/// When the doubles do not answer.
pub async fn sent(socket: &Path, after: u64) -> anyhow::Result<State> {
    Ok(serde_json::from_value(ask(socket, Method::GET, &format!("/telegram/sent/{after}"), &Value::Null).await?)?)
}

/// Makes something go wrong; see [`super::Fault`].
///
/// # Errors
/// When the doubles do not answer, or do not understand it.
pub async fn fault(socket: &Path, fault: &Value) -> anyhow::Result<()> {
    ask(socket, Method::POST, "/telegram/fault", fault).await.map(|_| ())
}

async fn ask(socket: &Path, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
    let stream = tokio::net::UnixStream::connect(socket).await.context("the drill's internet does not answer")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "drill")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status == StatusCode::OK, "the double of Telegram: {}", String::from_utf8_lossy(&body));
        anyhow::Ok(body)
    };
    // The connection ends once the sender and the body are gone.
    let (answer, ended) = tokio::join!(answer, connection);
    ended?;
    Ok(serde_json::from_slice(&answer?)?)
}
