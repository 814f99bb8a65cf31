//! config.json of our own services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::path::PathBuf;

use assistant_proto::config::{
    AuditorConfig, BridgeConfig, BridgeTier, BrokerConfig, BrokerTier, GATEWAY_PORT, Inject, JAEGER_PORT, MCP_PORT,
    McpServer, ModelRoute, Place, Principal, PrincipalKind, Rule, SQUID_FEED_PORT, SQUID_PORT, Zone,
};
use assistant_proto::name::{PrincipalName, SecretName, TierName};
use serde::Serialize;

use crate::addresses::{
    HOST_AGENT, HOST_AUDITOR, HOST_BROKER, HOST_JAEGER, HOST_SQUID, TELEMETRY, TRANSIT, tier_network, tools_network,
};
use crate::config::{Credential, Egress, Server, Subject, Tier};
use crate::desired::containers::{DATA, ETC, Parts, agent_name, server_name};
use crate::desired::{DesiredError, SQUID_LOG_DIR};
use crate::tokens::SQUID_MODELS_USER;

/// How long a person has to answer an approval.
const APPROVAL_SECONDS: u32 = 600;

/// secret-broker's configuration and the secrets it names.
pub(crate) struct Broker {
    pub(crate) json: String,
    pub(crate) secrets: BTreeSet<SecretName>,
}

pub(crate) fn broker_config(parts: &Parts<'_>) -> Result<Broker, DesiredError> {
    let etc = PathBuf::from(ETC);
    let mut secrets: BTreeSet<SecretName> = parts.settings.model.key_secret.iter().cloned().collect();
    for tier in &parts.config.tiers {
        secrets.extend(tier.credentials.iter().map(|credential| credential.secret.clone()));
    }
    let upstream_roots =
        (0..parts.material.upstream_roots.len()).map(|index| etc.join(format!("roots/{index}.pem"))).collect();
    let config = BrokerConfig {
        common: parts.common("secret-broker")?,
        tiers: parts.config.tiers.iter().map(|tier| broker_tier(parts, tier)).collect::<Result<_, _>>()?,
        intercept_ca_file: etc.join("intercept-ca.pem"),
        intercept_ca_key_file: etc.join("intercept-ca.key"),
        squid: SocketAddrV4::new(parts.address(TRANSIT, HOST_SQUID)?, SQUID_PORT),
        squid_users_dir: etc.join("squid-users"),
        secrets_dir: etc.join("secrets"),
        upstream_roots,
        model: ModelRoute {
            base_url: parts.settings.model.base_url.clone(),
            key: parts.settings.model.key_secret.clone(),
            squid_user: SQUID_MODELS_USER.to_owned(),
            models: parts.settings.model.models.clone(),
        },
    };
    Ok(Broker { json: json(&config)?, secrets })
}

fn broker_tier(parts: &Parts<'_>, tier: &Tier) -> Result<BrokerTier, DesiredError> {
    let network = tier_network(&tier.name);
    let tools = tools_network(&tier.name);
    let mut principals = vec![Principal {
        name: agent_name(&tier.name)?,
        kind: PrincipalKind::Agent,
        address: parts.address(&network, HOST_AGENT)?,
        token_sha256: parts.principal_token(&agent_name(&tier.name)?)?.sha256(),
    }];
    let mut mcp_servers = Vec::new();
    for server in &tier.servers {
        let name = server_name(&tier.name, &server.name)?;
        let address = parts.server_address(&tier.name, &server.name)?;
        mcp_servers.push(McpServer {
            name: server.name.clone(),
            address: SocketAddrV4::new(address, MCP_PORT),
            token_file: PathBuf::from(ETC).join("wrappers").join(name.as_str()),
            tools: tier
                .tools
                .iter()
                .filter(|(named, _)| *named == server.name)
                .flat_map(|(_, allowed)| allowed.clone())
                .collect(),
        });
        principals.push(Principal {
            token_sha256: parts.principal_token(&name)?.sha256(),
            name,
            kind: PrincipalKind::McpServer(server.name.clone()),
            address,
        });
    }
    Ok(BrokerTier {
        name: tier.name.clone(),
        background: tier.background,
        tier_address: parts.address(&network, HOST_BROKER)?,
        tools_address: if tier.servers.is_empty() { None } else { Some(parts.address(&tools, HOST_BROKER)?) },
        principals,
        rules: rules(&parts.config.file, &tier.name, &tier.servers, &tier.credentials, tier.egress.as_ref())?,
        mcp_servers,
    })
}

