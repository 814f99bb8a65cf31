//! ZeroClaw's config.toml, for the version named in `config::version`. Every key is checked against
//! `zeroclaw config schema` by a test: ZeroClaw itself ignores unknown nested keys in silence.
//!
//! What stands here narrows the agent, but is no wall: the agent's process is assumed hostile.

use assistant_proto::config::{GATEWAY_PORT, MCP_PORT, MODELS_PORT, ToolRule};
use toml::{Table, Value};

use crate::config::{Runtime, Tier, toolset};
use crate::desired::DesiredError;
use crate::desired::containers::{Parts, agent_name};

/// Name of the MCP server that ZeroClaw knows: the broker's ingress. Its tools appear as `hub__<tool>`.
const HUB: &str = "hub";

/// What must be in NO_PROXY: the doors are reached directly.
const DIRECT: [&str; 5] = ["127.0.0.1", "localhost", "0.0.0.0", "models", "mcp"];

/// The image that a sandbox has, and the only one.
const SANDBOX_IMAGE: &str = "assistant-sandbox:latest";
/// The workspace of an agent with a sandbox: a volume of its own, at the same path for the sandbox's Docker, which
/// resolves the path that the agent names.
const SANDBOX_WORKSPACE: &str = "/zeroclaw-data/workspace";
/// Where a command in the sandbox sees it; ZeroClaw mounts it there.
const INSIDE_SANDBOX: &str = "/workspace";

/// What the docker client of a sandboxed tier's shell needs. Nothing else is kept: nothing of it would reach the sandbox,
/// which has no network to use a proxy on.
const DOCKER_KEEPS: [&str; 1] = ["DOCKER_HOST"];

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
    root.insert("runtime".into(), runtime(tier));
    // ask_user is what lets approvals be asked for over the gateway; the default would hand the model far more.
    let on_request = auto_approve(tier).into_iter().filter(|name| toolset::is_on_request(name));
    let optional: Vec<String> = std::iter::once("ask_user".to_owned()).chain(on_request).collect();
    root.insert("tools".into(), table([("optional", texts(optional))]));
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

/// Where shell commands run. In the sandbox each is a container of its own; its limits are those of the tier, and those of
/// the sandbox's own container hold where the nested engine cannot enforce them.
fn runtime(tier: &Tier) -> Value {
    if tier.runtime == Runtime::Native {
        return table([("kind", text("native")), ("shell", text("bash"))]);
    }
    let megabytes = i64::try_from(tier.limits.memory_bytes >> 20).unwrap_or(i64::MAX);
    let milli_cpus = u32::try_from(tier.limits.nano_cpus / 1_000_000).unwrap_or(u32::MAX);
    let docker = table([
        ("image", text(SANDBOX_IMAGE)),
        ("network", text("none")),
        ("memory_limit_mb", Value::Integer(megabytes)),
        ("cpu_limit", Value::Float(f64::from(milli_cpus) / 1_000.0)),
        ("read_only_rootfs", Value::Boolean(true)),
        ("mount_workspace", Value::Boolean(true)),
        ("allowed_workspace_roots", texts([SANDBOX_WORKSPACE])),
    ]);
    table([("kind", text("docker")), ("docker", docker)])
}

fn risk_profile(tier: &Tier) -> Value {
    let mut excluded: Vec<&str> = toolset::EXCLUDED.iter().chain(&toolset::UNSERVED).copied().collect();
    // ZeroClaw runs a dangerous command that is named, whatever `block_high_risk_commands` says.
    let may_run = |command: &&String| !(tier.block_high_risk && toolset::is_dangerous(command));
    let commands: Vec<&str> = tier.commands.iter().filter(may_run).map(String::as_str).collect();
    if commands.is_empty() {
        excluded.push("shell");
    }
    let forbidden: Vec<&str> =
        if tier.workspace_unrestricted { Vec::new() } else { vec!["/etc", "/root", "/proc", "/sys"] };
    // In the sandbox a command that stays in the workspace names it by another path.
    let (keeps, roots): (&[&str], &[&str]) = match tier.runtime {
        Runtime::Native => (&SHELL_KEEPS, &[]),
        Runtime::Docker => (&DOCKER_KEEPS, &[INSIDE_SANDBOX]),
    };
    table([
        ("level", text("supervised")),
        ("workspace_only", Value::Boolean(!tier.workspace_unrestricted)),
        ("allowed_commands", texts(commands)),
        ("auto_approve", texts(auto_approve(tier))),
        ("excluded_tools", texts(excluded)),
        ("forbidden_paths", texts(forbidden)),
        ("require_approval_for_medium_risk", Value::Boolean(true)),
        ("block_high_risk_commands", Value::Boolean(tier.block_high_risk)),
        ("allowed_roots", texts(roots.iter().copied())),
        ("shell_env_passthrough", texts(keeps.iter().copied())),
        // Our walls are outside the process; ZeroClaw's own backends fail open.
        ("sandbox_backend", text("none")),
    ])
}

/// The tools that run unasked, as this ZeroClaw calls them. `<server>__<tool>` is one of an MCP server.
fn auto_approve(tier: &Tier) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for wanted in &tier.auto_approve {
        let name = match wanted.split_once("__") {
            Some((server, tool)) => hub_tool(tier, server, tool),
            None => Some(toolset::current(wanted).to_owned()),
        };
        // An excluded tool is not there; one that came back would have to ask.
        if let Some(name) = name
            && !names.contains(&name)
            && !toolset::EXCLUDED.contains(&name.as_str())
        {
            names.push(name);
        }
    }
    names
}

/// ZeroClaw's name for a tool of an MCP server; none when the tier has no such server, or may not call that tool of it:
/// the name could be another server's. The broker's ingress calls a tool by its own name where one server alone is named
/// with it, and by `<server>_<tool>` otherwise; also every tool of a server that has no list and is not alone.
fn hub_tool(tier: &Tier, server: &str, tool: &str) -> Option<String> {
    let lists = |rule: &ToolRule| matches!(rule, ToolRule::Only(names) if names.iter().any(|name| name == tool));
    let tools = tier.tools.iter().find(|tools| tools.server.as_str() == server)?;
    let is_alone = match &tools.rule {
        ToolRule::All => tier.tools.len() == 1,
        rule if lists(rule) => tier.tools.iter().filter(|tools| lists(&tools.rule)).count() == 1,
        ToolRule::Only(_) => return None,
    };
    Some(if is_alone { format!("{HUB}__{tool}") } else { format!("{HUB}__{server}_{tool}") })
}

fn agent(tier: &Tier) -> Value {
    let mut agent = Table::from_iter([
        ("enabled".to_owned(), Value::Boolean(true)),
        ("model_provider".to_owned(), text("litellm.assistant")),
        ("risk_profile".to_owned(), text("tier")),
        ("runtime_profile".to_owned(), text("tier")),
        ("identity".to_owned(), table([("format", text("openclaw"))])),
        ("memory".to_owned(), table([("backend", text("sqlite"))])),
        ("workspace".to_owned(), workspace(tier)),
    ]);
    if !tier.servers.is_empty() {
        agent.insert("mcp_bundles".into(), texts([HUB]));
        agent.insert("acp_enable_mcp".into(), Value::Boolean(true));
    }
    Value::Table(agent)
}

fn workspace(tier: &Tier) -> Value {
    let unrestricted = ("unrestricted_filesystem", Value::Boolean(tier.workspace_unrestricted));
    match tier.runtime {
        Runtime::Native => table([unrestricted]),
        Runtime::Docker => table([unrestricted, ("path", text(SANDBOX_WORKSPACE))]),
    }
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
