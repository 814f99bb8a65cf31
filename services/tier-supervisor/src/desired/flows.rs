//! The written table of connections, as a function of who is there.
//!
//! Every connection that architecture.md names has one line here, and there is no other place that adds one.

use assistant_proto::config::{
    Confidentiality, DNS_PORT, GATEWAY_PORT, GRAFANA_PORT, JAEGER_PORT, LITELLM_PORT, MCP_PORT, METRICS_PORT,
    MODELS_PORT, NATS_PORT, OTLP_PORT, PROMETHEUS_PORT, PROXY_PORT, SQUID_FEED_PORT, SQUID_PORT,
};

use super::containers::models::TEE_PORT;
use super::{ContainerSpec, Flow, Peer, Protocol, Role};
use crate::addresses::{BUS, MODELS, TELEMETRY, TRANSIT};

/// Every flow between the given containers, sorted. Ends that are not there have no flows.
pub(super) fn flows(containers: &[ContainerSpec]) -> Vec<Flow> {
    let of = |role: &Role| containers.iter().find(|container| container.role == *role);
    let mut table = Table(Vec::new());
    let (nats, jaeger, collector) = (of(&Role::Nats), of(&Role::Jaeger), of(&Role::Collector));
    let (broker, auditor, bridge) = (of(&Role::SecretBroker), of(&Role::EgressAuditor), of(&Role::ChannelBridge));
    let squid = of(&Role::Squid);

    for service in [broker, auditor, bridge] {
        table.tcp(service, nats, BUS, NATS_PORT);
        table.tcp(service, collector, TELEMETRY, OTLP_PORT);
    }
    table.vm_to(nats, BUS, NATS_PORT);
    table.vm_to(collector, TELEMETRY, OTLP_PORT);
    table.vm_to(jaeger, TELEMETRY, JAEGER_PORT);
    table.tcp(auditor, jaeger, TELEMETRY, JAEGER_PORT);
    table.tcp(collector, jaeger, TELEMETRY, OTLP_PORT);
    let (prometheus, grafana) = (of(&Role::Prometheus), of(&Role::Grafana));
    table.tcp(prometheus, collector, TELEMETRY, METRICS_PORT);
    table.tcp(grafana, prometheus, TELEMETRY, PROMETHEUS_PORT);
    table.tcp(grafana, jaeger, TELEMETRY, JAEGER_PORT);
    table.vm_to(grafana, TELEMETRY, GRAFANA_PORT);

    let (open, tee) = (of(&Role::LiteLlm(Confidentiality::None)), of(&Role::TeeProxy));
    let confidential = of(&Role::LiteLlm(Confidentiality::Required));
    for litellm in [open, confidential] {
        table.tcp(broker, litellm, MODELS, LITELLM_PORT);
    }
    // The confidential one has no other way than through the proxy that verifies.
    table.tcp(confidential, tee, MODELS, TEE_PORT);

    // Who is on transit has a way out to ask for; channel-bridge and the collector are there only where they need one.
    for client in [broker, open, tee, bridge, collector].into_iter().flatten() {
        if client.address_on(TRANSIT).is_some() {
            table.tcp(Some(client), squid, TRANSIT, SQUID_PORT);
        }
    }
    table.tcp(squid, auditor, TRANSIT, SQUID_FEED_PORT);

    for container in containers {
        // A tier's container is on exactly one network, or on none: a sandbox, and its filter.
        let Some(network) = container.networks.first().map(|attachment| attachment.network.as_str()) else { continue };
        let me = Some(container);
        match container.role {
            Role::Agent => {
                for port in [PROXY_PORT, MODELS_PORT, MCP_PORT] {
                    table.tcp(me, broker, network, port);
                }
                table.tcp(bridge, me, network, GATEWAY_PORT);
                table.dns(me, auditor, network);
            }
            Role::McpServer(_) => {
                table.tcp(me, broker, network, PROXY_PORT);
                table.tcp(broker, me, network, MCP_PORT);
                table.dns(me, auditor, network);
            }
            Role::Nats
            | Role::Jaeger
            | Role::Collector
            | Role::EgressAuditor
            | Role::Squid
            | Role::SecretBroker
            | Role::ChannelBridge
            | Role::LiteLlm(_)
            | Role::TeeProxy
            | Role::Sandbox
            | Role::SandboxFilter
            | Role::Prometheus
            | Role::Grafana => {}
        }
    }
    table.0.sort();
    table.0
}

struct Table(Vec<Flow>);

impl Table {
    fn tcp(&mut self, from: Option<&ContainerSpec>, to: Option<&ContainerSpec>, network: &str, port: u16) {
        self.add(from, to, network, Protocol::Tcp, port);
    }

    fn dns(&mut self, from: Option<&ContainerSpec>, to: Option<&ContainerSpec>, network: &str) {
        self.add(from, to, network, Protocol::Udp, DNS_PORT);
        self.add(from, to, network, Protocol::Tcp, DNS_PORT);
    }

    fn vm_to(&mut self, to: Option<&ContainerSpec>, network: &str, port: u16) {
        let Some(to) = to else { return };
        self.0.push(Flow {
            from: Peer::Vm,
            to: Peer::Container(to.name.clone()),
            network: network.to_owned(),
            protocol: Protocol::Tcp,
            port,
        });
    }

    fn add(
        &mut self,
        from: Option<&ContainerSpec>,
        to: Option<&ContainerSpec>,
        network: &str,
        protocol: Protocol,
        port: u16,
    ) {
        let (Some(from), Some(to)) = (from, to) else { return };
        self.0.push(Flow {
            from: Peer::Container(from.name.clone()),
            to: Peer::Container(to.name.clone()),
            network: network.to_owned(),
            protocol,
            port,
        });
    }
}
