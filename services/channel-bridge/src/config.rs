//! The bridge's configuration: the shape is `assistant_proto::config::BridgeConfig`, the checks are here.

use std::collections::BTreeSet;

use assistant_proto::config::{BridgeConfig, Common, Mode, TelegramBot};
use serde::Deserialize;
use service_kit::host::ServiceConfig;
use service_kit::turns::LONGEST_TURN;

use crate::reply::links::Reach;

/// `config.json` of channel-bridge.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Config(pub BridgeConfig);

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.0.common
    }

    fn problems(&self) -> Vec<String> {
        let config = &self.0;
        let mut problems = Vec::new();
        let mut names = BTreeSet::new();
        let mut gateways = BTreeSet::new();
        for (index, tier) in config.tiers.iter().enumerate() {
            if !names.insert(&tier.name) {
                problems.push(format!("tiers[{index}]: tier {} is there twice; keep one", tier.name));
            }
            if !gateways.insert(tier.gateway) {
                problems.push(format!(
                    "tiers[{index}].gateway: the gateway of tier {} belongs to another tier too; give each its own",
                    tier.name
                ));
            }
            if !tier.gateway_token_file.is_absolute() {
                problems.push(format!("tiers[{index}].gateway_token_file: not an absolute path; give one"));
            }
            if Reach::parse(tier.reachable.iter().map(String::as_str)).is_none() {
                problems.push(format!(
                    "tiers[{index}].reachable: one of the patterns for tier {} is none; write a.b, *.a.b or .a.b",
                    tier.name
                ));
            }
        }
        let mut sockets = BTreeSet::new();
        for (index, tier) in config.tiers.iter().enumerate() {
            let Some(socket) = &tier.dashboard_socket else { continue };
            if !socket.is_absolute() {
                problems.push(format!("tiers[{index}].dashboard_socket: not an absolute path; give one"));
            }
            if !sockets.insert(socket) {
                problems.push(format!("tiers[{index}].dashboard_socket: another tier has the same; give each its own"));
            }
        }
        if config.dashboard_files.as_ref().is_some_and(|files| files.is_relative()) {
            problems.push("dashboard_files: not an absolute path; give one".to_owned());
        }
        let mut bots = BTreeSet::new();
        for (index, bot) in config.telegram.iter().enumerate() {
            if !bots.insert(&bot.name) {
                problems.push(format!("telegram[{index}].name: another bot has the same; give each its own"));
            }
            problems
                .extend(bot_problems(config, bot).into_iter().map(|problem| format!("telegram[{index}].{problem}")));
        }
        if let Some(egress) = &config.egress {
            if config.common.mode == Mode::Drill && egress.upstream_roots.is_empty() {
                problems.push(
                    "egress.upstream_roots: empty; a drill trusts its own CA only, so name its certificate file"
                        .to_owned(),
                );
            }
            if !egress.squid_password_file.is_absolute() || egress.upstream_roots.iter().any(|path| path.is_relative())
            {
                problems.push("egress: a path is not absolute; give one that is".to_owned());
            }
        } else if !config.telegram.is_empty() {
            problems.push(
                "egress: missing, so no bot can reach its messenger; name Squid and the channels' user".to_owned(),
            );
        }
        if !config.state_dir.is_absolute() {
            problems.push("state_dir: not an absolute path; give one".to_owned());
        }
        if config.acknowledgers.is_empty() {
            problems.push(
                "acknowledgers: empty, so prompts would go out before anybody watches the tier; name secret-broker and \
                 egress-auditor"
                    .to_owned(),
            );
        }
        let most = LONGEST_TURN.as_secs() / 2;
        if !(30..=most).contains(&u64::from(config.approval_timeout_secs)) {
            problems.push(format!("approval_timeout_secs: outside 30 to {most}; 600 is the usual"));
        }
        problems
    }
}

