//! A state directory with everything `Inputs::prepare` reads, and the project's own files beside it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tier_supervisor::config::Settings;
use tier_supervisor::desired::Desired;
use tier_supervisor::prepare::{Inputs, PrepareError};
use time::OffsetDateTime;

pub(crate) const NOW: OffsetDateTime = time::macros::datetime!(2026-01-02 3:04:05 UTC);
pub(crate) const MARVIN_TOKEN: &str = "real-marvin-token-8f3c";
pub(crate) const MODEL_KEY: &str = "real-model-key-77aa";

pub(crate) struct Stack {
    pub(crate) dir: TempDir,
    pub(crate) settings: Settings,
}

pub(crate) fn project() -> PathBuf {
    // Also part of a test of another package (tests/effects/), whose manifest lies elsewhere.
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("tiers.yaml").is_file());
    project.unwrap().canonicalize().unwrap()
}

pub(crate) fn write(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl Stack {
    /// The drill's tiers.yaml and everything it needs.
    pub(crate) fn drill() -> Self {
        let stack = Self::bare(project().join("deploy/drill/tiers.yaml"));
        stack.secret("marvin_api_key", MARVIN_TOKEN);
        stack
    }

    /// tiers.yaml with this text, beside the project's MCP folders.
    pub(crate) fn with_tiers(text: &str) -> Self {
        let mut stack = Self::bare(PathBuf::new());
        let file = stack.dir.path().join("tiers.yaml");
        write(&file, text, 0o644);
        std::os::unix::fs::symlink(project().join("deploy/mcp"), stack.dir.path().join("mcp")).unwrap();
        stack.settings.tiers_file = file;
        stack.secret("marvin_api_key", MARVIN_TOKEN);
        stack
    }

    fn bare(tiers_file: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let images = serde_json::json!({
            "base": "assistant/base:1", "zeroclaw": "assistant/zeroclaw:1", "squid": "assistant/squid:1",
            "nats": "assistant/nats:1", "jaeger": "assistant/jaeger:1", "otel-collector": "assistant/otel-collector:1",
            "secret-broker": "assistant/secret-broker:1", "egress-auditor": "assistant/egress-auditor:1",
            "channel-bridge": "assistant/channel-bridge:1", "probe": "assistant/probe:1",
            "litellm": "assistant/litellm:1", "privatemode-proxy": "assistant/privatemode-proxy:1",
            "prometheus": "assistant/prometheus:1", "grafana": "assistant/grafana:1",
            "zeroclaw-docker": "assistant/zeroclaw-docker:1", "sandbox-daemon": "assistant/sandbox-daemon:1",
            "sandbox-filter": "assistant/sandbox-filter:1",
            "zeroclaw/amazing-marvin-mcp:local": "assistant/mcp-amazing-marvin:1"
        });
        write(&at("images.json"), &images.to_string(), 0o644);
        write(&at("doubles/ca.pem"), "-----BEGIN CERTIFICATE-----\n", 0o644);
        let settings = serde_json::json!({
            "mode": "drill", "tiers_file": "/", "allowlist_file": project().join("squid/allowlist.txt"),
            "squid_template": project().join("squid/squid.conf.template"), "images_file": at("images.json"),
            "state_dir": at("state"), "run_dir": "/run/assistant", "pool": "10.87.0.0/16",
            "operator": {"user": "x", "uid": 1000, "home": "/home/x"}, "bin_dir": "/usr/local/lib/assistant/bin",
            "dns_servers": ["198.51.100.53"], "upstream_roots": [at("doubles/ca.pem")], "drill_table": 8787,
            "model": {"base_url": "https://model.drill.example/v1", "key_secret": "model_api_key",
                      "models": {"assistant": "drill-model", "thinker": "drill-model"}},
            "otlp": true, "log_filter": "info"
        });
        let mut settings: Settings = serde_json::from_value(settings).unwrap();
        settings.tiers_file = tiers_file;
        let stack = Self { dir, settings };
        stack.secret("model_api_key", MODEL_KEY);
        stack
    }

    pub(crate) fn secret(&self, name: &str, value: &str) {
        write(&self.settings.state_dir.join("secrets").join(name), value, 0o600);
    }

    pub(crate) fn prepare(&self) -> Result<Inputs, PrepareError> {
        Inputs::prepare(self.settings.clone(), &[], NOW)
    }

    pub(crate) fn desired(&self) -> Desired {
        self.prepare().unwrap_or_else(|error| panic!("{error}")).desired().unwrap()
    }

    /// Every problem, one a line, with the stack's temporary directory taken out.
    pub(crate) fn problems(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        match self.prepare() {
            Ok(_) => Vec::new(),
            Err(error) => error.sentences().into_iter().map(|problem| problem.replace(&dir, "")).collect(),
        }
    }
}
