//! What must survive a restart, in `state_dir`: which session of the agent belongs to which conversation, and how far
//! each turn has come.
//!
//! The record of a turn is the durable `seen`: JetStream forgets ids after its window, and an acknowledgement may be
//! lost long after. A turn whose outcome is recorded is never prompted again; a reply that is recorded as sent is never
//! sent again. Files are written whole (temporary file, fsync, rename, fsync of the directory). Not here: what to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assistant_proto::name::{TierName, TurnId};
use assistant_proto::trace::TraceParent;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

use crate::envelope::{Conversation, Outcome};

/// Turns older than this are forgotten: far beyond any redelivery, and beyond any sensible retry with a key.
const KEEP_TURNS: Duration = Duration::from_secs(14 * 24 * 3600);
/// Conversations that are remembered; the least recently used go first.
const MOST_SESSIONS: usize = 4096;
/// Keys of messages that are remembered per account: several times what a messenger offers at once, and what was not
/// acknowledged is among the newest.
const MOST_SEEN: usize = 512;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what this service wrote.
    #[error("{path} is damaged")]
    Damaged {
        /// Where.
        path: PathBuf,
    },
}

/// How far a turn has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnRecord {
    /// Root span of the turn.
    pub traceparent: TraceParent,
    /// Hex SHA-256 of the message, so that a key is not used for two.
    pub text_sha256: String,
    /// How often the prompt may have reached the agent.
    pub attempts: u32,
    /// How it came out; kept before the reply is committed.
    pub outcome: Option<Outcome>,
    /// Whether the reply went out.
    pub sent: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownSession {
    session: String,
    used_at: u64,
}

/// The records on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Records {
    turns: PathBuf,
    sessions: PathBuf,
    /// Messages of messengers that were taken, by account.
    seen: PathBuf,
    /// The tier that was chosen for a conversation of a messenger.
    chosen: PathBuf,
    /// One writer at a time, so that reading, changing and writing a file is one step.
    writing: Arc<Mutex<()>>,
}

impl Records {
    /// Opens the records and forgets what is too old.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let turns = state_dir.join("turns");
        fs::create_dir_all(&turns).await.map_err(|source| failed("create", &turns, source))?;
        let records = Self {
            turns,
            sessions: state_dir.join("sessions.json"),
            seen: state_dir.join("seen.json"),
            chosen: state_dir.join("chosen.json"),
            writing: Arc::default(),
        };
        records.forget(SystemTime::now()).await?;
        Ok(records)
    }

    /// What is known of a turn.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub async fn turn(&self, turn: &TurnId) -> Result<Option<TurnRecord>, RecordError> {
        read(&self.turn_path(turn)).await
    }

    /// Changes the record of a turn, or makes it, as one step; returns what it is now.
    ///
    /// # Errors
    /// When it cannot be read or written; then it is unchanged.
    pub async fn change_turn(
        &self,
        turn: &TurnId,
        change: impl FnOnce(Option<TurnRecord>) -> TurnRecord + Send,
    ) -> Result<TurnRecord, RecordError> {
        let path = self.turn_path(turn);
        let _writing = self.writing.lock().await;
        let record = change(read(&path).await?);
        write(&path, &record).await?;
        Ok(record)
    }

    /// The agent's session of a conversation.
    ///
    /// # Errors
    /// When the sessions cannot be read.
    pub async fn session(&self, conversation: &Conversation) -> Result<Option<String>, RecordError> {
        let sessions: Option<BTreeMap<String, KnownSession>> = read(&self.sessions).await?;
        Ok(sessions.and_then(|mut sessions| sessions.remove(&name(conversation))).map(|known| known.session))
    }

    /// Remembers the agent's session of a conversation.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stays.
    pub async fn keep_session(&self, conversation: &Conversation, session: &str) -> Result<(), RecordError> {
        let _writing = self.writing.lock().await;
        let mut sessions: BTreeMap<String, KnownSession> = read(&self.sessions).await?.unwrap_or_default();
        let used_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        sessions.insert(name(conversation), KnownSession { session: session.to_owned(), used_at });
        while sessions.len() > MOST_SESSIONS {
            let Some(oldest) = sessions.iter().min_by_key(|(_, known)| known.used_at).map(|(name, _)| name.clone())
            else {
                break;
            };
            sessions.remove(&oldest);
        }
        write(&self.sessions, &sessions).await
    }

    /// Forgets the agent's session of a conversation: the next message begins another.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stays.
    pub async fn forget_session(&self, conversation: &Conversation) -> Result<(), RecordError> {
        let _writing = self.writing.lock().await;
        let mut sessions: BTreeMap<String, KnownSession> = read(&self.sessions).await?.unwrap_or_default();
        if sessions.remove(&name(conversation)).is_none() {
            return Ok(());
        }
        write(&self.sessions, &sessions).await
    }

    /// Whether a message of an account was taken before.
    ///
    /// # Errors
    /// When that cannot be read.
    pub async fn seen(&self, account: &str, key: &str) -> Result<bool, RecordError> {
        let seen: Option<BTreeMap<String, Vec<String>>> = read(&self.seen).await?;
        Ok(seen.is_some_and(|seen| seen.get(account).is_some_and(|keys| keys.iter().any(|known| known == key))))
    }

    /// Remembers that a message of an account was taken.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn keep_seen(&self, account: &str, key: &str) -> Result<(), RecordError> {
        let _writing = self.writing.lock().await;
        let mut seen: BTreeMap<String, Vec<String>> = read(&self.seen).await?.unwrap_or_default();
        let keys = seen.entry(account.to_owned()).or_default();
        keys.push(key.to_owned());
        keys.drain(..keys.len().saturating_sub(MOST_SEEN));
        write(&self.seen, &seen).await
    }

    /// The tier that was chosen for a conversation, if it still is the name of one.
    ///
    /// # Errors
    /// When that cannot be read.
    pub async fn chosen_tier(&self, channel: &str, conversation: &str) -> Result<Option<TierName>, RecordError> {
        let chosen: Option<BTreeMap<String, TierName>> = read(&self.chosen).await?;
        Ok(chosen.and_then(|mut chosen| chosen.remove(&format!("{channel}/{conversation}"))))
    }

    /// Chooses the tier of a conversation.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stays.
    pub async fn choose_tier(&self, channel: &str, conversation: &str, tier: &TierName) -> Result<(), RecordError> {
        let _writing = self.writing.lock().await;
        let mut chosen: BTreeMap<String, TierName> = read(&self.chosen).await?.unwrap_or_default();
        chosen.insert(format!("{channel}/{conversation}"), tier.clone());
        write(&self.chosen, &chosen).await
    }

    async fn forget(&self, now: SystemTime) -> Result<(), RecordError> {
        let unreadable = |source| failed("list", &self.turns, source);
        let mut entries = fs::read_dir(&self.turns).await.map_err(unreadable)?;
        while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
            let path = entry.path();
            let age = match entry.metadata().await.and_then(|metadata| metadata.modified()) {
                Ok(modified) => now.duration_since(modified).unwrap_or_default(),
                Err(source) => return Err(failed("look at", &path, source)),
            };
            // A temporary file at start is what a crash left behind; nobody else writes here.
            let leftover = path.extension().is_none_or(|extension| extension != "json");
            if age > KEEP_TURNS || leftover {
                fs::remove_file(&path).await.map_err(|source| failed("remove", &path, source))?;
            }
        }
        Ok(())
    }

    fn turn_path(&self, turn: &TurnId) -> PathBuf {
        self.turns.join(format!("{turn}.json"))
    }
}

