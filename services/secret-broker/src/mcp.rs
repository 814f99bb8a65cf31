//! The MCP ingress: one Streamable HTTP endpoint, `http://mcp:8811/mcp` on a tier's network, behind which stand all MCP
//! servers of the tier, each in a container of its own.
//!
//! Owns which tools exist for the agent ([`catalogue`]: the allow-lists; of a server without one, what it said when its
//! session began), what of their descriptions and results reaches it, and the sessions with the servers. Does not inject
//! secrets: a server's own requests pass the proxy ingress like anybody's.
//!
//! Speaks what ZeroClaw 0.8.7's client speaks (MCP 2024-11-05, read in its `zeroclaw-tools` crate, `mcp_client.rs` and
//! `mcp_transport.rs`): each POST one message, each answer one JSON document; no event streams, no batches, no server
//! requests. Each answer stands for itself, so there is no session id, and the agent notices no restart of the broker.

mod catalogue;
mod result;
mod rpc;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use assistant_proto::config::{McpServer, ToolRule};
use assistant_proto::event::{EventId, Layer, ToolCalled};
use assistant_proto::name::PrincipalName;
use futures::future::join_all;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use policy::Denial;
use serde_json::{Map, Value, json};
use service_kit::clock;
use service_kit::text::{chain, harmless_line};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::catalogue::{Catalogue, Described, Meaning};
use self::rpc::{Answer, Id, Message, RpcError};
use self::session::{Session, SessionError};
use crate::attempt::Attempt;
use crate::body::{self, Body};
use crate::identity::{ListenerId, Network};
use crate::ingress::room::{self, Held};
use crate::ingress::{self, wire};
use crate::journal::{self, Departure, Recorded};
use crate::listener::Door;
use crate::refusal::Refusal;
use crate::rewrite::scrub_text;
use crate::state::{State, Tier};
use crate::turn::{self, InTurn};

/// The revision of MCP that is spoken on both sides.
pub(crate) const PROTOCOL_VERSION: &str = "2024-11-05";

const SERVED: &str = "POST /mcp";
/// Arguments of a tool call: text a model wrote.
const BODY_MOST: usize = 1024 * 1024;
/// Tool calls of one tier at once. What they may hold in memory together is bounded by its room (`ingress::room`).
const CALLS_MOST: usize = 8;
/// Lists of tools made at once for one tier. More wait.
const LISTS_MOST: usize = 4;
/// ZeroClaw gives up after 120 s; the broker should be the one to say why.
const CALL_WITHIN: Duration = Duration::from_secs(110);
/// ZeroClaw gives `tools/list` 30 s, and then does without the tools for the whole conversation.
const LIST_WITHIN: Duration = Duration::from_secs(20);
/// Between attempts at a server that is not up yet.
const LIST_PAUSE: Duration = Duration::from_millis(250);
const TOOL_NAME_MOST: usize = 128;

/// Serves a tier's MCP ingress until the service drains.
///
/// # Errors
/// Never by itself.
pub async fn serve_mcp(
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: TcpListener,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let id = ListenerId { tier: tier.name.clone(), network: Network::Tier };
    let (catalogue, taken) = Catalogue::new(&tier.mcp_servers);
    for name in taken {
        tracing::error!(
            tier = %tier.name,
            tool = %harmless_line(&name, TOOL_NAME_MOST),
            "two tools claim one name and neither is offered; take one out of the tools section of tiers.yaml"
        );
    }
    let session = |server: &McpServer| Session::new(server.clone(), state.tasks.clone(), tier.room.clone());
    let sessions = tier.mcp_servers.iter().map(session).collect();
    let ingress = Arc::new(Ingress {
        state: Arc::clone(&state),
        tier: Arc::clone(&tier),
        listener: id.clone(),
        catalogue,
        sessions,
        calls: Semaphore::new(CALLS_MOST),
        lists: Semaphore::new(LISTS_MOST),
    });
    let door = Door { id, layer: Layer::Mcp, protocol: "mcp", task: "mcp-connection" };
    let answer = move |peer, request| Arc::clone(&ingress).answer(peer, request);
    ingress::serve(state, tier, listener, door, draining, answer).await
}

