//! What is refused, in words that the asking program shows to its user, and as lines that tier-supervisor reads.
//!
//! Owns the closed lists of operations and reasons, and the ledger on standard output: the first refusal of a kind is
//! written at once, further ones of the same kind are counted and written once a second at most. Both lists being
//! closed bounds the ledger, whatever is sent. Publishes nothing itself: this container has no network.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::visible::visible;

/// Longest detail, in characters.
const DETAIL_MOST: usize = 300;
/// How long equal refusals are counted before a line says how many they were.
pub const FOLD_WITHIN: Duration = Duration::from_secs(1);

/// What was asked for. The names of the calls that are never offered are here so that a record names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `HEAD` or `GET /_ping`.
    Ping,
    /// `POST /containers/create`.
    Create,
    /// `POST /containers/<id>/attach`.
    Attach,
    /// `POST /containers/<id>/start`.
    Start,
    /// `POST /containers/<id>/wait`.
    Wait,
    /// `GET /containers/<id>/logs`.
    Logs,
    /// `POST /containers/<id>/kill`.
    Kill,
    /// `DELETE /containers/<id>`.
    Remove,
    /// `POST /build`, `/session`, `/commit`: anything that makes an image.
    Build,
    /// `POST /images/create` or `/images/load`.
    Pull,
    /// `/containers/<id>/exec`, `/exec/...`.
    Exec,
    /// `/containers/<id>/archive`, `export`.
    Copy,
    /// `/containers/<id>/json`, `top`, `stats`, `changes`; lists; `/info`, `/version`, `/events`, `/system`.
    Inspect,
    /// `/containers/<id>/update`, `rename`, `pause`, `stop`, `resize` and other changes to a container.
    Change,
    /// `/networks`.
    Network,
    /// `/volumes`.
    Volume,
    /// `/images`, `/distribution` and what else concerns images.
    Image,
    /// `/swarm`, `/services`, `/nodes`, `/tasks`, `/secrets`, `/configs`, `/plugins`.
    Cluster,
    /// Anything else, requests that could not be understood included.
    Other,
}

/// Why it was refused: a stable code in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// This call is not offered here at all.
    NotOffered,
    /// The request is no well-formed call: its line, its framing, its JSON or the type of a value.
    Malformed,
    /// Two lengths, a transfer coding, or a body where none belongs.
    Framing,
    /// Above a size limit.
    TooLarge,
    /// Not sent within its deadline.
    TooSlow,
    /// More containers or streams at once than there may be.
    TooMany,
    /// An API version outside the supported range, or none.
    ApiVersion,
    /// A parameter of the query that is unknown, repeated or out of range.
    Parameter,
    /// A container that was not created through this filter, or is gone.
    ForeignContainer,
    /// To be started without anybody attached.
    Detached,
    /// A field that is not known, with a value that is not its default.
    UnknownField,
    /// `--privileged`.
    Privileged,
    /// `--security-opt`, unmasked system paths.
    SecurityOpt,
    /// `--cap-add`.
    CapAdd,
    /// `--device` and what grants devices.
    Device,
    /// A namespace of the daemon or of another container; a control group of choice.
    HostNamespace,
    /// A mount other than the workspace.
    Mount,
    /// A network other than none, and what belongs to networks.
    Network,
    /// Another image.
    Image,
    /// Another user or more groups.
    User,
    /// Memory, processors or processes beyond the bounds, or limits of another kind.
    Limits,
    /// Another runtime or platform.
    Runtime,
    /// Kernel settings.
    Sysctl,
    /// Restart policy, logging driver, health check, labels and whatever else a command of the agent has no need of.
    NotNeeded,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refused {
    /// What was asked for.
    pub operation: Operation,
    /// Why not.
    pub reason: Reason,
    /// One sentence: what, and what would do instead. Harmless text of bounded length.
    pub detail: String,
}

impl Refused {
    /// Makes the detail harmless: parts of it come from the peer.
    #[must_use]
    pub fn new(operation: Operation, reason: Reason, detail: &str) -> Self {
        Self { operation, reason, detail: visible(detail.as_bytes(), DETAIL_MOST) }
    }
}

/// Writes refusals, one JSON line each, equal ones folded.
pub struct Ledger {
    state: Mutex<State>,
    lost: AtomicBool,
    /// Cancelled where a line cannot be written: what leaves no record may not go on.
    stop: CancellationToken,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

struct State {
    out: Box<dyn Write + Send>,
    kinds: BTreeMap<(Operation, Reason), Folded>,
}

struct Folded {
    /// Of the last one.
    detail: String,
    /// Seen since the last line.
    unwritten: u64,
    written: Instant,
}

#[derive(Serialize)]
struct Line<'a> {
    refused: Written<'a>,
}

#[derive(Serialize)]
struct Written<'a> {
    operation: Operation,
    reason: Reason,
    detail: &'a str,
    /// Only where the line stands for more than one.
    #[serde(skip_serializing_if = "is_one")]
    count: u64,
}

fn is_one(count: &u64) -> bool {
    *count == 1
}

