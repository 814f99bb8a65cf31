//! A double of the bus at the bridge's own seam: a work queue per stream with at-least-once delivery, without a server.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use assistant_proto::event::{ChannelReceived, ChannelReplied, TurnStarted};
use assistant_proto::name::TurnId;
use assistant_proto::trace::TraceParent;
use channel_bridge::inbox::Inbox;
use channel_bridge::outbox::Outbox;
use channel_bridge::post::{Notice, Post};
use futures::future::BoxFuture;
use service_kit::bus::BusError;

use crate::agent_double::Journal;

#[derive(Default)]
pub(crate) struct MemoryPost {
    pub(crate) away: AtomicBool,
    /// Who acknowledges; the bridge expects `secret-broker` and `egress-auditor`.
    pub(crate) acknowledging: Mutex<BTreeSet<String>>,
    pub(crate) received: Mutex<Vec<ChannelReceived>>,
    pub(crate) replied: Mutex<Vec<ChannelReplied>>,
    pub(crate) notices: Mutex<Vec<Notice>>,
    pub(crate) announced: Mutex<Vec<TurnStarted>>,
    /// Every beat, also those that did not get through.
    pub(crate) beats: Mutex<Vec<(TurnStarted, u32, u32)>>,
    pub(crate) journal: Journal,
    pub(crate) consumers: OnceLock<(Inbox, Outbox)>,
    known: Mutex<BTreeSet<(&'static str, TurnId)>>,
}

impl std::fmt::Debug for MemoryPost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryPost")
    }
}

impl MemoryPost {
    pub(crate) fn new(journal: Journal) -> Self {
        let acknowledging = ["secret-broker", "egress-auditor"].map(str::to_owned);
        Self { acknowledging: Mutex::new(acknowledging.into()), journal, ..Self::default() }
    }

    /// `turn`, attempt and outcome of every end of a turn.
    pub(crate) fn ends(&self) -> Vec<(TurnId, u32, String)> {
        let notices = self.notices.lock().unwrap();
        let end = |notice: &Notice| match notice {
            Notice::TurnEnded(ended, attempt) => Some((ended.turn.clone(), *attempt, ended.outcome.clone())),
            _ => None,
        };
        notices.iter().filter_map(end).collect()
    }

    fn taken(&self, kind: &'static str, turn: &TurnId) -> Result<bool, BusError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(BusError::Disconnected);
        }
        Ok(self.known.lock().unwrap().insert((kind, turn.clone())))
    }
}

impl Post for MemoryPost {
    fn is_connected(&self) -> bool {
        !self.away.load(Ordering::SeqCst)
    }

    fn commit_received<'a>(&'a self, event: &'a ChannelReceived) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async move {
            if self.taken("received", &event.turn)? {
                self.received.lock().unwrap().push(event.clone());
                if let Some((inbox, _)) = self.consumers.get() {
                    let (inbox, event) = (inbox.clone(), event.clone());
                    tokio::spawn(async move { inbox.handle(event).await });
                }
            }
            Ok(())
        })
    }

    fn commit_replied<'a>(&'a self, event: &'a ChannelReplied) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async move {
            if self.taken("replied", &event.turn)? {
                self.replied.lock().unwrap().push(event.clone());
                if let Some((_, outbox)) = self.consumers.get() {
                    let (outbox, event) = (outbox.clone(), event.clone());
                    tokio::spawn(async move { outbox.deliver(event).await });
                }
            }
            Ok(())
        })
    }

    fn announce<'a>(
        &'a self,
        event: &'a TurnStarted,
        _attempt: u32,
        expected: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<BTreeSet<String>, BusError>> {
        Box::pin(async move {
            self.journal.lock().unwrap().push(format!("announced {}", event.conversation));
            self.announced.lock().unwrap().push(event.clone());
            Ok(self.acknowledging.lock().unwrap().intersection(expected).cloned().collect())
        })
    }

    fn beat<'a>(&'a self, event: &'a TurnStarted, attempt: u32, beat: u32) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(async move {
            self.journal.lock().unwrap().push(format!("beat {}", event.turn));
            self.beats.lock().unwrap().push((event.clone(), attempt, beat));
            if self.is_connected() { Ok(()) } else { Err(BusError::Disconnected) }
        })
    }

    fn notify(&self, notice: &Notice, _parent: TraceParent) {
        if let Notice::TurnEnded(ended, _) = notice {
            self.journal.lock().unwrap().push(format!("ended {}", ended.turn));
        }
        self.notices.lock().unwrap().push(notice.clone());
    }
}
