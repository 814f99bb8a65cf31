//! Where the commands of the tier `unrestricted` run, and what its agent cannot have run there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assistant_proto::event::{EgressDenied, Layer};
use assistant_tests::harness::bus::Denials;
use assistant_tests::harness::command::{Output, inside, run, run_within};
use assistant_tests::harness::{SANDBOX, SANDBOXED, SANDBOXED_AGENT, agent, until};
use serde_json::Value;
use service_kit::task::Tasks;

const WORKSPACE: &str = "/zeroclaw-data/workspace";
const IMAGE: &str = "assistant-sandbox:latest";

/// Says where it is, and copies what the agent left for it.
const LOOK: &str = r#"
import json, os
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
open("from-sandbox.txt", "w").write(open("from-agent.txt").read()[::-1])
print(json.dumps({
    "uid": os.getuid(),
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "routes": open("/proc/net/route").read().count("\n"),
    "capabilities": sorted({status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}),
    "no_new_privs": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "map": open("/proc/self/uid_map").read().split()[:2],
}))
"#;

async fn leave(name: &str, content: &str) {
    let path = format!("{WORKSPACE}/{name}");
    let command = ["exec", "-i", SANDBOXED_AGENT, "sh", "-c", "cat >\"$0\"", &path];
    run_within(std::time::Duration::from_secs(20), "docker", &command, Some(content)).await.unwrap().ok().unwrap();
}

async fn take_away(names: &[&str]) {
    let paths: Vec<String> = names.iter().map(|name| format!("{WORKSPACE}/{name}")).collect();
    let mut arguments = vec!["rm", "-f"];
    arguments.extend(paths.iter().map(String::as_str));
    inside(SANDBOXED_AGENT, &arguments).await.unwrap().ok().unwrap();
}

