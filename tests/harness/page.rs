//! JSON pages over plain HTTP: what Jaeger and the NATS server say about themselves.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// For one page.
const DEADLINE: Duration = Duration::from_secs(20);
/// Largest page: a list of a thousand traces.
const MOST_BYTES: usize = 256 << 20;

/// Asks for a page, on a connection of its own.
///
/// # Errors
/// When there is no such page, or it is not JSON.
pub async fn json(address: SocketAddrV4, path: &str) -> anyhow::Result<Value> {
    let work = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(path)
            .header(header::HOST, address.to_string())
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            anyhow::ensure!(status == StatusCode::OK, "{status}");
            anyhow::Ok(body)
        };
        // The connection ends once the sender and the body are gone.
        let (body, ended) = tokio::join!(answer, connection);
        let body = body?;
        ended?;
        anyhow::Ok(serde_json::from_slice(&body)?)
    };
    let page = tokio::time::timeout(DEADLINE, work).await.context("no answer in time")?;
    page.with_context(|| format!("http://{address}{path}"))
}
