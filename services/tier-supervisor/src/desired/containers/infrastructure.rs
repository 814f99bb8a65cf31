//! Third-party parts that belong to no tier: NATS, Jaeger, the collector, Squid.

use assistant_proto::config::{JAEGER_PORT, OTLP_PORT};

use super::super::{ASSISTANT_GID, ContainerSpec, DesiredError, Ready, Role, SQUID_LOG_DIR, VolumeSpec};
use super::{DATA, ETC, Parts, limits, plain};
use crate::addresses::{BUS, EGRESS, HOST_COLLECTOR, HOST_JAEGER, HOST_NATS, HOST_SQUID, TELEMETRY, TRANSIT};
use crate::render;

const UID_SQUID: u32 = 8704;
const UID_NATS: u32 = 8705;
const UID_JAEGER: u32 = 8706;
const UID_COLLECTOR: u32 = 8707;

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
    parts.public(&mut spec, "otel-collector.yaml", render::collector_yaml(address, jaeger));
    parts.resolve(&mut spec, None);
    Ok((spec, Vec::new()))
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
