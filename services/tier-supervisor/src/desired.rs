//! The desired state: what Docker, the kernel table and the gates must look like, as one plain value.
//!
//! Owns the vocabulary that the engine, the plan, the kernel table and the floor check share, and [`desired`], the pure
//! function from `tiers.yaml` and what goes with it to that value. It does no I/O, reads no clock and draws no random
//! number: what must exist beforehand (addresses, keys, tokens) comes in as arguments.

mod build;
pub(crate) mod containers;
mod flows;
mod gate;
mod hash;
pub(crate) mod outward;
mod role;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use assistant_proto::config::{Confidentiality, Mode};
use assistant_proto::name::TierName;

pub use crate::addresses::Ipv4Cidr;
pub use build::desired;
pub use gate::{Gate, GateKind, PAGES_IN_CONTAINER, PagesDirectory, Upstream, tools_site};
pub(crate) use gate::{OWN_SITES, TOOLS_SITE, page_socket};
pub use role::{Confinement, Role};

/// The resolver of containers that need no names: their own loopback, where nothing listens on port 53. It never answers,
/// and a query never becomes a frame.
pub const SILENT_RESOLVER: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Where Squid, and whoever reads it, has its log.
pub const SQUID_LOG_DIR: &str = "/var/log/squid";

/// Group of everything that shares files of the stack: `assistant`.
pub const ASSISTANT_GID: u32 = 8700;

/// Why there is no desired state although every file was read and checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// Something that is prepared beforehand is not there.
    #[error("{what} was not prepared; this is a bug of tier-supervisor")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// images.json lacks an image that this configuration needs.
    #[error("the image \"{name}\" is missing; run deploy/up.sh again, it builds or pulls what is missing")]
    NoImage {
        /// Its name there.
        name: &'static str,
    },
    /// squid.conf.template was changed in a way that cannot be rendered.
    #[error("squid.conf.template: {what}; restore the file that came with this version")]
    SquidTemplate {
        /// What is wrong.
        what: String,
    },
    /// A value cannot be written in the format that a file has.
    #[error("cannot render {file}; this is a bug of tier-supervisor")]
    Unrenderable {
        /// Which file.
        file: &'static str,
    },
}

/// Everything that must exist, and nothing else of ours may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Live or drill.
    pub mode: Mode,
    /// Networks, each with the bridge interface it has in the VM.
    pub networks: Vec<NetworkSpec>,
    /// Named volumes.
    pub volumes: Vec<VolumeSpec>,
    /// Containers in the order in which they are started.
    pub containers: Vec<ContainerSpec>,
    /// Every connection that our bridges carry. What is not here is dropped.
    pub flows: Vec<Flow>,
    /// What is joined to loopback ports of the VM.
    pub gates: Vec<Gate>,
    /// The tiers, for people.
    pub tiers: Vec<TierSummary>,
    /// tiers.yaml, as people name it.
    pub tiers_file: String,
    /// What is worth knowing about the files and stops nothing, a sentence each.
    pub remarks: Vec<String>,
    /// The resolvers Squid may ask over `egress`, UDP and TCP 53. Nobody else asks any.
    pub dns_servers: Vec<Ipv4Addr>,
    /// What Squid may connect to over `egress` beside port 443 of public addresses.
    pub exits: BTreeSet<Exit>,
    /// Routing table into which whatever enters from one of our bridges is led in a drill.
    pub drill_table: Option<u32>,
}

impl Desired {
    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&ContainerSpec> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The volume that Squid writes its log to.
    #[must_use]
    pub fn squid_log_volume(&self) -> Option<&str> {
        let squid = self.containers.iter().find(|container| container.role == Role::Squid)?;
        squid.mounts.iter().find_map(|mount| match &mount.source {
            MountSource::Volume(name) if mount.target == SQUID_LOG_DIR => Some(name.as_str()),
            _ => None,
        })
    }

    /// The volume in which the reader of Squid's log keeps how far it came.
    #[must_use]
    pub fn audit_volume(&self) -> Option<&str> {
        let auditor = self.containers.iter().find(|container| container.role == Role::EgressAuditor)?;
        auditor.mounts.iter().find_map(|mount| match &mount.source {
            MountSource::Volume(name) if !mount.read_only => Some(name.as_str()),
            _ => None,
        })
    }

