//! The channels people write on. The terminal is served on the control socket and watches its turns live
//! ([`terminal`]); a messenger implements [`Channel`] and is driven from outside: what it can do is data, and chunks,
//! retries, pacing, de-duplication, allowlist and approvals are the same for all of them (`reply`, `delivery`, `intake`,
//! `attendant`).
//!
//! A conversation of a messenger is named `<account>.<address>`: the account is the bot's (or device's) name in
//! tiers.yaml, the address whatever the messenger calls a chat.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assistant_proto::name::TierName;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::intake::Intake;
use crate::reply::Part;

pub mod telegram;
pub mod terminal;

/// What a messenger can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Channel kind, for example `telegram`.
    pub kind: &'static str,
    /// Longest message, in UTF-16 units.
    pub most_units: usize,
    /// Between two signs that somebody is typing; none where the messenger has none.
    pub typing: Option<Duration>,
    /// Whether a message sent twice with the same key is shown once. Without, a message of unknown fate may be shown
    /// twice.
    pub native_key: bool,
}

/// Identifies a part over all attempts to send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendKey(pub String);

/// What became of an attempt to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sending {
    /// It is there, under this name of the messenger's.
    Receipt(String),
    /// It is certainly not there, and may be later.
    NotSent {
        /// How long the messenger wants to be left alone.
        retry_after: Option<Duration>,
        /// What happened.
        why: String,
    },
    /// It never will be.
    Permanent(String),
    /// Nobody knows.
    Unknown(String),
}

/// An account on a messenger.
pub trait Channel: Debug + Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// The account's name in tiers.yaml.
    fn account(&self) -> &str;

    /// The tiers one can talk to through it; the first is where a new conversation begins.
    fn tiers(&self) -> &[TierName];

    /// Takes messages in until `stop`. The messenger is told that a message arrived only after the inbox has it.
    fn run(self: Arc<Self>, intake: Intake, stop: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>>;

    /// Tries once to send a part. Dropped in the middle, its fate is unknown.
    fn send<'a>(&'a self, address: &'a str, part: &'a Part, key: &'a SendKey) -> BoxFuture<'a, Sending>;

    /// Shows that somebody is typing. Whether that worked does not matter.
    fn typing<'a>(&'a self, address: &'a str) -> BoxFuture<'a, ()>;

    /// Whether the messenger answers at all.
    fn probe(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// The messengers of this bridge, by kind and account.
#[derive(Debug, Clone, Default)]
pub struct Channels(Arc<BTreeMap<(String, String), Arc<dyn Channel>>>);

impl Channels {
    /// All there are.
    #[must_use]
    pub fn new(channels: impl IntoIterator<Item = Arc<dyn Channel>>) -> Self {
        let keyed = channels
            .into_iter()
            .map(|channel| ((channel.capabilities().kind.to_owned(), channel.account().to_owned()), channel));
        Self(Arc::new(keyed.collect()))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Channel>> {
        self.0.values()
    }

    /// The account a conversation is on, and its address there.
    #[must_use]
    pub fn find<'a>(&self, kind: &str, conversation: &'a str) -> Option<(Arc<dyn Channel>, &'a str)> {
        let (account, address) = conversation.split_once('.')?;
        let channel = self.0.get(&(kind.to_owned(), account.to_owned()))?;
        Some((Arc::clone(channel), address))
    }
}

/// The name of a conversation.
#[must_use]
pub fn conversation(account: &str, address: &str) -> String {
    format!("{account}.{address}")
}

/// How fast messengers are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long one question for new messages may wait at the messenger.
    pub poll: Duration,
    /// First pause after something failed; doubles, with jitter.
    pub first_retry: Duration,
    /// Longest pause while a messenger is not there: it may be back at any moment, and asking costs nobody anything.
    pub slowest_reach: Duration,
    /// Longest pause after it said no.
    pub slowest_retry: Duration,
    /// Between two messages to one conversation. Telegram wants at most one per second.
    pub between_parts: Duration,
    /// Between two signs that somebody is typing; they fade after about five seconds.
    pub typing: Duration,
    /// How long a call may take that waits for nothing on purpose.
    pub call: Duration,
    /// How much later than it was to come at the latest the answer to a question for new messages may come. A connection
    /// that is dead somewhere behind Squid is noticed by nothing else.
    pub poll_slack: Duration,
    /// How long a note of the bridge, which is not kept, is tried.
    pub note: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(25),
            first_retry: Duration::from_millis(500),
            slowest_reach: Duration::from_secs(5),
            slowest_retry: Duration::from_secs(60),
            between_parts: Duration::from_secs(1),
            typing: Duration::from_millis(4500),
            call: Duration::from_secs(20),
            poll_slack: Duration::from_secs(10),
            note: Duration::from_secs(120),
        }
    }
}

/// Pauses that double, with jitter.
#[derive(Debug)]
pub struct Backoff {
    pace: Pace,
    next: Duration,
}

/// What a pause comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody was there, or nobody knows.
    Away,
    /// A no; perhaps with how long to leave it alone.
    No(Option<Duration>),
}

impl Backoff {
    /// Begins with the first pause.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self { pace, next: pace.first_retry }
    }

    /// The next pause, at least as long as asked for.
    pub fn pause(&mut self, trouble: Trouble) -> Duration {
        let (slowest, at_least) = match trouble {
            Trouble::Away => (self.pace.slowest_reach, None),
            Trouble::No(at_least) => (self.pace.slowest_retry, at_least),
        };
        let pause = self.next.min(slowest).mul_f64(rand::random_range(0.5..1.5));
        self.next = self.next.saturating_mul(2).min(slowest);
        // Asked for more time, it gets a little more than that: many ask for it at once.
        at_least.map_or(pause, |least| pause.max(least.saturating_add(pause.min(Duration::from_millis(250)))))
    }

    /// It works again.
    pub fn reset(&mut self) {
        self.next = self.pace.first_retry;
    }
}

/// How each account is. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Statuses(Arc<Mutex<BTreeMap<String, String>>>);

impl Statuses {
    /// Notes how an account is; returns every problem there is now.
    pub fn note(&self, account: &str, state: Result<(), String>) -> Result<(), String> {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            Ok(()) => problems.remove(account),
            Err(problem) => problems.insert(account.to_owned(), problem),
        };
        let all: Vec<String> = problems.iter().map(|(account, problem)| format!("{account}: {problem}")).collect();
        if all.is_empty() { Ok(()) } else { Err(all.join("; ")) }
    }

    /// The problem of an account.
    #[must_use]
    pub fn problem(&self, account: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_away_is_asked_again_within_seconds_and_who_says_no_is_left_alone() {
        let pace = Pace::default();
        let mut backoff = Backoff::new(pace);
        for _ in 0..20 {
            assert!(backoff.pause(Trouble::Away) <= pace.slowest_reach.mul_f64(1.5));
        }
        for _ in 0..20 {
            backoff.pause(Trouble::No(None));
        }
        assert!(backoff.pause(Trouble::No(None)) >= pace.slowest_retry.mul_f64(0.5));
        assert!(backoff.pause(Trouble::Away) <= pace.slowest_reach.mul_f64(1.5), "away after a no");
        backoff.reset();
        assert!(backoff.pause(Trouble::Away) <= pace.first_retry.mul_f64(1.5));
        let asked = Duration::from_secs(3);
        assert!(backoff.pause(Trouble::No(Some(asked))) >= asked);
    }
}
