//! tiers.yaml as a whole: what tiers share and must not share.

use std::path::{Path, PathBuf};

use assistant_proto::config::Mode;
use assistant_proto::name::SecretName;
use zeroize::Zeroizing;

use super::allowlist::{Allowlist, HostPattern};
use super::catalog;
use super::env_import;
use super::hosts;
use super::images::Images;
use super::problem::{At, Problem, Problems, Report};
use super::route::ModelSettings;
use super::settings::Settings;
use super::tier::{Server, Tier, tier};
use super::tree::{self, Fields};
use crate::desired::{OWN_SITES, TOOLS_SITE};
use crate::files::{self, FileError};
use crate::tokens::SQUID_SERVICE_USERS;

/// Loopback ports of the stack's own gates.
const OWN_PORTS: [(u16, &str); 4] = [
    (assistant_proto::config::NATS_PORT, "the gate of NATS"),
    (assistant_proto::config::JAEGER_PORT, "the gate of Jaeger"),
    (3030, "the gate of Grafana"),
    (10254, "the gate of the vault page"),
];

/// As long as the broker takes one.
const LONGEST_SECRET: usize = 8 * 1024;
/// A shorter one the broker does not put into requests: it would be found by chance in harmless answers.
const SHORTEST_CREDENTIAL: usize = 8;

/// More tiers than any machine runs; bounds the work of a wrong file.
const MOST_TIERS: usize = 100;

/// tiers.yaml and everything it names, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers {
    /// The file as people name it: [`Settings::tiers_name`].
    pub file: String,
    /// The tiers in the order of the file.
    pub tiers: Vec<Tier>,
    /// The floor.
    pub floor: Allowlist,
    /// What is worth saying and stops nothing.
    pub remarks: Vec<Problem>,
}

/// What reading tiers.yaml needs from the VM. A seam for tests.
pub trait Sources {
    /// Text of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, path: &Path) -> Result<String, FileError>;

    /// Whether the file of a secret can be used.
    fn secret(&self, name: &SecretName) -> SecretState;
}

/// State of a secret's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretState {
    /// It can be used.
    Present,
    /// It can be used for the stack itself (a model at home may have a short key), but not as a tier's credential.
    Short,
    /// There is none.
    Absent,
    /// It is there but must not, or cannot, be used.
    Unusable(String),
}

/// The files of the VM.
#[derive(Debug)]
pub struct DiskSources<'a> {
    /// Where they are.
    pub settings: &'a Settings,
}

impl Sources for DiskSources<'_> {
    fn read(&self, path: &Path) -> Result<String, FileError> {
        files::read_text(path)
    }

    fn secret(&self, name: &SecretName) -> SecretState {
        let path = self.settings.secret_file(name);
        match files::check_private(&path) {
            Ok(()) => {}
            Err(error) if error.is_absent() => return SecretState::Absent,
            Err(error) => return SecretState::Unusable(error.to_string()),
        }
        // Looked at, and wiped: whoever uses it would refuse the same, but only when it is needed.
        match files::read_bytes(&path).map(Zeroizing::new) {
            Err(error) => SecretState::Unusable(error.to_string()),
            Ok(bytes) => match why_no_secret(&bytes) {
                Some(why) => SecretState::Unusable(format!("{} {why}", path.display())),
                None if without_newline(&bytes).len() < SHORTEST_CREDENTIAL => SecretState::Short,
                None => SecretState::Present,
            },
        }
    }
}

/// Why bytes are no secret that a header can carry: what the broker, and the models' router, refuse when they read it.
fn why_no_secret(bytes: &[u8]) -> Option<String> {
    let value = without_newline(bytes);
    if value.is_empty() {
        return Some("is empty".to_owned());
    }
    if value.len() > LONGEST_SECRET {
        return Some(format!("is longer than {LONGEST_SECRET} bytes"));
    }
    if value.contains(&b'\n') {
        return Some("has more than one line".to_owned());
    }
    if value.iter().any(u8::is_ascii_control) {
        return Some("has control characters".to_owned());
    }
    let plain = value.iter().all(u8::is_ascii_graphic);
    (!plain).then(|| "has blanks, or letters outside ASCII".to_owned())
}

fn without_newline(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\n").unwrap_or(bytes)
}

/// What a tier is checked against.
pub(super) struct World<'a> {
    pub(super) settings: &'a Settings,
    pub(super) images: &'a Images,
    pub(super) floor: &'a Allowlist,
    pub(super) reserved: &'a [HostPattern],
}