struct Ingress {
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: ListenerId,
    catalogue: Catalogue,
    sessions: Vec<Arc<Session>>,
    calls: Semaphore,
    lists: Semaphore,
}

impl Ingress {
    async fn answer(self: Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let (method, target) = (request.method().clone(), request.uri().clone());
        let read = self.read(peer, request).await;
        let is_call = matches!(&read, Ok((_, Message::Request { method, .. }, _)) if method == "tools/call");
        let name = if is_call { "broker.tool" } else { "broker.mcp" };
        // Begun only now because a span cannot change its name later; the peer had to send everything within seconds.
        let mut attempt = Attempt::begin(&self.state.turns, &self.tier.name, Layer::Mcp, "mcp", name);
        attempt.asks(&method, &target);
        let (principal, message, held) = match read {
            Ok(read) => read,
            Err(refusal) => {
                // Perhaps not believed, but whose address it was is worth knowing.
                if let Some(principal) = self.state.directory.at(&self.listener, peer) {
                    attempt.authenticated(&principal.name);
                }
                return self.state.deny(&attempt, &refusal);
            }
        };
        attempt.authenticated(&principal);
        let span = attempt.span.clone();
        match message {
            Message::Notification { method } => {
                noted(&method).unwrap_or_else(|refusal| self.state.deny(&attempt, &refusal))
            }
            Message::Request { id, method, params } => {
                let outcome = self.request(&mut attempt, &principal, &method, params, held).instrument(span).await;
                self.respond(&id, outcome)
            }
        }
    }

    /// Who speaks, and what; and the room that it takes.
    async fn read(
        &self,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<(PrincipalName, Message, Held), Refusal> {
        let target = wire::target(&request);
        let principal = self.state.authenticate_bearer(&self.listener, peer, request.headers())?.name.clone();
        match target {
            Some((Method::POST, path)) if path == "/mcp" => {}
            // ZeroClaw and other clients ask whether there is an event stream; that is no attempt at anything.
            Some((Method::GET | Method::DELETE, path)) if path == "/mcp" => {
                return Err(Refusal::elsewhere(
                    StatusCode::METHOD_NOT_ALLOWED,
                    Denial::new("no-event-stream", "there are no event streams and no sessions here", "use POST /mcp"),
                ));
            }
            _ => return Err(wire::not_served(SERVED)),
        }
        let (body, held) = wire::json_body(request, BODY_MOST, &self.tier.room).await?;
        Ok((principal, rpc::read(&body)?, held))
    }

    async fn request(
        &self,
        attempt: &mut Attempt,
        principal: &PrincipalName,
        method: &str,
        params: Map<String, Value>,
        held: Held,
    ) -> Result<Reply, RpcError> {
        if method == "tools/call" {
            return self.call(attempt, principal, params, held).await;
        }
        // Nothing else asks for what it says here, and a list may wait for a while.
        drop((params, held));
        match method {
            "initialize" => Ok(Reply::small(json!({
                "protocolVersion": PROTOCOL_VERSION,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "secret-broker", "version": env!("CARGO_PKG_VERSION")},
            }))),
            "ping" => Ok(Reply::small(json!({}))),
            "tools/list" => self.list(attempt, principal).await,
            _ => Err(RpcError { code: rpc::METHOD_NOT_FOUND, ..self.refuse(attempt, &not_served(method)) }),
        }
    }

