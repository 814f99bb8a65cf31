//! A change as a person writes it: which file, which line, which text.

use assistant_proto::config::{self, Place};
use assistant_proto::name::{PrincipalName, TierName};

use crate::remedy::{Remedy, Step};
use crate::rules::TierPolicy;

/// Text that is to stand in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// As people name it.
    pub file: String,
    /// Where the section begins that it belongs to; 0 where that is not known.
    pub line: u32,
    /// What is to stand there; in YAML the whole field, so that it takes the place of the one that is there.
    pub text: String,
}

impl Line {
    /// At a source, `file:line`.
    #[must_use]
    pub fn of(source: &str, text: String) -> Self {
        let (file, line) = source.rsplit_once(':').unwrap_or((source, ""));
        Self { file: file.to_owned(), line: line.parse().unwrap_or(0), text }
    }
}

/// The lines of tiers.yaml that make a remedy; none where it is in the floor alone. `tier` is where the tier begins.
pub(super) fn of(remedy: &Remedy, policy: &TierPolicy, principal: &PrincipalName, tier: &str) -> Vec<Line> {
    match remedy {
        Remedy::Floor { .. } => Vec::new(),
        Remedy::Egress { host, method, .. } => {
            let host = list([host.to_string()]);
            let methods = if method.is_read() { String::new() } else { format!(", methods: [GET, HEAD, {method}]") };
            vec![Line::of(tier, format!("egress: {{hosts: {host}{methods}}}"))]
        }
        Remedy::Rule { index, source, steps, .. } => {
            let specs: Vec<config::Rule> = policy.rules().iter().map(|rule| rule.spec().clone()).collect();
            let changed = remedy.apply(&specs, principal);
            let Some(rule) = changed.get(*index) else { return Vec::new() };
            // A rule that stands in no section of its own is implied, together with all others of its kind.
            if source == tier && rule.inject.is_some() {
                let implied = changed.iter().filter(|rule| rule.source == tier && rule.inject.is_some());
                let sections: Vec<String> = implied.map(|rule| credential(rule, policy.tier())).collect();
                return vec![Line::of(tier, format!("credentials:\n{}", sections.join("\n")))];
            }
            steps.iter().map(|step| Line::of(source, field(step, rule, policy.tier()))).collect()
        }
    }
}

fn field(step: &Step, rule: &config::Rule, tier: &TierName) -> String {
    match step {
        Step::Principal(_) => format!("for: {}", subjects(rule, tier)),
        Step::Host(_) => format!("hosts: {}", list(rule.hosts.iter().cloned())),
        Step::Method(_) => format!("methods: {}", list(rule.methods.iter().cloned())),
        Step::Path(_) => format!("paths: {}", list(rule.paths.iter().cloned())),
    }
}

/// A whole entry of `credentials`.
fn credential(rule: &config::Rule, tier: &TierName) -> String {
    let mut fields = Vec::new();
    if let Some(inject) = &rule.inject {
        let Place::Header { name, template } = &inject.place;
        fields.push(format!("secret: {}", inject.secret));
        fields.push(format!("header: {name}"));
        fields.push(format!("template: {}", quoted(template)));
    }
    fields.push(format!("hosts: {}", list(rule.hosts.iter().cloned())));
    if !rule.methods.is_empty() {
        fields.push(format!("methods: {}", list(rule.methods.iter().cloned())));
    }
    if !rule.paths.is_empty() {
        fields.push(format!("paths: {}", list(rule.paths.iter().cloned())));
    }
    fields.push(format!("for: {}", subjects(rule, tier)));
    format!("  - {}", fields.join("\n    "))
}

fn subjects(rule: &config::Rule, tier: &TierName) -> String {
    let prefix = format!("mcp-{tier}-");
    list(rule.principals.iter().map(|name| name.as_str().strip_prefix(&prefix).unwrap_or("agent").to_owned()))
}

fn list(entries: impl IntoIterator<Item = String>) -> String {
    let entries: Vec<String> = entries.into_iter().map(|entry| quoted(&entry)).collect();
    format!("[{}]", entries.join(", "))
}

/// As YAML reads it back, also inside `[...]`.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~*-".contains(&byte);
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'/' || byte == b'.');
    if begins && text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "''")) }
}
