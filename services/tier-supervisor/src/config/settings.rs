//! supervisor.json: how this VM runs the stack. Written by `up.sh`, read once at start.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use assistant_proto::config::Mode;
use assistant_proto::name::{SecretName, TierName};
use serde::Deserialize;

use super::route::{Endpoint, ModelSettings, Routes, TeeSettings};
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
    /// Where model calls go that need no attested route.
    #[serde(default)]
    pub model: Option<ModelSettings>,
    /// Where model calls go that may leave only through a TEE.
    #[serde(default)]
    pub tee: Option<TeeSettings>,
    /// Telegram bots, the one from `.env` first.
    #[serde(default)]
    pub telegram: Vec<TelegramSettings>,
    /// A collector of the owner's outside the stack, `http(s)://host[:port]`: reached only through ours, and Squid.
    #[serde(default)]
    pub otlp_export: Option<String>,
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

/// A Telegram bot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelegramSettings {
    /// Its name in tiers.yaml; [`DEFAULT_BOT`] for the one from `.env`.
    pub name: String,
    /// Name of the secret with its token.
    pub token_secret: SecretName,
    /// Numeric ids of the people it answers.
    pub allowed_user_ids: Vec<i64>,
}

/// The bot of tiers that do not say.
pub const DEFAULT_BOT: &str = "telegram";

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

    /// Directory of the directories in which services bind the sockets of their pages: beside that of the control sockets,
    /// because other people come there.
    #[must_use]
    pub fn pages_dir(&self) -> PathBuf {
        let mut name = self.run_dir.file_name().unwrap_or_default().to_owned();
        name.push("-pages");
        self.run_dir.with_file_name(name)
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
        problems.extend(self.route_problems());
        problems.extend(self.telegram_problems());
        if let Some(Err(error)) = self.otlp_export.as_ref().map(|url| url.parse::<Endpoint>()) {
            problems.push(format!("\"otlp_export\": {error}"));
        }
        problems
    }

    /// tiers.yaml as people name it, from the top of the project: `deploy/drill/tiers.yaml` in a drill. Elsewhere its name
    /// alone.
    #[must_use]
    pub fn tiers_name(&self) -> String {
        let project = self.allowlist_file.parent().and_then(Path::parent);
        let inside = project.and_then(|project| self.tiers_file.strip_prefix(project).ok());
        let name = inside.or_else(|| self.tiers_file.file_name().map(Path::new));
        name.unwrap_or(&self.tiers_file).display().to_string()
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

    /// The routes that there are.
    pub(super) fn routes(&self) -> Routes<'_> {
        Routes { open: self.model.as_ref(), tee: self.tee.as_ref() }
    }

    /// Names of every secret that the stack itself needs, whatever its tiers: keys of models and tokens of bots.
    #[must_use]
    pub fn own_secrets(&self) -> Vec<&SecretName> {
        let open = self.model.as_ref().and_then(|model| model.key_secret.as_ref());
        let tee = self.tee.as_ref().map(|tee| &tee.key_secret);
        open.into_iter().chain(tee).chain(self.telegram.iter().map(|bot| &bot.token_secret)).collect()
    }

    fn route_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.model.is_none() && self.tee.is_none() {
            problems.push("there is no model: \"model\" or \"tee\" must say where model calls go".to_owned());
        }
        problems.extend(self.model.iter().flat_map(ModelSettings::problems));
        if self.tee.as_ref().is_some_and(|tee| tee.models.is_empty()) {
            problems.push("\"tee.models\" is empty: name at least one model".to_owned());
        }
        problems
    }

    fn telegram_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, bot) in self.telegram.iter().enumerate() {
            let earlier = self.telegram.get(..index).unwrap_or_default();
            if bot.name.parse::<TierName>().is_err() {
                problems
                    .push(format!("\"telegram\": bot {} needs a name of a-z, 0-9 and '-'", index.saturating_add(1)));
            } else if earlier.iter().any(|other| other.name == bot.name || other.token_secret == bot.token_secret) {
                problems.push(format!("\"telegram\": the bot \"{}\", or its token, is there twice", bot.name));
            }
            if bot.allowed_user_ids.is_empty() || bot.allowed_user_ids.iter().any(|id| *id <= 0) {
                problems.push(format!(
                    "\"telegram\": the bot \"{}\" needs the numeric ids of the people it may answer",
                    bot.name
                ));
            }
        }
        problems
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
    fn tiers_yaml_is_named_as_the_person_finds_it() {
        let named = |file: &str| Settings { tiers_file: file.into(), ..drill() }.tiers_name();
        assert_eq!(named("/s/deploy/drill/tiers.yaml"), "deploy/drill/tiers.yaml");
        assert_eq!(named("/s/tiers.yaml"), "tiers.yaml");
        assert_eq!(named("/elsewhere/tiers.yaml"), "tiers.yaml");
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let mut json = drill_json();
        json["tiers_file"] = "tiers.yaml".into();
        json["pool"] = "10.87.0.0/20".into();
        json["dns_servers"] = serde_json::json!(["127.0.0.53"]);
        json["drill_table"] = 254.into();
        json["model"]["base_url"] = "http://localhost/v1".into();
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
    fn routes_and_bots() {
        let with = |field: &str, value: serde_json::Value| {
            let mut json = drill_json();
            json[field] = value;
            serde_json::from_value::<Settings>(json).unwrap().problems().join("\n")
        };
        let bot = |name: &str, ids: serde_json::Value| serde_json::json!([{"name": name, "token_secret": "telegram_bot_token", "allowed_user_ids": ids}]);
        let home = serde_json::json!({"base_url": "http://192.168.1.20:11434/v1", "models": {"assistant": "x"}});
        assert_eq!(with("model", home), "");
        assert!(with("model", serde_json::Value::Null).contains("there is no model"));
        assert!(with("tee", serde_json::json!({"key_secret": "k", "models": {}})).contains("\"tee.models\" is empty"));
        assert_eq!(with("telegram", bot("telegram", serde_json::json!([1_000_001]))), "");
        assert!(with("telegram", bot("telegram", serde_json::json!([]))).contains("numeric ids"));
        assert!(with("telegram", bot("telegram", serde_json::json!([-100]))).contains("numeric ids"));
        assert!(with("telegram", bot("Family!", serde_json::json!([1]))).contains("needs a name"));
        assert!(with("otlp_export", "http://127.0.0.1:4317".into()).contains("loopback"));
        assert_eq!(with("otlp_export", "https://otlp.example.org:4317".into()), "");
    }
}
