//! The conversation with the agent from the prompt to its result.

use std::collections::HashMap;
use std::time::Duration;

use assistant_proto::event::ChannelReceived;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use service_kit::text::{harmless, harmless_line};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Runner, TurnError};
use crate::acp::AcpError;
use crate::acp::link::Link;
use crate::acp::message::{Incoming, RequestId, SessionUpdate, ToolStatus};
use crate::acp::permission::{PermissionRequest, Question};
use crate::acp::refused::OwnRefusal;
use crate::approvals::desk::{Asker, Decision};
use crate::envelope::{MOST_REPLY, Outcome, Person, Update, clip};

/// How often a sign of life is asked for.
const PING: Duration = Duration::from_secs(20);
/// A connection without any is dead: three of them were missed.
const DEAD: Duration = Duration::from_secs(65);
/// Longest action a person is asked about, in characters. What cannot be shown in full cannot be approved.
const MOST_ACTION: usize = 8000;
/// Questions a turn may have open at once; ZeroClaw asks one after the other.
const MOST_QUESTIONS: usize = 4;
/// Tool calls that are shown; one of a turn's usual few hundred actions at most.
const MOST_TOOL_CALLS: usize = 1000;
/// Longest name of a tool that is shown, in characters.
const MOST_TITLE: usize = 120;
/// Notes of the bridge about requests that were not put to anybody. More of them say nothing new, and a client that
/// does not read must not be able to pile them up.
const MOST_NOTES: u32 = 8;
/// Told to the agent, after the person's words, when it may have seen them before.
const REPEATED: &str = "[Note of the system: this message is delivered a second time after an interruption. Check what \
                        was already done before doing it again.]";

type Asked<'a> = FuturesUnordered<BoxFuture<'a, (RequestId, [u8; 32], Decision)>>;

/// What the agent has said so far.
#[derive(Debug, Default)]
struct Said {
    text: String,
    /// What the reply begins with: questions of the agent, notes of the bridge.
    asides: String,
    titles: HashMap<String, String>,
    tool_calls: usize,
    notes: u32,
    /// What the agent's own policy refused, each kind once.
    refused: Vec<OwnRefusal>,
}

/// The agent was told to stop.
#[derive(Debug)]
struct Stopping {
    since: Instant,
    /// Why, unless a person said so: then what the agent still answers is the outcome.
    why: Option<TurnError>,
}

