//! Each field of a tier and what it changes in the files that are rendered, with and without it.

use assistant_proto::config::{BridgeConfig, BrokerConfig};
use serde_json::{Value, json};
use tier_supervisor::config::{Channel, Tier};

use crate::rendered::file;
use crate::stack::{Stack, write};

/// A tier called `t` with these fields: as checked, and its ZeroClaw's configuration.
fn tier(fields: &str) -> (Tier, Value) {
    let stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
    let inputs = stack.prepare().unwrap_or_else(|error| panic!("{fields}: {error}"));
    let desired = inputs.desired().unwrap();
    let config: toml::Table = file(&desired, "zeroclaw-t", "config.toml").parse().unwrap();
    (inputs.tiers.tiers[0].clone(), serde_json::to_value(config).unwrap())
}

fn remarks(fields: &str) -> Vec<String> {
    let stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
    stack.prepare().unwrap().tiers.remarks.iter().map(ToString::to_string).collect()
}

fn problem(fields: &str) -> String {
    Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]")).problems().join("\n")
}

const RISK: &str = "/risk_profiles/tier";

#[test]
fn zeroclaw_by_field() {
    let table: &[(&str, &str, Value)] = &[
        ("", "/risk_profiles/tier/allowed_commands", json!([])),
        (", commands: [ls, cat]", "/risk_profiles/tier/allowed_commands", json!(["ls", "cat"])),
        // ZeroClaw runs a dangerous command that is named, so one that is to be blocked is not named to it.
        (", commands: [ls, rm, Chmod]", "/risk_profiles/tier/allowed_commands", json!(["ls"])),
        (
            ", commands: [ls, rm, Chmod], block_high_risk: false",
            "/risk_profiles/tier/allowed_commands",
            json!(["ls", "rm", "Chmod"]),
        ),
        ("", "/risk_profiles/tier/auto_approve", json!([])),
        (
            ", auto_approve: [bash, shell, read, write, edit, glob, grep]",
            "/risk_profiles/tier/auto_approve",
            json!(["shell", "file_read", "file_write", "file_edit", "glob_search", "content_search"]),
        ),
        (", auto_approve: [hub__anything, other__thing]", "/risk_profiles/tier/auto_approve", json!([])),
        (", auto_approve: [weather, web_fetch]", "/risk_profiles/tier/auto_approve", json!([])),
        ("", "/tools/optional", json!(["ask_user"])),
        (
            ", auto_approve: [image_info, calculator]",
            "/tools/optional",
            json!(["ask_user", "image_info", "calculator"]),
        ),
        ("", "/risk_profiles/tier/block_high_risk_commands", json!(true)),
        (", block_high_risk: true", "/risk_profiles/tier/block_high_risk_commands", json!(true)),
        (", block_high_risk: false", "/risk_profiles/tier/block_high_risk_commands", json!(false)),
        ("", "/risk_profiles/tier/workspace_only", json!(true)),
        (", workspace_unrestricted: true", "/risk_profiles/tier/workspace_only", json!(false)),
        ("", "/risk_profiles/tier/forbidden_paths", json!(["/etc", "/root", "/proc", "/sys"])),
        (", workspace_unrestricted: true", "/risk_profiles/tier/forbidden_paths", json!([])),
        ("", "/agents/default/workspace", json!({"unrestricted_filesystem": false})),
        (", workspace_unrestricted: true", "/agents/default/workspace", json!({"unrestricted_filesystem": true})),
        (
            ", runtime: docker",
            "/agents/default/workspace",
            json!({"unrestricted_filesystem": false, "path": "/zeroclaw-data/workspace"}),
        ),
        ("", "/runtime", json!({"kind": "native", "shell": "bash"})),
        (
            ", runtime: docker, limits: {memory: 2g, cpus: 1.5}",
            "/runtime",
            json!({"kind": "docker", "docker": {
            "image": "assistant-sandbox:latest", "network": "none", "memory_limit_mb": 2048, "cpu_limit": 1.5,
            "read_only_rootfs": true, "mount_workspace": true,
            "allowed_workspace_roots": ["/zeroclaw-data/workspace"]}}),
        ),
        ("", "/risk_profiles/tier/allowed_roots", json!([])),
        (", runtime: docker", "/risk_profiles/tier/allowed_roots", json!(["/workspace"])),
        (", runtime: docker", "/risk_profiles/tier/shell_env_passthrough", json!(["DOCKER_HOST"])),
        ("", "/providers/models/litellm/assistant/model", json!("assistant")),
        (", model: {name: thinker}", "/providers/models/litellm/assistant/model", json!("thinker")),
        ("", "/mcp/enabled", json!(false)),
        (", mcp: true, identity: x, mcp_dir: mcp/tasks", "/mcp/enabled", json!(true)),
    ];
    for (fields, pointer, expected) in table {
        let (_, config) = tier(fields);
        assert_eq!(config.pointer(pointer), Some(expected), "{fields} {pointer}");
    }
}