impl Ledger {
    /// Writes to `out`; cancels `stop` when that fails.
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>, stop: CancellationToken) -> Self {
        Self { state: Mutex::new(State { out, kinds: BTreeMap::new() }), lost: AtomicBool::new(false), stop }
    }

    /// Records one refusal.
    pub fn note(&self, refused: &Refused) {
        self.note_at(refused, Instant::now());
    }

    fn note_at(&self, refused: &Refused, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { out, kinds } = &mut *state;
        let kind = (refused.operation, refused.reason);
        let fresh = match kinds.get_mut(&kind) {
            Some(folded) if folded.unwritten > 0 || now.duration_since(folded.written) < FOLD_WITHIN => {
                folded.unwritten = folded.unwritten.saturating_add(1);
                folded.detail.clone_from(&refused.detail);
                false
            }
            _ => true,
        };
        if fresh {
            kinds.insert(kind, Folded { detail: refused.detail.clone(), unwritten: 0, written: now });
            self.write(out, kind, &refused.detail, 1);
        }
    }

    /// Writes what was counted for long enough. To be called about once a second.
    pub fn flush(&self) {
        self.flush_at(Instant::now(), FOLD_WITHIN);
    }

    fn flush_at(&self, now: Instant, counted_for: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { out, kinds } = &mut *state;
        kinds.retain(|&kind, folded| {
            if now.duration_since(folded.written) < counted_for {
                return true;
            }
            if folded.unwritten > 0 {
                self.write(out, kind, &folded.detail, folded.unwritten);
                folded.unwritten = 0;
                folded.written = now;
                return true;
            }
            false
        });
    }

    /// Writes all that is still only counted: the last call before the end. False where something was not recorded.
    #[must_use]
    pub fn close(&self) -> bool {
        self.flush_at(Instant::now(), Duration::ZERO);
        !self.lost.load(Ordering::Relaxed)
    }

    fn write(
        &self,
        out: &mut Box<dyn Write + Send>,
        (operation, reason): (Operation, Reason),
        detail: &str,
        count: u64,
    ) {
        let line = Line { refused: Written { operation, reason, detail, count } };
        let written = serde_json::to_vec(&line).map_err(std::io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            out.write_all(&bytes)?;
            out.flush()
        });
        if let Err(error) = written {
            eprintln!("docker-filter: a refusal cannot be written to standard output ({error}); ending");
            self.lost.store(true, Ordering::Relaxed);
            self.stop.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn all(&self) -> Vec<Value> {
            let bytes = self.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn refused(detail: &str) -> Refused {
        Refused::new(Operation::Create, Reason::Privileged, detail)
    }

    #[test]
    fn a_flood_is_counted_and_every_one_is_in_exactly_one_line() {
        let lines = Lines::default();
        let ledger = Ledger::new(Box::new(lines.clone()), CancellationToken::new());
        let start = Instant::now();
        for _ in 0..1_000 {
            ledger.note_at(&refused("first"), start);
        }
        let line = serde_json::json!({"operation": "create", "reason": "privileged", "detail": "first"});
        assert_eq!(lines.all(), [serde_json::json!({"refused": line})]);
        ledger.flush_at(start + FOLD_WITHIN / 2, FOLD_WITHIN);
        assert_eq!(lines.all().len(), 1, "too early to tell");
        ledger.flush_at(start + FOLD_WITHIN, FOLD_WITHIN);
        assert_eq!(lines.all()[1]["refused"]["count"], 999);
        // Another kind does not wait for the first.
        ledger.note_at(&Refused::new(Operation::Pull, Reason::NotOffered, "x"), start + FOLD_WITHIN);
        assert_eq!(lines.all()[2]["refused"]["operation"], "pull");
        ledger.note_at(&refused("last"), start + FOLD_WITHIN);
        assert!(ledger.close());
        assert_eq!(lines.all()[3]["refused"]["detail"], "last");
        assert_eq!(lines.all().len(), 4);
    }

    #[test]
    fn after_quiet_the_next_is_told_at_once() {
        let lines = Lines::default();
        let ledger = Ledger::new(Box::new(lines.clone()), CancellationToken::new());
        let start = Instant::now();
        ledger.note_at(&refused("a"), start);
        ledger.flush_at(start + FOLD_WITHIN, FOLD_WITHIN);
        ledger.note_at(&refused("b"), start + FOLD_WITHIN);
        let details: Vec<_> = lines.all().iter().map(|line| line["refused"]["detail"].clone()).collect();
        assert_eq!(details, ["a", "b"]);
    }

    #[test]
    fn details_are_harmless_and_short() {
        let refused = refused(&format!("\u{1b}[2J\u{202e}{}", "x".repeat(1_000)));
        assert!(refused.detail.starts_with("\\u{1b}[2J\\u{202e}xxx"), "{refused}");
        assert!(refused.detail.chars().count() < 330);
    }

    #[test]
    fn what_cannot_be_recorded_ends_the_filter() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let stop = CancellationToken::new();
        let ledger = Ledger::new(Box::new(Full), stop.clone());
        ledger.note(&refused("x"));
        assert!(stop.is_cancelled());
        assert!(!ledger.close());
    }
}
