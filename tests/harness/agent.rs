//! Talks to a tier over channel-bridge's gRPC, as `deploy/chat.sh` does.

use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::channel::channel_service_client::ChannelServiceClient;
use assistant_proto::channel::send_message_response::Event;
use assistant_proto::channel::{ApprovalRequested, SendMessageRequest};
use tonic::transport::{Channel, Endpoint};

use super::SOCKETS;

/// The longest a turn of the drill may take.
const TURN: Duration = Duration::from_secs(120);

/// A turn that ended.
#[derive(Debug, Default)]
pub struct Turn {
    /// What the agent said.
    pub reply: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// How it ended; empty when it failed.
    pub stop_reason: String,
    /// Why it failed; empty when it did not.
    pub failure: String,
    /// Tool calls, as titled to the person.
    pub tools: Vec<String>,
}

/// A channel to a service's control socket.
///
/// # Errors
/// When the socket does not answer.
pub async fn connect(service: &str) -> anyhow::Result<Channel> {
    let path = format!("{SOCKETS}/{service}.sock");
    Endpoint::from_shared(format!("unix://{path}"))?.connect().await.with_context(|| path)
}

/// Sends a message and follows the turn to its end. Approvals are answered by `decide`, in the same conversation.
///
/// # Errors
/// When the bridge refuses the message or the turn does not end in time.
pub async fn say_deciding(
    tier: &str,
    conversation: &str,
    text: &str,
    decide: impl Fn(&ApprovalRequested) -> String,
) -> anyhow::Result<Turn> {
    let mut client = ChannelServiceClient::new(connect("channel-bridge").await?);
    let request = |text: String| SendMessageRequest {
        tier: tier.to_owned(),
        text,
        conversation: conversation.to_owned(),
        idempotency_key: String::new(),
    };
    let follow = async {
        let mut events = client.clone().send_message(request(text.to_owned())).await?.into_inner();
        let mut turn = Turn::default();
        while let Some(message) = events.message().await? {
            match message.event {
                Some(Event::Accepted(accepted)) => turn.trace_id = accepted.trace_id,
                Some(Event::ToolCall(call)) => turn.tools.push(call.title),
                Some(Event::ApprovalRequested(approval)) => {
                    let answer = decide(&approval);
                    let mut stream = client.send_message(request(answer)).await?.into_inner();
                    while stream.message().await?.is_some() {}
                }
                Some(Event::Ended(ended)) => {
                    turn.reply = ended.reply;
                    turn.stop_reason = ended.stop_reason;
                }
                Some(Event::Failed(failed)) => turn.failure = format!("{} {}", failed.reason, failed.fix),
                Some(Event::Text(_) | Event::ApprovalDecided(_)) | None => {}
            }
        }
        anyhow::Ok(turn)
    };
    tokio::time::timeout(TURN, follow).await.with_context(|| format!("the turn did not end within {TURN:?}"))?
}

/// Sends a message; every approval is refused.
///
/// # Errors
/// As [`say_deciding`].
pub async fn say(tier: &str, text: &str) -> anyhow::Result<Turn> {
    let conversation = format!("test-{}", uuid::Uuid::new_v4().simple());
    say_deciding(tier, &conversation, text, |approval| format!("NO {}", approval.code)).await
}
