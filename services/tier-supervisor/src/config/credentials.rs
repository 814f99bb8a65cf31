//! The sections of a tier that say what may leave it: `credentials` and `egress`.
//!
//! Owns the shapes, the floor and the references. What a rule may say is `policy`'s: its parsers are asked entry by entry,
//! for the place, and its compiler in the end ([`compile`]), so that what passes here is what the broker will accept.

use assistant_proto::name::{SecretName, ServerName, TierName};
use policy::TierPolicy;
use policy::pattern::PathPattern;

use super::allowlist::{Allowlist, HostPattern};
use super::problem::{At, Report, suggestion};
use super::tier::{Credential, Egress, Server, Subject};
use super::tree::{Fields, Node};
use crate::render::rules;

const CREDENTIAL_FIELDS: [&str; 8] =
    ["secret", "placeholder", "hosts", "methods", "paths", "header", "template", "for"];
const EGRESS_FIELDS: [&str; 3] = ["hosts", "methods", "paths"];
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// What the broker sets itself on every request. Every other place that no secret may have is `policy`'s to know.
const SET_BY_BROKER: &str = "traceparent";

/// What the sections of a tier are checked against.
pub(super) struct Surroundings<'a> {
    pub(super) floor: &'a Allowlist,
    pub(super) servers: &'a [Server],
    /// Hosts of services' own Squid users, never open to a tier.
    pub(super) reserved: &'a [HostPattern],
    /// Whether `servers` is all there is. When the MCP folder has problems of its own, nothing is said about servers that
    /// are missing for that reason.
    pub(super) complete: bool,
    /// What is wrong with the file of a secret, and what to do.
    pub(super) secret_problem: &'a dyn Fn(&SecretName) -> Option<(String, String)>,
}

/// A section that was read.
pub(super) struct Section<T> {
    pub(super) value: T,
    pub(super) at: At,
    /// Nothing in it was reported that makes a rule incomplete.
    pub(super) is_sound: bool,
}

pub(super) fn credential(
    node: &Node,
    index: usize,
    around: &Surroundings<'_>,
    report: &mut Report<'_>,
) -> Option<Section<Credential>> {
    let fields = Fields::of(node, "a credential", &CREDENTIAL_FIELDS, report)?;
    let secret = secret_name(&fields, report);
    if let Some((what, fix)) = secret.as_ref().and_then(|secret| (around.secret_problem)(secret)) {
        report.problem(fields.at, what, fix);
    }
    let before = report.problems.len();
    let hosts = hosts(&fields, "this credential", around, report);
    let methods = methods(&fields, report);
    let paths = paths(&fields, report);
    let header = header(&fields, report);
    let template = template(&fields, report);
    let subjects = subjects(&fields, around, report);
    let placeholder = placeholder(&fields, secret.as_ref(), around, report);
    let (secret, header, template, placeholder) = (secret?, header?, template?, placeholder?);
    let value = Credential {
        id: format!("{secret}-{}", index.saturating_add(1)),
        secret,
        placeholder,
        hosts,
        methods,
        paths,
        header,
        template,
        subjects,
        line: fields.at.line,
    };
    Some(Section { value, at: fields.at, is_sound: report.problems.len() == before })
}

pub(super) fn egress(node: &Node, around: &Surroundings<'_>, report: &mut Report<'_>) -> Option<Section<Egress>> {
    let fields = Fields::of(node, "\"egress\"", &EGRESS_FIELDS, report)?;
    let before = report.problems.len();
    // Written down as empty, it means that nothing may be reached without a credential.
    let nothing = fields.node("hosts").is_some() && fields.is_absent_or_empty("hosts");
    let hosts = if nothing { Vec::new() } else { hosts(&fields, "\"egress\"", around, report) };
    let methods = methods(&fields, report);
    let paths = paths(&fields, report);
    let line = fields.at.line;
    let value = Egress { hosts, methods, paths, read_only: false, implicit: false, line };
    Some(Section { value, at: fields.at, is_sound: report.problems.len() == before })
}

