//! One tier of tiers.yaml: its shape after checking, and the checks of a single tier.

use std::path::Path;

use assistant_proto::name::{SecretName, ServerName, TierName};

use super::allowlist::HostPattern;
use super::credentials::{self, Section, Surroundings};
use super::limits::{TierLimits, limits};
use super::problem::{At, Report, suggestion};
use super::servers::{is_command, is_tool, servers, tools, words};
use super::tiers::{Sources, World};
use super::tree::{Fields, Node};
use super::version;

const FIELDS: [&str; 22] = [
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
    /// Whether requests outside a turn are allowed.
    pub background: bool,
    /// Shell commands the agent may run; none means no shell.
    pub commands: Vec<String>,
    /// Tools that run without asking. `<server>__<tool>` for one of an MCP server.
    pub auto_approve: Vec<String>,
    /// Whether the agent may use paths outside its workspace.
    pub workspace_unrestricted: bool,
    /// Whether ZeroClaw blocks commands it holds for dangerous, unless `commands` names them.
    pub block_high_risk: bool,
    /// What the user wants in NO_PROXY beside what must be there.
    pub no_proxy: Vec<String>,
    /// Enabled MCP servers, in the order of registry.yaml.
    pub servers: Vec<Server>,
    /// What is injected where, in the order of the file.
    pub credentials: Vec<Credential>,
    /// What else it may reach.
    pub egress: Option<Egress>,
    /// MCP server -> tools that may be listed and called.
    pub tools: Vec<(ServerName, Vec<String>)>,
    /// Model, by the name tiers use.
    pub model: String,
    /// What its agent may use up.
    pub limits: TierLimits,
    /// Line of tiers.yaml at which it begins.
    pub line: usize,
}

/// An MCP server of a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name in the catalogue.
    pub name: ServerName,
    /// Its image in the catalogue, a key of images.json.
    pub image: String,
    /// Variable -> placeholder.
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
    /// Line of tiers.yaml.
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
    not_yet(&fields, report);
    let image = image(&fields, default_image, world, report);
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
    let credentials: Vec<Section<Credential>> = fields
        .list("credentials", report)
        .unwrap_or_default()
        .iter()
        .enumerate()
        .filter_map(|(index, node)| credentials::credential(node, index, &around, report))
        .collect();
    if identity.is_none() && fields.node("credentials").is_some() {
        let fix = "give the tier an identity (identity: <name>), or remove its credentials";
        report.problem(fields.at("credentials"), "a tier with identity: null has no credentials", fix);
    }
    let egress = fields.node("egress").and_then(|node| credentials::egress(node, &around, report));
    // Without all servers a rule may lack those it is for.
    if let (Some(name), true) = (&name, complete) {
        credentials::compile(name, &servers, &credentials, egress.as_ref(), report);
    }
    let credentials: Vec<Credential> = credentials.into_iter().map(|section| section.value).collect();
    let egress = egress.map(|section| section.value);
    if let Some(name) = &name
        && egress.is_none()
        && credentials.is_empty()
        && fields.node("egress").is_none()
    {
        let fix = "add credentials or egress to let it reach a host";
        report.remark(fields.at, format!("tier {name} reaches no host of the internet"), fix);
    }
    let tools = tools(&fields, &servers, complete, report);
    let commands = words(
        &fields,
        "commands",
        is_command,
        "name each command by itself, like curl; no \"*\", no arguments",
        report,
    );
    let auto_approve = words(
        &fields,
        "auto_approve",
        is_tool,
        "name each tool by itself, like shell or marvin__get_tasks; no \"*\"",
        report,
    );
    let model = model(&fields, world, report);
    let limits = limits(&fields, report);
    let no_proxy = no_proxy(&fields, report);
    Some(Tier {
        background: fields.flag("background", false, report),
        workspace_unrestricted: fields.flag("workspace_unrestricted", false, report),
        block_high_risk: fields.flag("block_high_risk", true, report),
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
        model: model?,
        limits,
        line: fields.at.line,
        servers,
    })
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
    let (at, port) = fields.port("port", report)?;
    report.remark(
        at,
        "dashboards are not served yet: nothing will listen on this port",
        "talk to the tier with deploy/chat.sh",
    );
    Some(port)
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

/// Fields of the older stack's file, and of what comes later, that have no effect yet. Doing without what was asked for
/// could be less contained, or less working, than what the person believes: hence errors, not silence.
fn not_yet(fields: &Fields<'_>, report: &mut Report<'_>) {
    if let Some((at, runtime)) = fields.text("runtime", report) {
        match runtime {
            "native" => {}
            "docker" => report.problem(
                at,
                "runtime: docker (the sandbox) is not supported yet",
                "write runtime: native, or remove this tier for now",
            ),
            _ => report.problem(at, "this runtime does not exist", suggestion(runtime, ["native", "docker"])),
        }
    }
    if fields.flag("build_sandbox", false, report) {
        report.problem(fields.at("build_sandbox"), "build_sandbox: true is not supported yet", "remove it for now");
    }
    if fields.port("mcp_port", report).is_some() {
        report.problem(
            fields.at("mcp_port"),
            "a page for MCP servers (mcp_port) is not supported yet",
            "remove it for now",
        );
    }
    if fields.node("channels").is_some() {
        report.problem(
            fields.at("channels"),
            "channels other than the terminal are not supported yet",
            "remove it for now; use deploy/chat.sh",
        );
    }
    if let Some((at, _)) = fields.text("mcp_token_var", report) {
        report.remark(
            at,
            "mcp_token_var is no longer read: tier-supervisor makes the token itself",
            "remove it, here and in .env",
        );
    }
}

fn image(
    fields: &Fields<'_>,
    default_image: Option<(At, &str)>,
    world: &World<'_>,
    report: &mut Report<'_>,
) -> Option<String> {
    const OURS: &str = "zeroclaw";
    if fields.node("image").is_some() {
        let (at, image) = fields.text("image", report)?;
        return known_image(at, image, world, report);
    }
    let Some((at, image)) = default_image else { return Some(OURS.to_owned()) };
    known_image(at, image, world, report)
}

fn known_image(at: At, image: &str, world: &World<'_>, report: &mut Report<'_>) -> Option<String> {
    let (major, minor, patch) = version::ZEROCLAW;
    if version::of_image(image).is_some_and(|version| version < version::ZEROCLAW) {
        let what = format!("this image is older than ZeroClaw {major}.{minor}.{patch}, which is used in its place");
        report.remark(at, what, "remove the line to use what the stack brings");
        return Some("zeroclaw".to_owned());
    }
    if world.images.reference(image).is_some() {
        return Some(image.to_owned());
    }
    report.problem(
        at,
        "this image is not on this machine",
        "remove the line to use the ZeroClaw that the stack brings",
    );
    None
}

fn model(fields: &Fields<'_>, world: &World<'_>, report: &mut Report<'_>) -> Option<String> {
    let names = || world.models.iter().map(|name| name.as_str());
    let default = || names().find(|name| *name == "assistant").or_else(|| names().next()).map(ToOwned::to_owned);
    let Some(node) = fields.node("model") else { return default() };
    let section = Fields::of(node, "\"model\"", &["name"], report)?;
    if section.node("name").is_none() {
        return default();
    }
    let (at, name) = section.text("name", report)?;
    if names().any(|known| known == name) {
        return Some(name.to_owned());
    }
    report.problem(at, "there is no such model", suggestion(name, names()));
    None
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
