//! The reader against an engine that gives lines, and a bus that keeps events.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::sync::Mutex;

use assistant_proto::config::Mode;

use super::*;
use crate::desired::{ContainerSpec, NetworkSpec, VolumeSpec};
use crate::engine::{EngineError, Inventory};

/// Gives its lines from a second on, as Docker does, and then ends.
#[derive(Default)]
struct Lines(Mutex<Vec<LogLine>>);

impl Lines {
    fn say(&self, at: u64, text: &str) {
        self.0.lock().unwrap().push(LogLine { at, text: text.as_bytes().to_vec() });
    }
}

impl Engine for Lines {
    async fn follow_log(&self, id: &str, since: u64, to: &mpsc::Sender<LogLine>) -> Result<(), EngineError> {
        assert_eq!(id, "c1");
        let lines = self.0.lock().unwrap().clone();
        for line in lines.into_iter().filter(|line| line.at >= since * 1_000_000_000) {
            to.send(line).await.unwrap();
        }
        Ok(())
    }
    async fn inventory(&self) -> Result<Inventory, EngineError> {
        unreachable!()
    }
    async fn create_network(&self, _: Mode, _: &NetworkSpec) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn remove_network(&self, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn detach(&self, _: &str, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn create_volume(&self, _: Mode, _: &VolumeSpec) -> Result<PathBuf, EngineError> {
        unreachable!()
    }
    async fn remove_volume(&self, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn create_container(&self, _: Mode, _: &ContainerSpec) -> Result<String, EngineError> {
        unreachable!()
    }
    async fn start_container(&self, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn stop_container(&self, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn signal_container(&self, _: &str, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn remove_container(&self, _: &str) -> Result<(), EngineError> {
        unreachable!()
    }
    async fn log_tail(&self, _: &str, _: SystemTime, _: u16) -> Result<Vec<String>, EngineError> {
        unreachable!()
    }
    async fn watch(&self, _: impl Fn() + Send) -> Result<(), EngineError> {
        unreachable!()
    }
}

const SECOND: u64 = 1_000_000_000;
const PRIVILEGED: &str = r#"{"refused":{"operation":"create","reason":"privileged","detail":"x"}}"#;

fn reader<'a>(engine: &'a Lines, bus: &Bus, path: &Path) -> Reader<'a, Lines> {
    let filter = Filter { id: "c1".to_owned(), tier: "free".parse().unwrap() };
    Reader { engine, bus: bus.clone(), turns: Turns::new(), path: path.to_owned(), filter }
}

/// One start of the supervisor: reads what is there, then is gone.
async fn start(engine: &Lines, bus: &Bus, path: &Path) {
    let mut place = load(path).await.unwrap();
    reader(engine, bus, path).read(&mut place).await.unwrap();
}

fn said(bus: &Bus) -> Vec<(String, u64)> {
    let events = bus.emitted();
    let events = events.iter().map(|(subject, event)| {
        assert_eq!(subject, "egress.denied.free");
        assert_eq!((&event["layer"], &event["principal"]), (&"sandbox".into(), &"zeroclaw-free".into()));
        (event["reason"].as_str().unwrap().to_owned(), event["count"].as_u64().unwrap())
    });
    events.collect()
}

#[tokio::test]
async fn each_line_is_told_once_whatever_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bus, engine) = (dir.path().join("sandbox-free-filter.json"), Bus::detached(), Lines::default());
    engine.say(7 * SECOND + 1, PRIVILEGED);
    engine.say(7 * SECOND + 1, PRIVILEGED);
    engine.say(7 * SECOND + 5, "garbage \u{1b}[2J");
    start(&engine, &bus, &path).await;
    let first = [("privileged", 1), ("privileged", 1), ("line-unreadable", 1)].map(|(r, n)| (r.to_owned(), n));
    assert_eq!(said(&bus), first);
    start(&engine, &bus, &path).await;
    assert_eq!(said(&bus).len(), 3, "a restart tells nothing again");
    // One more of the very same time, and one later.
    engine.say(7 * SECOND + 5, PRIVILEGED);
    engine.say(9 * SECOND, &PRIVILEGED.replace("\"x\"", "\"x\",\"count\":41"));
    start(&engine, &bus, &path).await;
    assert_eq!(said(&bus)[3..], [("privileged", 1), ("privileged", 41)].map(|(r, n)| (r.to_owned(), n)));
}

/// The process ended after it had written the event down, and nobody knows whether the bus has it.
#[tokio::test]
async fn what_was_pending_is_told_as_the_same_event() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bus, engine) = (dir.path().join("x.json"), Bus::detached(), Lines::default());
    let line = LogLine { at: 7 * SECOND, text: PRIVILEGED.as_bytes().to_vec() };
    let mut place = Place::of("c1");
    place.advance(line.at);
    let pending = reader(&engine, &bus, &path).event(EventId::derive(&[b"x"]), &line);
    place.pending = Some(pending.clone());
    place.store(&path).unwrap();
    engine.say(line.at, PRIVILEGED);
    start(&engine, &bus, &path).await;
    assert_eq!(bus.emitted().len(), 1, "told again once, and not read again");
    assert_eq!(bus.emitted()[0].1, serde_json::to_value(&pending.event).unwrap());
    start(&engine, &bus, &path).await;
    assert_eq!(bus.emitted().len(), 1);
}

/// A filter that was made anew has a log of its own; what its predecessor left pending is still told.
#[tokio::test]
async fn another_container_has_another_log() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bus, engine) = (dir.path().join("x.json"), Bus::detached(), Lines::default());
    let mut place = Place::of("c0");
    place.advance(100 * SECOND);
    place.store(&path).unwrap();
    engine.say(50 * SECOND, PRIVILEGED);
    start(&engine, &bus, &path).await;
    assert_eq!(said(&bus).len(), 1);
}
