//! The older stack's files, unchanged: a set of ours with every field of theirs, and theirs where they are at hand.

use std::path::Path;

use assistant_proto::config::{BrokerConfig, Confidentiality, Mode, Place, PrincipalKind, ToolRule};
use serde_json::Value;
use tier_supervisor::config::{AllowedTools, Fate, Runtime, Tier, import};

use crate::rendered::file;
use crate::sets::Set;

impl Set {
    /// Lines of the tiers file, from 1, that have this text.
    fn lines(&self, needle: &str) -> Vec<usize> {
        lines(&self.tiers, needle)
    }
}

fn lines(path: &Path, needle: &str) -> Vec<usize> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().enumerate().filter(|(_, line)| line.contains(needle)).map(|(index, _)| index + 1).collect()
}

/// Lines of tier items: `  - name: x`.
fn tier_lines(set: &Set) -> Vec<usize> {
    set.names.iter().map(|name| set.lines(&format!("  - name: {name}"))[0]).collect()
}

#[test]
fn there_are_three_tiers_with_every_field() {
    for set in Set::all() {
        let tiers = set.read();
        let names: Vec<&str> = tiers.tiers.iter().map(|tier| tier.name.as_str()).collect();
        assert_eq!(names, set.names);
        let [first, second, third] = tiers.tiers.as_slice() else { panic!() };
        for (tier, other) in [(first, second), (second, first)] {
            assert!(tier.identity.is_some() && tier.identity != other.identity);
            assert_eq!(tier.runtime, Runtime::Native);
            assert!(!tier.build_sandbox && tier.block_high_risk && !tier.workspace_unrestricted);
            assert!(tier.mcp_port.is_some() && tier.mcp_port != other.mcp_port);
            assert_eq!(tier.commands, Vec::<String>::new());
            let [server] = tier.servers.as_slice() else { panic!() };
            assert_eq!(server.image, "zeroclaw/amazing-marvin-mcp:local");
            assert_eq!(server.env, [("AMAZING_MARVIN_API_KEY".to_owned(), "PLACEHOLDER_ONECLI_INJECTS".to_owned())]);
            let line = tier.line;
            assert_eq!(tier.tools, [AllowedTools { server: server.name.clone(), rule: ToolRule::All, line }]);
        }
        assert_eq!(third.identity, None);
        assert_eq!(third.runtime, Runtime::Docker);
        assert!(third.build_sandbox && !third.block_high_risk && third.workspace_unrestricted);
        assert_eq!((third.mcp_port, third.servers.len(), third.tools.len()), (None, 0, 0));
        assert!(third.commands.iter().any(|command| command == "chown"));
        assert_eq!(third.no_proxy.first().map(String::as_str), Some("litellm"));
        for tier in &tiers.tiers {
            assert_eq!(tier.image, "zeroclaw", "an older image is replaced");
            assert_eq!((tier.model.as_str(), tier.confidential), ("assistant", Confidentiality::None));
        }
        let mut ports: Vec<u16> =
            tiers.tiers.iter().flat_map(|tier| [Some(tier.port), tier.mcp_port]).flatten().collect();
        ports.dedup();
        assert_eq!(ports.len(), 5);
    }
}

