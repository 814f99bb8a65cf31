//! Says over a Unix socket what arrived: `GET /since/<cursor>` gives `{"cursor": n, "entries": [...]}`.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use service_kit::task::{OnEnd, Tasks};

use super::critical;
use super::record::{Entry, Record};

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Since {
    /// Sequence of the newest entry.
    pub cursor: u64,
    /// What came after the cursor asked for.
    pub entries: Vec<Entry>,
}

/// Serves the socket.
///
/// # Errors
/// When it cannot be bound.
pub fn start(tasks: &Tasks, path: &Path, record: Arc<Record>) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path).with_context(|| path.display().to_string())?;
    let open = tasks.clone();
    critical(tasks, "control".to_owned(), async move {
        loop {
            let (stream, _) = listener.accept().await?;
            let record = Arc::clone(&record);
            open.spawn("control-connection", OnEnd::Expected, async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let answer = answer(request.uri().path(), &record);
                    async move { Ok::<_, Infallible>(answer) }
                });
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
                Ok(())
            });
        }
    });
    Ok(())
}

fn answer(path: &str, record: &Record) -> Response<Full<Bytes>> {
    let cursor = path.strip_prefix("/since/").and_then(|text| text.parse().ok());
    let body = cursor
        .and_then(|cursor| serde_json::to_vec(&Since { cursor: record.cursor(), entries: record.since(cursor) }).ok());
    let (status, body) = match body {
        Some(body) => (StatusCode::OK, body),
        None => (StatusCode::NOT_FOUND, b"ask for /since/<cursor>\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
