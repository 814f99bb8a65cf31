//! What is there: the engine's networks, volumes and containers, and what stands on the VM beside them, as one value.
//!
//! It owns no I/O: `engine` and `execute` fill it, `plan` reads it. Everything that belongs to somebody else is in it
//! too, because names may collide and a foreign container may sit on one of our networks; `owner` tells them apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use assistant_proto::config::Mode;

/// Label that makes a thing ours.
pub const LABEL_MANAGED: &str = "assistant.managed";
/// Label with the stack it belongs to: `live` or `drill`.
pub const LABEL_MODE: &str = "assistant.mode";
/// Label with the hash of the specification it was made from.
pub const LABEL_SPEC: &str = "assistant.spec";
/// Label with what it is for.
pub const LABEL_ROLE: &str = "assistant.role";
/// Label with the tier it belongs to; absent for the stack's own parts.
pub const LABEL_TIER: &str = "assistant.tier";

/// A look at everything, taken at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Every network of the engine.
    pub networks: Vec<Network>,
    /// Every volume of the engine.
    pub volumes: Vec<Volume>,
    /// Every container of the engine, whatever its state.
    pub containers: Vec<Container>,
    /// Restart policy of each container of ours, by name.
    pub restart_policies: BTreeMap<String, String>,
    /// What stands on the VM itself.
    pub host: Host,
    /// Whether there is room for those who write as much as they like.
    pub disk: Disk,
    /// What this process remembers of earlier rounds, by container name.
    pub history: BTreeMap<String, History>,
}

/// What stands on the VM itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Host {
    /// How the loaded kernel table compares with the one that what is running asks for.
    pub table: Table,
    /// Everything that leaves our bridges is led where it must go (always true in a live stack).
    pub routes_stand: bool,
    /// Containers whose rendered files differ from the specification, are missing, or have strangers among them.
    pub stale_files: BTreeSet<String>,
    /// Containers whose socket directory or its link is not as it must be.
    pub stale_sockets: BTreeSet<String>,
    /// How Squid's log stands.
    pub squid_log: SquidLog,
}

/// How the disk of bus and record stands; see `disk`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Disk {
    /// There is room.
    #[default]
    Enough,
    /// What is left is for the bus and the record alone.
    Low,
}

impl Disk {
    /// What little room means, and what to do.
    #[must_use]
    pub fn problem() -> &'static str {
        "less than 512 MiB are left on the disk of the bus and the audit record, so everything that runs in tiers is stopped \
         until there are 768 MiB: free space there (docker system df and df -h /var/lib/docker show where it went) or make \
         the disk larger"
    }
}

/// How Squid's log stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SquidLog {
    /// There is nothing to do.
    #[default]
    Fine,
    /// It has grown to the size at which a new one is begun, and no file that is not read to its end is lost by that; or
    /// it has grown beyond all patience.
    Full,
    /// It was renamed, and Squid has not begun a new one: it still writes to the old.
    Moved,
}

/// How the loaded kernel table compares with the one that it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Table {
    /// Nothing of ours is loaded, or it could not be read back: nothing holds.
    #[default]
    Missing,
    /// A table of ours is loaded, but not this one. It holds what it was made for.
    Outdated,
    /// It is exactly the one.
    Stands,
}

/// Whose a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// No label of ours: never stopped, changed or removed.
    Foreign,
    /// Ours.
    Ours {
        /// Which stack's; none when the label is missing or unreadable (then it is no specification's either).
        mode: Option<Mode>,
        /// Hash of the specification it was made from.
        spec: String,
    },
}

impl Owner {
    /// Reads the labels.
    #[must_use]
    pub fn from_labels<'a>(label: impl Fn(&str) -> Option<&'a str>) -> Self {
        if label(LABEL_MANAGED) != Some("true") {
            return Self::Foreign;
        }
        let mode = match label(LABEL_MODE) {
            Some("live") => Some(Mode::Live),
            Some("drill") => Some(Mode::Drill),
            _ => None,
        };
        Self::Ours { mode, spec: label(LABEL_SPEC).unwrap_or_default().to_owned() }
    }

    /// Whether it carries our label, of either stack.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ours { .. })
    }

    /// Whether it belongs to the stack of this mode.
    #[must_use]
    pub fn is_of(&self, wanted: Mode) -> bool {
        matches!(self, Self::Ours { mode: Some(mode), .. } if *mode == wanted)
    }

    /// Whether it was made from this specification for this mode.
    #[must_use]
    pub fn was_made_from(&self, wanted: Mode, hash: &str) -> bool {
        matches!(self, Self::Ours { mode: Some(mode), spec } if *mode == wanted && spec == hash)
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
}

