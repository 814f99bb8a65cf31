//! The same bridge against the real ZeroClaw 0.8.7, with a double of the model: shows that the double of the gateway
//! does not lie. Loopback only. The binary is `$ASSISTANT_ZEROCLAW_BIN`; where that is not set the test says SKIPPED, which
//! `tests/run.sh` takes for a failure: it sets it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use assistant_proto::event::ApprovalOutcome;
use assistant_tests::doubles::doors::Doors;
use channel_bridge::channels::terminal::{Message, Updates};
use channel_bridge::envelope::Update;
use channel_bridge::service::ChannelBridge;
use serde_json::json;
use service_kit::host::Context;
use service_kit::task::Tasks;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::agent_double::TOKEN;
use crate::dashboard::browser::{Page, get, json_of, write_files};
use crate::memory_post::MemoryPost;
use crate::stack::{asked, assemble, decided, reply, rest};

/// What the agent shows the model.
const KEY: &str = "of-the-agent";

/// A message for which the model calls the tool `shell`.
fn run(command: &str) -> String {
    format!("!tool shell {}", json!({"command": command}))
}

fn config(gateway: u16, models: SocketAddr) -> String {
    format!(
        r#"schema_version = 3
[gateway]
port = {gateway}
host = "127.0.0.1"
require_pairing = true
paired_tokens = ["{token}"]
check_updates = false
allow_self_upgrade = false
[providers.models.litellm.assistant]
uri = "http://{models}/v1"
model = "assistant"
api_key = "{KEY}"
[runtime_profiles.tier]
agentic = true
max_actions_per_hour = 500
[risk_profiles.tier]
level = "supervised"
workspace_only = true
allowed_commands = ["echo"]
auto_approve = ["memory_recall"]
sandbox_backend = "none"
[agents.default]
enabled = true
model_provider = "litellm.assistant"
risk_profile = "tier"
runtime_profile = "tier"
[agents.default.identity]
format = "openclaw"
[agents.default.memory]
backend = "sqlite"
[tools]
optional = ["ask_user"]
[acp]
session_timeout_secs = 1800
max_sessions = 50
"#,
        token = channel_bridge::channels::terminal::text_sha256(TOKEN)
    )
}

