//! What stands in the rendered files.

use assistant_proto::config::{AuditorConfig, BridgeConfig, BrokerConfig, Place, PrincipalKind, ToolRule};
use policy::TierPolicy;
use tier_supervisor::desired::{Content, Desired};

use crate::stack::Stack;

pub(crate) fn file(desired: &Desired, container: &str, name: &str) -> String {
    let spec = desired.container(container).unwrap();
    let file = spec.files.iter().find(|file| file.path.ends_with(name)).unwrap_or_else(|| panic!("no {name}"));
    match &file.content {
        Content::Inline(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Content::CopyOf { source, .. } => panic!("{name} is a copy of {}", source.display()),
    }
}

#[test]
fn the_broker_gets_rules_that_its_policy_takes() {
    let desired = Stack::drill().desired();
    let config: BrokerConfig = serde_json::from_str(&file(&desired, "assistant-secret-broker", "config.json")).unwrap();
    let [tier, ..] = config.tiers.as_slice() else { panic!() };
    assert_eq!(tier.name.as_str(), "tasks");
    assert!(!tier.background);
    assert_eq!(tier.tier_address.to_string(), "10.87.16.2");
    assert_eq!(tier.tools_address.unwrap().to_string(), "10.87.17.2");
    let [agent, server] = tier.principals.as_slice() else { panic!() };
    assert_eq!((agent.name.as_str(), agent.address.to_string().as_str()), ("zeroclaw-tasks", "10.87.16.20"));
    assert_eq!((server.name.as_str(), server.address.to_string().as_str()), ("mcp-tasks-marvin", "10.87.17.30"));
    assert_eq!(server.kind, PrincipalKind::McpServer("marvin".parse().unwrap()));
    let [rule] = tier.rules.as_slice() else { panic!() };
    assert_eq!(
        rule.principals,
        std::slice::from_ref(&server.name),
        "by default credentials are the servers', not the agent's"
    );
    assert_eq!(
        (rule.hosts.as_slice(), rule.methods.as_slice()),
        (&["serv.amazingmarvin.com".to_owned()][..], &["GET".to_owned()][..])
    );
    assert!(rule.source.starts_with("deploy/drill/tiers.yaml:"), "{}", rule.source);
    let inject = rule.inject.as_ref().unwrap();
    assert_eq!(inject.placeholder, "PLACEHOLDER_MARVIN_API_KEY");
    let Place::Header { name, template } = &inject.place;
    assert_eq!((name.as_str(), template.as_str()), ("x-api-token", "{}"));
    assert!(TierPolicy::compile(&tier.name, &tier.rules).is_ok());
    assert_eq!(tier.mcp_servers[0].address.to_string(), "10.87.17.30:8811");
    let ToolRule::Only(tools) = &tier.mcp_servers[0].tools else { panic!() };
    assert!(tools.iter().any(|tool| tool == "get_tasks"));
    assert_eq!(config.squid.to_string(), "10.87.3.8:3128");
    let [route] = config.models.as_slice() else { panic!("{:?}", config.models) };
    assert_eq!((route.confidential.as_str(), route.litellm.port()), ("none", 4000));
    assert_eq!(route.models, ["assistant", "thinker"]);
    assert_eq!(config.common.bus.url, "tls://10.87.1.5:4222");
    assert_eq!(config.common.telemetry.otlp_endpoint.as_deref(), Some("http://10.87.2.6:4317"));
    // Every file it names is one that is rendered.
    let spec = desired.container("assistant-secret-broker").unwrap();
    let rendered = |path: &std::path::Path| {
        let inside = path.strip_prefix("/etc/assistant").unwrap();
        assert!(spec.files.iter().any(|file| file.path.ends_with(inside)), "{}", path.display());
    };
    rendered(&config.common.bus.ca_file);
    rendered(&config.common.bus.nkey_seed_file);
    rendered(&config.intercept_ca_file);
    rendered(&config.intercept_ca_key_file);
    rendered(&config.upstream_roots[0]);
    rendered(&tier.mcp_servers[0].token_file);
    rendered(&config.squid_users_dir.join("tasks"));
    rendered(&config.secrets_dir.join("marvin_api_key"));
    rendered(&route.key_file);
    // Keys of models and users of services are not the broker's.
    for not in ["squid-users/models", "secrets/model_api_key"] {
        assert!(!spec.files.iter().any(|file| file.path.ends_with(not)), "{not}");
    }
}

#[test]
fn the_auditor_knows_who_asks_for_which_names() {
    let desired = Stack::drill().desired();
    let config: AuditorConfig =
        serde_json::from_str(&file(&desired, "assistant-egress-auditor", "config.json")).unwrap();
    let [tier, tools, ..] = config.zones.as_slice() else { panic!() };
    let names = |zone: &assistant_proto::config::Zone| -> Vec<String> {
        zone.names.iter().map(|(name, address)| format!("{name}={address}")).collect()
    };
    assert_eq!(names(tier), ["mcp=10.87.16.2", "models=10.87.16.2", "proxy=10.87.16.2", "zeroclaw-tasks=10.87.16.20"]);
    assert_eq!(names(tools), ["proxy=10.87.17.2"]);
    assert_eq!(tier.listen.to_string(), "10.87.16.3");
    assert_eq!(
        tools.clients.iter().map(|(address, name)| format!("{address} {name}")).collect::<Vec<_>>(),
        ["10.87.17.30 mcp-tasks-marvin"]
    );
    assert_eq!(config.squid_feed.to_string(), "10.87.3.3:7512");
    assert_eq!(config.squid_address.to_string(), "10.87.3.8");
    assert_eq!(config.jaeger_url, "http://10.87.2.7:16686");
    let bridge: BridgeConfig =
        serde_json::from_str(&file(&desired, "assistant-channel-bridge", "config.json")).unwrap();
    assert_eq!(bridge.tiers[0].gateway.to_string(), "10.87.16.20:42617");
    assert_eq!(bridge.acknowledgers, ["secret-broker", "egress-auditor"]);
}

#[test]
fn squid_lets_each_user_reach_its_own_hosts_only() {
    let desired = Stack::drill().desired();
    let conf = file(&desired, "assistant-squid", "squid.conf");
    let lines: Vec<&str> = conf.lines().collect();
    for line in [
        "http_port 10.87.3.8:3128 ssl-bump tls-cert=/etc/assistant/peek.pem tls-key=/etc/assistant/peek.key generate-host-certificates=off",
        "acl user_tier_tasks proxy_auth tasks",
        "acl hosts_tier_tasks dstdomain -n \"/etc/assistant/lists/tier-tasks.txt\"",
        "http_access deny user_tier_tasks !hosts_tier_tasks all",
        "http_access allow user_tier_tasks tag_tier_tasks hosts_tier_tasks",
        "http_access allow user_service_models hosts_service_models",
        "ssl_bump splice step2 user_tier_tasks sni_tier_tasks sni_ok",
        "access_log tcp://10.87.3.3:7512 logformat=assistant on-error=drop",
        "dns_nameservers 198.51.100.53",
    ] {
        assert!(lines.contains(&line), "{line}\nnot in\n{conf}");
    }
    assert_eq!(file(&desired, "assistant-squid", "lists/tier-tasks.txt"), "serv.amazingmarvin.com\n");
    assert_eq!(file(&desired, "assistant-squid", "lists/service-models.txt"), "model.drill.example\n");
    let users = file(&desired, "assistant-squid", "users");
    assert_eq!(
        users.lines().map(|line| line.split(':').next().unwrap()).collect::<Vec<_>>(),
        ["tasks", "updates", "unrestricted", "models"]
    );
    // The order that the floor depends on.
    let first = |needle: &str| lines.iter().position(|line| line.contains(needle)).unwrap();
    let last = |needle: &str| lines.iter().rposition(|line| line.contains(needle)).unwrap();
    assert!(last("http_access deny user_") < first("deny nonpublic"), "names are checked before any is resolved");
    assert!(last("http_access deny nonpublic") < first("http_access allow"));
    assert_eq!(last("http_access"), first("http_access deny all"));
    for line in lines.iter().filter(|line| line.starts_with("http_access deny")) {
        assert!(line.ends_with(" all"), "{line}");
    }
    assert_eq!(lines[last("ssl_bump")], "ssl_bump terminate all");
    assert!(!conf.contains('@') && conf.lines().all(|line| !line.starts_with('#')));
}

#[test]
fn a_tier_called_like_a_service_user_is_refused_or_apart() {
    let problems = Stack::with_tiers("tiers: [{name: models, port: 3001}]").problems();
    assert!(problems.iter().any(|problem| problem.contains("\"models\"")), "{problems:#?}");
}

#[test]
fn a_tier_without_hosts_reaches_a_name_that_cannot_exist() {
    let desired = Stack::with_tiers("tiers: [{name: quiet, port: 3001, identity: x}]").desired();
    assert_eq!(file(&desired, "assistant-squid", "lists/tier-quiet.txt"), "nowhere.invalid\n");
}

#[test]
fn zeroclaw_is_configured_for_its_tier() {
    let stack = Stack::drill();
    let inputs = stack.prepare().unwrap();
    let desired = inputs.desired().unwrap();
    let config: toml::Table = file(&desired, "zeroclaw-tasks", "config.toml").parse().unwrap();
    let at = |path: &[&str]| -> toml::Value {
        let mut value = toml::Value::Table(config.clone());
        for key in path {
            value = value.get(key).unwrap_or_else(|| panic!("no {path:?}")).clone();
        }
        value
    };
    let words = |path: &[&str]| -> Vec<String> {
        at(path).as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(at(&["schema_version"]).as_integer(), Some(3));
    let token = inputs.material.tokens.principal(&"zeroclaw-tasks".parse().unwrap()).unwrap();
    assert_eq!(at(&["providers", "models", "litellm", "assistant", "api_key"]).as_str(), Some(token.expose()));
    assert_eq!(
        words(&["gateway", "paired_tokens"]),
        [inputs.material.tokens.gateway(&"tasks".parse().unwrap()).unwrap().sha256()]
    );
    let server = at(&["mcp", "servers"]).as_array().unwrap()[0].clone();
    assert_eq!(server["url"].as_str(), Some("http://mcp:8811/mcp"));
    assert_eq!(server["headers"]["Authorization"].as_str(), Some(format!("Bearer {}", token.expose()).as_str()));
    assert_eq!(words(&["risk_profiles", "tier", "allowed_commands"]), ["curl", "ls", "cat", "echo", "env", "head"]);
    let approved = words(&["risk_profiles", "tier", "auto_approve"]);
    assert!(approved.contains(&"shell".to_owned()) && approved.contains(&"hub__get_tasks".to_owned()), "{approved:?}");
    assert!(!approved.iter().any(|tool| tool == "file_write"), "writing a file asks");
    let excluded = words(&["risk_profiles", "tier", "excluded_tools"]);
    assert!(excluded.contains(&"web_fetch".to_owned()) && !excluded.contains(&"shell".to_owned()));
    let agent = desired.container("zeroclaw-tasks").unwrap();
    let env = |name: &str| agent.env.iter().find(|variable| variable.name == name).unwrap();
    assert_eq!(env("HTTPS_PROXY").value, format!("http://zeroclaw-tasks:{}@10.87.16.2:10255", token.expose()));
    assert!(env("HTTPS_PROXY").secret);
    assert_eq!(env("NO_PROXY").value, "127.0.0.1,localhost,0.0.0.0,models,mcp");
    assert_eq!(env("SSL_CERT_FILE").value, "/etc/assistant/ca.pem");
    let ca = agent.files.iter().find(|file| file.path.ends_with("ca.pem")).unwrap();
    assert_eq!(ca.mode, 0o644, "an unreadable CA file is ignored in silence");
}

#[test]
fn fields_of_the_older_file_reach_zeroclaw() {
    let stack = Stack::with_tiers(
        "tiers: [{name: free, port: 3001, workspace_unrestricted: true, block_high_risk: false, commands: [ls],
         auto_approve: [bash, grep, memory_recall], no_proxy: 'litellm,localhost', model: {name: thinker}}]",
    );
    let desired = stack.desired();
    let config: toml::Table = file(&desired, "zeroclaw-free", "config.toml").parse().unwrap();
    let risk = &config["risk_profiles"]["tier"];
    assert_eq!(risk["workspace_only"].as_bool(), Some(false));
    assert_eq!(risk["block_high_risk_commands"].as_bool(), Some(false));
    assert_eq!(
        risk["auto_approve"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>(),
        ["shell", "content_search", "memory_recall"]
    );
    assert_eq!(config["agents"]["default"]["workspace"]["unrestricted_filesystem"].as_bool(), Some(true));
    assert_eq!(config["providers"]["models"]["litellm"]["assistant"]["model"].as_str(), Some("thinker"));
    assert_eq!(config["mcp"]["enabled"].as_bool(), Some(false));
    assert!(!config.contains_key("mcp_bundles"));
    let agent = desired.container("zeroclaw-free").unwrap();
    let no_proxy = &agent.env.iter().find(|variable| variable.name == "NO_PROXY").unwrap().value;
    assert_eq!(no_proxy, "127.0.0.1,localhost,0.0.0.0,models,mcp,litellm");
}

#[test]
fn mcp_servers_get_placeholders_and_their_own_tokens() {
    let desired = Stack::drill().desired();
    let server = desired.container("mcp-tasks-marvin").unwrap();
    assert_eq!(file(&desired, "mcp-tasks-marvin", "etc/env"), "AMAZING_MARVIN_API_KEY=PLACEHOLDER_MARVIN_API_KEY\n");
    assert_eq!(server.image, "assistant/mcp-amazing-marvin:1");
    let command = server.command.join(" ");
    assert_eq!(
        command,
        "--listen 0.0.0.0:8811 --token-file /etc/assistant/wrapper.token --proxy-token-file /etc/assistant/principal.token \
         --proxy-name mcp-tasks-marvin --proxy http://10.87.17.2:10255 --ca /etc/assistant/ca.pem --env-file \
         /etc/assistant/env -- /usr/local/bin/mcp-server"
    );
}
