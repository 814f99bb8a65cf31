//! Which tunnels through Squid a model call went by, so that a turn's trace reaches the bytes that left. LiteLLM and the TEE
//! proxy keep their connections and know of no trace; so it is told by time: a call of a class goes by the tunnels that its
//! user at Squid has open while the call lasts. Each of them is a span below the call's own, which says how it is known.
//!
//! When a call begins and ends is what secret-broker says (`egress.permitted` and `model.called`); when a tunnel does, is
//! what Squid's log says. Bytes are there only once Squid has closed the tunnel; what the call itself had, stands in the
//! broker's span.
//!
//! Not here: the tunnel as an event and a trace of its own (`squid`), and tunnels of tiers, which name their trace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assistant_proto::config::Confidentiality;
use assistant_proto::event::{Attachment, EgressPermitted, Event, Layer, ModelCalled};
use assistant_proto::trace::TraceParent;
use service_kit::bus::Raw;
use service_kit::clock;
use service_kit::turns::LONGEST_TURN;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::{SpanDraft, attached, draw};
use crate::line::{Line, Millis, Outcome};

#[cfg(test)]
mod tests;

/// A call is drawn this long after its end was stored: the lines of its tunnels are in the log by then.
pub const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Calls that run or are remembered because another ran at the same time.
const MOST_CALLS: usize = 4096;
/// Tunnels that are remembered, the newest. A LiteLLM keeps some dozens.
const MOST_TUNNELS: usize = 2048;
/// Spans below one call.
const MOST_SPANS: usize = 16;

/// The user at Squid by which a call leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// LiteLLM's own.
    Models,
    /// The TEE proxy's.
    Tee,
}

impl Way {
    fn of_user(user: &str) -> Option<Self> {
        match user {
            "models" => Some(Self::Models),
            "tee" => Some(Self::Tee),
            _ => None,
        }
    }

    fn of_class(class: Confidentiality) -> Self {
        match class {
            Confidentiality::None => Self::Models,
            Confidentiality::Required => Self::Tee,
        }
    }
}

/// One tunnel, or one plain request to the owner's endpoint on the local network.
#[derive(Debug, Clone)]
struct Tunnel {
    way: Way,
    id: String,
    opened: Line,
    closed: Option<Line>,
}

impl Tunnel {
    fn from(&self) -> u64 {
        self.opened.started_at.0
    }

    /// The last moment of it that is known to be one.
    fn to(&self) -> u64 {
        self.closed.as_ref().map_or(u64::MAX, |line| line.logged_at.0)
    }
}

/// One call. Times are milliseconds since the epoch.
#[derive(Debug, Clone)]
struct Call {
    way: Way,
    /// The broker's span of it.
    span: TraceParent,
    attachment: Attachment,
    began: u64,
    /// None while it runs.
    ended: Option<u64>,
    heard: Instant,
    drawn: bool,
}

impl Call {
    fn to(&self) -> u64 {
        self.ended.unwrap_or(u64::MAX)
    }
}

#[derive(Debug, Default)]
struct State {
    calls: VecDeque<Call>,
    tunnels: VecDeque<Tunnel>,
}

/// Takes what the log and the bus say. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    state: Arc<Mutex<State>>,
}

impl Calls {
    /// A tunnel's decision: from then on bytes pass.
    pub fn opened(&self, line: &Line) {
        self.add(line, None);
    }

    /// A line that ends something: a tunnel, by its first line where that is known, or a plain request.
    pub fn closed(&self, decided: Option<&Line>, line: &Line) {
        let id = id(decided.unwrap_or(line));
        let mut state = self.state();
        let known = state.tunnels.iter_mut().rev().find(|tunnel| tunnel.id == id);
        if let Some(tunnel) = known {
            tunnel.closed = Some(line.clone());
            return;
        }
        drop(state);
        self.add(decided.unwrap_or(line), Some(line));
    }

    /// A tunnel of which Squid never logged an end, and will not.
    pub fn lost(&self, decided: &Line) {
        let id = id(decided);
        self.state().tunnels.retain(|tunnel| tunnel.id != id);
    }

    fn add(&self, opened: &Line, closed: Option<&Line>) {
        let Some(way) = opened.user.as_ref().and_then(|user| Way::of_user(user.as_str())) else { return };
        let tunnel = Tunnel { way, id: id(opened), opened: opened.clone(), closed: closed.cloned() };
        let mut state = self.state();
        state.tunnels.push_back(tunnel);
        if state.tunnels.len() > MOST_TUNNELS {
            let oldest = state.tunnels.iter().position(|tunnel| tunnel.closed.is_some()).unwrap_or(0);
            state.tunnels.remove(oldest);
        }
    }

    /// What the bus brought has been stored.
    pub fn stored(&self, raws: &[Raw]) {
        let now = Instant::now();
        for raw in raws {
            let Some(span) = raw.parent else { continue };
            match raw.subject.rsplit_once('.').map(|(kind, _)| kind) {
                Some(EgressPermitted::TYPE) => self.permitted(raw, span, now),
                Some(ModelCalled::TYPE) => self.called(raw, span, now),
                _ => {}
            }
        }
    }

