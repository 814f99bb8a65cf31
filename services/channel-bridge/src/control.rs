//! `assistant.channel.v1` on the control socket. The only module that names protobuf types besides the client (`chat`).

use std::sync::Arc;

use assistant_proto::channel::channel_service_server::ChannelService;
use assistant_proto::channel::send_message_response::Event;
use assistant_proto::channel::{
    Accepted, ApprovalDecided, ApprovalRequested, Channel, Ended, Failed, ListChannelsRequest, ListChannelsResponse,
    Queued, SendMessageRequest, SendMessageResponse, Text, ToolCall,
};
use assistant_proto::event::ApprovalOutcome;
use futures::future::join_all;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status};

use crate::channels::terminal::{self, Message, SendError, Terminal};
use crate::channels::{Channels, Statuses};
use crate::envelope::Update;

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct Control {
    terminal: Arc<Terminal>,
    channels: Channels,
    statuses: Statuses,
}

impl Control {
    /// Serves a terminal channel, and says how the messengers are.
    #[must_use]
    pub fn new(terminal: Arc<Terminal>, channels: Channels, statuses: Statuses) -> Self {
        Self { terminal, channels, statuses }
    }
}

#[tonic::async_trait]
impl ChannelService for Control {
    type SendMessageStream = BoxStream<'static, Result<SendMessageResponse, Status>>;

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<Self::SendMessageStream>, Status> {
        let SendMessageRequest { tier, text, conversation, idempotency_key } = request.into_inner();
        let message = Message { tier, text, conversation, key: idempotency_key };
        let updates = self.terminal.send(message).await.map_err(|error| status(&error))?;
        // A stream of its own state: dropping it, because the client left, only ends the watching.
        let stream = stream::unfold(updates, |mut updates| async move {
            let item = match updates.next().await? {
                Ok(update) => Ok(response(update)),
                Err(error) => Err(Status::aborted(error.to_string())),
            };
            Some((item, updates))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn list_channels(
        &self,
        _request: Request<ListChannelsRequest>,
    ) -> Result<Response<ListChannelsResponse>, Status> {
        let connected = self.terminal.post.is_connected();
        let channels = self.terminal.gateways.iter().map(|(tier, gateway)| async move {
            let problem = match gateway.healthy().await {
                Err(error) => error.to_string(),
                Ok(()) if !connected => "NATS does not answer".to_owned(),
                Ok(()) => String::new(),
            };
            Channel { tier: tier.to_string(), kind: terminal::KIND.to_owned(), ready: problem.is_empty(), problem }
        });
        let mut channels = join_all(channels).await;
        for channel in self.channels.iter() {
            let problem = self.statuses.problem(channel.account()).unwrap_or_default();
            channels.extend(channel.tiers().iter().map(|tier| Channel {
                tier: tier.to_string(),
                kind: channel.capabilities().kind.to_owned(),
                ready: problem.is_empty(),
                problem: problem.clone(),
            }));
        }
        Ok(Response::new(ListChannelsResponse { channels }))
    }
}

fn status(error: &SendError) -> Status {
    use crate::route::RouteError;
    let text = error.to_string();
    match error {
        SendError::Route(RouteError::UnknownTier { .. }) => Status::not_found(text),
        SendError::Route(RouteError::Empty | RouteError::TooLong(_) | RouteError::Conversation | RouteError::Key)
        | SendError::KeyReused => Status::invalid_argument(text),
        SendError::Draining | SendError::NoBus | SendError::NoAgent { .. } | SendError::NotCommitted(_) => {
            Status::unavailable(text)
        }
        SendError::Record(_) => {
            tracing::error!(%error, "a message was refused");
            Status::internal(text)
        }
    }
}

fn response(update: Update) -> SendMessageResponse {
    let event = match update {
        Update::Accepted { turn, trace_id } => Event::Accepted(Accepted { turn_id: turn.to_string(), trace_id }),
        Update::Queued => Event::Queued(Queued {}),
        Update::Text(chunk) => Event::Text(Text { chunk }),
        Update::ToolCall { title, status } => Event::ToolCall(ToolCall { title, status: status.as_str().to_owned() }),
        Update::Ask { approval: _, action, code, expires_in } => Event::ApprovalRequested(ApprovalRequested {
            action,
            code: code.dangerous_reveal(),
            expires_in_seconds: u32::try_from(expires_in.as_secs()).unwrap_or(u32::MAX),
        }),
        Update::Decided { code, outcome } => Event::ApprovalDecided(ApprovalDecided {
            code: code.dangerous_reveal(),
            outcome: outcome_name(outcome).to_owned(),
        }),
        Update::Ended { turn, trace_id, reply, stop_reason } => {
            Event::Ended(Ended { turn_id: turn, trace_id, reply, stop_reason })
        }
        Update::Failed { turn, trace_id, reason, fix } => {
            Event::Failed(Failed { turn_id: turn, trace_id, reason, fix })
        }
    };
    SendMessageResponse { event: Some(event) }
}

fn outcome_name(outcome: ApprovalOutcome) -> &'static str {
    match outcome {
        ApprovalOutcome::Approved => "approved",
        ApprovalOutcome::Denied => "denied",
        ApprovalOutcome::TimedOut => "timed_out",
        ApprovalOutcome::Undeliverable => "undeliverable",
        ApprovalOutcome::Withdrawn => "withdrawn",
    }
}
