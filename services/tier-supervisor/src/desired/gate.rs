//! What is joined to loopback ports of the VM: one gate each for NATS, Jaeger, Grafana, every tier's dashboard and every
//! page about a tier's MCP servers.
//!
//! It owns the vocabulary and which gates there are. The process that opens them is [`crate::gates`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use assistant_proto::config::{GRAFANA_PORT, JAEGER_PORT, NATS_PORT};
use assistant_proto::name::TierName;
use serde::{Deserialize, Serialize};

use super::containers::{GRAFANA_GATE, Parts};
use super::{ContainerSpec, DesiredError, Role};
use crate::addresses::{BUS, HOST_GRAFANA, HOST_JAEGER, HOST_NATS, TELEMETRY};
use crate::config::{Settings, Tiers};
use crate::kernel::GATES_UID;

/// Where a service's container has the directory in which it binds the sockets of its pages.
pub const PAGES_IN_CONTAINER: &str = "/run/assistant-pages";
/// The service that serves the tiers' dashboards.
pub(crate) const DASHBOARDS: &str = "channel-bridge";
/// The service that serves the pages about MCP servers.
pub(crate) const TOOL_PAGES: &str = "secret-broker";

/// A loopback port of the VM that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gate {
    /// For people and logs; of a site the first label of its host name.
    pub name: String,
    /// Always on 127.0.0.1.
    pub listen: SocketAddrV4,
    /// How it is joined, and to what.
    pub kind: GateKind,
}

impl Gate {
    /// `http://<name>.localhost:<port>`, where it is a site.
    #[must_use]
    pub fn site(&self) -> Option<String> {
        match self.kind {
            GateKind::Tcp(_) => None,
            GateKind::Site(_) => Some(format!("http://{}.localhost:{}", self.name, self.listen.port())),
        }
    }
}

/// How a gate joins.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum GateKind {
    /// Byte by byte to this address; what is behind it authenticates by itself.
    Tcp(SocketAddrV4),
    /// As a site of its own, behind a login.
    Site(Upstream),
}

/// What is behind a site. It believes that whoever asks has logged in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Upstream {
    /// HTTP on an address of ours.
    Tcp(SocketAddrV4),
    /// HTTP on a Unix socket in a [`PagesDirectory`].
    Unix(PathBuf),
}

/// Where a service binds the sockets of its pages: a directory in the VM, mounted into that service's container alone, at
/// [`PAGES_IN_CONTAINER`]. It is setgid to the gates' group, so that they, and nobody else, can connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PagesDirectory {
    /// For example `/run/assistant-pages/channel-bridge`.
    pub path: PathBuf,
    /// Owner: the service.
    pub uid: u32,
    /// Group: the gates'.
    pub gid: u32,
}

impl PagesDirectory {
    /// That of a service.
    pub(super) fn of(settings: &Settings, service: &str, uid: u32) -> Self {
        Self { path: settings.pages_dir().join(service), uid, gid: GATES_UID }
    }
}

/// File name of a tier's socket in a directory of pages.
pub(crate) fn page_socket(tier: &TierName) -> String {
    format!("{tier}.sock")
}

/// How the name of the site about a tier's MCP servers begins; the tier's follows.
pub(crate) const TOOLS_SITE: &str = "mcp-";

/// Name of the site about a tier's MCP servers.
#[must_use]
pub fn tools_site(tier: &TierName) -> String {
    format!("{TOOLS_SITE}{tier}")
}

/// Names of sites that are no tier's, those to come included.
pub(crate) const OWN_SITES: [&str; 4] = ["nats", "jaeger", "grafana", "vault"];

/// Name and port of the gates that these tiers have; those of the stack itself are not among them.
fn of_tiers(tiers: &Tiers) -> impl Iterator<Item = (String, u16, &'static str, &TierName)> {
    tiers.tiers.iter().flat_map(|tier| {
        let dashboard = (tier.name.to_string(), tier.port, DASHBOARDS, &tier.name);
        let tools = tier.mcp_port.map(|port| (tools_site(&tier.name), port, TOOL_PAGES, &tier.name));
        [Some(dashboard), tools].into_iter().flatten()
    })
}

/// Every gate, in the order in which people are shown them.
pub(super) fn gates(parts: &Parts<'_>, containers: &[ContainerSpec]) -> Result<Vec<Gate>, DesiredError> {
    let there = |role: &Role| containers.iter().any(|container| container.role == *role);
    let listen = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let site = |name: &str, port, upstream| Gate {
        name: name.to_owned(),
        listen: listen(port),
        kind: GateKind::Site(upstream),
    };
    let mut gates: Vec<Gate> = of_tiers(parts.config)
        .map(|(name, port, service, tier)| {
            let socket = parts.settings.pages_dir().join(service).join(page_socket(tier));
            site(&name, port, Upstream::Unix(socket))
        })
        .collect();
    if there(&Role::Grafana) {
        let upstream = SocketAddrV4::new(parts.address(TELEMETRY, HOST_GRAFANA)?, GRAFANA_PORT);
        gates.push(site("grafana", GRAFANA_GATE, Upstream::Tcp(upstream)));
    }
    if there(&Role::Jaeger) {
        let upstream = SocketAddrV4::new(parts.address(TELEMETRY, HOST_JAEGER)?, JAEGER_PORT);
        gates.push(site("jaeger", JAEGER_PORT, Upstream::Tcp(upstream)));
    }
    let nats = SocketAddrV4::new(parts.address(BUS, HOST_NATS)?, NATS_PORT);
    gates.push(Gate { name: "nats".to_owned(), listen: listen(NATS_PORT), kind: GateKind::Tcp(nats) });
    Ok(gates)
}
