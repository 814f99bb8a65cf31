//! The bridge over a real nats-server, as in the stack: TLS, nkeys, JetStream. What has to happen exactly once is counted
//! at the two far ends, the agent and Telegram. The server is `$ASSISTANT_NATS_SERVER_BIN` (`tests/run.sh unit` sets it),
//! or else the one on the PATH.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::config;
use assistant_tests::doubles::telegram::{SentMessage, Telegram};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use channel_bridge::config::Config as BridgeConfig;
use channel_bridge::service::ChannelBridge;
use futures::StreamExt;
use serde_json::{Value, json};
use service_kit::bus::Bus;
use service_kit::host::{Context, Service};
use service_kit::task::Tasks;

use crate::agent_double::{AgentDouble, Journal};
use crate::squid_double::SquidDouble;
use crate::stack::{patience, until};
use crate::telegram::stand::{self, ANNA, secret};

struct Nats {
    child: Option<Child>,
    dir: tempfile::TempDir,
    port: String,
    seed: String,
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.stop();
    }
}

#[allow(clippy::disallowed_methods, reason = "which programs are at hand is the environment's to say")]
fn program() -> std::ffi::OsString {
    std::env::var_os("ASSISTANT_NATS_SERVER_BIN").unwrap_or_else(|| "nats-server".into())
}

impl Nats {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca = authority.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let server = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("ca.pem"), ca.pem()).unwrap();
        std::fs::write(at("server.pem"), server.pem()).unwrap();
        std::fs::write(at("server.key"), key.serialize_pem()).unwrap();
        let user = nkeys::KeyPair::new_user();
        let seed = user.seed().unwrap();
        secret(dir.path(), "seed", &seed);
        let config = json!({
            "jetstream": {"store_dir": at("store")},
            "tls": {"cert_file": at("server.pem"), "key_file": at("server.key")},
            "authorization": {"users": [{"nkey": user.public_key()}]},
            "ports_file_dir": dir.path(),
        });
        std::fs::write(at("nats.conf"), config.to_string()).unwrap();
        let child = spawn(dir.path(), "-1");
        let file = at(&format!("nats-server_{}.ports", child.id()));
        let mut port = None;
        until("nats-server starts", || {
            let ports: Value =
                serde_json::from_str(&std::fs::read_to_string(&file).unwrap_or_default()).unwrap_or_default();
            port = ports["nats"][0].as_str().and_then(|url| url.rsplit(':').next()).map(str::to_owned);
            port.is_some()
        })
        .await;
        let nats = Self { child: Some(child), dir, port: port.unwrap(), seed };
        nats.provision().await;
        nats
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Ours alone; a server that ended by itself is as good.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn start_again(&mut self) {
        self.child = Some(spawn(self.dir.path(), &self.port));
    }

    async fn client(&self) -> async_nats::Client {
        async_nats::ConnectOptions::with_nkey(self.seed.clone())
            .add_root_certificates(self.dir.path().join("ca.pem"))
            .require_tls(true)
            .connect(format!("tls://127.0.0.1:{}", self.port))
            .await
            .unwrap()
    }

    /// Streams and consumers as tier-supervisor makes them, but that what is lost comes again sooner.
    async fn provision(&self) {
        let jetstream = jetstream::new(self.client().await);
        for (name, subject, retention) in [
            ("INBOX", "channel.received.>", RetentionPolicy::WorkQueue),
            ("OUTBOX", "channel.replied.>", RetentionPolicy::WorkQueue),
            ("EVENTS", ">", RetentionPolicy::Limits),
        ] {
            let subjects = match name {
                "EVENTS" => ["turn.>", "approval.>", "channel.sent.>", "channel.ignored.>"].map(str::to_owned).to_vec(),
                _ => vec![subject.to_owned()],
            };
            let config = Config { name: name.to_owned(), subjects, retention, ..Config::default() };
            jetstream.create_stream(config).await.unwrap();
            if name != "EVENTS" {
                let config = pull::Config {
                    durable_name: Some("bridge".to_owned()),
                    ack_policy: AckPolicy::Explicit,
                    ack_wait: Duration::from_secs(12),
                    max_deliver: -1,
                    max_ack_pending: 256,
                    ..pull::Config::default()
                };
                jetstream.create_consumer_on_stream(config, name).await.unwrap();
            }
        }
    }

    async fn stored(&self, stream: &str) -> u64 {
        let jetstream = jetstream::new(self.client().await);
        jetstream.get_stream(stream).await.unwrap().cached_info().state.messages
    }

    /// secret-broker and egress-auditor, as far as a turn needs them.
    async fn acknowledgers(&self) -> tokio::task::JoinHandle<()> {
        let client = self.client().await;
        let mut started = client.subscribe("turn.started.*").await.unwrap();
        client.flush().await.unwrap();
        tokio::spawn(async move {
            while let Some(message) = started.next().await {
                let event: Value = serde_json::from_slice(&message.payload).unwrap();
                for service in ["secret-broker", "egress-auditor"] {
                    let answer = json!({"service": service, "turn": event["turn"]}).to_string();
                    if let Some(reply) = &message.reply {
                        client.publish(reply.clone(), answer.into()).await.unwrap();
                    }
                }
            }
        })
    }
}

