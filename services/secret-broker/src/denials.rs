//! Telling refusals without letting a loud container fill the bus and the store.
//!
//! The first refusal of a kind is told at once. Equal ones within the next second become one event with a count. A
//! container that goes beyond its allowance of events gets one `flood` event a second for all the rest. Every refusal is
//! counted in exactly one event, and what is remembered is bounded whatever a container does.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assistant_proto::event::{EgressDenied, EventId, Layer, OfRequest, Scope};
use assistant_proto::name::{PrincipalName, TurnId};
use assistant_proto::trace::TraceParent;
use service_kit::bus::Bus;
use service_kit::fold::{Folded, Folds, Limits};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Equal refusals within this time of one that was told are folded into one event, which is told at its end.
const FOLD: Duration = Duration::from_millis(700);
/// Kinds of refusal that are told at once in a burst, and as many again that are folded first.
const BURST: u32 = 32;
/// And for ever after, per second; again for each of the two. With the flood event a container causes two events a second
/// at most.
const PER_SECOND: f64 = 0.5;
const LIMITS: Limits = Limits { fold: FOLD, flood_fold: FOLD, burst: BURST, per_second: PER_SECOND, most_waiting: 64 };

/// Whose refusals they are. There are few: containers of tiers, and one "unknown" a tier.
type Client = (Scope, Option<PrincipalName>);

/// What makes refusals equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    layer: Layer,
    host: String,
    port: Option<u16>,
    reason: String,
    turn: Option<TurnId>,
    /// Requests that differ are told apart as far as the allowance goes: what was tried is as telling as that it was.
    method: Option<String>,
    target: Option<String>,
}

/// The first refusal of an event, and the span it belongs to.
#[derive(Debug)]
struct First {
    event: OfRequest<EgressDenied>,
    parent: TraceParent,
}

/// Counts refusals and tells them.
#[derive(Debug)]
pub struct Denials {
    bus: Bus,
    folds: Folds<Client, Kind, First>,
    gate: Mutex<Gate>,
}

