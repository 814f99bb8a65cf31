//! What the stack's own services reach outside: Squid's rules, the kernel table's, and the files that lead there.

use std::collections::BTreeSet;

use assistant_proto::config::{BridgeConfig, BrokerConfig, LITELLM_PROVIDER_MODELS};
use serde_json::{Value, json};
use tier_supervisor::desired::{Content, Desired, Exit};
use tier_supervisor::kernel;

use crate::rendered::file;
use crate::stack::{Stack, project, write};

const TIERS: &str = "tiers: [{name: tasks, port: 3001, egress: {hosts: [serv.amazingmarvin.com]}}]";

pub(crate) fn with_model(base_url: &str) -> Stack {
    let mut stack = Stack::with_tiers(TIERS);
    let model = json!({"base_url": base_url, "key_secret": "model_api_key", "models": {"assistant": "m \"1\""}});
    stack.settings.model = serde_json::from_value(model).unwrap();
    stack
}

fn squid(desired: &Desired) -> Vec<String> {
    file(desired, "assistant-squid", "squid.conf").lines().map(str::to_owned).collect()
}

fn place(lines: &[String], line: &str) -> usize {
    lines.iter().position(|there| there == line).unwrap_or_else(|| panic!("{line}\nnot in\n{}", lines.join("\n")))
}

/// Lines of a set's elements in one family of the kernel table.
fn elements(desired: &Desired, family: &str, set: &str) -> BTreeSet<String> {
    let script = kernel::ruleset(desired, &[]).script().to_owned();
    let table = script.split(&format!("table {family} assistant {{")).nth(1).unwrap();
    let text = table.split(&format!("\tset {set} {{")).nth(1).unwrap();
    let text = text.split("\n\t}\n").next().unwrap();
    text.lines().map(str::trim).filter_map(|line| line.strip_suffix(',')).map(str::to_owned).collect()
}