fn spawn(dir: &Path, port: &str) -> Child {
    Command::new(program())
        .args(["-a", "127.0.0.1", "-p", port, "-c"])
        .arg(dir.join("nats.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server is on the PATH or named by ASSISTANT_NATS_SERVER_BIN; `tests/run.sh tools` builds it")
}

/// Everything around a process of the bridge.
struct World {
    nats: Nats,
    agent: AgentDouble,
    telegram: Arc<Telegram>,
    squid: SquidDouble,
    dir: tempfile::TempDir,
    acknowledging: tokio::task::JoinHandle<()>,
    _doubles: Tasks,
}

impl Drop for World {
    fn drop(&mut self) {
        self.acknowledging.abort();
    }
}

/// How far a process of the bridge gets.
#[derive(PartialEq)]
enum Far {
    /// It takes messages in and works on none.
    Intake,
    /// All the way.
    Whole,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (telegram, squid, doubles) = stand::doubles(dir.path()).await;
        let nats = Nats::start().await;
        let acknowledging = nats.acknowledgers().await;
        let journal: Journal = Arc::new(Mutex::default());
        let agent = AgentDouble::start(journal).await;
        Self { nats, agent, telegram, squid, dir, acknowledging, _doubles: doubles }
    }

    async fn process(&self, far: Far) -> Context {
        // One agent is enough, and every tier has a gateway of its own.
        let mut config = stand::config(self.dir.path(), self.squid.address, [self.agent.address; 2], 600);
        config["tiers"].as_array_mut().unwrap().truncate(1);
        config["telegram"][0]["tiers"] = json!(["tasks"]);
        let config: BridgeConfig = serde_json::from_value(config).unwrap();
        let bus = Bus::connect(
            "channel-bridge",
            &config::Bus {
                url: format!("tls://127.0.0.1:{}", self.nats.port),
                ca_file: self.nats.dir.path().join("ca.pem"),
                nkey_seed_file: self.nats.dir.path().join("seed"),
                inbox_prefix: "_INBOX_channel-bridge".to_owned(),
            },
        )
        .await
        .unwrap();
        let cx = Context { bus: bus.clone(), ..Context::detached() };
        bus.start(&cx.tasks);
        let mut bridge = ChannelBridge::assemble(config, &cx, Arc::new(bus), patience(), stand::pace()).await.unwrap();
        match far {
            Far::Intake => bridge.start_messengers(&cx),
            Far::Whole => bridge.start(&cx).await.unwrap(),
        }
        cx
    }

    fn ask(&self, method: &str, what: &str, body: Value) -> Value {
        self.telegram.control(method, &format!("/telegram/{what}"), body.to_string().as_bytes()).unwrap()
    }

    fn write(&self, text: &str) {
        self.ask("POST", "message", json!({"user_id": ANNA, "text": text}));
    }

    fn sent(&self) -> Vec<String> {
        let sent = self.ask("GET", "sent/0", Value::Null);
        let sent: Vec<SentMessage> = serde_json::from_value(sent["messages"].clone()).unwrap();
        sent.into_iter().map(|sent| sent.text).collect()
    }

    fn waiting(&self) -> u64 {
        self.ask("GET", "sent/0", Value::Null)["waiting"].as_u64().unwrap()
    }

    /// The control of every count: what comes after has gone all the way, and nothing else came with it.
    async fn answers(&self, text: &str, all: &[&str]) {
        self.write(&format!("say {text}"));
        let last = format!("[tasks] {text}");
        until("the next message is answered", || self.sent().last() == Some(&last)).await;
        assert_eq!(self.sent(), [all, &[last.as_str()]].concat());
    }
}