/// Names hold no slash, so this is unambiguous.
fn name(conversation: &Conversation) -> String {
    format!("{}/{}/{}", conversation.tier, conversation.channel, conversation.name)
}

pub(crate) fn failed(what: &'static str, path: &Path, source: std::io::Error) -> RecordError {
    RecordError::Io { what, path: path.to_owned(), source }
}

pub(crate) async fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    match fs::read(path).await {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|_| RecordError::Damaged { path: path.to_owned() })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

pub(crate) async fn write<T: Serialize + Sync>(path: &Path, value: &T) -> Result<(), RecordError> {
    let bytes = serde_json::to_vec(value).map_err(|_| RecordError::Damaged { path: path.to_owned() })?;
    let temporary = path.with_extension("tmp");
    let written = async {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).await?;
        file.write_all(&bytes).await?;
        file.sync_all().await?;
        fs::rename(&temporary, path).await?;
        match path.parent() {
            Some(parent) => fs::File::open(parent).await?.sync_all().await,
            None => Ok(()),
        }
    };
    written.await.map_err(|source| failed("write", path, source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn conversation(name: &str) -> Conversation {
        Conversation { tier: "tasks".parse().unwrap(), channel: "terminal".to_owned(), name: name.to_owned() }
    }

    fn fresh(attempts: u32) -> TurnRecord {
        TurnRecord {
            traceparent: service_kit::trace::fresh(),
            text_sha256: String::new(),
            attempts,
            outcome: None,
            sent: false,
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).await.unwrap();
        let turn = TurnId::generate();
        assert_eq!(records.turn(&turn).await.unwrap(), None);
        records.change_turn(&turn, |known| known.unwrap_or_else(|| fresh(1))).await.unwrap();
        let outcome = Outcome::Answered { reply: "r".to_owned(), stop_reason: "end_turn".to_owned() };
        let kept = outcome.clone();
        records.change_turn(&turn, |known| TurnRecord { outcome: Some(kept), ..known.unwrap() }).await.unwrap();
        records.keep_session(&conversation("a"), "s1").await.unwrap();
        records.keep_session(&conversation("b"), "s2").await.unwrap();
        records.keep_session(&conversation("a"), "s3").await.unwrap();
        std::fs::write(dir.path().join("turns").join("half.tmp"), "{").unwrap();

        let records = Records::open(dir.path()).await.unwrap();
        let known = records.turn(&turn).await.unwrap().unwrap();
        assert_eq!((known.attempts, known.outcome), (1, Some(outcome)));
        assert_eq!(records.session(&conversation("a")).await.unwrap().as_deref(), Some("s3"));
        assert_eq!(records.session(&conversation("b")).await.unwrap().as_deref(), Some("s2"));
        assert_eq!(records.session(&conversation("c")).await.unwrap(), None);
        for _ in 0..2 {
            records.forget_session(&conversation("b")).await.unwrap();
        }
        assert_eq!(records.session(&conversation("b")).await.unwrap(), None);
        assert!(records.session(&conversation("a")).await.unwrap().is_some());
        assert!(!dir.path().join("turns").join("half.tmp").exists());
        records.forget(SystemTime::now() + KEEP_TURNS + Duration::from_secs(60)).await.unwrap();
        assert_eq!(records.turn(&turn).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_damaged_record_is_an_error_and_not_a_new_turn() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).await.unwrap();
        let turn = TurnId::generate();
        std::fs::write(records.turn_path(&turn), "{\"attempts\":").unwrap();
        assert!(matches!(records.turn(&turn).await, Err(RecordError::Damaged { .. })));
        assert!(records.change_turn(&turn, |_| fresh(1)).await.is_err());
    }
}
