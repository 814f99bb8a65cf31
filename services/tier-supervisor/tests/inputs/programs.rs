//! Rendered files against the programs that read them. `ASSISTANT_ZEROCLAW_BIN`, `ASSISTANT_NATS_SERVER_BIN`,
//! `ASSISTANT_SQUID_BIN` and `ASSISTANT_OTELCOL_BIN` name those. One that is named must work; where one is not named, its
//! test says SKIPPED, which `tests/run.sh` takes for a failure: it names all of them but Squid, which runs for real in its
//! `system` stage.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Message, Subscriber};
use futures::StreamExt;
use serde_json::Value;
use tier_supervisor::desired::{ContainerSpec, Content, Desired};
use tier_supervisor::prepare::Inputs;
use tokio::sync::mpsc;

use crate::rendered::file;
use crate::stack::{Stack, write};

#[allow(clippy::disallowed_methods, reason = "which programs are at hand is the environment's to say")]
pub(crate) fn program(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(format!("SKIPPED: {variable} is not set\n").as_bytes()).unwrap();
    }
    found
}

/// Writes a container's /etc/assistant into a directory.
pub(crate) fn unpack(spec: &ContainerSpec, to: &Path) {
    for file in &spec.files {
        let Ok(inside) =
            file.path.strip_prefix(file.path.ancestors().find(|path| path.ends_with("etc")).unwrap_or(Path::new("/")))
        else {
            continue;
        };
        if let Content::Inline(bytes) = &file.content {
            write(&to.join(inside), std::str::from_utf8(bytes).unwrap(), 0o644);
        }
    }
}

#[test]
fn every_key_of_zeroclaw_is_in_its_schema() {
    let Some(zeroclaw) = program("ASSISTANT_ZEROCLAW_BIN") else { return };
    let home = tempfile::tempdir().unwrap();
    let output =
        Command::new(zeroclaw).args(["config", "schema"]).env_clear().env("HOME", home.path()).output().unwrap();
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    for stack in [
        Stack::drill(),
        Stack::with_tiers("tiers: [{name: free, port: 3001, workspace_unrestricted: true, commands: [ls]}]"),
        Stack::with_tiers(
            "tiers: [{name: boxed, port: 3001, runtime: docker, commands: [ls], auto_approve: [calculator]}]",
        ),
    ] {
        let desired = stack.desired();
        let agent = desired.tiers[0].containers.last().unwrap();
        let config: toml::Table = file(&desired, agent, "config.toml").parse().unwrap();
        let config = serde_json::to_value(config).unwrap();
        let mut unknown = Vec::new();
        check(&schema, &schema, &config, "", &mut unknown);
        assert_eq!(unknown, Vec::<String>::new());
        let mut wrong = config.clone();
        wrong["gateway"]["no_such_key"] = 1.into();
        wrong["mcp_bundles"]["hub"]["no_such_key"] = 1.into();
        check(&schema, &schema, &wrong, "", &mut unknown);
        assert_eq!(unknown, [".gateway.no_such_key", ".mcp_bundles.hub.no_such_key"], "the check can fail");
    }
}

/// Collects paths of keys that no alternative of the schema knows.
fn check(root: &Value, schema: &Value, value: &Value, path: &str, unknown: &mut Vec<String>) {
    let alternatives = alternatives(root, schema);
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let path = format!("{path}.{key}");
                let known = alternatives.iter().find_map(|schema| {
                    schema["properties"]
                        .get(key)
                        .or_else(|| schema.get("additionalProperties").filter(|more| more.is_object()))
                });
                match known {
                    Some(schema) => check(root, schema, field, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                for schema in alternatives.iter().filter_map(|schema| schema.get("items")) {
                    check(root, schema, item, &format!("{path}[]"), unknown);
                }
            }
        }
        _ => {}
    }
}

fn alternatives<'v>(root: &'v Value, schema: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![schema];
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix("#/$defs/")) {
        found.extend(alternatives(root, &root["$defs"][name]));
    }
    for combinator in ["anyOf", "oneOf", "allOf"] {
        for inner in schema.get(combinator).and_then(Value::as_array).into_iter().flatten() {
            found.extend(alternatives(root, inner));
        }
    }
    found
}

