//! One tier of tiers.yaml: its shape after checking, and the checks of a single tier.

use std::path::Path;

use assistant_proto::config::{Confidentiality, ToolRule};
use assistant_proto::name::{SecretName, ServerName, TierName};

use super::allowlist::HostPattern;
use super::credentials::{self, Section, Surroundings};
use super::limits::{TierLimits, limits};
use super::problem::{At, Report};
use super::servers::{is_command, is_tool, placed_words, servers, tools};
use super::tiers::{Sources, World};
use super::tree::{Fields, Node};
use super::{implied, runtime, talk, toolset};

/// Every field that a tier may have.
pub const FIELDS: [&str; 22] = [
    "name",
    "identity",
    "port",
    "image",
    "runtime",
    "mcp",
    "mcp_port",
    "mcp_dir",
    "mcp_token_var",
    "no_proxy",
    "commands",
    "auto_approve",
    "workspace_unrestricted",
    "block_high_risk",
    "build_sandbox",
    "background",
    "credentials",
    "egress",
    "tools",
    "model",
    "limits",
    "channels",
];

/// A tier, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Its name.
    pub name: TierName,
    /// Name of its set of credentials; a tier without one has no credentials.
    pub identity: Option<String>,
    /// Loopback port of its dashboard.
    pub port: u16,
    /// Key of its ZeroClaw image in images.json.
    pub image: String,
    /// Where its shell commands run.
    pub runtime: Runtime,
    /// What the older stack's file says about building the sandbox's image; it is there for every sandbox in any case.
    pub build_sandbox: bool,
    /// Loopback port of the page about its MCP servers.
    pub mcp_port: Option<u16>,
    /// Through which channels it can be talked to, beside the terminal.
    pub channels: Vec<Channel>,
    /// Whether requests outside a turn are allowed.
    pub background: bool,
    /// Shell commands the agent may run; none means no shell.
    pub commands: Vec<String>,
    /// Tools that run without asking. `<server>__<tool>` for one of an MCP server.
    pub auto_approve: Vec<String>,
    /// Whether the agent may use paths outside its workspace.
    pub workspace_unrestricted: bool,
    /// Whether commands that ZeroClaw holds for dangerous are blocked, also those that `commands` names.
    pub block_high_risk: bool,
    /// What the user wants in NO_PROXY beside what must be there.
    pub no_proxy: Vec<String>,
    /// Enabled MCP servers, in the order of registry.yaml.
    pub servers: Vec<Server>,
    /// What is injected where, in the order of the file.
    pub credentials: Vec<Credential>,
    /// What else it may reach.
    pub egress: Option<Egress>,
    /// What of each MCP server may be listed and called. Every server of `servers` is in it once.
    pub tools: Vec<AllowedTools>,
    /// Model, by the name tiers use.
    pub model: String,
    /// Whether its prompts may leave only through an attested route. There is a route of this class.
    pub confidential: Confidentiality,
    /// What its agent may use up.
    pub limits: TierLimits,
    /// Line of tiers.yaml at which it begins.
    pub line: usize,
}

/// What of an MCP server may be listed and called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedTools {
    /// Whose tools.
    pub server: ServerName,
    /// Which.
    pub rule: ToolRule,
    /// Line of tiers.yaml that says so; that of the tier where it has no `tools`.
    pub line: usize,
}

/// Where a tier's shell commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// In the agent's own container.
    Native,
    /// In containers of the tier's own rootless Docker, without network.
    Docker,
}

/// A way to talk to a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// A Telegram bot.
    Telegram {
        /// Its name, one of supervisor.json's.
        bot: String,
    },
}

/// An MCP server of a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name in the catalogue.
    pub name: ServerName,
    /// Its image in the catalogue, a key of images.json.
    pub image: String,
    /// Its program and arguments inside the image; the program is an absolute path.
    pub command: Vec<String>,
    /// Variable -> placeholder, then what config.yaml says: variable -> plain value. Nothing in it is a secret.
    pub env: Vec<(String, String)>,
    /// Name of the secret in the catalogue -> placeholder.
    pub placeholders: Vec<(String, String)>,
}

