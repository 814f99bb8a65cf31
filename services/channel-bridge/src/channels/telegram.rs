//! Telegram: a bot that asks for its messages by long polling through Squid.
//!
//! Telegram keeps a message until it is asked for the next one; that is its acknowledgement, and it is given only after
//! the inbox has the message and its id is recorded. So a message is neither lost nor answered twice, whichever side
//! ends when. Of two programs that ask for the same bot's messages one gets 409; this one then waits and says so.
//! There is no key that makes a repeated message one, so one whose fate is unknown is sent a second time at most
//! (`delivery`). Every message forbids link previews: Telegram's servers would fetch what is in it.
//!
//! Not here: who may write, what a message does (`intake`), what is sent (`reply`, `delivery`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assistant_proto::config::TelegramBot;
use assistant_proto::name::TierName;
use frankenstein::ParseMode;
use frankenstein::methods::{GetUpdatesParams, SendChatActionParams, SendMessageParams};
use frankenstein::types::{AllowedUpdate, ChatAction, LinkPreviewOptions};
use futures::future::BoxFuture;
use serde_json::Value;
use service_kit::files::{FileError, read_secret};
use service_kit::host::Health;
use tokio_util::sync::CancellationToken;

use self::api::{Api, ApiError, Me, Sent};
use self::update::Update;
use super::{Backoff, Capabilities, Channel, Pace, SendKey, Sending, Statuses, Trouble};
use crate::intake::{Arrived, Intake};
use crate::reply::Part;

pub mod api;
pub mod update;

/// Channel kind.
pub const KIND: &str = "telegram";
/// Longest message, in UTF-16 units.
pub const MOST_UNITS: usize = 4096;
/// Updates per question.
const BATCH: u32 = 50;
/// Another program with the same bot is given up on for so long at least: it may just be ending.
const CONFLICT: Duration = Duration::from_secs(2);

/// Why a bot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file with its token.
    #[error("the token of the Telegram bot {bot} cannot be used")]
    Token {
        /// The bot's name.
        bot: String,
        /// Why.
        #[source]
        source: FileError,
    },
    /// What is in it.
    #[error("the token of the Telegram bot {0} is not one: @BotFather gives a number, a colon and 35 characters")]
    NotAToken(String),
}

/// A bot.
#[derive(Debug)]
pub struct Telegram {
    name: String,
    tiers: Vec<TierName>,
    api: Api,
    capabilities: Capabilities,
    pace: Pace,
    health: Health,
    statuses: Statuses,
    /// A chat that became a supergroup has another id; until a message comes from there, what is sent to the old one goes
    /// to the new.
    moved: Mutex<Vec<(String, i64)>>,
}

impl Telegram {
    /// A bot of the configuration.
    ///
    /// # Errors
    /// When its token cannot be used.
    pub fn new(
        bot: &TelegramBot,
        client: reqwest::Client,
        pace: Pace,
        health: Health,
        statuses: Statuses,
    ) -> Result<Self, SetupError> {
        let token =
            read_secret(&bot.token_file).map_err(|source| SetupError::Token { bot: bot.name.clone(), source })?;
        if !Api::is_token(&token) {
            return Err(SetupError::NotAToken(bot.name.clone()));
        }
        Ok(Self {
            name: bot.name.clone(),
            tiers: bot.tiers.clone(),
            api: Api::new(client, &bot.api_url, &token),
            capabilities: Capabilities {
                kind: KIND,
                most_units: MOST_UNITS,
                typing: Some(pace.typing),
                native_key: false,
            },
            pace,
            health,
            statuses,
            moved: Mutex::default(),
        })
    }

    fn report(&self, state: Result<(), String>) {
        self.health.report(KIND, self.statuses.note(&self.name, state));
    }

    async fn me(&self) -> Result<Me, ApiError> {
        self.api.call("getMe", &Value::Object(serde_json::Map::new()), self.pace.call).await
    }

    /// Asks until there is an answer; none when it is time to stop.
    async fn introduced(&self, stop: &CancellationToken) -> Option<Me> {
        let mut backoff = Backoff::new(self.pace);
        loop {
            let asked = tokio::select! {
                me = self.me() => me,
                () = stop.cancelled() => return None,
            };
            let error = match asked {
                Ok(me) => return Some(me),
                Err(error) => error,
            };
            self.wait(&error, &mut backoff, stop).await?;
        }
    }

    /// Says what is wrong and waits; none when it is time to stop.
    async fn wait(&self, error: &ApiError, backoff: &mut Backoff, stop: &CancellationToken) -> Option<()> {
        self.report(Err(error.to_string()));
        let trouble = match error {
            ApiError::Unreached(_) | ApiError::Unclear(_) => Trouble::Away,
            ApiError::TooMany(wait) => Trouble::No(Some(*wait)),
            ApiError::Conflict(_) => Trouble::No(Some(CONFLICT.min(self.pace.slowest_retry))),
            ApiError::Token | ApiError::Refused { .. } => Trouble::No(None),
        };
        tokio::select! {
            () = tokio::time::sleep(backoff.pause(trouble)) => Some(()),
            () = stop.cancelled() => None,
        }
    }

