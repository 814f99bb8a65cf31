//! Streams and consumers on a real nats-server: `$ASSISTANT_NATS_SERVER_BIN` (`tests/run.sh unit` sets it), or else the
//! one on the PATH.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use async_nats::jetstream::{self, consumer::PullConsumer};
use futures::StreamExt;
use tier_supervisor::provision::{self, EVENTS, INBOX, PERMITTED, UNDECODABLE};

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    _dir: tempfile::TempDir,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ours alone; a server that ended by itself is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[allow(clippy::disallowed_methods, reason = "which programs are at hand is the environment's to say")]
fn program() -> OsString {
    std::env::var_os("ASSISTANT_NATS_SERVER_BIN").unwrap_or_else(|| "nats-server".into())
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(program())
        .args(["-a", "127.0.0.1", "-p", "-1", "-js", "-sd"])
        .arg(dir.path().join("store"))
        .arg("--ports_file_dir")
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server is on the PATH or named by ASSISTANT_NATS_SERVER_BIN; `tests/run.sh tools` builds it");
    let url = url(dir.path(), child.id()).await;
    Server { child, _dir: dir, url }
}

/// The server chooses a port and writes it down.
async fn url(dir: &Path, pid: u32) -> String {
    let file = dir.join(format!("nats-server_{pid}.ports"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
            return value["nats"][0].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "nats-server did not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn made_once_kept_and_made_again_when_lost() {
    let server = server().await;
    let client = async_nats::connect(&server.url).await.unwrap();
    let jetstream = jetstream::new(client);
    provision::ensure(&jetstream).await.unwrap();

    // An event is kept for the auditor, and what he has acknowledged stays acknowledged over a second look.
    for body in ["one", "two"] {
        jetstream.publish("egress.denied.tasks", body.into()).await.unwrap().await.unwrap();
    }
    let consumer: PullConsumer = jetstream.get_consumer_from_stream("auditor", EVENTS).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let first = tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.payload.as_ref(), b"one");
    first.double_ack().await.unwrap();
    drop(messages);
    provision::ensure(&jetstream).await.unwrap();
    let mut consumer: PullConsumer = jetstream.get_consumer_from_stream("auditor", EVENTS).await.unwrap();
    assert_eq!(consumer.info().await.unwrap().ack_floor.stream_sequence, 1);

    // The record cannot be thinned out over the bus.
    let mut events = jetstream.get_stream(EVENTS).await.unwrap();
    assert!(events.purge().await.is_err());
    assert!(events.delete_message(1).await.is_err());
    assert_eq!(events.info().await.unwrap().state.messages, 2);

    // A server that comes back empty gets everything again.
    jetstream.delete_stream(INBOX).await.unwrap();
    let ack = jetstream.publish("channel.received.tasks", "x".into()).await.unwrap().await;
    assert!(ack.is_err(), "nobody keeps it: {ack:?}");
    provision::ensure(&jetstream).await.unwrap();
    jetstream.publish("channel.received.tasks", "x".into()).await.unwrap().await.unwrap();
    let _: PullConsumer = jetstream.get_consumer_from_stream("bridge", INBOX).await.unwrap();
}

async fn next(messages: &mut jetstream::consumer::pull::Stream) -> jetstream::Message {
    tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn what_may_leave_is_never_discarded_and_goes_only_when_the_auditor_has_it() {
    let server = server().await;
    let jetstream = jetstream::new(async_nats::connect(&server.url).await.unwrap());
    // As an older version left it, with a decision in it that nobody has read.
    let old = Config {
        name: EVENTS.to_owned(),
        subjects: vec!["egress.>".to_owned(), "tier.>".to_owned()],
        deny_delete: true,
        deny_purge: true,
        ..Config::default()
    };
    jetstream.create_stream(old).await.unwrap();
    let subjects = vec!["undecodable.*".to_owned()];
    let old = Config { name: UNDECODABLE.to_owned(), subjects, discard: DiscardPolicy::New, ..Config::default() };
    jetstream.create_stream(old).await.unwrap();
    let publish = async |body: &'static str| {
        jetstream.publish("egress.permitted.tasks", body.into()).await.unwrap().await.map(|ack| ack.stream)
    };
    assert_eq!(publish("old").await.unwrap(), EVENTS);
    provision::ensure(&jetstream).await.unwrap();
    provision::ensure(&jetstream).await.unwrap();
    assert_eq!(publish("new").await.unwrap(), PERMITTED);
    for (stream, body) in [(EVENTS, "old"), (PERMITTED, "new")] {
        let consumer: PullConsumer = jetstream.get_consumer_from_stream("auditor", stream).await.unwrap();
        let message = next(&mut consumer.messages().await.unwrap()).await;
        assert_eq!(message.payload.as_ref(), body.as_bytes());
        message.double_ack().await.unwrap();
    }
    let mut permitted = jetstream.get_stream(PERMITTED).await.unwrap();
    let state = permitted.info().await.unwrap().state.clone();
    assert_eq!(state.messages, 0, "the auditor has it");
    // By this it knows that no permit is on its way any more (`compare.rs`).
    assert_eq!((state.first_sequence, state.last_sequence), (2, 1));

    // Full, because the auditor does not read: what is new is refused. Smaller here, to be full soon.
    let specified = permitted.info().await.unwrap().config.clone();
    assert_eq!(specified.discard, DiscardPolicy::New);
    jetstream.update_stream(Config { max_messages: 2, ..specified }).await.unwrap();
    for body in ["one", "two"] {
        publish(body).await.unwrap();
    }
    assert!(publish("three").await.is_err(), "it left without a record");
    let consumer: PullConsumer = jetstream.get_consumer_from_stream("auditor", PERMITTED).await.unwrap();
    let message = next(&mut consumer.messages().await.unwrap()).await;
    assert_eq!(message.payload.as_ref(), b"one");
    message.double_ack().await.unwrap();
    publish("three").await.unwrap();

    // Records and evidence cannot be thinned out over the bus.
    jetstream.publish("undecodable.INBOX", "x".into()).await.unwrap().await.unwrap();
    for stream in [PERMITTED, UNDECODABLE] {
        let mut stream = jetstream.get_stream(stream).await.unwrap();
        let before = stream.info().await.unwrap().state.clone();
        assert!(stream.purge().await.is_err() && stream.delete_message(before.first_sequence).await.is_err());
        assert_eq!(stream.info().await.unwrap().state.messages, before.messages);
    }
}
