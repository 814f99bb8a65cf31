//! The variables of an MCP server: which may be set, plain ones from config.yaml, placeholders from secrets.env.

use assistant_proto::name::ServerName;

use super::super::credentials::is_placeholder;
use super::super::problem::{At, Report, shown, suggestion};
use super::super::tree::{self, Entry, Fields, Value};
use super::Definition;

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

/// Variables of a server that config.yaml sets.
pub(super) type Settings = Vec<(ServerName, Vec<(String, String)>)>;

/// Whether a variable may be set for a server. Reports why not.
pub(super) fn is_free_variable(at: At, name: &str, report: &mut Report<'_>) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && name.starts_with(|c: char| c.is_ascii_uppercase());
    if !plain || name.len() > 64 {
        report.problem(at, "this is not the name of a variable", "use A-Z, 0-9 and '_', starting with a letter");
        return false;
    }
    if OWN_VARIABLES.contains(&name) || name.starts_with("LD_") {
        let fix = "name the variable that the server itself reads";
        report.problem(at, "this variable is set by the stack itself", fix);
        return false;
    }
    true
}

/// config.yaml: `<server>: {env: {NAME: value}}`, plain values for variables that no secret goes into.
pub(super) fn config(text: &str, definitions: &[Definition], report: &mut Report<'_>) -> Settings {
    let Some(node) = tree::parse(text, report) else { return Vec::new() };
    if matches!(node.value, Value::Null) {
        return Vec::new();
    }
    let Some(servers) = Fields::open(&node, "config.yaml", report) else { return Vec::new() };
    let mut settings = Vec::new();
    for entry in servers.entries() {
        let Some(definition) = definitions.iter().find(|definition| definition.name.as_str() == entry.key) else {
            let fix = suggestion(&entry.key, definitions.iter().map(|definition| definition.name.as_str()));
            report.problem(entry.at, format!("catalogs/catalog.yaml defines no server {}", shown(&entry.key)), fix);
            continue;
        };
        let Some(fields) = Fields::of(&entry.node, "an override of a server", &["env"], report) else { continue };
        let Some(env) = fields.node("env").and_then(|node| Fields::open(node, "\"env\"", report)) else { continue };
        let set = env.entries().iter().filter_map(|entry| variable(entry, definition, report)).collect();
        settings.push((definition.name.clone(), set));
    }
    settings
}

fn variable(entry: &Entry, definition: &Definition, report: &mut Report<'_>) -> Option<(String, String)> {
    if !is_free_variable(entry.at, &entry.key, report) {
        return None;
    }
    if definition.secrets.iter().any(|wanted| wanted.env == entry.key) {
        report.problem(entry.at, "a secret goes into this variable already", "remove it here");
        return None;
    }
    if ["KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL"].iter().any(|word| entry.key.contains(word)) {
        let fix = "define it under secrets of catalogs/catalog.yaml, with a placeholder in secrets.env";
        report.problem(entry.at, "this variable sounds like a secret, and nothing here is kept secret", fix);
        return None;
    }
    let value = match &entry.node.value {
        Value::Text(text) => text.clone(),
        Value::Integer(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        _ => {
            report.problem(entry.node.at, "this is not a plain value", "write text, a number, true or false");
            return None;
        }
    };
    if value.len() > 1_024 || value.chars().any(char::is_control) {
        report.problem(entry.node.at, "this value is too long or has control characters", "write one short line");
        return None;
    }
    Some((entry.key.clone(), value))
}

/// `key=value` lines. Comments are lines of their own.
pub(super) fn env_file(text: &str, report: &mut Report<'_>) -> Vec<(String, String)> {
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

#[cfg(test)]
mod tests {
    use super::super::super::problem::Problem;
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
