//! The broker as client of one MCP server behind the stdio wrapper: `POST http://<address>/mcp` with the wrapper's token.
//!
//! The server is a third-party program: its answers are bounded in size and time and parsed strictly. A session is
//! initialised when it is first needed and again after any failure. A tool call is never sent twice: whether the first
//! one did something cannot be known.
//!
//! A server whose every tool is allowed is held to what it listed first in a session, descriptions included: later it can
//! take a tool away, not add one, and not make one mean something else.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use assistant_proto::config::{McpServer, ToolRule};
use http::StatusCode;
use http::header::HeaderValue;
use serde_json::{Map, Value, json};
use service_kit::files::{FileError, read_secret};
use service_kit::task::Tasks;
use service_kit::text::{chain, harmless_line};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

pub(super) use self::exchange::Outcome;
use self::exchange::Question;
use super::catalogue::Described;
use super::seen::{Offer, SeenServer, Tool};
use crate::ingress::room::{Held, Room};
use crate::journal::Recorded;

mod exchange;

/// The largest answer that is taken in; ZeroClaw's own limit is the same.
const ANSWER_MOST: usize = 4 * 1024 * 1024;
/// What a server may say in all when it is asked for its tools; an allowed tool needs a few kilobytes.
const LIST_MOST: usize = 1024 * 1024;
/// Tools that a server may list, allowed or not.
const LISTED_MOST: usize = 512;
/// A server that pages for ever is cut off.
const PAGES_MOST: usize = 32;
/// Longest name of a tool of an open server; what is longer, or odd, is not offered.
const NAME_MOST: usize = 128;
/// Longest error text of a server that is passed on.
const ERROR_MOST: usize = 2_000;

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The token file.
    #[error("the wrapper's token cannot be read")]
    Token(#[from] FileError),
    /// The token holds something that no header can.
    #[error("the wrapper's token cannot be sent")]
    OddToken,
    /// Nobody listens, or the connection broke.
    #[error("the MCP server's container cannot be reached")]
    Unreachable(#[source] std::io::Error),
    /// HTTP broke down under way.
    #[error("the connection to the MCP server broke")]
    Broken(#[source] hyper::Error),
    /// The wrapper refused or could not.
    #[error("the MCP server's wrapper answered with status {0}")]
    Status(StatusCode),
    /// The answer is above the cap.
    #[error("the MCP server's answer is above {} MiB", most.div_ceil(1024 * 1024))]
    TooLarge {
        /// The cap, in bytes.
        most: usize,
    },
    /// It lists more tools than [`LISTED_MOST`].
    #[error("the MCP server lists more than {LISTED_MOST} tools")]
    TooMany,
    /// Not the answer to the question.
    #[error("the MCP server's answer is not JSON-RPC")]
    Malformed,
    /// The tier's other requests take all the memory there is for them.
    #[error("there was no memory left for the MCP server's answer")]
    NoRoom,
    /// The deadline passed.
    #[error("the MCP server did not answer in time")]
    TimedOut,
    /// The server refused to begin.
    #[error("the MCP server refused to initialise")]
    Refused,
}

impl SessionError {
    /// Whether it is certain that the server has seen nothing of the request.
    pub(super) fn nothing_sent(&self) -> bool {
        matches!(self, Self::Token(_) | Self::OddToken | Self::Unreachable(_) | Self::Refused)
    }
}

/// An answer within a session.
#[derive(Debug)]
struct Answered {
    outcome: Outcome,
    /// On the wire.
    size: usize,
    /// Of the session.
    generation: u64,
    /// The room that the answer takes.
    held: Held,
}

/// One server of one tier.
#[derive(Debug)]
pub(super) struct Session {
    server: McpServer,
    tasks: Tasks,
    room: Room,
    /// For people.
    seen: Arc<SeenServer>,
    next: AtomicU64,
    /// What is initialised. Never locked across an await, so that forgetting it takes no time.
    current: Mutex<Current>,
    /// Held while initialising, so that it is done once.
    initialising: tokio::sync::Mutex<()>,
    /// What it listed last: a server that is down for a moment does not take its tools away from a new conversation.
    listed: Mutex<Option<Listed>>,
    /// What an open server is held to.
    pinned: Mutex<Option<Pinned>>,
    /// Held while listing, so that the server is asked once however many want to know.
    listing: tokio::sync::Mutex<()>,
}

/// The session as it stands.
#[derive(Debug, Default)]
struct Current {
    /// Counts initialisations: who failed in an earlier one must not undo a later one.
    generation: u64,
    /// None while it is not initialised.
    authorization: Option<HeaderValue>,
}

/// The tools of an open server, by name, as it listed them first in a session.
#[derive(Debug)]
struct Pinned {
    generation: u64,
    tools: BTreeMap<String, Arc<Described>>,
}

#[derive(Debug)]
struct Listed {
    tools: Arc<Vec<Arc<Described>>>,
    at: Instant,
}

impl Session {
    pub(super) fn new(server: McpServer, tasks: Tasks, room: Room, seen: Arc<SeenServer>) -> Arc<Self> {
        Arc::new(Self {
            server,
            tasks,
            room,
            seen,
            next: AtomicU64::new(1),
            current: Mutex::default(),
            initialising: tokio::sync::Mutex::default(),
            listed: Mutex::default(),
            pinned: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn server(&self) -> &McpServer {
        &self.server
    }

    /// The allowed ones of the server's tools as it describes them, following `nextCursor`, once it is stored that it is
    /// asked. Who comes while a list is being made gets that list.
    pub(super) async fn list(
        &self,
        deadline: Instant,
        _recorded: &Recorded,
    ) -> Result<Arc<Vec<Arc<Described>>>, SessionError> {
        let asked = Instant::now();
        let Ok(_listing) = timeout_at(deadline, self.listing.lock()).await else { return Err(SessionError::TimedOut) };
        if let Some(listed) = self.listed().as_ref().filter(|listed| listed.at > asked) {
            return Ok(Arc::clone(&listed.tools));
        }
        let tools = Arc::new(self.list_anew(deadline).await?);
        *self.listed() = Some(Listed { tools: Arc::clone(&tools), at: Instant::now() });
        Ok(tools)
    }

    async fn list_anew(&self, deadline: Instant) -> Result<Vec<Arc<Described>>, SessionError> {
        let mut kept: Vec<Arc<Described>> = Vec::new();
        let mut shown: Vec<Tool> = Vec::new();
        let (mut tools_left, mut bytes_left) = (LISTED_MOST, LIST_MOST);
        let mut cursor = None;
        let mut session = 0;
        for _ in 0..PAGES_MOST {
            let params = cursor.map_or_else(Map::new, |cursor| Map::from_iter([("cursor".to_owned(), cursor)]));
            let page = self.ask("tools/list", params, deadline, bytes_left, None).await?;
            session = page.generation;
            bytes_left = bytes_left.saturating_sub(page.size);
            // Until nothing parsed of this page is left.
            let _held = page.held;
            let Ok(Value::Object(mut page)) = page.outcome else { return Err(SessionError::Malformed) };
            let Some(Value::Array(tools)) = page.shift_remove("tools") else { return Err(SessionError::Malformed) };
            tools_left = tools_left.checked_sub(tools.len()).ok_or(SessionError::TooMany)?;
            for tool in tools {
                let Some(name) = tool.get("name").and_then(Value::as_str) else { continue };
                let refused = match &self.server.tools {
                    ToolRule::Only(allowed) if !allowed.iter().any(|tool| tool == name) => Some(Offer::NotAllowed),
                    ToolRule::All if !is_plain(name) => Some(Offer::Unusable),
                    _ => None,
                };
                if kept.iter().any(|other| other.name == name) {
                    continue;
                }
                let as_shown = |offer| Tool::new(name, tool.get("description").and_then(Value::as_str), offer);
                if let Some(offer) = refused {
                    shown.push(as_shown(offer));
                    continue;
                }
                let mut as_shown = as_shown(Offer::Offered);
                match Described::read(tool) {
                    Some(described) => kept.push(Arc::new(described)),
                    None => as_shown.offer = Offer::Unusable,
                }
                shown.push(as_shown);
            }
            cursor = page.shift_remove("nextCursor").filter(Value::is_string);
            if cursor.is_none() {
                break;
            }
        }
        let kept = match self.server.tools {
            ToolRule::Only(_) => kept,
            ToolRule::All => self.pin(session, kept),
        };
        self.show(shown, &kept, cursor.is_none());
        Ok(kept)
    }

    /// For people: what was listed, and what of it is offered; of a whole list also what it lacks.
    fn show(&self, mut shown: Vec<Tool>, kept: &[Arc<Described>], is_whole: bool) {
        for tool in shown.iter_mut().filter(|tool| tool.offer == Offer::Offered) {
            match kept.iter().find(|kept| kept.name == tool.name) {
                // What the agent is told, which is what it said when its session began.
                Some(kept) => *tool = Tool::new(&kept.name, kept.description(), Offer::Offered),
                None => tool.offer = Offer::TooLate,
            }
        }
        let missing: Vec<String> = match &self.server.tools {
            ToolRule::Only(allowed) if is_whole => {
                allowed.iter().filter(|name| !shown.iter().any(|tool| tool.name == **name)).cloned().collect()
            }
            _ => Vec::new(),
        };
        let names = missing.join(" ");
        if self.seen.listed(shown, missing) && !names.is_empty() {
            tracing::warn!(
                server = %self.server.name,
                source = self.server.source,
                tools = %harmless_line(&names, ERROR_MOST),
                "tiers.yaml allows tools that the MCP server does not have"
            );
        }
    }

    /// What of a list an open server is believed: all of the first one of a session, then only what was in that.
    fn pin(&self, generation: u64, listed: Vec<Arc<Described>>) -> Vec<Arc<Described>> {
        let mut pinned = self.pinned();
        if let Some(pinned) = pinned.as_ref().filter(|pinned| pinned.generation == generation) {
            let names = listed.iter().map(|tool| tool.name.as_str());
            let (known, added): (Vec<_>, Vec<_>) = names.partition(|name| pinned.tools.contains_key(*name));
            if !added.is_empty() {
                tracing::warn!(
                    server = %self.server.name,
                    tools = %harmless_line(&added.join(" "), ERROR_MOST),
                    "the MCP server added tools in the middle of its session; they are not offered before it starts anew"
                );
            }
            return known.iter().filter_map(|name| pinned.tools.get(*name)).cloned().collect();
        }
        let tools = listed.iter().map(|tool| (tool.name.clone(), Arc::clone(tool))).collect();
        *pinned = Some(Pinned { generation, tools });
        listed
    }

    /// Whether an open server has a tool of that name, as of the beginning of its session; none where that is not known
    /// before it was asked.
    pub(super) fn has(&self, tool: &str) -> Option<bool> {
        self.pinned().as_ref().map(|pinned| pinned.tools.contains_key(tool))
    }

    fn pinned(&self) -> MutexGuard<'_, Option<Pinned>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was listed last, if ever.
    pub(super) fn last_listed(&self) -> Option<Arc<Vec<Arc<Described>>>> {
        self.listed().as_ref().map(|listed| Arc::clone(&listed.tools))
    }

    /// Calls a tool, once the decision is stored. `held` is the room of the arguments; what comes back, that of the answer.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        held: Held,
        deadline: Instant,
        _recorded: &Recorded,
    ) -> Result<(Outcome, Held), SessionError> {
        let params =
            Map::from_iter([("name".to_owned(), json!(tool)), ("arguments".to_owned(), Value::Object(arguments))]);
        let answered = self.ask("tools/call", params, deadline, ANSWER_MOST, Some(held)).await?;
        Ok((answered.outcome, answered.held))
    }

    /// Asks within a session. A failure ends the session it happened in.
    async fn ask(
        &self,
        method: &str,
        params: Map<String, Value>,
        deadline: Instant,
        most: usize,
        held: Option<Held>,
    ) -> Result<Answered, SessionError> {
        let mut used = None;
        let asked = async {
            let (generation, authorization) = self.ready(deadline).await?;
            used = Some(generation);
            let (outcome, size, held) = self.exchange(&authorization, method, params, deadline, most, held).await?;
            Ok(Answered { outcome, size, generation, held })
        };
        let outcome = timeout_at(deadline, asked).await.unwrap_or(Err(SessionError::TimedOut));
        match &outcome {
            Ok(_) => self.seen.answered(),
            Err(error) => self.seen.failed(&chain(error)),
        }
        if let (Err(_), Some(generation)) = (&outcome, used) {
            self.forget(generation);
        }
        outcome
    }

    /// Ends the session of that generation, if it is still that one.
    fn forget(&self, generation: u64) {
        let mut current = self.current();
        if current.generation == generation {
            current.authorization = None;
        }
    }

    fn initialised(&self) -> Option<(u64, HeaderValue)> {
        let current = self.current();
        current.authorization.clone().map(|authorization| (current.generation, authorization))
    }

    /// Initialises the session where it is not. Gives its generation and authorization.
    async fn ready(&self, deadline: Instant) -> Result<(u64, HeaderValue), SessionError> {
        if let Some(ready) = self.initialised() {
            return Ok(ready);
        }
        let _initialising = self.initialising.lock().await;
        if let Some(ready) = self.initialised() {
            return Ok(ready);
        }
        let token = read_secret(&self.server.token_file)?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut authorization = HeaderValue::from_str(&bearer).map_err(|_| SessionError::OddToken)?;
        authorization.set_sensitive(true);
        let client = json!({
            "protocolVersion": super::PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "secret-broker", "version": env!("CARGO_PKG_VERSION")},
        });
        let Value::Object(client) = client else { return Err(SessionError::Malformed) };
        match self.exchange(&authorization, "initialize", client, deadline, LIST_MOST, None).await?.0 {
            Ok(Value::Object(_)) => {}
            Ok(_) => return Err(SessionError::Malformed),
            Err(_) => return Err(SessionError::Refused),
        }
        let done = Question { jsonrpc: "2.0", id: None, method: "notifications/initialized", params: None };
        let (status, _, _) = self.post(&authorization, done, deadline, LIST_MOST, None).await?;
        if !status.is_success() {
            return Err(SessionError::Status(status));
        }
        let mut current = self.current();
        current.generation = current.generation.saturating_add(1);
        current.authorization = Some(authorization.clone());
        Ok((current.generation, authorization))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> MutexGuard<'_, Option<Listed>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a name can be a tool's: what models and clients take as one.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=NAME_MOST).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests;
