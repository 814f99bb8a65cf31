//! A stack's status as text. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use assistant_proto::tier::{Container, ContainerState, WatchStackResponse};
use serde_json::json;
use service_kit::text::{harmless, harmless_line};

/// One line on what is under way.
pub(super) fn progress(stack: &WatchStackResponse) -> String {
    let up = healthy(stack);
    let all = stack.containers.len();
    if stack.current_step.is_empty() {
        return match stack.converged {
            true => format!("everything is up ({up} of {all} containers)"),
            false => format!("looking ({up} of {all} containers up)"),
        };
    }
    let step = harmless_line(&stack.current_step, 200);
    let number = stack.steps_done.saturating_add(1);
    format!("[{number}/{}] {step} ({up} of {all} containers up)", stack.steps_total)
}

fn healthy(stack: &WatchStackResponse) -> usize {
    stack.containers.iter().filter(|container| container.state() == ContainerState::Healthy).count()
}

fn state(container: &Container) -> &'static str {
    match container.state() {
        ContainerState::Healthy => "healthy",
        ContainerState::Starting => "starting",
        ContainerState::Unhealthy => "unhealthy",
        ContainerState::Stopped => "stopped",
        ContainerState::Absent => "absent",
        ContainerState::Unspecified => "unknown",
    }
}

fn memory(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { format!("{} MiB", bytes.div_ceil(1 << 20)) }
}

