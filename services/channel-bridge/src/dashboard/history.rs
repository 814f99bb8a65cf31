//! What was said in the dashboard's conversations, for a page that is loaded again: a file for each in `state_dir`, with
//! the newest messages. ZeroClaw keeps a history of its own for the agent; this one is what the person saw.
//!
//! Written by the inbox, so that a message has its place here whatever becomes of the browser. Not here: the agent's
//! session, and whether a turn was answered (`record`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use assistant_proto::event::ChannelReceived;
use assistant_proto::name::{TierName, TurnId};
use serde::{Deserialize, Serialize};
use tokio::fs;
use tokio::sync::Mutex;

use super::KIND;
use crate::envelope::Outcome;
use crate::record::{RecordError, failed, read, write};

/// Conversations of a tier; the least recently used go first.
const MOST_CONVERSATIONS: usize = 64;
/// Turns of a conversation; the oldest go first.
const MOST_TURNS: usize = 200;
/// Bytes of text of a conversation, the newest turn not counted.
const MOST_BYTES: usize = 1 << 20;
/// Longest name of a conversation, in characters.
pub(super) const MOST_NAME: usize = 80;

/// A turn, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// The turn.
    pub turn: TurnId,
    /// Its trace.
    pub trace_id: String,
    /// When it was asked, RFC 3339.
    pub asked_at: String,
    /// What the person wrote.
    pub text: String,
    /// How it came out, once it has.
    pub outcome: Option<Outcome>,
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// What the person calls it.
    pub name: Option<String>,
    /// When it began, RFC 3339.
    pub began_at: String,
    /// Its turns, oldest first.
    pub turns: Vec<Seen>,
}

/// A conversation in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The page's identity of it.
    pub id: String,
    /// What the person calls it.
    pub name: Option<String>,
    /// When it began, RFC 3339.
    pub began_at: String,
    /// When something was last asked in it, RFC 3339.
    pub used_at: String,
    /// Turns that are kept.
    pub turns: usize,
}

/// The files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History {
    dir: PathBuf,
    /// One writer at a time, so that reading, changing and writing a file is one step.
    writing: Arc<Mutex<()>>,
}

impl History {
    /// Keeps them beneath `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("dashboard"), writing: Arc::default() }
    }

    /// A message was taken up. Nothing for another channel's. The page can be without it, so what goes wrong is logged.
    pub async fn asked(&self, received: &ChannelReceived) {
        if received.channel == KIND {
            told(self.keep(received, None).await);
        }
    }

    /// How its turn came out.
    pub async fn answered(&self, received: &ChannelReceived, outcome: &Outcome) {
        if received.channel == KIND {
            told(self.keep(received, Some(outcome)).await);
        }
    }

    async fn keep(&self, received: &ChannelReceived, outcome: Option<&Outcome>) -> Result<(), RecordError> {
        let path = self.path(&received.tier, &received.conversation);
        let _writing = self.writing.lock().await;
        let known: Option<Told> = read(&path).await?;
        let begins = known.is_none();
        let mut conversation = match known {
            Some(known) => known,
            // It was forgotten while its turn ran.
            None if outcome.is_some() => return Ok(()),
            None => Told { name: None, began_at: received.received_at.clone(), turns: Vec::new() },
        };
        match conversation.turns.iter_mut().find(|seen| seen.turn == received.turn) {
            Some(seen) => seen.outcome = outcome.cloned().or_else(|| seen.outcome.take()),
            None => conversation.turns.push(Seen {
                turn: received.turn.clone(),
                trace_id: received.traceparent.trace_id(),
                asked_at: received.received_at.clone(),
                text: received.text.clone(),
                outcome: outcome.cloned(),
            }),
        }
        conversation.shorten();
        self.write(&path, &conversation).await?;
        if begins { self.make_room(&received.tier).await } else { Ok(()) }
    }

    async fn write(&self, path: &Path, conversation: &Told) -> Result<(), RecordError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).await.map_err(|source| failed("create", dir, source))?;
        }
        write(path, conversation).await
    }

    /// A conversation.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn conversation(&self, tier: &TierName, id: &str) -> Result<Option<Told>, RecordError> {
        read(&self.path(tier, id)).await
    }

    /// The conversations of a tier, those last used first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn list(&self, tier: &TierName) -> Result<Vec<Summary>, RecordError> {
        let mut summaries = Vec::new();
        for (_, path) in self.files(tier).await? {
            let Some(id) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            let Some(conversation) = read::<Told>(&path).await? else { continue };
            let used_at = conversation.turns.last().map_or(&conversation.began_at, |seen| &seen.asked_at).clone();
            summaries.push(Summary {
                id: id.to_owned(),
                used_at,
                turns: conversation.turns.len(),
                name: conversation.name,
                began_at: conversation.began_at,
            });
        }
        summaries.sort_by(|a, b| b.used_at.cmp(&a.used_at).then_with(|| a.id.cmp(&b.id)));
        Ok(summaries)
    }

    /// Names a conversation; false when there is none.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub async fn rename(&self, tier: &TierName, id: &str, name: String) -> Result<bool, RecordError> {
        let path = self.path(tier, id);
        let _writing = self.writing.lock().await;
        let Some(conversation) = read::<Told>(&path).await? else { return Ok(false) };
        self.write(&path, &Told { name: Some(name), ..conversation }).await?;
        Ok(true)
    }

    /// Forgets a conversation; false when there is none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn forget(&self, tier: &TierName, id: &str) -> Result<bool, RecordError> {
        let path = self.path(tier, id);
        let _writing = self.writing.lock().await;
        match fs::remove_file(&path).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("remove", &path, source)),
        }
    }

    async fn make_room(&self, tier: &TierName) -> Result<(), RecordError> {
        let mut files = self.files(tier).await?;
        files.sort();
        let over = files.len().saturating_sub(MOST_CONVERSATIONS);
        for (_, path) in files.into_iter().take(over) {
            fs::remove_file(&path).await.map_err(|source| failed("remove", &path, source))?;
        }
        Ok(())
    }

    /// The files of a tier, with the time of their last change.
    async fn files(&self, tier: &TierName) -> Result<Vec<(SystemTime, PathBuf)>, RecordError> {
        let dir = self.dir.join(tier.as_str());
        let unreadable = |source| failed("list", &dir, source);
        let mut entries = match fs::read_dir(&dir).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(unreadable(source)),
        };
        let mut files = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let changed = entry.metadata().await.and_then(|metadata| metadata.modified()).map_err(unreadable)?;
                files.push((changed, path));
            }
        }
        Ok(files)
    }

    /// Neither name holds a slash, and the ending keeps them from being `.` or `..`.
    fn path(&self, tier: &TierName, id: &str) -> PathBuf {
        self.dir.join(tier.as_str()).join(format!("{id}.json"))
    }
}

