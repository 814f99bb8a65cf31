//! Small desired states for tests of this crate.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use assistant_proto::config::{Confidentiality, Mode};
use assistant_proto::name::TierName;

use crate::desired::{
    Attachment, Confinement, ContainerSpec, Content, Desired, Limits, LogCap, Mount, MountSource, NetworkKind,
    NetworkSpec, Ready, RenderedFile, Role, TierSummary, VolumeSpec,
};

pub(crate) fn tier() -> TierName {
    "tasks".parse().unwrap()
}

pub(crate) fn network(name: &str, number: u8, kind: NetworkKind, tier: Option<TierName>) -> NetworkSpec {
    NetworkSpec {
        name: name.to_owned(),
        bridge: format!("as-{number}"),
        subnet: format!("10.87.{number}.0/24").parse().unwrap(),
        gateway: Ipv4Addr::new(10, 87, number, 1),
        kind,
        tier,
    }
}

pub(crate) fn volume(name: &str, tier: Option<TierName>) -> VolumeSpec {
    VolumeSpec { name: name.to_owned(), tier, uid: 8705, gid: 8700, mode: 0o700, directories: Vec::new() }
}

pub(crate) fn container(
    name: &str,
    role: Role,
    tier: Option<TierName>,
    image: &str,
    networks: &[(&str, u8, u8)],
    volume: Option<&str>,
) -> ContainerSpec {
    let volume = volume.map(|volume| Mount {
        source: MountSource::Volume(volume.to_owned()),
        target: "/var/lib/assistant".to_owned(),
        read_only: false,
    });
    ContainerSpec {
        name: name.to_owned(),
        role,
        tier,
        image: image.to_owned(),
        entrypoint: None,
        command: Vec::new(),
        uid: 8705,
        gid: 8700,
        env: Vec::new(),
        mounts: volume.into_iter().collect(),
        tmpfs: Vec::new(),
        networks: networks
            .iter()
            .map(|(network, number, host)| Attachment {
                network: (*network).to_owned(),
                address: Ipv4Addr::new(10, 87, *number, *host),
            })
            .collect(),
        dns: None,
        sysctls: Vec::new(),
        cap_add: Vec::new(),
        confinement: Confinement::Standard,
        limits: Limits { memory_bytes: 64 << 20, pids: 64, nano_cpus: 1_000_000_000 },
        log: LogCap { max_size_bytes: 10 << 20, max_files: 3 },
        ready: Ready::Running,
        files: vec![RenderedFile {
            path: format!("/var/lib/assistant/drill/render/{name}/etc/config.json").into(),
            uid: 0,
            gid: 0,
            mode: 0o644,
            content: Content::from(format!("{{\"image\":\"{image}\"}}")),
            secret: false,
        }],
        working_dir: None,
        inert_default_route: false,
        control: None,
        pages: None,
    }
}

/// A bus, Squid, the broker and one tier's agent.
pub(crate) fn desired() -> Desired {
    Desired {
        mode: Mode::Drill,
        networks: vec![
            network("assistant-egress", 0, NetworkKind::Egress, None),
            network("assistant-bus", 1, NetworkKind::Internal, None),
            network("assistant-transit", 3, NetworkKind::Isolated, None),
            network("assistant-tier-tasks", 16, NetworkKind::Isolated, Some(tier())),
        ],
        volumes: vec![volume("assistant-drill-nats", None), volume("assistant-drill-zeroclaw-tasks", Some(tier()))],
        containers: vec![
            container(
                "assistant-nats",
                Role::Nats,
                None,
                "nats:1",
                &[("assistant-bus", 1, 5)],
                Some("assistant-drill-nats"),
            ),
            container(
                "assistant-squid",
                Role::Squid,
                None,
                "squid:1",
                &[("assistant-egress", 0, 8), ("assistant-transit", 3, 8)],
                None,
            ),
            container(
                "assistant-secret-broker",
                Role::SecretBroker,
                None,
                "broker:1",
                &[("assistant-bus", 1, 2), ("assistant-transit", 3, 2), ("assistant-tier-tasks", 16, 2)],
                None,
            ),
            container(
                "zeroclaw-tasks",
                Role::Agent,
                Some(tier()),
                "zeroclaw:1",
                &[("assistant-tier-tasks", 16, 20)],
                Some("assistant-drill-zeroclaw-tasks"),
            ),
        ],
        flows: Vec::new(),
        gates: Vec::new(),
        tiers: vec![TierSummary {
            name: tier(),
            identity: None,
            model: "assistant".to_owned(),
            confidential: Confidentiality::None,
            containers: vec!["zeroclaw-tasks".to_owned()],
        }],
        tiers_file: "tiers.yaml".to_owned(),
        remarks: Vec::new(),
        dns_servers: Vec::new(),
        exits: BTreeSet::new(),
        drill_table: Some(8787),
    }
}