#[test]
fn a_shell_is_there_only_with_commands_and_keeps_the_proxy_only_outside_the_sandbox() {
    let excluded = |fields: &str| tier(fields).1.pointer(&format!("{RISK}/excluded_tools")).unwrap().clone();
    let has_shell = |fields: &str| !excluded(fields).as_array().unwrap().contains(&json!("shell"));
    assert!(!has_shell("") && has_shell(", commands: [ls]"));
    assert!(!has_shell(", commands: [rm]") && has_shell(", commands: [rm], block_high_risk: false"));
    let keeps = |fields: &str| tier(fields).1.pointer(&format!("{RISK}/shell_env_passthrough")).unwrap().clone();
    assert!(keeps("").as_array().unwrap().contains(&json!("HTTPS_PROXY")));
    assert!(!keeps(", runtime: docker").as_array().unwrap().contains(&json!("HTTPS_PROXY")));
}

#[test]
fn tools_of_servers_by_their_rule() {
    let with = |tools: &str| {
        let fields = format!(", identity: x, mcp: true, mcp_dir: mcp/tasks, auto_approve: [marvin__get_tasks]{tools}");
        let stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
        let desired = stack.desired();
        let broker: BrokerConfig =
            serde_json::from_str(&file(&desired, "assistant-secret-broker", "config.json")).unwrap();
        let config: toml::Table = file(&desired, "zeroclaw-t", "config.toml").parse().unwrap();
        assert_eq!(config["risk_profiles"]["tier"]["auto_approve"], toml::Value::from(vec!["hub__get_tasks"]));
        serde_json::to_value(&broker.tiers[0].mcp_servers[0].tools).unwrap()
    };
    assert_eq!(with(""), json!("all"));
    assert_eq!(with(", tools: [{server: marvin, allow: [get_tasks]}]"), json!({"only": ["get_tasks"]}));
}

