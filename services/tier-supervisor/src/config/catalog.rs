//! An MCP folder: which servers a tier has. `catalogs/catalog.yaml` defines, `registry.yaml` enables, `config.yaml` adds
//! variables that are no secrets, `secrets.env` holds placeholders.
//!
//! The format is that of the older stack's folders, with one field more: `command`, for an image whose program is not
//! where ours have it. A value of secrets.env that is no placeholder is refused and never repeated: it would be a real
//! credential inside a tier.

mod variables;

use std::path::{Path, PathBuf};

use assistant_proto::name::ServerName;

use super::images::Images;
use super::problem::{At, Report, shown, suggestion};
use super::tier::Server;
use super::tiers::Sources;
use super::tree::{self, Fields, Node};
use crate::files;
use variables::{config, env_file, is_free_variable};

const CATALOG_FIELDS: [&str; 3] = ["name", "displayName", "registry"];
const SERVER_FIELDS: [&str; 7] = ["title", "description", "image", "command", "type", "longLived", "secrets"];
const SECRET_FIELDS: [&str; 3] = ["name", "env", "description"];

/// A secret of a catalogue entry: a name in secrets.env and the variable it goes into.
struct Wanted {
    at: At,
    name: String,
    env: String,
}

struct Definition {
    name: ServerName,
    image_at: At,
    image: String,
    command: Vec<String>,
    secrets: Vec<Wanted>,
}

/// Where every image of an MCP server that the stack builds has its program.
const OUR_PROGRAM: &str = "/usr/local/bin/mcp-server";
/// How references of images that the stack builds begin.
const OUR_IMAGES: &str = "assistant/";

/// Reads a folder and gives the enabled servers in the order of registry.yaml.
pub(super) fn servers(
    directory: &Path,
    referenced_at: At,
    images: &Images,
    sources: &dyn Sources,
    report: &mut Report<'_>,
) -> Vec<Server> {
    let catalog_path = directory.join("catalogs").join("catalog.yaml");
    let registry_path = directory.join("registry.yaml");
    let config_path = directory.join("config.yaml");
    let secrets_path = directory.join("secrets.env");

    let text = |path: &PathBuf, needed: bool, report: &mut Report<'_>| match sources.read(path) {
        Ok(text) => Some(text),
        Err(error) if !needed && error.is_absent() => None,
        Err(error) => {
            let what = match error.is_absent() {
                true => format!("the MCP folder is not complete: {error}"),
                false => format!("the MCP folder cannot be used: {error}"),
            };
            report.problem(referenced_at, what, error.fix("add the file, or set mcp: false"));
            None
        }
    };
    let catalog_text = text(&catalog_path, true, report);
    let registry_text = text(&registry_path, true, report);
    let config_text = text(&config_path, false, report);
    let secrets_text = text(&secrets_path, false, report);
    let (Some(catalog_text), Some(registry_text)) = (catalog_text, registry_text) else { return Vec::new() };

    let catalog_name = catalog_path.display().to_string();
    let definitions = {
        let mut report = report.for_file(&catalog_name);
        tree::parse(&catalog_text, &mut report).map(|node| definitions(&node, &mut report)).unwrap_or_default()
    };
    let registry_name = registry_path.display().to_string();
    let enabled = {
        let mut report = report.for_file(&registry_name);
        tree::parse(&registry_text, &mut report)
            .map(|node| enabled(&node, &definitions, &mut report))
            .unwrap_or_default()
    };
    let config_name = config_path.display().to_string();
    let settings =
        config_text.map(|text| config(&text, &definitions, &mut report.for_file(&config_name))).unwrap_or_default();
    let secrets_name = secrets_path.display().to_string();
    let secrets = secrets_text.map(|text| env_file(&text, &mut report.for_file(&secrets_name))).unwrap_or_default();

    let mut servers = Vec::new();
    for definition in definitions {
        if !enabled.contains(&definition.name) {
            continue;
        }
        let mut report = report.for_file(&catalog_name);
        let variables = settings.iter().filter(|(name, _)| *name == definition.name).flat_map(|(_, set)| set.clone());
        let variables: Vec<(String, String)> = variables.collect();
        if let Some(mut server) = server(definition, &secrets, &secrets_name, images, &mut report) {
            server.env.extend(variables);
            servers.push(server);
        }
    }
    servers.sort_by_key(|server| enabled.iter().position(|name| *name == server.name));
    servers
}

