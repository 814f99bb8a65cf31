//! One auditor on loopback, with a directory of its own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use assistant_proto::config::{
    AuditorConfig, Bus, Common, Explain, ExplainedTier, FloorEntry, Mode, Retention, Rule, Telemetry, Zone,
};
use egress_auditor::EgressAuditor;
use egress_auditor::control::Control;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use serde_json::Value;
use service_kit::host::{Context, Service};

pub(crate) const AGENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 20);
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
pub(crate) const SQUID: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);
pub(crate) const BROKER: Ipv4Addr = Ipv4Addr::new(10, 87, 16, 2);
const DEADLINE: Duration = Duration::from_secs(20);

/// What survives a restart.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) jaeger: SocketAddr,
}

impl Place {
    pub(crate) fn new() -> Self {
        spans();
        let directory = tempfile::tempdir().unwrap();
        for name in ["log", "store"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        // Nobody listens on port 1.
        Self { directory, jaeger: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path("store/audit.sqlite")
    }

    pub(crate) fn log(&self, lines: &[String]) {
        let path = self.path("log/access.log");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut text = String::new();
        for line in lines {
            writeln!(text, "{line}").unwrap();
        }
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn config(&self) -> AuditorConfig {
        AuditorConfig {
            common: Common {
                mode: Mode::Drill,
                bus: Bus {
                    url: "tls://127.0.0.1:1".to_owned(),
                    ca_file: self.path("ca.pem"),
                    nkey_seed_file: self.path("nkey"),
                    inbox_prefix: "_INBOX_egress-auditor".to_owned(),
                },
                telemetry: Telemetry { otlp_endpoint: None, log_filter: "info".to_owned() },
                control_socket: self.path("api.sock"),
            },
            zones: vec![Zone {
                tier: "tasks".parse().unwrap(),
                listen: Ipv4Addr::LOCALHOST,
                names: [("models".to_owned(), BROKER), ("mcp".to_owned(), BROKER)].into(),
                clients: [(AGENT, "zeroclaw-tasks".parse().unwrap())].into(),
            }],
            squid_feed: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            squid_address: SQUID,
            squid_log_dir: self.path("log"),
            store_dir: self.path("store"),
            jaeger_url: format!("http://{}", self.jaeger),
            retention: Retention::default(),
            explain: explain(),
        }
    }

    pub(crate) async fn start(&self) -> Stage {
        let cx = Context::detached();
        let auditor = EgressAuditor::assemble(self.config(), &cx, 0).await.unwrap();
        let (udp, tcp) = auditor.dns_addresses().unwrap()[0];
        let feed = auditor.feed_address().unwrap();
        let control = auditor.control_plane();
        auditor.start(&cx).await.unwrap();
        Stage { cx, udp, tcp, feed, control }
    }
}

/// One tier, whose agent may read one host.
fn explain() -> Explain {
    let agent: assistant_proto::name::PrincipalName = "zeroclaw-tasks".parse().unwrap();
    let rule = Rule {
        id: "egress-1".to_owned(),
        source: "tiers.yaml:9".to_owned(),
        principals: vec![agent.clone()],
        hosts: vec!["docs.example.org".to_owned()],
        methods: Vec::new(),
        paths: Vec::new(),
        read_only: false,
        inject: None,
    };
    Explain {
        tiers: vec![ExplainedTier {
            name: "tasks".parse().unwrap(),
            source: "tiers.yaml:2".to_owned(),
            background: false,
            principals: vec![agent],
            rules: vec![rule],
        }],
        floor_file: "squid/allowlist.txt".to_owned(),
        floor: vec![FloorEntry { host: "docs.example.org".to_owned(), line: 3 }],
        service_hosts: vec!["api.telegram.org".to_owned()],
    }
}

/// A running auditor.
pub(crate) struct Stage {
    pub(crate) cx: Context,
    pub(crate) udp: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) feed: SocketAddr,
    pub(crate) control: Control,
}

impl Stage {
    /// Events published so far on subjects that begin so.
    pub(crate) fn published(&self, prefix: &str) -> Vec<Value> {
        self.cx
            .bus
            .emitted()
            .into_iter()
            .filter(|(subject, _)| subject.starts_with(prefix))
            .map(|(_, body)| body)
            .collect()
    }

    /// Waits until `enough` of the published denials.
    pub(crate) async fn denials(&self, what: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        until(what, || {
            let events = self.published("egress.denied.");
            if enough(&events) { Ok(events) } else { Err(format!("{events:#?}")) }
        })
        .await
    }

    /// Ends as a service ends: drain, then wait.
    pub(crate) async fn stop(self) {
        self.cx.shutdown.draining().cancel();
        drop(self.control);
        tokio::time::timeout(DEADLINE, self.cx.tasks.finished()).await.expect("the service drains");
    }

    /// Ends as a killed process ends: nothing is flushed.
    pub(crate) async fn kill(self) {
        self.cx.shutdown.deadline().cancel();
        drop(self.control);
        tokio::time::timeout(DEADLINE, self.cx.tasks.finished()).await.expect("tasks are dropped");
    }
}

/// Waits for a condition; on timeout says what was seen last.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(tokio::time::Instant::now() < end, "never happened: {what}; seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn total(events: &[Value]) -> u64 {
    events.iter().map(|event| event["count"].as_u64().unwrap()).sum()
}

pub(crate) fn texts<'a>(events: &'a [Value], field: &str) -> Vec<&'a str> {
    events.iter().map(|event| event[field].as_str().unwrap_or("(none)")).collect()
}

/// A TCP connection from a chosen loopback address.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Every span drawn in this process.
#[derive(Debug, Clone)]
struct Kept;

static SPANS: Mutex<Vec<SpanData>> = Mutex::new(Vec::new());

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        SPANS.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// The spans of one trace so far.
pub(crate) fn spans_of(trace: &str) -> Vec<SpanData> {
    SPANS.lock().unwrap().iter().filter(|span| span.span_context.trace_id().to_string() == trace).cloned().collect()
}

fn spans() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let provider = SdkTracerProvider::builder().with_simple_exporter(Kept).build();
        opentelemetry::global::set_tracer_provider(provider);
    });
}