#[test]
fn a_name_that_several_servers_may_use_is_approved_for_one_of_them_only() {
    let stack = two_servers("{}");
    let text = |tools: &str| {
        format!(
            "tiers: [{{name: t, port: 3001, identity: x, mcp: true, mcp_dir: two, auto_approve: [marvin__get, other__get]{tools}}}]"
        )
    };
    for (tools, approved) in [
        ("", ["hub__marvin_get", "hub__other_get"].as_slice()),
        (
            ", tools: [{server: marvin, allow: [get]}, {server: other, allow: [get]}]",
            &["hub__marvin_get", "hub__other_get"],
        ),
        // What is approved for one server is not approved for the other that has the name.
        (", tools: [{server: marvin, allow: [get]}, {server: other, allow: [put]}]", &["hub__get"]),
        (", tools: [{server: other, allow: [put]}]", &[]),
    ] {
        write(&stack.settings.tiers_file, &text(tools), 0o644);
        let config: toml::Table = file(&stack.desired(), "zeroclaw-t", "config.toml").parse().unwrap();
        let found: Vec<&str> = config["risk_profiles"]["tier"]["auto_approve"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(toml::Value::as_str)
            .collect();
        assert_eq!(found, approved, "{tools}");
    }
}

/// An MCP folder `two`: marvin, and `other` from an image that is on the machine but not the stack's.
fn two_servers(config: &str) -> Stack {
    let stack = Stack::with_tiers("tiers: [{name: t, port: 3001, identity: x, mcp: true, mcp_dir: two}]");
    let folder = stack.dir.path().join("two");
    write(
        &folder.join("catalogs/catalog.yaml"),
        "registry:
  marvin:
    image: zeroclaw/amazing-marvin-mcp:local
    secrets: [{name: marvin_api_key, env: AMAZING_MARVIN_API_KEY}]
  other:
    image: example/other-mcp:1.2
    command: [/app/other, --stdio, --stdio]
",
        0o644,
    );
    write(&folder.join("registry.yaml"), "registry: {marvin: {ref: ''}, other: {ref: ''}}\n", 0o644);
    write(&folder.join("secrets.env"), "marvin_api_key=PLACEHOLDER_MARVIN\n", 0o644);
    write(&folder.join("config.yaml"), config, 0o644);
    let images = std::fs::read_to_string(&stack.settings.images_file).unwrap();
    let mut images: Value = serde_json::from_str(&images).unwrap();
    images["example/other-mcp:1.2"] = json!("sha256:1111");
    write(&stack.settings.images_file, &images.to_string(), 0o644);
    stack
}

#[test]
fn an_image_of_anyones_runs_with_the_command_and_the_variables_of_its_folder() {
    let stack = two_servers("other: {env: {TZ: Europe/Berlin, PAGE_SIZE: 50, VERBOSE: true}}\n");
    let desired = stack.desired();
    let spec = desired.container("mcp-t-other").unwrap();
    assert_eq!(spec.image, "sha256:1111");
    let command = spec.command.join(" ");
    assert!(command.ends_with("-- /app/other --stdio --stdio"), "{command}");
    assert_eq!(file(&desired, "mcp-t-other", "etc/env"), "TZ=Europe/Berlin\nPAGE_SIZE=50\nVERBOSE=true\n");
    assert_eq!(file(&desired, "mcp-t-marvin", "etc/env"), "AMAZING_MARVIN_API_KEY=PLACEHOLDER_MARVIN\n");
    let images = tier_supervisor::config::catalogue_images(&stack.settings.tiers_file);
    assert_eq!(images, ["zeroclaw/amazing-marvin-mcp:local", "example/other-mcp:1.2"]);
}

#[test]
fn what_an_image_of_anyones_needs_is_said_at_its_line() {
    let stack =
        two_servers("other: {env: {PATH: /x, API_KEY: x, lower: x, A: [x]}}\nothre: {}\nmarvin: {environment: {}}\n");
    let catalog = stack.dir.path().join("two/catalogs/catalog.yaml");
    let text = std::fs::read_to_string(&catalog).unwrap();
    write(&catalog, &text.replace("    command: [/app/other, --stdio, --stdio]\n", ""), 0o644);
    let problems = stack.problems();
    for what in [
        "two/config.yaml:1:15: this variable is set by the stack itself",
        "two/config.yaml:1:25: this variable sounds like a secret",
        "two/config.yaml:1:37: this is not the name of a variable",
        "two/config.yaml:1:50: this is not a plain value",
        "two/config.yaml:2:1: catalogs/catalog.yaml defines no server \"othre\"; did you mean \"other\"?",
        "two/config.yaml:3:10: an override of a server has no field \"environment\"",
        "two/catalogs/catalog.yaml:6:12: the image of server other is not one of the stack's, so its program must be named",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(what)), "{what}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), 7, "{problems:#?}");
    write(&catalog, &text.replace("example/other-mcp:1.2", "example/othre-mcp:1.2"), 0o644);
    write(&stack.dir.path().join("two/config.yaml"), "{}\n", 0o644);
    let problems = stack.problems();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].starts_with("two/catalogs/catalog.yaml:6:12: the image of server other is not on this machine")
            && problems[0].contains("did you mean \"example/other-mcp:1.2\"?"),
        "{problems:#?}"
    );
    write(&catalog, &text.replace("/app/other", "other"), 0o644);
    assert!(stack.problems()[0].contains("the program must be an absolute path"));
}

