//! The MCP ingress: one Streamable HTTP endpoint, `http://mcp:8811/mcp` on a tier's network, behind which stand all MCP
//! servers of the tier, each in a container of its own.
//!
//! Owns which tools exist for the agent ([`catalogue`]: the allow-lists, nothing a server says), what of their
//! descriptions and results reaches it, and the sessions with the servers. Does not inject secrets: a server's own
//! requests pass the proxy ingress like anybody's.
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

use assistant_proto::event::{EventId, Layer, ToolCalled};
use assistant_proto::name::PrincipalName;
use bytes::Bytes;
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

use self::catalogue::Catalogue;
use self::rpc::{Id, Message, RpcError};
use self::session::{Session, SessionError};
use crate::attempt::Attempt;
use crate::body::{self, Body};
use crate::identity::{ListenerId, Network};
use crate::ingress::wire;
use crate::journal::{self, Departure};
use crate::listener::{self, Door};
use crate::refusal::Refusal;
use crate::state::{State, Tier};

/// The revision of MCP that is spoken on both sides.
pub(crate) const PROTOCOL_VERSION: &str = "2024-11-05";

const SERVED: &str = "POST /mcp";
/// Arguments of a tool call: text a model wrote.
const BODY_MOST: usize = 1024 * 1024;
/// Tool calls of one tier at once; each may hold an answer of 4 MiB and its parsed form.
const CALLS_MOST: usize = 8;
/// Lists of tools made at once for one tier; each may hold a mebibyte from every server, and its parsed form. More wait.
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
    let sessions = tier.mcp_servers.iter().map(|server| Session::new(server.clone(), state.tasks.clone())).collect();
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
    let stop = draining.clone();
    listener::accept(state, tier, listener, door, draining, move |stream, peer| {
        let ingress = Arc::clone(&ingress);
        wire::connection(stream, stop.clone(), move |request| Arc::clone(&ingress).answer(peer, request))
    })
    .await
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
        let read = self.read(peer, request).await;
        let is_call = matches!(&read, Ok((_, Message::Request { method, .. })) if method == "tools/call");
        let name = if is_call { "broker.tool" } else { "broker.mcp" };
        // Begun only now because a span cannot change its name later; the peer had to send everything within seconds.
        let mut attempt = Attempt::begin(&self.state.turns, &self.tier.name, Layer::Mcp, "mcp", name);
        let (principal, message) = match read {
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
                let outcome = self.request(&mut attempt, &principal, &method, params).instrument(span).await;
                self.respond(&id, &outcome)
            }
        }
    }

    /// Who speaks, and what.
    async fn read(&self, peer: SocketAddr, request: Request<Incoming>) -> Result<(PrincipalName, Message), Refusal> {
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
        let body = wire::json_body(request, BODY_MOST).await?;
        Ok((principal, rpc::read(&body)?))
    }

    async fn request(
        &self,
        attempt: &mut Attempt,
        principal: &PrincipalName,
        method: &str,
        params: Map<String, Value>,
    ) -> Result<Value, RpcError> {
        match method {
            "initialize" => Ok(json!({
                "protocolVersion": PROTOCOL_VERSION,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "secret-broker", "version": env!("CARGO_PKG_VERSION")},
            })),
            "ping" => Ok(json!({})),
            "tools/list" => self.list(attempt).await,
            "tools/call" => self.call(attempt, principal, params).await,
            _ => Err(RpcError { code: rpc::METHOD_NOT_FOUND, ..self.refuse(attempt, &not_served(method)) }),
        }
    }

    /// Every allowed tool of every server that can be asked, or could be before. An error only where no server can: then
    /// the agent should know that it has no tools, and ask again.
    async fn list(&self, attempt: &Attempt) -> Result<Value, RpcError> {
        let deadline = Instant::now() + LIST_WITHIN;
        let Ok(Ok(_list)) = timeout_at(deadline, self.lists.acquire()).await else {
            return Err(self.refuse(attempt, &too_many("tool lists", LISTS_MOST)));
        };
        let wanted = self.sessions.iter().map(|session| async move {
            if session.server().tools.is_empty() {
                return Some(Arc::default());
            }
            match list_patiently(session, deadline).await {
                Ok(tools) => Some(tools),
                Err(error) => {
                    tracing::warn!(tier = %self.tier.name, server = %session.server().name, error = %chain(&error), "tools cannot be listed");
                    session.last_listed()
                }
            }
        });
        let listed = join_all(wanted).await;
        if !listed.is_empty() && listed.iter().all(Option::is_none) {
            return Err(RpcError::new(rpc::INTERNAL, "no MCP server of this tier can be reached; try again"));
        }
        Ok(self.catalogue.describe(&listed))
    }

    async fn call(
        &self,
        attempt: &mut Attempt,
        principal: &PrincipalName,
        mut params: Map<String, Value>,
    ) -> Result<Value, RpcError> {
        // Progress tokens and the like: there is nobody to report progress to.
        params.shift_remove("_meta");
        let name = params.shift_remove("name");
        let arguments = params.shift_remove("arguments").filter(|arguments| !arguments.is_null());
        let (Some(Value::String(name)), Some(arguments), true) =
            (name, arguments.map_or_else(|| Some(Map::new()), into_object), params.is_empty())
        else {
            return Err(RpcError { code: rpc::INVALID_PARAMS, ..self.refuse(attempt, &malformed_call()) });
        };
        let Some((tool, session)) =
            self.catalogue.tool(&name).and_then(|tool| Some((tool, self.sessions.get(tool.server)?)))
        else {
            attempt.aims_at(&name, None);
            return Err(self.refuse(attempt, &not_allowed(&self.tier, &name)));
        };
        let server = session.server();
        attempt.aims_at(server.name.as_str(), Some(server.address.port()));
        let rule = format!("tools/{}/{}", server.name, harmless_line(&tool.name, TOOL_NAME_MOST));
        attempt.span.record("rule", rule.as_str());
        self.state.check_turn(&self.tier, attempt).map_err(|refusal| self.refuse(attempt, &refusal))?;
        let _call = self.calls.try_acquire().map_err(|_| self.refuse(attempt, &too_many("tool calls", CALLS_MOST)))?;
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
            began: Instant::now(),
            succeeded: false,
        };
        let deadline = called.began + CALL_WITHIN;
        match session.call(&tool.name, arguments, deadline, &recorded).await {
            Ok(Ok(result)) => {
                called.succeeded = !result::is_error(&result);
                Ok(result::rebuild(&result))
            }
            Ok(Err((code, text))) => Err(RpcError::new(code, text)),
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
    fn respond(&self, id: &Id, outcome: &Result<Value, RpcError>) -> Response<Body> {
        let content = rpc::answer(id, outcome);
        let content = self.tier.scrubber.scrub(&content).unwrap_or(content);
        let mut response = Response::new(body::full(Bytes::from(content)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Publishes a tool call when it is dropped, so that a caller who hangs up is counted too.
struct Called<'a> {
    ingress: &'a Ingress,
    attempt: &'a Attempt,
    principal: &'a PrincipalName,
    server: &'a str,
    tool: &'a str,
    began: Instant,
    succeeded: bool,
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
            observed_at: clock::now_rfc3339(),
        };
        self.ingress.state.bus.emit(&event, EventId::unique(), Some(self.attempt.traceparent()));
    }
}

/// Asks until the deadline: at start the servers come up while ZeroClaw already asks. Only what cannot have reached the
/// server, and a wrapper whose server is not up, is worth another attempt.
async fn list_patiently(session: &Session, deadline: Instant) -> Result<Arc<Vec<Value>>, SessionError> {
    loop {
        let error = match session.list(deadline).await {
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
