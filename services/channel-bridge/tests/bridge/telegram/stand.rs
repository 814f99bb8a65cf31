//! The bridge between its doubles: two tiers with an agent each, one bot.

use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistant_proto::event::{ChannelIgnored, ChannelSent};
use assistant_tests::doubles::authority::Authority;
use assistant_tests::doubles::record::Record;
use assistant_tests::doubles::telegram::{SentMessage, Telegram};
use assistant_tests::doubles::web;
use channel_bridge::channels::Pace;
use channel_bridge::config::Config;
use channel_bridge::post::{Notice, Post};
use channel_bridge::service::ChannelBridge;
use serde_json::{Value, json};
use service_kit::host::{Context, ServiceConfig};
use service_kit::task::Tasks;
use zeroize::Zeroizing;

use crate::agent_double::{AgentDouble, Journal, TOKEN};
use crate::memory_post::MemoryPost;
use crate::squid_double::{PASSWORD, SquidDouble, USER};
use crate::stack::{patience, until};

/// Who may write.
pub(crate) const ANNA: i64 = 1_000_001;
pub(crate) const BEN: i64 = 1_000_002;
/// Who may not.
pub(crate) const MALLORY: i64 = 6_666_666;
pub(crate) const BOT_TOKEN: &str = "4200000042:token-of-the-bot";

pub(crate) fn pace() -> Pace {
    Pace {
        poll: Duration::from_secs(50),
        first_retry: Duration::from_millis(10),
        slowest_reach: Duration::from_millis(50),
        slowest_retry: Duration::from_millis(100),
        between_parts: Duration::from_millis(1),
        typing: Duration::from_millis(20),
        call: Duration::from_secs(5),
        poll_slack: Duration::from_secs(5),
        note: Duration::from_secs(10),
    }
}

pub(crate) struct Stand {
    pub(crate) tasks: AgentDouble,
    pub(crate) updates: AgentDouble,
    pub(crate) telegram: Arc<Telegram>,
    pub(crate) squid: SquidDouble,
    pub(crate) post: Arc<MemoryPost>,
    pub(crate) bridge: ChannelBridge,
    pub(crate) cx: Context,
    pub(crate) dir: tempfile::TempDir,
    journal: Journal,
    /// What the double of Telegram runs on.
    _doubles: Tasks,
}

/// A file only its owner can read.
pub(crate) fn secret(dir: &Path, name: &str, value: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, value).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

/// The configuration of a bridge with one bot and these two agents.
pub(crate) fn config(dir: &Path, squid: SocketAddrV4, agents: [SocketAddrV4; 2], approval_secs: u32) -> Value {
    let token = secret(dir, "token", TOKEN);
    json!({
        "common": {
            "mode": "drill",
            "bus": {"url": "tls://127.0.0.1:1", "ca_file": "/none", "nkey_seed_file": "/none", "inbox_prefix": "_INBOX"},
            "telemetry": {"otlp_endpoint": null, "log_filter": "info"},
            "control_socket": "/none"
        },
        "tiers": [
            {"name": "tasks", "gateway": agents[0], "gateway_token_file": token, "reachable": ["serv.amazingmarvin.com"]},
            {"name": "updates", "gateway": agents[1], "gateway_token_file": token, "reachable": []},
        ],
        "state_dir": dir.join("state"),
        "acknowledgers": ["secret-broker", "egress-auditor"],
        "approval_timeout_secs": approval_secs,
        "egress": {
            "squid": squid, "squid_user": USER, "squid_password_file": secret(dir, "squid", PASSWORD),
            "upstream_roots": [dir.join("doubles/ca.pem")]
        },
        "telegram": [{
            "name": "telegram", "api_url": "https://api.telegram.org", "token_file": secret(dir, "bot", BOT_TOKEN),
            "allowed_user_ids": [ANNA, BEN], "tiers": ["tasks", "updates"]
        }]
    })
}

/// The double of Telegram, and the way to it.
pub(crate) async fn doubles(dir: &Path) -> (Arc<Telegram>, SquidDouble, Tasks) {
    let authority = Authority::load_or_make(&dir.join("doubles")).unwrap();
    // Tests share the process: whoever comes second finds it installed.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let tls = authority.server_config("api.telegram.org").unwrap();
    let telegram = Arc::new(Telegram::new(Zeroizing::new(BOT_TOKEN.to_owned())));
    let (tasks, asked) = (Tasks::default(), Arc::clone(&telegram));
    let answer = move |request: web::Asked| {
        let telegram = Arc::clone(&asked);
        async move { telegram.answer(&request).await }
    };
    let loopback = "127.0.0.1:0".parse().unwrap();
    let address = web::serve_at(&tasks, loopback, tls, Arc::new(Record::default()), answer).await.unwrap();
    (telegram, SquidDouble::start(address).await, tasks)
}

impl Stand {
    pub(crate) async fn start() -> Self {
        Self::with(600, |_| {}).await
    }

