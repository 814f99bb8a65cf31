//! ZeroClaw's config.toml, for the version named in `config::version`. Every key is checked against
//! `zeroclaw config schema` by a test: ZeroClaw itself ignores unknown nested keys in silence.
//!
//! What stands here narrows the agent, but is no wall: the agent's process is assumed hostile.

use assistant_proto::config::{GATEWAY_PORT, MCP_PORT, MODELS_PORT};
use toml::{Table, Value};

use crate::config::Tier;
use crate::desired::DesiredError;
use crate::desired::containers::{Parts, agent_name};

/// Name of the MCP server that ZeroClaw knows: the broker's ingress. Its tools appear as `hub__<tool>`.
const HUB: &str = "hub";

/// What must be in NO_PROXY: the doors are reached directly.
const DIRECT: [&str; 5] = ["127.0.0.1", "localhost", "0.0.0.0", "models", "mcp"];

/// Tools with HTTP clients that go round every proxy, or that fetch on their own: they cannot work in a tier.
const EXCLUDED: [&str; 8] = [
    "web_fetch",
    "http_request",
    "web_search_tool",
    "file_download",
    "browser",
    "browser_open",
    "image_gen",
    "weather",
];

/// Names of tools in the older stack's file -> names in this ZeroClaw.
const FORMER_NAMES: [(&str, &str); 6] = [
    ("bash", "shell"),
    ("read", "file_read"),
    ("write", "file_write"),
    ("edit", "file_edit"),
    ("glob", "glob_search"),
    ("grep", "content_search"),
];

/// Variables that a shell command of the agent keeps; ZeroClaw clears the others.
const SHELL_KEEPS: [&str; 7] =
    ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy"];

