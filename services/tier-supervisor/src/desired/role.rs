//! What containers are, and how they are confined: the vocabulary that follows from it.

use assistant_proto::config::Confidentiality;
use assistant_proto::name::ServerName;

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// The bus.
    Nats,
    /// Traces.
    Jaeger,
    /// OpenTelemetry collector.
    Collector,
    /// A door: DNS, log, audit.
    EgressAuditor,
    /// The only exit.
    Squid,
    /// A door: proxy, models, MCP.
    SecretBroker,
    /// A door: channels.
    ChannelBridge,
    /// A tier's ZeroClaw.
    Agent,
    /// A tier's MCP server behind the stdio wrapper.
    McpServer(ServerName),
    /// The model gateway of one class of tiers.
    LiteLlm(Confidentiality),
    /// The proxy that verifies the enclave behind the attested model route.
    TeeProxy,
    /// A tier's rootless Docker daemon, on no network.
    Sandbox,
    /// What stands between an agent and its sandbox: lets through only what the sandbox is for.
    SandboxFilter,
    /// Metrics.
    Prometheus,
    /// Dashboards.
    Grafana,
}

impl Role {
    /// Value of the label `assistant.role`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Jaeger => "jaeger",
            Self::Collector => "otel-collector",
            Self::EgressAuditor => "egress-auditor",
            Self::Squid => "squid",
            Self::SecretBroker => "secret-broker",
            Self::ChannelBridge => "channel-bridge",
            Self::Agent => "agent",
            Self::McpServer(_) => "mcp-server",
            Self::LiteLlm(Confidentiality::None) => "litellm",
            Self::LiteLlm(Confidentiality::Required) => "litellm-confidential",
            Self::TeeProxy => "tee-proxy",
            Self::Sandbox => "sandbox",
            Self::SandboxFilter => "sandbox-filter",
            Self::Prometheus => "prometheus",
            Self::Grafana => "grafana",
        }
    }

    /// Whether other containers are brought up only after it, and not at all if it fails. Nothing needs these to start,
    /// and some of them depend on machines elsewhere: a tier without a model or a picture without dashboards is better
    /// than no stack.
    #[must_use]
    pub fn holds_up_others(&self) -> bool {
        !matches!(self, Self::LiteLlm(_) | Self::TeeProxy | Self::Prometheus | Self::Grafana)
    }
}

/// How a container is confined beyond what its specification says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Confinement {
    /// No new privileges, the system calls of `seccomp.json`, masked paths of /proc, the engine's AppArmor profile.
    Standard,
    /// What a rootless Docker daemon needs to make user namespaces and to mount inside them: programs may gain the
    /// capabilities of `cap_add` (newuidmap), nothing of /proc is masked, no AppArmor profile, and the system calls of
    /// `seccomp-rootless.json`. Only ever on no network.
    RootlessDaemon,
}