async fn killed(cx: Context) {
    cx.shutdown.deadline().cancel();
    cx.tasks.finished().await;
    cx.bus.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_goes_all_the_way_and_leaves_nothing_behind() {
    let world = World::start().await;
    let cx = world.process(Far::Whole).await;
    world.write("say one");
    until("it is answered", || world.sent() == ["[tasks] one"]).await;
    world.answers("two", &["[tasks] one"]).await;
    assert_eq!(world.agent.texts(), ["say one", "say two"]);
    for stream in ["INBOX", "OUTBOX"] {
        for _ in 0..200 {
            if world.nats.stored(stream).await == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.nats.stored(stream).await, 0, "{stream}");
    }
    killed(cx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_is_away_delays_and_loses_nothing() {
    let mut world = World::start().await;
    let cx = world.process(Far::Whole).await;
    world.write("say one");
    until("it is answered", || world.sent() == ["[tasks] one"]).await;
    world.nats.stop();
    world.write("say two");
    let waits = || cx.health.problems().iter().any(|(_, problem)| problem.contains("messages wait at Telegram"));
    until("it is told of", waits).await;
    assert_eq!((world.waiting(), world.sent().len()), (1, 1));
    world.nats.start_again();
    until("it is answered", || world.sent() == ["[tasks] one", "[tasks] two"]).await;
    world.answers("three", &["[tasks] one", "[tasks] two"]).await;
    assert_eq!(world.agent.texts(), ["say one", "say two", "say three"]);
    killed(cx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_after_the_commit_is_answered_for_by_the_next() {
    let world = World::start().await;
    let first = world.process(Far::Intake).await;
    // It will not be able to acknowledge.
    until("it asks for messages", || world.ask("GET", "sent/0", Value::Null)["calls"].as_u64() >= Some(2)).await;
    world.ask("POST", "fault", json!({"method": "getUpdates", "status": 502, "garbage": true, "times": 1_000_000}));
    world.write("say one");
    let mut committed = 0;
    for _ in 0..500 {
        committed = world.nats.stored("INBOX").await;
        if committed == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((committed, world.waiting()), (1, 1));
    killed(first).await;
    world.ask("DELETE", "fault", Value::Null);
    // Whether its id was recorded or not: Telegram offers it again, and JetStream knows it.
    drop(std::fs::remove_file(world.dir.path().join("state/seen.json")));
    let second = world.process(Far::Whole).await;
    until("it is answered", || world.sent() == ["[tasks] one"]).await;
    world.answers("two", &["[tasks] one"]).await;
    assert_eq!((world.agent.texts(), world.waiting()), (vec!["say one".to_owned(), "say two".to_owned()], 0));
    killed(second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_in_the_middle_of_a_turn_is_answered_for_once() {
    let world = World::start().await;
    let first = world.process(Far::Whole).await;
    world.write("hang");
    until("it is prompted", || world.agent.texts().len() == 1).await;
    until("it is acknowledged", || world.waiting() == 0).await;
    killed(first).await;
    let second = world.process(Far::Whole).await;
    until("it is prompted again", || world.agent.texts().len() == 2).await;
    assert!(world.agent.texts()[1].contains("delivered a second time after an interruption"));
    world.write("/stop");
    until("both are said", || world.sent().len() == 2).await;
    assert!(world.sent().contains(&"[tasks] Stopping.".to_owned()), "{:?}", world.sent());
    let all = world.sent();
    world.answers("after", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(world.agent.texts().len(), 3);
    killed(second).await;
}
