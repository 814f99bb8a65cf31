//! An MCP folder: which servers a tier has. `catalogs/catalog.yaml` defines, `registry.yaml` enables, `config.yaml`
//! overrides, `secrets.env` holds placeholders.
//!
//! The format is that of the older stack's folders. A value of secrets.env that is no placeholder is refused and never
//! repeated: it would be a real credential inside a tier.

use std::path::{Path, PathBuf};

use assistant_proto::name::ServerName;

use super::credentials::is_placeholder;
use super::images::Images;
use super::problem::{At, Report, shown, suggestion};
use super::tier::Server;
use super::tiers::Sources;
use super::tree::{self, Fields, Node, Value};

const CATALOG_FIELDS: [&str; 3] = ["name", "displayName", "registry"];
const SERVER_FIELDS: [&str; 6] = ["title", "description", "image", "type", "longLived", "secrets"];
const SECRET_FIELDS: [&str; 3] = ["name", "env", "description"];

/// Variables that the wrapper sets for every server, or that would change what the server's program is.
const OWN_VARIABLES: [&str; 12] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "PATH",
    "HOME",
    "PYTHONPATH",
];

/// A secret of a catalogue entry: a name in secrets.env and the variable it goes into.
struct Wanted {
    at: At,
    name: String,
    env: String,
}

struct Definition {
    name: ServerName,
    image: String,
    secrets: Vec<Wanted>,
}

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
            report.problem(
                referenced_at,
                format!("the MCP folder is not complete: {error}"),
                "add the file, or set mcp: false",
            );
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
    if let Some(text) = config_text {
        let name = config_path.display().to_string();
        config(&text, &mut report.for_file(&name));
    }
    let secrets_name = secrets_path.display().to_string();
    let secrets = secrets_text.map(|text| env_file(&text, &mut report.for_file(&secrets_name))).unwrap_or_default();

    let mut servers = Vec::new();
    for definition in definitions {
        if !enabled.contains(&definition.name) {
            continue;
        }
        let mut report = report.for_file(&catalog_name);
        if let Some(server) = server(definition, &secrets, &secrets_name, images, &mut report) {
            servers.push(server);
        }
    }
    servers.sort_by_key(|server| enabled.iter().position(|name| *name == server.name));
    servers
}

fn server(
    definition: Definition,
    secrets: &[(String, String)],
    secrets_name: &str,
    images: &Images,
    report: &mut Report<'_>,
) -> Option<Server> {
    let start = At { line: 1, column: 1 };
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
    if images.reference(&definition.image).is_none() {
        let known: Vec<&str> = images.names().filter(|name| name.contains(['/', ':'])).collect();
        let fix = format!("build or pull it and run deploy/up.sh again; {}", suggestion(&definition.image, known));
        report.problem(start, format!("the image of server {} is not on this machine", definition.name), fix);
        return None;
    }
    Some(Server { name: definition.name, image: definition.image, env, placeholders })
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
                Some(image.to_owned())
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
    let mut secrets: Vec<Wanted> = Vec::new();
    for node in fields.list("secrets", report).unwrap_or_default() {
        if let Some(wanted) = wanted(node, report) {
            if secrets.iter().any(|earlier| earlier.env == wanted.env) {
                report.problem(wanted.at, "two secrets go into the same variable", "keep one");
            }
            secrets.push(wanted);
        }
    }
    Some(Definition { name: name?, image: image?, secrets })
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
    let variable = env.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && env.starts_with(|c: char| c.is_ascii_uppercase());
    if !variable || env.len() > 64 {
        report.problem(env_at, "this is not the name of a variable", "use A-Z, 0-9 and '_', starting with a letter");
        return None;
    }
    if OWN_VARIABLES.contains(&env) || env.starts_with("LD_") {
        report.problem(
            env_at,
            "this variable is set by the stack itself",
            "name the variable the server reads its secret from",
        );
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

fn config(text: &str, report: &mut Report<'_>) {
    match tree::parse(text, report).map(|node| (node.at, node.value)) {
        None | Some((_, Value::Null)) => {}
        Some((_, Value::Map(entries))) => {
            for entry in entries {
                report.problem(entry.at, "overrides of a server are not supported yet", "leave config.yaml empty: {}");
            }
        }
        Some((at, _)) => report.problem(at, "config.yaml is not a mapping", "leave it empty: {}"),
    }
}

/// `key=value` lines. Comments are lines of their own.
fn env_file(text: &str, report: &mut Report<'_>) -> Vec<(String, String)> {
    let mut values: Vec<(String, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let at = At { line: index.saturating_add(1), column: 1 };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            report.problem(at, "this line has no \"=\"", "write key=PLACEHOLDER_...");
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        if values.iter().any(|(earlier, _)| earlier == key) {
            report.problem(at, "this key stands here twice", "keep one");
            continue;
        }
        if !is_placeholder(value) {
            let fix = "write PLACEHOLDER_ and a word (letters, digits, '_', '-'); if this is a real credential, move it to the \
                       secrets directory and change it at the service, since it was readable here";
            report.problem(at, "this value does not look like a placeholder", fix);
            continue;
        }
        values.push((key.to_owned(), value.to_owned()));
    }
    values
}

/// For messages about a folder that is named nowhere.
pub(super) fn default_directory(tier: &str) -> PathBuf {
    Path::new("mcp").join(tier)
}

#[cfg(test)]
mod tests {
    use super::super::problem::Problem;
    use super::*;

    #[test]
    fn real_credentials_are_refused_and_not_repeated() {
        let (mut problems, mut remarks): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
        let mut report = Report { file: "secrets.env", problems: &mut problems, remarks: &mut remarks };
        let text =
            "# c\nmarvin_api_key=PLACEHOLDER_ONECLI_INJECTS\nother=kD93hunter2\nthird\nmarvin_api_key=PLACEHOLDER_X\n";
        let values = env_file(text, &mut report);
        assert_eq!(values, [("marvin_api_key".to_owned(), "PLACEHOLDER_ONECLI_INJECTS".to_owned())]);
        assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(problems.iter().all(|problem| !problem.to_string().contains("hunter2")));
    }
}