    pub(crate) async fn with(approval_secs: u32, change: impl FnOnce(&mut Value)) -> Self {
        let mut stand = Self::assembled(approval_secs, change).await;
        stand.bridge.start_messengers(&stand.cx);
        stand
    }

    /// A bridge that has not yet asked for anything.
    pub(crate) async fn assembled(approval_secs: u32, change: impl FnOnce(&mut Value)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (telegram, squid, doubles) = doubles(dir.path()).await;
        let journal: Journal = Arc::new(Mutex::default());
        let (tasks, updates) =
            (AgentDouble::start(Arc::clone(&journal)).await, AgentDouble::start(Arc::clone(&journal)).await);
        let mut value = config(dir.path(), squid.address, [tasks.address, updates.address], approval_secs);
        change(&mut value);
        let (bridge, cx, post) = bridge(value, &journal, pace()).await;
        Self { tasks, updates, telegram, squid, post, bridge, cx, dir, journal, _doubles: doubles }
    }

    /// The process ends as in a crash, and another begins with what it left.
    pub(crate) async fn crash(&mut self) {
        self.end().await;
        self.begin().await;
    }

    pub(crate) async fn end(&self) {
        self.cx.shutdown.deadline().cancel();
        self.cx.tasks.finished().await;
    }

    pub(crate) async fn begin(&mut self) {
        self.begin_at(pace()).await;
    }

    pub(crate) async fn begin_at(&mut self, pace: Pace) {
        let agents = [self.tasks.address, self.updates.address];
        let value = config(self.dir.path(), self.squid.address, agents, 600);
        (self.bridge, self.cx, self.post) = bridge(value, &self.journal, pace).await;
        self.bridge.start_messengers(&self.cx);
    }

    /// Somebody writes in their private chat.
    pub(crate) fn write(&self, who: i64, text: &str) -> i64 {
        self.post_message(json!({"user_id": who, "text": text}))
    }

    pub(crate) fn post_message(&self, message: Value) -> i64 {
        self.ask("POST", "message", message)["update_id"].as_i64().unwrap()
    }

    pub(crate) fn fault(&self, fault: Value) {
        self.ask("POST", "fault", fault);
    }

    pub(crate) fn calm(&self) {
        self.ask("DELETE", "fault", Value::Null);
    }

    pub(crate) fn ask(&self, method: &str, what: &str, body: Value) -> Value {
        self.telegram.control(method, &format!("/telegram/{what}"), body.to_string().as_bytes()).unwrap()
    }

    pub(crate) fn sent(&self) -> Vec<SentMessage> {
        serde_json::from_value(self.ask("GET", "sent/0", Value::Null)["messages"].clone()).unwrap()
    }

    /// Number `count` of what the bot sent, once it is there.
    pub(crate) async fn nth(&self, count: usize) -> SentMessage {
        until(&format!("message {count} is sent"), || self.sent().len() >= count).await;
        self.sent().swap_remove(count - 1)
    }

    /// How many of what it counts: `typing`, `calls`, `waiting`.
    pub(crate) fn count(&self, what: &str) -> u64 {
        self.ask("GET", "sent/0", Value::Null)[what].as_u64().unwrap()
    }

    /// Waits until the bot asks for messages and is made to wait.
    pub(crate) async fn polling(&self) {
        until("the bot asks for messages", || self.problem().is_none() && self.count("calls") >= 2).await;
    }

    /// What the bridge says is wrong with the bot.
    pub(crate) fn problem(&self) -> Option<String> {
        self.cx.health.problems().into_iter().find(|(part, _)| *part == "telegram").map(|(_, problem)| problem)
    }

    pub(crate) fn ignored(&self) -> Vec<ChannelIgnored> {
        let notices = self.post.notices.lock().unwrap();
        let ignored = |notice: &Notice| match notice {
            Notice::ChannelIgnored(event) => Some(event.clone()),
            _ => None,
        };
        notices.iter().filter_map(ignored).collect()
    }

    /// Replies that count as sent.
    pub(crate) fn delivered(&self) -> Vec<ChannelSent> {
        let notices = self.post.notices.lock().unwrap();
        let sent = |notice: &Notice| match notice {
            Notice::ChannelSent(event) => Some(event.clone()),
            _ => None,
        };
        notices.iter().filter_map(sent).collect()
    }
}

async fn bridge(value: Value, journal: &Journal, pace: Pace) -> (ChannelBridge, Context, Arc<MemoryPost>) {
    let config: Config = serde_json::from_value(value).unwrap();
    // A few seconds for an approval are for tests only.
    let problems: Vec<String> =
        config.problems().into_iter().filter(|problem| !problem.starts_with("approval_timeout_secs")).collect();
    assert_eq!(problems, Vec::<String>::new());
    let cx = Context::detached();
    let post = Arc::new(MemoryPost::new(Arc::clone(journal)));
    let bus: Arc<dyn Post> = post.clone();
    let bridge = ChannelBridge::assemble(config, &cx, bus, patience(), pace).await.unwrap();
    assert!(post.consumers.set((bridge.inbox(), bridge.outbox())).is_ok());
    (bridge, cx, post)
}
