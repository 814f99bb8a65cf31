//! Rendered files against the programs that read them.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use assistant_proto::config::{Mode, OTLP_PORT, Telemetry};
use tempfile::TempDir;
use tier_supervisor::render::{Outside, collector_yaml, prometheus_yml, secret_value};

use crate::peers::eventually;
use crate::program;

#[test]
fn prometheus_accepts_its_configuration() {
    let Some(prometheus) = program("ASSISTANT_PROMETHEUS_BIN") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prometheus.yml");
    std::fs::write(dir.path().join("alerts.yml"), tier_supervisor::render::ALERTS).unwrap();
    let config = prometheus_yml(Ipv4Addr::new(10, 87, 2, 6));
    for (text, fine) in [(config.clone(), true), (config.replace("honor_labels", "honour_labels"), false)] {
        std::fs::write(&path, text).unwrap();
        let output =
            Command::new(prometheus.with_file_name("promtool")).args(["check", "config"]).arg(&path).output().unwrap();
        assert_eq!(output.status.success(), fine, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The way out of the collector is Squid, with a user and a password of its own. Two of them here, one behind the other:
/// of what leaves by TLS only the CONNECT can be seen, so the second is told to leave without.
#[test]
fn the_collector_goes_out_through_the_proxy_as_its_user() {
    let Some(program) = program("ASSISTANT_OTELCOL_BIN") else { return };
    let net = (rand::random_range(64..255), rand::random());
    let here = |host| Ipv4Addr::new(127, net.0, net.1, host);
    let key = "a1$b2${c3}$$\"#: d4";
    let second = Collector::start(&program, here(7), here(8), "http://otlp.example:4318/base", key);
    let first = Collector::start(&program, here(6), here(7), "https://otlp.example:4318/base", key);
    push(here(6));

    let head = first.asked();
    assert_eq!(head[0], "CONNECT otlp.example:4318 HTTP/1.1");
    // telemetry:e5f6
    let user = "Proxy-Authorization: Basic dGVsZW1ldHJ5OmU1ZjY=".to_owned();
    assert!(head.contains(&user), "{head:?}");
    assert!(!head.iter().any(|line| line.contains("d4")), "the key is not for the proxy: {head:?}");

    let head = second.asked();
    assert_eq!(head[0], "POST http://otlp.example:4318/base/v1/traces HTTP/1.1");
    assert!(head.contains(&user) && head.contains(&format!("X-Api-Key: {key}")), "{head:?}");
}

struct Collector {
    child: Child,
    proxy: TcpListener,
    _dir: TempDir,
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Collector {
    fn start(program: &Path, here: Ipv4Addr, jaeger: Ipv4Addr, endpoint: &str, key: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://telemetry:e5f6@{}", proxy.local_addr().unwrap());
        std::fs::write(at("proxy"), secret_value(&url)).unwrap();
        std::fs::write(at("header"), secret_value(key)).unwrap();
        let outside = Outside {
            endpoint: endpoint.to_owned(),
            proxy_file: at("proxy"),
            headers: vec![("x-api-key".to_owned(), at("header"))],
        };
        std::fs::write(at("collector.yaml"), collector_yaml(here, jaeger, Some(&outside))).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(at("collector.yaml")).env_clear().stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the collector listens", || TcpStream::connect((here, OTLP_PORT)).is_ok());
        Self { child, proxy, _dir: dir }
    }

    /// The head of the first request that its proxy gets, by line.
    fn asked(&self) -> Vec<String> {
        self.proxy.set_nonblocking(true).unwrap();
        let mut accepted = None;
        eventually("the collector asks its proxy", || {
            accepted = self.proxy.accept().ok();
            accepted.is_some()
        });
        let (mut connection, _) = accepted.unwrap();
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let lines = BufReader::new(&connection).lines().map(Result::unwrap);
        let head = lines.take_while(|line| !line.is_empty()).collect();
        connection.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
        head
    }
}

/// One span, over the stack's own telemetry.
fn push(collector: Ipv4Addr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let config =
        Telemetry { otlp_endpoint: Some(format!("http://{collector}:{OTLP_PORT}")), log_filter: "info".to_owned() };
    let guard = runtime.block_on(async { service_kit::telemetry::start("test", Mode::Drill, &config) }).unwrap();
    tracing::info_span!("one").in_scope(|| {});
    guard.finish();
}