impl World<'_> {
    /// What is wrong with the file of a tier's credential, and what to do.
    pub(super) fn secret_problem(&self, name: &SecretName, sources: &dyn Sources) -> Option<(String, String)> {
        let path = self.settings.secret_file(name);
        let path = path.display();
        match sources.secret(name) {
            SecretState::Short => Some((
                format!(
                    "secret {name} cannot be used: {path} has fewer than {SHORTEST_CREDENTIAL} characters, which cannot be \
                     told from harmless text in an answer"
                ),
                format!("write the whole of it, it is read from standard input: sudo install -m 600 /dev/stdin {path}"),
            )),
            SecretState::Present => None,
            SecretState::Absent => Some((
                format!("secret {name} is missing"),
                match env_import::variable_of(name) {
                    _ if self.settings.mode == Mode::Drill => {
                        "run deploy/up.sh --drill again, which makes it".to_owned()
                    }
                    Some(variable) => format!(
                        "write {variable}=<value> into .env and run deploy/up.sh again, or put it there, it is read from \
                         standard input: sudo install -m 600 /dev/stdin {path}"
                    ),
                    None => {
                        format!("put it there, it is read from standard input: sudo install -m 600 /dev/stdin {path}")
                    }
                },
            )),
            SecretState::Unusable(why) => Some((
                format!("secret {name} cannot be used: {why}"),
                match self.settings.mode {
                    Mode::Drill => format!("remove {path} and run deploy/up.sh --drill again, which makes it"),
                    Mode::Live => format!(
                        "write it again as one line of visible ASCII characters, it is read from standard input: sudo \
                         install -m 600 /dev/stdin {path}"
                    ),
                },
            )),
        }
    }
}

impl Tiers {
    /// Reads tiers.yaml, the allowlist and the MCP folders from the VM.
    ///
    /// # Errors
    /// With every problem of every file.
    pub fn load(settings: &Settings, images: &Images) -> Result<Self, Problems> {
        Self::read(settings, images, &DiskSources { settings })
    }

    /// The same from other sources.
    ///
    /// # Errors
    /// With every problem of every file.
    pub fn read(settings: &Settings, images: &Images, sources: &dyn Sources) -> Result<Self, Problems> {
        let (mut problems, mut remarks) = (Vec::new(), Vec::new());
        let tiers_name = settings.tiers_file.display().to_string();
        let floor_name = settings.allowlist_file.display().to_string();
        let start = At { line: 1, column: 1 };

        let mut reserved = hosts::reserved();
        reserved.extend(settings.model.iter().filter_map(ModelSettings::host).map(HostPattern::Exact));
        let mut report = Report { file: &floor_name, problems: &mut problems, remarks: &mut remarks };
        let floor = match sources.read(&settings.allowlist_file) {
            Ok(text) => Allowlist::parse(&text, &reserved, &mut report),
            Err(error) => {
                let fix = error.fix("restore it; an empty file denies everything");
                report.problem(start, error.to_string(), fix);
                Allowlist::default()
            }
        };
        let mut report = report.for_file(&tiers_name);
        let tiers = match sources.read(&settings.tiers_file) {
            Ok(text) => tree::parse(&text, &mut report).and_then(|node| {
                let world = World { settings, images, floor: &floor, reserved: &reserved };
                let base = settings.tiers_file.parent().unwrap_or(Path::new("/"));
                walk(&node, base, &world, sources, &mut report)
            }),
            Err(error) => {
                let fix = error.fix("create the file; deploy/drill/tiers.yaml shows the form");
                report.problem(start, error.to_string(), fix);
                None
            }
        };
        match tiers {
            Some(tiers) if problems.is_empty() => Ok(Self { file: settings.tiers_name(), tiers, floor, remarks }),
            _ => Err(Problems(problems)),
        }
    }
}

/// Every remark on the files that a supervisor.json names; none where they have problems. `images` as for
/// [`crate::supervisor::problems`].
#[must_use]
pub fn remarks(settings_file: &Path, images: Option<Images>) -> Vec<String> {
    let Ok(settings) = Settings::load(settings_file) else { return Vec::new() };
    let Some(images) = images.or_else(|| Images::load(&settings.images_file).ok()) else { return Vec::new() };
    let remarks = Tiers::load(&settings, &images).map(|tiers| tiers.remarks).unwrap_or_default();
    remarks.iter().map(ToString::to_string).collect()
}

/// Images that the enabled MCP servers of a tiers.yaml name, each once. For `up.sh`, which looks for them on this machine
/// before images.json, and so everything else, can be checked: what cannot be read is left out.
#[must_use]
pub fn catalogue_images(tiers_file: &Path) -> Vec<String> {
    let (mut problems, mut remarks) = (Vec::new(), Vec::new());
    let mut report = Report { file: "", problems: &mut problems, remarks: &mut remarks };
    let Some(node) = files::read_text(tiers_file).ok().and_then(|text| tree::parse(&text, &mut report)) else {
        return Vec::new();
    };
    let base = tiers_file.parent().unwrap_or(Path::new("/"));
    let mut images: Vec<String> = Vec::new();
    let tiers = Fields::open(&node, "", &mut report).and_then(|fields| fields.list("tiers", &mut report));
    for node in tiers.unwrap_or_default().iter().take(MOST_TIERS) {
        let Some(fields) = Fields::open(node, "", &mut report).filter(|fields| fields.is_true("mcp")) else { continue };
        let named = fields.text("mcp_dir", &mut report).map(|(_, text)| PathBuf::from(text));
        let default = fields.text("name", &mut report).map(|(_, name)| catalog::default_directory(name));
        let Some(directory) = named.or(default) else { continue };
        for image in catalog::images(&base.join(directory)) {
            if !images.contains(&image) {
                images.push(image);
            }
        }
    }
    images
}