/// The rules of a tier in order: credentials as they stand in the file, then what `egress` adds. First match decides, so
/// a host that has a credential is never reached without it by someone the credential is for.
pub(crate) fn rules(
    file: &str,
    tier: &TierName,
    servers: &[Server],
    credentials: &[Credential],
    egress: Option<&Egress>,
) -> Result<Vec<Rule>, DesiredError> {
    let mut rules = Vec::new();
    for credential in credentials {
        let principals: Vec<PrincipalName> = credential
            .subjects
            .iter()
            .map(|subject| match subject {
                Subject::Agent => agent_name(tier),
                Subject::Server(server) => server_name(tier, server),
            })
            .collect::<Result<_, _>>()?;
        rules.push(Rule {
            id: credential.id.clone(),
            source: format!("{file}:{}", credential.line),
            principals,
            hosts: credential.hosts.iter().map(ToString::to_string).collect(),
            methods: credential.methods.clone(),
            paths: credential.paths.clone(),
            inject: Some(Inject {
                secret: credential.secret.clone(),
                placeholder: credential.placeholder.clone(),
                place: Place::Header { name: credential.header.clone(), template: credential.template.clone() },
            }),
        });
    }
    if let Some(egress) = egress {
        let mut principals = vec![agent_name(tier)?];
        for server in servers {
            principals.push(server_name(tier, &server.name)?);
        }
        rules.push(Rule {
            id: "egress-1".to_owned(),
            source: format!("{file}:{}", egress.line),
            principals,
            hosts: egress.hosts.iter().map(ToString::to_string).collect(),
            methods: egress.methods.clone(),
            paths: egress.paths.clone(),
            inject: None,
        });
    }
    Ok(rules)
}

pub(crate) fn auditor_config(parts: &Parts<'_>) -> Result<String, DesiredError> {
    let mut zones = Vec::new();
    for tier in &parts.config.tiers {
        let network = tier_network(&tier.name);
        let broker = parts.address(&network, HOST_BROKER)?;
        let agent = parts.address(&network, HOST_AGENT)?;
        let name = agent_name(&tier.name)?;
        let mut names: BTreeMap<String, _> =
            ["models", "mcp", "proxy"].into_iter().map(|door| (door.to_owned(), broker)).collect();
        names.insert(name.to_string(), agent);
        zones.push(Zone {
            tier: tier.name.clone(),
            listen: parts.address(&network, HOST_AUDITOR)?,
            names,
            clients: BTreeMap::from([(agent, name)]),
        });
        if tier.servers.is_empty() {
            continue;
        }
        let network = tools_network(&tier.name);
        let mut clients = BTreeMap::new();
        for server in &tier.servers {
            clients.insert(parts.server_address(&tier.name, &server.name)?, server_name(&tier.name, &server.name)?);
        }
        zones.push(Zone {
            tier: tier.name.clone(),
            listen: parts.address(&network, HOST_AUDITOR)?,
            names: BTreeMap::from([("proxy".to_owned(), parts.address(&network, HOST_BROKER)?)]),
            clients,
        });
    }
    json(&AuditorConfig {
        common: parts.common("egress-auditor")?,
        zones,
        squid_feed: SocketAddrV4::new(parts.address(TRANSIT, HOST_AUDITOR)?, SQUID_FEED_PORT),
        squid_address: parts.address(TRANSIT, HOST_SQUID)?,
        squid_log_dir: PathBuf::from(SQUID_LOG_DIR),
        store_dir: PathBuf::from(DATA),
        jaeger_url: format!("http://{}:{JAEGER_PORT}", parts.address(TELEMETRY, HOST_JAEGER)?),
    })
}

pub(crate) fn bridge_config(parts: &Parts<'_>) -> Result<String, DesiredError> {
    let mut tiers = Vec::new();
    for tier in &parts.config.tiers {
        let agent = parts.address(&tier_network(&tier.name), HOST_AGENT)?;
        tiers.push(BridgeTier {
            name: tier.name.clone(),
            gateway: SocketAddrV4::new(agent, GATEWAY_PORT),
            gateway_token_file: PathBuf::from(ETC).join("gateways").join(tier.name.as_str()),
        });
    }
    json(&BridgeConfig {
        common: parts.common("channel-bridge")?,
        tiers,
        state_dir: PathBuf::from(DATA),
        acknowledgers: vec!["secret-broker".to_owned(), "egress-auditor".to_owned()],
        approval_timeout_secs: APPROVAL_SECONDS,
    })
}

fn json(value: &impl Serialize) -> Result<String, DesiredError> {
    serde_json::to_string_pretty(value)
        .map(|text| format!("{text}\n"))
        .map_err(|_| DesiredError::Unrenderable { file: "config.json" })
}
