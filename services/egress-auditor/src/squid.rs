//! From Squid's log to events and spans: reads the file (the truth), uses the feed as a signal that there is something
//! to read, and as a witness. A line the feed has and the file does not get within [`GRACE`] is counted from the feed, so
//! that a full disk or a truncated file hides nothing. Each line counts once, by its key. Where lines of the file may be
//! missing, the record says so.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use assistant_proto::event::EventId;
use service_kit::host::Health;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoint;
use crate::compare::Matching;
use crate::ledger::{Ledger, Sighting};
use crate::line::{BumpMode, Line, LineError, LineKey, Outcome};
use crate::record::Entry;
use crate::tail::{Gap, Lost, Position, Read, Tail};
use crate::tunnel::{Finding, Joiner};

mod sighting;

pub use sighting::Attribution;
pub(crate) use sighting::shown;

/// The file is looked at this often even without a signal: the feed may be down.
const POLL: Duration = Duration::from_millis(250);
/// How long the file may take to get a line that the feed already had. Squid writes the file synchronously, so only a
/// file that cannot be written or was truncated takes longer than a moment.
pub const GRACE: Duration = Duration::from_secs(3);
/// Keys remembered to recognise a line that comes by the other way. The two ways are milliseconds apart.
const MOST_SEEN: usize = 65_536;
/// Feed lines whose line in the file is awaited. Beyond it the oldest is counted at once.
const MOST_PENDING: usize = 16_384;
/// Lines between feed and follower: a few milliseconds of the busiest Squid. When full the feed waits, and Squid drops.
pub const FEED_QUEUE: usize = 1024;
const HEALTH_PART: &str = "squid-log";
const LOG_NAME: &str = "access.log";

/// Follows the log. Run it as a critical task.
#[derive(Debug)]
pub struct Follower {
    tail: Option<Tail>,
    joiner: Joiner,
    feed: mpsc::Receiver<Vec<u8>>,
    ledger: Ledger,
    attribution: Attribution,
    matching: Matching,
    health: Health,
    readable: bool,
    checkpoint_directory: PathBuf,
    saved: Option<Checkpoint>,
    seen: Seen,
    pending: Pending,
}

impl Follower {
    /// Goes on where the checkpoint in `checkpoint_directory` says.
    #[must_use]
    pub fn new(
        log_directory: &std::path::Path,
        checkpoint_directory: PathBuf,
        feed: mpsc::Receiver<Vec<u8>>,
        ledger: Ledger,
        attribution: Attribution,
        matching: Matching,
        health: Health,
    ) -> Self {
        let saved = Checkpoint::load(&checkpoint_directory);
        let (mut position, mut open) = (None, Vec::new());
        if let Some(saved) = saved.clone() {
            (position, open) = (saved.position, saved.open);
            matching.compare.resume(saved.waiting, saved.used);
        }
        for line in &open {
            match attribution.tunnel(line) {
                Some(tunnel) => matching.compare.is_open(&tunnel),
                None => matching.calls.opened(line),
            }
        }
        Self {
            tail: Some(Tail::new(log_directory, LOG_NAME, position)),
            joiner: Joiner::resume(open),
            feed,
            ledger,
            attribution,
            matching,
            health,
            readable: true,
            checkpoint_directory,
            saved,
            seen: Seen::default(),
            pending: Pending::default(),
        }
    }

    /// Follows until `draining`, then takes what the file has by then.
    ///
    /// # Errors
    /// When the store is closed before the end.
    pub async fn run(mut self, draining: CancellationToken) -> anyhow::Result<()> {
        let mut feed_open = true;
        loop {
            let ending = draining.is_cancelled();
            let at_end = self.take_file().await?;
            if at_end {
                self.take_overdue().await?;
                if ending {
                    return Ok(());
                }
                // Cancel-safe: `recv` loses nothing when another arm wins.
                tokio::select! {
                    line = self.feed.recv(), if feed_open => match line {
                        Some(line) => self.witness(&line),
                        None => feed_open = false,
                    },
                    () = tokio::time::sleep(POLL) => {}
                    () = draining.cancelled() => {}
                }
            }
            while let Ok(line) = self.feed.try_recv() {
                self.witness(&line);
            }
        }
    }