/// A volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// Where its top directory lies in the VM.
    pub mountpoint: PathBuf,
    /// Who owns its top directory: uid, gid and permission bits; none when that could not be read.
    pub top: Option<Ownership>,
}

/// Owner and permission bits of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
}

/// A container.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// Its name, without the leading slash.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// What state it is in.
    pub state: State,
    /// Networks it is on, by name.
    pub networks: BTreeMap<String, Endpoint>,
    /// Image reference it was made from.
    pub image: String,
}

impl Container {
    /// Process id of its first process while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Id of the network it was attached to; a network of the same name made later is another one.
    pub network_id: String,
    /// Its address there, or the one it will have; none while it has neither.
    pub address: Option<Ipv4Addr>,
}

/// State of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Running.
    Running {
        /// Process id of its first process, in the VM's namespace.
        pid: u32,
        /// When it was started.
        started_at: SystemTime,
    },
    /// Ended, or left behind by an engine that died (255).
    Exited {
        /// Exit status.
        code: i64,
    },
    /// Paused, being removed, dead: nothing that can be started.
    Broken,
    /// A foreign container's: not asked for.
    Unknown,
}

impl State {
    /// Whether its processes exist.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// What this process remembers of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The run that was prepared by this process.
    pub prepared: Option<Incarnation>,
    /// When that run was seen ready; none while it is waited for.
    pub ready_since: Option<SystemTime>,
    /// Times in a row that it ended, or was made, started or waited for in vain.
    pub failures: u32,
    /// When the newest of them was.
    pub failed_at: Option<SystemTime>,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// The engine's id.
    pub id: String,
    /// Its first process.
    pub pid: u32,
    /// When the engine started it.
    pub started_at: SystemTime,
    /// When it was prepared: from then on it is waited for.
    pub since: SystemTime,
}

impl Incarnation {
    /// Whether it has had the time it may take until it is ready.
    #[must_use]
    pub fn is_overdue(&self, now: SystemTime) -> bool {
        now.duration_since(self.since).is_ok_and(|waited| waited >= READY_WITHIN)
    }

    fn is_of(&self, container: &Container) -> bool {
        self.id == container.id && container.pid() == Some(self.pid)
    }
}

/// How long a container may take until it is ready. ZeroClaw and Jaeger take seconds on a busy two-core machine.
pub const READY_WITHIN: Duration = Duration::from_secs(90);
/// A container that ran this long before it ended starts again with the first delay.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// First delay before a container is tried again; doubles with every failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest delay.
const SLOWEST_RETRY: Duration = Duration::from_secs(60);

impl History {
    /// It was made, started or waited for in vain.
    pub fn note_failure(&mut self, now: SystemTime) {
        self.forget_run();
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
    }

    /// It runs and is prepared. Whether it is ready is to be seen.
    pub fn note_prepared(&mut self, run: Incarnation) {
        self.prepared = Some(run);
        self.ready_since = None;
    }

    /// It was seen ready. Failures stay counted until it has proved steady.
    pub fn note_ready(&mut self, now: SystemTime) {
        self.ready_since = Some(now);
    }

    /// Its run was ended on purpose, or is nobody's to judge.
    pub fn forget_run(&mut self) {
        self.prepared = None;
        self.ready_since = None;
    }

    /// Compares with what is there now. True where the prepared run has ended by itself, which is a failure.
    pub fn note_seen(&mut self, container: Option<&Container>, now: SystemTime) -> bool {
        let Some(prepared) = &self.prepared else { return false };
        if self.ready_since.is_some_and(|since| now.duration_since(since).is_ok_and(|ran| ran >= STEADY_AFTER)) {
            self.failures = 0;
            self.failed_at = None;
        }
        match container {
            Some(container) if prepared.is_of(container) => return false,
            Some(container) if !container.state.is_running() => {
                self.note_failure(now);
                return true;
            }
            // Restarted or made anew by somebody else: not a failure, but to be prepared and waited for again.
            Some(_) | None => self.forget_run(),
        }
        false
    }

    /// When it may be tried again; none when at once.
    #[must_use]
    pub fn retry_at(&self) -> Option<SystemTime> {
        let doublings = self.failures.checked_sub(1)?.min(16);
        let delay = FIRST_RETRY.saturating_mul(1 << doublings).min(SLOWEST_RETRY);
        self.failed_at?.checked_add(delay)
    }