#[test]
fn what_a_tier_reaches_without_saying_so() {
    let floor = |stack: &mut Stack| {
        let path = stack.dir.path().join("allowlist.txt");
        write(&path, "a.example\n.b.example\n.amazonaws.com\napi.telegram.org\nmodel.drill.example\n", 0o644);
        stack.settings.allowlist_file = path;
    };
    let read = |fields: &str| {
        let mut stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
        floor(&mut stack);
        stack.prepare().unwrap_or_else(|error| panic!("{error}")).tiers
    };
    let egress = |fields: &str| read(fields).tiers[0].egress.clone();
    let hosts = |fields: &str| -> Vec<String> {
        egress(fields).map(|egress| egress.hosts.iter().map(ToString::to_string).collect()).unwrap_or_default()
    };
    let implicit = egress("").unwrap();
    assert!(implicit.implicit && implicit.read_only);
    for fields in ["", ", identity: null"] {
        assert_eq!(hosts(fields), ["a.example", ".b.example"], "{fields}");
    }
    let said: Vec<String> = read("").remarks.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|remark| remark
            .contains("implicit: tier t may read (GET and HEAD, no body) from a.example, .b.example (3 more")),
        "{said:#?}"
    );
    let explicit = egress(", egress: {hosts: [a.example], methods: [POST]}").unwrap();
    assert!(!explicit.implicit && !explicit.read_only && explicit.methods == ["POST"]);
    assert_eq!(egress(", egress: {hosts: []}"), None, "written down as empty");
    assert!(egress(", identity: x").is_none());
    assert!(read(", identity: x").remarks.iter().any(|remark| remark.what == "tier t reaches no host of the internet"));
    let mut stack = Stack::with_tiers("tiers: [{name: t, port: 3001, egress: {hosts: [api.telegram.org]}}]");
    floor(&mut stack);
    assert!(stack.problems()[0].contains("open to the stack's services only"), "{:#?}", stack.problems());
}

#[test]
fn implied_credentials_end_where_the_section_begins() {
    let credentials = |fields: &str| tier(&format!(", mcp: true, mcp_dir: mcp/tasks{fields}")).0.credentials;
    assert_eq!(credentials(", identity: x").len(), 1);
    assert_eq!(credentials(", identity: x, credentials: []"), Vec::new());
    let own = ", identity: x, credentials: [{secret: marvin_api_key, hosts: [serv.amazingmarvin.com], header: X-Own}]";
    assert_eq!(credentials(own).iter().map(|one| one.header.as_str()).collect::<Vec<_>>(), ["x-own"]);
    assert_eq!(credentials(""), Vec::new(), "without an identity");
    let said = remarks(", mcp: true, mcp_dir: mcp/tasks").join("\n");
    assert!(said.contains("MCP server marvin has no credential, since the tier has no identity"), "{said}");
}

#[test]
fn gates_and_names_that_are_taken() {
    let (tier, _) = tier(", identity: x, mcp: true, mcp_dir: mcp/tasks, mcp_port: 8811");
    assert_eq!((tier.port, tier.mcp_port), (3001, Some(8811)));
    assert!(problem(", mcp_port: 8811").contains("\"mcp_port\" has no effect without mcp: true"));
    assert!(
        problem(", mcp: true, mcp_dir: mcp/tasks, mcp_port: 3001")
            .contains("port 3001 is already used by \"port\" of t")
    );
    for (port, owner) in [(3030, "Grafana"), (16686, "Jaeger"), (10254, "the vault page"), (4222, "NATS")] {
        let problems = Stack::with_tiers(&format!("tiers: [{{name: t, port: {port}}}]")).problems();
        assert!(problems[0].contains(&format!("already used by the gate of {owner}")), "{problems:#?}");
    }
    for name in ["models", "tee", "channels", "telemetry"] {
        let problems = Stack::with_tiers(&format!("tiers: [{{name: {name}, port: 3001}}]")).problems();
        assert!(problems[0].contains("is the name of a service's user at Squid"), "{problems:#?}");
    }
    assert!(problem(", build_sandbox: true").contains("\"build_sandbox\" has no effect without runtime: docker"));
    assert!(problem(", runtime: dockr").contains("did you mean \"docker\"?"));
}