fn strings(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_public_model_host_is_open_to_its_own_user_alone() {
    let desired = with_model("https://model.drill.example/v1").desired();
    let lines = squid(&desired);
    let own = place(&lines, "http_access deny user_service_models !hosts_service_models all");
    let nonpublic = place(&lines, "http_access deny nonpublic all");
    let allow = place(&lines, "http_access allow user_service_models hosts_service_models");
    assert!(own < nonpublic && nonpublic < allow);
    assert!(place(&lines, "http_access deny user_service_models !https all") < own);
    place(&lines, "acl tls_port port 443");
    place(&lines, "ssl_bump splice step2 user_service_models sni_service_models sni_ok");
    assert_eq!(desired.exits, BTreeSet::new());
    assert_eq!(elements(&desired, "bridge", "exit_ports"), strings(&["443"]));
    assert_eq!(elements(&desired, "bridge", "endpoints"), strings(&[]));
}

#[test]
fn another_port_is_open_to_its_own_user_alone() {
    let desired = with_model("https://model.drill.example:8443/v1").desired();
    let lines = squid(&desired);
    place(&lines, "acl tls_port port 443 8443");
    place(&lines, "acl port_service_models port 8443");
    let allow = place(&lines, "http_access allow user_service_models hosts_service_models");
    for line in [
        "http_access deny user_tier_tasks !https all",
        "http_access deny user_service_models !port_service_models all",
        "http_access deny nonpublic all",
    ] {
        assert!(place(&lines, line) < allow, "{line}");
    }
    assert_eq!(desired.exits, BTreeSet::from([Exit::Port(8443)]));
    for family in ["bridge", "inet"] {
        assert_eq!(elements(&desired, family, "exit_ports"), strings(&["443", "8443"]));
    }
}

#[test]
fn a_server_at_home_is_one_host_one_port_and_one_scheme() {
    let desired = with_model("http://192.168.1.20:11434/v1").desired();
    let lines = squid(&desired);
    let allow = "http_access allow !CONNECT plain_service_models hosts_service_models port_service_models \
                 user_service_models";
    // Before everything that would deny it, and the only line of its kind.
    let at = place(&lines, allow);
    let first = lines.iter().position(|line| line.starts_with("http_access")).unwrap();
    assert_eq!(at, first);
    assert_eq!(lines.iter().filter(|line| line.contains("!CONNECT") && line.contains("allow")).count(), 1);
    for line in [
        "acl plain_service_models proto HTTP",
        "acl port_service_models port 11434",
        "acl tls_port port 443",
        "http_access deny !CONNECT all",
        "http_access deny ip_literal all",
        "http_access deny user_service_models all",
        "http_access deny nonpublic all",
    ] {
        assert_ne!(place(&lines, line), at, "{line}");
    }
    assert!(!lines.iter().any(|line| line.starts_with("http_access allow user_service_models")));
    assert!(!lines.iter().any(|line| line.starts_with("ssl_bump") && line.contains("models")));
    assert_eq!(file(&desired, "assistant-squid", "lists/service-models.txt"), "192.168.1.20\n");
    assert_eq!(desired.exits, BTreeSet::from([Exit::Address("192.168.1.20:11434".parse().unwrap())]));
    for family in ["bridge", "inet"] {
        assert_eq!(elements(&desired, family, "endpoints"), strings(&["192.168.1.20 . 11434"]));
        assert_eq!(elements(&desired, family, "exit_ports"), strings(&["443"]));
    }
    let config = litellm(&desired, "assistant-litellm");
    assert_eq!(config["model_list"][0]["litellm_params"]["api_base"], "http://192.168.1.20:11434/v1");

    let desired = with_model("https://192.168.1.20/v1").desired();
    let lines = squid(&desired);
    assert_eq!(
        place(&lines, "http_access allow CONNECT hosts_service_models port_service_models user_service_models"),
        lines.iter().position(|line| line.starts_with("http_access")).unwrap()
    );
    place(&lines, "ssl_bump splice step2 hosts_service_models port_service_models user_service_models");
    assert_eq!(desired.exits, BTreeSet::from([Exit::Address("192.168.1.20:443".parse().unwrap())]));
}

#[test]
fn plain_http_does_not_cross_the_internet() {
    let problems = with_model("http://203.0.113.10/v1").problems();
    assert!(problems.join("").contains("would cross the internet in the clear"), "{problems:?}");
    // A name is looked up where there is somebody to ask, which in a drill there is not.
    let desired = with_model("http://llm.home.arpa:8000/v1").desired();
    assert_eq!(desired.exits, BTreeSet::new());
    assert!(desired.remarks.iter().any(|remark| remark.starts_with("llm.home.arpa has no address")));
    place(&squid(&desired), "acl port_service_models port 8000");
}

/// An endpoint among our own addresses would be a way from Squid to a container of ours.
#[test]
fn our_own_addresses_are_no_endpoint() {
    let desired = with_model("http://10.87.1.5:4222/v1").desired();
    assert_eq!(elements(&desired, "bridge", "endpoints"), strings(&[]));
    assert_eq!(elements(&desired, "inet", "endpoints"), strings(&[]));
}

fn litellm(desired: &Desired, container: &str) -> Value {
    let text = file(desired, container, "litellm.yaml");
    // JSON below a comment: YAML to LiteLLM, and to this test what it is.
    let (comment, json) = text.split_once('\n').unwrap();
    assert!(comment.starts_with('#'));
    serde_json::from_str(json).unwrap()
}

/// Everything that leads out, at once.
pub(crate) fn whole() -> Stack {
    let mut stack = Stack::with_tiers(
        "tiers:
  - {name: tasks, identity: x, port: 3001, egress: {hosts: [serv.amazingmarvin.com]}, channels: {telegram: }}
  - {name: open, identity: x, port: 3002, model: {confidential: none}, channels: {}}
",
    );
    let tee = json!({"key_secret": "privatemode_api_key", "models": {"assistant": "gpt-oss-120b"}});
    stack.settings.tee = serde_json::from_value(tee).unwrap();
    let bots = json!([{"name": "telegram", "token_secret": "telegram_bot_token", "allowed_user_ids": [1_000_001]}]);
    stack.settings.telegram = serde_json::from_value(bots).unwrap();
    stack.settings.otlp_export = Some("https://otlp.example.org".to_owned());
    for secret in ["privatemode_api_key", "telegram_bot_token"] {
        stack.secret(secret, "x");
    }
    stack
}

#[test]
fn each_service_has_its_own_hosts_and_no_tier_has_any_of_them() {
    let desired = whole().desired();
    for (list, hosts) in [
        ("service-models", "model.drill.example\n"),
        ("service-tee", "api.privatemode.ai\ncdn.confidential.cloud\n"),
        ("service-channels", "api.telegram.org\n"),
        ("service-telemetry", "otlp.example.org\n"),
        (
            "services",
            "api.privatemode.ai\napi.telegram.org\ncdn.confidential.cloud\nmodel.drill.example\notlp.example.org\n",
        ),
    ] {
        assert_eq!(file(&desired, "assistant-squid", &format!("lists/{list}.txt")), hosts, "{list}");
    }
    let users = file(&desired, "assistant-squid", "users");
    let users: BTreeSet<&str> = users.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(users, BTreeSet::from(["tasks", "open", "models", "tee", "channels", "telemetry"]));
    let lines = squid(&desired);
    let first_allow = lines.iter().position(|line| line.starts_with("http_access allow")).unwrap();
    for tier in ["tasks", "open"] {
        assert!(place(&lines, &format!("http_access deny user_tier_{tier} service_hosts all")) < first_allow);
    }
    for user in ["models", "tee", "channels", "telemetry"] {
        let deny = format!("http_access deny user_service_{user} !hosts_service_{user} all");
        assert!(place(&lines, &deny) < first_allow);
        // Whatever allows somebody allows exactly one user.
        let allows =
            lines.iter().filter(|line| line.contains("allow") && line.contains(&format!("user_service_{user}")));
        assert_eq!(allows.count(), 1, "{user}");
    }
    // A user that nothing needs does not exist.
    let few = Stack::with_tiers(TIERS).desired();
    let users = file(&few, "assistant-squid", "users");
    assert_eq!(users.lines().map(|line| line.split(':').next().unwrap()).collect::<Vec<_>>(), ["tasks", "models"]);
}

#[test]
fn each_litellm_goes_one_way_and_tells_nobody() {
    let desired = whole().desired();
    let (open, tee) = (litellm(&desired, "assistant-litellm"), litellm(&desired, "assistant-litellm-confidential"));
    let models = |config: &Value| -> Vec<(String, String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list = config["model_list"].as_array().unwrap().iter();
        list.map(|entry| {
            let params = &entry["litellm_params"];
            (text(&entry["model_name"]), text(&params["model"]), text(&params["api_base"]), text(&params["api_key"]))
        })
        .collect()
    };
    let row = |name: &str, model: &str, base: &str, key: &str| [name, model, base, key].map(str::to_owned).into();
    assert_eq!(
        models(&open),
        [
            row("assistant", "openai/drill-model", "https://model.drill.example/v1", "os.environ/MODEL_API_KEY"),
            row("thinker", "openai/drill-model", "https://model.drill.example/v1", "os.environ/MODEL_API_KEY"),
        ]
    );
    assert_eq!(models(&tee), [row("assistant", "openai/gpt-oss-120b", "http://10.87.4.12:8080/v1", "none")]);
    // The provider's own list, and no other path of it; the key is LiteLLM's to put in, where there is one.
    let list = |config: &Value| {
        let endpoints = config["general_settings"]["pass_through_endpoints"].as_array().unwrap();
        let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
        assert_eq!((&endpoint["path"], &endpoint["methods"]), (&LITELLM_PROVIDER_MODELS.into(), &json!(["GET"])));
        assert_eq!((&endpoint["auth"], &endpoint["forward_headers"]), (&true.into(), &false.into()));
        assert_eq!(endpoint["include_subpath"], false);
        (endpoint["target"].clone(), endpoint["headers"].get("authorization").cloned())
    };
    let key = json!("Bearer os.environ/MODEL_API_KEY");
    assert_eq!(list(&open), (json!("https://model.drill.example/v1/models"), Some(key)));
    assert_eq!(list(&tee), (json!("http://10.87.4.12:8080/v1/models"), None));
    for config in [&open, &tee] {
        assert_eq!(config["general_settings"]["master_key"], "os.environ/LITELLM_MASTER_KEY");
        assert_eq!(config["general_settings"]["disable_model_info_refresh"], true);
        let settings = &config["litellm_settings"];
        assert_eq!((&settings["drop_params"], &settings["num_retries"]), (&false.into(), &1.into()));
        assert_eq!((&settings["turn_off_message_logging"], &settings["telemetry"]), (&true.into(), &false.into()));
        assert!(!config.to_string().contains("fallback"), "{config}");
    }
    let files = |name: &str| -> Vec<String> {
        let spec = desired.container(name).unwrap();
        let secret = spec.files.iter().filter(|file| file.secret);
        secret.map(|file| file.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(files("assistant-litellm"), ["LITELLM_MASTER_KEY", "MODEL_API_KEY", "HTTPS_PROXY", "HTTP_PROXY"]);
    assert_eq!(files("assistant-litellm-confidential"), ["LITELLM_MASTER_KEY"], "no proxy, no key of any account");
    for name in ["assistant-litellm", "assistant-litellm-confidential"] {
        assert!(desired.container(name).unwrap().env.is_empty(), "{name}");
    }
    let broker: BrokerConfig = serde_json::from_str(&file(&desired, "assistant-secret-broker", "config.json")).unwrap();
    let routes: Vec<_> = broker
        .models
        .iter()
        .map(|route| {
            let key = route.key_file.strip_prefix("/etc/assistant").unwrap().to_str().unwrap();
            (route.confidential.as_str(), route.litellm.to_string(), file(&desired, "assistant-secret-broker", key))
        })
        .collect();
    let upstream: Vec<_> = broker
        .models
        .iter()
        .flat_map(|route| route.upstream.iter().map(|model| (route.provider.as_str(), model)))
        .map(|(provider, model)| (provider, model.name.as_str(), model.upstream.as_str(), model.named_in.as_str()))
        .collect();
    let place = |name: &str| format!("model.models.{name} in supervisor.json");
    assert_eq!(
        upstream,
        [
            ("PrivateMode", "assistant", "gpt-oss-120b", place("assistant").as_str()),
            ("https://model.drill.example/v1", "assistant", "drill-model", place("assistant").as_str()),
            ("https://model.drill.example/v1", "thinker", "drill-model", place("thinker").as_str()),
        ]
    );
    let master = |name: &str| file(&desired, name, "keys/LITELLM_MASTER_KEY");
    assert_eq!(
        routes,
        [
            ("required", "10.87.4.13:4000".to_owned(), master("assistant-litellm-confidential")),
            ("none", "10.87.4.11:4000".to_owned(), master("assistant-litellm")),
        ]
    );
    assert!(routes.iter().all(|(_, _, key)| key.starts_with("sk-") && key.len() == 46));
    assert_eq!(broker.tiers.iter().map(|tier| tier.confidential.as_str()).collect::<Vec<_>>(), ["required", "none"]);
}

#[test]
fn the_tee_proxy_is_started_as_strictly_as_it_can_be() {
    let desired = whole().desired();
    let proxy = desired.container("assistant-privatemode").unwrap();
    assert_eq!(
        proxy.command,
        [
            "--apiKey=@/etc/assistant/keys/privatemode_api_key",
            "--port=8080",
            "--workspace=/var/lib/assistant",
            "--nvidiaOCSPAllowUnknown=false",
            "--nvidiaOCSPRevokedGracePeriod=0",
        ]
    );
    let variable = proxy.env.iter().find(|variable| variable.name == "HTTPS_PROXY").unwrap();
    assert!(
        variable.secret && variable.value.starts_with("http://tee:") && variable.value.ends_with("@10.87.3.8:3128")
    );
}

#[test]
fn channel_bridge_knows_its_bots_and_what_each_tier_may_be_linked_to() {
    let desired = whole().desired();
    let bridge: BridgeConfig =
        serde_json::from_str(&file(&desired, "assistant-channel-bridge", "config.json")).unwrap();
    let [bot] = bridge.telegram.as_slice() else { panic!("{:?}", bridge.telegram) };
    assert_eq!((bot.name.as_str(), bot.api_url.as_str()), ("telegram", "https://api.telegram.org"));
    assert_eq!(bot.allowed_user_ids, [1_000_001]);
    assert_eq!(bot.tiers.iter().map(|tier| tier.as_str()).collect::<Vec<_>>(), ["tasks"]);
    let egress = bridge.egress.unwrap();
    assert_eq!((egress.squid.to_string().as_str(), egress.squid_user.as_str()), ("10.87.3.8:3128", "channels"));
    let spec = desired.container("assistant-channel-bridge").unwrap();
    for path in [&bot.token_file, &egress.squid_password_file, &egress.upstream_roots[0]] {
        let inside = path.strip_prefix("/etc/assistant").unwrap();
        let file = spec.files.iter().find(|file| file.path.ends_with(inside)).unwrap_or_else(|| panic!("{inside:?}"));
        let copied = matches!(&file.content, Content::CopyOf { .. });
        assert_eq!(copied, path != &egress.squid_password_file);
    }
    assert_eq!(bridge.tiers[0].reachable, ["serv.amazingmarvin.com"]);
    assert!(bridge.tiers[1].reachable.is_empty());
    // Without a bot there is no way out at all.
    let few = Stack::with_tiers(TIERS).desired();
    let bridge: BridgeConfig = serde_json::from_str(&file(&few, "assistant-channel-bridge", "config.json")).unwrap();
    assert!(bridge.egress.is_none() && bridge.telegram.is_empty());
    assert!(few.container("assistant-channel-bridge").unwrap().address_on("assistant-transit").is_none());
}

#[test]
fn an_image_of_somebody_else_gets_the_wrapper_mounted() {
    let mounted = |stack: &Stack| -> Vec<String> {
        let desired = stack.desired();
        let server = desired.container("mcp-tasks-marvin").unwrap();
        let wrapper = server.mounts.iter().filter(|mount| mount.target == "/usr/lib/assistant/mcp-stdio");
        wrapper.map(|mount| format!("{:?} {}", mount.source, mount.read_only)).collect()
    };
    assert_eq!(mounted(&Stack::drill()), Vec::<String>::new());
    let stack = Stack::with_tiers(
        "tiers: [{name: tasks, identity: tasks, port: 3001, mcp: true, tools: [{server: marvin, allow: [get_tasks]}]}]",
    );
    let images = std::fs::read_to_string(&stack.settings.images_file).unwrap();
    let theirs = images.replace("assistant/mcp-amazing-marvin:1", "ghcr.io/somebody/marvin@sha256:0");
    std::fs::write(&stack.settings.images_file, theirs).unwrap();
    // Their program is not where ours have it: the catalogue says so.
    let folder = stack.dir.path().join("mcp");
    std::fs::remove_file(&folder).unwrap();
    for file in ["catalogs/catalog.yaml", "registry.yaml", "config.yaml", "secrets.env"] {
        let text = std::fs::read_to_string(project().join("deploy/mcp/tasks").join(file)).unwrap();
        let text = text.replace("    image: zeroclaw", "    command: [/usr/bin/server]\n    image: zeroclaw");
        write(&folder.join("tasks").join(file), &text, 0o644);
    }
    assert_eq!(mounted(&stack), ["Bind(\"/usr/local/lib/assistant/bin/mcp-stdio\") true"]);
}