/// The value of NO_PROXY: what must be there, then what the user wants.
pub(crate) fn no_proxy(wanted: &[String]) -> String {
    let mut names: Vec<&str> = DIRECT.to_vec();
    for name in wanted {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.join(",")
}

pub(crate) fn zeroclaw_toml(parts: &Parts<'_>, tier: &Tier) -> Result<String, DesiredError> {
    let token = parts.principal_token(&agent_name(&tier.name)?)?.expose();
    let gateway = parts.gateway_token(&tier.name)?.sha256();
    let mut root = Table::new();
    root.insert("schema_version".into(), Value::Integer(3));
    root.insert(
        "gateway".into(),
        table([
            ("port", Value::Integer(i64::from(GATEWAY_PORT))),
            ("host", text("0.0.0.0")),
            ("allow_public_bind", Value::Boolean(true)),
            ("allow_remote_admin", Value::Boolean(false)),
            ("require_pairing", Value::Boolean(true)),
            ("paired_tokens", texts([gateway])),
            ("request_timeout_secs", Value::Integer(600)),
            ("check_updates", Value::Boolean(false)),
            ("allow_self_upgrade", Value::Boolean(false)),
        ]),
    );
    root.insert(
        "providers".into(),
        nested(
            ["models", "litellm", "assistant"],
            table([
                ("uri", text(format!("http://models:{MODELS_PORT}/v1"))),
                ("model", text(&tier.model)),
                ("api_key", text(token)),
                ("timeout_secs", Value::Integer(300)),
                ("context_window", Value::Integer(128_000)),
            ]),
        ),
    );
    root.insert(
        "runtime_profiles".into(),
        nested(
            ["tier"],
            table([
                ("agentic", Value::Boolean(true)),
                ("max_actions_per_hour", Value::Integer(500)),
                ("shell_timeout_secs", Value::Integer(120)),
                ("tool_receipts", table([("enabled", Value::Boolean(true))])),
            ]),
        ),
    );
    root.insert("risk_profiles".into(), nested(["tier"], risk_profile(tier)));
    root.insert("agents".into(), nested(["default"], agent(tier)));
    root.insert("runtime".into(), table([("kind", text("native")), ("shell", text("bash"))]));
    // ask_user is what lets approvals be asked for over the gateway; the default would hand the model far more.
    root.insert("tools".into(), table([("optional", texts(["ask_user"]))]));
    for section in ["web_fetch", "http_request", "web_search"] {
        root.insert(section.into(), table([("enabled", Value::Boolean(false))]));
    }
    root.insert(
        "acp".into(),
        table([("session_timeout_secs", Value::Integer(1_800)), ("max_sessions", Value::Integer(50))]),
    );
    root.insert("memory".into(), table([("backend", text("sqlite")), ("auto_save", Value::Boolean(true))]));
    let mcp = !tier.servers.is_empty();
    let mut section = Table::from_iter([
        ("enabled".to_owned(), Value::Boolean(mcp)),
        // The model sees the tools themselves; there are few, the broker lists only those that are allowed.
        ("deferred_loading".to_owned(), Value::Boolean(false)),
    ]);
    if mcp {
        let server = table([
            ("name", text(HUB)),
            ("transport", text("http")),
            ("url", text(format!("http://mcp:{MCP_PORT}/mcp"))),
            ("tool_timeout_secs", Value::Integer(120)),
            ("headers", table([("Authorization", text(format!("Bearer {token}")))])),
        ]);
        section.insert("servers".into(), Value::Array(vec![server]));
        root.insert("mcp_bundles".into(), nested([HUB], table([("servers", texts([HUB]))])));
    }
    root.insert("mcp".into(), Value::Table(section));
    let body = toml::to_string(&root).map_err(|_| DesiredError::Unrenderable { file: "ZeroClaw's config.toml" })?;
    Ok(format!("# Written by tier-supervisor; changes are overwritten.\n{body}"))
}

fn risk_profile(tier: &Tier) -> Value {
    let mut excluded: Vec<&str> = EXCLUDED.to_vec();
    if tier.commands.is_empty() {
        excluded.push("shell");
    }
    let forbidden: Vec<&str> =
        if tier.workspace_unrestricted { Vec::new() } else { vec!["/etc", "/root", "/proc", "/sys"] };
    table([
        ("level", text("supervised")),
        ("workspace_only", Value::Boolean(!tier.workspace_unrestricted)),
        ("allowed_commands", texts(&tier.commands)),
        ("auto_approve", texts(auto_approve(tier))),
        ("excluded_tools", texts(excluded)),
        ("forbidden_paths", texts(forbidden)),
        ("require_approval_for_medium_risk", Value::Boolean(true)),
        ("block_high_risk_commands", Value::Boolean(tier.block_high_risk)),
        ("shell_env_passthrough", texts(SHELL_KEEPS)),
        // Our walls are outside the process; ZeroClaw's own backends fail open.
        ("sandbox_backend", text("none")),
    ])
}

/// The tools that run unasked, as this ZeroClaw calls them. `<server>__<tool>` is one of an MCP server.
fn auto_approve(tier: &Tier) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for wanted in &tier.auto_approve {
        let former = FORMER_NAMES.iter().find(|(old, _)| old == wanted).map(|(_, new)| (*new).to_owned());
        let name = hub_tool(tier, wanted).or(former).unwrap_or_else(|| wanted.clone());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// ZeroClaw's name for `<server>__<tool>`; none when the tier has no such server. The broker's ingress calls a tool by its
/// own name, and by `<server>_<tool>` where several servers of the tier have it.
fn hub_tool(tier: &Tier, wanted: &str) -> Option<String> {
    let (server, tool) = wanted.split_once("__")?;
    let server = tier.servers.iter().find(|known| known.name.as_str() == server)?;
    let holders = tier.tools.iter().filter(|(_, allowed)| allowed.iter().any(|name| name == tool)).count();
    Some(if holders > 1 { format!("{HUB}__{}_{tool}", server.name) } else { format!("{HUB}__{tool}") })
}

fn agent(tier: &Tier) -> Value {
    let mut agent = Table::from_iter([
        ("enabled".to_owned(), Value::Boolean(true)),
        ("model_provider".to_owned(), text("litellm.assistant")),
        ("risk_profile".to_owned(), text("tier")),
        ("runtime_profile".to_owned(), text("tier")),
        ("identity".to_owned(), table([("format", text("openclaw"))])),
        ("memory".to_owned(), table([("backend", text("sqlite"))])),
        ("workspace".to_owned(), table([("unrestricted_filesystem", Value::Boolean(tier.workspace_unrestricted))])),
    ]);
    if !tier.servers.is_empty() {
        agent.insert("mcp_bundles".into(), texts([HUB]));
        agent.insert("acp_enable_mcp".into(), Value::Boolean(true));
    }
    Value::Table(agent)
}

fn text(value: impl Into<String>) -> Value {
    Value::String(value.into())
}

fn texts<T: Into<String>>(values: impl IntoIterator<Item = T>) -> Value {
    Value::Array(values.into_iter().map(text).collect())
}

fn table<'k>(entries: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    Value::Table(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn nested<'k, I>(path: I, leaf: Value) -> Value
where
    I: IntoIterator<Item = &'k str>,
    I::IntoIter: DoubleEndedIterator,
{
    path.into_iter().rev().fold(leaf, |value, key| table([(key, value)]))
}
