//! A person on the double of Telegram, and what the bot says to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::sink::SOCKET;
use super::until;
use crate::doubles::telegram::person::{self, Person, State};
use crate::doubles::telegram::{BOT_NAME, SentMessage};

/// Whom the drill's bot answers.
pub const OWNER: i64 = 1_000_001;

/// The longest an answer may take.
const ANSWER: Duration = Duration::from_secs(120);

/// Somebody in a chat with the bot.
#[derive(Debug, Clone)]
pub struct Chat {
    person: Person,
    after: u64,
}

impl Chat {
    /// The private chat of a person. What the bot sent before is not looked at.
    ///
    /// # Errors
    /// When the doubles do not answer.
    pub async fn private(user: i64) -> anyhow::Result<Self> {
        Self::open(user, None).await
    }

    /// A group that nobody has written in yet.
    ///
    /// # Errors
    /// When the doubles do not answer.
    pub async fn new_group(user: i64) -> anyhow::Result<Self> {
        let unique = i64::from(uuid::Uuid::new_v4().as_fields().0);
        Self::open(user, Some(-1_000_000_000_000_i64.saturating_sub(unique))).await
    }

    async fn open(user: i64, chat: Option<i64>) -> anyhow::Result<Self> {
        let after = state(0).await?.messages.last().map_or(0, |message| message.sequence);
        Ok(Self { person: Person { socket: PathBuf::from(SOCKET), user, chat }, after })
    }

    /// Somebody else in the same chat.
    #[must_use]
    pub fn of(&self, user: i64) -> Self {
        let chat = Some(self.person.chat.unwrap_or(self.person.user));
        Self { person: Person { user, chat, ..self.person.clone() }, after: self.after }
    }

    /// Writes; in a group the bot is addressed, else it would not hear.
    ///
    /// # Errors
    /// When the doubles do not answer.
    pub async fn write(&self, text: &str) -> anyhow::Result<()> {
        let text = if self.person.chat.is_some() { format!("@{BOT_NAME} {text}") } else { text.to_owned() };
        self.person.write(&text).await.map(|_| ())
    }

    /// Waits for a message that holds all these words.
    ///
    /// # Errors
    /// When it does not come; says what came.
    pub async fn hears(&self, parts: &[&str]) -> anyhow::Result<SentMessage> {
        self.person.hears(self.after, ANSWER, |message| parts.iter().all(|part| message.text.contains(part))).await
    }

    /// Waits for a message that holds one of these words.
    ///
    /// # Errors
    /// When it does not come; says what came.
    pub async fn hears_one_of(&self, parts: &[&str]) -> anyhow::Result<SentMessage> {
        self.person.hears(self.after, ANSWER, |message| parts.iter().any(|part| message.text.contains(part))).await
    }

    /// From now on only what was sent after this message is looked at.
    pub fn forget_until(&mut self, message: &SentMessage) {
        self.after = message.sequence;
    }

    /// What the bot has sent to this chat.
    ///
    /// # Errors
    /// When the doubles do not answer.
    pub async fn heard(&self) -> anyhow::Result<Vec<SentMessage>> {
        let chat = self.person.chat.unwrap_or(self.person.user);
        let mut messages = state(self.after).await?.messages;
        messages.retain(|message| message.chat_id == chat);
        Ok(messages)
    }

    /// What the bot has sent to this chat once it has answered one more message. Turns of a tier, and answers of a chat,
    /// come one after the other, so what was to come before has come.
    ///
    /// # Errors
    /// When that is not answered.
    pub async fn heard_in_the_end(&self) -> anyhow::Result<Vec<SentMessage>> {
        let word = unique_word();
        self.write(&format!("!say {word}")).await?;
        self.hears(&[&word]).await?;
        self.heard().await
    }
}

/// What the double knows: messages after `after`, and counts.
///
/// # Errors
/// When the doubles do not answer.
pub async fn state(after: u64) -> anyhow::Result<State> {
    person::sent(Path::new(SOCKET), after).await
}

/// Makes something go wrong; see `doubles::telegram::Fault`.
///
/// # Errors
/// When the doubles do not answer.
pub async fn fault(fault: &Value) -> anyhow::Result<()> {
    person::fault(Path::new(SOCKET), fault).await
}

/// Waits until everything that was to go wrong has.
///
/// # Errors
/// When it does not.
pub async fn faults_are_over() -> anyhow::Result<()> {
    until("the bot's call that fails", ANSWER, || async { Ok((state(u64::MAX).await?.faults == 0).then_some(())) })
        .await
}

/// A word that was never said before, and that nobody takes for an address.
#[must_use]
pub fn unique_word() -> String {
    format!("word-{}", uuid::Uuid::new_v4().simple())
}
