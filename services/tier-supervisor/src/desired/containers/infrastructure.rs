//! Third-party parts that belong to no tier: NATS, Jaeger, the collector, Prometheus, Grafana, Squid.

use assistant_proto::config::{GRAFANA_PORT, JAEGER_PORT, OTLP_PORT, PROMETHEUS_PORT};

use super::super::outward::export_endpoint;
use super::super::{ASSISTANT_GID, ContainerSpec, DesiredError, Ready, Role, SQUID_LOG_DIR, VolumeSpec};
use super::models::squid_url;
use super::{DATA, ETC, Parts, limits, plain};
use crate::addresses::{
    BUS, EGRESS, HOST_COLLECTOR, HOST_GRAFANA, HOST_JAEGER, HOST_NATS, HOST_PROMETHEUS, HOST_SQUID, TELEMETRY, TRANSIT,
};
use crate::render;
use crate::tokens::SQUID_TELEMETRY_USER;

const UID_SQUID: u32 = 8704;
const UID_NATS: u32 = 8705;
const UID_JAEGER: u32 = 8706;
const UID_COLLECTOR: u32 = 8707;
const UID_PROMETHEUS: u32 = 8708;
const UID_GRAFANA: u32 = 8709;

/// The loopback port at which a browser sees Grafana, as `grafana.localhost`.
pub(in crate::desired) const GRAFANA_GATE: u16 = 3030;

type Made = Result<(ContainerSpec, Vec<VolumeSpec>), DesiredError>;

pub(super) fn nats(parts: &Parts<'_>) -> Made {
    let image = parts.image("nats")?;
    let mut spec = parts.container("assistant-nats", Role::Nats, image, UID_NATS, ASSISTANT_GID, limits(512, 128, 20));
    let address = parts.attach(&mut spec, BUS, HOST_NATS)?;
    spec.entrypoint = Some(vec!["/usr/local/bin/nats-server".to_owned()]);
    spec.command = vec!["-c".to_owned(), format!("{ETC}/nats.conf")];
    spec.env = vec![plain("GOMEMLIMIT", "400MiB")];
    // A server whose disk was full takes connections and stores nothing until it is started anew. (2.15 says so here; the
    // question whether JetStream is enabled it answers with yes.)
    spec.ready = Ready::HttpInNetns { port: render::NATS_MONITOR_PORT, path: "/healthz".to_owned() };
    parts.public(&mut spec, "nats.conf", render::nats_conf(parts, address)?);
    parts.public(&mut spec, "server.pem", parts.material.pki.nats.certificate.clone());
    parts.private(&mut spec, "server.key", parts.material.pki.nats.key.expose().to_owned());
    let volume = parts.data(&mut spec, "nats", DATA);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![volume]))
}

pub(super) fn jaeger(parts: &Parts<'_>) -> Made {
    let image = parts.image("jaeger")?;
    let mut spec =
        parts.container("assistant-jaeger", Role::Jaeger, image, UID_JAEGER, ASSISTANT_GID, limits(768, 128, 10));
    let address = parts.attach(&mut spec, TELEMETRY, HOST_JAEGER)?;
    spec.entrypoint = Some(vec!["/usr/local/bin/jaeger".to_owned()]);
    spec.command = render::jaeger_arguments(address);
    spec.env = vec![plain("GOMEMLIMIT", "600MiB"), plain("SPAN_STORAGE_TYPE", "memory")];
    spec.ready = Ready::TcpFromVm { address, port: JAEGER_PORT };
    // Its /etc/assistant holds nothing; the directory is mounted like everyone's and must exist.
    parts.public(&mut spec, "README", "Jaeger is configured by arguments.\n".to_owned());
    parts.resolve(&mut spec, None);
    Ok((spec, Vec::new()))
}

pub(super) fn collector(parts: &Parts<'_>) -> Made {
    let image = parts.image("otel-collector")?;
    let name = "assistant-otel-collector";
    let mut spec = parts.container(name, Role::Collector, image, UID_COLLECTOR, ASSISTANT_GID, limits(256, 128, 10));
    let address = parts.attach(&mut spec, TELEMETRY, HOST_COLLECTOR)?;
    let jaeger = parts.address(TELEMETRY, HOST_JAEGER)?;
    spec.entrypoint = Some(vec!["/usr/local/bin/otel-collector".to_owned()]);
    spec.command = vec!["--config".to_owned(), format!("{ETC}/otel-collector.yaml")];
    spec.env = vec![plain("GOMEMLIMIT", "180MiB")];
    spec.ready = Ready::TcpFromVm { address, port: OTLP_PORT };
    let outside = outside(parts, &mut spec)?;
    parts.public(&mut spec, "otel-collector.yaml", render::collector_yaml(address, jaeger, outside.as_ref()));
    parts.resolve(&mut spec, None);
    Ok((spec, Vec::new()))
}

/// The owner's collector, where there is one: then ours is on `transit`, and reaches it through Squid alone.
fn outside(parts: &Parts<'_>, spec: &mut ContainerSpec) -> Result<Option<render::Outside>, DesiredError> {
    const PROXY: &str = "keys/outside-proxy";
    let Some(endpoint) = parts.settings.otlp_export.clone().filter(|_| export_endpoint(parts).is_some()) else {
        return Ok(None);
    };
    parts.attach(spec, TRANSIT, HOST_COLLECTOR)?;
    let proxy = render::secret_value(&squid_url(parts, SQUID_TELEMETRY_USER)?);
    parts.private(spec, PROXY, proxy);
    if !parts.material.upstream_roots.is_empty() {
        spec.env.push(plain("SSL_CERT_FILE", format!("{ETC}/roots/0.pem")));
        parts.roots(spec);
    }
    Ok(Some(render::Outside { endpoint, proxy_file: format!("{ETC}/{PROXY}"), headers: Vec::new() }))
}