impl Runner {
    pub(super) async fn prompt(
        &self,
        link: &mut Link,
        session: &str,
        received: &ChannelReceived,
        repeated: bool,
        deadline: Instant,
        stop: &CancellationToken,
    ) -> Result<Outcome, TurnError> {
        let mut parts = vec![json!({"type": "text", "text": received.text})];
        if repeated {
            parts.push(json!({"type": "text", "text": REPEATED}));
        }
        let call = link.begin("session/prompt", &json!({"sessionId": session, "prompt": parts})).await?;
        let mut said = Said::default();
        let mut asked: Asked<'_> = FuturesUnordered::new();
        let mut stopping: Option<Stopping> = None;
        let mut last_word = Instant::now();
        let mut ticks = interval(PING.min(self.patience.stopping));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every branch is cancel-safe: `receive` takes whole frames, a pending question stays in `asked`.
            tokio::select! {
                incoming = link.receive() => {
                    last_word = Instant::now();
                    match incoming.map_err(broke_off)? {
                        Incoming::Response { id, result } if id == call => {
                            if let Some(Stopping { why: Some(why), .. }) = stopping {
                                return Err(why);
                            }
                            let result = result.map_err(|error| AcpError::rpc("session/prompt", &error))?;
                            return said.into_outcome(&result);
                        }
                        Incoming::Update { session: of, update } if of == session => {
                            self.show(received, &mut said, update);
                        }
                        Incoming::Permission { id, session: of, request } if of == session && stopping.is_none() => {
                            self.consider(link, received, &mut said, &mut asked, id, request).await?;
                        }
                        Incoming::Permission { id, .. } => link.withdraw(&id).await.map_err(broke_off)?,
                        Incoming::OtherRequest { id } => link.turn_down(&id).await.map_err(broke_off)?,
                        Incoming::Response { .. } | Incoming::Update { .. } | Incoming::OtherNotification => {}
                    }
                }
                Some((id, fingerprint, decision)) = asked.next(), if !asked.is_empty() => {
                    last_word = Instant::now();
                    link.decide(&id, decision.approves(&fingerprint)).await.map_err(broke_off)?;
                }
                () = stop.cancelled(), if stopping.is_none() => {
                    stopping = Some(cancel(link, session, &mut asked, None).await?);
                }
                () = sleep_until(deadline), if stopping.is_none() => {
                    let why = TurnError::TooLong(self.patience.whole);
                    stopping = Some(cancel(link, session, &mut asked, Some(why)).await?);
                }
                _ = ticks.tick() => {
                    if link.heard().elapsed() > DEAD {
                        return Err(TurnError::BrokeOff);
                    }
                    match stopping.take() {
                        Some(Stopping { since, why }) if since.elapsed() >= self.patience.stopping => {
                            return Err(why.unwrap_or(TurnError::StoppedHard(self.patience.stopping)));
                        }
                        None if asked.is_empty() && last_word.elapsed() > self.patience.silence => {
                            let why = TurnError::Silent(self.patience.silence);
                            stopping = Some(cancel(link, session, &mut asked, Some(why)).await?);
                        }
                        still => stopping = still,
                    }
                    link.ping().await.map_err(broke_off)?;
                }
            }
        }
    }

    fn show(&self, received: &ChannelReceived, said: &mut Said, update: SessionUpdate) {
        match update {
            SessionUpdate::Text(text) => {
                let room = MOST_REPLY.saturating_sub(said.text.len());
                if room > 0 && !text.is_empty() {
                    // Cut first: made harmless, a character may take ten times its room.
                    let text = clip(harmless(&clip(text, room), usize::MAX), room);
                    said.text.push_str(&text);
                    self.registry.say(&received.turn, &Update::Text(text));
                }
            }
            SessionUpdate::ToolCall { id, title, status } => {
                let title = harmless_line(&title, MOST_TITLE);
                if said.tool_calls < MOST_TOOL_CALLS {
                    said.titles.insert(id, title.clone());
                }
                self.show_tool(received, said, title, status);
            }
            SessionUpdate::ToolCallUpdate { id, title, status, refused } => {
                let title = said
                    .titles
                    .get(&id)
                    .cloned()
                    .unwrap_or_else(|| harmless_line(title.as_deref().unwrap_or("a tool"), MOST_TITLE));
                self.show_tool(received, said, title, status);
                if let Some(refused) = refused
                    && !said.refused.contains(&refused)
                {
                    said.refused.push(refused);
                    let note = refused.note(&received.tier);
                    // A messenger shows the reply only.
                    said.asides.push_str(&note);
                    self.registry.say(&received.turn, &Update::Text(note));
                }
            }
            SessionUpdate::Other => {}
        }
    }

    fn show_tool(&self, received: &ChannelReceived, said: &mut Said, title: String, status: ToolStatus) {
        said.tool_calls = said.tool_calls.saturating_add(1);
        if said.tool_calls <= MOST_TOOL_CALLS {
            tracing::info!(tool = title, status = status.as_str(), "tool call");
            self.registry.say(&received.turn, &Update::ToolCall { title, status });
        }
    }

    /// Takes up a permission request: a question for the person, or a refusal on the spot.
    async fn consider<'a>(
        &'a self,
        link: &mut Link,
        received: &ChannelReceived,
        said: &mut Said,
        asked: &mut Asked<'a>,
        id: RequestId,
        request: PermissionRequest,
    ) -> Result<(), TurnError> {
        let note = match request.question() {
            Question::Approval if request.action.chars().count() > MOST_ACTION => {
                link.decide(&id, false).await.map_err(broke_off)?;
                "(The agent asked for permission for something too long to be shown in full; it was rejected.)\n"
                    .to_owned()
            }
            Question::Approval if asked.len() >= MOST_QUESTIONS => {
                link.decide(&id, false).await.map_err(broke_off)?;
                "(The agent asked for too many permissions at once; this one was rejected.)\n".to_owned()
            }
            Question::Approval => {
                let asker = Asker {
                    person: Person::of(received),
                    turn: received.turn.clone(),
                    traceparent: received.traceparent,
                };
                let fingerprint = request.fingerprint;
                let action = harmless(&request.action, usize::MAX);
                let span = tracing::info_span!("approval", approved = tracing::field::Empty);
                let ask = async move {
                    let decision = self.desk.ask(asker, action, fingerprint).await;
                    tracing::Span::current().record("approved", decision.approves(&fingerprint));
                    (id, fingerprint, decision)
                };
                asked.push(Box::pin(ask.instrument(span)));
                return Ok(());
            }
            Question::Choice(choices) => {
                link.withdraw(&id).await.map_err(broke_off)?;
                let mut text =
                    format!("The agent asks: {}\n", harmless(&clip(request.action, MOST_ACTION), usize::MAX));
                for choice in choices {
                    text.push_str(&format!("  - {}\n", harmless_line(&choice, MOST_TITLE)));
                }
                text.push_str("Answer with your next message.\n");
                if said.asides.len() < MOST_REPLY / 4 {
                    said.asides.push_str(&text);
                }
                text
            }
            Question::Unknown => {
                link.withdraw(&id).await.map_err(broke_off)?;
                "(The agent asked something that this channel cannot relay; it was told so.)\n".to_owned()
            }
        };
        said.notes = said.notes.saturating_add(1);
        if said.notes <= MOST_NOTES {
            tracing::info!("a permission request was not put to anybody");
            self.registry.say(&received.turn, &Update::Text(note));
        }
        if said.notes == MOST_NOTES {
            let enough = "(The agent asked too often; what else it asks like this in this turn is refused unseen.)\n";
            self.registry.say(&received.turn, &Update::Text(enough.to_owned()));
        }
        Ok(())
    }
}

