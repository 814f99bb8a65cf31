//! What the drill's internet received.

use anyhow::Context as _;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

use crate::doubles::control::Since;
use crate::doubles::record::{Arrival, Entry};

/// The control socket of the drill's internet.
pub const SOCKET: &str = "/run/assistant-drill/control.sock";

/// A place in the order of arrivals.
#[derive(Debug, Clone, Copy)]
pub struct Cursor(u64);

/// The newest place.
///
/// # Errors
/// When the doubles do not answer.
pub async fn now() -> anyhow::Result<Cursor> {
    Ok(Cursor(ask(u64::MAX).await?.cursor))
}

/// What arrived after `cursor`.
///
/// # Errors
/// When the doubles do not answer.
pub async fn since(cursor: Cursor) -> anyhow::Result<Vec<Entry>> {
    Ok(ask(cursor.0).await?.entries)
}

/// Packets to an address.
#[must_use]
pub fn packets_to<'a>(entries: &'a [Entry], address: &str) -> Vec<&'a Entry> {
    entries
        .iter()
        .filter(|entry| matches!(&entry.arrival, Arrival::Packet { destination, .. } if destination == address))
        .collect()
}

/// HTTP requests to a double, as it answered them.
#[must_use]
pub fn requests_to<'a>(entries: &'a [Entry], wanted: &str) -> Vec<&'a Arrival> {
    let arrivals = entries.iter().map(|entry| &entry.arrival);
    arrivals.filter(|arrival| matches!(arrival, Arrival::Request { host, .. } if host == wanted)).collect()
}

/// DNS questions whose name contains `part`.
#[must_use]
pub fn queries_for<'a>(entries: &'a [Entry], part: &str) -> Vec<&'a Entry> {
    entries
        .iter()
        .filter(|entry| matches!(&entry.arrival, Arrival::Query { name, .. } if name.contains(part)))
        .collect()
}

/// Gives the double of the model another name, or its own again.
///
/// # Errors
/// When the doubles do not answer.
pub async fn name_model(name: Option<&str>) -> anyhow::Result<()> {
    let body = bytes::Bytes::from(serde_json::json!({ "name": name }).to_string());
    let request = http::Request::post("/model/name").header(http::header::HOST, "drill").body(Full::new(body))?;
    let said: serde_json::Value = serde_json::from_slice(&exchange(request).await?)?;
    anyhow::ensure!(name.is_none() || said.get("name").and_then(serde_json::Value::as_str) == name, "{said}");
    Ok(())
}

async fn ask(cursor: u64) -> anyhow::Result<Since> {
    let request = http::Request::get(format!("/since/{cursor}"))
        .header(http::header::HOST, "drill")
        .body(Full::new(bytes::Bytes::new()))?;
    Ok(serde_json::from_slice(&exchange(request).await?)?)
}

async fn exchange(request: http::Request<Full<bytes::Bytes>>) -> anyhow::Result<bytes::Bytes> {
    let stream = tokio::net::UnixStream::connect(SOCKET).await.context("the drill's internet does not answer")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        anyhow::Ok(response.into_body().collect().await?.to_bytes())
    };
    // The connection ends once the sender and the body are gone.
    let (body, connection) = tokio::join!(answer, connection);
    connection?;
    body
}
