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

mod call;
mod called;
pub(crate) mod catalogue;
mod list;
mod result;
mod rpc;
pub(crate) mod seen;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;

use assistant_proto::config::McpServer;
use assistant_proto::event::Layer;
use assistant_proto::name::PrincipalName;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use policy::Denial;
use serde_json::{Map, Value, json};
use service_kit::text::harmless_line;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::rpc::{Answer, Id, Message, RpcError};
use self::session::Session;
use crate::attempt::Attempt;
use crate::body::{self, Body};
use crate::identity::{ListenerId, Network};
use crate::ingress::room::{self, Held};
use crate::ingress::{self, wire};
use crate::listener::Door;
use crate::refusal::Refusal;
use crate::rewrite::scrub_text;
use crate::state::{State, Tier};

/// The revision of MCP that is spoken on both sides.
pub(crate) const PROTOCOL_VERSION: &str = "2024-11-05";

const SERVED: &str = "POST /mcp";
/// Arguments of a tool call: text a model wrote.
const BODY_MOST: usize = 1024 * 1024;
/// Tool calls of one tier at once. What they may hold in memory together is bounded by its room (`ingress::room`).
const CALLS_MOST: usize = 8;
/// Lists of tools made at once for one tier. More wait.
const LISTS_MOST: usize = 4;
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
    let session = |(index, server): (usize, &McpServer)| {
        Session::new(server.clone(), state.tasks.clone(), tier.room.clone(), tier.seen.server(index))
    };
    let sessions = tier.mcp_servers.iter().enumerate().map(session).collect();
    let ingress = Arc::new(Ingress {
        state: Arc::clone(&state),
        tier: Arc::clone(&tier),
        listener: id.clone(),
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

/// More of something under way than a tier may have.
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
