//! A real ZeroClaw with what is rendered for a tier: its configuration and its environment, in which only addresses, ports
//! and the place of its volume are others. Behind it doubles of the broker's doors, before it the bridge's own client.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use assistant_proto::config::{GATEWAY_PORT, MCP_PORT, MODELS_PORT};
use assistant_tests::doubles::doors::Doors;
use assistant_tests::harness::until;
use channel_bridge::acp::message::Incoming;
use channel_bridge::acp::permission::Question;
use channel_bridge::acp::{Gateway, session};
use serde_json::{Value, json};
use service_kit::task::Tasks;
use tempfile::TempDir;
use tier_supervisor::desired::Content;
use tokio::process::{Child, Command};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::stack::Stack;

/// Where the agent's volume is in its container.
const VOLUME: &str = "/zeroclaw-data";
/// What the hub of MCP servers lists here.
pub(crate) const TOOLS: [&str; 2] = ["get_tasks", "create_task"];
/// A turn here takes a fraction of a second; a machine under load takes longer.
const TURN: Duration = Duration::from_secs(60);

/// The program; none where none is named, which is said as a skipped test.
#[allow(clippy::disallowed_methods, reason = "the binary's place is the one thing these tests are told")]
fn program() -> Option<PathBuf> {
    let found = std::env::var_os("ASSISTANT_ZEROCLAW_BIN").map(PathBuf::from);
    if found.is_none() {
        // Past the capture of a test's output: nobody looks into a test that passed.
        std::io::stderr().write_all(b"SKIPPED: ASSISTANT_ZEROCLAW_BIN is not set\n").unwrap();
    }
    found
}

/// A running agent.
pub(crate) struct Agent {
    gateway: Gateway,
    doors: Doors,
    home: TempDir,
    process: Child,
    _tasks: Tasks,
}

/// A turn that ended.
#[derive(Debug)]
pub(crate) struct Turn {
    /// What a person was asked to approve, in order.
    pub(crate) asked: Vec<String>,
    /// What each tool said, as the model got it.
    pub(crate) results: Vec<String>,
    /// The tools that the model was offered.
    pub(crate) offered: Vec<String>,
    /// The model that was asked.
    pub(crate) model: String,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Called {
    /// Whether a person was asked.
    pub(crate) asked: bool,
    /// What the model got.
    pub(crate) said: String,
}

impl Agent {
    /// Starts the agent of a stack's tier.
    pub(crate) async fn start(stack: &Stack, tier: &str) -> Option<Self> {
        // As the image says it.
        Self::start_otherwise(stack, tier, |config| config, "/usr/local/bin:/usr/bin:/bin").await
    }

    /// The same with another configuration than what is rendered, and where else than in its volume programs are found.
    pub(crate) async fn start_otherwise(
        stack: &Stack,
        tier: &str,
        change: impl FnOnce(String) -> String,
        path: &str,
    ) -> Option<Self> {
        let program = program()?;
        let inputs = stack.prepare().unwrap_or_else(|error| panic!("{error}"));
        let desired = inputs.desired().unwrap();
        let spec = desired.container(&format!("zeroclaw-{tier}")).unwrap();
        let tokens = &inputs.material.tokens;
        let token = tokens.principal(&spec.name.parse().unwrap()).unwrap().expose();
        let tasks = Tasks::default();
        let doors = Doors::open(&tasks, token, &TOOLS).await.unwrap();

        let home = tempfile::tempdir().unwrap();
        let at = home.path().to_str().unwrap();
        // An address of its own on loopback, so that the port can stay.
        let [.., a, b, c] = Uuid::new_v4().into_bytes();
        let address = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
        let rendered = spec.files.iter().find(|file| file.path.ends_with("config.toml")).unwrap();
        let Content::Inline(bytes) = &rendered.content else { panic!("the configuration is rendered") };
        let mut config = change(String::from_utf8(bytes.to_vec()).unwrap());
        for (there, here, needed) in [
            ("host = \"0.0.0.0\"".to_owned(), format!("host = \"{address}\""), true),
            (format!("http://models:{MODELS_PORT}/"), format!("http://{}/", doors.models), true),
            (format!("http://mcp:{MCP_PORT}/"), format!("http://{}/", doors.mcp), false),
            (VOLUME.to_owned(), at.to_owned(), false),
        ] {
            assert!(!needed || config.contains(&there), "{there} is not in the configuration");
            config = config.replace(&there, &here);
        }
        std::fs::create_dir_all(home.path().join(".zeroclaw")).unwrap();
        std::fs::create_dir_all(home.path().join("bin")).unwrap();
        std::fs::write(home.path().join(".zeroclaw/config.toml"), config).unwrap();

        let mut command = Command::new(program);
        command.args(&spec.command).env_clear();
        // First a place for doubles of programs.
        command.env("PATH", format!("{at}/bin:{path}"));
        for variable in &spec.env {
            let value =
                if variable.name.to_lowercase().ends_with("s_proxy") || variable.name.to_lowercase() == "http_proxy" {
                    // Nobody is there: what takes the proxy arrives nowhere.
                    let (scheme, rest) = variable.value.split_once("://").unwrap();
                    let user = rest.split('@').next().unwrap();
                    format!("{scheme}://{user}@127.0.0.1:1")
                } else {
                    variable.value.replace(VOLUME, at)
                };
            command.env(&variable.name, value);
        }
        let log = |name: &str| std::fs::File::create(home.path().join(name)).unwrap();
        command.current_dir(home.path()).stdin(Stdio::null()).stdout(log("out.log")).stderr(log("err.log"));
        let process = command.kill_on_drop(true).spawn().unwrap();

        let opener = tokens.gateway(&tier.parse().unwrap()).unwrap().expose().to_owned();
        let gateway = Gateway::new(SocketAddrV4::new(address, GATEWAY_PORT), Zeroizing::new(opener));
        let healthy = until("the agent's gateway", TURN, || async { Ok(gateway.healthy().await.ok()) }).await;
        if let Err(error) = healthy {
            let said = std::fs::read_to_string(home.path().join("err.log")).unwrap();
            panic!("{error:#}\n{said}");
        }
        Some(Self { gateway, doors, home, process, _tasks: tasks })
    }

