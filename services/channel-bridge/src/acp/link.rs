//! One WebSocket to a gateway, carrying JSON-RPC.

use std::net::SocketAddrV4;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use zeroize::Zeroizing;

use super::AcpError;
use super::message::{self, Incoming, RequestId};

/// The subprotocol ZeroClaw names.
const SUBPROTOCOL: &str = "zeroclaw.acp.v1";
/// Longest frame that is taken: ZeroClaw's shell gives out two megabytes at most, and its frame repeats them three times.
/// Only a small one becomes a tree (`message`).
const MOST_FRAME: usize = 8 * 1024 * 1024;
/// What is taken over one connection, which is one turn: many times what the busiest honest turn sends. Without an end,
/// one agent could keep the bridge from the others for as long as its turn may last.
const MOST_FRAMES: u32 = 1_000_000;
const MOST_BYTES: usize = 256 * 1024 * 1024;
/// What may wait to be written: our frames are small, a peer that does not read is broken.
const MOST_UNWRITTEN: usize = 1024 * 1024;
/// How long a frame may take to be written.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// An open connection. Dropping it ends the agent's session object; the history stays in the agent's store.
#[derive(Debug)]
pub struct Link {
    socket: WebSocketStream<TcpStream>,
    next_id: u64,
    heard: Instant,
    taken: Taken,
}

/// What a connection has brought so far.
#[derive(Debug, Default)]
struct Taken {
    frames: u32,
    bytes: usize,
}

/// ZeroClaw writes small frames with Nagle's algorithm on, so each waits for the acknowledgement of the one before, which
/// the kernel delays by up to 40 ms (docs/benchmarks.md). The kernel forgets the setting, hence before each read.
fn acknowledge_at_once(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_quickack(true) {
        tracing::debug!(%error, "acknowledgements are delayed");
    }
}

impl Taken {
    fn add(&mut self, bytes: usize) -> Result<(), AcpError> {
        self.frames = self.frames.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.frames > MOST_FRAMES || self.bytes > MOST_BYTES { Err(AcpError::TooMuch) } else { Ok(()) }
    }
}

impl Link {
    pub(super) async fn open(address: SocketAddrV4, token: &Zeroizing<String>) -> Result<Self, AcpError> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| AcpError::Unreachable { address, source: Some(source) })?;
        stream.set_nodelay(true).map_err(|source| AcpError::Unreachable { address, source: Some(source) })?;
        let handshake = |source: Error| AcpError::Handshake { address, source: Box::new(source) };
        let mut request = format!("ws://{address}/acp?agent=default").into_client_request().map_err(handshake)?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|error| handshake(Error::from(error)))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert("authorization", bearer);
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
        let config = WebSocketConfig::default()
            .max_message_size(Some(MOST_FRAME))
            .max_frame_size(Some(MOST_FRAME))
            .max_write_buffer_size(MOST_UNWRITTEN);
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(Self { socket, next_id: 0, heard: Instant::now(), taken: Taken::default() }),
            Err(Error::Http(response)) => Err(AcpError::Refused { address, status: response.status().as_u16() }),
            Err(Error::Io(source)) => Err(AcpError::Unreachable { address, source: Some(source) }),
            Err(source) => Err(handshake(source)),
        }
    }

    /// When the peer was last heard of, pongs included.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// The next frame. Cancel-safe: a frame is returned whole or not taken.
    ///
    /// # Errors
    /// When the connection ended or the frame is refused.
    pub async fn receive(&mut self) -> Result<Incoming, AcpError> {
        loop {
            acknowledge_at_once(self.socket.get_ref());
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    tracing::debug!(%error, "the connection to the agent ended");
                    return Err(AcpError::Disconnected);
                }
                None => return Err(AcpError::Disconnected),
            };
            self.heard = Instant::now();
            self.taken.add(message.len())?;
            match message {
                Message::Text(text) => return Ok(Incoming::parse(text.as_str())?),
                Message::Binary(_) => return Err(AcpError::Malformed(message::Malformed::NotJson)),
                Message::Close(_) => return Err(AcpError::Disconnected),
                // tungstenite queues the pong itself.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Begins a call and returns its id; the answer comes as [`Incoming::Response`].
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn begin(&mut self, method: &str, params: &Value) -> Result<u64, AcpError> {
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        self.write(message::call(id, method, params)).await?;
        Ok(id)
    }

    /// Calls and waits. Updates that come in between are history or belong to no turn: they are dropped, and requests
    /// are turned down.
    ///
    /// # Errors
    /// See [`AcpError`].
    pub async fn call(&mut self, call: &'static str, params: &Value, deadline: Duration) -> Result<Value, AcpError> {
        let answer = async {
            let ours = self.begin(call, params).await?;
            loop {
                match self.receive().await? {
                    Incoming::Response { id, result } if id == ours => {
                        return result.map_err(|error| AcpError::rpc(call, &error));
                    }
                    Incoming::Permission { id, .. } => self.withdraw(&id).await?,
                    Incoming::OtherRequest { id } => self.turn_down(&id).await?,
                    Incoming::Response { .. } | Incoming::Update { .. } | Incoming::OtherNotification => {}
                }
            }
        };
        timeout(deadline, answer).await.map_err(|_| AcpError::Silent { call, deadline })?
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn notify(&mut self, method: &str, params: &Value) -> Result<(), AcpError> {
        self.write(message::notify(method, params)).await
    }

    /// Answers an approval request.
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn decide(&mut self, id: &RequestId, approved: bool) -> Result<(), AcpError> {
        self.write(message::decided(id, approved)).await
    }

    /// Answers a permission request that is no approval: nobody chose.
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn withdraw(&mut self, id: &RequestId) -> Result<(), AcpError> {
        self.write(message::withdrawn(id)).await
    }

    /// Answers a request for something the bridge does not offer.
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn turn_down(&mut self, id: &RequestId) -> Result<(), AcpError> {
        self.write(message::not_offered(id)).await
    }

    /// Asks the peer for a sign of life.
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn ping(&mut self) -> Result<(), AcpError> {
        self.send(Message::Ping(bytes::Bytes::new())).await
    }

    /// Says goodbye. Nothing depends on it: the peer also takes a broken connection for the end.
    pub async fn close(mut self) {
        if let Ok(Err(error)) = timeout(Duration::from_secs(1), self.socket.close(None)).await {
            tracing::debug!(%error, "the agent had left already");
        }
    }

    async fn write(&mut self, frame: String) -> Result<(), AcpError> {
        self.send(Message::text(frame)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), AcpError> {
        match timeout(WRITE_DEADLINE, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the agent cannot be written to");
                Err(AcpError::Disconnected)
            }
            Err(_) => Err(AcpError::Disconnected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_an_end() {
        let mut small = Taken::default();
        assert!((0..MOST_FRAMES).all(|_| small.add(1).is_ok()));
        assert!(matches!(small.add(0), Err(AcpError::TooMuch)));
        let mut large = Taken::default();
        assert!((0..MOST_BYTES / MOST_FRAME).all(|_| large.add(MOST_FRAME).is_ok()));
        assert!(matches!(large.add(1), Err(AcpError::TooMuch)));
    }
}
