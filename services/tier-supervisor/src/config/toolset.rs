//! ZeroClaw's own tools, by the names of the version in `version`: which an agent of ours has, which it has where
//! `auto_approve` asks for them, which cannot work in a tier, and what the older stack called them; and the shell commands
//! that it holds for dangerous.
//!
//! From `builtin_tools.rs` and `policy.rs` of zeroclaw-config and the `name()` of each tool of zeroclaw-runtime and
//! zeroclaw-tools 0.8.7. tests/effects/ holds these lists against the program itself.

use super::implied;
use super::problem::{At, Report, suggestion};
use super::tier::Server;

/// What every agent has.
const CORE: [&str; 8] = [
    "shell",
    "file_read",
    "file_write",
    "file_edit",
    "glob_search",
    "content_search",
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

/// What this ZeroClaw takes away in every conversation over ACP, the one way by which agents are spoken to here: they keep
/// the conversation itself, and nothing beside it (`MEMORY_TOOL_NAMES`).
const FORGOTTEN: [&str; 5] = ["memory_store", "memory_recall", "memory_forget", "memory_export", "memory_purge"];

/// What comes with MCP servers beside their tools. The door to them has tools only.
pub(crate) const UNSERVED: [&str; 2] = ["mcp_prompts", "mcp_resources"];

/// The commands of a Linux that this ZeroClaw calls high risk (`generic_segment_risk`). One that is named in its list of
/// allowed commands runs in any case: where it is to be blocked, it must not be named there.
pub const DANGEROUS: [&str; 30] = [
    "rm",
    "rmdir",
    "mkfs",
    "dd",
    "shutdown",
    "reboot",
    "halt",
    "poweroff",
    "sudo",
    "su",
    "chown",
    "chmod",
    "useradd",
    "userdel",
    "usermod",
    "passwd",
    "mount",
    "umount",
    "iptables",
    "ufw",
    "firewall-cmd",
    "curl",
    "wget",
    "nc",
    "ncat",
    "netcat",
    "scp",
    "ssh",
    "ftp",
    "telnet",
];

/// A command that no agent runs, whatever is named: ZeroClaw refuses every command line with this word.
const REFUSED: &str = "tee";

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

/// Whether this ZeroClaw calls the command high risk.
pub(crate) fn is_dangerous(command: &str) -> bool {
    DANGEROUS.iter().any(|dangerous| dangerous.eq_ignore_ascii_case(command))
}

/// Says of an item of `commands` that it stays blocked, where it does. `blocks` is the tier's `block_high_risk`.
pub(super) fn remark_command(at: At, command: &str, blocks: bool, report: &mut Report<'_>) {
    if blocks && is_dangerous(command) {
        let what = "ZeroClaw holds this command for dangerous, and block_high_risk is true: it stays blocked";
        report.remark(at, what, "write block_high_risk: false to let the agent run it, or remove it");
    } else if command == REFUSED {
        report.remark(at, "ZeroClaw refuses every command line with this command in it", "remove it");
    }
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
    } else if FORGOTTEN.contains(&name) {
        let what =
            "an agent of this stack keeps its conversations and has no memory beside them, so there is no such tool";
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
            ("glob_serch", "did you mean \"glob_search\"?"),
            ("memory_recall", "has no memory beside them"),
            ("marvin__get_tasks", "of an MCP server that the tier does not have"),
        ] {
            assert!(said(name).contains(what), "{name}: {}", said(name));
        }
        assert!(DANGEROUS.iter().all(|command| is_dangerous(command)) && is_dangerous("RM") && !is_dangerous("ls"));
        for silent in ["shell", "calculator", "glob_search", "ask_user"] {
            assert_eq!(said(silent), "", "{silent}");
        }
    }
}