fn bot_problems(config: &BridgeConfig, bot: &TelegramBot) -> Vec<String> {
    let mut problems = Vec::new();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    // It is the first part of a conversation's name.
    if bot.name.is_empty() || bot.name.len() > 32 || !bot.name.bytes().all(plain) {
        problems.push("name: not 1 to 32 of a-z, 0-9 and '-'; choose another".to_owned());
    }
    let host = bot.api_url.strip_prefix("https://").unwrap_or_default();
    if host.is_empty() || host.ends_with('/') || host.contains(['@', '?', '#']) {
        problems
            .push("api_url: not https://host without a final slash; Telegram's is https://api.telegram.org".to_owned());
    }
    if !bot.token_file.is_absolute() {
        problems.push("token_file: not an absolute path; give one".to_owned());
    }
    if bot.allowed_user_ids.is_empty() {
        problems.push(
            "allowed_user_ids: empty, so the bot would answer nobody; set TELEGRAM_ALLOWED_USER_IDS to your numeric id"
                .to_owned(),
        );
    }
    if bot.allowed_user_ids.iter().any(|id| *id <= 0) {
        problems.push("allowed_user_ids: people have ids above 0; groups and channels cannot be allowed".to_owned());
    }
    if bot.tiers.is_empty() {
        problems.push("tiers: empty; name at least one tier, or remove the bot".to_owned());
    }
    let known = |name: &_| config.tiers.iter().any(|tier| tier.name == *name);
    if !bot.tiers.iter().all(known) {
        problems.push("tiers: one of them is not a tier of this configuration".to_owned());
    }
    if bot.tiers.iter().collect::<BTreeSet<_>>().len() != bot.tiers.len() {
        problems.push("tiers: one of them is there twice".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;

    fn config() -> Value {
        json!({
            "common": {
                "mode": "drill",
                "bus": {"url": "tls://10.87.1.5:4222", "ca_file": "/a", "nkey_seed_file": "/b", "inbox_prefix": "_INBOX_c"},
                "telemetry": {"otlp_endpoint": null, "log_filter": "info"},
                "control_socket": "/run/assistant/api.sock"
            },
            "tiers": [{"name": "tasks", "gateway": "10.87.16.20:42617", "gateway_token_file": "/etc/assistant/t",
                "reachable": ["serv.amazingmarvin.com"]}],
            "state_dir": "/var/lib/assistant",
            "acknowledgers": ["secret-broker", "egress-auditor"],
            "approval_timeout_secs": 600,
            "egress": {"squid": "10.87.3.8:3128", "squid_user": "channels", "squid_password_file": "/etc/assistant/p",
                "upstream_roots": ["/etc/assistant/roots/0.pem"]},
            "telegram": [{"name": "telegram", "api_url": "https://api.telegram.org", "token_file": "/etc/assistant/x",
                "allowed_user_ids": [1000001], "tiers": ["tasks"]}]
        })
    }

    fn problems(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut value = config();
        change(&mut value);
        serde_json::from_value::<Config>(value).unwrap().problems()
    }

    #[test]
    fn every_problem_is_named() {
        assert!(problems(|_| {}).is_empty());
        assert!(problems(|c| c["acknowledgers"] = json!([]))[0].starts_with("acknowledgers: empty"));
        assert!(problems(|c| c["approval_timeout_secs"] = json!(0))[0].starts_with("approval_timeout_secs"));
        assert!(problems(|c| c["state_dir"] = json!("x"))[0].starts_with("state_dir"));
        let twice = problems(|c| {
            let tier = c["tiers"][0].clone();
            c["tiers"].as_array_mut().unwrap().push(tier);
        });
        assert_eq!(twice.len(), 2, "{twice:?}");
        assert!(problems(|c| c["dashboard_files"] = json!("x"))[0].starts_with("dashboard_files"));
        let socket = |path: &'static str| problems(move |c| c["tiers"][0]["dashboard_socket"] = json!(path));
        assert!(socket("x")[0].starts_with("tiers[0].dashboard_socket") && socket("/x").is_empty());
        for (field, value, expected) in [
            ("name", json!("a.b"), "telegram[0].name"),
            ("api_url", json!("http://api.telegram.org"), "telegram[0].api_url"),
            ("api_url", json!("https://u@api.telegram.org"), "telegram[0].api_url"),
            ("token_file", json!("x"), "telegram[0].token_file"),
            ("allowed_user_ids", json!([]), "telegram[0].allowed_user_ids: empty"),
            ("allowed_user_ids", json!([-5]), "telegram[0].allowed_user_ids: people"),
            ("tiers", json!([]), "telegram[0].tiers: empty"),
            ("tiers", json!(["other"]), "telegram[0].tiers: one of them is not"),
            ("tiers", json!(["tasks", "tasks"]), "telegram[0].tiers: one of them is there twice"),
        ] {
            let found = problems(|c| c["telegram"][0][field] = value.clone());
            assert_eq!(found.len(), 1, "{field} {value}: {found:?}");
            assert!(found[0].starts_with(expected), "{found:?}");
        }
        assert!(problems(|c| c["tiers"][0]["reachable"] = json!(["*"]))[0].starts_with("tiers[0].reachable"));
        assert!(problems(|c| c["egress"] = json!(null))[0].starts_with("egress: missing"));
        assert!(problems(|c| c["egress"]["upstream_roots"] = json!([]))[0].starts_with("egress.upstream_roots"));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut value = config();
        value["tiers"][0]["extra"] = json!(1);
        assert!(serde_json::from_value::<Config>(value).is_err());
    }
}