fn zeroclaw(binary: &Path, home: &Path) -> Child {
    Command::new(binary)
        .arg("daemon")
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(home.join("out.log")).unwrap())
        .stderr(std::fs::File::create(home.join("err.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn send(bridge: &ChannelBridge, text: &str) -> Updates {
    let mut last = String::new();
    // The agent needs a moment to start; until then nothing is accepted.
    for _ in 0..300 {
        let message = Message { tier: "tasks".into(), text: text.into(), ..Message::default() };
        match bridge.terminal().send(message).await {
            Ok(updates) => return updates,
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{last}");
}

#[allow(clippy::disallowed_methods, reason = "the binary's place is the one thing this test is told")]
fn binary() -> Option<PathBuf> {
    let binary = std::env::var_os("ASSISTANT_ZEROCLAW_BIN").map(PathBuf::from);
    if binary.is_none() {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(b"SKIPPED: ASSISTANT_ZEROCLAW_BIN is not set\n").unwrap();
    }
    binary
}

/// A configured agent and a bridge in front of it.
async fn started(binary: &Path, dir: &Path) -> (Child, Arc<MemoryPost>, ChannelBridge, Context) {
    let doors = Doors::open(&Tasks::default(), KEY, &[]).await.unwrap();
    let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    std::fs::create_dir(dir.join(".zeroclaw")).unwrap();
    std::fs::write(dir.join(".zeroclaw/config.toml"), config(gateway.port(), doors.models)).unwrap();
    let agent = zeroclaw(binary, dir);

    let journal = Arc::new(Mutex::default());
    let post = Arc::new(MemoryPost::new(journal));
    let std::net::SocketAddr::V4(address) = gateway else { panic!("not IPv4") };
    let (bridge, cx) = assemble(dir, address, &post, 600).await;
    assert!(post.consumers.set((bridge.inbox(), bridge.outbox())).is_ok());
    (agent, post, bridge, cx)
}

#[tokio::test]
async fn a_real_agent_answers_asks_and_remembers() {
    let Some(binary) = binary() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (mut agent, _post, bridge, _cx) = started(&binary, dir.path()).await;

    let updates = rest(&mut send(&bridge, "!say hello there").await).await;
    assert_eq!(reply(&updates), ("hello there", "end_turn"), "{updates:?}");
    assert!(updates.iter().any(|update| matches!(update, Update::Text(text) if text.contains("hello"))), "{updates:?}");

    for (word, outcome) in [("YES", ApprovalOutcome::Approved), ("NO", ApprovalOutcome::Denied)] {
        let mut turn = send(&bridge, &run("echo from-the-shell")).await;
        let (action, code) = asked(&mut turn).await;
        assert!(action.contains("shell") && action.contains("echo from-the-shell"), "{action}");
        rest(&mut send(&bridge, &format!("{word} {}", code.dangerous_reveal())).await).await;
        let updates = rest(&mut turn).await;
        assert_eq!(decided(&updates), [outcome], "{updates:?}");
        let ran = reply(&updates).0.contains("from-the-shell");
        assert_eq!(ran, outcome == ApprovalOutcome::Approved, "{updates:?}");
    }

    // What ZeroClaw itself refuses is told with the field that allows it.
    let mut turn = send(&bridge, &run("rm some-file")).await;
    let (_, code) = asked(&mut turn).await;
    rest(&mut send(&bridge, &format!("YES {}", code.dangerous_reveal())).await).await;
    let updates = rest(&mut turn).await;
    assert!(reply(&updates).0.starts_with("(The agent's own policy refused a command; `commands`"), "{updates:?}");

    // The agent restarts between turns; the conversation goes on in the same session.
    agent.kill().await.unwrap();
    let message = Message { tier: "tasks".into(), text: "!say x".into(), ..Message::default() };
    assert!(bridge.terminal().send(message).await.is_err());
    let _agent = zeroclaw(&binary, dir.path());
    let updates = rest(&mut send(&bridge, "!say back again").await).await;
    assert_eq!(reply(&updates).0, "back again");
    assert!(
        !updates.iter().any(|update| matches!(update, Update::Text(text) if text.contains("afresh"))),
        "{updates:?}"
    );
}

#[tokio::test]
async fn a_real_agents_dashboard_chats_asks_and_shows() {
    let Some(binary) = binary() else { return };
    let dir = tempfile::tempdir().unwrap();
    write_files(&dir.path().join("dashboard-files"));
    let (_agent, post, mut bridge, cx) = started(&binary, dir.path()).await;
    bridge.start_dashboards(&cx);
    // Until the agent is there.
    rest(&mut send(&bridge, "!say up").await).await;

    let socket = dir.path().join("tasks.sock");
    let mut page = Page::open(socket.clone(), "5f0c6a3e-0000-4000-8000-000000000001").await;
    let (frames, trace) = page.turn("!say hello there").await;
    assert_eq!(frames.last().unwrap()["full_response"], "hello there", "{frames:?}");
    let received = post.received.lock().unwrap().last().unwrap().clone();
    assert_eq!((received.channel.as_str(), received.traceparent.trace_id()), ("dashboard", trace));
    for (decision, ran) in [("approve", true), ("deny", false)] {
        page.say(&run("echo from-the-shell")).await;
        let question = page.until("approval_request").await.pop().unwrap();
        assert!(question["arguments_summary"].as_str().unwrap().contains("echo from-the-shell"), "{question}");
        page.send(json!({"type": "approval_response", "request_id": question["request_id"], "decision": decision}))
            .await;
        let (frames, _) = page.rest().await;
        let reply = frames.last().unwrap()["full_response"].as_str().unwrap();
        assert_eq!(reply.contains("from\\-the\\-shell"), ran, "{frames:?}");
    }

    // What is forwarded is there, and answers to the bridge's token.
    let status = json_of(&get(&socket, "/api/status?agent=default").await);
    assert_eq!(status["model"], "assistant", "{status}");
    for (path, field) in [("/api/health", "health"), ("/api/tools", "tools"), ("/api/cost", "cost")] {
        let answer = get(&socket, path).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert!(json_of(&answer).get(field).is_some(), "{path}: {:?}", answer.body());
    }
    // What is not, would be: the agent has it, and this token opens it.
    let config = get(&socket, "/api/config/list").await;
    assert_eq!((config.status().as_u16(), &json_of(&config)["code"]), (403, &json!("closed_here")));
}
