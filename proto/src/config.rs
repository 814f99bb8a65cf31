//! What tier-supervisor renders and the other services read: one JSON file per service, mounted read-only at
//! `/etc/assistant/config.json`. Rendered by a program, so unknown fields are errors, not warnings.
//!
//! No value here is a secret. Secrets are files of their own, named by path, mode 0600, owned by the uid that reads
//! them. Tokens of principals appear only as SHA-256.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::name::{PrincipalName, SecretName, ServerName, TierName};

/// Port of the broker's HTTPS proxy, on tier and tools networks.
pub const PROXY_PORT: u16 = 10255;
/// Port of the broker's model ingress, on tier networks.
pub const MODELS_PORT: u16 = 4000;
/// Port of the broker's MCP ingress on tier networks, and of the stdio wrapper on tools networks.
pub const MCP_PORT: u16 = 8811;
/// Port of ZeroClaw's gateway on tier networks.
pub const GATEWAY_PORT: u16 = 42617;
/// Port of the auditor's resolver on tier and tools networks, UDP and TCP.
pub const DNS_PORT: u16 = 53;
/// Port on which the auditor receives Squid's log on `transit`.
pub const SQUID_FEED_PORT: u16 = 7512;
/// Squid's port on `transit`.
pub const SQUID_PORT: u16 = 3128;
/// NATS client port on `bus`.
pub const NATS_PORT: u16 = 4222;
/// OTLP over gRPC on `telemetry`.
pub const OTLP_PORT: u16 = 4317;
/// LiteLLM's port on `models`.
pub const LITELLM_PORT: u16 = 4000;
/// Path at LiteLLM that leads to the provider's own list of models (`GET <base URL>/models`), and to nothing else.
pub const LITELLM_PROVIDER_MODELS: &str = "/assistant/provider-models";
/// Prometheus on `telemetry`.
pub const PROMETHEUS_PORT: u16 = 9090;
/// The collector's metrics for Prometheus, on `telemetry`.
pub const METRICS_PORT: u16 = 8889;
/// Grafana on `telemetry`.
pub const GRAFANA_PORT: u16 = 3000;
/// Jaeger's query API on `telemetry`.
pub const JAEGER_PORT: u16 = 16686;

/// Whether the internet is real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The user's own accounts and the internet behind Squid.
    Live,
    /// A network namespace of doubles.
    Drill,
}

impl Mode {
    /// `live` or `drill`, as in volume names and paths.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Drill => "drill",
        }
    }
}

/// What every service needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// Live or drill.
    pub mode: Mode,
    /// The bus.
    pub bus: Bus,
    /// Telemetry.
    pub telemetry: Telemetry,
    /// Unix socket of the service's gRPC; its directory exists and belongs to the service's uid.
    pub control_socket: PathBuf,
}

/// How to reach NATS.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// `tls://<address>:4222`; the certificate names the address.
    pub url: String,
    /// PEM file of the stack's internal CA.
    pub ca_file: PathBuf,
    /// File with the service's nkey seed, 0600.
    pub nkey_seed_file: PathBuf,
    /// The service's own inbox prefix, `_INBOX_<service>`.
    pub inbox_prefix: String,
}

/// Where spans and logs go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// `http://<address>:4317`, or none: then spans and metrics are dropped.
    pub otlp_endpoint: Option<String>,
    /// `tracing` filter for the JSON log on standard error, for example `info`.
    pub log_filter: String,
}

/// A container that may speak to a door.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// The container's name; also the user name of its proxy authentication.
    pub name: PrincipalName,
    /// What it is.
    pub kind: PrincipalKind,
    /// Its pinned address on the network on which it may speak.
    pub address: Ipv4Addr,
    /// Hex SHA-256 of its token (256 random bits, base64url without padding; hashed as text).
    pub token_sha256: String,
}

/// What a principal is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PrincipalKind {
    /// The tier's ZeroClaw, on `tier-<t>`.
    Agent,
    /// An MCP server, on `tools-<t>`.
    McpServer(ServerName),
}

/// Whether prompts may leave only through an attested route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidentiality {
    /// Only through a TEE proxy that verified its upstream.
    Required,
    /// Any model the owner configured.
    None,
}

impl Confidentiality {
    /// `required` or `none`, as in tiers.yaml.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::None => "none",
        }
    }
}

/// A rule of a tier, in the order of tiers.yaml. First match decides; no match denies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Unique within the tier, for example `marvin-api-key-1`.
    pub id: String,
    /// File and line, for example `tiers.yaml:31`.
    pub source: String,
    /// Which principals it is for; never empty.
    pub principals: Vec<PrincipalName>,
    /// Host patterns: `a.b` exact, `*.a.b` one label below, `.a.b` the host and everything below it.
    pub hosts: Vec<String>,
    /// Upper-case methods; empty means GET and HEAD.
    pub methods: Vec<String>,
    /// Path patterns by segment: literal, `*` one segment, `**` any number, only last. Empty means every path.
    pub paths: Vec<String>,
    /// Whether only reading is allowed: GET and HEAD, no body, and only headers of a closed list. Never with `inject`.
    pub read_only: bool,
    /// What to put in, where the rule injects.
    pub inject: Option<Inject>,
}

