//! `runtime`, `limits`, `build_sandbox`: how ZeroClaw has a command run, by a double of the docker client that writes down
//! how it was called, held against the filter of the sandbox.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use shims::sandbox::create::{Create, Policy};

use crate::agent::Agent;
use crate::stack::Stack;

/// Where agent and daemon have the workspace.
const WORKSPACE: &str = "/zeroclaw-data/workspace";
/// What a real client sends for the `docker run` of ZeroClaw's runtime.
const CLIENT: &str = include_str!("../../services/shims/tests/docker/client-28.jsonl");

/// Puts a docker client in front of every other on the agent's PATH. It runs nothing.
fn docker(agent: &Agent) {
    let program = agent.home().join("bin/docker");
    let calls = agent.home().join("calls").display().to_string();
    let text =
        format!("#!/bin/sh\n{{ printf '%s\\0' \"$@\"; printf '\\n'; }} >>{calls}\nenv >{calls}.env\necho nested\n");
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// How it was called, each call by its arguments, with the places of the container.
pub(crate) fn calls(home: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(home.join("calls")).unwrap_or_default();
    let text = text.replace(home.to_str().unwrap(), "/zeroclaw-data");
    let calls = text.split_terminator("\0\n");
    calls.map(|call| call.split('\0').map(ToOwned::to_owned).collect()).collect()
}

/// An agent with a sandbox, whose docker client is the double.
pub(crate) async fn sandboxed(stack: &Stack, tier: &str) -> Option<Agent> {
    let agent = Agent::start(stack, tier).await?;
    std::fs::create_dir_all(agent.home().join("workspace")).unwrap();
    docker(&agent);
    Some(agent)
}

/// The body of `POST /containers/create` that a client makes of these arguments: a recorded one, with what they say in it.
fn body(arguments: &[String]) -> Value {
    let recorded: Vec<Value> = CLIENT.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let create = recorded.iter().find(|line| line["head"].as_str().unwrap().contains("/containers/create")).unwrap();
    let mut body: Value = serde_json::from_str(create["body"].as_str().unwrap()).unwrap();
    let mut rest = arguments.iter().map(String::as_str);
    assert_eq!(rest.next(), Some("run"));
    let host = |body: &mut Value, field: &str, value: Value| body["HostConfig"][field] = value;
    for field in ["NetworkMode", "Memory", "NanoCpus", "ReadonlyRootfs", "Binds"] {
        host(&mut body, field, Value::Null);
    }
    (body["Env"], body["WorkingDir"]) = (json!([]), json!(""));
    let image = loop {
        let option = rest.next().unwrap();
        match option {
            "--rm" => host(&mut body, "AutoRemove", json!(true)),
            "--init" => host(&mut body, "Init", json!(true)),
            "--interactive" => body["OpenStdin"] = json!(true),
            "--read-only" => host(&mut body, "ReadonlyRootfs", json!(true)),
            "--network" => host(&mut body, "NetworkMode", json!(rest.next().unwrap())),
            "--memory" => {
                let megabytes: i64 = rest.next().unwrap().strip_suffix('m').unwrap().parse().unwrap();
                host(&mut body, "Memory", json!(megabytes << 20));
            }
            "--cpus" => {
                let processors: f64 = rest.next().unwrap().parse().unwrap();
                let billionths: i64 = format!("{:.0}", processors * 1e9).parse().unwrap();
                host(&mut body, "NanoCpus", json!(billionths));
            }
            "--volume" => host(&mut body, "Binds", json!([rest.next().unwrap()])),
            "--workdir" => body["WorkingDir"] = json!(rest.next().unwrap()),
            other => {
                assert!(!other.starts_with('-'), "an option that no client was recorded with: {other}");
                break other;
            }
        }
    };
    body["Image"] = json!(image);
    body["Cmd"] = json!(rest.collect::<Vec<_>>());
    body
}

/// What the tier's filter is started with.
fn policy(stack: &Stack, tier: &str) -> Policy {
    let desired = stack.desired();
    let command = &desired.container(&format!("sandbox-{tier}-filter")).unwrap().command;
    let after = |flag: &str| {
        let at = command.iter().position(|argument| argument == flag).unwrap();
        command[at + 1].clone()
    };
    let number = |flag: &str| after(flag).parse::<i64>().unwrap();
    Policy {
        image: after("--image"),
        workspace: after("--workspace"),
        memory_most: number("--memory-most") << 20,
        nano_cpus_most: number("--cpus-most") * 1_000_000_000,
        pids_most: number("--pids-most"),
    }
}

#[tokio::test]
async fn a_command_is_run_as_the_filter_of_the_sandbox_takes_it() {
    let stack = Stack::with_tiers(
        "tiers: [{name: t, port: 3001, runtime: docker, build_sandbox: true, commands: [cat], \
         auto_approve: [shell, file_write], limits: {memory: 2g, cpus: 1.5}}]",
    );
    let Some(agent) = sandboxed(&stack, "t").await else { return };
    let calls_of = [
        ("shell", json!({"command": "cat /workspace/x"})),
        ("shell", json!({"command": "rm x"})),
        ("shell", json!({"command": "cat /etc/passwd"})),
        ("file_write", json!({"path": "w.txt", "content": "x"})),
    ];
    let called = agent.calls_of(&calls_of, false).await;
    assert!(called[0].said.starts_with("nested"), "{called:#?}");
    assert!(agent.home().join("workspace/w.txt").exists(), "files go where the sandbox sees them: {called:#?}");
    let ran = calls(agent.home());
    let [arguments] = ran.as_slice() else { panic!("one ran, two were refused before: {ran:#?}\n{called:#?}") };
    let volume = format!("{WORKSPACE}:/workspace:rw");
    let expected = [
        "run",
        "--rm",
        "--init",
        "--interactive",
        "--network",
        "none",
        "--memory",
        "2048m",
        "--cpus",
        "1.5",
        "--read-only",
        "--volume",
        &volume,
        "--workdir",
        "/workspace",
        "assistant-sandbox:latest",
        "sh",
        "-c",
        "cat /workspace/x",
    ];
    assert_eq!(arguments, &expected);
    let policy = policy(&stack, "t");
    let parse = |body: &Value| Create::parse(body.to_string().as_bytes(), &policy);
    let body = body(arguments);
    assert!(parse(&body).is_ok(), "{:?}", parse(&body));
    for (pointer, other) in [
        ("/HostConfig/NetworkMode", json!("bridge")),
        ("/HostConfig/Binds", json!(["/etc:/workspace:rw"])),
        ("/HostConfig/Memory", json!(8_i64 << 30)),
        ("/Image", json!("other:latest")),
    ] {
        let mut changed = body.clone();
        *changed.pointer_mut(pointer).unwrap() = other;
        assert!(parse(&changed).is_err(), "control: the filter refuses another {pointer}");
    }
    // The client itself gets nothing of the agent's way out.
    let client = std::fs::read_to_string(agent.home().join("calls.env")).unwrap();
    assert!(client.contains("DOCKER_HOST=unix:///run/sandbox-api/docker.sock\n"), "{client}");
    assert!(!client.to_lowercase().contains("proxy"), "{client}");
}

#[tokio::test]
async fn without_a_sandbox_a_command_runs_where_the_agent_is() {
    let fields = "commands: [cat], auto_approve: [shell]";
    for runtime in ["", "runtime: native, "] {
        let stack = Stack::with_tiers(&format!("tiers: [{{name: t, port: 3001, {runtime}{fields}}}]"));
        let Some(agent) = sandboxed(&stack, "t").await else { return };
        agent.leave("in.txt", "of the agent");
        let called = agent.shell(&["cat in.txt"], false).await;
        assert!(called[0].said.starts_with("of the agent"), "{called:#?}");
        assert_eq!(calls(agent.home()), Vec::<Vec<String>>::new());
    }
}