#[test]
fn channels_and_bots() {
    let with = |bots: Value, fields: &str| {
        let mut stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
        stack.settings.telegram = serde_json::from_value(bots).unwrap();
        for bot in &stack.settings.telegram {
            stack.secret(bot.token_secret.as_str(), "1:x");
        }
        match stack.prepare() {
            Ok(inputs) => Ok(inputs.tiers.tiers[0].channels.clone()),
            Err(error) => Err(error.sentences().join("\n")),
        }
    };
    let bots = json!([
        {"name": "telegram", "token_secret": "telegram_bot_token", "allowed_user_ids": [1]},
        {"name": "family", "token_secret": "telegram_bot_token_family", "allowed_user_ids": [1]}
    ]);
    let telegram = |bot: &str| vec![Channel::Telegram { bot: bot.to_owned() }];
    assert_eq!(with(json!([]), ""), Ok(Vec::new()));
    assert_eq!(with(bots.clone(), ""), Ok(telegram("telegram")));
    assert_eq!(with(bots.clone(), ", channels: {}"), Ok(Vec::new()));
    assert_eq!(with(bots.clone(), ", channels: {telegram: }"), Ok(telegram("telegram")));
    assert_eq!(with(bots.clone(), ", channels: {telegram: {bot: family}}"), Ok(telegram("family")));
    for (fields, what) in [
        (", channels: {telegram: {bot: famly}}", "did you mean \"family\"?"),
        (", channels: {signal: {}}", "this channel is not supported yet"),
        (", channels: {telegramm: {}}", "did you mean \"telegram\"?"),
        (", channels: [telegram]", "\"channels\" is a list"),
    ] {
        let problem = with(bots.clone(), fields).unwrap_err();
        assert!(problem.contains(what), "{fields}: {problem}");
    }
    assert!(
        with(json!([]), ", channels: {telegram: {bot: family}}").unwrap_err().contains("TELEGRAM_BOT_TOKEN_FAMILY")
    );
}

#[test]
fn a_bot_knows_the_tiers_that_name_it() {
    let mut stack = Stack::with_tiers(
        "tiers: [{name: a, port: 3001, channels: {}}, {name: b, port: 3002}, {name: c, port: 3003,
         channels: {telegram: {bot: family}}}]",
    );
    stack.settings.telegram = serde_json::from_value(json!([
        {"name": "telegram", "token_secret": "telegram_bot_token", "allowed_user_ids": [1]},
        {"name": "family", "token_secret": "telegram_bot_token_family", "allowed_user_ids": [1]}
    ]))
    .unwrap();
    for bot in &stack.settings.telegram {
        stack.secret(bot.token_secret.as_str(), "1:x");
    }
    let config: BridgeConfig =
        serde_json::from_str(&file(&stack.desired(), "assistant-channel-bridge", "config.json")).unwrap();
    let bots =
        config.telegram.iter().map(|bot| (bot.name.as_str(), bot.tiers.iter().map(ToString::to_string).collect()));
    let bots: Vec<(&str, Vec<String>)> = bots.collect();
    assert_eq!(bots, [("telegram", vec!["b".to_owned()]), ("family", vec!["c".to_owned()])]);
    let tiers: Vec<String> = config.tiers.iter().map(|tier| tier.name.to_string()).collect();
    assert_eq!(tiers, ["a", "b", "c"], "the terminal reaches all of them");
}

