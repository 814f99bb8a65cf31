//! ZeroClaw's own tools, by the names of the version in `version`: which an agent of ours has, which it has where
//! `auto_approve` asks for them, which cannot work in a tier, and what the older stack called them.
//!
//! From `builtin_tools.rs` of zeroclaw-config and the `name()` of each tool of zeroclaw-runtime and zeroclaw-tools 0.8.7.

use super::implied;
use super::problem::{At, Report, suggestion};
use super::tier::Server;

/// What every agent has.
const CORE: [&str; 11] = [
    "shell",
    "file_read",
    "file_write",
    "file_edit",
    "glob_search",
    "content_search",
    "memory_recall",
    "memory_store",
    "memory_forget",
    "git_operations",
    // What lets approvals be asked for over the gateway.
    "ask_user",
];

/// What an agent has where `auto_approve` names it: none of these reaches beyond the workspace.
const ON_REQUEST: [&str; 2] = ["calculator", "image_info"];

/// Tools with HTTP clients that go round every proxy, or that fetch on their own: they cannot work in a tier.
pub(crate) const EXCLUDED: [&str; 8] = [
    "web_fetch",
    "http_request",
    "web_search_tool",
    "file_download",
    "browser",
    "browser_open",
    "image_gen",
    "weather",
];

/// Names in the older stack's file -> names in this ZeroClaw.
const FORMER: [(&str, &str); 6] = [
    ("bash", "shell"),
    ("read", "file_read"),
    ("write", "file_write"),
    ("edit", "file_edit"),
    ("glob", "glob_search"),
    ("grep", "content_search"),
];

/// Searches for tools that are not listed at once; ours all are.
const SEARCH: &str = "tool_search";

/// As this ZeroClaw calls it.
pub(crate) fn current(name: &str) -> &str {
    FORMER.iter().find(|(former, _)| *former == name).map_or(name, |(_, current)| current)
}

/// Whether an agent has it only when it is asked for.
pub(crate) fn is_on_request(name: &str) -> bool {
    ON_REQUEST.contains(&name)
}

/// Says of an item of `auto_approve` what it is not, where it is not what one could think.
pub(super) fn remark(at: At, name: &str, servers: &[Server], report: &mut Report<'_>) {
    if let Some((server, tool)) = name.split_once("__") {
        if let Some(known) = servers.iter().find(|known| known.name.as_str() == server) {
            implied::remark_tool(at, tool, known, report);
        } else {
            let fix = match servers {
                [] => "remove it, or give the tier MCP servers (mcp: true)".to_owned(),
                _ => suggestion(server, servers.iter().map(|known| known.name.as_str())),
            };
            report.remark(at, "this tool is of an MCP server that the tier does not have", fix);
        }
        return;
    }
    let now = current(name);
    if now != name {
        report.remark(at, format!("ZeroClaw calls this tool {now} today, and it is read so"), format!("write {now}"));
    } else if EXCLUDED.contains(&name) {
        let what = "this tool goes round every proxy, so it cannot work in a tier and is switched off";
        report.remark(at, what, "remove it");
    } else if name == SEARCH {
        report.remark(at, "there is nothing to search for: every tool of the tier is listed at once", "remove it");
    } else if !CORE.contains(&name) && !ON_REQUEST.contains(&name) {
        let known = CORE.iter().chain(&ON_REQUEST).copied();
        report.remark(at, "an agent of this stack has no tool of this name", suggestion(name, known));
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Problem;
    use super::*;

    #[test]
    fn every_name_has_one_meaning() {
        for (former, now) in FORMER {
            assert!(CORE.contains(&now), "{now}");
            assert!(!CORE.contains(&former) && !EXCLUDED.contains(&former), "{former}");
            assert_eq!(current(former), now);
        }
        assert!(ON_REQUEST.iter().all(|name| !CORE.contains(name) && !EXCLUDED.contains(name) && is_on_request(name)));
        assert!(CORE.iter().all(|name| !EXCLUDED.contains(name) && !is_on_request(name)));
    }

    #[test]
    fn what_is_said_of_items() {
        let said = |name: &str| {
            let (mut problems, mut remarks): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
            let mut report = Report { file: "f", problems: &mut problems, remarks: &mut remarks };
            remark(At { line: 1, column: 1 }, name, &[], &mut report);
            assert!(problems.is_empty());
            remarks.first().map(ToString::to_string).unwrap_or_default()
        };
        for (name, what) in [
            ("bash", "calls this tool shell today"),
            ("weather", "cannot work in a tier"),
            ("tool_search", "nothing to search for"),
            ("memory_recal", "did you mean \"memory_recall\"?"),
            ("marvin__get_tasks", "of an MCP server that the tier does not have"),
        ] {
            assert!(said(name).contains(what), "{name}: {}", said(name));
        }
        for silent in ["shell", "calculator", "memory_recall", "ask_user"] {
            assert_eq!(said(silent), "", "{silent}");
        }
    }
}
