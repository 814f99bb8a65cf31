//! What a browser does, behind the gate: HTTP/1.1 and WebSocket over the dashboard's Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};

pub(crate) const HOST: &str = "tasks.localhost:42001";

/// Files such as a dashboard has.
pub(crate) fn write_files(dir: &Path) {
    std::fs::create_dir_all(dir.join("assets")).unwrap();
    std::fs::write(dir.join("index.html"), "<html><script>1</script>the page</html>").unwrap();
    std::fs::write(dir.join("assets/a-1.js"), "// the script").unwrap();
    std::fs::write(dir.join("logo.png"), "png").unwrap();
    std::fs::write(dir.parent().unwrap().join("secret"), "outside").unwrap();
}

/// A request as the gate passes it on.
pub(crate) fn request(method: &str, target: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(target).header("host", HOST).header("assistant-site", "tasks")
}

pub(crate) async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    let response = tokio::time::timeout(Duration::from_secs(20), sender.send_request(request)).await.unwrap().unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driven.abort();
    Response::from_parts(parts, body)
}

pub(crate) async fn ask(socket: &Path, method: &str, target: &str) -> Response<Bytes> {
    send(socket, request(method, target).body(Full::default()).unwrap()).await
}

pub(crate) async fn get(socket: &Path, target: &str) -> Response<Bytes> {
    ask(socket, "GET", target).await
}

pub(crate) fn json_of(response: &Response<Bytes>) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    serde_json::from_slice(response.body()).unwrap()
}

/// A page's chat.
pub(crate) struct Page {
    socket: WebSocketStream<UnixStream>,
}

impl Page {
    pub(crate) async fn open(at: PathBuf, session: &str) -> Self {
        let target = format!("ws://{HOST}/ws/chat?session_id={session}&agent=default");
        let page = Self::try_open(&at, &target, |_| {}).await.unwrap();
        let mut page = page;
        assert_eq!(page.next().await["type"], "session_start");
        page
    }

    pub(crate) async fn try_open(
        at: &Path,
        target: &str,
        change: impl FnOnce(&mut tokio_tungstenite::tungstenite::handshake::client::Request),
    ) -> Result<Self, Error> {
        let mut request = target.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("assistant-site", HeaderValue::from_static("tasks"));
        headers.insert("origin", HeaderValue::from_str(&format!("http://{HOST}")).unwrap());
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("zeroclaw.v1"));
        change(&mut request);
        let stream = UnixStream::connect(at).await.unwrap();
        let (socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
        assert_eq!(answer.headers()["sec-websocket-protocol"], "zeroclaw.v1");
        Ok(Self { socket })
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.send(json!({"type": "message", "content": text})).await;
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame; none when the bridge has closed the chat.
    pub(crate) async fn maybe_next(&mut self) -> Option<Value> {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.socket.next()).await.unwrap();
            match message {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(text.as_str()).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Value {
        self.maybe_next().await.unwrap()
    }

    /// All frames up to the next of a type.
    pub(crate) async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut frames = Vec::new();
        loop {
            frames.push(self.next().await);
            if frames.last().unwrap()["type"] == kind {
                return frames;
            }
        }
    }

    /// A message and everything that comes of it, with the trace it names at its end.
    pub(crate) async fn turn(&mut self, text: &str) -> (Vec<Value>, String) {
        self.say(text).await;
        self.rest().await
    }

    pub(crate) async fn rest(&mut self) -> (Vec<Value>, String) {
        let mut frames = self.until("message").await;
        let last = frames.pop().unwrap();
        let trace = last["content"].as_str().unwrap().strip_prefix("Trace `").unwrap().trim_end_matches('`').to_owned();
        (frames, trace)
    }
}