#[test]
fn the_collector_accepts_its_configuration() {
    let Some(collector) = program("ASSISTANT_OTELCOL_BIN") else { return };
    let dir = tempfile::tempdir().unwrap();
    let desired = Stack::drill().desired();
    let path = dir.path().join("otel-collector.yaml");
    let yaml = file(&desired, "assistant-otel-collector", "otel-collector.yaml");
    for (text, fine) in [(yaml.clone(), true), (yaml.replace("memory_limiter", "memory_limitr"), false)] {
        write(&path, &text, 0o644);
        let output = Command::new(&collector).args(["validate", "--config"]).arg(&path).output().unwrap();
        assert_eq!(output.status.success(), fine, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

pub(crate) struct Server {
    pub(crate) child: std::process::Child,
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    async fn start(program: &Path, desired: &Desired) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spec = desired.container("assistant-nats").unwrap();
        unpack(spec, dir.path());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let here = dir.path().display().to_string();
        let conf = file(desired, "assistant-nats", "nats.conf")
            .replace("10.87.1.5:4222", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:8222", "127.0.0.1:-1")
            .replace("/etc/assistant", &here)
            .replace("/var/lib/assistant", &here);
        let path = dir.path().join("nats.conf");
        write(&path, &conf, 0o644);
        let child =
            Command::new(program).arg("-c").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, port, dir };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the server does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    async fn connect(&self, inputs: &Inputs, user: &str) -> Client {
        self.connect_and_watch(inputs, user).await.0
    }

    /// A client, and a message for each of its publications that the server refuses.
    async fn connect_and_watch(&self, inputs: &Inputs, user: &str) -> (Client, mpsc::Receiver<()>) {
        let ca = self.dir.path().join("ca.pem");
        write(&ca, &inputs.material.pki.internal_ca, 0o644);
        let (refused, violations) = mpsc::channel(64);
        let client = ConnectOptions::with_nkey(inputs.material.tokens.nkey(user).unwrap().seed.expose().to_owned())
            .add_root_certificates(ca)
            .require_tls(true)
            .custom_inbox_prefix(format!("_INBOX_{user}"))
            .event_callback(move |event| {
                let refused = refused.clone();
                async move {
                    if event.to_string().to_lowercase().contains("permissions violation for publish") {
                        refused.send(()).await.ok();
                    }
                }
            })
            .connect(format!("tls://127.0.0.1:{}", self.port))
            .await
            .unwrap();
        (client, violations)
    }
}

/// What [`in_effect`] publishes.
const PROBE: &str = "probe";

/// Waits until the server delivers to a subscription. `flush` does not: it ends when the bytes have left the client, and
/// what another connection publishes may still come before them.
async fn in_effect(publisher: &Client, subject: &'static str, subscription: &mut Subscriber) {
    let heard = async {
        loop {
            publisher.publish(subject, PROBE.into()).await.unwrap();
            publisher.flush().await.unwrap();
            let next = tokio::time::timeout(Duration::from_millis(50), subscription.next());
            if let Ok(message) = next.await {
                return message.unwrap();
            }
        }
    };
    let message = tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap();
    assert_eq!(message.payload, PROBE);
}

/// The next message that is no probe.
async fn heard_next(subscription: &mut Subscriber) -> Message {
    let next = async {
        loop {
            let message = subscription.next().await.unwrap();
            if message.payload != PROBE {
                return message;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), next).await.unwrap()
}

/// Who may say what, against a real server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_keeps_each_service_to_its_subjects() {
    let Some(program) = program("ASSISTANT_NATS_SERVER_BIN") else { return };
    let stack = Stack::drill();
    let inputs = stack.prepare().unwrap();
    let desired = inputs.desired().unwrap();
    let server = Server::start(&program, &desired).await;
    let supervisor = server.connect(&inputs, "tier-supervisor").await;
    let mut heard = supervisor.subscribe(">").await.unwrap();
    in_effect(&supervisor, "marker", &mut heard).await;

    for (user, may, may_not) in [
        (
            "secret-broker",
            // The bridge asks whether a turn is known; nobody else is answered.
            &["egress.denied.tasks", "secret.injected.tasks", "tool.called.tasks", "_INBOX_channel-bridge.x"][..],
            &[
                "turn.started.tasks",
                "channel.replied.tasks",
                "approval.decided.tasks",
                "floor.checked.stack",
                "$JS.API.STREAM.DELETE.EVENTS",
                "_INBOX_tier-supervisor.x",
                "_INBOX_egress-auditor.x",
            ][..],
        ),
        (
            "egress-auditor",
            &[
                "egress.denied.tasks",
                "floor.breached.stack",
                "$JS.ACK.EVENTS.auditor.1.1.1.1.0",
                "$JS.ACK.PERMITTED.auditor.1.1.1.1.0",
            ],
            &[
                "floor.checked.stack",
                "secret.injected.tasks",
                "turn.ended.tasks",
                "egress.permitted.tasks",
                "_INBOX_secret-broker.x",
                "$JS.API.STREAM.DELETE.EVENTS",
                "$JS.API.STREAM.PURGE.PERMITTED",
                "$JS.API.CONSUMER.MSG.NEXT.INBOX.bridge",
                "$JS.ACK.INBOX.bridge.1.1.1.1.0",
            ],
        ),
        (
            "channel-bridge",
            &["turn.started.tasks", "channel.received.tasks", "approval.decided.tasks"],
            &["egress.denied.tasks", "egress.allowed.tasks", "secret.injected.tasks", "tier.changed.tasks"],
        ),
        ("operator", &[], &["egress.denied.tasks", "nothing.else", "approval.decided.tasks", "_INBOX_operator.x"]),
    ] {
        let (client, mut violations) = server.connect_and_watch(&inputs, user).await;
        for subject in may.iter().chain(may_not) {
            client.publish(subject.to_string(), user.into()).await.unwrap();
        }
        client.flush().await.unwrap();
        // The server reads in order: when it has refused the last, it has dealt with all.
        for subject in may_not {
            let refused = tokio::time::timeout(Duration::from_secs(10), violations.recv()).await;
            assert!(refused.is_ok(), "{user} may say one of {may_not:?}, perhaps {subject}");
        }
        // Something only the supervisor may say: what is heard before it is all that came through.
        supervisor.publish("marker", "".into()).await.unwrap();
        let mut through = Vec::new();
        loop {
            let message = tokio::time::timeout(Duration::from_secs(10), heard.next()).await.unwrap().unwrap();
            match message.subject.as_str() {
                "marker" if message.payload == PROBE => {}
                "marker" => break,
                subject => through.push(subject.to_owned()),
            }
        }
        assert_eq!(through, may, "{user}");
    }

    // Nobody hears another's inbox; the operator hears denials.
    let operator = server.connect(&inputs, "operator").await;
    let mut inboxes = operator.subscribe("_INBOX_secret-broker.>").await.unwrap();
    let mut conversations = operator.subscribe("channel.received.>").await.unwrap();
    // The server reads a connection in order: when this one is in effect, the others would be too.
    let mut denials = operator.subscribe("egress.denied.>").await.unwrap();
    in_effect(&supervisor, "egress.denied.tasks", &mut denials).await;
    for subject in ["_INBOX_secret-broker.x", "channel.received.tasks", "egress.denied.tasks"] {
        supervisor.publish(subject, "x".into()).await.unwrap();
    }
    supervisor.flush().await.unwrap();
    assert_eq!(heard_next(&mut denials).await.subject.as_str(), "egress.denied.tasks");
    // The denial came last; had the others been let through, they would be here already.
    assert!(futures::poll!(inboxes.next()).is_pending() || inboxes.next().await.is_none());
    assert!(futures::poll!(conversations.next()).is_pending() || conversations.next().await.is_none());

    // An acknowledger answers the one who asks, and publishes nowhere else because a message asks it to.
    let bridge = server.connect(&inputs, "channel-bridge").await;
    let (broker, mut violations) = server.connect_and_watch(&inputs, "secret-broker").await;
    let mut turns = broker.subscribe("turn.started.*").await.unwrap();
    in_effect(&supervisor, "turn.started.tasks", &mut turns).await;
    let asked = tokio::time::timeout(Duration::from_secs(10), bridge.request("turn.started.tasks", "x".into()));
    let (answer, ()) = tokio::join!(asked, async {
        let message = heard_next(&mut turns).await;
        broker.publish(message.reply.unwrap(), "known".into()).await.unwrap();
    });
    assert_eq!(answer.unwrap().unwrap().payload.as_ref(), b"known");
    bridge.publish_with_reply("turn.started.tasks", "tier.changed.tasks", "x".into()).await.unwrap();
    let message = heard_next(&mut turns).await;
    broker.publish(message.reply.unwrap(), "forged".into()).await.unwrap();
    let refused = tokio::time::timeout(Duration::from_secs(10), violations.recv()).await;
    assert!(refused.is_ok(), "a bridge made the broker speak for the supervisor");

    // JetStream is there, durable, and a consumer's reader can read.
    let jetstream = async_nats::jetstream::new(supervisor.clone());
    let stream = async_nats::jetstream::stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["egress.denied.>".to_owned()],
        ..Default::default()
    };
    let stream = jetstream.create_stream(stream).await.unwrap();
    let consumer = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("auditor".to_owned()),
        ..Default::default()
    };
    stream.create_consumer(consumer).await.unwrap();
    let from_broker = async_nats::jetstream::new(broker.clone());
    from_broker.publish("egress.denied.tasks", "x".into()).await.unwrap().await.unwrap();
    let auditor = async_nats::jetstream::new(server.connect(&inputs, "egress-auditor").await);
    let stream = auditor.get_stream("EVENTS").await.unwrap();
    let consumer: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer("auditor").await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let message = tokio::time::timeout(Duration::from_secs(10), messages.next()).await.unwrap().unwrap().unwrap();
    message.double_ack().await.unwrap();
}
