//! The sections of a tier that say what works in it: its MCP servers, their tools, and lists of words.

use std::path::{Path, PathBuf};

use assistant_proto::config::ToolRule;
use assistant_proto::name::{ServerName, TierName};

use super::catalog;
use super::implied;
use super::problem::{At, Report, suggestion};
use super::tier::{AllowedTools, Server};
use super::tiers::{Sources, World};
use super::tree::Fields;

pub(super) fn servers(
    fields: &Fields<'_>,
    tier: &TierName,
    base: &Path,
    world: &World<'_>,
    sources: &dyn Sources,
    report: &mut Report<'_>,
) -> Vec<Server> {
    if !fields.flag("mcp", false, report) {
        for field in ["mcp_dir", "tools"] {
            if fields.node(field).is_some() {
                report.problem(
                    fields.at(field),
                    format!("\"{field}\" has no effect without mcp: true"),
                    "add mcp: true, or remove it",
                );
            }
        }
        return Vec::new();
    }
    let (at, directory) = match fields.text("mcp_dir", report) {
        Some((at, text)) if text.chars().any(char::is_control) || text.is_empty() => {
            report.problem(at, "this is not a path", "name the folder, relative to this file");
            return Vec::new();
        }
        Some((at, text)) => (at, PathBuf::from(text)),
        None if fields.node("mcp_dir").is_some() => return Vec::new(),
        None => (fields.at("mcp"), catalog::default_directory(tier.as_str())),
    };
    let servers = catalog::servers(&base.join(directory), at, world.images, sources, report);
    for server in &servers {
        // Container names are principals' names, at most 63 characters.
        if format!("mcp-{tier}-{}", server.name).len() > 63 {
            report.problem(
                at,
                format!("the names of tier {tier} and server {} are too long together", server.name),
                "shorten one",
            );
        }
    }
    servers
}

/// What of each server may be listed and called, every server once. Without the section that is all of it.
pub(super) fn tools(
    fields: &Fields<'_>,
    servers: &[Server],
    complete: bool,
    report: &mut Report<'_>,
) -> Vec<AllowedTools> {
    if fields.node("tools").is_none() {
        for server in servers {
            let what = format!(
                "implicit: every tool of MCP server {} may be called; ZeroClaw asks before each that auto_approve does \
                 not name",
                server.name
            );
            report.remark(
                fields.at,
                what,
                format!("to narrow it: tools: [{{server: {}, allow: [<tool>]}}]", server.name),
            );
        }
        let line = fields.at.line;
        let all = |server: &Server| AllowedTools { server: server.name.clone(), rule: ToolRule::All, line };
        return servers.iter().map(all).collect();
    }
    let named = named_tools(fields, servers, complete, report);
    servers
        .iter()
        .map(|server| {
            let rule = named.iter().find(|named| named.server == server.name);
            let allow = rule.map(|named| named.allow.clone()).unwrap_or_default();
            if allow.is_empty() {
                let fix = format!("add to the tier: tools: [{{server: {}, allow: [<tool>]}}]", server.name);
                report.remark(fields.at, format!("no tool of MCP server {} is allowed", server.name), fix);
            }
            let line = rule.map_or(fields.at.line, |named| named.line);
            AllowedTools { server: server.name.clone(), rule: ToolRule::Only(allow), line }
        })
        .collect()
}

/// An item of `tools`.
struct Named {
    server: ServerName,
    allow: Vec<String>,
    line: usize,
}

fn named_tools(fields: &Fields<'_>, servers: &[Server], complete: bool, report: &mut Report<'_>) -> Vec<Named> {
    let mut tools: Vec<Named> = Vec::new();
    for node in fields.list("tools", report).unwrap_or_default() {
        let Some(rule) = Fields::of(node, "a tools rule", &["server", "allow"], report) else { continue };
        let allow = placed_words(&rule, "allow", is_tool, "name each tool as the server calls it; no \"*\"", report);
        let Some((at, text)) = rule.text("server", report) else {
            if rule.node("server").is_none() {
                report.problem(rule.at, "this rule names no server", "add: server: <its name in the catalogue>");
            }
            continue;
        };
        let Some(server) = servers.iter().find(|server| server.name.as_str() == text) else {
            if complete {
                let known = servers.iter().map(|server| server.name.as_str());
                report.problem(at, "the tier has no such MCP server", suggestion(text, known));
            }
            continue;
        };
        if tools.iter().any(|named| named.server == server.name) {
            report.problem(at, "this server has two tools rules", "join them");
        }
        for (at, tool) in &allow {
            implied::remark_tool(*at, tool, server, report);
        }
        let allow = allow.into_iter().map(|(_, tool)| tool.to_owned()).collect();
        tools.push(Named { server: server.name.clone(), allow, line: rule.at.line });
    }
    tools
}

/// The usable items of a list, each with its place.
pub(super) fn placed_words<'n>(
    fields: &Fields<'n>,
    field: &str,
    fine: fn(&str) -> bool,
    fix: &str,
    report: &mut Report<'_>,
) -> Vec<(At, &'n str)> {
    let mut words = Vec::new();
    for (at, text) in fields.texts(field, report) {
        if fine(text) {
            words.push((at, text));
        } else {
            report.problem(at, format!("an item of \"{field}\" is not usable"), fix);
        }
    }
    words
}

pub(super) fn is_command(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
        && !text.starts_with(['-', '.'])
}

pub(super) fn is_tool(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_lists() {
        for good in ["curl", "python3.11", "g++"] {
            assert!(is_command(good), "{good}");
        }
        for bad in ["*", "", "rm -rf", "/bin/ls", "-x", "a;b", "$(x)"] {
            assert!(!is_command(bad), "{bad}");
        }
        assert!(is_tool("marvin__get_tasks") && !is_tool("*") && !is_tool("a.b"));
    }
}