fn age(started_at: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let Some(seconds) = u64::try_from(started_at).ok().filter(|at| *at > 0).map(|at| now.saturating_sub(at)) else {
        return "-".to_owned();
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A table for a terminal.
pub(super) fn table(stack: &WatchStackResponse) -> String {
    let mut text = String::new();
    if stack.drill {
        text.push_str("THIS IS A DRILL: the internet of this stack is made of doubles.\n\n");
    }
    let rows: Vec<[String; 5]> = stack
        .containers
        .iter()
        .map(|container| {
            [
                harmless_line(&container.name, 63),
                harmless_line(&container.role, 32),
                state(container).to_owned(),
                memory(container.memory_bytes),
                age(container.started_at),
            ]
        })
        .collect();
    let header = ["CONTAINER", "ROLE", "STATE", "MEMORY", "UP"].map(str::to_owned);
    let mut widths = [0_usize; 5];
    for row in rows.iter().chain([&header]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in [&header].into_iter().chain(&rows) {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    for tier in &stack.tiers {
        let (name, model) = (harmless_line(&tier.name, 63), harmless_line(&tier.model, 128));
        let class = match tier.confidential {
            true => "confidential: its prompts leave only through an attested route",
            false => "NOT CONFIDENTIAL: whoever runs the model reads its prompts",
        };
        text.push_str(&format!("\ntier {name}, model {model}: {class}"));
    }
    if !stack.tiers.is_empty() {
        text.push('\n');
    }
    let width = stack.sites.iter().map(|site| site.name.chars().count()).max().unwrap_or_default();
    for site in &stack.sites {
        let (name, url) = (harmless_line(&site.name, 63), harmless_line(&site.url, 200));
        // Why it is not, is said as a problem of the gates.
        let stands = if site.problem.is_empty() { "" } else { "   NOT OPEN" };
        text.push_str(&format!("page {name:<width$}  {url}{stands}\n"));
    }
    for remark in &stack.remarks {
        text.push_str(&format!("remark: {}\n", harmless(remark, 2000)));
    }
    for problem in &stack.file_problems {
        text.push_str(&format!("in the files: {}\n", harmless(problem, 2000)));
    }
    // Each problem once: the newest one, at the end, is often one of these.
    let is_newest =
        |container: &&Container| stack.problem.contains(&container.problem) && stack.problem.contains(&container.name);
    let ill = stack.containers.iter().filter(|container| !container.problem.is_empty());
    for container in ill.filter(|container| !is_newest(container)) {
        let problem = harmless(&container.problem, 4000);
        text.push_str(&format!("{}: {problem}\n", harmless_line(&container.name, 63)));
    }
    text.push('\n');
    if !stack.file_problems.is_empty() {
        text.push_str(&format!(
            "The files cannot be used as they are. The stack still runs the configuration of {}.\n",
            utc(stack.configured_at)
        ));
    }
    let is_of_files = stack.file_problems.contains(&stack.problem);
    let summary = match (super::is_healthy(stack), stack.problem.is_empty()) {
        (true, _) => "Everything is up, and every check of the floor passed.".to_owned(),
        (false, true) => progress(stack),
        (false, false) if is_of_files => return text,
        (false, false) => format!("Problem: {}", harmless(&stack.problem, 8000)),
    };
    text.push_str(&summary);
    text.push('\n');
    text
}

/// For people.
fn utc(seconds: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) if seconds > 0 => {
            format!("{} {:02}:{:02}:{:02} UTC", at.date(), at.hour(), at.minute(), at.second())
        }
        _ => "an unknown time".to_owned(),
    }
}

/// The same for a script.
pub(super) fn json(stack: &WatchStackResponse) -> String {
    let containers: Vec<_> = stack
        .containers
        .iter()
        .map(|container| {
            json!({
                "name": container.name, "role": container.role, "state": state(container),
                "problem": container.problem, "image": container.image,
                "memory_bytes": container.memory_bytes, "started_at": container.started_at,
                "addresses": container.addresses.iter().collect::<std::collections::BTreeMap<_, _>>(),
            })
        })
        .collect();
    let tiers: Vec<_> = stack
        .tiers
        .iter()
        .map(|tier| {
            json!({
                "name": tier.name, "identity": tier.identity, "model": tier.model, "confidential": tier.confidential,
            })
        })
        .collect();
    let sites: Vec<_> =
        stack.sites.iter().map(|site| json!({ "name": site.name, "url": site.url, "problem": site.problem })).collect();
    let mut text = json!({
        "healthy": super::is_healthy(stack), "converged": stack.converged, "drill": stack.drill,
        "current_step": stack.current_step, "steps_done": stack.steps_done, "steps_total": stack.steps_total,
        "problem": stack.problem, "file_problems": stack.file_problems, "remarks": stack.remarks, "tiers": tiers,
        "sites": sites,
        "configured_at": stack.configured_at,
        "containers": containers,
    })
    .to_string();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn stack(state: ContainerState, problem: &str) -> WatchStackResponse {
        WatchStackResponse {
            containers: vec![Container {
                name: "zeroclaw-tasks".to_owned(),
                role: "agent".to_owned(),
                state: state.into(),
                problem: problem.to_owned(),
                memory_bytes: 3 << 20,
                ..Container::default()
            }],
            converged: true,
            drill: true,
            ..WatchStackResponse::default()
        }
    }

    #[test]
    fn a_drill_says_so_and_problems_cannot_act_on_a_terminal() {
        let text = table(&stack(ContainerState::Unhealthy, "\u{1b}[2Jit says no"));
        assert!(text.starts_with("THIS IS A DRILL"), "{text}");
        assert!(text.contains("zeroclaw-tasks  agent  unhealthy  3 MiB"), "{text}");
        assert!(text.contains("\\u{1b}[2Jit says no") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn who_is_not_confidential_and_everything_about_the_files_is_said() {
        let mut one = stack(ContainerState::Healthy, "");
        for (name, confidential) in [("tasks", false), ("private", true)] {
            let (name, model) = (name.to_owned(), "assistant".to_owned());
            one.tiers.push(assistant_proto::tier::Tier { name, model, confidential, ..Default::default() });
        }
        one.remarks = vec!["tiers.yaml:1:1: first".to_owned(), "second\u{1b}[2J".to_owned()];
        one.file_problems = vec!["tiers.yaml:2:1: third".to_owned(), "tiers.yaml:3:1: fourth".to_owned()];
        let text = table(&one);
        let marked: Vec<&str> = text.lines().filter(|line| line.contains("NOT CONFIDENTIAL")).collect();
        assert!(matches!(marked.as_slice(), [line] if line.starts_with("tier tasks, ")), "{text}");
        for said in ["remark: tiers.yaml:1:1: first", "second\\u{1b}", "in the files: tiers.yaml:2:1: third", "fourth"]
        {
            assert!(text.contains(said), "{said}\n{text}");
        }
        let value: serde_json::Value = serde_json::from_str(&json(&one)).unwrap();
        assert_eq!(value["tiers"][0]["confidential"], false);
        assert_eq!(
            (value["remarks"].as_array().unwrap().len(), &value["file_problems"][1]),
            (2, &"tiers.yaml:3:1: fourth".into())
        );
    }

    #[test]
    fn a_problem_is_said_once_and_so_is_what_runs_meanwhile() {
        let count = |stack: &WatchStackResponse, what: &str| table(stack).matches(what).count();
        let mut refused = stack(ContainerState::Healthy, "");
        refused.file_problems = vec!["tiers.yaml:2:1: no".to_owned(), "tiers.yaml:3:1: nor this".to_owned()];
        refused.problem = refused.file_problems[0].clone();
        refused.configured_at = 1_767_323_045;
        for said in ["tiers.yaml:2:1: no", "nor this", "still runs the configuration of 2026-01-02 03:04:05 UTC."] {
            assert_eq!(count(&refused, said), 1, "{said}\n{}", table(&refused));
        }
        assert_eq!(count(&refused, "Problem: "), 0);
        // Another problem beside those of the files.
        refused.problem = "Docker does not answer".to_owned();
        assert_eq!((count(&refused, "Problem: Docker does not answer"), count(&refused, "still runs")), (1, 1));
        let mut ill = stack(ContainerState::Unhealthy, "it says no");
        ill.problem = "zeroclaw-tasks runs, but is not ready: it says no".to_owned();
        assert_eq!((count(&ill, "it says no"), count(&ill, "Problem: "), count(&ill, "still runs")), (1, 1, 0));
        // That of another container.
        ill.problem = "assistant-nats runs, but is not ready: it says no".to_owned();
        assert_eq!(count(&ill, "it says no"), 2);
    }

    #[test]
    fn every_page_is_listed_and_whether_it_is_open() {
        let mut one = stack(ContainerState::Healthy, "");
        for (name, port, problem) in [("tasks", 3001, ""), ("mcp-tasks", 8811, "port 8811 is taken by nginx")] {
            let (url, problem) = (format!("http://{name}.localhost:{port}"), problem.to_owned());
            one.sites.push(assistant_proto::tier::Site { name: name.to_owned(), url, problem });
        }
        let text = table(&one);
        for line in [
            "page tasks      http://tasks.localhost:3001",
            "page mcp-tasks  http://mcp-tasks.localhost:8811   NOT OPEN",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        let value: serde_json::Value = serde_json::from_str(&json(&one)).unwrap();
        assert_eq!(value["sites"][1]["problem"], "port 8811 is taken by nginx");
    }

    #[test]
    fn only_everything_is_healthy() {
        assert!(super::super::is_healthy(&stack(ContainerState::Healthy, "")));
        assert!(!super::super::is_healthy(&stack(ContainerState::Starting, "")));
        let mut one = stack(ContainerState::Healthy, "");
        one.problem = "x".to_owned();
        assert!(!super::super::is_healthy(&one));
        one.problem.clear();
        // What runs is well, but it is not what is written.
        one.file_problems = vec!["tiers.yaml:2:1: no".to_owned()];
        assert!(!super::super::is_healthy(&one));
        one.file_problems.clear();
        assert!(super::super::is_healthy(&one));
        one.converged = false;
        assert!(!super::super::is_healthy(&one));
    }

    #[test]
    fn progress_counts_from_one() {
        let mut one = stack(ContainerState::Starting, "");
        one.converged = false;
        one.current_step = "start container assistant-nats".to_owned();
        one.steps_done = 2;
        one.steps_total = 9;
        assert_eq!(progress(&one), "[3/9] start container assistant-nats (0 of 1 containers up)");
    }

    #[test]
    fn json_is_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&stack(ContainerState::Healthy, ""))).unwrap();
        assert_eq!(value["containers"][0]["state"], "healthy");
        assert_eq!(value["healthy"], true);
    }
}
