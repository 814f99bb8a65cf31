//! The chat of one page: a WebSocket that speaks ZeroClaw's chat protocol to the browser, and turns to the rest of the
//! bridge. The agent is never on the other side of it: a message goes through the inbox like any other, and a question is
//! decided at the desk.
//!
//! A browser that leaves changes nothing: its messages are taken in, its turns go on, its questions stay open for as long
//! as any, and the page that comes next is shown them. Not here: the frames (`frames`), HTTP (`dashboard`).

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, SelectAll};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use service_kit::task::OnEnd;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::frames::{self, Choice, Said, Screen};
use super::{KIND, Shared};
use crate::approvals::Answer;
use crate::approvals::desk::Answered;
use crate::channels::terminal::{self, CutOff, SendError, Updates};
use crate::envelope::{Conversation, Person, Update};

/// How often a sign of life is asked for.
const PING: Duration = Duration::from_secs(20);
/// A browser without any is gone: three of them were missed.
const DEAD: Duration = Duration::from_secs(65);
/// How long a frame may take to be written.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Messages of one page that may wait for their turns.
const MOST_WAITING: usize = 8;

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Begun = Result<Updates, SendError>;

/// The page is gone, or no longer reads.
struct Gone;

/// Serves a page until it leaves or the service drains.
pub(super) async fn serve(shared: Arc<Shared>, id: String, socket: Socket) {
    let conversation = Conversation { tier: shared.tier.clone(), channel: KIND.to_owned(), name: id };
    let person = Person { conversation, sender: KIND.to_owned() };
    let mut chat = Chat {
        shared,
        person,
        socket,
        screen: Screen::default(),
        beginning: FuturesUnordered::new(),
        turns: SelectAll::new(),
    };
    if let Err(Gone) = chat.run().await {
        tracing::debug!("a page of the dashboard is gone");
    }
}

struct Chat {
    shared: Arc<Shared>,
    person: Person,
    socket: Socket,
    screen: Screen,
    beginning: FuturesUnordered<BoxFuture<'static, Begun>>,
    turns: SelectAll<BoxStream<'static, Result<Update, CutOff>>>,
}

impl Chat {
    async fn run(&mut self) -> Result<(), Gone> {
        self.greet().await?;
        let draining = self.shared.shutdown.draining();
        let mut heard = Instant::now();
        let mut ticks = interval(PING);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every branch is cancel-safe: a frame is taken whole, updates and beginnings stay in their streams.
            tokio::select! {
                message = self.socket.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => self.take(text.as_str()).await?,
                        Some(Ok(Message::Binary(_))) => self.send(&unreadable()).await?,
                        // tungstenite queues the pong itself.
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Gone),
                    }
                }
                Some(begun) = self.beginning.next(), if !self.beginning.is_empty() => match begun {
                    Ok(updates) => self.turns.push(stream_of(updates)),
                    Err(error) => {
                        let text = error.to_string();
                        self.send(&json!({"type": "error", "message": text})).await?;
                    }
                },
                Some(update) = self.turns.next(), if !self.turns.is_empty() => match update {
                    Ok(update) => {
                        for frame in self.screen.show(update, &self.shared.reach) {
                            self.send(&frame).await?;
                        }
                    }
                    Err(cut) => self.send(&json!({"type": "error", "message": cut.to_string()})).await?,
                },
                _ = ticks.tick() => {
                    if heard.elapsed() > DEAD {
                        return Err(Gone);
                    }
                    self.write(Message::Ping(bytes::Bytes::new())).await?;
                }
                () = draining.cancelled() => {
                    // 1001 has the page connect again, to the next process.
                    let goodbye = CloseFrame { code: CloseCode::Away, reason: "the bridge is restarting".into() };
                    return self.write(Message::Close(Some(goodbye))).await;
                }
            }
        }
    }

    /// What a page that has just come has to know: what runs, and what is asked.
    async fn greet(&mut self) -> Result<(), Gone> {
        let id = &self.person.conversation.name;
        let known = self.shared.history.conversation(&self.shared.tier, id).await.ok().flatten();
        let count = known.map_or(0, |told| told.turns.len());
        let start = json!({"type": "session_start", "session_id": id, "resumed": count > 0, "message_count": count});
        self.send(&start).await?;
        let running = self.shared.terminal.registry.join(&self.person);
        if !running.is_empty() {
            self.send(&frames::working()).await?;
        }
        self.turns.extend(running.into_iter().map(|updates| stream_of(Updates::watched(updates))));
        for question in self.shared.terminal.desk.open_for(&self.person) {
            for frame in self.screen.show(question, &self.shared.reach) {
                self.send(&frame).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, text: &str) -> Result<(), Gone> {
        match Said::parse(text) {
            Some(Said::Connect {}) => {
                self.send(&json!({"type": "connected", "message": "Connection established"})).await
            }
            Some(Said::Message { content }) => self.begin(content).await,
            Some(Said::ApprovalResponse { request_id, decision }) => self.decide(&request_id, decision).await,
            None => self.send(&unreadable()).await,
        }
    }

    async fn begin(&mut self, text: String) -> Result<(), Gone> {
        if self.beginning.len().saturating_add(self.turns.len()) >= MOST_WAITING {
            let text = "too many messages wait in this conversation; wait for an answer, or stop one";
            return self.send(&json!({"type": "error", "message": text})).await;
        }
        let message = terminal::Message {
            tier: self.shared.tier.to_string(),
            text,
            conversation: self.person.conversation.name.clone(),
            key: String::new(),
        };
        let (terminal, (begun, told)) = (Arc::clone(&self.shared.terminal), oneshot::channel());
        // A task of its own: a message that was read is taken in, also when the page leaves in this moment.
        self.shared.tasks.spawn("dashboard message", OnEnd::Expected, async move {
            if let Err(Ok(unwatched)) = begun.send(terminal.send(message).await) {
                drop(unwatched);
                tracing::debug!("a page of the dashboard left before its message was taken in");
            }
            Ok(())
        });
        self.beginning.push(async move { told.await.unwrap_or(Err(SendError::Draining)) }.boxed());
        Ok(())
    }

    async fn decide(&mut self, request: &str, choice: Choice) -> Result<(), Gone> {
        let Some(code) = self.screen.code(request) else {
            return self.note("That question is no longer open.").await;
        };
        let yes = choice != Choice::Deny;
        match self.shared.terminal.desk.answer(&self.person, &Answer { yes, code }) {
            Answered::Decided { .. } if choice == Choice::Always => {
                let text = "Allowed this once: this stack does not remember a yes. `auto_approve` in tiers.yaml does.";
                self.note(text).await
            }
            Answered::Decided { .. } => Ok(()),
            Answered::Rejected(why) => self.note(&format!("The answer counts for nothing: {why}.")).await,
        }
    }

    async fn note(&mut self, text: &str) -> Result<(), Gone> {
        self.send(&frames::note(text)).await?;
        if self.turns.is_empty() { Ok(()) } else { self.send(&frames::working()).await }
    }

    async fn send(&mut self, frame: &Value) -> Result<(), Gone> {
        self.write(Message::text(frame.to_string())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), Gone> {
        match timeout(WRITE_DEADLINE, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}

fn unreadable() -> Value {
    json!({"type": "error", "message": "this is no message of ZeroClaw's chat", "code": "UNKNOWN_MESSAGE_TYPE"})
}

/// Ends with the last update, or with the first that is cut off.
fn stream_of(updates: Updates) -> BoxStream<'static, Result<Update, CutOff>> {
    stream::unfold(updates, |mut updates| async move { updates.next().await.map(|update| (update, updates)) }).boxed()
}