impl Denials {
    /// Tells them on `bus`. Somebody has to run [`Denials::tell`].
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self { bus, folds: Folds::new(LIMITS), gate: Mutex::default() }
    }

    /// Counts a refusal, never waiting. True when it was told at once.
    pub fn count(&self, event: OfRequest<EgressDenied>, parent: TraceParent) -> bool {
        let denied = &event.event;
        let client = (denied.tier.clone(), denied.principal.clone());
        let kind = Kind {
            layer: denied.layer,
            host: denied.host.clone(),
            port: denied.port,
            reason: denied.reason.clone(),
            turn: denied.turn.clone(),
            method: event.asked_method.clone(),
            target: event.target_sha256.clone(),
        };
        {
            // Held over `note`, so that nothing is noted after the last fold was taken.
            let mut gate = self.gate();
            if !gate.admits(&client, &kind, Instant::now()) {
                self.folds.note(client, kind, First { event, parent });
                return false;
            }
        }
        self.bus.emit(&event, EventId::unique(), Some(parent));
        true
    }

    /// Tells what was folded, until the service drains; from then on each refusal is told at once. For one task.
    pub async fn tell(&self, draining: CancellationToken) {
        loop {
            // Cancel-safe: `due` takes nothing before its last await.
            let due = tokio::select! {
                () = draining.cancelled() => break,
                due = self.folds.due() => due,
            };
            due.into_iter().for_each(|folded| self.emit(folded));
        }
        self.gate().open = true;
        self.folds.rest().into_iter().for_each(|folded| self.emit(folded));
    }

    fn emit(&self, folded: Folded<Client, Kind, First>) {
        let First { event: mut told, parent } = folded.value;
        let event = &mut told.event;
        event.count = folded.count;
        if folded.key.is_none() {
            event.detail = format!(
                "{} refusals beyond what is told one by one; the first of them: {}, {}",
                folded.count, event.reason, event.detail
            );
            "flood".clone_into(&mut event.reason);
            "see what runs in this container; the refusals before this one say more".clone_into(&mut event.fix);
        }
        tracing::info!(
            tier = event.tier.as_str(),
            principal = event.principal.as_ref().map(PrincipalName::as_str),
            layer = event.layer.as_str(),
            host = event.host,
            reason = event.reason,
            count = event.count,
            "refused again"
        );
        self.bus.emit(&told, EventId::unique(), Some(parent));
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides what is told at once.
#[derive(Debug, Default)]
struct Gate {
    /// Nothing is folded any more.
    open: bool,
    clients: HashMap<Client, Told>,
}

/// What was told of one client lately. Each entry of `lately` cost some of the allowance, which bounds it.
#[derive(Debug)]
struct Told {
    allowance: f64,
    at: Instant,
    lately: HashMap<Kind, Instant>,
}

impl Gate {
    fn admits(&mut self, client: &Client, kind: &Kind, now: Instant) -> bool {
        if self.open {
            return true;
        }
        if !self.clients.contains_key(client) {
            let told = Told { allowance: f64::from(BURST), at: now, lately: HashMap::new() };
            self.clients.insert(client.clone(), told);
        }
        let Some(told) = self.clients.get_mut(client) else { return false };
        let earned = now.saturating_duration_since(told.at).as_secs_f64() * PER_SECOND;
        told.allowance = (told.allowance + earned).min(f64::from(BURST));
        told.at = told.at.max(now);
        if told.lately.get(kind).is_some_and(|at| now.saturating_duration_since(*at) < FOLD) || told.allowance < 1.0 {
            return false;
        }
        told.lately.retain(|_, at| now.saturating_duration_since(*at) < FOLD);
        told.allowance -= 1.0;
        told.lately.insert(kind.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::Arc;

    use assistant_proto::event::Attachment;
    use serde_json::Value;

    use super::*;

    fn denial(principal: &str, host: &str, target: Option<&str>) -> OfRequest<EgressDenied> {
        let event = EgressDenied {
            tier: Scope::Tier("tasks".parse().unwrap()),
            principal: Some(principal.parse().unwrap()),
            layer: Layer::Broker,
            host: host.to_owned(),
            port: Some(443),
            protocol: "https".to_owned(),
            reason: "host-not-allowed".to_owned(),
            detail: "d".to_owned(),
            fix: "f".to_owned(),
            count: 1,
            turn: None,
            attachment: Attachment::Background,
            trace_id: String::new(),
            observed_at: String::new(),
        };
        let target_sha256 = target.map(str::to_owned);
        OfRequest { event, asked_method: Some("GET".to_owned()), target_sha256, target_bytes: None, cut: None }
    }

    fn told(bus: &Bus) -> Vec<(String, String, u64)> {
        let field = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
        let events = bus.emitted().into_iter();
        events.map(|(_, e)| (field(&e, "reason"), field(&e, "host"), e["count"].as_u64().unwrap())).collect()
    }

    fn entry(reason: &str, host: &str, count: u64) -> (String, String, u64) {
        (reason.to_owned(), host.to_owned(), count)
    }

    struct Telling {
        bus: Bus,
        denials: Arc<Denials>,
        draining: CancellationToken,
        task: tokio::task::JoinSet<()>,
    }

    fn telling() -> Telling {
        let (bus, draining) = (Bus::detached(), CancellationToken::new());
        let denials = Arc::new(Denials::new(bus.clone()));
        let (inner, until) = (Arc::clone(&denials), draining.clone());
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move { inner.tell(until).await });
        Telling { bus, denials, draining, task }
    }

    impl Telling {
        fn count(&self, principal: &str, host: &str) {
            self.denials.count(denial(principal, host, None), service_kit::trace::fresh());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_at_once_and_its_equals_in_one_within_a_second() {
        let telling = telling();
        for _ in 0..5 {
            telling.count("a", "x.example");
        }
        telling.count("a", "y.example");
        telling.count("b", "x.example");
        let at_once = vec![
            entry("host-not-allowed", "x.example", 1),
            entry("host-not-allowed", "y.example", 1),
            entry("host-not-allowed", "x.example", 1),
        ];
        assert_eq!(told(&telling.bus), at_once);
        tokio::time::sleep(FOLD + Duration::from_millis(1)).await;
        assert_eq!(told(&telling.bus)[3..], [entry("host-not-allowed", "x.example", 4)]);
        telling.count("a", "x.example");
        assert_eq!(told(&telling.bus)[4..], [entry("host-not-allowed", "x.example", 1)], "a new beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn different_targets_are_told_apart_within_the_allowance() {
        let mut telling = telling();
        let count = |target: &str, method: &str| {
            let mut event = denial("a", "x.example", Some(target));
            event.asked_method = Some(method.to_owned());
            telling.denials.count(event, service_kit::trace::fresh());
        };
        for (target, method) in [("1", "GET"), ("2", "GET"), ("2", "DELETE"), ("1", "GET")] {
            count(target, method);
        }
        let told_of = |bus: &Bus| -> Vec<(String, String)> {
            let field = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
            bus.emitted().iter().map(|(_, e)| (field(e, "target_sha256"), field(e, "asked_method"))).collect()
        };
        let pair = |target: &str, method: &str| (target.to_owned(), method.to_owned());
        assert_eq!(told_of(&telling.bus), [pair("1", "GET"), pair("2", "GET"), pair("2", "DELETE")]);
        for n in 0..1_000_u32 {
            count(&format!("t{n}"), "GET");
        }
        telling.draining.cancel();
        while telling.task.join_next().await.is_some() {}
        let all = told(&telling.bus);
        assert!(all.len() <= 65, "the burst is the bound: {}", all.len());
        assert_eq!(all.iter().map(|(_, _, count)| count).sum::<u64>(), 1_004);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_bounded_and_each_is_counted_once() {
        let mut telling = telling();
        for n in 0..10_000_u32 {
            telling.count("a", &format!("{n}.example"));
            telling.count("b", "x.example");
        }
        let remembered: usize = telling.denials.gate().clients.values().map(|told| told.lately.len()).sum();
        assert!(remembered <= 33, "{remembered}");
        tokio::time::sleep(FOLD + Duration::from_millis(1)).await;
        let all = told(&telling.bus);
        assert_eq!(
            all.len(),
            32 + 32 + 1 + 2,
            "burst at once, burst folded, one flood; and two of the other container"
        );
        assert_eq!(all.iter().map(|(_, _, count)| count).sum::<u64>(), 20_000);
        let floods: Vec<_> =
            all.iter().filter(|(reason, _, _)| reason == "flood").map(|(_, _, count)| *count).collect();
        assert_eq!(floods, [10_000 - 64]);
        // Drained in the middle of it: nothing is lost, and what comes later is told at once.
        for n in 0..100_u32 {
            telling.count("a", &format!("{n}.example"));
        }
        telling.draining.cancel();
        while telling.task.join_next().await.is_some() {}
        telling.count("a", "last.example");
        let all = told(&telling.bus);
        assert_eq!(all.iter().map(|(_, _, count)| count).sum::<u64>(), 20_101);
        assert_eq!(all.last(), Some(&entry("host-not-allowed", "last.example", 1)));
    }
}
