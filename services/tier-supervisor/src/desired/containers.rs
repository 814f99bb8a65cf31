//! Every container with its mounts, files and limits, in start order.

mod doors;
mod infrastructure;
pub(crate) mod models;
mod sandbox;
mod tiers;

pub(super) use infrastructure::GRAFANA_GATE;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use assistant_proto::config::{Bus, Common, NATS_PORT, OTLP_PORT, Telemetry};
use assistant_proto::name::{PrincipalName, ServerName, TierName};

use super::{
    ASSISTANT_GID, Attachment, Confinement, ContainerSpec, Content, ControlDirectory, DesiredError, EnvVar, Limits,
    LogCap, Mount, MountSource, PAGES_IN_CONTAINER, PagesDirectory, Ready, RenderedFile, Role, SILENT_RESOLVER,
    VolumeSpec,
};
use crate::addresses::{Addresses, BUS, HOST_COLLECTOR, HOST_NATS, TELEMETRY};
use crate::config::{Images, Settings, Tiers};
use crate::prepare::Material;
use crate::tokens::Token;

/// What the desired state is made of.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a Tiers,
    pub(crate) settings: &'a Settings,
    pub(crate) images: &'a Images,
    pub(crate) addresses: &'a Addresses,
    pub(crate) material: &'a Material,
}

const MIB: u64 = 1 << 20;

/// Directory of rendered files inside a container.
pub(crate) const ETC: &str = "/etc/assistant";
/// Data of a service inside its container.
pub(crate) const DATA: &str = "/var/lib/assistant";

/// Every container in the order in which they are started, and their volumes.
pub(super) fn all(parts: &Parts<'_>) -> Result<(Vec<ContainerSpec>, Vec<VolumeSpec>), DesiredError> {
    let mut made = Made::default();
    made.add(infrastructure::nats(parts)?);
    if parts.settings.otlp {
        made.add(infrastructure::jaeger(parts)?);
        made.add(infrastructure::collector(parts)?);
    }
    made.add(doors::egress_auditor(parts)?);
    made.add(infrastructure::squid(parts)?);
    // Early, since they take long to start; nobody waits for them.
    for container in models::all(parts)? {
        made.add(container);
    }
    if parts.settings.otlp {
        for container in infrastructure::dashboards(parts)? {
            made.add(container);
        }
    }
    made.add(doors::secret_broker(parts)?);
    for tier in &parts.config.tiers {
        for server in &tier.servers {
            made.add(tiers::mcp_server(parts, tier, server)?);
        }
        for container in sandbox::all(parts, tier)? {
            made.add(container);
        }
        made.add(tiers::agent(parts, tier)?);
    }
    made.add(doors::channel_bridge(parts)?);
    Ok((made.containers, made.volumes))
}

#[derive(Default)]
struct Made {
    containers: Vec<ContainerSpec>,
    volumes: Vec<VolumeSpec>,
}

impl Made {
    fn add(&mut self, (container, volumes): (ContainerSpec, Vec<VolumeSpec>)) {
        self.containers.push(container);
        self.volumes.extend(volumes);
    }
}

/// Name of a tier's agent container, which is also its principal.
pub(crate) fn agent_name(tier: &TierName) -> Result<PrincipalName, DesiredError> {
    format!("zeroclaw-{tier}").parse().map_err(|_| DesiredError::Missing { what: "a container name for the agent" })
}

/// Name of an MCP server's container, which is also its principal.
pub(crate) fn server_name(tier: &TierName, server: &ServerName) -> Result<PrincipalName, DesiredError> {
    format!("mcp-{tier}-{server}")
        .parse()
        .map_err(|_| DesiredError::Missing { what: "a container name for an MCP server" })
}