/// Images of a folder's enabled servers, as its catalogue names them; none of a folder that cannot be read. Says nothing:
/// whoever checks the folder does.
pub(super) fn images(directory: &Path) -> Vec<String> {
    let (mut problems, mut remarks) = (Vec::new(), Vec::new());
    let mut report = Report { file: "", problems: &mut problems, remarks: &mut remarks };
    let mut tree = |path: PathBuf| files::read_text(&path).ok().and_then(|text| tree::parse(&text, &mut report));
    let (catalog, registry) = (tree(directory.join("catalogs/catalog.yaml")), tree(directory.join("registry.yaml")));
    let (Some(catalog), Some(registry)) = (catalog, registry) else { return Vec::new() };
    let definitions = definitions(&catalog, &mut report);
    let enabled = enabled(&registry, &definitions, &mut report);
    definitions.into_iter().filter(|one| enabled.contains(&one.name)).map(|one| one.image).collect()
}

fn server(
    definition: Definition,
    secrets: &[(String, String)],
    secrets_name: &str,
    images: &Images,
    report: &mut Report<'_>,
) -> Option<Server> {
    let mut env = Vec::new();
    let mut placeholders = Vec::new();
    for wanted in definition.secrets {
        match secrets.iter().find(|(name, _)| *name == wanted.name) {
            Some((_, value)) => {
                env.push((wanted.env, value.clone()));
                placeholders.push((wanted.name, value.clone()));
            }
            None => {
                let shown = shown(&wanted.name);
                let fix = format!("add a line {}=PLACEHOLDER_... to {secrets_name}", shown.trim_matches('"'));
                report.problem(
                    wanted.at,
                    format!("secret {shown} of server {} has no placeholder", definition.name),
                    fix,
                );
            }
        }
    }
    let Some(reference) = images.reference(&definition.image) else {
        let known: Vec<&str> = images.names().filter(|name| name.contains(['/', ':'])).collect();
        let fix = format!(
            "pull or build it (docker pull, docker build) and run deploy/up.sh again, or take {} out of registry.yaml; {}",
            definition.name,
            suggestion(&definition.image, known)
        );
        let what = format!("the image of server {} is not on this machine", definition.name);
        report.problem(definition.image_at, what, fix);
        return None;
    };
    let command = match (definition.command.is_empty(), reference.starts_with(OUR_IMAGES)) {
        (false, _) => definition.command,
        (true, true) => vec![OUR_PROGRAM.to_owned()],
        (true, false) => {
            let what = format!(
                "the image of server {} is not one of the stack's, so its program must be named",
                definition.name
            );
            let fix = "add: command: [/path/in/the/image, argument]; docker image inspect shows its Entrypoint and Cmd";
            report.problem(definition.image_at, what, fix);
            return None;
        }
    };
    Some(Server { name: definition.name, image: definition.image, command, env, placeholders })
}

fn definitions(node: &Node, report: &mut Report<'_>) -> Vec<Definition> {
    let Some(fields) = Fields::of(node, "a catalogue", &CATALOG_FIELDS, report) else { return Vec::new() };
    let Some(registry) = fields.node("registry") else { return Vec::new() };
    let Some(registry) = Fields::open(registry, "\"registry\"", report) else { return Vec::new() };
    registry.entries().iter().filter_map(|entry| definition(entry.at, &entry.key, &entry.node, report)).collect()
}