    /// Whether this run was prepared.
    #[must_use]
    pub fn has_prepared(&self, container: &Container) -> bool {
        self.prepared.as_ref().is_some_and(|prepared| prepared.is_of(container))
    }

    /// Whether this run was prepared and seen ready.
    #[must_use]
    pub fn has_settled(&self, container: &Container) -> bool {
        self.ready_since.is_some() && self.has_prepared(container)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn container(state: State) -> Container {
        Container {
            id: "c1".to_owned(),
            name: "zeroclaw-tasks".to_owned(),
            owner: Owner::Foreign,
            state,
            networks: BTreeMap::new(),
            image: String::new(),
        }
    }

    fn running(pid: u32) -> Container {
        container(State::Running { pid, started_at: UNIX_EPOCH })
    }

    fn run(pid: u32, since: SystemTime) -> Incarnation {
        Incarnation { id: "c1".to_owned(), pid, started_at: since, since }
    }

    #[test]
    fn a_crash_loop_backs_off_and_a_steady_run_forgives() {
        let mut history = History::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(history.retry_at(), None);
        for (round, delay) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
            let now = at(100 + round);
            history.note_prepared(run(7, now));
            history.note_ready(now);
            assert!(!history.note_seen(Some(&running(7)), now));
            assert!(history.has_settled(&running(7)));
            assert!(history.note_seen(Some(&container(State::Exited { code: 1 })), now));
            assert_eq!(history.retry_at(), Some(now + Duration::from_secs(delay)));
            assert!(history.prepared.is_none());
        }
        history.note_prepared(run(8, at(200)));
        history.note_ready(at(200));
        history.note_seen(Some(&running(8)), at(260));
        assert_eq!(history.failures, 0);
        history.note_seen(Some(&container(State::Exited { code: 1 })), at(300));
        assert_eq!(history.retry_at(), Some(at(301)));
    }

    #[test]
    fn prepared_is_not_ready_and_has_a_deadline() {
        let mut history = History::default();
        history.note_prepared(run(7, UNIX_EPOCH));
        assert!(history.has_prepared(&running(7)) && !history.has_settled(&running(7)));
        // However long it ran: what never became ready has not proved steady.
        history.failures = 2;
        history.note_seen(Some(&running(7)), UNIX_EPOCH + READY_WITHIN);
        assert_eq!(history.failures, 2);
        let overdue = |after| run(7, UNIX_EPOCH).is_overdue(UNIX_EPOCH + after);
        assert!(!overdue(READY_WITHIN - Duration::from_millis(1)) && overdue(READY_WITHIN));
        assert!(!run(7, UNIX_EPOCH + READY_WITHIN).is_overdue(UNIX_EPOCH), "a clock set back is no reason");
        history.note_ready(UNIX_EPOCH);
        assert!(history.has_settled(&running(7)));
        // A new run is waited for anew.
        history.note_prepared(run(8, UNIX_EPOCH));
        assert!(!history.has_settled(&running(8)) && !history.has_prepared(&running(7)));
    }

    #[test]
    fn another_run_is_not_the_settled_one() {
        let mut history = History::default();
        history.note_prepared(run(7, UNIX_EPOCH));
        history.note_ready(UNIX_EPOCH);
        assert!(!history.note_seen(Some(&running(9)), UNIX_EPOCH));
        assert!(!history.has_settled(&running(9)) && !history.has_prepared(&running(9)));
        assert_eq!(history.failures, 0);
    }

    #[test]
    fn labels_say_whose_it_is() {
        let labels = |pairs: &'static [(&'static str, &'static str)]| {
            Owner::from_labels(move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
        };
        assert_eq!(labels(&[("assistant.mode", "drill")]), Owner::Foreign);
        assert_eq!(labels(&[("assistant.managed", "yes")]), Owner::Foreign);
        let ours = labels(&[("assistant.managed", "true"), ("assistant.mode", "drill"), ("assistant.spec", "ab")]);
        assert!(ours.was_made_from(Mode::Drill, "ab") && ours.is_of(Mode::Drill));
        assert!(!ours.was_made_from(Mode::Live, "ab") && !ours.was_made_from(Mode::Drill, "a"));
        let odd = labels(&[("assistant.managed", "true"), ("assistant.mode", "x")]);
        assert!(odd.is_ours() && !odd.is_of(Mode::Drill) && !odd.is_of(Mode::Live));
    }
}