/// What the broker would say to the rules of a tier, each problem at the section that the rule is made from. Sections with
/// problems of their own are left out: their rules are not whole.
pub(super) fn compile(
    tier: &TierName,
    servers: &[Server],
    credentials: &[Section<Credential>],
    egress: Option<&Section<Egress>>,
    report: &mut Report<'_>,
) {
    let sound: Vec<Credential> =
        credentials.iter().filter(|section| section.is_sound).map(|section| section.value.clone()).collect();
    let open =
        egress.filter(|section| section.is_sound && !section.value.hosts.is_empty()).map(|section| &section.value);
    // A name that is too long for a principal is reported where the servers are.
    let Ok(rules) = rules(report.file, tier, servers, &sound, open) else { return };
    let Err(problems) = TierPolicy::compile(tier, &rules) else { return };
    let places: Vec<At> =
        credentials.iter().map(|section| section.at).chain(egress.map(|section| section.at)).collect();
    for problem in problems {
        let line = problem.source.rsplit(':').next().and_then(|line| line.parse::<usize>().ok());
        let at = places.iter().copied().find(|at| Some(at.line) == line).unwrap_or(At { line: 1, column: 1 });
        report.problem(at, problem.problem, format!("change rule {}; the broker would refuse it", problem.rule));
    }
}

fn secret_name(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<SecretName> {
    let Some((at, text)) = fields.text("secret", report) else {
        if fields.node("secret").is_none() {
            report.problem(
                fields.at,
                "this credential names no secret",
                "add: secret: <name of a file in the secrets directory>",
            );
        }
        return None;
    };
    text.parse()
        .map_err(|_| {
            let fix = "write the name of the secret, never its value: a-z, 0-9, '_' and '-', starting with a letter";
            report.problem(at, "this is not the name of a secret", fix);
        })
        .ok()
}

fn hosts(fields: &Fields<'_>, what: &str, around: &Surroundings<'_>, report: &mut Report<'_>) -> Vec<HostPattern> {
    let texts = fields.texts("hosts", report);
    if texts.is_empty() && fields.is_absent_or_empty("hosts") {
        report.problem(fields.at("hosts"), format!("{what} names no host"), "add: hosts: [api.example.com]");
    }
    let mut hosts = Vec::new();
    for (at, text) in texts {
        let Ok(pattern) = text.parse::<HostPattern>() else {
            let fix = "write it in lower case without scheme, port or path: api.example.com, *.example.com (one label \
                       below) or .example.com (it and all below)";
            report.problem(at, "this is not a host", fix);
            continue;
        };
        if around.reserved.iter().any(|reserved| reserved.covers(&pattern) || pattern.covers(reserved)) {
            let what = format!(
                "{pattern} includes a host of the model route or of a messenger, which is open to the stack's services only"
            );
            report.problem(
                at,
                what,
                "remove it; models are reached through http://models:4000, people through channels",
            );
        } else if around.floor.covers(&pattern) {
            hosts.push(pattern);
        } else {
            let fix = format!("add {} to squid/allowlist.txt, or remove it here", pattern.squid());
            report.problem(at, format!("{pattern} is not on the allowlist, and a tier can only narrow it"), fix);
        }
    }
    hosts
}

fn methods(fields: &Fields<'_>, report: &mut Report<'_>) -> Vec<String> {
    let mut methods = Vec::new();
    for (at, text) in fields.texts("methods", report) {
        if METHODS.contains(&text) {
            methods.push(text.to_owned());
        } else {
            report.problem(at, "this is not a method that can be allowed", suggestion(&text.to_uppercase(), METHODS));
        }
    }
    methods
}

fn paths(fields: &Fields<'_>, report: &mut Report<'_>) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, text) in fields.texts("paths", report) {
        if PathPattern::parse(text).is_some() {
            paths.push(text.to_owned());
        } else {
            let fix = "start with \"/\"; a segment is literal text, \"*\" (one segment) or, at the end only, \"**\" (any \
                       number); no query, no \"..\"";
            report.problem(at, "this is not a path pattern", fix);
        }
    }
    paths
}

