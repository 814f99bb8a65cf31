//! Talks to a tier over channel-bridge's gRPC, as `deploy/chat.sh` does.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use assistant_proto::channel::channel_service_client::ChannelServiceClient;
use assistant_proto::channel::send_message_response::Event;
use assistant_proto::channel::{ApprovalRequested, SendMessageRequest};
use tonic::transport::{Channel, Endpoint};

use super::SOCKETS;
use super::command::inside;

/// The longest a turn of the drill may take.
const TURN: Duration = Duration::from_secs(120);

/// What an agent of the drill asks permission for.
const ASKING: &str = r#"!tool file_write {"path":"never.txt","content":"never"}"#;

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
    follow(tier, conversation, text, async |approval: &ApprovalRequested| decide(approval)).await
}

/// Does something while a turn of the tier runs: the agent is made to ask for permission, and gets no answer before.
///
/// # Errors
/// As [`say_deciding`], and when the agent asks for nothing.
pub async fn during_turn<T>(tier: &str, work: impl AsyncFn() -> T) -> anyhow::Result<(Turn, T)> {
    let done = Mutex::new(None);
    let conversation = format!("during-{}", uuid::Uuid::new_v4().simple());
    let turn = follow(tier, &conversation, ASKING, async |approval: &ApprovalRequested| {
        let result = work().await;
        *done.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        format!("NO {}", approval.code)
    })
    .await?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let done = done.with_context(|| format!("the agent asked for nothing: {turn:?}"))?;
    Ok((turn, done))
}

async fn follow(
    tier: &str,
    conversation: &str,
    text: &str,
    decide: impl AsyncFn(&ApprovalRequested) -> String,
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
                    let answer = decide(&approval).await;
                    let mut stream = client.send_message(request(answer)).await?.into_inner();
                    while stream.message().await?.is_some() {}
                }
                Some(Event::Ended(ended)) => {
                    turn.reply = ended.reply;
                    turn.stop_reason = ended.stop_reason;
                }
                Some(Event::Failed(failed)) => turn.failure = format!("{} {}", failed.reason, failed.fix),
                Some(Event::Text(_) | Event::ApprovalDecided(_) | Event::Queued(_)) | None => {}
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

/// The door by which a container of a tier gets out, with its own credential.
#[derive(Debug, Clone)]
pub struct Door {
    /// The container's name.
    pub user: String,
    /// Its token.
    pub token: String,
    /// Address and port of the proxy.
    pub address: String,
}

impl Door {
    /// The door of an agent, as its environment names it.
    ///
    /// # Errors
    /// When it has none.
    pub async fn of(agent: &str) -> anyhow::Result<Self> {
        let proxy = inside(agent, &["sh", "-c", "echo $HTTPS_PROXY"]).await?.ok()?;
        let proxy = proxy.trim().trim_start_matches("http://");
        let (credential, address) = proxy.rsplit_once('@').context("HTTPS_PROXY carries no token")?;
        let (user, token) = credential.split_once(':').context("HTTPS_PROXY carries no token")?;
        Ok(Self { user: user.to_owned(), token: token.to_owned(), address: address.to_owned() })
    }
}
