//! What `deploy/up.sh` says of a machine that is not as it should be. Run while no stack is up.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::io::Write;
use std::time::Duration;

use assistant_tests::harness::command::{Output, run, run_watched, run_within};
use assistant_tests::harness::root;

async fn up(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let script = root().join("deploy/up.sh");
    let settings: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut all: Vec<&str> = settings.iter().map(String::as_str).collect();
    all.push(script.to_str().unwrap());
    all.extend_from_slice(arguments);
    run_within(Duration::from_secs(300), "env", &all, None).await.unwrap()
}

fn refused(output: &Output, parts: &[&str]) {
    assert_ne!(output.status, 0, "{}", output.all());
    for part in parts {
        assert!(output.all().contains(part), "{part:?} is missing in: {}", output.all());
    }
}

#[tokio::test]
async fn a_port_that_is_taken() {
    let _held = std::net::TcpListener::bind("127.0.0.1:4222").unwrap();
    // A tier's page, which the drill's tiers.yaml has there. Both are said at once.
    let _page = std::net::TcpListener::bind("127.0.0.1:3001").unwrap();
    let holder = format!("process {}", std::process::id());
    refused(&up(&[], &["--drill"]).await, &["port 4222", "port 3001", &holder, "ss -ltnp", "tiers.yaml"]);
}

#[tokio::test]
async fn a_docker_that_does_not_answer() {
    refused(&up(&[("DOCKER_HOST", "unix:///nowhere.sock")], &["--drill"]).await, &["DOCKER_HOST", "unset"]);
}

#[tokio::test]
async fn a_disk_that_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", path]).await.unwrap().ok().unwrap();
    let output = up(&[("XDG_CACHE_HOME", path)], &["--drill"]).await;
    run("umount", &[path]).await.unwrap().ok().unwrap();
    refused(&output, &["GiB free", path]);
}

#[tokio::test]
async fn live_without_accounts() {
    if std::path::Path::new("/etc/assistant/live.json").exists() {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(b"SKIPPED: this machine is set up for a live stack\n").unwrap();
        return;
    }
    refused(&up(&[], &[]).await, &["live.json"]);
}

/// A step that says nothing itself is spoken for, whatever its output goes to.
#[tokio::test]
async fn never_silent_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let all = root().join("deploy/lib/all.sh");
    let text = r#". "$1"; ui_plan 2 "$2"; step "A long one" long sleep 12; step "A short one" short true"#;
    let arguments = ["-c", text, "bash", all.to_str().unwrap(), dir.path().to_str().unwrap()];
    let (said, silence) = run_watched(Duration::from_secs(60), "bash", &arguments).await.unwrap();
    assert!(silence < Duration::from_secs(10), "silent for {silence:?}: {said:#?}");
    let has = |part: &str| said.iter().any(|line| line.contains(part));
    assert!(
        has("[ 1/2] A long one") && has("        ... ") && has("done in 1") && has("[ 2/2] A short one"),
        "{said:#?}"
    );
}

#[tokio::test]
async fn an_option_that_does_not_exist() {
    refused(&up(&[], &["--dril"]).await, &["--dril", "--help"]);
}