    /// The network of that name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&NetworkSpec> {
        self.networks.iter().find(|network| network.name == name)
    }
}

/// A Docker network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkSpec {
    /// Docker's name for it, for example `assistant-tier-tasks`.
    pub name: String,
    /// Name of the bridge interface in the VM, at most 15 bytes.
    pub bridge: String,
    /// Its addresses.
    pub subnet: Ipv4Cidr,
    /// `.1`. On [`NetworkKind::Isolated`] nobody has it.
    pub gateway: Ipv4Addr,
    /// What it can reach.
    pub kind: NetworkKind,
    /// The tier it belongs to.
    pub tier: Option<TierName>,
}

/// What a network can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NetworkKind {
    /// Internal, and the VM has no address on it (`inhibit_ipv4`, or `gateway_mode_ipv4=isolated`).
    Isolated,
    /// Internal; the VM keeps its address, because it dials into it.
    Internal,
    /// A masquerading bridge. There is one, and Squid is alone on it.
    Egress,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeSpec {
    /// `assistant-<mode>-<what>`.
    pub name: String,
    /// The tier it belongs to. A tier's volume is mounted only into containers of that tier.
    pub tier: Option<TierName>,
    /// Owner of its root. Set once, when the volume is created and still empty; mounted without copying the image's files.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
    /// Mode of its root.
    pub mode: u32,
    /// Directories directly beneath its root that are made at creation, with the same owner and mode. Docker would make
    /// the parents of a mount point inside the volume as root.
    pub directories: Vec<String>,
}

/// A container. Besides what stands here every container has: read-only root, no capabilities but `cap_add`, restart
/// policy `no`, and an init process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Docker's name for it; of a tier's container also the principal's name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// The tier it belongs to.
    pub tier: Option<TierName>,
    /// Image reference that exists locally.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments. Empty with an entrypoint of ours means none, never the image's.
    pub command: Vec<String>,
    /// User it runs as.
    pub uid: u32,
    /// Group it runs as.
    pub gid: u32,
    /// Environment, sorted by name.
    pub env: Vec<EnvVar>,
    /// Binds and volumes.
    pub mounts: Vec<Mount>,
    /// Path and mount options, for example `("/tmp", "size=64m,mode=1777")`.
    pub tmpfs: Vec<(String, String)>,
    /// Networks with its fixed address on each. Empty: it has nothing but its loopback.
    pub networks: Vec<Attachment>,
    /// Resolver: `--dns`, and the only line of its read-only resolv.conf (one of `mounts`). None: [`SILENT_RESOLVER`].
    pub dns: Option<Ipv4Addr>,
    /// Sysctls of its network namespace, sorted by name.
    pub sysctls: Vec<(String, String)>,
    /// Capabilities that its programs may have, without `CAP_`.
    pub cap_add: Vec<String>,
    /// How it is confined.
    pub confinement: Confinement,
    /// What it may use up.
    pub limits: Limits,
    /// What its log may use up.
    pub log: LogCap,
    /// When it counts as up.
    pub ready: Ready,
    /// Files of the VM that must exist before it starts. Together they are the whole content of the directories
    /// beneath `state_dir/render/<name>/`: anything else found there is removed.
    pub files: Vec<RenderedFile>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Whether it gets a default route to, and a permanent neighbour entry for, a gateway that nobody is: so that an attempt
    /// at an address becomes a frame which the kernel table counts and drops, instead of dying in ARP unseen.
    pub inert_default_route: bool,
    /// Directory in the VM in which the service binds its control socket; one of `mounts`.
    pub control: Option<ControlDirectory>,
    /// Directory in the VM in which the service binds the sockets of its pages; one of `mounts`.
    pub pages: Option<PagesDirectory>,
}

impl ContainerSpec {
    /// Its address on a network.
    #[must_use]
    pub fn address_on(&self, network: &str) -> Option<Ipv4Addr> {
        self.networks.iter().find(|attachment| attachment.network == network).map(|attachment| attachment.address)
    }

    /// The resolver it gets.
    #[must_use]
    pub fn resolver(&self) -> Ipv4Addr {
        self.dns.unwrap_or(SILENT_RESOLVER)
    }