fn walk(
    node: &tree::Node,
    base: &Path,
    world: &World<'_>,
    sources: &dyn Sources,
    report: &mut Report<'_>,
) -> Option<Vec<Tier>> {
    let fields = Fields::of(node, "tiers.yaml", &["defaults", "tiers"], report)?;
    let defaults = fields.node("defaults").and_then(|node| Fields::of(node, "\"defaults\"", &["image"], report));
    let default_image = defaults.and_then(|defaults| defaults.text("image", report));
    let nodes = fields.list("tiers", report).unwrap_or_default();
    if fields.is_absent_or_empty("tiers") {
        report.problem(fields.at("tiers"), "there is no tier", "add one: tiers: [{name: tasks, port: 3001}]");
    }
    if nodes.len() > MOST_TIERS {
        report.problem(fields.at("tiers"), format!("there are more than {MOST_TIERS} tiers"), "that cannot be meant");
        return None;
    }
    let mut remarked = Vec::new();
    let mut ports: Vec<(u16, String)> = OWN_PORTS.iter().map(|(port, what)| (*port, (*what).to_owned())).collect();
    let mut tiers: Vec<Tier> = Vec::new();
    for node in nodes {
        unique(node, &mut ports, &mut remarked, report);
        if let Some(tier) = tier(node, default_image, base, world, sources, report) {
            for server in &tier.servers {
                let name = container(&tier, server);
                // A tier twice is reported as such.
                let owner = tiers.iter().filter(|other| other.name != tier.name).find_map(|other| {
                    let server = other.servers.iter().find(|server| container(other, server) == name)?;
                    Some((&other.name, &server.name))
                });
                if let Some((owner, theirs)) = owner {
                    report.problem(
                        node.at,
                        format!(
                            "the container of tier {} and MCP server {} would be called {name}, as that of tier {owner} and \
                             server {theirs}",
                            tier.name, server.name
                        ),
                        "rename one of the tiers, or one of the servers in its catalogue",
                    );
                }
            }
            tiers.push(tier);
        }
    }
    // The default image is one line, however many tiers use it.
    dedup(report.remarks);
    dedup(report.problems);
    Some(tiers)
}

/// As `desired` calls it: two pairs of names can make the same one, because both may hold hyphens.
fn container(tier: &Tier, server: &Server) -> String {
    format!("mcp-{}-{}", tier.name, server.name)
}

/// What must be unique across tiers. Looked up in the tree rather than in checked tiers, so that a tier with another
/// problem still counts.
fn unique(node: &tree::Node, ports: &mut Vec<(u16, String)>, names: &mut Vec<String>, report: &mut Report<'_>) {
    let tree::Value::Map(entries) = &node.value else { return };
    let tier = entries
        .iter()
        .find_map(|entry| match &entry.node.value {
            tree::Value::Text(text) if entry.key == "name" => Some((entry.node.at, text)),
            _ => None,
        })
        .filter(|(_, text)| text.parse::<assistant_proto::name::TierName>().is_ok());
    if let Some((at, name)) = tier {
        // A tier of such a name would be that user at Squid.
        if SQUID_SERVICE_USERS.contains(&name.as_str()) {
            report.problem(at, format!("\"{name}\" is the name of a service's user at Squid"), "rename the tier");
        }
        // Each page is a site of its own name, and the tier's dashboard has the tier's.
        if OWN_SITES.contains(&name.as_str()) || names.iter().any(|other| are_one_site(name, other)) {
            report.problem(at, format!("{name}.localhost is the site of another page"), "rename the tier");
        }
        if names.contains(name) {
            report.problem(at, format!("there are two tiers with the name {name}"), "rename one");
        }
        names.push(name.clone());
    }
    for entry in entries.iter().filter(|entry| entry.key == "port" || entry.key == "mcp_port") {
        let tree::Value::Integer(value) = entry.node.value else { continue };
        let Ok(port) = u16::try_from(value) else { continue };
        if let Some((_, owner)) = ports.iter().find(|(taken, _)| *taken == port) {
            report.problem(entry.node.at, format!("port {port} is already used by {owner}"), "choose another one");
        }
        let owner = tier.map_or("another tier", |(_, name)| name);
        ports.push((port, format!("\"{}\" of {owner}", entry.key)));
    }
}

/// Whether the dashboard of one would have the name of the other's page about MCP servers.
fn are_one_site(one: &str, other: &str) -> bool {
    let about = |tier: &str, page: &str| page.strip_prefix(TOOLS_SITE) == Some(tier);
    about(one, other) || about(other, one)
}

fn dedup(problems: &mut Vec<Problem>) {
    let mut seen: Vec<Problem> = Vec::new();
    problems.retain(|problem| {
        let new = !seen.contains(problem);
        if new {
            seen.push(problem.clone());
        }
        new
    });
}