/// Tells the agent to stop. Its questions are closed: nobody needs to answer them any more.
async fn cancel(
    link: &mut Link,
    session: &str,
    asked: &mut Asked<'_>,
    why: Option<TurnError>,
) -> Result<Stopping, TurnError> {
    asked.clear();
    link.notify("session/cancel", &json!({"sessionId": session})).await.map_err(broke_off)?;
    Ok(Stopping { since: Instant::now(), why })
}

impl Said {
    fn into_outcome(self, result: &Value) -> Result<Outcome, TurnError> {
        let stop_reason = result.get("stopReason").and_then(Value::as_str);
        let stop_reason = stop_reason.ok_or(AcpError::Incomplete("session/prompt"))?;
        // ZeroClaw repeats the whole answer in `content`; the pieces are the answer where it does not.
        let content = result.get("content").and_then(Value::as_str).filter(|content| !content.is_empty());
        let answer = content.map_or(self.text, |content| harmless(&clip(content.to_owned(), MOST_REPLY), usize::MAX));
        Ok(Outcome::Answered {
            reply: clip(self.asides + &answer, MOST_REPLY),
            stop_reason: harmless_line(stop_reason, 40),
        })
    }
}

/// After the prompt went out a broken connection means that nobody knows how far the agent came.
fn broke_off(error: AcpError) -> TurnError {
    match error {
        AcpError::Disconnected => TurnError::BrokeOff,
        error => TurnError::Agent(error),
    }
}