#[test]
fn what_differs_from_what_one_could_think_is_said_at_its_line() {
    for set in Set::all() {
        let tiers = set.read();
        let starts = tier_lines(&set);
        let said = |path: &Path, line: usize, what: &str| {
            let file = path.display().to_string();
            tiers.remarks.iter().any(|remark| remark.file == file && remark.line == line && remark.what.contains(what))
        };
        let mut expected = vec![
            (&set.tiers, set.lines("image: ghcr.io")[0], "older than ZeroClaw 0.8.7"),
            (&set.tiers, starts[0], "implicit: MCP server marvin gets secret marvin_api_key"),
            (&set.tiers, starts[1], "implicit: MCP server marvin gets secret marvin_api_key"),
            (&set.tiers, starts[0], "implicit: every tool of MCP server marvin"),
            (&set.tiers, starts[2], "implicit: tier"),
            (&set.tiers, set.lines("build_sandbox: true")[0], "no longer needed"),
            (&set.allowlist, lines(&set.allowlist, "registry-1")[0], "a comment stands behind the host"),
            (&set.allowlist, lines(&set.allowlist, "cgr.dev")[0], "needed to build the sandbox"),
        ];
        for line in set.lines("    mcp_token_var:") {
            expected.push((&set.tiers, line, "no longer read"));
        }
        let text = std::fs::read_to_string(&set.allowlist).unwrap();
        let again = text.lines().enumerate().filter(|(_, line)| line.starts_with("cgr.dev")).nth(1).unwrap();
        expected.push((&set.allowlist, again.0 + 1, "stands in line"));
        for wide in [".googleapis.com", ".r2.cloudflarestorage.com"] {
            expected.push((&set.allowlist, lines(&set.allowlist, wide)[0], "is shared hosting"));
        }
        for own in ["api.privatemode.ai", "cdn.confidential.cloud"] {
            expected.push((&set.allowlist, lines(&set.allowlist, own)[0], "the stack's own services only"));
        }
        for (path, line, what) in expected {
            assert!(said(path, line, what), "{}:{line}: {what}\nnot in {:#?}", path.display(), tiers.remarks);
        }
        for (tool, what) in [
            ("bash", "calls this tool shell today"),
            ("weather", "cannot work in a tier"),
            ("tool_search", "listed at once"),
        ] {
            let line = *set.lines(tool).last().unwrap();
            assert!(said(&set.tiers, line, what), "{tool}: {:#?}", tiers.remarks);
        }
        let dashboards = tiers.remarks.iter().filter(|remark| remark.what.contains("not supported")).count();
        assert_eq!(dashboards, 0);
    }
}

#[test]
fn a_floor_may_have_comments_behind_hosts_and_hosts_twice() {
    for set in Set::all() {
        let text = std::fs::read_to_string(&set.allowlist).unwrap();
        let mut hosts: Vec<&str> =
            text.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        assert_eq!(set.read().floor.entries().len(), hosts.len());
    }
}

#[test]
fn known_servers_get_their_credential_and_the_tier_without_an_identity_only_reads() {
    for set in Set::all() {
        let desired = set.stack().desired();
        let broker: BrokerConfig =
            serde_json::from_str(&file(&desired, "assistant-secret-broker", "config.json")).unwrap();
        for tier in &broker.tiers[..2] {
            let [rule] = tier.rules.as_slice() else { panic!("{:#?}", tier.rules) };
            assert_eq!(rule.hosts, ["serv.amazingmarvin.com"]);
            assert_eq!((rule.methods.join(" "), rule.paths.join(" ")), ("GET POST".to_owned(), "/api/**".to_owned()));
            assert!(!rule.read_only);
            let inject = rule.inject.as_ref().unwrap();
            assert_eq!(
                (inject.secret.as_str(), inject.placeholder.as_str()),
                ("marvin_api_key", "PLACEHOLDER_ONECLI_INJECTS")
            );
            let Place::Header { name, template } = &inject.place;
            assert_eq!((name.as_str(), template.as_str()), ("x-api-token", "{}"));
            // One placeholder for both tiers: each rule is for its own tier's server and nobody else.
            let server = tier.principals.iter().find(|one| matches!(one.kind, PrincipalKind::McpServer(_))).unwrap();
            assert_eq!(rule.principals, std::slice::from_ref(&server.name));
            assert!(policy::TierPolicy::compile(&tier.name, &tier.rules).is_ok());
        }
        let third = &broker.tiers[2];
        let [rule] = third.rules.as_slice() else { panic!("{:#?}", third.rules) };
        assert!(rule.read_only && rule.inject.is_none());
        assert_eq!(rule.methods, ["GET", "HEAD"]);
        for there in ["serv.amazingmarvin.com", "cgr.dev", "packages.wolfi.dev"] {
            assert!(rule.hosts.iter().any(|host| host == there), "{there}: {:?}", rule.hosts);
        }
        for not in [
            ".googleapis.com",
            ".r2.cloudflarestorage.com",
            "github.com",
            "api.privatemode.ai",
            "cdn.confidential.cloud",
        ] {
            assert!(!rule.hosts.iter().any(|host| host == not), "{not}: {:?}", rule.hosts);
        }
        assert!(policy::TierPolicy::compile(&third.name, &third.rules).is_ok());
    }
}