/// Metrics and dashboards, as far as their images are on this machine: no wall needs them, and Grafana can only be pulled.
pub(super) fn dashboards(parts: &Parts<'_>) -> Result<Vec<(ContainerSpec, Vec<VolumeSpec>)>, DesiredError> {
    let mut made = Vec::new();
    if parts.images.reference("prometheus").is_some() {
        made.push(prometheus(parts)?);
    }
    if parts.images.reference("grafana").is_some() {
        made.push(grafana(parts)?);
    }
    Ok(made)
}

fn prometheus(parts: &Parts<'_>) -> Made {
    let (name, image) = ("assistant-prometheus", parts.image("prometheus")?);
    let limits = limits(512, 128, 10);
    let mut spec = parts.container(name, Role::Prometheus, image, UID_PROMETHEUS, ASSISTANT_GID, limits);
    let address = parts.attach(&mut spec, TELEMETRY, HOST_PROMETHEUS)?;
    spec.entrypoint = Some(vec!["/usr/bin/prometheus".to_owned()]);
    spec.command = render::prometheus_arguments(address, ETC, DATA);
    spec.env = vec![plain("GOMEMLIMIT", "400MiB")];
    spec.ready = Ready::TcpInNetns { port: PROMETHEUS_PORT };
    let collector = parts.address(TELEMETRY, HOST_COLLECTOR)?;
    parts.public(&mut spec, "prometheus.yml", render::prometheus_yml(collector));
    parts.public(&mut spec, "alerts.yml", render::ALERTS.to_owned());
    let volume = parts.data(&mut spec, "prometheus", DATA);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![volume]))
}

fn grafana(parts: &Parts<'_>) -> Made {
    let (name, image) = ("assistant-grafana", parts.image("grafana")?);
    let mut spec = parts.container(name, Role::Grafana, image, UID_GRAFANA, ASSISTANT_GID, limits(512, 128, 10));
    let address = parts.attach(&mut spec, TELEMETRY, HOST_GRAFANA)?;
    let grafana = render::Grafana {
        address,
        prometheus: parts.address(TELEMETRY, HOST_PROMETHEUS)?,
        jaeger: parts.address(TELEMETRY, HOST_JAEGER)?,
        site: ("grafana.localhost".to_owned(), GRAFANA_GATE),
        etc: ETC.to_owned(),
        data: DATA.to_owned(),
    };
    spec.entrypoint = Some(vec!["/usr/share/grafana/bin/grafana".to_owned()]);
    spec.command =
        vec!["server".to_owned(), "--homepath=/usr/share/grafana".to_owned(), format!("--config={ETC}/grafana.ini")];
    // The image sets paths of its own in its environment, which would count for more than the file.
    for (variable, path) in [
        ("GF_PATHS_CONFIG", format!("{ETC}/grafana.ini")),
        ("GF_PATHS_DATA", format!("{DATA}/grafana")),
        ("GF_PATHS_LOGS", format!("{DATA}/grafana/log")),
        ("GF_PATHS_PLUGINS", format!("{DATA}/grafana/plugins")),
        ("GF_PATHS_PROVISIONING", format!("{ETC}/provisioning")),
    ] {
        spec.env.push(plain(variable, path));
    }
    spec.env.push(plain("GOMEMLIMIT", "400MiB"));
    spec.ready = Ready::TcpInNetns { port: GRAFANA_PORT };
    for (path, text) in grafana.files() {
        parts.public(&mut spec, &path, text);
    }
    let volume = parts.data(&mut spec, "grafana", DATA);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![volume]))
}

pub(super) fn squid(parts: &Parts<'_>) -> Made {
    let image = parts.image("squid")?;
    let mut spec =
        parts.container("assistant-squid", Role::Squid, image, UID_SQUID, ASSISTANT_GID, limits(384, 64, 20));
    parts.attach(&mut spec, EGRESS, HOST_SQUID)?;
    let address = parts.attach(&mut spec, TRANSIT, HOST_SQUID)?;
    spec.entrypoint = Some(vec!["/usr/sbin/squid".to_owned()]);
    // -N: process 1 and no fork, so that its end is the container's end. -d 1: what it says at start goes to the log.
    spec.command = ["-N", "-d", "1", "-f"].map(ToOwned::to_owned).to_vec();
    spec.command.push(format!("{ETC}/squid.conf"));
    // Said only when peeking is really on: without it SNI checks are silently off (facts of the tested configuration).
    spec.ready = Ready::LogLine { needle: "Accepting SSL bumped".to_owned() };
    for path in ["/run/squid", "/var/spool/squid"] {
        spec.tmpfs.push((path.to_owned(), "size=8m,mode=1777".to_owned()));
    }
    let squid = render::squid(parts, address)?;
    parts.public(&mut spec, "squid.conf", squid.conf);
    for (name, list) in squid.lists {
        parts.public(&mut spec, &format!("lists/{name}.txt"), list);
    }
    parts.private(&mut spec, "users", squid.users);
    parts.private(&mut spec, "peek.pem", parts.material.pki.squid.certificate.clone());
    parts.private(&mut spec, "peek.key", parts.material.pki.squid.key.expose().to_owned());
    let mut log = parts.data(&mut spec, "squid-log", SQUID_LOG_DIR);
    // The auditor reads it as group `assistant`.
    log.mode = 0o750;
    parts.resolve(&mut spec, None);
    Ok((spec, vec![log]))
}
