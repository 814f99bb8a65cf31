//! A real nats-server for tests of the bus: `$ASSISTANT_NATS_SERVER_BIN` (`tests/run.sh unit` sets it), or else the one
//! on the PATH. On loopback, without TLS, with a store of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use assistant_proto::event::FloorChecked;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use tokio::time::Instant;

use super::{ASKER_INBOX, Bus, Pace};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const PACE: Pace = Pace {
    first_retry: Duration::from_millis(5),
    slowest_retry: Duration::from_millis(50),
    slowest_refused: Duration::from_millis(20),
    most_refusals: 20,
    acknowledged: Duration::from_secs(5),
    progress: Duration::from_millis(100),
    redelivery: Duration::from_millis(50),
    set_aside_again: Duration::from_millis(50),
};

/// A running server.
pub(crate) struct Live {
    child: Option<Child>,
    dir: tempfile::TempDir,
    address: String,
    jetstream: jetstream::Context,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}

#[allow(clippy::disallowed_methods, reason = "which programs are at hand is the environment's to say")]
fn program() -> OsString {
    std::env::var_os("ASSISTANT_NATS_SERVER_BIN").unwrap_or_else(|| "nats-server".into())
}

fn spawn(dir: &Path, port: &str) -> Child {
    Command::new(program())
        .args(["-a", "127.0.0.1", "-p", port, "-js", "-sd"])
        .arg(dir.join("store"))
        .arg("--ports_file_dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server is on the PATH or named by ASSISTANT_NATS_SERVER_BIN; `tests/run.sh tools` builds it")
}

/// An event of no consequence.
pub(crate) fn checked() -> FloorChecked {
    FloorChecked { passed: 1, failed: 0, checked_at: String::new() }
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Live {
    /// Starts one on a port it chooses.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(dir.path(), "-1");
        // The server writes down which port it chose.
        let file = dir.path().join(format!("nats-server_{}.ports", child.id()));
        let mut address = None;
        eventually("nats-server starts", async || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let ports: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            address = ports["nats"][0].as_str().map(str::to_owned);
            address.is_some()
        })
        .await;
        let address = address.unwrap();
        let jetstream = jetstream::new(async_nats::connect(&address).await.unwrap());
        Self { child: Some(child), dir, address, jetstream }
    }

    /// Ends it; its store stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A server that ended by itself is as good.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Starts it again on the same port, over the same store.
    pub(crate) async fn start_again(&mut self) {
        let port = self.address.rsplit(':').next().unwrap();
        self.child = Some(spawn(self.dir.path(), port));
        eventually("nats-server is back", async || self.jetstream.query_account().await.is_ok()).await;
    }

    /// A bus over it, in a hurry, with the inbox of the service that asks.
    pub(crate) async fn bus(&self) -> Bus {
        let options = async_nats::ConnectOptions::new().custom_inbox_prefix(ASKER_INBOX.trim_end_matches('.'));
        Bus::over("test", options.connect(&self.address).await.unwrap(), PACE)
    }

    /// A stream that keeps everything.
    pub(crate) async fn stream(&self, name: &str, subject: &str) {
        self.make(name, subject, |_| {}).await;
    }

    /// A stream that loses what is acknowledged or terminated.
    pub(crate) async fn work_queue(&self, name: &str, subject: &str) {
        self.make(name, subject, |config| config.retention = RetentionPolicy::WorkQueue).await;
    }

    /// Makes a stream refuse whatever comes.
    pub(crate) async fn narrow(&self, name: &str, subject: &str) {
        self.make(name, subject, |config| {
            config.max_messages = 1;
            config.discard = DiscardPolicy::New;
        })
        .await;
    }

    async fn make(&self, name: &str, subject: &str, change: impl FnOnce(&mut Config)) {
        let mut config = Config { name: name.to_owned(), subjects: vec![subject.to_owned()], ..Config::default() };
        change(&mut config);
        self.jetstream.create_or_update_stream(config).await.unwrap();
    }

    /// A durable consumer.
    pub(crate) async fn consumer(&self, stream: &str, name: &str, change: impl FnOnce(&mut pull::Config)) {
        let mut config = pull::Config {
            durable_name: Some(name.to_owned()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: 1000,
            ..pull::Config::default()
        };
        change(&mut config);
        self.jetstream.create_consumer_on_stream(config, stream).await.unwrap();
    }

    /// Messages a stream holds.
    pub(crate) async fn stored(&self, stream: &str) -> u64 {
        self.jetstream.get_stream(stream).await.unwrap().cached_info().state.messages
    }

    /// Messages a consumer holds unacknowledged.
    pub(crate) async fn unacknowledged(&self, stream: &str, consumer: &str) -> usize {
        let mut consumer: PullConsumer = self.jetstream.get_consumer_from_stream(consumer, stream).await.unwrap();
        consumer.info().await.unwrap().num_ack_pending
    }

    /// Waits until a consumer holds so many unacknowledged.
    pub(crate) async fn delivered(&self, stream: &str, consumer: &str, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.unacknowledged(stream, consumer).await != count {
            assert!(Instant::now() < end, "never delivered: {count} messages of {stream}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What there is below everything.
    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }
}
