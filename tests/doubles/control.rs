//! Says over a Unix socket what arrived: `GET /since/<cursor>` gives `{"cursor": n, "entries": [...]}`. Below
//! `/telegram/` one is a person on Telegram: see [`Telegram::control`]; below `/model/` whoever runs the model's host: see
//! [`Model::control`].

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use service_kit::task::{OnEnd, Tasks};

use super::critical;
use super::model::Model;
use super::record::{Entry, Record};
use super::telegram::Telegram;

/// What a person writes, with all that may surround it.
const MOST_BODY: usize = 1024 * 1024;

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
pub fn start(
    tasks: &Tasks,
    path: &Path,
    record: Arc<Record>,
    telegram: Option<Arc<Telegram>>,
    model: Option<Arc<Model>>,
) -> anyhow::Result<()> {
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
            let (record, telegram, model) = (Arc::clone(&record), telegram.clone(), model.clone());
            open.spawn("control-connection", OnEnd::Expected, async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (record, telegram, model) = (Arc::clone(&record), telegram.clone(), model.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = Limited::new(body, MOST_BODY).collect().await.map(|body| body.to_bytes());
                        let body = body.unwrap_or_default();
                        let (method, path) = (parts.method.as_str(), parts.uri.path());
                        let said = telegram
                            .and_then(|telegram| telegram.control(method, path, &body))
                            .or_else(|| model?.control(method, path, &body));
                        Ok::<_, Infallible>(match said {
                            Some(said) => response(StatusCode::OK, said.to_string().into_bytes()),
                            None => answer(parts.uri.path(), &record),
                        })
                    }
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
    match body {
        Some(body) => response(StatusCode::OK, body),
        None => response(
            StatusCode::NOT_FOUND,
            b"ask for /since/<cursor>, or for what is below /telegram/ and /model/\n".to_vec(),
        ),
    }
}

fn response(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
