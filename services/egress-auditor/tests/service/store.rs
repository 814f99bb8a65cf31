//! The audit store: stored once, chained, and never silently without a disk.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use assistant_proto::egress::VerifyChainRequest;
use assistant_proto::egress::egress_service_server::EgressService;
use assistant_proto::event::EventId;
use egress_auditor::record::Entry;
use egress_auditor::store::{self, Filter, Limits, OpenError, Reader, Store, Stored};
use service_kit::host::Context;
use service_kit::task::OnEnd;
use tokio::net::UdpSocket;
use tonic::Request;

use crate::stage::{AGENT, Place, Stage, total, until};

async fn ask(stage: &Stage, host: &str) {
    ask_at(stage.udp, host).await;
}

async fn ask_at(resolver: SocketAddr, host: &str) {
    let socket = UdpSocket::bind((AGENT, 0)).await.unwrap();
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&query, resolver).await.unwrap();
    socket.recv(&mut [0; 512]).await.unwrap();
}

async fn verify(stage: &Stage) -> (bool, u64, u64) {
    let answer = stage.control.verify_chain(Request::new(VerifyChainRequest {})).await.unwrap().into_inner();
    assert_eq!(answer.head.len(), 64);
    (answer.intact, answer.records, answer.broken_at)
}

/// The store alone, with its writer running.
fn open(place: &Place, cx: &Context) -> (Store, Reader) {
    let (store, writer, reader) = store::open(&place.path("store")).unwrap();
    let (health, draining, deadline) = (cx.health.clone(), cx.shutdown.draining(), cx.shutdown.deadline());
    cx.tasks.spawn("writer", OnEnd::Critical, writer.run(health, draining, deadline));
    (store, reader)
}

