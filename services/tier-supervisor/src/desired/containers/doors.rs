//! The three door services. Each is on every tier's networks that it serves, and on nothing it does not need.

use assistant_proto::config::Confidentiality;

use super::super::gate::{DASHBOARDS, TOOL_PAGES};
use super::super::outward::{has_messengers, has_route};
use super::super::{ContainerSpec, DesiredError, Mount, MountSource, Role, VolumeSpec};
use super::models::secret_file;
use super::{DATA, Parts, limits, server_name};
use crate::addresses::{self, BUS, HOST_AUDITOR, HOST_BRIDGE, HOST_BROKER, MODELS, TELEMETRY, TRANSIT};
use crate::render;
use crate::tokens::SQUID_CHANNELS_USER;

const UID_BROKER: u32 = 8701;
const UID_AUDITOR: u32 = 8702;
const UID_BRIDGE: u32 = 8703;

type Made = Result<(ContainerSpec, Vec<VolumeSpec>), DesiredError>;

pub(super) fn egress_auditor(parts: &Parts<'_>) -> Made {
    let mut spec = parts.service("egress-auditor", Role::EgressAuditor, UID_AUDITOR, limits(384, 128, 20))?;
    for network in [BUS, TELEMETRY, TRANSIT] {
        parts.attach(&mut spec, network, HOST_AUDITOR)?;
    }
    tier_networks(parts, &mut spec, HOST_AUDITOR, true)?;
    // Port 53 without a capability.
    spec.sysctls.insert(1, ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()));
    parts.public(&mut spec, "config.json", render::auditor_config(parts)?);
    spec.mounts.push(Mount {
        source: MountSource::Volume(parts.volume("squid-log")),
        target: "/var/log/squid".to_owned(),
        read_only: true,
    });
    let volume = parts.data(&mut spec, "audit", DATA);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![volume]))
}

pub(super) fn secret_broker(parts: &Parts<'_>) -> Made {
    let mut spec = parts.service("secret-broker", Role::SecretBroker, UID_BROKER, limits(512, 256, 20))?;
    for network in [BUS, TELEMETRY, TRANSIT, MODELS] {
        parts.attach(&mut spec, network, HOST_BROKER)?;
    }
    tier_networks(parts, &mut spec, HOST_BROKER, true)?;
    let broker = render::broker_config(parts)?;
    parts.public(&mut spec, "config.json", broker.json);
    parts.public(&mut spec, "intercept-ca.pem", parts.material.pki.intercept.certificate.clone());
    parts.private(&mut spec, "intercept-ca.key", parts.material.pki.intercept.key.expose().to_owned());
    for class in [Confidentiality::Required, Confidentiality::None] {
        if has_route(parts, class) {
            let master = parts.material.tokens.litellm(class);
            let master = master.ok_or(DesiredError::Missing { what: "LiteLLM's master key" })?;
            parts.private(&mut spec, &render::master_key_file(class), render::master_key(master));
        }
    }
    for tier in &parts.config.tiers {
        // Its own user, never a service's: no way leads from a tier's request to a service's hosts.
        let password = parts.material.tokens.squid_user(tier.name.as_str());
        let password = password.ok_or(DesiredError::Missing { what: "a user of Squid" })?;
        parts.private(&mut spec, &format!("squid-users/{}", tier.name), password.expose().to_owned());
        for server in &tier.servers {
            let name = server_name(&tier.name, &server.name)?;
            let token = parts.wrapper_token(&name)?.expose().to_owned();
            parts.private(&mut spec, &format!("wrappers/{name}"), token);
        }
    }
    for secret in &broker.secrets {
        secret_file(parts, &mut spec, &format!("secrets/{secret}"), secret)?;
    }
    parts.roots(&mut spec);
    if parts.config.tiers.iter().any(|tier| tier.mcp_port.is_some()) {
        parts.pages(&mut spec, TOOL_PAGES);
    }
    parts.resolve(&mut spec, None);
    Ok((spec, Vec::new()))
}

pub(super) fn channel_bridge(parts: &Parts<'_>) -> Made {
    let mut spec = parts.service("channel-bridge", Role::ChannelBridge, UID_BRIDGE, limits(256, 128, 10))?;
    for network in [BUS, TELEMETRY] {
        parts.attach(&mut spec, network, HOST_BRIDGE)?;
    }
    if has_messengers(parts) {
        parts.attach(&mut spec, TRANSIT, HOST_BRIDGE)?;
        let password = parts.material.tokens.squid_user(SQUID_CHANNELS_USER);
        let password = password.ok_or(DesiredError::Missing { what: "a user of Squid" })?.expose().to_owned();
        parts.private(&mut spec, render::SQUID_PASSWORD_FILE, password);
        for bot in &parts.settings.telegram {
            secret_file(parts, &mut spec, &render::telegram_token_file(&bot.name), &bot.token_secret)?;
        }
        parts.roots(&mut spec);
    }
    tier_networks(parts, &mut spec, HOST_BRIDGE, false)?;
    parts.public(&mut spec, "config.json", render::bridge_config(parts)?);
    for tier in &parts.config.tiers {
        let token = parts.gateway_token(&tier.name)?.expose().to_owned();
        parts.private(&mut spec, &format!("gateways/{}", tier.name), token);
    }
    parts.pages(&mut spec, DASHBOARDS);
    let volume = parts.data(&mut spec, "bridge", DATA);
    parts.resolve(&mut spec, None);
    Ok((spec, vec![volume]))
}

fn tier_networks(parts: &Parts<'_>, spec: &mut ContainerSpec, host: u8, tools_too: bool) -> Result<(), DesiredError> {
    for tier in &parts.config.tiers {
        parts.attach(spec, &addresses::tier_network(&tier.name), host)?;
        if tools_too && !tier.servers.is_empty() {
            parts.attach(spec, &addresses::tools_network(&tier.name), host)?;
        }
    }
    Ok(())
}
