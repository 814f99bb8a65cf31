//! config.json of our own services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::path::PathBuf;

use assistant_proto::config::{
    AuditorConfig, BridgeConfig, BridgeTier, BrokerConfig, BrokerTier, ChannelEgress, Confidentiality, Explain,
    ExplainedTier, FloorEntry, GATEWAY_PORT, Inject, JAEGER_PORT, LITELLM_PORT, MCP_PORT, McpServer, Mode, ModelRoute,
    Place, Principal, PrincipalKind, Retention, Rule, SQUID_FEED_PORT, SQUID_PORT, TelegramBot, ToolRule,
    UpstreamModel, Zone,
};
use assistant_proto::name::{PrincipalName, SecretName, TierName};
use serde::Serialize;

use crate::addresses::{
    HOST_AGENT, HOST_AUDITOR, HOST_BROKER, HOST_JAEGER, HOST_SQUID, MODELS, TELEMETRY, TRANSIT, tier_network,
    tools_network,
};
use crate::config::{Channel, Credential, Egress, Server, Subject, Tier, model_variable};
use crate::desired::containers::{DATA, ETC, Parts, agent_name, models, server_name};
use crate::desired::outward::{has_messengers, has_route, services_hosts};
use crate::desired::{DesiredError, PAGES_IN_CONTAINER, SQUID_LOG_DIR, page_socket};
use crate::render::litellm::master_key_file;
use crate::tokens::SQUID_CHANNELS_USER;

/// The floor, as people name it.
const FLOOR_FILE: &str = "squid/allowlist.txt";
/// How long a person has to answer an approval.
const APPROVAL_SECONDS: u32 = 600;

/// secret-broker's configuration and the secrets it names.
pub(crate) struct Broker {
    pub(crate) json: String,
    pub(crate) secrets: BTreeSet<SecretName>,
}

pub(crate) fn broker_config(parts: &Parts<'_>) -> Result<Broker, DesiredError> {
    let etc = PathBuf::from(ETC);
    let mut secrets: BTreeSet<SecretName> = BTreeSet::new();
    for tier in &parts.config.tiers {
        secrets.extend(tier.credentials.iter().map(|credential| credential.secret.clone()));
    }
    let config = BrokerConfig {
        common: parts.common("secret-broker")?,
        tiers: parts.config.tiers.iter().map(|tier| broker_tier(parts, tier)).collect::<Result<_, _>>()?,
        intercept_ca_file: etc.join("intercept-ca.pem"),
        intercept_ca_key_file: etc.join("intercept-ca.key"),
        squid: SocketAddrV4::new(parts.address(TRANSIT, HOST_SQUID)?, SQUID_PORT),
        squid_users_dir: etc.join("squid-users"),
        secrets_dir: etc.join("secrets"),
        upstream_roots: roots(parts),
        models: model_routes(parts)?,
    };
    Ok(Broker { json: json(&config)?, secrets })
}

/// One route per class that there is. The broker talks to LiteLLM alone; where LiteLLM goes is not its to choose.
fn model_routes(parts: &Parts<'_>) -> Result<Vec<ModelRoute>, DesiredError> {
    let tee = parts.settings.tee.as_ref().map(|tee| (Confidentiality::Required, &tee.models));
    let open = parts.settings.model.as_ref().map(|model| (Confidentiality::None, &model.models));
    let routes = tee.into_iter().chain(open).filter(|(class, _)| has_route(parts, *class));
    routes
        .map(|(class, models)| {
            Ok(ModelRoute {
                confidential: class,
                litellm: SocketAddrV4::new(parts.address(MODELS, models::host(class))?, LITELLM_PORT),
                key_file: PathBuf::from(ETC).join(master_key_file(class)),
                models: models.keys().cloned().collect(),
                provider: provider(parts, class),
                upstream: models.iter().map(|(name, upstream)| upstream_model(parts, class, name, upstream)).collect(),
            })
        })
        .collect()
}

/// Whose models a class has, for people.
fn provider(parts: &Parts<'_>, class: Confidentiality) -> String {
    match class {
        Confidentiality::Required => "PrivateMode".to_owned(),
        Confidentiality::None => parts.settings.model.as_ref().map(|model| model.base_url.clone()).unwrap_or_default(),
    }
}

fn upstream_model(parts: &Parts<'_>, class: Confidentiality, name: &str, upstream: &str) -> UpstreamModel {
    let named_in = match parts.settings.mode {
        Mode::Live => format!("{} in .env", model_variable(class, name)),
        Mode::Drill => format!("model.models.{name} in supervisor.json"),
    };
    UpstreamModel { name: name.to_owned(), upstream: upstream.to_owned(), named_in }
}

/// Where the PEM files of [`Parts::roots`] are inside a container.
fn roots(parts: &Parts<'_>) -> Vec<PathBuf> {
    (0..parts.material.upstream_roots.len())
        .map(|index| PathBuf::from(ETC).join(format!("roots/{index}.pem")))
        .collect()
}

