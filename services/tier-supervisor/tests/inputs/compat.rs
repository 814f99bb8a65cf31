//! The older stack's own files.

use std::path::{Path, PathBuf};

use tier_supervisor::config::{DiskSources, Images, Tiers};

use crate::stack::Stack;

fn compat() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs/compat")
}

fn read(tiers: &str) -> (Stack, Result<Tiers, Vec<String>>) {
    let mut stack = Stack::with_tiers(tiers);
    std::fs::remove_file(stack.dir.path().join("mcp")).unwrap();
    std::os::unix::fs::symlink(compat().join("mcp"), stack.dir.path().join("mcp")).unwrap();
    stack.settings.allowlist_file = compat().join("allowlist.txt");
    let images = Images::load(&stack.settings.images_file).unwrap();
    let dir = format!("{}/", stack.dir.path().display());
    let tiers = Tiers::read(&stack.settings, &images, &DiskSources { settings: &stack.settings })
        .map_err(|problems| problems.0.iter().map(|problem| problem.to_string().replace(&dir, "")).collect());
    (stack, tiers)
}

#[test]
fn what_is_not_supported_yet_is_named_and_nothing_else_is_wrong() {
    let seed = std::fs::read_to_string(compat().join("tiers.yaml")).unwrap();
    let problems = read(&seed).1.unwrap_err();
    let line_of = |needle: &str, after: usize| {
        after + 1 + seed.lines().skip(after).position(|line| line.contains(needle)).unwrap()
    };
    let first = line_of("    mcp_port: 8811", 0);
    let second = line_of("    mcp_port: 8812", 0);
    let docker = line_of("    runtime: docker", second);
    let build = line_of("    build_sandbox: true", second);
    let expected = [
        format!("tiers.yaml:{first}:5: a page for MCP servers (mcp_port) is not supported yet; remove it for now"),
        format!("tiers.yaml:{second}:5: a page for MCP servers (mcp_port) is not supported yet; remove it for now"),
        format!(
            "tiers.yaml:{docker}:14: runtime: docker (the sandbox) is not supported yet; write runtime: native, or remove \
             this tier for now"
        ),
        format!("tiers.yaml:{build}:5: build_sandbox: true is not supported yet; remove it for now"),
    ];
    assert_eq!(problems, expected);
}

#[test]
fn without_those_lines_there_are_three_tiers_with_every_other_field_in_effect() {
    let seed = std::fs::read_to_string(compat().join("tiers.yaml")).unwrap();
    let kept: Vec<&str> = seed
        .lines()
        .filter(|line| {
            !["mcp_port:", "runtime: docker", "build_sandbox:"].iter().any(|not| line.trim_start().starts_with(not))
        })
        .collect();
    let (_stack, tiers) = read(&kept.join("\n"));
    let tiers = tiers.unwrap();
    let names: Vec<&str> = tiers.tiers.iter().map(|tier| tier.name.as_str()).collect();
    assert_eq!(names, ["updates", "tasks", "unrestricted"]);
    let [updates, tasks, unrestricted] = tiers.tiers.as_slice() else { panic!() };
    assert_eq!(updates.identity.as_deref(), Some("personal"));
    assert_eq!((updates.port, tasks.port, unrestricted.port), (3000, 3001, 3002));
    assert_eq!(updates.servers.len(), 1);
    assert_eq!(
        tasks.servers.first().unwrap().env,
        [("AMAZING_MARVIN_API_KEY".to_owned(), "PLACEHOLDER_ONECLI_INJECTS".to_owned())]
    );
    assert!(unrestricted.workspace_unrestricted && !unrestricted.block_high_risk);
    assert!(!tasks.workspace_unrestricted && tasks.block_high_risk);
    assert_eq!(unrestricted.identity, None);
    assert!(unrestricted.commands.iter().any(|command| command == "chown"));
    assert!(unrestricted.auto_approve.iter().any(|tool| tool == "bash"));
    assert_eq!(tasks.no_proxy, ["litellm", "mcp-tasks", "localhost", "127.0.0.1"]);
    let remarks: Vec<String> = tiers.remarks.iter().map(ToString::to_string).collect();
    let remarked = |text: &str| remarks.iter().filter(|remark| remark.contains(text)).count();
    assert_eq!(remarked("older than ZeroClaw 0.8.7"), 1, "{remarks:#?}");
    assert_eq!(remarked("mcp_token_var is no longer read"), 2);
    assert_eq!(remarked("reaches no host of the internet"), 3);
    assert!(tasks.image == "zeroclaw");
}

#[test]
fn its_allowlist_is_read_whole() {
    let seed = std::fs::read_to_string(compat().join("allowlist.txt")).unwrap();
    let entries = seed.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty()).count();
    let (_stack, tiers) = read("tiers: [{name: a, port: 3000}]");
    assert_eq!(tiers.unwrap().floor.entries().len(), entries);
}