impl Told {
    fn shorten(&mut self) {
        let mut room = MOST_BYTES;
        let kept = self.turns.iter().rev().take(MOST_TURNS).enumerate().take_while(|(index, seen)| {
            let answer = seen.outcome.as_ref().map_or(0, |outcome| outcome.message().len());
            let bytes = seen.text.len().saturating_add(answer);
            let fits = *index == 0 || bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        });
        let kept = kept.count();
        self.turns.drain(..self.turns.len().saturating_sub(kept));
    }
}

fn told(kept: Result<(), RecordError>) {
    if let Err(error) = kept {
        tracing::error!(%error, "the history of a dashboard's conversation is incomplete");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn tier() -> TierName {
        "tasks".parse().unwrap()
    }

    fn received(conversation: &str, text: &str) -> ChannelReceived {
        ChannelReceived {
            tier: tier(),
            turn: TurnId::generate(),
            channel: KIND.to_owned(),
            conversation: conversation.to_owned(),
            sender: KIND.to_owned(),
            text: text.to_owned(),
            traceparent: service_kit::trace::fresh(),
            received_at: service_kit::clock::now_rfc3339(),
        }
    }

    fn answer(reply: &str) -> Outcome {
        Outcome::Answered { reply: reply.to_owned(), stop_reason: "end_turn".to_owned() }
    }

    #[tokio::test]
    async fn what_was_said_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let message = received("a", "what?");
        history.asked(&message).await;
        // A message that is delivered again is still one.
        history.asked(&message).await;
        history.answered(&message, &answer("that")).await;
        history.asked(&message).await;
        let other = ChannelReceived { channel: "terminal".to_owned(), ..received("b", "x") };
        history.asked(&other).await;
        let history = History::new(dir.path());
        let told = history.conversation(&tier(), "a").await.unwrap().unwrap();
        assert_eq!(told.turns.len(), 1);
        assert_eq!((told.turns[0].text.as_str(), &told.turns[0].outcome), ("what?", &Some(answer("that"))));
        assert!(history.rename(&tier(), "a", "mine".to_owned()).await.unwrap());
        let list = history.list(&tier()).await.unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].id.as_str(), list[0].name.as_deref(), list[0].turns), ("a", Some("mine"), 1));
        assert!(history.forget(&tier(), "a").await.unwrap() && !history.forget(&tier(), "a").await.unwrap());
        // Forgotten while its turn ran: it does not come back.
        history.answered(&message, &answer("late")).await;
        assert!(history.list(&tier()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn it_has_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let big = "x".repeat(MOST_BYTES / 3);
        for _ in 0..5 {
            let message = received("a", &big);
            history.asked(&message).await;
        }
        assert_eq!(history.conversation(&tier(), "a").await.unwrap().unwrap().turns.len(), 3);
        let huge = received("a", &"x".repeat(MOST_BYTES * 2));
        history.asked(&huge).await;
        assert_eq!(history.conversation(&tier(), "a").await.unwrap().unwrap().turns.len(), 1);
        for index in 0..MOST_CONVERSATIONS + 3 {
            history.asked(&received(&format!("c{index}"), "x")).await;
        }
        assert_eq!(history.list(&tier()).await.unwrap().len(), MOST_CONVERSATIONS);
    }
}
