//! A service of the service kit that says one event of each kind, again and again, until it is told to stop. Each runs as a
//! process of its own, started from this test program by [`Probe::start`].

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use assistant_proto::config::{Bus, Common, Mode, Telemetry};
use assistant_proto::event::{
    ApprovalDecided, ApprovalRequested, ChannelReceived, ChannelSent, EgressAllowed, EgressDenied, EgressPermitted,
    Event, EventId, FloorBreached, FloorChecked, ModelCalled, SecretInjected, TierChanged, ToolCalled, TurnEnded,
};
use assistant_proto::name::TurnId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service_kit::host::{self, Context, Service, ServiceConfig};
use service_kit::task::OnEnd;
use tonic::service::Routes;

/// The services of the stack.
pub(crate) const SERVICES: [&str; 4] = ["tier-supervisor", "secret-broker", "egress-auditor", "channel-bridge"];
/// Whose events they are.
pub(crate) const TIER: &str = "tasks";
/// The tier of what is said last, and how often.
pub(crate) const FAREWELL: (&str, u64) = ("farewell", 7);
/// Reads its events.
pub(crate) const CONSUMER: (&str, &str) = ("EVENTS", "auditor");

const WHICH: &str = "ASSISTANT_SEEN_SERVICE";
const CONFIG: &str = "ASSISTANT_SEEN_CONFIG";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    common: Common,
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}

struct Said<const N: usize>;

impl<const N: usize> Service for Said<N> {
    const NAME: &'static str = SERVICES[N];
    const GRPC_SERVICES: &'static [&'static str] = &[];
    type Config = Config;

    async fn build(_: Config, _: &Context) -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn control(&self) -> Routes {
        Routes::default()
    }

    async fn start(self, cx: &Context) -> anyhow::Result<()> {
        let (bus, draining) = (cx.bus.clone(), cx.shutdown.draining());
        cx.tasks.spawn("said", OnEnd::Critical, async move {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tokio::select! {
                    _ = tick.tick() => say(&bus, Self::NAME),
                    () = draining.cancelled() => break,
                }
            }
            for _ in 0..FAREWELL.1 {
                emit::<TierChanged>(&bus, json!({"tier": FAREWELL.0, "action": "", "reason": "", "changed_at": ""}));
            }
            Ok(())
        });
        let mut runs = 0_u32;
        cx.tasks.spawn_restarting("flaky", move || {
            runs += 1;
            let run = runs;
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert!(run.is_multiple_of(2), "every other run panics");
                anyhow::bail!("and the rest fail")
            }
        });
        if Self::NAME == "egress-auditor" {
            cx.health.report("audit-disk", Err("a problem that is part of the test".to_owned()));
            let (bus, draining) = (cx.bus.clone(), cx.shutdown.draining());
            cx.tasks.spawn_restarting("audit-consumer", move || {
                let (bus, draining) = (bus.clone(), draining.clone());
                async move {
                    tokio::select! {
                        outcome = bus.consume_raw(CONSUMER.0, CONSUMER.1, async |_| Ok(())) => outcome,
                        () = draining.cancelled() => Ok(()),
                    }
                }
            });
        } else {
            cx.health.report("squid", Ok(()));
        }
        Ok(())
    }
}

/// A value for every field that any of the events has.
const FIELDS: &str = r#"{
    "principal": "zeroclaw-tasks", "attachment": "active", "trace_id": "00", "observed_at": "", "channel": "terminal",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "conversation": "c", "sender": "s",
    "text": "t", "received_at": "", "sent_at": "", "bytes": 1, "approval": "a", "action": "x", "expires_at": "",
    "decided_at": "", "ended_at": "", "changed_at": "", "checked_at": "", "host": "serv.example", "port": 443,
    "protocol": "https", "detail": "d", "fix": "f", "method": "GET", "path": "/", "rule": "r", "secret": "key",
    "status": 200, "bytes_out": 1, "bytes_in": 1, "model": "assistant", "api_base": "", "confidential": null,
    "server": "marvin", "tool": "get", "passed": 1, "failed": 0, "check": "c", "count": 1
}"#;

