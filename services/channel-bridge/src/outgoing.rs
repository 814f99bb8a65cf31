//! Replies on their way to a messenger, in `state_dir/outgoing`: one file each, from the moment the bridge takes a reply
//! from the outbox until the messenger has all of it or never will.
//!
//! The plan, that is the parts and their text, is made once and kept, so that a restart goes on with the same. Before a
//! part is sent that is recorded; whoever finds such a record later knows that its fate is unknown. Values and files
//! only; `delivery` sends.

use std::path::{Path, PathBuf};

use assistant_proto::name::{TierName, TurnId};
use assistant_proto::trace::TraceParent;
use serde::{Deserialize, Serialize};
use tokio::fs;

use crate::record::{self, RecordError};
use crate::reply::Part;

/// A reply on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outgoing {
    /// Order of coming in, over restarts.
    pub sequence: u64,
    /// The tier that answered.
    pub tier: TierName,
    /// The turn that was answered.
    pub turn: TurnId,
    /// Channel kind.
    pub channel: String,
    /// Conversation within the channel.
    pub conversation: String,
    /// Root span of the turn.
    pub traceparent: TraceParent,
    /// The plan.
    pub parts: Vec<Part>,
    /// The part that is next.
    pub next: usize,
    /// Whether an attempt to send it was begun whose end is not known.
    pub sending: bool,
    /// How many attempts at it ended without anybody knowing how.
    pub unknown: u8,
    /// Bytes of text that are certainly there.
    pub bytes: u64,
}

impl Outgoing {
    /// The part that is next; none when there is nothing left.
    #[must_use]
    pub fn part(&self) -> Option<&Part> {
        self.parts.get(self.next)
    }

    /// Goes on with the next part.
    pub fn advance(&mut self) {
        self.next = self.next.saturating_add(1);
        self.sending = false;
        self.unknown = 0;
    }
}

/// The files.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let dir = state_dir.join("outgoing");
        fs::create_dir_all(&dir).await.map_err(|source| record::failed("create", &dir, source))?;
        Ok(Self { dir })
    }

    /// Everything that is on its way, in order. What cannot be read is left where it is and said.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn all(&self) -> Result<Vec<Outgoing>, RecordError> {
        let unreadable = |source| record::failed("list", &self.dir, source);
        let mut all = Vec::new();
        let mut entries = fs::read_dir(&self.dir).await.map_err(unreadable)?;
        while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // What a crash left half written; nobody else writes here.
                fs::remove_file(&path).await.map_err(|source| record::failed("remove", &path, source))?;
                continue;
            }
            match record::read::<Outgoing>(&path).await {
                Ok(Some(outgoing)) => all.push(outgoing),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a reply on its way cannot be read and is not sent"),
            }
        }
        all.sort_by_key(|outgoing| outgoing.sequence);
        Ok(all)
    }

    /// What is known of a turn's reply.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn of(&self, turn: &TurnId) -> Result<Option<Outgoing>, RecordError> {
        record::read(&self.path(turn)).await
    }

    /// Keeps a reply as it is now.
    ///
    /// # Errors
    /// When it cannot be written; then it is as before.
    pub async fn keep(&self, outgoing: &Outgoing) -> Result<(), RecordError> {
        record::write(&self.path(&outgoing.turn), outgoing).await
    }

    /// Forgets a reply.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn forget(&self, turn: &TurnId) -> Result<(), RecordError> {
        let path = self.path(turn);
        match fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(record::failed("remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn path(&self, turn: &TurnId) -> PathBuf {
        self.dir.join(format!("{turn}.json"))
    }
}
