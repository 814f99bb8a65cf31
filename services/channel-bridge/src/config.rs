//! The bridge's configuration: the shape is `assistant_proto::config::BridgeConfig`, the checks are here.

use std::collections::BTreeSet;

use assistant_proto::config::{BridgeConfig, Common};
use serde::Deserialize;
use service_kit::host::ServiceConfig;
use service_kit::turns::LONGEST_TURN;

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
            "tiers": [{"name": "tasks", "gateway": "10.87.16.20:42617", "gateway_token_file": "/etc/assistant/t"}],
            "state_dir": "/var/lib/assistant",
            "acknowledgers": ["secret-broker", "egress-auditor"],
            "approval_timeout_secs": 600
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
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut value = config();
        value["tiers"][0]["extra"] = json!(1);
        assert!(serde_json::from_value::<Config>(value).is_err());
    }
}