    /// Hex SHA-256 over every field, contents of files included. Equal hashes mean that a container need not be replaced.
    #[must_use]
    pub fn spec_hash(&self) -> String {
        hash::spec_hash(self)
    }
}

/// An environment variable.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether the value holds a token of this very container. Kept out of `Debug`.
    pub secret: bool,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, if self.secret { "<redacted>" } else { &self.value })
    }
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mount {
    /// What.
    pub source: MountSource,
    /// Where, inside the container.
    pub target: String,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MountSource {
    /// A file or directory of the VM, which must exist beforehand.
    Bind(PathBuf),
    /// A named volume.
    Volume(String),
}

/// A place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// Docker's name for the network.
    pub network: String,
    /// The fixed address.
    pub address: Ipv4Addr,
}

/// What a container may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of memory; swap gets none on top.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Billionths of a processor.
    pub nano_cpus: u64,
}

/// Docker's `json-file` log options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogCap {
    /// Bytes per file (`max-size`).
    pub max_size_bytes: u64,
    /// Files (`max-file`).
    pub max_files: u32,
}

/// When a container counts as up. Each is asked again until it says yes or a deadline passes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ready {
    /// `grpc.health.v1` for the empty service name says SERVING on this socket of the VM.
    Grpc {
        /// Path in the VM.
        socket: PathBuf,
    },
    /// The VM can connect.
    TcpFromVm {
        /// The container's address.
        address: Ipv4Addr,
        /// Port.
        port: u16,
    },
    /// From inside its network namespace, `GET http://127.0.0.1:<port><path>` answers 200.
    HttpInNetns {
        /// Port.
        port: u16,
        /// Path with its slash.
        path: String,
    },
    /// From inside its network namespace, `127.0.0.1:<port>` accepts.
    TcpInNetns {
        /// Port.
        port: u16,
    },
    /// Its log since this start holds the text.
    LogLine {
        /// The text.
        needle: String,
    },
    /// It runs.
    Running,
}

/// A file that must exist before a container starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedFile {
    /// Absolute path in the VM. Missing parents are made 0755, root, beneath `state_dir/render` (0700, root).
    pub path: PathBuf,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Content,
    /// Whether the content is secret. Such a file is never 0644.
    pub secret: bool,
}

/// What is in a rendered file.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Inline(Arc<[u8]>),
    /// What is in another file of the VM: how the supervisor hands on a SaaS secret without holding it.
    CopyOf {
        /// Absolute path; opened without following a symlink in its last part.
        source: PathBuf,
        /// Hex SHA-256 of the bytes when the desired state was made; a copy that differs means: make it again.
        sha256: String,
    },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "<{} bytes>", bytes.len()),
            Self::CopyOf { source, .. } => write!(f, "<copy of {}>", source.display()),
        }
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Inline(text.into_bytes().into())
    }
}

/// Where a service binds its control socket, `api.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControlDirectory {
    /// `/run/assistant/<service>`: owned by the service's uid, group `assistant`, 2770, with a default ACL entry for the
    /// operator.
    pub path: PathBuf,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `/run/assistant/<service>.sock`, a symbolic link to `<service>/api.sock`.
    pub link: PathBuf,
}

/// One kind of connection that our bridges carry; packets of the way back included.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// Who opens it.
    pub from: Peer,
    /// Who answers.
    pub to: Peer,
    /// The network on which it happens.
    pub network: String,
    /// Transport.
    pub protocol: Protocol,
    /// Port of the one who answers.
    pub port: u16,
}

/// An end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// A container of [`Desired::containers`], with the address it has on the flow's network.
    Container(String),
    /// The VM itself, with its address on the flow's network.
    Vm,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Something that Squid may connect to beside port 443 of public addresses: for a service's user alone, which Squid sees
/// to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exit {
    /// This port of public addresses.
    Port(u16),
    /// This address and port, which may be of the local network.
    Address(SocketAddrV4),
}

/// A tier for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierSummary {
    /// Its name.
    pub name: TierName,
    /// Name of its set of credentials.
    pub identity: Option<String>,
    /// Its model, by the name tiers use.
    pub model: String,
    /// Whether its prompts leave only through an attested route.
    pub confidential: Confidentiality,
    /// Names of its containers.
    pub containers: Vec<String>,
}