#[test]
fn an_image_of_ones_own_is_the_agents() {
    let stack = Stack::with_tiers("tiers: [{name: a, port: 3001, image: 'me/zeroclaw:v9'}, {name: b, port: 3002}]");
    let images = std::fs::read_to_string(&stack.settings.images_file).unwrap();
    let images: Value = serde_json::from_str(&images).unwrap();
    let mut with = images.clone();
    with["me/zeroclaw:v9"] = json!("sha256:2222");
    write(&stack.settings.images_file, &with.to_string(), 0o644);
    let desired = stack.desired();
    assert_eq!(desired.container("zeroclaw-a").unwrap().image, "sha256:2222");
    assert_eq!(desired.container("zeroclaw-b").unwrap().image, "assistant/zeroclaw:1", "the stack's, by default");
    let text =
        "defaults: {image: 'me/zeroclaw:v9'}\ntiers: [{name: a, port: 3001}, {name: b, port: 3002, image: zeroclaw}]";
    write(&stack.settings.tiers_file, text, 0o644);
    let desired = stack.desired();
    assert_eq!(desired.container("zeroclaw-a").unwrap().image, "sha256:2222", "`defaults` says it for all");
    assert_eq!(desired.container("zeroclaw-b").unwrap().image, "assistant/zeroclaw:1");
    write(&stack.settings.images_file, &images.to_string(), 0o644);
    assert!(stack.problems()[0].contains("this image is not on this machine"), "{:#?}", stack.problems());
}

#[test]
fn classes_of_confidentiality() {
    let with = |tee: bool, open: bool, fields: &str| {
        let mut stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001{fields}}}]"));
        if tee {
            let route = json!({"key_secret": "privatemode_api_key", "models": {"assistant": "a", "attested": "b"}});
            stack.settings.tee = serde_json::from_value(route).unwrap();
            stack.secret("privatemode_api_key", "x");
        }
        if !open {
            stack.settings.model = None;
        }
        match stack.prepare() {
            Ok(inputs) => Ok((inputs.tiers.tiers[0].model.clone(), inputs.tiers.tiers[0].confidential.as_str())),
            Err(error) => Err(error.sentences().join("\n")),
        }
    };
    let ok = |model: &str, class| Ok((model.to_owned(), class));
    assert_eq!(with(false, true, ""), ok("assistant", "none"));
    assert_eq!(with(true, true, ""), ok("assistant", "required"));
    assert_eq!(with(true, false, ""), ok("assistant", "required"));
    assert_eq!(with(true, true, ", model: {confidential: none, name: thinker}"), ok("thinker", "none"));
    assert_eq!(with(true, true, ", model: {name: attested}"), ok("attested", "required"));
    for (tee, open, fields, what) in [
        (false, true, ", model: {confidential: required}", "write PRIVATEMODE_API_KEY into .env"),
        (true, false, ", model: {confidential: none}", "write OPENAI_BASE_URL"),
        (true, true, ", model: {name: thinker}", "there is no such model"),
        (true, true, ", model: {confidential: maybe}", "use one of: required, none"),
    ] {
        let problem = with(tee, open, fields).unwrap_err();
        assert!(problem.contains(what), "{fields}: {problem}");
    }
}

#[test]
fn names_that_are_not_what_one_could_think() {
    for (fields, what) in [
        (", auto_approve: [bash]", "ZeroClaw calls this tool shell today"),
        (", auto_approve: [web_fetch]", "goes round every proxy"),
        (", auto_approve: [shel]", "did you mean \"shell\"?"),
        (", auto_approve: [marvin__x]", "of an MCP server that the tier does not have"),
        (", auto_approve: [memory_recall]", "has no memory beside them"),
        (", commands: [ls, rm]", "block_high_risk is true: it stays blocked"),
        (", commands: [tee], block_high_risk: false", "refuses every command line with this command"),
    ] {
        let said = remarks(fields);
        assert!(said.iter().any(|remark| remark.contains(what)), "{fields}: {said:#?}");
    }
    let silent =
        remarks(", auto_approve: [shell, calculator, glob_search], commands: [ls, rm], block_high_risk: false");
    assert!(silent.iter().all(|remark| remark.contains("implicit")), "{silent:#?}");
}