#[test]
fn every_field_reaches_zeroclaw() {
    for set in Set::all() {
        let stack = set.stack();
        let tiers = set.read();
        let desired = stack.desired();
        for tier in &tiers.tiers {
            let agent = format!("zeroclaw-{}", tier.name);
            let config: toml::Table = file(&desired, &agent, "config.toml").parse().unwrap();
            check(tier, &serde_json::to_value(config).unwrap());
            let env = &desired.container(&agent).unwrap().env;
            let no_proxy = &env.iter().find(|variable| variable.name == "NO_PROXY").unwrap().value;
            let names: Vec<&str> = no_proxy.split(',').collect();
            for needed in ["127.0.0.1", "localhost", "0.0.0.0", "models", "mcp"] {
                assert!(names.contains(&needed), "{needed} not in {no_proxy}");
            }
            assert!(tier.no_proxy.iter().all(|name| names.contains(&name.as_str())), "{no_proxy}");
            for server in &tier.servers {
                assert!(desired.container(&format!("mcp-{}-{}", tier.name, server.name)).is_some());
            }
        }
    }
}

fn check(tier: &Tier, config: &Value) {
    let risk = &config["risk_profiles"]["tier"];
    assert_eq!(risk["allowed_commands"], serde_json::json!(tier.commands));
    assert_eq!(risk["workspace_only"], serde_json::json!(!tier.workspace_unrestricted));
    assert_eq!(risk["block_high_risk_commands"], serde_json::json!(tier.block_high_risk));
    let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let excluded = words(&risk["excluded_tools"]);
    assert_eq!(excluded.contains(&"shell".to_owned()), tier.commands.is_empty());
    let approved = words(&risk["auto_approve"]);
    assert!(
        approved.contains(&"memory_recall".to_owned()) && !approved.contains(&"weather".to_owned()),
        "{approved:?}"
    );
    assert!(approved.iter().all(|name| !excluded.contains(name)), "{approved:?}");
    assert!(words(&config["tools"]["optional"]).contains(&"calculator".to_owned()));
    let docker = tier.runtime == Runtime::Docker;
    assert_eq!(config["runtime"]["kind"], if docker { "docker" } else { "native" });
    assert_eq!(approved.contains(&"shell".to_owned()), docker, "bash is what it was called");
    assert_eq!(config["mcp"]["enabled"], serde_json::json!(!tier.servers.is_empty()));
}

#[test]
fn every_variable_of_the_example_is_unset_or_no_longer_needed() {
    for set in Set::all() {
        let state = tempfile::tempdir().unwrap();
        let imported = import(&set.env, state.path()).unwrap_or_else(|error| panic!("{error}"));
        assert!(imported.said.len() >= 10, "{:#?}", imported.said);
        for said in &imported.said {
            match (said.name.as_str(), &said.fate) {
                ("PRIVATEMODE_API_KEY", Fate::Unset) | (_, Fate::NotNeeded(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(!imported.has_model && imported.remarks.is_empty());
        assert_eq!(std::fs::read_dir(state.path().join("secrets")).unwrap().count(), 0);
        // The same file with its one value given: the route is there.
        let text = std::fs::read_to_string(&set.env).unwrap();
        let given =
            text.replace("PRIVATEMODE_API_KEY=REPLACE_WITH_PRIVATEMODE_API_KEY", "PRIVATEMODE_API_KEY=real-key-1");
        let file = state.path().join(".env");
        std::fs::write(&file, given).unwrap();
        let imported = import(&file, state.path()).unwrap();
        assert!(imported.has_model);
        assert_eq!(std::fs::read_to_string(state.path().join("secrets/privatemode_api_key")).unwrap(), "real-key-1");
    }
}

#[test]
fn without_the_secret_of_a_known_server_the_message_says_which_variable_it_is() {
    for set in Set::all() {
        let mut stack = set.stack();
        stack.settings.mode = Mode::Live;
        std::fs::remove_file(stack.settings.state_dir.join("secrets/marvin_api_key")).unwrap();
        let problems = stack.problems();
        let starts = tier_lines(&set);
        assert_eq!(problems.len(), 2, "{problems:#?}");
        for (problem, line) in problems.iter().zip(starts) {
            assert!(problem.contains(&format!(":{line}:")), "{problem}");
            assert!(
                problem.contains("secret marvin_api_key is missing; write MARVIN_API_KEY=<value> into .env"),
                "{problem}"
            );
        }
    }
}
