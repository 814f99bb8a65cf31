//! What a tier gets that does not say it: the credential of an MCP server that this project knows, and, without an
//! identity, reading the rest of the floor.
//!
//! Both are what the older stack's file meant without saying so. Each is told in a remark, and ends where the section of
//! the file begins: `credentials`, or `egress`.

use assistant_proto::name::{SecretName, TierName};

use super::allowlist::{Allowlist, HostPattern};
use super::credentials::{Section, Surroundings};
use super::hosts;
use super::problem::{At, Report, suggestion};
use super::tier::{Credential, Egress, Server, Subject};

/// An MCP server whose way of using its secret is known.
struct Known {
    /// Its image, as catalogues name it.
    image: &'static str,
    /// The variable it reads its secret from.
    env: &'static str,
    /// The secret, by the name under which `.env` and the secrets directory have it.
    secret: &'static str,
    host: &'static str,
    methods: &'static [&'static str],
    paths: &'static [&'static str],
    header: &'static str,
    template: &'static str,
    tools: &'static [&'static str],
}

const KNOWN: [Known; 1] = [Known {
    // amazing-marvin-mcp 1.0.1, api.py: GET and POST below one base URL, the token in one header.
    image: "zeroclaw/amazing-marvin-mcp:local",
    env: "AMAZING_MARVIN_API_KEY",
    secret: "marvin_api_key",
    host: "serv.amazingmarvin.com",
    methods: &["GET", "POST"],
    paths: &["/api/**"],
    header: "x-api-token",
    template: "{}",
    // main.py, what it decorates as tools.
    tools: &[
        "batch_create_tasks",
        "batch_mark_done",
        "claim_reward_points",
        "create_project",
        "create_project_with_tasks",
        "create_task",
        "get_account_info",
        "get_all_tasks",
        "get_categories",
        "get_child_tasks",
        "get_completed_tasks",
        "get_completed_tasks_for_date",
        "get_currently_tracked_item",
        "get_daily_productivity_overview",
        "get_due_items",
        "get_goals",
        "get_kudos_info",
        "get_labels",
        "get_productivity_summary_for_time_range",
        "get_project_overview",
        "get_projects",
        "get_tasks",
        "get_time_tracks",
        "mark_task_done",
        "start_time_tracking",
        "stop_time_tracking",
        "test_api_connection",
        "time_tracking_summary",
    ],
}];

/// Says of a tool of a known server that it does not have it. It may be of another version than the one we know: no error.
pub(super) fn remark_tool(at: At, tool: &str, server: &Server, report: &mut Report<'_>) {
    let Some(known) = KNOWN.iter().find(|known| known.image == server.image) else { return };
    if !known.tools.contains(&tool) {
        let what =
            format!("MCP server {} is not known to have a tool of this name, and then this does nothing", server.name);
        report.remark(at, what, suggestion(tool, known.tools.iter().copied()));
    }
}

/// The credentials of known servers, for a tier with an identity and without a section `credentials`.
pub(super) fn credentials(at: At, around: &Surroundings<'_>, report: &mut Report<'_>) -> Vec<Section<Credential>> {
    around.servers.iter().filter_map(|server| credential(at, server, around, report)).collect()
}

/// A known server in a tier without an identity: it runs, and is refused by its service.
pub(super) fn without_identity(at: At, servers: &[Server], report: &mut Report<'_>) {
    for server in servers.iter().filter(|server| known(server).is_some()) {
        let what = format!("MCP server {} has no credential, since the tier has no identity", server.name);
        report.remark(at, what, "give the tier an identity (identity: <name>)");
    }
}

fn known(server: &Server) -> Option<(&'static Known, &str)> {
    let known = KNOWN.iter().find(|known| known.image == server.image)?;
    let (_, placeholder) = server.env.iter().find(|(name, _)| name == known.env)?;
    Some((known, placeholder))
}

fn credential(
    at: At,
    server: &Server,
    around: &Surroundings<'_>,
    report: &mut Report<'_>,
) -> Option<Section<Credential>> {
    let (known, placeholder) = known(server)?;
    let host: HostPattern = known.host.parse().ok()?;
    let secret: SecretName = known.secret.parse().ok()?;
    if !around.floor.covers(&host) {
        let what = format!("MCP server {} cannot reach {host}, which is not on the allowlist", server.name);
        report.remark(at, what, format!("add {host} to squid/allowlist.txt"));
        return None;
    }
    let before = report.problems.len();
    if let Some((what, fix)) = (around.secret_problem)(&secret) {
        report.problem(at, format!("MCP server {}: {what}", server.name), fix);
    }
    let what = format!(
        "implicit: MCP server {} gets secret {secret} for {} of {host}{}, in header {}",
        server.name,
        known.methods.join(" and "),
        known.paths.join(" "),
        known.header
    );
    report.remark(at, what, "write a section credentials to say it yourself, or to narrow it");
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let value = Credential {
        id: format!("{secret}-{}", server.name),
        secret,
        placeholder: placeholder.to_owned(),
        hosts: vec![host],
        methods: texts(known.methods),
        paths: texts(known.paths),
        header: known.header.to_owned(),
        template: known.template.to_owned(),
        subjects: vec![Subject::Server(server.name.clone())],
        line: at.line,
    };
    Some(Section { value, at, is_sound: report.problems.len() == before })
}

/// What a tier without an identity and without a section `egress` reaches: the floor, to read from, but for shared
/// hosting, messengers and the stack's own hosts. None where nothing is left.
pub(super) fn egress(
    tier: &TierName,
    at: At,
    floor: &Allowlist,
    reserved: &[HostPattern],
    report: &mut Report<'_>,
) -> Option<Section<Egress>> {
    let is_left = |entry: &&HostPattern| {
        !hosts::is_shared(entry)
            && !hosts::is_messenger(entry)
            && !reserved.iter().any(|reserved| hosts::overlap(reserved, entry))
    };
    let open: Vec<HostPattern> = floor.entries().iter().filter(is_left).cloned().collect();
    let withheld = floor.entries().len().saturating_sub(open.len());
    if open.is_empty() {
        return None;
    }
    let names: Vec<String> = open.iter().map(ToString::to_string).collect();
    let but = match withheld {
        0 => String::new(),
        count => format!(" ({count} more of the allowlist are shared hosting, messengers or the stack's own)"),
    };
    report.remark(
        at,
        format!("implicit: tier {tier} may read (GET and HEAD, no body) from {}{but}", names.join(", ")),
        "write a section egress to say it yourself; egress: {hosts: []} reaches nothing",
    );
    let value = Egress {
        hosts: open,
        methods: vec!["GET".to_owned(), "HEAD".to_owned()],
        paths: Vec::new(),
        read_only: true,
        implicit: true,
        line: at.line,
    };
    Some(Section { value, at, is_sound: true })
}