    async fn poll(&self, intake: &Intake, stop: &CancellationToken) -> Option<()> {
        let me = self.introduced(stop).await?;
        self.report(Ok(()));
        let mut backoff = Backoff::new(self.pace);
        // After a failure one question is answered at once: whether it works again is not to be known only in a minute.
        let mut hold = self.pace.poll;
        // Given once and dropped when it was heard: ids begin anew, at random, after a week without messages.
        let mut acknowledge: Option<i64> = None;
        loop {
            let params = GetUpdatesParams {
                offset: acknowledge,
                limit: Some(BATCH),
                timeout: u32::try_from(hold.as_secs()).ok(),
                allowed_updates: Some(vec![AllowedUpdate::Message]),
            };
            let within = if hold.is_zero() { self.pace.call } else { hold.saturating_add(self.pace.poll_slack) };
            // Dropped in the middle, nothing is lost: what was not acknowledged comes again.
            let asked = tokio::select! {
                updates = self.api.call::<_, Vec<Value>>("getUpdates", &params, within) => updates,
                () = stop.cancelled() => return None,
            };
            let updates = match asked {
                Ok(updates) => updates,
                Err(error) => {
                    self.wait(&error, &mut backoff, stop).await?;
                    hold = Duration::ZERO;
                    continue;
                }
            };
            backoff.reset();
            hold = self.pace.poll;
            acknowledge = None;
            self.report(Ok(()));
            for update in updates {
                let Ok(update) = serde_json::from_value::<Update>(update) else {
                    tracing::error!(bot = self.name, "an update of Telegram has no id and cannot be acknowledged");
                    continue;
                };
                let next = update.update_id.saturating_add(1);
                let arrived = update::read(update, &me);
                self.take(intake, me.id, next, &arrived, stop).await?;
                acknowledge = Some(next);
            }
        }
    }

    /// Hands an update over, as often as it takes. None when it is time to stop: then it comes again.
    async fn take(
        &self,
        intake: &Intake,
        bot: i64,
        next: i64,
        arrived: &Arrived,
        stop: &CancellationToken,
    ) -> Option<()> {
        let mut backoff = Backoff::new(self.pace);
        loop {
            // Not dropped in the middle: what it stores belongs together. It ends by itself within seconds.
            match intake.take(self, &bot.to_string(), arrived).await {
                Ok(()) => {
                    self.report(Ok(()));
                    return Some(());
                }
                Err(error) => {
                    tracing::warn!(bot = self.name, update = next.saturating_sub(1), %error, "a message waits at Telegram");
                    self.report(Err(format!("messages wait at Telegram: {error}")));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.pause(Trouble::Away)) => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    async fn send_text(&self, address: &str, text: &str, parse_mode: Option<ParseMode>) -> Result<Sent, ApiError> {
        let Ok(chat) = address.parse::<i64>() else {
            return Err(ApiError::Refused { code: 400, description: "not a chat".to_owned(), moved_to: None });
        };
        let chat = self.moved_to(address).unwrap_or(chat);
        let params = SendMessageParams::builder()
            .chat_id(chat)
            .text(text)
            .maybe_parse_mode(parse_mode)
            .link_preview_options(LinkPreviewOptions::DISABLED)
            .build();
        self.api.call("sendMessage", &params, self.pace.call).await
    }

    fn note_move(&self, address: &str, to: i64) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.retain(|(from, _)| from != address);
        moved.push((address.to_owned(), to));
    }

    fn moved_to(&self, address: &str) -> Option<i64> {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.iter().find(|(from, _)| from == address).map(|(_, to)| *to)
    }

    async fn send_part(&self, address: &str, part: &Part) -> Result<Sent, ApiError> {
        match self.send_text(address, &part.html, Some(ParseMode::Html)).await {
            Err(ApiError::Refused { code: 400, moved_to: Some(to), .. }) => {
                self.note_move(address, to);
                self.send_text(address, &part.html, Some(ParseMode::Html)).await
            }
            // It may be the markup, which is then not what the plain form has.
            Err(ApiError::Refused { code: 400, description, .. }) => {
                tracing::warn!(bot = self.name, description, "Telegram refused the markup; the text goes out plain");
                self.send_text(address, &part.plain, None).await
            }
            other => other,
        }
    }
}

impl Channel for Telegram {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn account(&self) -> &str {
        &self.name
    }

    fn tiers(&self) -> &[TierName] {
        &self.tiers
    }

    fn run(self: Arc<Self>, intake: Intake, stop: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(async move {
            self.report(Err("Telegram was not reached yet".to_owned()));
            // None says that it is time to stop.
            self.poll(&intake, &stop).await;
            Ok(())
        })
    }

    fn send<'a>(&'a self, address: &'a str, part: &'a Part, _key: &'a SendKey) -> BoxFuture<'a, Sending> {
        Box::pin(async move {
            match self.send_part(address, part).await {
                Ok(sent) => Sending::Receipt(sent.message_id.to_string()),
                Err(ApiError::TooMany(wait)) => {
                    Sending::NotSent { retry_after: Some(wait), why: ApiError::TooMany(wait).to_string() }
                }
                // A wrong token is the owner's to mend; the reply waits for that.
                Err(error @ (ApiError::Token | ApiError::Conflict(_))) => {
                    Sending::NotSent { retry_after: Some(self.pace.slowest_retry), why: error.to_string() }
                }
                Err(error @ ApiError::Unreached(_)) => Sending::NotSent { retry_after: None, why: error.to_string() },
                Err(error @ ApiError::Refused { .. }) => Sending::Permanent(error.to_string()),
                Err(error @ ApiError::Unclear(_)) => Sending::Unknown(error.to_string()),
            }
        })
    }

    fn typing<'a>(&'a self, address: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Ok(chat) = address.parse::<i64>() else { return };
            let params = SendChatActionParams::builder().chat_id(chat).action(ChatAction::Typing).build();
            if let Err(error) = self.api.call::<_, bool>("sendChatAction", &params, self.pace.call).await {
                tracing::debug!(bot = self.name, %error, "nobody sees that somebody is typing");
            }
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.me().await.map(|_| ()).map_err(|error| error.to_string()) })
    }
}
