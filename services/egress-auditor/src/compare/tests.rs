#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::UNIX_EPOCH;

use serde_json::json;
use service_kit::host::Context;
use service_kit::task::OnEnd;

use super::*;
use crate::store::{self, Filter, Store};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "11111111111111111111111111111111";

struct Stage {
    cx: Context,
    _directory: tempfile::TempDir,
    store: Store,
    reader: Reader,
    ledger: Ledger,
    compare: Compare,
}

fn stage() -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let cx = Context::detached();
    let (store, writer, reader) = store::open(directory.path()).unwrap();
    let (health, draining, deadline) = (cx.health.clone(), cx.shutdown.draining(), cx.shutdown.deadline());
    cx.tasks.spawn("writer", OnEnd::Critical, writer.run(health, draining, deadline));
    let ledger = Ledger::new(store.clone(), cx.bus.clone());
    let compare = Compare::new(Duration::ZERO, Figures::default());
    Stage { cx, _directory: directory, store, reader, ledger, compare }
}

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A minute from now, so that the store remembers everything before it.
fn later() -> u64 {
    now() + 60_000
}

fn tunnel(key: &str, host: &str, started_at: u64, trace: Option<&str>) -> Tunnel {
    let parent = trace.map(|trace| format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
    let (tier, host) = ("tasks".parse().unwrap(), host.to_owned());
    Tunnel { key: key.to_owned(), tier, host, port: 443, started_at: Millis(started_at), parent, is_decision: true }
}

fn permit(sequence: u64, host: &str, layer: &str, observed_at: u64) -> Raw {
    let body = json!({
        "tier": "tasks", "principal": "zeroclaw-tasks", "layer": layer, "host": host, "port": 443, "method": "GET",
        "path": "/", "rule": "r", "secret": null, "turn": null, "attachment": "background", "trace_id": TRACE,
        "observed_at": clock::rfc3339(Millis(observed_at).system_time()),
    });
    Raw {
        subject: "egress.permitted.tasks".to_owned(),
        type_: EgressPermitted::TYPE.to_owned(),
        id: format!("permit-{sequence}"),
        source: String::new(),
        parent: None,
        payload: body.to_string().into(),
        stream_sequence: sequence,
        deliveries: 1,
    }
}

impl Stage {
    async fn permitted(&self, raws: &[Raw]) {
        let entries = raws.iter().map(|raw| Entry::from_bus(&raw.subject, &raw.id, &raw.payload)).collect();
        self.store.append(entries).await.unwrap();
    }

    /// Judges what waits; returns the breaches so far.
    async fn judged(&self) -> Vec<String> {
        let due = self.compare.due(Instant::now());
        self.compare.judge(&self.reader, &self.ledger, due).await.unwrap();
        let filter = Filter { kind: FloorBreached::TYPE.to_owned(), ..Filter::default() };
        let records = self.reader.after(filter, 0, 100).await.unwrap();
        records.into_iter().map(|record| record.entry.detail()).collect()
    }
}

#[tokio::test]
async fn a_tunnel_without_a_permit_is_a_breach_and_told_once() {
    let stage = stage();
    let at = later();
    stage.permitted(&[permit(1, "good.example", "broker", at - 50), permit(2, "mcp.example", "mcp", at - 50)]).await;
    for tunnel in [
        tunnel("met", "Good.Example", at, Some(TRACE)),
        Tunnel { is_decision: false, ..tunnel("its first line was not read", "good.example", at, None) },
    ] {
        stage.compare.opened(tunnel);
    }
    assert_eq!(stage.judged().await, Vec::<String>::new());
    assert_eq!(stage.compare.figures.tunnels_with_permit(), 1);
    let unmet = [
        ("nobody", tunnel("1", "evil.example", at, Some(TRACE))),
        ("a second one for the same permit", tunnel("8", "good.example", at + 100, Some(TRACE))),
        ("no trace", tunnel("0", "good.example", at, None)),
        ("another's trace", tunnel("2", "good.example", at, Some(OTHER))),
        ("long after", tunnel("3", "good.example", at + 31_000, Some(TRACE))),
        ("before", tunnel("4", "good.example", at - 5_000, Some(TRACE))),
        ("another port", Tunnel { port: 8443, ..tunnel("5", "good.example", at, Some(TRACE)) }),
        ("another tier", Tunnel { tier: "chat".parse().unwrap(), ..tunnel("6", "good.example", at, Some(TRACE)) }),
        ("permitted at another door", tunnel("7", "mcp.example", at, Some(TRACE))),
    ];
    for (at, (what, tunnel)) in unmet.into_iter().enumerate() {
        stage.compare.opened(tunnel.clone());
        let breaches = stage.judged().await;
        assert_eq!(breaches.len(), at + 1, "{what}: {breaches:?}");
        assert!(breaches[at].contains(&format!("{}:{}", tunnel.host, tunnel.port)), "{breaches:?}");
        // Read again after a restart: the same event.
        stage.compare.resume(vec![tunnel], Vec::new());
        assert_eq!(stage.judged().await.len(), at + 1, "{what}, again");
    }
    let told = stage.cx.bus.emitted();
    assert_eq!(told.iter().filter(|(subject, _)| subject == "floor.breached.stack").count(), 9);
    assert_eq!(stage.compare.waiting(), []);
}

#[tokio::test]
async fn each_tunnel_has_a_permit_of_its_own_and_keeps_it() {
    let stage = stage();
    let at = later();
    // Two requests with a tunnel each; one that went over a tunnel which was kept; one half a minute later.
    let permits =
        [(1, at - 50), (2, at + 20_000), (3, at + 40_000)].map(|(n, at)| permit(n, "good.example", "broker", at));
    stage.permitted(&permits).await;
    // Judged apart, and the later one first: it leaves the older permit to the earlier tunnel, which has no other.
    let (early, late) =
        (tunnel("early", "good.example", at, Some(TRACE)), tunnel("late", "good.example", at + 20_010, Some(TRACE)));
    stage.compare.opened(late.clone());
    stage.compare.opened(early.clone());
    assert_eq!(stage.judged().await, Vec::<String>::new());
    // Read again after a restart, with what the checkpoint had: each finds its own.
    let used = stage.compare.used();
    assert_eq!(used.iter().map(|used| used.tunnel.as_str()).collect::<Vec<_>>(), ["early", "late"]);
    let resumed = Compare::new(Duration::ZERO, Figures::default());
    resumed.resume(vec![early, late], used);
    let due = resumed.due(Instant::now());
    resumed.judge(&stage.reader, &stage.ledger, due).await.unwrap();
    assert_eq!((resumed.used().len(), resumed.waiting().len()), (2, 0));
    assert_eq!(stage.judged().await, Vec::<String>::new());
    // What is used stays used.
    resumed.opened(tunnel("third", "good.example", at + 20_020, Some(TRACE)));
    let due = resumed.due(Instant::now());
    resumed.judge(&stage.reader, &stage.ledger, due).await.unwrap();
    assert_eq!(stage.judged().await.len(), 1);
    // The permit of then is there for the tunnel of then; and nothing is remembered for ever.
    stage.compare.opened(tunnel("fourth", "good.example", at + 40_010, Some(TRACE)));
    assert_eq!(stage.judged().await.len(), 1);
    stage.compare.state().forget_used(Millis(at + 200_000).system_time());
    assert_eq!(stage.compare.used(), []);
}

#[tokio::test]
async fn what_the_store_cannot_remember_is_no_breach() {
    let stage = stage();
    stage.permitted(&[permit(1, "good.example", "broker", now())]).await;
    // Begun before the store.
    stage.compare.opened(tunnel("1", "evil.example", now() - 60_000, Some(TRACE)));
    assert_eq!(stage.judged().await, Vec::<String>::new());
    stage.compare.opened(tunnel("2", "evil.example", later(), Some(TRACE)));
    assert_eq!(stage.judged().await.len(), 1, "the control");
}

#[tokio::test]
async fn it_is_judged_after_its_patience_and_waits_until_then() {
    let stage = stage();
    let compare = Compare::new(PATIENCE, Figures::default());
    compare.opened(tunnel("1", "a.example", later(), None));
    assert_eq!(compare.due(Instant::now()), []);
    assert_eq!(compare.due(Instant::now() + PATIENCE).len(), 1);
    assert_eq!(compare.waiting().len(), 1);
    // Bounded, and the record says so.
    for n in 0..=MOST_WAITING {
        stage.compare.opened(tunnel(&n.to_string(), "a.example", 0, None));
    }
    assert_eq!(stage.compare.waiting().len(), MOST_WAITING);
    stage.judged().await;
    let filter = Filter { kind: "audit.incomplete".to_owned(), ..Filter::default() };
    let records = stage.reader.newest(filter, u64::MAX, 10).await.unwrap();
    let told: Vec<_> = records.iter().map(|record| (record.entry.reason.as_str(), record.entry.count)).collect();
    assert_eq!(told, [("tunnels-not-compared", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_permit_without_a_tunnel_is_counted() {
    let figures = Figures::default();
    let compare = Compare::new(PATIENCE, figures.clone());
    let unused = |after: Duration| {
        compare.count_unused(Instant::now() + after);
        figures.permits_without_tunnel()
    };
    compare.opened(tunnel("1", "used.example", now(), None));
    compare.stored(&[
        permit(1, "used.example", "broker", now()),
        permit(2, "unused.example", "broker", now()),
        permit(3, "inside.example", "mcp", now()),
        permit(4, "old.example", "broker", now() - 60_000),
    ]);
    assert_eq!(unused(Duration::ZERO), 0, "too early");
    assert_eq!(unused(PATIENCE), 1, "only the one that nobody used");
    // A connection that is kept carries further requests, however long it stands.
    tokio::time::advance(Duration::from_secs(3600)).await;
    compare.stored(&[permit(5, "used.example", "broker", now())]);
    assert_eq!(unused(PATIENCE), 1);
    compare.closed(&tunnel("1", "used.example", now(), None));
    tokio::time::advance(Duration::from_secs(3600)).await;
    compare.stored(&[permit(6, "used.example", "broker", now())]);
    assert_eq!(unused(PATIENCE), 2, "it was closed long ago");
}