#[tokio::test]
async fn a_command_of_the_agent_runs_nested_and_without_anything() {
    let turn = agent::say(SANDBOXED, r#"!tool shell {"command":"id"}"#).await.unwrap();
    assert!(turn.reply.contains("uid=0(root)"), "root of the sandbox's own user namespace: {turn:?}");
    let own = inside(SANDBOXED_AGENT, &["id"]).await.unwrap().ok().unwrap();
    assert!(own.contains("uid=65534"), "control: the agent itself is somebody else: {own}");

    leave("look.py", LOOK).await;
    leave("from-agent.txt", "olleh").await;
    let turn = agent::say(SANDBOXED, r#"!tool shell {"command":"python3 look.py"}"#).await.unwrap();
    let back = inside(SANDBOXED_AGENT, &["cat", &format!("{WORKSPACE}/from-sandbox.txt")]).await.unwrap();
    let owner = inside(SANDBOXED_AGENT, &["stat", "-c", "%u", &format!("{WORKSPACE}/from-sandbox.txt")]).await.unwrap();
    take_away(&["look.py", "from-agent.txt", "from-sandbox.txt"]).await;
    let said = turn.reply.lines().find(|line| line.starts_with('{'));
    let said: Value = serde_json::from_str(said.unwrap_or_else(|| panic!("{turn:?}"))).unwrap();
    assert_eq!(back.out, "hello", "files go there and back: {back:?}");
    assert_eq!(owner.out.trim(), "65534", "outside, root of the sandbox is the agent's user");
    assert_eq!(said["uid"], 0);
    assert_eq!(said["map"][1], "65534", "its root is nobody's root: {said}");
    assert_eq!(said["interfaces"], serde_json::json!(["lo"]), "{said}");
    assert_eq!(said["routes"], 1, "a heading and no route: {said}");
    assert_eq!(said["capabilities"], serde_json::json!(["0000000000000000"]), "{said}");
    assert_eq!((said["no_new_privs"].as_str(), said["seccomp"].as_str()), (Some("1"), Some("2")), "{said}");
    let agents = inside(SANDBOXED_AGENT, &["ls", "/sys/class/net"]).await.unwrap().ok().unwrap();
    assert!(agents.contains("eth0"), "control: the agent itself has an interface: {agents}");
}

/// What the sandbox's engine itself did since a time: kinds and actions of its events.
async fn engine_did(since: Duration) -> Vec<String> {
    let now = clock().as_secs().saturating_add(1);
    let said = engine(&format!("/events?since={}.{:09}&until={now}", since.as_secs(), since.subsec_nanos())).await;
    said.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|event| format!("{} {}", event["Type"].as_str().unwrap(), event["Action"].as_str().unwrap()))
        .collect()
}

/// The moment from which on what another test began is over.
async fn idle() -> Duration {
    until("the sandbox's engine has no container", Duration::from_secs(30), || async {
        Ok((engine("/containers/json?all=true").await.trim() == "[]").then_some(()))
    })
    .await
    .unwrap();
    clock()
}

async fn engine(path: &str) -> String {
    let (url, socket) = (format!("http://docker{path}"), "/run/sandbox/docker.sock");
    inside(SANDBOX, &["curl", "-sS", "-m", "10", "--unix-socket", socket, &url]).await.unwrap().ok().unwrap()
}

fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// `docker` as the agent has it.
async fn docker(arguments: &[&str]) -> Output {
    let mut all = vec!["docker"];
    all.extend_from_slice(arguments);
    inside(SANDBOXED_AGENT, &all).await.unwrap()
}

#[tokio::test]
async fn what_would_lead_out_is_refused_and_told() {
    let workspace = format!("{WORKSPACE}:/workspace");
    // One of each reason: equal refusals within a second are one event with a count.
    let runs: &[(&[&str], &str)] = &[
        (&["--network", "none", "--privileged"], "privileged"),
        (&["--network", "host"], "network"),
        (&["--network", "none", "-v", "/:/host"], "mount"),
        (&["--network", "none", "--device", "/dev/kmsg"], "device"),
        (&["--network", "none", "--cap-add", "SYS_ADMIN"], "cap-add"),
        (&["--network", "none", "--pid", "host"], "host-namespace"),
        (&["--network", "none", "--security-opt", "seccomp=unconfined"], "security-opt"),
        (&["--network", "none", "--sysctl", "net.ipv4.ip_forward=1"], "sysctl"),
        (&["--network", "none", "--runtime", "other"], "runtime"),
    ];
    let others: &[(&[&str], &str)] = &[
        (&["sh", "-c", "echo FROM scratch | docker build -"], "docker build"),
        (&["docker", "pull", "alpine:latest"], "docker pull"),
        (&["docker", "exec", "none", "id"], "not-offered"),
        (&["docker", "volume", "create"], "docker volume"),
        (&["docker", "network", "create", "out"], "docker network"),
    ];
    let since = idle().await;
    let command = ["id", "-u"];
    for (options, reason) in runs {
        let tasks = Tasks::default();
        let denials = Denials::watch(&tasks).await.unwrap();
        let mut arguments = vec!["run", "--rm"];
        arguments.extend_from_slice(options);
        arguments.push(IMAGE);
        arguments.extend(command);
        let refused = docker(&arguments).await;
        assert!(refused.status != 0 && refused.out.is_empty(), "{options:?} ran: {refused:?}");
        let event = denials.wait(&format!("{options:?}"), |e| e.layer == Layer::Sandbox && e.reason == *reason).await;
        let event = event.unwrap_or_else(|error| panic!("{error:#}\n{refused:?}"));
        assert_eq!(event.tier.as_str(), SANDBOXED);
        assert!(event.principal.is_some() && event.detail.contains("docker create"), "{event:?}");
        assert!(event.fix.contains("nothing will allow it"), "{event:?}");
    }
    for (arguments, words) in others {
        let tasks = Tasks::default();
        let denials = Denials::watch(&tasks).await.unwrap();
        let refused = inside(SANDBOXED_AGENT, arguments).await.unwrap();
        assert_ne!(refused.status, 0, "{arguments:?}: {refused:?}");
        let told = |e: &EgressDenied| e.layer == Layer::Sandbox && (e.detail.contains(words) || e.reason == *words);
        let event = denials.wait(&format!("{arguments:?}"), told).await;
        let event = event.unwrap_or_else(|error| panic!("{error:#}\n{refused:?}"));
        assert_eq!(event.tier.as_str(), SANDBOXED);
    }
    assert_eq!(engine_did(since).await, Vec::<String>::new(), "the engine heard of what was refused");

    let tasks = Tasks::default();
    let denials = Denials::watch(&tasks).await.unwrap();
    let mut arguments = vec!["run", "--rm", "--network", "none", "-v", &workspace, IMAGE];
    arguments.extend(command);
    let ran = docker(&arguments).await;
    assert_eq!((ran.status, ran.out.trim()), (0, "0"), "control: the plain one runs: {ran:?}");
    let did = engine_did(since).await;
    assert!(did.iter().any(|event| event == "container create"), "control: the engine heard of that: {did:?}");
    assert_eq!(denials.those(|e| e.layer == Layer::Sandbox), [], "and nothing of it was refused");
}

/// Opens for writing, and writes nothing. One line for each that could be opened, then how many were tried.
const OPEN: &str = "tried=0
for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger $(find /sys/fs/cgroup \
    \\( -name release_agent -o -name notify_on_release \\) 2>/dev/null); do
  tried=$((tried + 1))
  if (: >>\"$file\") 2>/dev/null; then echo \"open $file\"; fi
done
echo \"tried $tried\"";

fn nothing_open(place: &str, said: &Output) {
    assert!(!said.out.contains("open "), "{place}: {said:?}");
    let tried = said.out.lines().find_map(|line| line.strip_prefix("tried ")?.parse::<u32>().ok());
    assert!(tried.is_some_and(|tried| tried >= 3), "control: {place} looked: {said:?}");
}

#[tokio::test]
async fn the_kernel_of_the_vm_cannot_be_told_what_to_run() {
    let control = run("sh", &["-c", OPEN]).await.unwrap();
    assert!(control.out.contains("open /proc/sys/kernel/core_pattern"), "control: root of the VM may: {control:?}");
    for container in [SANDBOXED_AGENT, SANDBOX] {
        nothing_open(container, &inside(container, &["sh", "-c", OPEN]).await.unwrap());
    }
    let nested = docker(&["run", "--rm", "--network", "none", IMAGE, "sh", "-c", OPEN]).await;
    nothing_open("a nested container", &nested);
    leave("open.sh", OPEN).await;
    leave(
        "open.py",
        "import subprocess\nprint(subprocess.run(['sh', 'open.sh'], capture_output=True, text=True).stdout)",
    )
    .await;
    let turn = agent::say(SANDBOXED, r#"!tool shell {"command":"python3 open.py"}"#).await.unwrap();
    take_away(&["open.sh", "open.py"]).await;
    nothing_open("a command of the agent", &Output { status: 0, out: turn.reply, err: turn.failure });

    // As if the engine itself were taken over: root of its user namespace, with all its capabilities, in its mounts.
    let listed = run("docker", &["top", SANDBOX, "-eo", "pid,comm"]).await.unwrap().ok().unwrap();
    let engine = listed.lines().find_map(|line| line.trim().strip_suffix("dockerd")).expect("a dockerd runs").trim();
    let as_engine = async |command: &[&str]| {
        let mut arguments = vec!["-t", engine, "-U", "-m", "-C", "-p", "--"];
        arguments.extend_from_slice(command);
        run("nsenter", &arguments).await.unwrap()
    };
    let root = as_engine(&["id", "-u"]).await;
    assert_eq!(root.out.trim(), "0", "control: it is root there: {root:?}");
    nothing_open("root of the engine's namespaces", &as_engine(&["sh", "-c", OPEN]).await);
    let anew =
        "mkdir -p /tmp/try && mount -t cgroup -o memory none /tmp/try && (: >>/tmp/try/release_agent) && echo opened";
    let mounted = as_engine(&["unshare", "-m", "sh", "-c", anew]).await;
    assert!(!mounted.out.contains("opened"), "a hierarchy that is mounted anew: {mounted:?}");
}
