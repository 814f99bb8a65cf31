//! Whether Squid and secret-broker tell the same story. Whatever goes out of a tier is permitted by the broker first, and
//! the permit is stored before the tunnel is asked for; so every tunnel in Squid's log has one in the store, which no other
//! tunnel has used. A tunnel that has none is a wall that does not stand: `floor.breached`, by this service. It says so some
//! seconds after the tunnel was seen, and only when everything that was on the bus by then has been stored: a permit that is
//! on its way is no breach.
//!
//! The other way round a permit without a tunnel is only counted: the broker could not connect, or Squid refused. A request
//! that went over a connection which was kept has a permit too and no tunnel of its own; within half a minute a tunnel of the
//! same trace to the same host could pass by that one unseen.
//!
//! Not here: tunnels of services (models, messengers), for which the broker makes no permits, and what the log's lines mean.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use assistant_proto::event::{EgressPermitted, Event, EventId, FloorBreached, Layer};
use assistant_proto::name::TierName;
use assistant_proto::trace::TraceParent;
use serde::{Deserialize, Serialize};
use service_kit::bus::{Bus, Raw};
use service_kit::clock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::calls::Calls;
use crate::figures::Figures;
use crate::ledger::{Ledger, Sighting, SpanDraft};
use crate::line::Millis;
use crate::record::{Entry, Own};
use crate::store::{Reader, Used, Wanted};

/// A tunnel is judged this long after it was seen, and a permit after it was stored. A permit is on the bus before its
/// tunnel is asked for, so this is generous.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Between a permit and the CONNECT for it: two seconds for storing it, fifteen for reaching Squid, and as much again.
const WITHIN: Duration = Duration::from_secs(30);
/// Squid's clock is the broker's, but it is read by another thread.
const SLACK: Duration = Duration::from_secs(1);
/// How far a clock may have been set back between two records.
const CLOCK_SET: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the store may take to get what is on the bus; then it is asked anew.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Judged at a time.
const MOST_AT_ONCE: usize = 1000;
/// Tunnels that wait. There are more only while the bus is away for long, and then the broker lets nothing out.
const MOST_WAITING: usize = 16_384;
/// Used permits that are remembered. Each is some hundred bytes, in every checkpoint.
const MOST_USED: usize = 4096;
/// Places that are remembered to have had tunnels.
const MOST_DOORS: usize = 4096;
const CHECK: &str = "a permit for every tunnel";
const PERMITTED: &str = "PERMITTED";

/// A tunnel that a tier's user asked Squid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tunnel {
    /// What makes its line in the log itself.
    pub key: String,
    /// Whose user asked.
    pub tier: TierName,
    /// Host of the CONNECT.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// When it was asked for.
    pub started_at: Millis,
    /// What the CONNECT said of its trace. Of a tunnel whose first line was not read, none is known.
    pub parent: Option<TraceParent>,
    /// The first line was read. secret-broker says the trace in every CONNECT, so there must be one then.
    pub is_decision: bool,
}

impl Tunnel {
    fn door(&self) -> Door {
        (self.tier.clone(), self.host.to_ascii_lowercase(), self.port)
    }

    fn wanted(&self) -> Wanted {
        let started = self.started_at.system_time();
        let before = |age: Duration| clock::rfc3339(started.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
        Wanted {
            key: self.key.clone(),
            tier: self.tier.to_string(),
            host: self.host.clone(),
            port: self.port,
            // No permit has an empty trace.
            trace: self.is_decision.then(|| self.parent.map(|parent| parent.trace_id()).unwrap_or_default()),
            from: before(WITHIN),
            to: clock::rfc3339(started.checked_add(SLACK).unwrap_or(started)),
            not_recorded_before: before(WITHIN.saturating_add(CLOCK_SET)),
        }
    }

    fn breach(&self) -> Sighting {
        let id = EventId::derive(&[b"tunnel without permit", self.key.as_bytes()]);
        let at = self.started_at.system_time();
        let (tier, host, port) = (&self.tier, &self.host, self.port);
        let detail = format!(
            "Squid opened a tunnel to {host}:{port} for the user {tier} at {}, and secret-broker stored no permit for it",
            clock::rfc3339(at)
        );
        let event = FloorBreached {
            check: CHECK.to_owned(),
            detail: detail.clone(),
            fix: format!(
                "somebody else than secret-broker has the password of {tier} at Squid, or secret-broker let something out \
                 unrecorded: stop the stack in doubt (deploy/down.sh), look who is on the transit network, and let the password \
                 be made anew"
            ),
            checked_at: clock::rfc3339(at),
        };
        let attributes =
            vec![("tier", tier.to_string()), ("server.address", host.clone()), ("server.port", port.to_string())];
        let span = SpanDraft { name: "squid.unpermitted", start: at, end: at, error: Some(detail), attributes };
        Sighting { id, event: Own::Breached(event), parent: self.parent, span }
    }
}

/// Where a tier's tunnels go.
type Door = (TierName, String, u16);

#[derive(Debug, Default)]
struct State {
    /// Seen, and not judged yet.
    waiting: VecDeque<(Instant, Tunnel)>,
    /// Could not wait.
    dropped: u64,
    /// Used by a tunnel, the newest last, for as long as another tunnel could be of the same permit.
    used: VecDeque<Used>,
    /// Stored, and not judged yet.
    permits: VecDeque<(Instant, Door)>,
    doors: HashMap<Door, Traffic>,
}

#[derive(Debug)]
struct Traffic {
    open: u32,
    /// When a tunnel was last opened or closed.
    last: Instant,
}

/// Both that hold the tunnels in Squid's log against what the bus brings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Matching {
    /// Those of tiers, against permits.
    pub compare: Compare,
    /// Those of LiteLLM and the TEE proxy, against model calls.
    pub calls: Calls,
}