impl Parts<'_> {
    pub(crate) fn address(&self, network: &str, host: u8) -> Result<Ipv4Addr, DesiredError> {
        self.addresses.host(network, host).ok_or(DesiredError::Missing { what: "an address" })
    }

    pub(crate) fn server_address(&self, tier: &TierName, server: &ServerName) -> Result<Ipv4Addr, DesiredError> {
        self.addresses.server(tier, server).ok_or(DesiredError::Missing { what: "the address of an MCP server" })
    }

    pub(crate) fn principal_token(&self, name: &PrincipalName) -> Result<&Token, DesiredError> {
        self.material.tokens.principal(name).ok_or(DesiredError::Missing { what: "the token of a container" })
    }

    pub(crate) fn wrapper_token(&self, name: &PrincipalName) -> Result<&Token, DesiredError> {
        self.material.tokens.wrapper(name).ok_or(DesiredError::Missing { what: "the token of an MCP server" })
    }

    pub(crate) fn gateway_token(&self, tier: &TierName) -> Result<&Token, DesiredError> {
        self.material.tokens.gateway(tier).ok_or(DesiredError::Missing { what: "the token of a gateway" })
    }

    /// The first part of every service's configuration.
    pub(crate) fn common(&self, service: &str) -> Result<Common, DesiredError> {
        let nats = self.address(BUS, HOST_NATS)?;
        let collector = self.address(TELEMETRY, HOST_COLLECTOR)?;
        Ok(Common {
            mode: self.settings.mode,
            bus: Bus {
                url: format!("tls://{nats}:{NATS_PORT}"),
                ca_file: PathBuf::from(ETC).join("nats-ca.pem"),
                nkey_seed_file: PathBuf::from(ETC).join("nats.nk"),
                inbox_prefix: format!("_INBOX_{service}"),
            },
            telemetry: Telemetry {
                otlp_endpoint: self.settings.otlp.then(|| format!("http://{collector}:{OTLP_PORT}")),
                log_filter: self.settings.log_filter.clone(),
            },
            control_socket: PathBuf::from("/run/assistant/api.sock"),
        })
    }

    fn image(&self, name: &'static str) -> Result<String, DesiredError> {
        self.images.reference(name).map(ToOwned::to_owned).ok_or(DesiredError::NoImage { name })
    }

    fn volume(&self, what: &str) -> String {
        format!("assistant-{}-{what}", self.settings.mode.as_str())
    }

    /// A container with what all have in common: silent resolver, no forwarding, no IPv6, a small /tmp, capped log.
    fn container(&self, name: &str, role: Role, image: String, uid: u32, gid: u32, limits: Limits) -> ContainerSpec {
        let mut spec = ContainerSpec {
            name: name.to_owned(),
            role,
            tier: None,
            image,
            entrypoint: None,
            command: Vec::new(),
            uid,
            gid,
            env: Vec::new(),
            mounts: Vec::new(),
            tmpfs: vec![("/tmp".to_owned(), "size=64m,mode=1777".to_owned())],
            networks: Vec::new(),
            dns: None,
            sysctls: vec![
                ("net.ipv4.ip_forward".to_owned(), "0".to_owned()),
                ("net.ipv6.conf.all.disable_ipv6".to_owned(), "1".to_owned()),
            ],
            cap_add: Vec::new(),
            confinement: Confinement::Standard,
            limits,
            log: LogCap { max_size_bytes: 10 * MIB, max_files: 3 },
            ready: Ready::Running,
            files: Vec::new(),
            working_dir: None,
            inert_default_route: false,
            control: None,
            pages: None,
        };
        spec.mounts.push(Mount {
            source: MountSource::Bind(self.settings.render_dir(name).join("etc")),
            target: ETC.to_owned(),
            read_only: true,
        });
        spec
    }

    /// The resolver, the last thing before a container is done: `--dns` and the read-only resolv.conf say the same.
    fn resolve(&self, spec: &mut ContainerSpec, dns: Option<Ipv4Addr>) {
        spec.dns = dns;
        let path = self.settings.render_dir(&spec.name).join("resolv.conf");
        spec.mounts.push(Mount {
            source: MountSource::Bind(path.clone()),
            target: "/etc/resolv.conf".to_owned(),
            read_only: true,
        });
        spec.files.push(RenderedFile {
            path,
            uid: 0,
            gid: 0,
            mode: 0o644,
            content: crate::render::resolv_conf(dns.unwrap_or(SILENT_RESOLVER)).into(),
            secret: false,
        });
    }

    fn attach(&self, spec: &mut ContainerSpec, network: &str, host: u8) -> Result<Ipv4Addr, DesiredError> {
        let address = self.address(network, host)?;
        spec.networks.push(Attachment { network: network.to_owned(), address });
        Ok(address)
    }

    /// A file beneath the container's /etc/assistant that anyone inside may read.
    fn public(&self, spec: &mut ContainerSpec, name: &str, content: impl Into<Content>) {
        let path = self.settings.render_dir(&spec.name).join("etc").join(name);
        spec.files.push(RenderedFile { path, uid: 0, gid: 0, mode: 0o644, content: content.into(), secret: false });
    }

    /// A file beneath the container's /etc/assistant that only its user may read.
    fn private(&self, spec: &mut ContainerSpec, name: &str, content: impl Into<Content>) {
        let path = self.settings.render_dir(&spec.name).join("etc").join(name);
        let (uid, gid) = (spec.uid, spec.gid);
        spec.files.push(RenderedFile { path, uid, gid, mode: 0o400, content: content.into(), secret: true });
    }

    /// PEM files of roots for TLS beyond the stack, where supervisor.json names some.
    fn roots(&self, spec: &mut ContainerSpec) {
        for (index, (source, sha256)) in self.material.upstream_roots.iter().enumerate() {
            let content = Content::CopyOf { source: source.clone(), sha256: sha256.clone() };
            self.public(spec, &format!("roots/{index}.pem"), content);
        }
    }

    /// A volume of the container's own, mounted for writing.
    fn data(&self, spec: &mut ContainerSpec, what: &str, target: &str) -> VolumeSpec {
        let name = self.volume(what);
        spec.mounts.push(Mount {
            source: MountSource::Volume(name.clone()),
            target: target.to_owned(),
            read_only: false,
        });
        VolumeSpec { name, tier: spec.tier.clone(), uid: spec.uid, gid: spec.gid, mode: 0o700, directories: Vec::new() }
    }

    /// What every Rust service has: its program, its configuration, the bus, its control socket.
    fn service(&self, name: &'static str, role: Role, uid: u32, limits: Limits) -> Result<ContainerSpec, DesiredError> {
        let mut spec =
            self.container(&format!("assistant-{name}"), role, self.image(name)?, uid, ASSISTANT_GID, limits);
        spec.entrypoint = Some(vec![format!("/usr/local/bin/{name}")]);
        spec.command = vec!["run".to_owned(), "--config".to_owned(), format!("{ETC}/config.json")];
        let nkey = self.material.tokens.nkey(name).ok_or(DesiredError::Missing { what: "the nkey of a service" })?;
        self.private(&mut spec, "nats.nk", nkey.seed.expose().to_owned());
        self.public(&mut spec, "nats-ca.pem", self.material.pki.internal_ca.clone());
        let path = self.settings.run_dir.join(name);
        spec.ready = Ready::Grpc { socket: path.join("api.sock") };
        spec.mounts.push(Mount {
            source: MountSource::Bind(path.clone()),
            target: "/run/assistant".to_owned(),
            read_only: false,
        });
        let link = self.settings.run_dir.join(format!("{name}.sock"));
        spec.control = Some(ControlDirectory { path, uid, gid: ASSISTANT_GID, link });
        Ok(spec)
    }

    /// The directory in which a service binds the sockets of its pages.
    fn pages(&self, spec: &mut ContainerSpec, service: &str) {
        let pages = PagesDirectory::of(self.settings, service, spec.uid);
        spec.mounts.push(Mount {
            source: MountSource::Bind(pages.path.clone()),
            target: PAGES_IN_CONTAINER.to_owned(),
            read_only: false,
        });
        spec.pages = Some(pages);
    }
}

fn limits(memory_mib: u64, pids: u32, cpus_tenths: u64) -> Limits {
    Limits { memory_bytes: memory_mib * MIB, pids, nano_cpus: cpus_tenths * 100_000_000 }
}

fn plain(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: value.into(), secret: false }
}