fn say(bus: &service_kit::bus::Bus, service: &str) {
    // As channel-bridge and secret-broker name theirs.
    match service {
        "channel-bridge" => drop(tracing::info_span!("turn", otel.kind = "server", tier = TIER).entered()),
        "secret-broker" => {
            drop(tracing::info_span!("broker.request", otel.kind = "server", otel.status_code = "ERROR").entered());
        }
        _ => {}
    }
    let mut common: Value = serde_json::from_str(FIELDS).unwrap_or_else(|error| panic!("{error}"));
    common["turn"] = json!(TurnId::generate());
    common["tier"] = json!(TIER);
    common["took_millis"] = json!(rand::random_range(1..2000_u64));
    let with = |more: Value| {
        let mut all = common.clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        all
    };
    for outcome in ["end_turn", "failed"] {
        emit::<TurnEnded>(bus, with(json!({"outcome": outcome})));
    }
    for status in [200, 502] {
        emit::<ModelCalled>(bus, with(json!({"status": status})));
    }
    for succeeded in [true, false] {
        emit::<ToolCalled>(bus, with(json!({"succeeded": succeeded})));
    }
    emit::<EgressDenied>(bus, with(json!({"layer": "broker", "reason": "host-not-allowed", "count": 3})));
    emit::<EgressDenied>(bus, with(json!({"tier": "stack", "layer": "packet", "reason": "direct-address"})));
    emit::<EgressPermitted>(bus, with(json!({"layer": "broker"})));
    emit::<EgressAllowed>(bus, with(json!({"layer": "squid"})));
    emit::<SecretInjected>(bus, with(json!({})));
    emit::<ChannelReceived>(bus, with(json!({})));
    emit::<ChannelSent>(bus, with(json!({})));
    emit::<ApprovalRequested>(bus, with(json!({})));
    emit::<ApprovalDecided>(bus, with(json!({"outcome": "approved"})));
    emit::<FloorChecked>(bus, with(json!({})));
    emit::<FloorBreached>(bus, with(json!({})));
}

fn emit<E: Event>(bus: &service_kit::bus::Bus, value: Value) {
    let event: E = serde_json::from_value(value).unwrap_or_else(|error| panic!("{}: {error}", E::TYPE));
    bus.emit(&event, EventId::unique(), None);
}

/// A running service.
pub(crate) struct Probe {
    child: Child,
    log: PathBuf,
}

impl Drop for Probe {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Probe {
    pub(crate) fn start(service: &'static str, dir: &Path, bus: &Bus, otlp_endpoint: &str) -> Self {
        let config = Config {
            common: Common {
                mode: Mode::Drill,
                bus: bus.clone(),
                telemetry: Telemetry { otlp_endpoint: Some(otlp_endpoint.to_owned()), log_filter: "info".to_owned() },
                control_socket: dir.join(format!("{service}.sock")),
            },
        };
        let (path, log) = (dir.join(format!("{service}.json")), dir.join(format!("{service}.log")));
        std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "probe::a_service_of_its_own", "--ignored", "--nocapture"])
            .env(WHICH, service)
            .env(CONFIG, &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) fn stop(&mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

#[test]
#[ignore = "it is no test: the other one starts it as a process of its own"]
fn a_service_of_its_own() {
    #[allow(clippy::disallowed_methods, reason = "an ignored test takes no other arguments")]
    let (Ok(service), Ok(config)) = (std::env::var(WHICH), std::env::var(CONFIG)) else { return };
    let config = Path::new(&config);
    let code = match SERVICES.iter().position(|known| *known == service) {
        Some(0) => host::run::<Said<0>>(config),
        Some(1) => host::run::<Said<1>>(config),
        Some(2) => host::run::<Said<2>>(config),
        Some(3) => host::run::<Said<3>>(config),
        _ => panic!("no such service: {service}"),
    };
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
}