impl Matching {
    /// Judges tunnels of tiers after `patience`.
    #[must_use]
    pub fn new(patience: Duration, figures: Figures) -> Self {
        Self { compare: Compare::new(patience, figures), calls: Calls::default() }
    }

    /// What the bus brought has been stored.
    pub fn stored(&self, raws: &[Raw]) {
        self.compare.stored(raws);
        self.calls.stored(raws);
    }
}

/// Takes what the log and the bus say. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Compare {
    state: Arc<Mutex<State>>,
    patience: Duration,
    figures: Figures,
}

impl Compare {
    /// Judges after `patience`.
    #[must_use]
    pub fn new(patience: Duration, figures: Figures) -> Self {
        Self { state: Arc::default(), patience, figures }
    }

    /// A tunnel was asked for.
    pub fn opened(&self, tunnel: Tunnel) {
        let mut state = self.state();
        let now = Instant::now();
        let traffic = state.doors.entry(tunnel.door()).or_insert(Traffic { open: 0, last: now });
        traffic.open = traffic.open.saturating_add(1);
        traffic.last = now;
        state.forget_idle_doors();
        state.waiting.push_back((now, tunnel));
        if state.waiting.len() > MOST_WAITING {
            state.waiting.pop_front();
            state.dropped = state.dropped.saturating_add(1);
        }
    }

    /// A tunnel that was open when this process began; it was judged, or waits, already.
    pub fn is_open(&self, tunnel: &Tunnel) {
        let now = Instant::now();
        let mut state = self.state();
        let traffic = state.doors.entry(tunnel.door()).or_insert(Traffic { open: 0, last: now });
        traffic.open = traffic.open.saturating_add(1);
    }

    /// A tunnel was closed.
    pub fn closed(&self, tunnel: &Tunnel) {
        if let Some(traffic) = self.state().doors.get_mut(&tunnel.door()) {
            traffic.open = traffic.open.saturating_sub(1);
            traffic.last = Instant::now();
        }
    }

    /// What the bus brought has been stored.
    pub fn stored(&self, raws: &[Raw]) {
        let now = Instant::now();
        let recent = SystemTime::now().checked_sub(WITHIN).map(clock::rfc3339).unwrap_or_default();
        for raw in raws.iter().filter(|raw| raw.subject.starts_with(EgressPermitted::TYPE)) {
            let Ok(permit) = serde_json::from_slice::<EgressPermitted>(&raw.payload) else { continue };
            // Of an older one, which was waiting while this service was away, the tunnel may have come and gone.
            if permit.layer == Layer::Broker && permit.observed_at >= recent {
                let door = (permit.tier, permit.host.to_ascii_lowercase(), permit.port);
                let mut state = self.state();
                state.permits.push_back((now, door));
                if state.permits.len() > MOST_WAITING {
                    state.permits.pop_front();
                }
            }
        }
    }

    /// Tunnels that were not judged yet, for a checkpoint.
    #[must_use]
    pub fn waiting(&self) -> Vec<Tunnel> {
        self.state().waiting.iter().map(|(_, tunnel)| tunnel.clone()).collect()
    }

    /// Permits that were used not long ago, for a checkpoint.
    #[must_use]
    pub fn used(&self) -> Vec<Used> {
        self.state().used.iter().cloned().collect()
    }

    /// Goes on with tunnels that waited at a checkpoint, and permits that were used.
    pub fn resume(&self, waiting: Vec<Tunnel>, used: Vec<Used>) {
        let now = Instant::now();
        let mut state = self.state();
        state.waiting.extend(waiting.into_iter().map(|tunnel| (now, tunnel)));
        state.used.extend(used);
    }