    /// Takes one chunk of the file; returns whether that was all.
    async fn take_file(&mut self) -> anyhow::Result<bool> {
        let Some(mut tail) = self.tail.take() else { anyhow::bail!("the log's reader is gone; this is a bug") };
        let (tail, read) = tokio::task::spawn_blocking(move || {
            let read = tail.read();
            (tail, read)
        })
        .await?;
        let position = tail.position();
        self.tail = Some(tail);
        let read = match read {
            Ok(read) => {
                if !std::mem::replace(&mut self.readable, true) {
                    self.health.report(HEALTH_PART, Ok(()));
                }
                read
            }
            Err(error) => {
                self.readable = false;
                self.health.report(
                    HEALTH_PART,
                    Err(format!("Squid's log cannot be read ({error}); counting from its feed alone")),
                );
                Read { at_end: true, ..Read::default() }
            }
        };
        if let Some(gap) = &read.gap {
            self.ledger.record_incomplete(incomplete(gap)).await?;
        }
        let mut sightings = Vec::new();
        for found in &read.lines {
            let parsed = match found.bytes.as_deref() {
                Some(bytes) => Line::parse(bytes),
                None => Err(LineError::TooLong),
            };
            match parsed {
                Ok(line) => {
                    self.pending.confirm(&line.key());
                    self.count(line, &mut sightings);
                }
                Err(error) => {
                    tracing::error!(%error, "a line of Squid's log cannot be read; it is recorded as a denial");
                    sightings.push(self.attribution.unreadable(found, &error.to_string()));
                }
            }
        }
        self.ledger.record(sightings).await?;
        if !read.lines.is_empty() || self.saved.is_none() {
            self.save(position).await?;
        }
        Ok(read.at_end)
    }

    /// Counts a line, unless it was counted before.
    fn count(&mut self, line: Line, sightings: &mut Vec<Sighting>) {
        if self.seen.insert(line.key()) {
            // The decision of a tunnel: from then on bytes pass.
            if (line.outcome, line.mode, line.status) == (Outcome::Undecided, BumpMode::Splice, 200) {
                match self.attribution.tunnel(&line) {
                    Some(tunnel) => self.matching.compare.opened(tunnel),
                    None => self.matching.calls.opened(&line),
                }
            }
            for finding in self.joiner.take(line) {
                self.closes(&finding);
                sightings.push(self.attribution.sighting(finding));
            }
        }
    }

    /// A tunnel that is over, or one whose decision was never read.
    fn closes(&self, finding: &Finding) {
        match finding {
            Finding::Left { decided: Some(line), closed } => match (self.attribution.tunnel(line), closed) {
                (Some(tunnel), _) => self.matching.compare.closed(&tunnel),
                (None, Some(closed)) => self.matching.calls.closed(Some(line), closed),
                (None, None) => self.matching.calls.lost(line),
            },
            Finding::Left { decided: None, closed: Some(line) } if line.outcome == Outcome::Tunnel => {
                match self.attribution.tunnel(line) {
                    Some(tunnel) => {
                        self.matching.compare.opened(tunnel.clone());
                        self.matching.compare.closed(&tunnel);
                    }
                    None => self.matching.calls.closed(None, line),
                }
            }
            Finding::Left { decided: None, closed: Some(line) } => self.matching.calls.closed(None, line),
            _ => {}
        }
    }

    /// A line of the feed: the file should have it by now or in a moment.
    fn witness(&mut self, line: &[u8]) {
        match Line::parse(line) {
            Ok(line) if self.seen.contains(&line.key()) => {}
            Ok(line) => self.pending.add(line, Instant::now() + GRACE),
            // The file has it too, and there it is recorded.
            Err(error) => tracing::warn!(%error, "a line of Squid's feed cannot be read"),
        }
    }

    async fn take_overdue(&mut self) -> anyhow::Result<()> {
        let overdue = self.pending.overdue(Instant::now());
        if overdue.is_empty() {
            return Ok(());
        }
        tracing::error!(lines = overdue.len(), "Squid's feed had lines that its log file lacks; counted from the feed");
        let mut sightings = Vec::new();
        for line in overdue {
            self.count(line, &mut sightings);
        }
        self.ledger.record(sightings).await?;
        Ok(())
    }

    async fn save(&mut self, position: Option<Position>) -> anyhow::Result<()> {
        let compare = &self.matching.compare;
        let checkpoint = Checkpoint::new(position, self.joiner.open(), compare.waiting(), compare.used());
        let (directory, written) = (self.checkpoint_directory.clone(), checkpoint.clone());
        match tokio::task::spawn_blocking(move || written.save(&directory)).await? {
            Ok(()) => self.saved = Some(checkpoint),
            // Not a loss: without it more is read again after a restart.
            Err(error) => tracing::warn!(%error, "the checkpoint of Squid's log was not written"),
        }
        Ok(())
    }
}

