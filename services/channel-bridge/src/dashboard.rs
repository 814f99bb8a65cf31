//! A tier's dashboard: ZeroClaw's own page, served from the pinned release, with the bridge in the place of the agent's
//! gateway. Channel kind `dashboard`.
//!
//! Owned here: the Unix socket, and HTTP on it. Who can connect is the gates' process, which has asked for the login, has
//! checked where a request comes from, and names the site; so everybody here is the operator. Scripts and pages come from
//! [`files`], never from the agent's container; what is asked from the agent ([`upstream`]) is a closed list
//! ([`paths`]) of JSON to be read. What a person writes becomes a turn like any other ([`session`]): no path leads from
//! here to the agent outside of one. Not here: turns, approvals, what the gate checks.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use assistant_proto::name::TierName;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::http::{HeaderValue, request};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use service_kit::host::{Context, Shutdown};
use service_kit::task::{OnEnd, Tasks};
use service_kit::text::harmless_line;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::acp::Gateway;
use crate::channels::terminal::Terminal;
use crate::envelope::{Conversation, Person};
use crate::reply::links::Reach;
use answers::Answer;
use files::Files;
use history::History;
use paths::{AGENT, Refusal, Way};

mod answers;
mod conversations;
pub mod files;
pub mod frames;
pub mod history;
pub mod markdown;
pub mod paths;
mod session;
pub mod upstream;

/// Channel kind.
pub const KIND: &str = "dashboard";
/// Names the site; the gate adds it.
const SITE: &str = "assistant-site";
/// The subprotocol of ZeroClaw's chat.
const SUBPROTOCOL: &str = "zeroclaw.v1";
/// The gates' group may connect, others not.
const SOCKET_MODE: u32 = 0o660;
/// Connections of one dashboard: browsers open six each.
const MOST_CONNECTIONS: usize = 64;
/// Chats of one dashboard, each a page or a tab.
const MOST_CHATS: usize = 16;
/// For the head of a request, and between two of them.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
const MOST_HEADERS: usize = 64;
const MOST_HEAD: usize = 32 << 10;
/// For the protocol to change.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);
/// Longest frame of a page: the longest message, every byte of it escaped.
const MOST_FRAME: usize = crate::route::MOST_TEXT * 6 + 1024;
const MOST_UNWRITTEN: usize = 4 << 20;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A dashboard whose socket is bound and that serves nobody yet.
#[derive(Debug)]
pub struct Dashboard {
    listener: UnixListener,
    shared: Arc<Shared>,
}

/// What the dashboard of a tier works with.
#[derive(Debug)]
pub struct Parts {
    /// The tier.
    pub tier: TierName,
    /// What a browser loads.
    pub files: Arc<Files>,
    /// Its agent.
    pub gateway: Gateway,
    /// Takes messages in, as [`KIND`].
    pub terminal: Arc<Terminal>,
    /// What was said.
    pub history: History,
    /// What the tier may reach.
    pub reach: Reach,
    /// Spawns.
    pub tasks: Tasks,
    /// When to stop.
    pub shutdown: Shutdown,
}

