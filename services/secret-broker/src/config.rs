//! The broker's configuration file: `assistant_proto::config::BrokerConfig` and what has to hold beyond its shape.

use std::collections::BTreeSet;

use assistant_proto::config::{BrokerConfig, BrokerTier, Common, Mode, ModelRoute, PrincipalKind};
use policy::TierPolicy;
use serde::Deserialize;
use service_kit::host::ServiceConfig;

use crate::identity::Principal;

/// Longest name of a model.
const MOST_MODEL_NAME: usize = 128;

/// The configuration as the host loads it.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Config(pub BrokerConfig);

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.0.common
    }

    fn problems(&self) -> Vec<String> {
        let config = &self.0;
        let mut problems = Vec::new();
        if config.common.mode == Mode::Drill && config.upstream_roots.is_empty() {
            problems
                .push("upstream_roots: empty; a drill trusts its own CA only, so name its certificate file".to_owned());
        }
        problems_of_models(&config.models, &mut problems);
        let mut tiers = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for tier in &config.tiers {
            if !tiers.insert(&tier.name) {
                problems.push(format!("tiers: {} is there twice", tier.name));
            }
            for address in [Some(tier.tier_address), tier.tools_address].into_iter().flatten() {
                if !addresses.insert(address) {
                    problems.push(format!("tier {}: two listeners have the same address", tier.name));
                }
            }
            problems_of_tier(tier, &mut problems);
        }
        problems
    }
}

/// A tier without a route is none: it has no model, and is told so when it asks.
fn problems_of_models(routes: &[ModelRoute], problems: &mut Vec<String>) {
    let mut classes = BTreeSet::new();
    let mut places = BTreeSet::new();
    for route in routes {
        let class = route.confidential.as_str();
        if !classes.insert(class) {
            problems.push(format!("models: there are two routes for confidential: {class}"));
        }
        // A prompt that has to be confidential must not meet one that need not.
        if !places.insert(route.litellm) {
            problems.push(format!("models: the route for confidential: {class} has the LiteLLM of another class"));
        }
        if route.models.is_empty() {
            problems.push(format!("models: the route for confidential: {class} offers no model"));
        }
        let mut names = BTreeSet::new();
        for (index, name) in route.models.iter().enumerate() {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b':');
            if name.is_empty() || name.len() > MOST_MODEL_NAME || !name.bytes().all(plain) || !names.insert(name) {
                problems.push(format!(
                    "models: name {} of the route for confidential: {class} is there twice, or not 1 to \
                     {MOST_MODEL_NAME} letters, digits and '-', '_', '.', '/', ':'",
                    index.saturating_add(1)
                ));
            }
        }
    }
}

fn problems_of_tier(tier: &BrokerTier, problems: &mut Vec<String>) {
    let name = &tier.name;
    let mut names = BTreeSet::new();
    let mut hashes = BTreeSet::new();
    let mut places = BTreeSet::new();
    for principal in &tier.principals {
        let who = &principal.name;
        if !names.insert(who) {
            problems.push(format!("tier {name}: principal {who} is there twice"));
        }
        if Principal::new(name, principal).is_none() {
            problems.push(format!("tier {name}: token_sha256 of {who} is not 64 hex digits"));
        }
        if !hashes.insert(&principal.token_sha256) {
            problems.push(format!("tier {name}: {who} has the same token as another principal"));
        }
        let on_tools = matches!(principal.kind, PrincipalKind::McpServer(_));
        if !places.insert((on_tools, principal.address)) {
            problems.push(format!("tier {name}: {who} has the same address as another principal"));
        }
        if on_tools && tier.tools_address.is_none() {
            problems.push(format!("tier {name}: {who} is an MCP server, but there is no tools_address to serve it on"));
        }
    }
    for rule in &tier.rules {
        for principal in rule.principals.iter().filter(|principal| !names.contains(principal)) {
            problems.push(format!("{}: rule {}: tier {name} has no principal {principal}", rule.source, rule.id));
        }
    }
    let mut servers = BTreeSet::new();
    for server in &tier.mcp_servers {
        if !servers.insert(&server.name) {
            problems.push(format!("tier {name}: MCP server {} is there twice", server.name));
        }
    }
    if let Err(found) = TierPolicy::compile(name, &tier.rules) {
        problems.extend(found.iter().map(ToString::to_string));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn all_problems_are_found() {
        let principal = |name: &str, kind: &str, address: &str, hash: &str| {
            format!(r#"{{"name":"{name}","kind":{kind},"address":"{address}","token_sha256":"{hash}"}}"#)
        };
        let hash = "0".repeat(64);
        let text = format!(
            r#"{{
            "common": {{"mode":"drill","bus":{{"url":"tls://x:4222","ca_file":"/a","nkey_seed_file":"/b","inbox_prefix":"_INBOX_x"}},
                        "telemetry":{{"otlp_endpoint":null,"log_filter":"info"}},"control_socket":"/c"}},
            "tiers": [{{"name":"tasks","background":false,"confidential":"none","tier_address":"10.0.0.2","tools_address":null,
                "principals":[{},{},{}],
                "rules":[{{"id":"r","source":"tiers.yaml:9","principals":["nobody"],"hosts":["*"],"methods":[],"paths":[],"read_only":false,"inject":null}}],
                "mcp_servers":[]}}],
            "intercept_ca_file":"/d","intercept_ca_key_file":"/e","squid":"10.0.0.8:3128","squid_users_dir":"/f",
            "secrets_dir":"/g","upstream_roots":[],
            "models":[{{"confidential":"none","litellm":"10.0.4.11:4000","key_file":"/h","models":["a","a","b c"]}},
                {{"confidential":"required","litellm":"10.0.4.11:4000","key_file":"/i","models":[]}},
                {{"confidential":"none","litellm":"10.0.4.12:4000","key_file":"/j","models":["a"]}}]}}"#,
            principal("zeroclaw-tasks", "\"agent\"", "10.0.0.20", &hash),
            principal("zeroclaw-tasks", "\"agent\"", "10.0.0.20", "zz"),
            principal("mcp-tasks-x", "{\"mcp-server\":\"x\"}", "10.0.1.30", &hash),
        );
        let config: Config = serde_json::from_str(&text).unwrap();
        let problems = config.problems();
        for expected in [
            "upstream_roots",
            "two routes for confidential: none",
            "confidential: required has the LiteLLM of another class",
            "confidential: required offers no model",
            "name 2 of the route for confidential: none",
            "name 3 of the route for confidential: none",
            "zeroclaw-tasks is there twice",
            "not 64 hex digits",
            "same address",
            "same token",
            "no tools_address",
            "tiers.yaml:9: rule r: tier tasks has no principal nobody",
            "entry 1 of hosts",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected} in {problems:#?}");
        }
    }
}
