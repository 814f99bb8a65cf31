//! The sections of a tier that say what may leave it: `credentials` and `egress`.

use assistant_proto::name::{SecretName, ServerName};

use super::allowlist::{Allowlist, HostPattern};
use super::problem::{At, Report, suggestion};
use super::tier::{Credential, Egress, Server, Subject};
use super::tree::{Fields, Node};

const CREDENTIAL_FIELDS: [&str; 8] =
    ["secret", "placeholder", "hosts", "methods", "paths", "header", "template", "for"];
const EGRESS_FIELDS: [&str; 3] = ["hosts", "methods", "paths"];
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// Headers that frame a message, choose its target, or belong to a single hop: no secret goes there.
const FRAMING_HEADERS: [&str; 14] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "proxy-authorization",
    "proxy-connection",
    "accept-encoding",
    "content-encoding",
    "traceparent",
];

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

pub(super) fn credential(
    node: &Node,
    index: usize,
    around: &Surroundings<'_>,
    report: &mut Report<'_>,
) -> Option<Credential> {
    let fields = Fields::of(node, "a credential", &CREDENTIAL_FIELDS, report)?;
    let secret = secret_name(&fields, report);
    if let Some((what, fix)) = secret.as_ref().and_then(|secret| (around.secret_problem)(secret)) {
        report.problem(fields.at, what, fix);
    }
    let hosts = hosts(&fields, "this credential", around, report);
    let methods = methods(&fields, report);
    let paths = paths(&fields, report);
    let header = header(&fields, report);
    let template = template(&fields, report);
    let subjects = subjects(&fields, around, report);
    let placeholder = placeholder(&fields, secret.as_ref(), around, report);
    let (secret, header, template, placeholder) = (secret?, header?, template?, placeholder?);
    Some(Credential {
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
    })
}

pub(super) fn egress(node: &Node, around: &Surroundings<'_>, report: &mut Report<'_>) -> Option<Egress> {
    let fields = Fields::of(node, "\"egress\"", &EGRESS_FIELDS, report)?;
    let hosts = hosts(&fields, "\"egress\"", around, report);
    let methods = methods(&fields, report);
    let paths = paths(&fields, report);
    Some(Egress { hosts, methods, paths, line: fields.at.line })
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
            let what =
                format!("{pattern} includes a host of the model route, which is open to the stack's services only");
            report.problem(at, what, "remove it; the agent reaches models through http://models:4000");
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
        if is_path_pattern(text) {
            paths.push(text.to_owned());
        } else {
            let fix = "start with \"/\"; a segment is literal text, \"*\" (one segment) or, at the end only, \"**\" (any \
                       number); no query, no \"..\", no percent signs";
            report.problem(at, "this is not a path pattern", fix);
        }
    }
    paths
}

fn is_path_pattern(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else { return false };
    let segments: Vec<&str> = rest.split('/').collect();
    let last = segments.len().saturating_sub(1);
    segments.iter().enumerate().all(|(index, segment)| match *segment {
        "**" => index == last,
        "*" => true,
        "" => index == last,
        "." | ".." => false,
        literal => literal.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&b)),
    })
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
    let token = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !token {
        report.problem(at, "this is not the name of a header", "for example: header: X-API-Token");
        return None;
    }
    if FRAMING_HEADERS.contains(&name.as_str()) {
        report.problem(at, "this header cannot carry a secret", "use the header the service's documentation names");
        return None;
    }
    Some(name)
}

fn template(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<String> {
    let Some((at, text)) = fields.text("template", report) else {
        return fields.node("template").is_none().then(|| "{}".to_owned());
    };
    let printable = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let trimmed = text.trim() == text;
    if text.len() <= 200 && printable && trimmed && text.matches("{}").count() == 1 {
        return Some(text.to_owned());
    }
    report.problem(at, "a template holds {} exactly once, in printable ASCII", "for example: template: \"Bearer {}\"");
    None
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
    fn path_patterns() {
        for good in ["/", "/api/**", "/api/*/items", "/a.b/c-d_e~", "/**", "/api/"] {
            assert!(is_path_pattern(good), "{good}");
        }
        for bad in
            ["", "api", "/api/**/x", "/api/../x", "/./x", "/a//b", "/a?b", "/a#b", "/%2e", "/a*", "/a b", "/\u{e9}"]
        {
            assert!(!is_path_pattern(bad), "{bad}");
        }
    }

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