fn event(id: &str, host: &str, own: bool) -> Entry {
    let payload = format!(r#"{{"host":"{host}"}}"#);
    let mut entry = Entry::from_bus("egress.denied.tasks", id, payload.as_bytes());
    entry.own = own;
    entry
}

#[tokio::test]
async fn one_flipped_byte_is_found() {
    let place = Place::new();
    let stage = place.start().await;
    for (n, host) in ["one.example", "two.example", "three.example"].into_iter().enumerate() {
        ask(&stage, host).await;
        stage.denials(host, |events| events.len() == n + 1).await;
    }
    assert_eq!(verify(&stage).await, (true, 3, 0));
    stage.stop().await;

    let path = place.database();
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"\"host\":\"two.example\"";
    let places: Vec<_> =
        bytes.windows(needle.len()).enumerate().filter(|(_, w)| w == needle).map(|(at, _)| at).collect();
    assert_eq!(places.len(), 1, "the payload stands in the file once");
    bytes[places[0] + 8] = b'T';
    std::fs::write(&path, &bytes).unwrap();

    let stage = place.start().await;
    assert_eq!(verify(&stage).await, (false, 1, 2));
    until("said at the start, unasked", || {
        let problems = stage.cx.health.problems();
        if problems.iter().any(|(part, text)| *part == "audit-chain" && text.contains("record 2")) {
            Ok(())
        } else {
            Err(format!("{problems:?}"))
        }
    })
    .await;
    // It goes on recording: a broken past is no reason to lose the present.
    ask(&stage, "four.example").await;
    stage.denials("after the break", |events| events.iter().any(|event| event["host"] == "four.example")).await;
    assert_eq!(verify(&stage).await, (false, 1, 2));
    stage.stop().await;
}

#[tokio::test]
async fn removed_and_rewritten_records_are_found() {
    let place = Place::new();
    let cx = Context::detached();
    let (store, reader) = open(&place, &cx);
    for n in 0..5 {
        store.append(vec![event(&format!("id{n}"), "a.example", false)]).await.unwrap();
    }
    assert_eq!(reader.verify().await.unwrap().broken_at, None);
    let tamper = rusqlite::Connection::open(place.database()).unwrap();
    // Each change is undone before the next, so that each is found for itself.
    for (change, broken_at) in [
        ("DELETE FROM record WHERE sequence = 5", 5),
        ("DELETE FROM record WHERE sequence = 1", 1),
        ("UPDATE record SET count = 2 WHERE sequence = 3", 3),
        ("UPDATE record SET hash = zeroblob(32) WHERE sequence = 4", 4),
        ("UPDATE record SET previous = x'00' WHERE sequence = 2", 2),
        ("UPDATE record SET recorded_at = '2001-01-01T00:00:00.000Z' WHERE sequence = 5", 5),
        ("UPDATE record SET sequence = 9 WHERE sequence = 3", 3),
    ] {
        tamper.execute_batch("CREATE TEMP TABLE kept AS SELECT * FROM record").unwrap();
        assert_eq!(tamper.execute(change, []).unwrap(), 1, "{change}");
        assert_eq!(reader.verify().await.unwrap().broken_at, Some(broken_at), "{change}");
        tamper.execute_batch("DELETE FROM record; INSERT INTO record SELECT * FROM kept; DROP TABLE kept").unwrap();
        assert_eq!(reader.verify().await.unwrap().broken_at, None, "undone: {change}");
    }
    drop(store);
}

#[tokio::test]
async fn an_event_is_stored_once_and_an_id_cannot_hide_another_event() {
    let place = Place::new();
    let cx = Context::detached();
    let (store, reader) = open(&place, &cx);
    let id = EventId::derive(&[b"x"]);
    let mine = event(id.as_str(), "mine.example", true);
    let first = store.append(vec![mine.clone(), event("other", "b.example", false), mine.clone()]).await.unwrap();
    assert_eq!(first, [Stored::New { sequence: 1 }, Stored::New { sequence: 2 }, Stored::Known]);
    assert_eq!(reader.unpublished(0, u64::MAX >> 1, 10).await.unwrap().len(), 1, "in the outbox until it is back");
    assert!(reader.unpublished(0, 0, 10).await.unwrap().is_empty(), "what is newer is not asked for");

    // The same id with another content: both stand, however often it comes.
    let forged = event(id.as_str(), "forged.example", false);
    assert_eq!(store.append(vec![forged.clone()]).await.unwrap(), [Stored::Conflict { sequence: 3 }]);
    assert_eq!(store.append(vec![forged]).await.unwrap(), [Stored::Known]);
    assert_eq!(reader.unpublished(0, u64::MAX >> 1, 10).await.unwrap().len(), 1, "a forgery confirms nothing");

    // Seen again by this service, in another turn or in none: the same event. Over the bus it would not be.
    let again =
        Entry { payload: r#"{"host":"mine.example","turn":null,"observed_at":"later"}"#.to_owned(), ..mine.clone() };
    assert_eq!(store.append(vec![again]).await.unwrap(), [Stored::Known]);

    // It comes back from the bus.
    assert_eq!(store.append(vec![Entry { own: false, ..mine }]).await.unwrap(), [Stored::Known]);
    assert!(reader.unpublished(0, u64::MAX >> 1, 10).await.unwrap().is_empty());
    assert_eq!(reader.newest(Filter::default(), u64::MAX, 10).await.unwrap().len(), 3);
    assert_eq!(reader.verify().await.unwrap().broken_at, None);
    drop(store);
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Nothing is too old.
fn no_larger_than(most_bytes: u64) -> Limits {
    Limits { most_bytes, age: DAY * 10_000, now: SystemTime::now(), elapsed: Duration::ZERO }
}

/// Everything is too old.
fn nothing() -> Limits {
    Limits { most_bytes: u64::MAX, age: Duration::ZERO, now: SystemTime::now() + DAY * 2, elapsed: Duration::ZERO }
}

#[tokio::test]
async fn a_clock_that_leaps_empties_nothing() {
    let place = Place::new();
    let cx = Context::detached();
    let (store, reader) = open(&place, &cx);
    for n in 0..3 {
        store.append(vec![event(&format!("id{n}"), "a.example", false)]).await.unwrap();
    }
    let by_age = |now: SystemTime, elapsed| Limits { most_bytes: u64::MAX, age: DAY * 400, now, elapsed };
    let now = SystemTime::now();
    let look = store.prune(by_age(now, Duration::ZERO)).await.unwrap();
    assert_eq!((look.pruned, look.spared), (0, false));
    // As often as it is asked, and by however many starts.
    for _ in 0..3 {
        let look = store.prune(by_age(now + DAY * 1000, Duration::ZERO)).await.unwrap();
        assert_eq!((look.pruned, look.spared), (0, true));
    }
    let look = store.prune(by_age(now, DAY)).await.unwrap();
    assert_eq!((look.pruned, look.spared), (0, false), "the clock is right again");
    let look = store.prune(by_age(now + DAY * 1000, DAY * 2)).await.unwrap();
    assert_eq!((look.pruned, look.spared), (3, false), "the control: it has stayed there for long");
    assert_eq!(reader.verify().await.unwrap().broken_at, None);
    drop(store);
}

#[tokio::test]
async fn what_is_let_go_leaves_a_tombstone_and_the_chain_holds() {
    let place = Place::new();
    let cx = Context::detached();
    let (store, reader) = open(&place, &cx);
    assert_eq!(store.prune(nothing()).await.unwrap().pruned, 0, "an empty store has nothing to lose");
    let host = "h".repeat(1000);
    for n in 0..40 {
        let entries = (0..10).map(|m| event(&format!("id{n}-{m}"), &host, false)).collect();
        store.append(entries).await.unwrap();
    }
    let full = store.prune(no_larger_than(u64::MAX)).await.unwrap();
    assert_eq!(full.pruned, 0);
    let most = full.bytes / 2;
    let look = store.prune(no_larger_than(most)).await.unwrap();
    assert!(look.pruned > 200 && look.pruned < 300 && look.bytes <= most, "{look:?} of {full:?}");
    assert_eq!(store.prune(no_larger_than(most)).await.unwrap().pruned, 0, "there is room again");
    let verified = reader.verify().await.unwrap();
    let kept = 400 - look.pruned + 1;
    assert_eq!((verified.broken_at, verified.pruned, verified.records), (None, look.pruned, kept));

    let tombstones = || reader.newest(Filter { kind: "audit.pruned".to_owned(), ..Filter::default() }, u64::MAX, 10);
    let told = tombstones().await.unwrap();
    assert_eq!((told.len(), told[0].entry.count, told[0].entry.reason.as_str()), (1, look.pruned, "retention-size"));
    assert!(told[0].entry.detail().contains(&format!("(1 to {}, of ", look.pruned)), "{}", told[0].entry.detail());

    // The next one takes the first with it, and carries its numbers on.
    assert_eq!(store.prune(nothing()).await.unwrap().pruned, kept);
    let told = tombstones().await.unwrap();
    assert_eq!((told.len(), told[0].entry.reason.as_str()), (1, "retention-age"));
    let body: serde_json::Value = serde_json::from_str(&told[0].entry.payload).unwrap();
    assert_eq!((&body["all"]["records"], &body["all"]["denied"]["tasks"]), (&401.into(), &400.into()));
    assert_eq!((&body["all"]["by_type"]["audit.pruned"], &body["through"]), (&1.into(), &401.into()));
    let verified = reader.verify().await.unwrap();
    assert_eq!((verified.broken_at, verified.pruned, verified.records), (None, 401, 1));

    // It goes on behind it, after a restart as well.
    store.append(vec![event("next", "a.example", false)]).await.unwrap();
    cx.shutdown.draining().cancel();
    drop(store);
    cx.tasks.finished().await;
    let cx = Context::detached();
    let (store, reader) = open(&place, &cx);
    let stored = store.append(vec![event("another", "a.example", false)]).await.unwrap();
    assert_eq!(stored, [Stored::New { sequence: 404 }]);
    assert_eq!(reader.verify().await.unwrap().broken_at, None);
    drop(store);
}

#[tokio::test]
async fn a_beginning_that_is_missing_without_a_tombstone_is_found() {
    let place = Place::new();
    let cx = Context::detached();
    let (store, reader) = open(&place, &cx);
    for n in 0..6 {
        store.append(vec![event(&format!("id{n}"), "a.example", false)]).await.unwrap();
    }
    // Only what has come back from the bus may go.
    store.append(vec![event("mine", "mine.example", true)]).await.unwrap();
    let look = store.prune(nothing()).await.unwrap();
    assert_eq!((look.pruned, look.held), (6, true));
    let look = store.prune(nothing()).await.unwrap();
    assert_eq!((look.pruned, look.held), (0, true), "the own one stands in the way of all behind it");
    store.append(vec![event("mine", "mine.example", false)]).await.unwrap();
    for n in 6..9 {
        store.append(vec![event(&format!("id{n}"), "a.example", false)]).await.unwrap();
    }
    let verified = reader.verify().await.unwrap();
    assert_eq!((verified.broken_at, verified.pruned, verified.records), (None, 6, 5));

    let tamper = rusqlite::Connection::open(place.database()).unwrap();
    for (change, broken_at) in [
        // One more than was let go, and the tombstone with all before it.
        ("DELETE FROM record WHERE sequence = 7", 7),
        ("DELETE FROM record WHERE sequence <= 8", 1),
        // A tombstone that lies.
        ("UPDATE record SET payload = replace(payload, '\"through\":6', '\"through\":7') WHERE sequence = 8", 8),
    ] {
        tamper.execute_batch("CREATE TEMP TABLE kept AS SELECT * FROM record").unwrap();
        assert!(tamper.execute(change, []).unwrap() > 0, "{change}");
        assert_eq!(reader.verify().await.unwrap().broken_at, Some(broken_at), "{change}");
        tamper.execute_batch("DELETE FROM record; INSERT INTO record SELECT * FROM kept; DROP TABLE kept").unwrap();
        assert_eq!(reader.verify().await.unwrap().broken_at, None, "undone: {change}");
    }
    assert!(!store.prune(nothing()).await.unwrap().held, "it came back");
    drop(store);
}

#[tokio::test]
async fn without_a_disk_it_says_so_waits_and_loses_nothing() {
    let place = Place::new();
    let stage = place.start().await;
    ask(&stage, "before.example").await;
    stage.denials("the control", |events| events.len() == 1).await;

    // Somebody holds the write lock: to the writer the same as a disk that refuses.
    let lock = rusqlite::Connection::open(place.database()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    ask(&stage, "during.example").await;
    until("not healthy", || {
        let problems = stage.cx.health.problems();
        if problems.iter().any(|(part, _)| *part == "audit-store") { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .await;
    ask(&stage, "still.example").await;
    assert_eq!(stage.published("egress.denied.").len(), 1, "what is not recorded is not published");

    lock.execute_batch("ROLLBACK").unwrap();
    let events = stage.denials("caught up", |events| total(events) == 3).await;
    assert_eq!(events.len(), 3);
    until("healthy again", || {
        let problems = stage.cx.health.problems();
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .await;
    assert_eq!(verify(&stage).await, (true, 3, 0));
    stage.stop().await;
}

#[tokio::test]
async fn what_was_stored_and_not_published_is_published_at_the_next_start() {
    let place = Place::new();
    let stage = place.start().await;
    ask(&stage, "once.example").await;
    let before = stage.denials("published", |events| events.len() == 1).await;
    // A detached bus gives nothing back, as if the process had died before NATS took it.
    stage.kill().await;
    let stage = place.start().await;
    let after = stage.denials("published again", |events| events.len() == 1).await;
    assert_eq!(before, after, "the same event, word for word");
    assert_eq!(verify(&stage).await, (true, 1, 0), "and not a second record");
    stage.stop().await;
}

#[test]
fn a_store_that_cannot_be_used_is_refused_with_its_place() {
    let place = Place::new();
    let missing = place.path("nowhere");
    assert!(matches!(store::open(&missing), Err(OpenError::File { path, .. }) if path.starts_with(&missing)));
    std::fs::write(place.database(), "not a database, but long enough to look like one? no").unwrap();
    assert!(matches!(store::open(&place.path("store")), Err(OpenError::Database { .. })));
    std::fs::remove_file(place.database()).unwrap();
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(store::open(&place.path("store")), Err(OpenError::Version { found: 99, .. })));
}

#[test]
fn the_database_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let (_store, _writer, _reader) = store::open(&place.path("store")).unwrap();
    for entry in std::fs::read_dir(place.path("store")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
    }
}