/// Deterministic, so that the same gap found again after a restart is the same record.
fn incomplete(gap: &Gap) -> Entry {
    let Position { inode, fingerprint, offset } = &gap.after;
    let (reason, what) = match gap.lost {
        Lost::CheckpointedFile => {
            ("squid-log-gone", "the file in which it had been read was put away while nobody read it")
        }
        Lost::CurrentFile => ("squid-log-gone", "the file that was being read was taken away"),
        Lost::Truncated => ("squid-log-truncated", "the file that was being read was truncated"),
    };
    let id = EventId::derive(&[reason.as_bytes(), &inode.to_be_bytes(), fingerprint.as_bytes(), &offset.to_be_bytes()]);
    let detail = format!(
        "lines of Squid's log may be lost: {what}, at byte {offset}; how many is not known. What Squid's feed had is recorded \
         all the same, and so is what secret-broker permitted"
    );
    let fix = "look at why egress-auditor was away or slow while Squid's log grew to 3 GiB, or who else writes there";
    Entry::incomplete(id.as_str(), reason, 1, &detail, fix)
}

/// Keys of the newest lines.
#[derive(Debug, Default)]
struct Seen {
    keys: HashSet<LineKey>,
    order: VecDeque<LineKey>,
}

impl Seen {
    fn contains(&self, key: &LineKey) -> bool {
        self.keys.contains(key)
    }

    /// Whether the key is new.
    fn insert(&mut self, key: LineKey) -> bool {
        if !self.keys.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > MOST_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }
}

/// Lines of the feed that the file has not confirmed.
#[derive(Debug, Default)]
struct Pending {
    lines: HashMap<LineKey, Line>,
    order: VecDeque<(Instant, LineKey)>,
}

impl Pending {
    fn add(&mut self, line: Line, until: Instant) {
        let key = line.key();
        if self.lines.insert(key, line).is_none() {
            self.order.push_back((until, key));
        }
    }

    fn confirm(&mut self, key: &LineKey) {
        self.lines.remove(key);
    }

    fn overdue(&mut self, now: Instant) -> Vec<Line> {
        let mut overdue = Vec::new();
        while let Some((until, key)) = self.order.front().copied() {
            if until > now && self.lines.len() <= MOST_PENDING && self.lines.contains_key(&key) {
                break;
            }
            self.order.pop_front();
            overdue.extend(self.lines.remove(&key));
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn line(sequence: u64) -> Line {
        let text = format!(
            r#"{{"ts":1795363871.092,"start":1795363871.036,"seq":{sequence},"mx":53,"src":"127.0.0.1","sport":1,"host":"a.b","dst":"-","st":200,"ss":"TCP_DENIED","in":1,"out":0,"ms":0,"sni":"-","mode":"bump","err":"-","tier":"-"}}"#
        );
        Line::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn seen_is_bounded_and_forgets_the_oldest() {
        let mut seen = Seen::default();
        for n in 0..=MOST_SEEN as u64 {
            assert!(seen.insert(line(n).key()));
        }
        assert_eq!((seen.keys.len(), seen.order.len()), (MOST_SEEN, MOST_SEEN));
        assert!(!seen.contains(&line(0).key()) && seen.contains(&line(1).key()));
        assert!(!seen.insert(line(1).key()));
    }

    #[test]
    fn only_what_the_file_does_not_confirm_is_overdue() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for n in 0..3 {
            pending.add(line(n), now + GRACE);
        }
        pending.add(line(2), now + GRACE * 2);
        pending.confirm(&line(1).key());
        assert!(pending.overdue(now).is_empty());
        let overdue: Vec<_> = pending.overdue(now + GRACE).into_iter().map(|l| l.sequence).collect();
        assert_eq!(overdue, [0, 2]);
        assert!(pending.order.is_empty() && pending.lines.is_empty());
    }

    #[test]
    fn pending_is_bounded() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for n in 0..MOST_PENDING as u64 + 3 {
            pending.add(line(n), now + GRACE);
        }
        assert_eq!(pending.overdue(now).len(), 3);
        assert_eq!(pending.lines.len(), MOST_PENDING);
    }
}
