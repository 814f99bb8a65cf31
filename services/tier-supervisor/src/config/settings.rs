//! supervisor.json: how this VM runs the stack. Written by `up.sh`, read once at start.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use assistant_proto::config::Mode;
use assistant_proto::name::{HostName, SecretName};
use serde::Deserialize;

use crate::addresses::Ipv4Cidr;
use crate::files;

/// supervisor.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Live or drill.
    pub mode: Mode,
    /// tiers.yaml, absolute.
    pub tiers_file: PathBuf,
    /// The floor, `squid/allowlist.txt`, absolute.
    pub allowlist_file: PathBuf,
    /// `squid/squid.conf.template`, absolute.
    pub squid_template: PathBuf,
    /// images.json, absolute.
    pub images_file: PathBuf,
    /// `/var/lib/assistant/<mode>`: 0700, root.
    pub state_dir: PathBuf,
    /// `/run/assistant`: one directory per service for its control socket.
    pub run_dir: PathBuf,
    /// Preferred address pool, a /16.
    pub pool: Ipv4Cidr,
    /// Who runs the stack.
    pub operator: Operator,
    /// Where the stack's binaries lie in the VM.
    pub bin_dir: PathBuf,
    /// The resolvers Squid asks.
    pub dns_servers: Vec<Ipv4Addr>,
    /// PEM files of roots for upstream TLS. Live: beside the system's. Drill: instead of them.
    pub upstream_roots: Vec<PathBuf>,
    /// Routing table that leads into the drill's internet; none in live.
    pub drill_table: Option<u32>,
    /// Where model calls go.
    pub model: ModelSettings,
    /// Whether traces are collected.
    pub otlp: bool,
    /// `tracing` filter of every service's log.
    pub log_filter: String,
}

/// The user who ran `up.sh`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// Login name.
    pub user: String,
    /// Its number.
    pub uid: u32,
    /// Its home, where the context of the `nats` command line goes.
    pub home: PathBuf,
}

/// The upstream of the broker's model ingress.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// `https://host[:port]/v1`, without a final slash.
    pub base_url: String,
    /// Name of the secret that is sent as bearer token.
    pub key_secret: Option<SecretName>,
    /// Name the tiers use -> name upstream.
    pub models: BTreeMap<String, String>,
}

/// Why supervisor.json cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not readable.
    #[error(transparent)]
    File(#[from] files::FileError),
    /// Not the right shape. serde's message names fields and positions; up.sh writes the file, and nothing in it is secret.
    #[error("{}:{line}:{column}: {detail}; run deploy/up.sh again, it writes this file", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What serde says.
        detail: String,
    },
    /// The right shape with wrong values: every one of them.
    #[error("{}: {}", path.display(), problems.join("; "))]
    Values {
        /// The file.
        path: PathBuf,
        /// A sentence each.
        problems: Vec<String>,
    },
}

impl Settings {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it is absent, malformed or wrong.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = files::read_text(path)?;
        let settings: Self = serde_json::from_str(&text).map_err(|error| SettingsError::Shape {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            detail: error.to_string(),
        })?;
        let problems = settings.problems();
        if problems.is_empty() { Ok(settings) } else { Err(SettingsError::Values { path: path.to_owned(), problems }) }
    }

    /// Every value that is wrong, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let paths = [
            ("tiers_file", &self.tiers_file),
            ("allowlist_file", &self.allowlist_file),
            ("squid_template", &self.squid_template),
            ("images_file", &self.images_file),
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("operator.home", &self.operator.home),
            ("bin_dir", &self.bin_dir),
        ];
        for (field, path) in paths.into_iter().chain(self.upstream_roots.iter().map(|root| ("upstream_roots", root))) {
            // Docker's bind syntax and Squid's configuration are rendered from some of these.
            let plain = |c: char| !c.is_control() && c != '"' && c != '\'' && c != '\\';
            if !path.is_absolute() || !path.to_str().is_some_and(|text| text.chars().all(plain)) {
                problems.push(format!("\"{field}\" must be an absolute path without quotes or control characters"));
            }
        }
        if self.pool.prefix() != 16 {
            problems.push("\"pool\" must be a /16, for example 10.87.0.0/16".to_owned());
        }
        if self.dns_servers.is_empty() {
            problems.push("\"dns_servers\" is empty: name at least one resolver that Squid may ask".to_owned());
        }
        for server in &self.dns_servers {
            if server.is_loopback() || server.is_unspecified() || server.is_multicast() || server.is_broadcast() {
                problems.push(format!(
                    "\"dns_servers\": {server} cannot be reached from a container; name another resolver"
                ));
            }
        }
        match (self.mode, self.drill_table) {
            (Mode::Drill, None) => {
                problems
                    .push("\"drill_table\" is missing: a drill needs the table that leads to its internet".to_owned());
            }
            (Mode::Live, Some(_)) => {
                problems.push("\"drill_table\" is set: a live stack must not be routed to the drill".to_owned());
            }
            // 0 is "unspecified", 253 to 255 are the kernel's default, main and local.
            (Mode::Drill, Some(0 | 253..=255)) => {
                problems.push("\"drill_table\" names one of the kernel's own tables; use another number".to_owned());
            }
            (Mode::Drill, Some(_)) | (Mode::Live, None) => {}
        }
        if self.mode == Mode::Drill && self.upstream_roots.is_empty() {
            problems.push("\"upstream_roots\" is empty: a drill trusts only its own certificate authority".to_owned());
        }
        if self.model.host().is_none() {
            problems
                .push("\"model.base_url\" must be https://<host name>[:443]/<path>, without a final slash".to_owned());
        }
        if self.model.models.is_empty() {
            problems.push("\"model.models\" is empty: name at least one model".to_owned());
        }
        problems
    }

    /// File of a SaaS secret in the VM.
    #[must_use]
    pub fn secret_file(&self, secret: &SecretName) -> PathBuf {
        self.state_dir.join("secrets").join(secret.as_str())
    }

    /// Directory of the files rendered for a container.
    #[must_use]
    pub fn render_dir(&self, container: &str) -> PathBuf {
        self.state_dir.join("render").join(container)
    }

    /// Where addresses are kept.
    #[must_use]
    pub fn addresses_file(&self) -> PathBuf {
        self.state_dir.join("addresses.json")
    }
}

