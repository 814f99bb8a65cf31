//! The operator's commands as a person types them who is not root, in a fresh login shell, sudo or not. Somebody else of the
//! same machine gets nothing by them.

use std::time::Duration;

use assistant_proto::event::Layer;
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::{run, run_within};
use assistant_tests::harness::person::Person;
use assistant_tests::harness::{TIER, root};
use service_kit::task::Tasks;

/// The promise, from the attempt to whoever listens; and how late a loaded machine may be.
const WITHIN: Duration = Duration::from_millis(1_000 + 500);

async fn up(arguments: &[&str]) {
    let script = root().join("deploy/up.sh");
    let all: Vec<&str> = ["--drill"].iter().chain(arguments).copied().collect();
    run_within(Duration::from_secs(600), script.to_str().unwrap(), &all, None).await.unwrap().ok().unwrap();
}

/// Which containers run, and since when.
async fn containers() -> String {
    let all = "docker ps -q --no-trunc --filter label=assistant.managed=true | sort";
    let line = format!("docker inspect --format '{{{{.Name}}}} {{{{.Id}}}} {{{{.State.StartedAt}}}}' $({all})");
    run("sh", &["-c", &line]).await.unwrap().ok().unwrap()
}

/// The scripts as a clone has them: the home of a test may be closed to others.
async fn clone_scripts(person: &Person) {
    let [scripts, versions] = ["deploy", "Cargo.toml"].map(|name| root().join(name));
    let (home, from) = (person.home().to_str().unwrap(), [scripts.to_str().unwrap(), versions.to_str().unwrap()]);
    run("cp", &["-R", from[0], from[1], home]).await.unwrap().ok().unwrap();
    let of = format!("{0}:{0}", person.name());
    run("chown", &["-R", &of, home]).await.unwrap().ok().unwrap();
}

#[tokio::test]
async fn every_command_works_as_printed_and_for_nobody_else() {
    let person = Person::make("assistant-newcomer").await.unwrap();
    let stranger = Person::make("assistant-stranger").await.unwrap();
    clone_scripts(&person).await;
    clone_scripts(&stranger).await;
    person.may_sudo().await.unwrap();
    let before = containers().await;
    up(&["--operator", person.name()]).await;
    assert_eq!(containers().await, before, "another operator is no reason to replace a container");

    let outcome = commands_of(&person, &stranger).await;
    // As it was, before anything is judged.
    up(&[]).await;
    outcome.unwrap();
    let after = person.shell("timeout 10 nats sub 'egress.denied.>' --count 1").await.unwrap();
    assert!(!after.all().contains("Subscribing"), "who is not the operator any more has no context: {after:?}");
    let socket = person.shell(&grpcurl("secret-broker", "list")).await.unwrap();
    assert_ne!(socket.status, 0, "nor a way to a socket that was bound before: {socket:?}");
    assert_eq!(containers().await, before);
}

fn grpcurl(service: &str, what: &str) -> String {
    format!("grpcurl -plaintext -unix /run/assistant/{service}.sock {what}")
}

async fn commands_of(person: &Person, stranger: &Person) -> anyhow::Result<()> {
    for service in ["tier-supervisor", "secret-broker", "egress-auditor", "channel-bridge"] {
        let line = grpcurl(service, "grpc.health.v1.Health/Check");
        let health = person.shell(&line).await?;
        anyhow::ensure!(health.out.contains("\"SERVING\""), "{service}: {health:?}");
        let refused = stranger.shell(&line).await?;
        anyhow::ensure!(refused.status != 0 && !refused.out.contains("SERVING"), "{service}: {refused:?}");
    }
    let status = person.shell("tier-supervisor status").await?.ok()?;
    anyhow::ensure!(status.contains("Everything is up"), "{status}");

    // In two shells, one of them root's by sudo: a turn in which something dies, and both hear of it.
    let tasks = Tasks::default();
    let line = person.becoming("nats sub 'egress.denied.>'");
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let denials = Denials::watch_by(&tasks, "setpriv", &line).await?;
    let line = person.becoming("sudo timeout 100 nats sub 'egress.denied.>' --count 1");
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let with_sudo = Denials::watch_by(&tasks, "setpriv", &line).await?;
    let asked = "fetch https://newcomer.drill.example/ for me";
    let chat = person.shell(&format!("deploy/chat.sh {TIER} --once '{asked}'")).await?.ok()?;
    let fits = |e: &assistant_proto::event::EgressDenied| e.host == "newcomer.drill.example";
    for heard in [&denials, &with_sudo] {
        let event = heard.wait("the denial", fits).await?;
        anyhow::ensure!(event.layer == Layer::Broker && !event.fix.is_empty(), "{event:?}");
        anyhow::ensure!(chat.contains(&format!("deploy/trace.sh {}", event.trace_id)), "the chat names it: {chat}");
        let late = heard.late(fits);
        anyhow::ensure!(late.is_some_and(|late| late < WITHIN), "{late:?} after it happened");
    }
    let id = denials.wait("the denial", fits).await?.trace_id;
    let trace = person.shell(&format!("deploy/trace.sh {id}")).await?.ok()?;
    anyhow::ensure!(trace.contains("denied=host-not-allowed") && trace.contains("turn.run"), "{trace}");

    // Root by sudo, and still this person: its cache, not root's.
    let listed = person.shell("deploy/images.sh list").await?.ok()?;
    anyhow::ensure!(listed.contains("nats"), "{listed}");
    anyhow::ensure!(person.home().join(".cache/secure-assistant-stack").is_dir(), "{listed}");

    for (script, argument) in [("chat.sh", TIER), ("trace.sh", id.as_str())] {
        let refused = stranger.shell(&format!("deploy/{script} {argument} </dev/null")).await?;
        let says = refused.status != 0 && refused.err.contains("may not use") && refused.err.contains("What to do:");
        anyhow::ensure!(says, "{script}: {refused:?}");
    }
    let deaf = stranger.shell("timeout 10 nats sub 'egress.denied.>' --count 1").await?;
    anyhow::ensure!(deaf.status != 0 && !deaf.all().contains("Subscribing"), "{deaf:?}");
    // Without a terminal, on which sudo would ask.
    let no_sudo = stranger.shell("setsid -w deploy/down.sh </dev/null").await?;
    anyhow::ensure!(no_sudo.status != 0 && no_sudo.err.contains("This needs root"), "{no_sudo:?}");
    Ok(())
}