fn header(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<String> {
    let Some((at, text)) = fields.text("header", report) else {
        if fields.node("header").is_none() {
            report.problem(
                fields.at,
                "this credential does not say where the secret goes",
                "add: header: <name of the header>",
            );
        }
        return None;
    };
    let name = text.to_ascii_lowercase();
    if name == SET_BY_BROKER {
        report.problem(at, "this header is set by the broker", "use the header the service's documentation names");
        return None;
    }
    Some(name)
}

fn template(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<String> {
    match fields.text("template", report) {
        Some((_, text)) => Some(text.to_owned()),
        None => fields.node("template").is_none().then(|| "{}".to_owned()),
    }
}

fn placeholder(
    fields: &Fields<'_>,
    secret: Option<&SecretName>,
    around: &Surroundings<'_>,
    report: &mut Report<'_>,
) -> Option<String> {
    if let Some((at, text)) = fields.text("placeholder", report) {
        if is_placeholder(text) {
            return Some(text.to_owned());
        }
        let fix = "start it with PLACEHOLDER and use letters, digits, '_' and '-' (12 to 128 characters); the real value \
                   goes into a file of the secrets directory";
        report.problem(at, "this does not look like a placeholder", fix);
        return None;
    }
    if fields.node("placeholder").is_some() {
        return None;
    }
    let secret = secret?;
    let found: Vec<&str> = around
        .servers
        .iter()
        .flat_map(|server| &server.placeholders)
        .filter(|(name, _)| name == secret.as_str())
        .map(|(_, value)| value.as_str())
        .collect();
    match found.as_slice() {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => Some((*first).to_owned()),
        [] if !around.complete => None,
        [] => {
            let fix = format!("add: placeholder: PLACEHOLDER_{}", secret.as_str().to_uppercase().replace('-', "_"));
            report.problem(
                fields.at,
                format!("credential {secret} has no placeholder, and no MCP server of the tier has one of that name"),
                fix,
            );
            None
        }
        _ => {
            report.problem(
                fields.at,
                format!("the tier's MCP servers have different placeholders for {secret}"),
                "add: placeholder: <which one>",
            );
            None
        }
    }
}

/// The spelling that marks a value as no secret. Real tokens do not begin so; a pasted one is refused.
pub(super) fn is_placeholder(text: &str) -> bool {
    text.starts_with("PLACEHOLDER")
        && (12..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn subjects(fields: &Fields<'_>, around: &Surroundings<'_>, report: &mut Report<'_>) -> Vec<Subject> {
    if !fields.has("for") {
        if around.servers.is_empty() && around.complete {
            let fix = "enable a server (mcp: true), or say that the agent itself uses it: for: [agent]";
            report.problem(fields.at, "this credential is for the tier's MCP servers, and there are none", fix);
        }
        return around.servers.iter().map(|server| Subject::Server(server.name.clone())).collect();
    }
    let texts = fields.texts("for", report);
    if fields.is_absent_or_empty("for") {
        report.problem(fields.at("for"), "\"for\" names nobody", "name MCP servers of the tier, or agent");
    }
    texts.into_iter().filter_map(|(at, text)| subject(at, text, around, report)).collect()
}

fn subject(at: At, text: &str, around: &Surroundings<'_>, report: &mut Report<'_>) -> Option<Subject> {
    if text == "agent" {
        return Some(Subject::Agent);
    }
    let known = |name: &ServerName| around.servers.iter().any(|server| server.name == *name);
    match text.parse::<ServerName>() {
        Ok(name) if known(&name) => Some(Subject::Server(name)),
        _ if !around.complete => None,
        _ => {
            let names = around.servers.iter().map(|server| server.name.as_str()).chain(["agent"]);
            report.problem(at, "the tier has no such MCP server", suggestion(text, names));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders() {
        for good in ["PLACEHOLDER_X", "PLACEHOLDER_ONECLI_INJECTS", "PLACEHOLDER-abc-123"] {
            assert!(is_placeholder(good), "{good}");
        }
        for bad in ["", "PLACEHOLDER", "sk-PLACEHOLDER_X", "PLACEHOLDER X X", "placeholder_xxx", "PLACEHOLDER_\u{e9}"] {
            assert!(!is_placeholder(bad), "{bad}");
        }
    }
}