/// Where a secret goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Unique within the tier, for example `marvin_api_key-1`.
    pub id: String,
    /// Which secret.
    pub secret: SecretName,
    /// What the tier sends in its place.
    pub placeholder: String,
    /// To which hosts.
    pub hosts: Vec<HostPattern>,
    /// Methods; none means GET and HEAD.
    pub methods: Vec<String>,
    /// Path patterns; none means every path.
    pub paths: Vec<String>,
    /// Lower-case header name.
    pub header: String,
    /// Value of the header with `{}` for the secret.
    pub template: String,
    /// Who may use it.
    pub subjects: Vec<Subject>,
    /// Line of tiers.yaml.
    pub line: usize,
}

/// A container of a tier that a credential may be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// ZeroClaw itself.
    Agent,
    /// An MCP server.
    Server(ServerName),
}

/// What a tier may reach without a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Which hosts.
    pub hosts: Vec<HostPattern>,
    /// Methods; none means GET and HEAD.
    pub methods: Vec<String>,
    /// Path patterns; none means every path.
    pub paths: Vec<String>,
    /// Whether it may only read: GET and HEAD, no body, headers of a closed list.
    pub read_only: bool,
    /// Whether tiers.yaml does not say it: the rest of the floor, for a tier without an identity.
    pub implicit: bool,
    /// Line of tiers.yaml; where it is implicit, of the tier.
    pub line: usize,
}

/// Reads one tier. Reports every problem in it; the tier is none when what identifies it is unusable.
pub(super) fn tier(
    node: &Node,
    default_image: Option<(At, &str)>,
    base: &Path,
    world: &World<'_>,
    sources: &dyn Sources,
    report: &mut Report<'_>,
) -> Option<Tier> {
    let fields = Fields::of(node, "a tier", &FIELDS, report)?;
    let name = name(&fields, report);
    let port = port(&fields, report);
    let identity = identity(&fields, report);
    let runtime = runtime::runtime(&fields, report);
    let build_sandbox = runtime::build_sandbox(&fields, runtime, report);
    let mcp_port = runtime::mcp_port(&fields, report);
    runtime::mcp_token_var(&fields, report);
    let image = runtime::image(&fields, default_image, world, report);
    let before = report.problems.len();
    let servers = name.as_ref().map(|name| servers(&fields, name, base, world, sources, report)).unwrap_or_default();
    let complete = name.is_some() && report.problems.len() == before;

    let secret_problem = |secret: &SecretName| world.secret_problem(secret, sources);
    let around = Surroundings {
        floor: world.floor,
        servers: &servers,
        reserved: world.reserved,
        complete,
        secret_problem: &secret_problem,
    };
    let (credentials, egress) = ways_out(&fields, name.as_ref(), identity.is_some(), &around, report);
    let tools = tools(&fields, &servers, complete, report);
    let block_high_risk = fields.flag("block_high_risk", true, report);
    let commands = commands(&fields, block_high_risk, report);
    let auto_approve = auto_approve(&fields, &servers, complete, report);
    let channels = talk::channels(&fields, world, report);
    let model = talk::model(&fields, world, report);
    let limits = limits(&fields, report);
    let no_proxy = no_proxy(&fields, report);
    let (model, confidential) = model?;
    Some(Tier {
        background: fields.flag("background", false, report),
        workspace_unrestricted: fields.flag("workspace_unrestricted", false, report),
        block_high_risk,
        runtime,
        build_sandbox,
        mcp_port,
        channels,
        name: name?,
        identity,
        port: port?,
        image: image?,
        commands,
        auto_approve,
        no_proxy,
        credentials,
        egress,
        tools,
        model,
        confidential,
        limits,
        line: fields.at.line,
        servers,
    })
}