/// Where a service serves its page about a tier, in its container.
fn page(tier: &Tier) -> PathBuf {
    PathBuf::from(PAGES_IN_CONTAINER).join(page_socket(&tier.name))
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
        let tools = tier.tools.iter().find(|tools| tools.server == server.name);
        mcp_servers.push(McpServer {
            name: server.name.clone(),
            address: SocketAddrV4::new(address, MCP_PORT),
            token_file: PathBuf::from(ETC).join("wrappers").join(name.as_str()),
            tools: tools.map_or(ToolRule::Only(Vec::new()), |tools| tools.rule.clone()),
            source: format!("{}:{}", parts.config.file, tools.map_or(tier.line, |tools| tools.line)),
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
        confidential: tier.confidential,
        tier_address: parts.address(&network, HOST_BROKER)?,
        tools_address: if tier.servers.is_empty() { None } else { Some(parts.address(&tools, HOST_BROKER)?) },
        principals,
        rules: rules(&parts.config.file, &tier.name, &tier.servers, &tier.credentials, tier.egress.as_ref())?,
        mcp_servers,
        tools_page_socket: tier.mcp_port.map(|_| page(tier)),
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
            read_only: false,
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
            read_only: egress.read_only,
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
        retention: Retention::default(),
        explain: explain(parts)?,
    })
}

/// What explanations are made from: the broker's own rules, and the floor by line.
fn explain(parts: &Parts<'_>) -> Result<Explain, DesiredError> {
    let file = &parts.config.file;
    let mut tiers = Vec::new();
    for tier in &parts.config.tiers {
        let mut principals = vec![agent_name(&tier.name)?];
        for server in &tier.servers {
            principals.push(server_name(&tier.name, &server.name)?);
        }
        tiers.push(ExplainedTier {
            name: tier.name.clone(),
            source: format!("{file}:{}", tier.line),
            background: tier.background,
            principals,
            rules: rules(file, &tier.name, &tier.servers, &tier.credentials, tier.egress.as_ref())?,
        });
    }
    let floor = parts.config.floor.lines();
    Ok(Explain {
        tiers,
        floor_file: FLOOR_FILE.to_owned(),
        floor: floor.map(|(line, entry)| FloorEntry { host: entry.to_string(), line }).collect(),
        service_hosts: services_hosts(parts).iter().map(ToString::to_string).collect(),
    })
}

/// File of the channels' password at Squid, beneath channel-bridge's /etc/assistant.
pub(crate) const SQUID_PASSWORD_FILE: &str = "squid.password";

/// The page of ZeroClaw's dashboard in channel-bridge's image (deploy/images/channel-bridge).
const DASHBOARD_FILES: &str = "/usr/share/assistant/dashboard";
/// Where a bot talks to Telegram.
const TELEGRAM_API: &str = "https://api.telegram.org";

/// File of a bot's token beneath channel-bridge's /etc/assistant.
pub(crate) fn telegram_token_file(bot: &str) -> String {
    format!("telegram/{bot}.token")
}

pub(crate) fn bridge_config(parts: &Parts<'_>) -> Result<String, DesiredError> {
    let etc = PathBuf::from(ETC);
    let mut tiers = Vec::new();
    for tier in &parts.config.tiers {
        let agent = parts.address(&tier_network(&tier.name), HOST_AGENT)?;
        tiers.push(BridgeTier {
            name: tier.name.clone(),
            gateway: SocketAddrV4::new(agent, GATEWAY_PORT),
            gateway_token_file: etc.join("gateways").join(tier.name.as_str()),
            reachable: reachable(tier),
            dashboard_socket: Some(page(tier)),
        });
    }
    let telegram = parts.settings.telegram.iter().map(|bot| TelegramBot {
        name: bot.name.clone(),
        api_url: TELEGRAM_API.to_owned(),
        token_file: etc.join(telegram_token_file(&bot.name)),
        allowed_user_ids: bot.allowed_user_ids.clone(),
        tiers: parts
            .config
            .tiers
            .iter()
            .filter(|tier| talks_through(tier, &bot.name))
            .map(|t| t.name.clone())
            .collect(),
    });
    let egress = match has_messengers(parts) {
        false => None,
        true => Some(ChannelEgress {
            squid: SocketAddrV4::new(parts.address(TRANSIT, HOST_SQUID)?, SQUID_PORT),
            squid_user: SQUID_CHANNELS_USER.to_owned(),
            squid_password_file: etc.join(SQUID_PASSWORD_FILE),
            upstream_roots: roots(parts),
        }),
    };
    json(&BridgeConfig {
        common: parts.common("channel-bridge")?,
        tiers,
        state_dir: PathBuf::from(DATA),
        acknowledgers: vec!["secret-broker".to_owned(), "egress-auditor".to_owned()],
        approval_timeout_secs: APPROVAL_SECONDS,
        egress,
        telegram: telegram.collect(),
        dashboard_files: Some(PathBuf::from(DASHBOARD_FILES)),
    })
}

fn talks_through(tier: &Tier, wanted: &str) -> bool {
    tier.channels.iter().any(|channel| match channel {
        Channel::Telegram { bot } => bot == wanted,
    })
}

/// Every host that some container of the tier may reach, as the broker's rules spell it.
fn reachable(tier: &Tier) -> Vec<String> {
    let credentials = tier.credentials.iter().flat_map(|credential| &credential.hosts);
    let egress = tier.egress.iter().flat_map(|egress| &egress.hosts);
    credentials.chain(egress).map(ToString::to_string).collect::<BTreeSet<_>>().into_iter().collect()
}

fn json(value: &impl Serialize) -> Result<String, DesiredError> {
    serde_json::to_string_pretty(value)
        .map(|text| format!("{text}\n"))
        .map_err(|_| DesiredError::Unrenderable { file: "config.json" })
}