impl ModelSettings {
    /// The host of the base URL; none when the URL is not of the one accepted form. Squid lets only port 443 out.
    #[must_use]
    pub fn host(&self) -> Option<HostName> {
        let rest = self.base_url.strip_prefix("https://")?;
        let (authority, path) = rest.split_once('/')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
        if path.is_empty() || path.ends_with('/') || path.contains("..") || !path.bytes().all(plain) {
            return None;
        }
        authority.strip_suffix(":443").unwrap_or(authority).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    fn drill_json() -> serde_json::Value {
        serde_json::json!({
            "mode": "drill", "tiers_file": "/s/deploy/drill/tiers.yaml", "allowlist_file": "/s/squid/allowlist.txt",
            "squid_template": "/s/squid/squid.conf.template", "images_file": "/var/lib/assistant/images.json",
            "state_dir": "/var/lib/assistant/drill", "run_dir": "/run/assistant", "pool": "10.87.0.0/16",
            "operator": {"user": "x", "uid": 1000, "home": "/home/x"}, "bin_dir": "/usr/local/lib/assistant/bin",
            "dns_servers": ["198.51.100.53"], "upstream_roots": ["/var/lib/assistant/drill/doubles/ca.pem"],
            "drill_table": 8787,
            "model": {"base_url": "https://model.drill.example/v1", "key_secret": "model_api_key",
                      "models": {"assistant": "drill-model", "thinker": "drill-model"}},
            "otlp": true, "log_filter": "info"
        })
    }

    fn drill() -> Settings {
        serde_json::from_value(drill_json()).unwrap()
    }

    #[test]
    fn the_written_example_is_fine() {
        assert_eq!(drill().problems(), Vec::<String>::new());
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let mut json = drill_json();
        json["tiers_file"] = "tiers.yaml".into();
        json["pool"] = "10.87.0.0/20".into();
        json["dns_servers"] = serde_json::json!(["127.0.0.53"]);
        json["drill_table"] = 254.into();
        json["model"]["base_url"] = "http://model.drill.example/v1".into();
        let settings: Settings = serde_json::from_value(json).unwrap();
        let problems = settings.problems().join("\n");
        for field in ["tiers_file", "pool", "127.0.0.53", "drill_table", "model.base_url"] {
            assert!(problems.contains(field), "{field} not in {problems}");
        }
        let mut live = drill_json();
        live["mode"] = "live".into();
        let live: Settings = serde_json::from_value(live).unwrap();
        assert!(live.problems().join("").contains("must not be routed to the drill"));
    }

    #[test]
    fn unknown_fields_are_errors_with_a_position() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.json");
        let mut json = drill_json();
        json["poool"] = 1.into();
        std::fs::write(&path, serde_json::to_string_pretty(&json).unwrap()).unwrap();
        let error = Settings::load(&path).unwrap_err().to_string();
        assert!(error.contains("poool") && error.contains("up.sh"), "{error}");
    }

    #[test]
    fn model_urls_have_one_form() {
        let mut settings = drill();
        for (url, host) in [
            ("https://model.drill.example/v1", Some("model.drill.example")),
            ("https://model.drill.example:443/openai/v1", Some("model.drill.example")),
            ("https://model.drill.example:8443/v1", None),
            ("https://model.drill.example", None),
            ("https://model.drill.example/v1/", None),
            ("https://user@model.drill.example/v1", None),
            ("https://203.0.113.10/v1", None),
            ("https://model.drill.example/v1?x=y", None),
            ("https://model.drill.example/../v1", None),
            ("http://model.drill.example/v1", None),
        ] {
            settings.model.base_url = url.to_owned();
            assert_eq!(settings.model.host().as_ref().map(HostName::as_str), host, "{url}");
        }
    }
}
