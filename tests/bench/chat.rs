//! A chat turn through channel-bridge, and the same prompt at ZeroClaw's gateway from the bridge's place. Both begin a new
//! conversation: connection, `initialize`, `session/new` (which connects the agent to its tools), prompt.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use assistant_proto::channel::SendMessageRequest;
use assistant_proto::channel::channel_service_client::ChannelServiceClient;
use assistant_proto::channel::send_message_response::Event;
use assistant_tests::harness::{TIER, agent};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::stack::{Stack, secret};

/// For a turn of the drill's model, which answers at once.
const DEADLINE: Duration = Duration::from_secs(60);
const PROMPT: &str = "!say hi";

/// When what had happened, from the beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Connection and session stand; only known where the prompt is ours.
    pub(crate) session: Duration,
    /// The first text of the answer.
    pub(crate) first_text: Duration,
    /// The end of the turn.
    pub(crate) end: Duration,
}

/// By the bridge's gRPC, as `deploy/chat.sh` does it.
///
/// # Errors
/// When the turn fails.
pub(crate) async fn by_bridge(channel: &tonic::transport::Channel) -> anyhow::Result<Turn> {
    let request = SendMessageRequest {
        tier: TIER.to_owned(),
        text: PROMPT.to_owned(),
        conversation: format!("bench-{}", uuid::Uuid::new_v4().simple()),
        idempotency_key: String::new(),
    };
    let mut client = ChannelServiceClient::new(channel.clone());
    let turn = async {
        let began = Instant::now();
        let (mut first_text, mut end) = (None, None);
        let mut events = client.send_message(request).await?.into_inner();
        while let Some(message) = events.message().await? {
            match message.event {
                Some(Event::Text(_)) => first_text = first_text.or_else(|| Some(began.elapsed())),
                Some(Event::Ended(ended)) => {
                    anyhow::ensure!(ended.reply == "hi", "the agent said something else: {}", ended.reply);
                    end = Some(began.elapsed());
                }
                Some(Event::Failed(failed)) => anyhow::bail!("{} {}", failed.reason, failed.fix),
                _ => {}
            }
        }
        let first_text = first_text.context("no text")?;
        Ok(Turn { session: Duration::ZERO, first_text, end: end.context("the turn did not end")? })
    };
    timeout(DEADLINE, turn).await.context("the turn did not end in time")?
}

/// A turn nobody measures. What the tier does counts as part of it until 10 s after its end, so requests of the tier are
/// not refused as outside of any turn.
///
/// # Errors
/// When it fails.
pub(crate) async fn open_the_door() -> anyhow::Result<()> {
    let turn = agent::say(TIER, PROMPT).await?;
    anyhow::ensure!(turn.failure.is_empty(), "{}", turn.failure);
    Ok(())
}

/// How a client of the gateway acknowledges what it gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Acknowledging {
    /// As the kernel likes: up to 40 ms later.
    Lazily,
    /// At once. ZeroClaw's gateway does not set TCP_NODELAY, so its next small frame waits for that.
    AtOnce,
}

/// At the gateway, from the bridge's place.
///
/// # Errors
/// When the turn fails.
pub(crate) async fn direct(stack: &Stack, how: Acknowledging) -> anyhow::Result<Turn> {
    let (gateway, token) = (stack.gateway, secret(&format!("tokens/gateway/{TIER}"))?);
    let work =
        move || async move { timeout(DEADLINE, converse(gateway, &token, how)).await.context("no end in time")? };
    stack.bridge.run(work).await
}

async fn converse(gateway: SocketAddrV4, token: &str, how: Acknowledging) -> anyhow::Result<Turn> {
    let began = Instant::now();
    let stream = TcpStream::connect(gateway).await?;
    let mut request = format!("ws://{gateway}/acp?agent=default").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    request.headers_mut().insert("sec-websocket-protocol", "zeroclaw.acp.v1".parse()?);
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let introduction = json!({"protocolVersion": 1, "clientCapabilities": {},
        "clientInfo": {"name": "drill-bench", "version": env!("CARGO_PKG_VERSION")}});
    call(&mut socket, how, 0, "initialize", &introduction).await?;
    let session = call(&mut socket, how, 1, "session/new", &json!({})).await?.0;
    let session = session.get("sessionId").and_then(Value::as_str).context("no session")?.to_owned();
    let stands = began.elapsed();
    let prompt = json!({"sessionId": session, "prompt": [{"type": "text", "text": PROMPT}]});
    let (_, first_text) = call(&mut socket, how, 2, "session/prompt", &prompt).await?;
    let end = began.elapsed();
    socket.close(None).await?;
    let first_text = first_text.context("no text")?.saturating_duration_since(began);
    Ok(Turn { session: stands, first_text, end })
}

/// Calls and waits; also says when the first text came.
async fn call(
    socket: &mut WebSocketStream<TcpStream>,
    how: Acknowledging,
    id: u64,
    method: &str,
    params: &Value,
) -> anyhow::Result<(Value, Option<Instant>)> {
    let frame = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    socket.send(Message::text(frame.to_string())).await?;
    let mut first_text = None;
    loop {
        // The kernel forgets it with every packet.
        if matches!(how, Acknowledging::AtOnce) {
            socket2::SockRef::from(socket.get_ref()).set_tcp_quickack(true)?;
        }
        let message = socket.next().await.context("the agent hung up")??;
        let Message::Text(text) = message else { continue };
        let mut frame: Value = serde_json::from_str(text.as_str())?;
        if frame.get("id").and_then(Value::as_u64) == Some(id) {
            anyhow::ensure!(frame.get("error").is_none(), "{method}: {frame}");
            return Ok((frame.get_mut("result").map(Value::take).unwrap_or_default(), first_text));
        }
        let kind = frame.pointer("/params/update/sessionUpdate").and_then(Value::as_str);
        if kind == Some("agent_message_chunk") {
            first_text = first_text.or_else(|| Some(Instant::now()));
        }
    }
}