fn definition(at: At, key: &str, node: &Node, report: &mut Report<'_>) -> Option<Definition> {
    let fields = Fields::of(node, "an MCP server", &SERVER_FIELDS, report)?;
    let name =
        key.parse::<ServerName>().map_err(|error| report.problem(at, error.to_string(), "rename the server")).ok();
    if let Some((at, kind)) = fields.text("type", report)
        && kind != "server"
    {
        report.problem(at, "only \"type: server\" is supported", "write type: server");
    }
    fields.flag("longLived", true, report);
    let image = match fields.text("image", report) {
        Some((at, image)) => {
            let plain = !image.is_empty()
                && image.len() <= 255
                && image.bytes().all(|b| b.is_ascii_alphanumeric() || b"/:._-@".contains(&b));
            if plain {
                Some((at, image.to_owned()))
            } else {
                report.problem(at, "this is not an image reference", "for example: zeroclaw/amazing-marvin-mcp:local");
                None
            }
        }
        None => {
            report.problem(fields.at, "this server has no image", "add: image: <name>");
            None
        }
    };
    let command = command(&fields, report);
    let mut secrets: Vec<Wanted> = Vec::new();
    for node in fields.list("secrets", report).unwrap_or_default() {
        if let Some(wanted) = wanted(node, report) {
            if secrets.iter().any(|earlier| earlier.env == wanted.env) {
                report.problem(wanted.at, "two secrets go into the same variable", "keep one");
            }
            secrets.push(wanted);
        }
    }
    let (image_at, image) = image?;
    Some(Definition { name: name?, image_at, image, command, secrets })
}

/// The program and its arguments. Our wrapper starts it, and looks nothing up in a PATH that it does not know.
fn command(fields: &Fields<'_>, report: &mut Report<'_>) -> Vec<String> {
    let words = fields.words("command", report);
    for (index, (at, word)) in words.iter().enumerate() {
        if word.is_empty() || word.len() > 1_024 || word.chars().any(char::is_control) {
            report.problem(*at, "this is not a word of a command", "write each argument as an item of its own");
        } else if index == 0 && !word.starts_with('/') {
            report.problem(
                *at,
                "the program must be an absolute path",
                "write where it is inside the image: /app/server",
            );
        }
    }
    words.into_iter().map(|(_, word)| word.to_owned()).collect()
}

fn wanted(node: &Node, report: &mut Report<'_>) -> Option<Wanted> {
    let fields = Fields::of(node, "a secret of a server", &SECRET_FIELDS, report)?;
    let name = fields.text("name", report);
    let env = fields.text("env", report);
    if name.is_none() {
        report.problem(fields.at, "this secret has no name", "add: name: <its key in secrets.env>");
    }
    let Some((env_at, env)) = env else {
        report.problem(fields.at, "this secret goes into no variable", "add: env: <the variable the server reads>");
        return None;
    };
    if !is_free_variable(env_at, env, report) {
        return None;
    }
    let (at, name) = name?;
    Some(Wanted { at, name: name.to_owned(), env: env.to_owned() })
}

fn enabled(node: &Node, definitions: &[Definition], report: &mut Report<'_>) -> Vec<ServerName> {
    let Some(fields) = Fields::of(node, "a registry", &["registry"], report) else { return Vec::new() };
    let Some(registry) = fields.node("registry") else { return Vec::new() };
    let Some(registry) = Fields::open(registry, "\"registry\"", report) else { return Vec::new() };
    let mut names = Vec::new();
    for entry in registry.entries() {
        if let Some(fields) = Fields::of(&entry.node, "an entry of the registry", &["ref"], report)
            && let Some((at, reference)) = fields.text("ref", report)
            && !reference.is_empty()
        {
            report.problem(
                at,
                "a \"ref\" to another catalogue is not supported",
                "write ref: \"\" and define the server in catalogs/catalog.yaml",
            );
        }
        match definitions.iter().find(|definition| definition.name.as_str() == entry.key) {
            Some(definition) => names.push(definition.name.clone()),
            None => {
                let fix = suggestion(&entry.key, definitions.iter().map(|definition| definition.name.as_str()));
                report.problem(entry.at, format!("catalogs/catalog.yaml defines no server {}", shown(&entry.key)), fix);
            }
        }
    }
    names
}

/// For messages about a folder that is named nowhere.
pub(super) fn default_directory(tier: &str) -> PathBuf {
    Path::new("mcp").join(tier)
}