/// What may leave the tier: `credentials` and `egress`, and what is implied where they are not there.
fn ways_out(
    fields: &Fields<'_>,
    name: Option<&TierName>,
    has_identity: bool,
    around: &Surroundings<'_>,
    report: &mut Report<'_>,
) -> (Vec<Credential>, Option<Egress>) {
    let mut credentials: Vec<Section<Credential>> = fields
        .list("credentials", report)
        .unwrap_or_default()
        .iter()
        .enumerate()
        .filter_map(|(index, node)| credentials::credential(node, index, around, report))
        .collect();
    let says_credentials = fields.node("credentials").is_some();
    match (has_identity, says_credentials) {
        (true, false) => credentials = implied::credentials(fields.at, around, report),
        // An identity that is misspelt or wrong was reported as that.
        (false, true) if fields.lacks("identity") || fields.is_null("identity") => {
            let fix = "give the tier an identity (identity: <name>), or remove its credentials";
            report.problem(fields.at("credentials"), "a tier with identity: null has no credentials", fix);
        }
        (false, false) => implied::without_identity(fields.at, around.servers, report),
        (_, true) => {}
    }
    let says_egress = fields.node("egress").is_some();
    let egress = match (fields.node("egress"), name) {
        (Some(node), _) => credentials::egress(node, around, report),
        (None, Some(name)) if !has_identity => implied::egress(name, fields.at, around.floor, around.reserved, report),
        (None, _) => None,
    };
    // Without all servers a rule may lack those it is for.
    if let (Some(name), true) = (name, around.complete) {
        credentials::compile(name, around.servers, &credentials, egress.as_ref(), report);
    }
    if let Some(name) = name
        && credentials.is_empty()
        && egress.as_ref().is_none_or(|section| section.value.hosts.is_empty())
        && !says_egress
    {
        let fix = "add credentials or egress to let it reach a host";
        report.remark(fields.at, format!("tier {name} reaches no host of the internet"), fix);
    }
    // A section that is explicitly empty means the same as none.
    let egress = egress.map(|section| section.value).filter(|egress| !egress.hosts.is_empty());
    (credentials.into_iter().map(|section| section.value).collect(), egress)
}

/// The tools that run unasked, as they stand in the file; what ZeroClaw calls them is for who renders its file.
fn auto_approve(fields: &Fields<'_>, servers: &[Server], complete: bool, report: &mut Report<'_>) -> Vec<String> {
    let fix = "name each tool by itself, like shell or marvin__get_tasks; no \"*\"";
    let names = placed_words(fields, "auto_approve", is_tool, fix, report);
    for (at, name) in &names {
        if complete || !name.contains("__") {
            toolset::remark(*at, name, servers, report);
        }
    }
    names.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// Shell commands by name.
fn commands(fields: &Fields<'_>, blocks: bool, report: &mut Report<'_>) -> Vec<String> {
    let fix = "name each command by itself, like curl; no \"*\", no arguments";
    let names = placed_words(fields, "commands", is_command, fix, report);
    for (at, name) in &names {
        toolset::remark_command(*at, name, blocks, report);
    }
    names.into_iter().map(|(_, name)| name.to_owned()).collect()
}

fn name(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<TierName> {
    let Some((at, text)) = fields.text("name", report) else {
        if fields.node("name").is_none() {
            report.problem(fields.at, "this tier has no name", "add: name: <a short word>");
        }
        return None;
    };
    text.parse()
        .map_err(|error: assistant_proto::name::NameError| report.problem(at, error.to_string(), "rename the tier"))
        .ok()
}

fn port(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<u16> {
    if fields.node("port").is_none() {
        report.problem(fields.at, "this tier has no port", "add: port: <1024 to 65535>, where its dashboard will be");
    }
    fields.port("port", report).map(|(_, port)| port)
}

fn identity(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<String> {
    let (at, text) = fields.text("identity", report)?;
    let fine = text.parse::<TierName>().is_ok();
    if !fine {
        report.problem(
            at,
            "this is not the name of an identity",
            "use a-z, 0-9 and '-' (1 to 24), starting with a letter, or null",
        );
    }
    fine.then(|| text.to_owned())
}

fn no_proxy(fields: &Fields<'_>, report: &mut Report<'_>) -> Vec<String> {
    let Some((at, text)) = fields.text("no_proxy", report) else { return Vec::new() };
    let mut names = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name.len() <= 253 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:/*".contains(&b)) {
            names.push(name.to_owned());
        } else {
            report.problem(at, "\"no_proxy\" holds something that is no name", "separate names with commas");
        }
    }
    names
}