    /// Judges what is due until `draining`. Run it in `Tasks::spawn_restarting`.
    ///
    /// # Errors
    /// When the store cannot be read or is closed; what was not judged still waits.
    pub async fn run(
        self,
        bus: Bus,
        reader: Reader,
        ledger: Ledger,
        draining: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = draining.cancelled() => return Ok(()),
            }
            self.count_unused(Instant::now());
            let due = self.due(Instant::now());
            if due.is_empty() {
                continue;
            }
            // Cancel-safe: what is due waits until it was judged.
            let taken = tokio::select! {
                taken = all_taken(&bus) => taken,
                () = draining.cancelled() => return Ok(()),
            };
            if taken {
                self.judge(&reader, &ledger, due).await?;
            }
        }
    }

    /// Judges tunnels, those that wait the longest, of which everything is stored that will be.
    async fn judge(&self, reader: &Reader, ledger: &Ledger, due: Vec<Tunnel>) -> anyhow::Result<()> {
        let matched = reader.permits(due.iter().map(Tunnel::wanted).collect(), self.used()).await?;
        let mut breaches = Vec::with_capacity(matched.missing.len());
        for tunnel in matched.missing.iter().filter_map(|at| due.get(*at)) {
            tracing::error!(tier = %tunnel.tier, host = %tunnel.host, port = tunnel.port, "a tunnel that nobody permitted");
            breaches.push(tunnel.breach());
        }
        let found = u64::try_from(breaches.len()).unwrap_or(u64::MAX);
        ledger.record(breaches).await?;
        self.figures.unpermitted(found);
        self.figures.permitted(u64::try_from(matched.used.len()).unwrap_or(u64::MAX));
        let dropped = {
            let mut state = self.state();
            let judged: std::collections::HashSet<&str> = due.iter().map(|tunnel| tunnel.key.as_str()).collect();
            state.waiting.retain(|(_, tunnel)| !judged.contains(tunnel.key.as_str()));
            state.used.extend(matched.used);
            state.forget_used(SystemTime::now());
            std::mem::take(&mut state.dropped)
        };
        if dropped > 0 {
            self.figures.not_compared(dropped);
            ledger.record_incomplete(not_compared(dropped)).await?;
        }
        Ok(())
    }

    fn due(&self, now: Instant) -> Vec<Tunnel> {
        let state = self.state();
        let is_due = |(seen, _): &&(Instant, Tunnel)| now.saturating_duration_since(*seen) >= self.patience;
        state.waiting.iter().take_while(is_due).take(MOST_AT_ONCE).map(|(_, tunnel)| tunnel.clone()).collect()
    }

    fn count_unused(&self, now: Instant) {
        let mut state = self.state();
        let mut unused = 0_u64;
        while let Some((stored, door)) = state.permits.front() {
            if now.saturating_duration_since(*stored) < self.patience {
                break;
            }
            let used = state.doors.get(door).is_some_and(|traffic| {
                traffic.open > 0 || traffic.last >= *stored || stored.saturating_duration_since(traffic.last) < WITHIN
            });
            if !used {
                tracing::warn!(tier = %door.0, host = door.1, port = door.2, "a permit, and no tunnel was seen");
                unused = unused.saturating_add(1);
            }
            state.permits.pop_front();
        }
        drop(state);
        self.figures.unused(unused);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Those whose permits are too old for a tunnel that waits or is still to come.
    fn forget_used(&mut self, now: SystemTime) {
        let waiting = self.waiting.iter().map(|(_, tunnel)| tunnel.started_at.system_time()).min();
        let since = waiting.map_or(now, |started| started.min(now)).checked_sub(WITHIN.saturating_mul(2));
        let since = since.map(clock::rfc3339).unwrap_or_default();
        self.used.retain(|used| used.at >= since);
        while self.used.len() > MOST_USED {
            self.used.pop_front();
        }
    }

    fn forget_idle_doors(&mut self) {
        if self.doors.len() > MOST_DOORS {
            let idlest = self.doors.iter().min_by_key(|(_, traffic)| (traffic.open > 0, traffic.last));
            if let Some(door) = idlest.map(|(door, _)| door.clone()) {
                self.doors.remove(&door);
            }
        }
    }
}

/// Waits until the store has every permit that is on the bus now; false when that cannot be said. A permit leaves its
/// stream when it is in the store.
async fn all_taken(bus: &Bus) -> bool {
    if bus.jetstream().is_none() {
        return true; // detached: nothing is on its way
    }
    let Ok(now) = bus.extent(PERMITTED).await else { return false };
    if now.last == 0 {
        return true; // it never had anything
    }
    let until = Instant::now().checked_add(TAKEN_WITHIN).unwrap_or_else(Instant::now);
    while Instant::now() < until {
        match bus.extent(PERMITTED).await {
            Ok(extent) if extent.first > now.last => return true,
            Ok(_) => tokio::time::sleep(ASK_EVERY).await,
            Err(_) => return false,
        }
    }
    false
}

fn not_compared(count: u64) -> Entry {
    let detail = format!(
        "{count} tunnels in Squid's log were not compared with secret-broker's permits: more waited for the bus than can be held"
    );
    let fix =
        "look at why the bus was away, and who went through Squid meanwhile: the lines are recorded as egress.allowed";
    Entry::incomplete(EventId::unique().as_str(), "tunnels-not-compared", count, &detail, fix)
}

#[cfg(test)]
mod tests;
