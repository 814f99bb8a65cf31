//! What stands behind a site: notes what reaches it, and answers as the path says.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use service_kit::task::{OnEnd, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::world::v4;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upstream {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Pieces of bodies, as they come.
    pieces: Arc<Mutex<Vec<Bytes>>>,
    /// Lets the second half of `/stream` go.
    pub(crate) release: Arc<Notify>,
    tasks: Tasks,
}

impl Upstream {
    pub(crate) fn at_socket(path: &Path) -> Self {
        let upstream = Self::default();
        let listener = UnixListener::bind(path).unwrap();
        let serving = upstream.clone();
        upstream.tasks.spawn("upstream", OnEnd::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.serve(stream);
            }
            Ok(())
        });
        upstream
    }

    pub(crate) async fn at_address() -> (Self, SocketAddrV4) {
        let upstream = Self::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = v4(listener.local_addr().unwrap());
        let serving = upstream.clone();
        upstream.tasks.spawn("upstream", OnEnd::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.serve(stream);
            }
            Ok(())
        });
        (upstream, address)
    }

    /// What came, and forgets it.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// The bodies that came so far.
    pub(crate) fn bodies(&self) -> String {
        let pieces = self.pieces.lock().unwrap();
        String::from_utf8(pieces.iter().flatten().copied().collect()).unwrap()
    }

    fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let upstream = self.clone();
        let answers = service_fn(move |request| {
            let upstream = upstream.clone();
            async move { Ok::<_, Infallible>(upstream.answer(request).await) }
        });
        self.tasks.spawn("connection", OnEnd::Expected, async move {
            let builder = hyper::server::conn::http1::Builder::new();
            drop(builder.serve_connection(TokioIo::new(stream), answers).with_upgrades().await);
            Ok(())
        });
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        self.seen.lock().unwrap().push(Seen {
            method: request.method().to_string(),
            path: request.uri().to_string(),
            headers: request.headers().clone(),
        });
        let (pieces, body) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(8);
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(body)).boxed_unsync();
        let path = request.uri().path().to_owned();
        if path == "/ws" {
            return self.websocket(&mut request, body);
        }
        let (pieces_seen, release) = (Arc::clone(&self.pieces), Arc::clone(&self.release));
        self.tasks.spawn("answer", OnEnd::Expected, async move {
            let mut sent = request.into_body();
            if path == "/stream" {
                pieces.send(Ok(Frame::data("first".into()))).await?;
                release.notified().await;
            }
            while let Some(Ok(frame)) = sent.frame().await {
                if let Ok(data) = frame.into_data() {
                    pieces_seen.lock().unwrap().push(data);
                }
            }
            pieces.send(Ok(Frame::data("last".into()))).await?;
            Ok(())
        });
        let response = Response::builder()
            .header("content-type", "text/html")
            .header("set-cookie", "theirs=1; Domain=localhost")
            .header("access-control-allow-origin", "*");
        response.body(body).unwrap()
    }

    /// Says everything back.
    fn websocket(&self, request: &mut Request<Incoming>, body: Body) -> Response<Body> {
        let key = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
        let upgrade = hyper::upgrade::on(request);
        self.tasks.spawn("websocket", OnEnd::Expected, async move {
            let io = TokioIo::new(upgrade.await?);
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                socket.send(message).await?;
            }
            Ok(())
        });
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", key);
        response.body(body).unwrap()
    }
}