    fn permitted(&self, raw: &Raw, span: TraceParent, now: Instant) {
        let Ok(permit) = serde_json::from_slice::<EgressPermitted>(&raw.payload) else { return };
        let Some(began) = clock::millis(&permit.observed_at).filter(|_| permit.layer == Layer::Models) else { return };
        let class =
            if permit.host.ends_with("-confidential") { Confidentiality::Required } else { Confidentiality::None };
        let mut state = self.state();
        // The streams are read side by side: its end may have been there first.
        if let Some(call) = state.calls.iter_mut().find(|call| call.span == span) {
            (call.began, call.attachment) = (began, permit.attachment);
            return;
        }
        let (way, attachment) = (Way::of_class(class), permit.attachment);
        state.calls.push_back(Call { way, span, attachment, began, ended: None, heard: now, drawn: false });
        state.forget(now);
    }

    fn called(&self, raw: &Raw, span: TraceParent, now: Instant) {
        let Ok(event) = serde_json::from_slice::<ModelCalled>(&raw.payload) else { return };
        let (Some(ended), Some(class)) = (clock::millis(&event.observed_at), event.confidential) else { return };
        let mut state = self.state();
        if let Some(call) = state.calls.iter_mut().find(|call| call.span == span) {
            if call.ended.is_none() {
                (call.ended, call.heard) = (Some(ended), now);
            }
            return;
        }
        let attachment = if event.turn.is_some() { Attachment::Active } else { Attachment::Background };
        let (way, began) = (Way::of_class(class), ended.saturating_sub(event.took_millis));
        state.calls.push_back(Call { way, span, attachment, began, ended: Some(ended), heard: now, drawn: false });
        state.forget(now);
    }

    /// Draws what is due until `draining`. Run it in `Tasks::spawn_restarting`.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn run(self, draining: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = draining.cancelled() => return Ok(()),
            }
            for (span, parent) in self.due(Instant::now()) {
                draw(&span, parent);
            }
        }
    }

    /// Spans of the calls that ended long enough ago, each with what it hangs from.
    fn due(&self, now: Instant) -> Vec<(SpanDraft, TraceParent)> {
        let mut state = self.state();
        let is_due =
            |call: &Call| call.ended.is_some() && !call.drawn && now.saturating_duration_since(call.heard) >= PATIENCE;
        let mut spans = Vec::new();
        for at in 0..state.calls.len() {
            let Some(call) = state.calls.get_mut(at).filter(|call| is_due(call)) else { continue };
            call.drawn = true;
            let call = call.clone();
            spans.extend(state.spans(&call).into_iter().map(|span| (span, call.span)));
        }
        state.forget(now);
        spans
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spans(&self, call: &Call) -> Vec<SpanDraft> {
        let met = |tunnel: &&Tunnel| tunnel.way == call.way && tunnel.from() <= call.to() && tunnel.to() >= call.began;
        let tunnels: Vec<&Tunnel> = self.tunnels.iter().rev().filter(met).take(MOST_SPANS).collect();
        tunnels.iter().rev().map(|tunnel| self.span(call, tunnel, tunnels.len())).collect()
    }

    fn span(&self, call: &Call, tunnel: &Tunnel, candidates: usize) -> SpanDraft {
        let (start, end) = (call.began.max(tunnel.from()), call.to().min(tunnel.to()));
        let is_shared = self
            .calls
            .iter()
            .any(|other| other.span != call.span && other.way == call.way && other.began <= end && other.to() >= start);
        let is_plain = tunnel.closed.as_ref().is_some_and(|line| line.outcome == Outcome::Relayed);
        let last = tunnel.closed.as_ref().unwrap_or(&tunnel.opened);
        let mut attributes = vec![
            ("tunnel", tunnel.id.clone()),
            attached(call.attachment),
            ("attached_by", "time".to_owned()),
            ("opened_at", clock::rfc3339(tunnel.opened.started_at.system_time())),
            ("kept", (tunnel.from() < call.began).to_string()),
            ("shared", is_shared.to_string()),
        ];
        if candidates > 1 {
            attributes.push(("candidates", candidates.to_string()));
        }
        for (name, text) in [("server.address", &tunnel.opened.host), ("squid.user", &tunnel.opened.user)] {
            attributes.extend(text.as_ref().map(|text| (name, crate::squid::shown(Some(text)))));
        }
        attributes.extend(tunnel.opened.port.map(|port| ("server.port", port.to_string())));
        attributes.extend(last.peer.map(|peer| ("network.peer.address", peer.to_string())));
        if let Some(closed) = &tunnel.closed {
            // Of the tunnel as a whole, which is the call's only where it is neither kept nor shared.
            attributes.push(("tunnel.bytes_out", closed.bytes_from_client.to_string()));
            attributes.push(("tunnel.bytes_in", closed.bytes_to_client.to_string()));
        }
        SpanDraft {
            name: if is_plain { "squid.relay" } else { "squid.tunnel" },
            start: Millis(start).system_time(),
            end: Millis(end).system_time(),
            error: None,
            attributes,
        }
    }

    /// A call is remembered while it runs, until it is drawn, and while another runs that it may have shared a tunnel with.
    fn forget(&mut self, now: Instant) {
        let running = |call: &Call| call.ended.is_none() && now.saturating_duration_since(call.heard) < LONGEST_TURN;
        let waits = |call: &Call| call.ended.is_some() && !call.drawn;
        let since = self.calls.iter().filter(|call| running(call) || waits(call)).map(|call| call.began).min();
        self.calls.retain(|call| {
            running(call) || waits(call) || (call.drawn && since.is_some_and(|since| call.to() >= since))
        });
        while self.calls.len() > MOST_CALLS {
            self.calls.pop_front();
        }
    }
}

/// What a tunnel is called, here and in its own span.
pub(crate) fn id(first: &Line) -> String {
    assistant_proto::event::EventId::derive(&[b"tunnel", &first.key().bytes()]).as_str().to_owned()
}
