//! One bridge in process, between the two doubles.

use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::event::ApprovalOutcome;
use channel_bridge::approvals::Code;
use channel_bridge::channels::Pace;
use channel_bridge::channels::terminal::{Message, Updates};
use channel_bridge::config::Config;
use channel_bridge::envelope::Update;
use channel_bridge::service::ChannelBridge;
use channel_bridge::turn::Patience;
use serde_json::json;
use service_kit::host::Context;

use crate::agent_double::{AgentDouble, Journal, TOKEN};
use crate::memory_post::MemoryPost;

pub(crate) struct Stack {
    pub(crate) agent: AgentDouble,
    pub(crate) post: Arc<MemoryPost>,
    pub(crate) bridge: ChannelBridge,
    pub(crate) cx: Context,
    pub(crate) journal: Journal,
    dir: tempfile::TempDir,
}

pub(crate) fn patience() -> Patience {
    Patience { agent: Duration::from_secs(5), stopping: Duration::from_secs(5), ..Patience::default() }
}

pub(crate) async fn assemble(
    dir: &Path,
    agent: SocketAddrV4,
    post: &Arc<MemoryPost>,
    approval_secs: u32,
) -> (ChannelBridge, Context) {
    assemble_with(dir, agent, post, approval_secs, patience()).await
}

async fn assemble_with(
    dir: &Path,
    agent: SocketAddrV4,
    post: &Arc<MemoryPost>,
    approval_secs: u32,
    patience: Patience,
) -> (ChannelBridge, Context) {
    let token = dir.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    let files = dir.join("dashboard-files");
    let config: Config = serde_json::from_value(json!({
        "common": {
            "mode": "drill",
            "bus": {"url": "tls://127.0.0.1:1", "ca_file": "/none", "nkey_seed_file": "/none", "inbox_prefix": "_INBOX"},
            "telemetry": {"otlp_endpoint": null, "log_filter": "info"},
            "control_socket": "/none"
        },
        "tiers": [{"name": "tasks", "gateway": agent, "gateway_token_file": token, "reachable": [],
            "dashboard_socket": dir.join("tasks.sock")}],
        "state_dir": dir.join("state"),
        "acknowledgers": ["secret-broker", "egress-auditor"],
        "approval_timeout_secs": approval_secs,
        "egress": null,
        "telegram": [],
        "dashboard_files": files.is_dir().then_some(&files)
    }))
    .unwrap();
    // A dashboard is served where a test has put the files of one.
    let cx = Context::detached();
    let bus: Arc<dyn channel_bridge::post::Post> = post.clone();
    let bridge = ChannelBridge::assemble(config, &cx, bus, patience, Pace::default()).await.unwrap();
    (bridge, cx)
}

impl Stack {
    pub(crate) async fn start() -> Self {
        Self::with_approvals_open_for(600).await
    }

    pub(crate) async fn with_approvals_open_for(secs: u32) -> Self {
        Self::with(secs, patience()).await
    }

    pub(crate) async fn with_patience(patience: Patience) -> Self {
        Self::with(600, patience).await
    }

    async fn with(secs: u32, patience: Patience) -> Self {
        Self::within(tempfile::tempdir().unwrap(), secs, patience).await
    }

    /// One that serves the tier's dashboard.
    pub(crate) async fn with_dashboard(secs: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        crate::dashboard::browser::write_files(&dir.path().join("dashboard-files"));
        let mut stack = Self::within(dir, secs, patience()).await;
        stack.bridge.start_dashboards(&stack.cx);
        stack
    }

    /// The socket of the dashboard.
    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("tasks.sock")
    }

    async fn within(dir: tempfile::TempDir, secs: u32, patience: Patience) -> Self {
        let journal: Journal = Arc::new(Mutex::default());
        let agent = AgentDouble::start(Arc::clone(&journal)).await;
        let post = Arc::new(MemoryPost::new(Arc::clone(&journal)));
        let (bridge, cx) = assemble_with(dir.path(), agent.address, &post, secs, patience).await;
        assert!(post.consumers.set((bridge.inbox(), bridge.outbox())).is_ok());
        Self { agent, post, bridge, cx, journal, dir }
    }

    /// A bridge of a new process: same state, same agent, a bus that knows nothing; messages are delivered by the test.
    pub(crate) async fn reborn(&self) -> (ChannelBridge, Context, Arc<MemoryPost>) {
        let post = Arc::new(MemoryPost::new(Arc::clone(&self.journal)));
        let (bridge, cx) = assemble(self.dir.path(), self.agent.address, &post, 600).await;
        (bridge, cx, post)
    }

    /// Leaves half a record of a turn behind.
    pub(crate) fn damage(&self, turn: &assistant_proto::name::TurnId) {
        std::fs::write(self.dir.path().join("state/turns").join(format!("{turn}.json")), "{").unwrap();
    }

    pub(crate) async fn open(&self, text: &str, conversation: &str) -> Updates {
        let message = Message {
            tier: "tasks".to_owned(),
            text: text.to_owned(),
            conversation: conversation.to_owned(),
            key: String::new(),
        };
        self.bridge.terminal().send(message).await.unwrap()
    }

    /// Everything that comes of a message.
    pub(crate) async fn say(&self, text: &str) -> Vec<Update> {
        rest(&mut self.open(text, "c").await).await
    }
}

pub(crate) async fn next(updates: &mut Updates) -> Update {
    tokio::time::timeout(Duration::from_secs(20), updates.next()).await.unwrap().unwrap().unwrap()
}

pub(crate) async fn rest(updates: &mut Updates) -> Vec<Update> {
    let mut all = Vec::new();
    loop {
        all.push(next(updates).await);
        if all.last().unwrap().is_last() {
            assert!(updates.next().await.is_none());
            return all;
        }
    }
}

/// The code of the next question.
pub(crate) async fn asked(updates: &mut Updates) -> (String, Code) {
    loop {
        if let Update::Ask { action, code, .. } = next(updates).await {
            return (action, code);
        }
    }
}

pub(crate) fn reply(updates: &[Update]) -> (&str, &str) {
    match updates.last().unwrap() {
        Update::Ended { reply, stop_reason, .. } => (reply, stop_reason),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn failure(updates: &[Update]) -> (&str, &str) {
    match updates.last().unwrap() {
        Update::Failed { reason, fix, .. } => (reason, fix),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn decided(updates: &[Update]) -> Vec<ApprovalOutcome> {
    updates
        .iter()
        .filter_map(|update| match update {
            Update::Decided { outcome, .. } => Some(*outcome),
            _ => None,
        })
        .collect()
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "{what}");
}