    /// Calls tools one after the other in a turn of its own; a person says YES or NO to everything. Of each call whether a
    /// person was asked, and what the tool said.
    pub(crate) async fn calls_of(&self, calls: &[(&str, Value)], yes: bool) -> Vec<Called> {
        let mut called = Vec::new();
        // ZeroClaw ends a turn after ten rounds.
        for part in calls.chunks(8) {
            let script: String = part.iter().map(|(name, arguments)| format!("!tool {name} {arguments}\n")).collect();
            let turn = self.turn(&script, yes).await;
            assert_eq!(turn.results.len(), part.len(), "{script}{turn:#?}");
            let mut asked = turn.asked.into_iter().peekable();
            for ((name, _), said) in part.iter().zip(turn.results) {
                // The name may be the end of one: hub__get_tasks.
                let is_this = |title: &String| {
                    let title = title.lines().next().unwrap_or_default();
                    title == format!("Approve {name}?") || title.ends_with(&format!("__{name}?"))
                };
                called.push(Called { asked: asked.next_if(is_this).is_some(), said });
            }
            assert_eq!(asked.next(), None, "{script}");
        }
        called
    }

    /// [`Self::calls_of`] for commands of the shell.
    pub(crate) async fn shell(&self, commands: &[&str], yes: bool) -> Vec<Called> {
        let calls: Vec<_> = commands.iter().map(|command| ("shell", json!({"command": command}))).collect();
        self.calls_of(&calls, yes).await
    }

    /// A turn of a conversation of its own, in which the model follows `script` (`doubles::script`) and a person says YES
    /// or NO to everything.
    pub(crate) async fn turn(&self, script: &str, yes: bool) -> Turn {
        tokio::time::timeout(TURN, self.follow(script, yes)).await.unwrap_or_else(|_| panic!("no end of: {script}"))
    }

    async fn follow(&self, script: &str, yes: bool) -> Turn {
        let before = self.doors.completions().len();
        let (mut link, features) = self.gateway.connect().await.unwrap();
        let session = session(&mut link, features, None).await.unwrap();
        let prompt = json!({"sessionId": session.id, "prompt": [{"type": "text", "text": script}]});
        let call = link.begin("session/prompt", &prompt).await.unwrap();
        let mut asked = Vec::new();
        loop {
            match link.receive().await.unwrap() {
                Incoming::Permission { id, request, .. } => {
                    assert_eq!(request.question(), Question::Approval, "{request:?}");
                    asked.push(request.action);
                    link.decide(&id, yes).await.unwrap();
                }
                Incoming::OtherRequest { id } => link.turn_down(&id).await.unwrap(),
                Incoming::Response { id, result } if id == call => {
                    result.unwrap_or_else(|error| panic!("{script}: {error:?}"));
                    break;
                }
                Incoming::Response { .. } | Incoming::Update { .. } | Incoming::OtherNotification => {}
            }
        }
        link.close().await;
        let bodies = self.doors.completions().split_off(before);
        // Others of the agent's own, without tools, may come after those of the turn.
        let last = bodies.iter().rev().find(|body| body["tools"].is_array());
        let last = last.unwrap_or_else(|| panic!("no model was asked: {script}"));
        Turn { asked, results: results(last), offered: offered(last), model: text(&last["model"]) }
    }

    /// Calls that arrived at the hub of MCP servers.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        self.doors.calls()
    }

    /// The directory that is the agent's volume.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where its tools work. There once a turn was made.
    pub(crate) fn workspace(&self) -> PathBuf {
        self.home().join(".zeroclaw/agents/default/workspace")
    }

    /// Leaves a file in the workspace.
    pub(crate) fn leave(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.workspace()).unwrap();
        std::fs::write(self.workspace().join(name), content).unwrap();
    }

    /// What the kernel says of the process's environment.
    pub(crate) fn environment(&self) -> Vec<String> {
        let id = self.process.id().unwrap();
        let text = std::fs::read_to_string(format!("/proc/{id}/environ")).unwrap();
        text.split_terminator('\0').map(ToOwned::to_owned).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn offered(body: &Value) -> Vec<String> {
    let tools = body["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    tools.iter().map(|tool| text(&tool["function"]["name"])).collect()
}

/// What tools said since the newest message of the user.
fn results(body: &Value) -> Vec<String> {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let from = messages.iter().rposition(|message| message["role"] == "user").unwrap_or(0);
    let of_tools = messages.iter().skip(from).filter(|message| message["role"] == "tool");
    of_tools.map(|message| text(&message["content"])).collect()
}
