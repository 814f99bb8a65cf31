//! The real programs, each on a loopback address of its own so that they can have the ports they have in the stack.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assistant_proto::config::{Bus, JAEGER_PORT, METRICS_PORT, OTLP_PORT, PROMETHEUS_PORT};
use serde_json::Value;
use tempfile::TempDir;
use tier_supervisor::render::{ALERTS, collector_yaml, jaeger_arguments, prometheus_arguments, prometheus_yml};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

#[allow(clippy::disallowed_methods, reason = "this is the wait for a condition, with a deadline")]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A program that ends with the test.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn run(program: &Path, arguments: &[String], log: &Path) -> Running {
    let log = std::fs::File::create(log).unwrap();
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("SPAN_STORAGE_TYPE", "memory")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Running(child)
}

/// Addresses for one run of the test, and a directory for everything it writes.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    third: (u8, u8),
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), third: (rand::random_range(64..255), rand::random()) }
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.third.0, self.third.1, host)
    }

    pub(crate) fn collector(&self) -> Ipv4Addr {
        self.address(6)
    }

    pub(crate) fn jaeger(&self) -> Ipv4Addr {
        self.address(7)
    }

    pub(crate) fn prometheus(&self) -> Ipv4Addr {
        self.address(9)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    pub(crate) fn otlp(&self) -> String {
        format!("http://{}:{OTLP_PORT}", self.collector())
    }

    pub(crate) fn start_jaeger(&self, program: &Path) -> Running {
        let here = self.jaeger().to_string();
        // Also the listeners that nobody uses: in a container its loopback is its own.
        let arguments: Vec<String> =
            jaeger_arguments(self.jaeger()).iter().map(|argument| argument.replace("127.0.0.1", &here)).collect();
        let running = run(program, &arguments, &self.log("jaeger"));
        eventually("Jaeger answers", || get(self.jaeger(), JAEGER_PORT, "/api/services").is_some());
        running
    }

    pub(crate) fn start_collector(&self, program: &Path) -> Running {
        let path = self.dir.path().join("otel-collector.yaml");
        std::fs::write(&path, collector_yaml(self.collector(), self.jaeger(), None)).unwrap();
        let arguments = ["--config".to_owned(), path.display().to_string()];
        let running = run(program, &arguments, &self.log("collector"));
        eventually("the collector answers", || TcpStream::connect((self.collector(), METRICS_PORT)).is_ok());
        running
    }

    pub(crate) fn start_prometheus(&self, program: &Path) -> Running {
        let etc = self.dir.path().join("prometheus");
        std::fs::create_dir(&etc).unwrap();
        // In a hurry; the services are not.
        let config = prometheus_yml(self.collector()).replace("5s", "1s").replace("10s", "1s");
        std::fs::write(etc.join("prometheus.yml"), config).unwrap();
        std::fs::write(etc.join("alerts.yml"), ALERTS).unwrap();
        let arguments = prometheus_arguments(self.prometheus(), &etc.display().to_string(), &etc.display().to_string());
        let running = run(program, &arguments, &self.log("prometheus"));
        eventually("Prometheus answers", || get(self.prometheus(), PROMETHEUS_PORT, "/-/ready").is_some());
        running
    }

    /// Answers of Prometheus's API.
    pub(crate) fn ask_prometheus(&self, path: &str, query: &[(&str, &str)]) -> Value {
        ask(self.prometheus(), PROMETHEUS_PORT, path, query)
    }

    /// Answers of Jaeger's API.
    pub(crate) fn ask_jaeger(&self, path: &str, query: &[(&str, &str)]) -> Value {
        ask(self.jaeger(), JAEGER_PORT, path, query)
    }

    /// A NATS server with TLS and one user, and how services reach it.
    pub(crate) fn start_nats(&self, program: &Path) -> (Running, Bus) {
        let dir = self.dir.path();
        let at = |name: &str| dir.join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(at("nats.pem"), certificate.pem()).unwrap();
        std::fs::write(at("nats.key"), key.serialize_pem()).unwrap();
        let user = nkeys::KeyPair::new_user();
        std::fs::write(at("user.nk"), user.seed().unwrap()).unwrap();
        std::fs::set_permissions(at("user.nk"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let here = dir.display();
        let conf = format!(
            "host: 127.0.0.1\nport: -1\nports_file_dir: \"{here}\"\njetstream {{ store_dir: \"{here}/store\" }}\n\
             tls {{ cert_file: \"{here}/nats.pem\", key_file: \"{here}/nats.key\" }}\n\
             authorization {{ users: [ {{ nkey: {} }} ] }}\n",
            user.public_key()
        );
        std::fs::write(at("nats.conf"), conf).unwrap();
        let arguments = ["-c".to_owned(), at("nats.conf").display().to_string()];
        let running = run(program, &arguments, &self.log("nats"));
        let ports = at(&format!("{}_{}.ports", program.file_name().unwrap().display(), running.0.id()));
        let mut port = None;
        eventually("nats-server listens", || {
            let text = std::fs::read_to_string(&ports).unwrap_or_default();
            let known: Value = serde_json::from_str(&text).unwrap_or_default();
            port = known["nats"][0].as_str().and_then(|url| url.rsplit(':').next()?.parse::<u16>().ok());
            port.is_some()
        });
        let bus = Bus {
            url: format!("tls://127.0.0.1:{}", port.unwrap()),
            ca_file: at("nats.pem"),
            nkey_seed_file: at("user.nk"),
            inbox_prefix: "_INBOX".to_owned(),
        };
        (running, bus)
    }
}

fn ask(address: Ipv4Addr, port: u16, path: &str, query: &[(&str, &str)]) -> Value {
    let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let path = format!("{path}?{}", query.join("&"));
    let body = get(address, port, &path).unwrap_or_else(|| panic!("{address}:{port}{path} does not answer"));
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// The body of an answer with status 200. HTTP/1.0: it ends with the connection.
fn get(address: Ipv4Addr, port: u16, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect((address, port)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}:{port}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if !head.lines().next()?.contains(" 200 ") {
        return None;
    }
    Some(body.to_owned())
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