    /// Every allowed tool of every server that can be asked, or could be before. An error only where no server can: then
    /// the agent should know that it has no tools, and ask again.
    ///
    /// Asking a server is something that a tier does, so it is done in a turn only, and recorded. Outside one the agent is
    /// told what the servers said last, and before they ever spoke that there is nothing: ZeroClaw asks when it starts,
    /// which is no attempt at anything, and again when it builds an agent, which it does in the turn.
    async fn list(&self, attempt: &mut Attempt, principal: &PrincipalName) -> Result<Reply, RpcError> {
        let began = Instant::now();
        let deadline = began + LIST_WITHIN;
        let asked: Vec<&Arc<Session>> = self.sessions.iter().filter(|session| offers_any(session)).collect();
        let outside = self.state.check_turn(&self.tier, attempt).err();
        let names: Vec<&str> = asked.iter().map(|session| session.server().name.as_str()).collect();
        let names = names.join(" ");
        attempt.aims_at(&names, None);
        let Ok(Ok(_list)) = timeout_at(deadline, self.lists.acquire()).await else {
            return Err(self.refuse(attempt, &too_many("tool lists", LISTS_MOST)));
        };
        let mut recorded = Vec::new();
        for session in asked.iter().filter(|_| outside.is_none()) {
            recorded.push(self.record_list(attempt, principal, session.server()).await?);
        }
        let mut told = Called {
            ingress: self,
            attempt,
            principal,
            server: if outside.is_some() { "" } else { &names },
            tool: "tools/list",
            began,
            succeeded: false,
            listed: Some(0),
        };
        let mut recorded = recorded.iter();
        let wanted = self.sessions.iter().map(|session| {
            let recorded = if offers_any(session) { recorded.next() } else { None };
            async move {
                let Some(recorded) = recorded else {
                    return if offers_any(session) { session.last_listed() } else { Some(Arc::default()) };
                };
                match list_patiently(session, deadline, recorded).await {
                    Ok(tools) => Some(tools),
                    Err(error) => {
                        tracing::warn!(tier = %self.tier.name, server = %session.server().name, error = %chain(&error), "tools cannot be listed");
                        session.last_listed()
                    }
                }
            }
        });
        let listed = join_all(wanted).await;
        if outside.is_none() && !listed.is_empty() && listed.iter().all(Option::is_none) {
            return Err(RpcError::new(rpc::INTERNAL, "no MCP server of this tier can be reached; try again"));
        }
        let size = listed.iter().flatten().flat_map(|tools| tools.iter()).map(|tool| tool.size()).sum();
        let held = self.tier.room.take(size, deadline).await.map_err(|refusal| self.refuse(attempt, &refusal))?;
        let (tools, count) = self.catalogue.describe(&listed).map_err(|_| unwritten())?;
        told.succeeded = true;
        told.listed = Some(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(Reply { answer: Answer::Written(tools), held: Some(held) })
    }

    /// Stores that a server is about to be asked for its tools.
    async fn record_list(
        &self,
        attempt: &Attempt,
        principal: &PrincipalName,
        server: &McpServer,
    ) -> Result<Recorded, RpcError> {
        let rule = format!("tools/{}", server.name);
        let departure = Departure::of_list(principal, server.name.as_str(), server.address.port(), &rule);
        journal::record(&self.state.bus, attempt, &departure).await.map_err(|refusal| self.refuse(attempt, &refusal))
    }

    async fn call(
        &self,
        attempt: &mut Attempt,
        principal: &PrincipalName,
        mut params: Map<String, Value>,
        held: Held,
    ) -> Result<Reply, RpcError> {
        // Progress tokens and the like: there is nobody to report progress to.
        params.shift_remove("_meta");
        let name = params.shift_remove("name");
        let arguments = params.shift_remove("arguments").filter(|arguments| !arguments.is_null());
        let (Some(Value::String(name)), Some(arguments), true) =
            (name, arguments.map_or_else(|| Some(Map::new()), into_object), params.is_empty())
        else {
            return Err(RpcError { code: rpc::INVALID_PARAMS, ..self.refuse(attempt, &malformed_call()) });
        };
        let meaning = self.catalogue.meaning(&name);
        let is_open = matches!(meaning, Some(Meaning::Open(_)));
        let Some((tool, session)) = meaning.and_then(|(Meaning::Listed(tool) | Meaning::Open(tool))| {
            let session = self.sessions.get(tool.server)?;
            Some((tool, session))
        }) else {
            attempt.aims_at(&name, None);
            return Err(self.refuse(attempt, &not_allowed(&self.tier, &name)));
        };
        let server = session.server();
        attempt.aims_at(server.name.as_str(), Some(server.address.port()));
        let rule = format!("tools/{}/{}", server.name, harmless_line(&tool.name, TOOL_NAME_MOST));
        attempt.span.record("rule", rule.as_str());
        self.state.check_turn(&self.tier, attempt).map_err(|refusal| self.refuse(attempt, &refusal))?;
        let _call = self.calls.try_acquire().map_err(|_| self.refuse(attempt, &too_many("tool calls", CALLS_MOST)))?;
        let began = Instant::now();
        let deadline = began + CALL_WITHIN;
        if is_open {
            if session.has(&tool.name).is_none() {
                let recorded = self.record_list(attempt, principal, server).await?;
                if let Err(error) = session.list(deadline, &recorded).await {
                    tracing::warn!(tier = %self.tier.name, server = %server.name, error = %chain(&error), "tools cannot be listed");
                    return Err(RpcError::new(rpc::INTERNAL, format!("{error}; nothing was done; try again")));
                }
            }
            if session.has(&tool.name) != Some(true) {
                return Err(self.refuse(attempt, &not_there(server, &tool.name)));
            }
        }
        let departure = Departure::of_tool(principal, server.name.as_str(), server.address.port(), &tool.name, &rule);
        let recorded = journal::record(&self.state.bus, attempt, &departure)
            .await
            .map_err(|refusal| self.refuse(attempt, &refusal))?;

        let mut called = Called {
            ingress: self,
            attempt,
            principal,
            server: server.name.as_str(),
            tool: &tool.name,
            began,
            succeeded: false,
            listed: None,
        };
        let mut within = InTurn::of(&self.state.turns, &self.tier, attempt);
        // Dropping the call ends its connection.
        let answered = tokio::select! {
            answered = session.call(&tool.name, arguments, held, deadline, &recorded) => answered,
            () = within.over() => return Err(RpcError::refused(&turn::cut(), &attempt.trace_id())),
        };
        match answered {
            Ok((Ok(result), held)) => {
                called.succeeded = !result::is_error(&result);
                Ok(Reply { answer: Answer::Made(result::rebuild(result)), held: Some(held) })
            }
            Ok((Err((code, text)), _)) => Err(RpcError::new(code, text)),
            Err(error) => {
                tracing::warn!(tier = %self.tier.name, server = %server.name, error = %chain(&error), "tool call failed");
                let done = if error.nothing_sent() {
                    "nothing was done; try again"
                } else {
                    "whether the call did something is not known: look before repeating it"
                };
                Err(RpcError::new(rpc::INTERNAL, format!("{error}; {done}")))
            }
        }
    }

    fn refuse(&self, attempt: &Attempt, refusal: &Refusal) -> RpcError {
        self.state.count_denied(attempt, refusal);
        RpcError::refused(refusal, &attempt.trace_id())
    }

    /// The answer, without any secret of the tier: a server must not echo what was injected into its own requests.
    fn respond(&self, id: &Id, outcome: Result<Reply, RpcError>) -> Response<Body> {
        let (answer, mut held) = match outcome {
            Ok(Reply { answer, held }) => (Ok(answer), held),
            Err(error) => (Err(error), None),
        };
        let content = rpc::answer(id, &answer);
        drop(answer);
        let content = scrub_text(&self.tier.scrubber, content);
        if let Some(held) = &mut held {
            held.shrink_to_text(content.len());
        }
        let mut response = Response::new(room::held(content, held));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// What a request is answered with, and the room that it takes until it was handed over.
struct Reply {
    answer: Answer,
    held: Option<Held>,
}

impl Reply {
    fn small(value: Value) -> Self {
        Self { answer: Answer::Made(value), held: None }
    }
}

/// Publishes a tool call, or a list of tools, when it is dropped, so that a caller who hangs up is counted too.
struct Called<'a> {
    ingress: &'a Ingress,
    attempt: &'a Attempt,
    principal: &'a PrincipalName,
    server: &'a str,
    tool: &'a str,
    began: Instant,
    succeeded: bool,
    /// Of a list, how many tools were told.
    listed: Option<u64>,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        let event = ToolCalled {
            tier: self.attempt.tier.clone(),
            principal: self.principal.clone(),
            server: self.server.to_owned(),
            tool: harmless_line(self.tool, TOOL_NAME_MOST),
            succeeded: self.succeeded,
            turn: self.attempt.turn.turn.clone(),
            trace_id: self.attempt.trace_id(),
            took_millis: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            listed: self.listed,
            observed_at: clock::now_rfc3339(),
        };
        self.ingress.state.bus.emit(&event, EventId::unique(), Some(self.attempt.traceparent()));
    }
}

/// Asks until the deadline: at start the servers come up while ZeroClaw already asks. Only what cannot have reached the
/// server, and a wrapper whose server is not up, is worth another attempt.
async fn list_patiently(
    session: &Session,
    deadline: Instant,
    recorded: &Recorded,
) -> Result<Arc<Vec<Arc<Described>>>, SessionError> {
    loop {
        let error = match session.list(deadline, recorded).await {
            Ok(tools) => return Ok(tools),
            Err(error) => error,
        };
        let starting = match &error {
            SessionError::Unreachable(_) | SessionError::Broken(_) => true,
            SessionError::Status(status) => status.is_server_error(),
            _ => false,
        };
        let next = Instant::now() + LIST_PAUSE;
        if !starting || next >= deadline {
            return Err(error);
        }
        tokio::time::sleep_until(next).await;
    }
}

/// Whether there is anything to ask a server for.
fn offers_any(session: &Session) -> bool {
    session.server().tools != ToolRule::Only(Vec::new())
}

fn unwritten() -> RpcError {
    RpcError::new(rpc::INTERNAL, "the list of tools could not be written; this is a bug of the broker: report it")
}

fn noted(method: &str) -> Result<Response<Body>, Refusal> {
    match method {
        "notifications/initialized" | "notifications/cancelled" => {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::ACCEPTED;
            Ok(response)
        }
        _ => Err(Refusal::bad_request(
            "unknown-notification",
            "this notification means nothing here",
            "nothing allows this: clients may say that they are initialised or that they cancel",
        )),
    }
}

fn into_object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

fn not_allowed(tier: &Tier, name: &str) -> Refusal {
    let name = harmless_line(name, TOOL_NAME_MOST);
    Refusal::forbidden(
        "tool-not-allowed",
        format!("the tool {name:?} is not among those that tier {} may call", tier.name),
        format!("add it to the tools section of tier {} in tiers.yaml, under the server that has it", tier.name),
    )
}

fn not_there(server: &McpServer, name: &str) -> Refusal {
    let name = harmless_line(name, TOOL_NAME_MOST);
    Refusal::forbidden(
        "tool-not-allowed",
        format!("the MCP server {} did not list the tool {name:?} when its session began", server.name),
        "list the tools, and call one of them; what a server adds later counts once the server has started anew",
    )
}

fn not_served(method: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        Denial::new(
            "method-not-served",
            format!("there is no method {:?} at this endpoint", harmless_line(method, TOOL_NAME_MOST)),
            "this endpoint offers tools only: initialize, ping, tools/list and tools/call",
        ),
    )
}

fn malformed_call() -> Refusal {
    Refusal::bad_request(
        "malformed-call",
        "the parameters of tools/call are not those of a tool call",
        "tools/call takes a name and an object of arguments",
    )
}

fn too_many(what: &str, most: usize) -> Refusal {
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        Denial::new(
            "too-many-tool-calls",
            format!("the tier has {most} {what} under way"),
            "wait for one of them; the limit is fixed for now",
        ),
    )
}