#[derive(Debug)]
struct Shared {
    tier: TierName,
    files: Arc<Files>,
    gateway: Gateway,
    terminal: Arc<Terminal>,
    history: History,
    reach: Reach,
    tasks: Tasks,
    shutdown: Shutdown,
    connections: Arc<Semaphore>,
    chats: Arc<Semaphore>,
    /// Refused requests, in the order of [`Refusal::ALL`].
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// A socket that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}; its directory must exist and belong to this service's uid")]
pub struct BindError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Dashboard {
    /// Binds the socket, over one that a dead process left behind.
    ///
    /// # Errors
    /// When that fails.
    pub fn bind(path: &Path, parts: Parts) -> Result<Self, BindError> {
        let failed = |source| BindError { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
        let Parts { tier, files, gateway, terminal, history, reach, tasks, shutdown } = parts;
        let shared = Shared {
            tier,
            files,
            gateway,
            terminal,
            history,
            reach,
            tasks,
            shutdown,
            connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
            chats: Arc::new(Semaphore::new(MOST_CHATS)),
            refused: Default::default(),
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Counts what the dashboards refuse.
    pub fn count(dashboards: &[Self], cx: &Context) {
        let shared: Vec<_> = dashboards.iter().map(|dashboard| Arc::clone(&dashboard.shared)).collect();
        let refused = move || -> u64 {
            let counters = shared.iter().flat_map(|shared| &shared.refused);
            counters.fold(0, |sum, counter| sum.saturating_add(counter.load(Ordering::Relaxed)))
        };
        let (name, what) = ("assistant_dashboard_refused_total", "Requests to dashboards that were refused.");
        cx.metrics.counter(name, what, move |observer| observer.observe(refused(), &[]));
    }

    /// Serves until the service drains. Critical: a dashboard that nobody can open is not one.
    pub fn spawn(self, cx: &Context) {
        let name = format!("dashboard {}", self.shared.tier);
        cx.tasks.spawn(name, OnEnd::Critical, self.serve());
    }

    async fn serve(self) -> anyhow::Result<()> {
        let draining = self.shared.shutdown.draining();
        loop {
            // Cancel-safe: neither a place nor a connection is lost when dropped.
            let accepted = tokio::select! {
                () = draining.cancelled() => return Ok(()),
                accepted = async {
                    let place = Arc::clone(&self.shared.connections).acquire_owned().await;
                    (place, self.listener.accept().await)
                } => accepted,
            };
            match accepted {
                (Ok(place), Ok((stream, _))) => {
                    let shared = Arc::clone(&self.shared);
                    self.shared.tasks.spawn("dashboard connection", OnEnd::Expected, connection(shared, stream, place));
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "a connection to a dashboard could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                (Err(_), _) => return Ok(()),
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: UnixStream, place: OwnedSemaphorePermit) -> anyhow::Result<()> {
    let draining = shared.shutdown.draining();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    // Cancel-safe: the connection is pinned outside and driven on after the token.
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    drop(place);
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to a dashboard ended");
    }
    Ok(())
}

impl Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let (mut parts, body) = request.into_parts();
        let way = match self.comes_from_here(&parts) {
            true => paths::way(&parts.method, &parts.uri),
            false => Way::Refused(Refusal::Foreign),
        };
        match way {
            Way::Home => answers::home(),
            Way::Page => answers::page(self.files.page(), &self.files.policy(&socket_of(&parts))),
            Way::File(name) => match self.files.find(&name) {
                Some(file) => answers::file(file),
                None => self.refuse(Refusal::NoSuch, &parts),
            },
            // The page would ask for a pairing code otherwise; the login was the gate's.
            Way::Health => {
                answers::json(StatusCode::OK, &json!({"status": "ok", "paired": true, "require_pairing": false}))
            }
            Way::Agents => answers::json(StatusCode::OK, &json!({"path": "agents", "keys": [AGENT]})),
            Way::AgentShown => answers::json(StatusCode::OK, &the_agent()),
            Way::Forward(what) => match upstream::ask(&self.gateway, what).await {
                Ok(value) => answers::json(StatusCode::OK, &value),
                Err(error) => {
                    tracing::warn!(tier = %self.tier, %error, "the agent did not answer its dashboard");
                    answers::problem(StatusCode::BAD_GATEWAY, "agent_did_not_answer", &error.to_string())
                }
            },
            Way::Sessions => conversations::kept(self.sessions().await),
            Way::Messages(id) => conversations::kept(self.messages(&id).await),
            Way::Rename(id) => self.rename(&id, body).await,
            Way::Forget(id) => conversations::kept(self.forget(&id).await),
            Way::Stop(id) => {
                let stopped = !self.terminal.registry.stop(&self.person(id)).is_empty();
                let status = if stopped { "aborted" } else { "no_active_response" };
                answers::json(StatusCode::OK, &json!({"status": status}))
            }
            Way::Chat(id) => match Arc::clone(&self).chat(id, &mut parts) {
                Ok(answer) => answer,
                Err(why) => self.refuse(why, &parts),
            },
            Way::Refused(why) => self.refuse(why, &parts),
        }
    }

    /// Named for this site by the gate, and not sent by a page of another.
    fn comes_from_here(&self, parts: &request::Parts) -> bool {
        let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let mut sites = parts.headers.get_all(SITE).iter();
        let here = sites.next().is_some_and(|site| site.as_bytes() == self.tier.as_str().as_bytes());
        let origin = match (header("origin"), header("host")) {
            (Some(origin), Some(host)) => origin.strip_prefix("http://") == Some(host),
            (Some(_), None) => false,
            (None, _) => !parts.headers.contains_key(ORIGIN),
        };
        here && sites.next().is_none() && origin
    }

    fn refuse(&self, why: Refusal, parts: &request::Parts) -> Answer {
        if let Some(counter) = Refusal::ALL.iter().position(|known| *known == why).and_then(|at| self.refused.get(at)) {
            let before = counter.fetch_add(1, Ordering::Relaxed);
            let path = harmless_line(parts.uri.path(), 200);
            // The page itself asks for what is closed here, again and again.
            if before == 0 {
                tracing::info!(tier = %self.tier, method = %parts.method, path, code = why.told().1, "a dashboard refused a request; further ones are counted");
            } else {
                tracing::debug!(tier = %self.tier, method = %parts.method, path, code = why.told().1, "a dashboard refused a request");
            }
        }
        answers::refused(why)
    }

    fn person(&self, id: String) -> Person {
        let conversation = Conversation { tier: self.tier.clone(), channel: KIND.to_owned(), name: id };
        Person { conversation, sender: KIND.to_owned() }
    }

    fn chat(self: Arc<Self>, id: String, parts: &mut request::Parts) -> Result<Answer, Refusal> {
        let upgrade = parts.method == Method::GET
            && parts.headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let key = parts.headers.get(SEC_WEBSOCKET_KEY).filter(|_| upgrade).ok_or(Refusal::Method)?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| Refusal::Method)?;
        let spoken = |value: &HeaderValue| {
            value.to_str().is_ok_and(|value| value.split(',').any(|one| one.trim() == SUBPROTOCOL))
        };
        let subprotocol = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().any(spoken);
        let upgraded = parts.extensions.remove::<hyper::upgrade::OnUpgrade>().ok_or(Refusal::Method)?;
        let place = Arc::clone(&self.chats).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let tasks = self.tasks.clone();
        tasks.spawn("dashboard chat", OnEnd::Expected, async move {
            let stream = timeout(UPGRADE_WITHIN, upgraded).await??;
            let config = WebSocketConfig::default()
                .max_message_size(Some(MOST_FRAME))
                .max_frame_size(Some(MOST_FRAME))
                .max_write_buffer_size(MOST_UNWRITTEN);
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, Some(config)).await;
            session::serve(self, id, socket).await;
            drop(place);
            Ok(())
        });
        let mut answer = answers::json(StatusCode::SWITCHING_PROTOCOLS, &Value::Null);
        *answer.body_mut() = http_body_util::Full::default();
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        Ok(answer)
    }
}

/// That the one agent is there, in the shape of ZeroClaw's list of fields. What else it is like stands in tiers.yaml.
fn the_agent() -> Value {
    let enabled = json!({"path": format!("agents.{AGENT}.enabled"), "category": "agents", "kind": "bool",
        "type_hint": "bool", "value": "true", "populated": true, "is_secret": false, "is_env_overridden": false,
        "enum_variants": [], "section": "agents", "tab": null, "multiline": false});
    json!({"entries": [enabled], "drifted": []})
}

/// `ws://<host>` of the site. The gate has checked the host; what is none is left out.
fn socket_of(parts: &request::Parts) -> String {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    if !host.is_empty() && host.bytes().all(plain) { format!("ws://{host}") } else { String::new() }
}