/// How a secret gets into a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// Which secret; its value is the file of that name in the broker's secrets directory.
    pub secret: SecretName,
    /// What the tier sends in its place. A request without it, or with anything else there, is refused.
    pub placeholder: String,
    /// Where it stands.
    pub place: Place,
}

/// Where a secret stands in a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Place {
    /// A header whose value is `template` with `{}` replaced.
    Header {
        /// Lower-case header name.
        name: String,
        /// For example `Bearer {}`; `{}` exactly once.
        template: String,
    },
}

/// secret-broker's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// What every service needs.
    pub common: Common,
    /// The tiers it serves.
    pub tiers: Vec<BrokerTier>,
    /// Certificate (PEM) of the interception CA.
    pub intercept_ca_file: PathBuf,
    /// Private key (PEM, PKCS#8) of the interception CA, 0600.
    pub intercept_ca_key_file: PathBuf,
    /// Squid on `transit`.
    pub squid: SocketAddrV4,
    /// Directory with one file per Squid user (a tier's name, or `models`), holding its password.
    pub squid_users_dir: PathBuf,
    /// Directory with one file per secret, 0600.
    pub secrets_dir: PathBuf,
    /// PEM files of roots for upstream TLS. Live: beside the system's store. Drill: instead of it.
    pub upstream_roots: Vec<PathBuf>,
    /// Where model calls go, at most one route per class of confidentiality. A tier whose class has no route has no model.
    pub models: Vec<ModelRoute>,
}

/// The upstream of the model ingress for one class of tiers: a LiteLLM of its own on `models`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRoute {
    /// Which tiers it serves.
    pub confidential: Confidentiality,
    /// LiteLLM on `models`; plain HTTP, on a network that carries nothing else.
    pub litellm: SocketAddrV4,
    /// File with LiteLLM's master key, sent as bearer token.
    pub key_file: PathBuf,
    /// Names the tiers may use; LiteLLM knows the same ones.
    pub models: Vec<String>,
    /// Whose models they are, for people: the endpoint's URL, or the provider's name. Nothing is sent there by it.
    #[serde(default)]
    pub provider: String,
    /// What stands behind the names, to be compared with the provider's own list. What is sent is LiteLLM's to say.
    #[serde(default)]
    pub upstream: Vec<UpstreamModel>,
}

/// A model as its provider calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamModel {
    /// The name that tiers use.
    pub name: String,
    /// The provider's name.
    pub upstream: String,
    /// Where a person changes it, for example `OPENAI_MODEL in .env`.
    pub named_in: String,
}

/// A tier as the broker sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerTier {
    /// The tier.
    pub name: TierName,
    /// Whether requests outside a turn are allowed.
    pub background: bool,
    /// Which model route it has.
    pub confidential: Confidentiality,
    /// The broker's address on `tier-<t>`: proxy, models and mcp listen here.
    pub tier_address: Ipv4Addr,
    /// The broker's address on `tools-<t>`, where there is one: only the proxy listens here.
    pub tools_address: Option<Ipv4Addr>,
    /// Who may speak.
    pub principals: Vec<Principal>,
    /// What they may do, in order.
    pub rules: Vec<Rule>,
    /// The tier's MCP servers.
    pub mcp_servers: Vec<McpServer>,
    /// Unix socket on which the page about the tier's MCP servers is served, over HTTP; only the gates' process can
    /// connect. None where tiers.yaml gives no `mcp_port`.
    #[serde(default)]
    pub tools_page_socket: Option<PathBuf>,
}

/// An MCP server behind the stdio wrapper.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McpServer {
    /// Its name in the catalogue.
    pub name: ServerName,
    /// `<address>:8811` on `tools-<t>`; the path is `/mcp`.
    pub address: SocketAddrV4,
    /// File with the bearer token the wrapper asks for.
    pub token_file: PathBuf,
    /// Tools that may be listed and called.
    pub tools: ToolRule,
    /// File and line that say so, for example `tiers.yaml:31`; without a `tools` section those of the tier.
    #[serde(default)]
    pub source: String,
}

/// Which tools of an MCP server may be listed and called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToolRule {
    /// Every tool the server has: tiers.yaml does not say, and the agent asks for what it may not run unasked.
    All,
    /// These and no others.
    Only(Vec<String>),
}

/// egress-auditor's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditorConfig {
    /// What every service needs.
    pub common: Common,
    /// One resolver per tier or tools network.
    pub zones: Vec<Zone>,
    /// Where Squid's live feed is received; bound to the interface that has this address.
    pub squid_feed: SocketAddrV4,
    /// Squid's address on `transit`: the only peer whose feed is believed.
    pub squid_address: Ipv4Addr,
    /// Directory with Squid's `access.log`, mounted read-only: the truth.
    pub squid_log_dir: PathBuf,
    /// Directory of the audit store, on a volume of its own.
    pub store_dir: PathBuf,
    /// `http://<address>:16686`.
    pub jaeger_url: String,
    /// How long the audit store keeps records.
    #[serde(default)]
    pub retention: Retention,
    /// What explanations are made from.
    #[serde(default)]
    pub explain: Explain,
}

/// Everything that decides whether a request leaves, for explanations. Nothing is decided by it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// The tiers in the order of tiers.yaml.
    pub tiers: Vec<ExplainedTier>,
    /// The floor's file as people name it, for example `squid/allowlist.txt`.
    pub floor_file: String,
    /// The floor in the order of its file.
    pub floor: Vec<FloorEntry>,
    /// Hosts of the stack's own services, in the spelling of rules: no tier reaches them through Squid.
    pub service_hosts: Vec<String>,
}

/// A tier as explanations need it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainedTier {
    /// The tier.
    pub name: TierName,
    /// File and line at which it begins.
    pub source: String,
    /// Whether requests outside a turn are allowed.
    pub background: bool,
    /// Its containers that may ask: the agent first, then its MCP servers.
    pub principals: Vec<PrincipalName>,
    /// What they may do, in order: the broker's own.
    pub rules: Vec<Rule>,
}

/// A line of the floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloorEntry {
    /// `a.b`, or `.a.b` for the host and everything below it.
    pub host: String,
    /// Its line.
    pub line: u32,
}

/// How much, and for how long, the audit store keeps. What is beyond either is let go, the oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Bytes in use, in MiB.
    pub most_mib: u32,
    /// Days.
    pub days: u32,
}

impl Default for Retention {
    /// A record takes one or two kilobytes: some three million of them, or 13 months.
    fn default() -> Self {
        Self { most_mib: 4096, days: 400 }
    }
}

/// One network whose names the auditor answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// The tier it belongs to.
    pub tier: TierName,
    /// The auditor's address on it; UDP and TCP 53, bound to the interface.
    pub listen: Ipv4Addr,
    /// Single-label names that are answered (A only), for example `models`.
    pub names: BTreeMap<String, Ipv4Addr>,
    /// Who asks, by address.
    pub clients: BTreeMap<Ipv4Addr, PrincipalName>,
}

/// channel-bridge's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// What every service needs.
    pub common: Common,
    /// Tiers in the order of tiers.yaml.
    pub tiers: Vec<BridgeTier>,
    /// Directory for what must survive a restart.
    pub state_dir: PathBuf,
    /// Services that must acknowledge `turn.started` before a prompt goes out.
    pub acknowledgers: Vec<String>,
    /// How long a person has to answer an approval, in seconds.
    pub approval_timeout_secs: u32,
    /// The way out for messengers; none where no channel needs one.
    pub egress: Option<ChannelEgress>,
    /// Telegram bots.
    pub telegram: Vec<TelegramBot>,
    /// Directory with the files of ZeroClaw's dashboard, from the pinned release and never from an agent's container.
    /// Without it no dashboard is served.
    #[serde(default)]
    pub dashboard_files: Option<PathBuf>,
}

/// How channels reach their messengers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelEgress {
    /// Squid on `transit`.
    pub squid: SocketAddrV4,
    /// The channels' own Squid user.
    pub squid_user: String,
    /// File with its password, 0400.
    pub squid_password_file: PathBuf,
    /// PEM files of roots for TLS. Live: beside the system's store. Drill: instead of it.
    pub upstream_roots: Vec<PathBuf>,
}

/// A Telegram bot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelegramBot {
    /// Its name in tiers.yaml; `telegram` for the one from `.env`.
    pub name: String,
    /// `https://api.telegram.org`, without a final slash.
    pub api_url: String,
    /// File with the bot's token, 0400.
    pub token_file: PathBuf,
    /// Numeric ids of the people it answers; everyone else gets silence.
    pub allowed_user_ids: Vec<i64>,
    /// Tiers that can be talked to through it, in the order of tiers.yaml; the first is where a new chat begins.
    pub tiers: Vec<TierName>,
}

/// A tier as the bridge sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeTier {
    /// The tier.
    pub name: TierName,
    /// ZeroClaw's gateway, `<address>:42617`.
    pub gateway: SocketAddrV4,
    /// File with the bearer token of the gateway, 0600.
    pub gateway_token_file: PathBuf,
    /// Hosts the tier may reach, as patterns of [`Rule::hosts`]: links to any other host are made inert in its replies.
    pub reachable: Vec<String>,
    /// Unix socket on which the tier's dashboard is served, over HTTP; only the gates' process can connect.
    #[serde(default)]
    pub dashboard_socket: Option<PathBuf>,
}
