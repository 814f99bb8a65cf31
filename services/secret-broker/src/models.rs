//! The model ingress: `POST /v1/chat/completions` and `GET /v1/models` on a tier's network, as ZeroClaw asks for them at
//! `http://models:4000/v1`.
//!
//! Owns what a model request may be ([`request`]): each is taken apart, understood in full and made anew. It adds the
//! stack's key, sends it through Squid as the route's own user, and streams the answer back without the key. Does not
//! choose the model's host (configuration does) and offers no other endpoint of it.

mod answer;
mod fields;
mod message;
pub mod request;
pub mod route;
mod tool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use assistant_proto::event::Layer;
use assistant_proto::name::PrincipalName;
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use policy::{Denial, ModelPermit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use self::answer::Account;
use self::request::Rebuilt;
use self::route::Route;
use crate::attempt::Attempt;
use crate::body::{self, Body};
use crate::identity::{ListenerId, Network};
use crate::ingress::wire;
use crate::journal::{self, Departure};
use crate::listener::{self, Door};
use crate::refusal::Refusal;
use crate::state::{State, Tier};
use crate::upstream;

const SERVED: &str = "POST /v1/chat/completions and GET /v1/models";
/// A prompt that fills the largest context windows has a few MiB.
const BODY_MOST: usize = 8 * 1024 * 1024;
/// Calls of one tier at once. Each may hold a body and its parsed form in memory.
const CALLS_MOST: usize = 8;

/// Serves a tier's model ingress until the service drains.
///
/// # Errors
/// Where the model route cannot be used.
pub async fn serve_models(
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: TcpListener,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let route = Route::parse(&state.model.base_url).context("the model route cannot be used")?;
    let id = ListenerId { tier: tier.name.clone(), network: Network::Tier };
    let ingress = Arc::new(Ingress {
        state: Arc::clone(&state),
        tier: Arc::clone(&tier),
        listener: id.clone(),
        route,
        calls: Semaphore::new(CALLS_MOST),
    });
    let door = Door { id, layer: Layer::Models, protocol: "https", task: "models-connection" };
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
    route: Route,
    calls: Semaphore,
}

impl Ingress {
    async fn answer(self: Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let target = wire::target(&request);
        let lists = matches!(&target, Some((Method::GET, path)) if path == "/v1/models");
        let name = if lists { "broker.models" } else { "broker.model" };
        let mut attempt = Attempt::begin(&self.state.turns, &self.tier.name, Layer::Models, "https", name);
        let span = attempt.span.clone();
        let outcome = async {
            let principal = match self.state.authenticate_bearer(&self.listener, peer, request.headers()) {
                Ok(principal) => principal.name.clone(),
                Err(refusal) => {
                    // Not believed, but whose address it was is worth knowing.
                    if let Some(principal) = self.state.directory.at(&self.listener, peer) {
                        attempt.authenticated(&principal.name);
                    }
                    return Err(refusal);
                }
            };
            attempt.authenticated(&principal);
            attempt.aims_at(self.route.host.as_str(), Some(self.route.port));
            match target {
                Some((Method::GET, path)) if path == "/v1/models" => Ok(self.list()),
                Some((Method::POST, path)) if path == "/v1/chat/completions" => {
                    self.complete(&attempt, principal, request).await
                }
                _ => Err(wire::not_served(SERVED)),
            }
        }
        .instrument(span)
        .await;
        outcome.unwrap_or_else(|refusal| self.state.deny(&attempt, &refusal))
    }

    /// The names a tier may use, and nothing of what stands behind them.
    fn list(&self) -> Response<Body> {
        let data: Vec<_> = self
            .state
            .model
            .models
            .keys()
            .map(|name| serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "assistant"}))
            .collect();
        let content = serde_json::json!({"object": "list", "data": data}).to_string();
        let mut response = Response::new(body::full(Bytes::from(content)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn complete(
        &self,
        attempt: &Attempt,
        principal: PrincipalName,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        self.state.check_turn(&self.tier, attempt)?;
        let began = Instant::now();
        // Held until the answer's head is there: by then the body and its parsed form are gone.
        let _call = self.calls.try_acquire().map_err(|_| too_many())?;
        let body = wire::json_body(request, BODY_MOST).await?;
        let rebuilt = request::rebuild(&body, &self.state.model, &principal)?;
        drop(body);
        let permit = rebuilt.permit.clone();
        attempt.span.record("rule", permit.rule());
        attempt.span.record("http.request.method", "POST");
        let content = rebuilt.bytes().map_err(|_| internal())?;
        let mut account = Account {
            state: Arc::clone(&self.state),
            attempt: attempt.clone(),
            permit: permit.clone(),
            path: self.route.path.clone(),
            status: 0,
            bytes_out: u64::try_from(content.len()).unwrap_or(u64::MAX),
            bytes_in: 0,
            began,
            left: false,
        };
        let request = self.upstream_request(&rebuilt, content)?;
        let state = &self.state;
        let recorded = journal::record(&state.bus, attempt, &Departure::of_model(&permit, &self.route)).await?;
        let user = &state.model.squid_user;
        let mut sender = state
            .upstream
            .connect(&state.tasks, attempt, user, &self.route.host, self.route.port)
            .await
            .map_err(|error| error.refusal())?;
        if let Some(key) = permit.key() {
            state.injected(attempt, permit.principal(), key, &self.route.host, permit.rule());
        }
        account.left = true;
        let response = upstream::send(&mut sender, request, &recorded).await.map_err(|(error, unsent)| {
            account.left = unsent.is_none();
            error.refusal()
        })?;
        answer::pass(response, &self.tier.scrubber, account)
    }

    fn upstream_request(&self, rebuilt: &Rebuilt, content: Vec<u8>) -> Result<Request<Body>, Refusal> {
        let accept = if rebuilt.stream { "text/event-stream" } else { "application/json" };
        let mut request = Request::post(&self.route.path)
            .header(HOST, self.route.authority())
            .header(USER_AGENT, "secure-assistant-stack")
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, accept)
            // What is compressed could not be searched for the key.
            .header(ACCEPT_ENCODING, "identity")
            .body(body::full(content))
            .map_err(|_| internal())?;
        let permit: &ModelPermit = &rebuilt.permit;
        if let Some(name) = permit.key() {
            let key = self.state.secrets.value(name).map_err(|problem| {
                Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    Denial::new(
                        "secret-missing",
                        format!("the secret {name} of the model route cannot be used: {problem}"),
                        format!("put the model's key into the secret {name}, and apply again"),
                    ),
                )
            })?;
            let bearer = Zeroizing::new(format!("Bearer {}", key.expose_to_model(permit)));
            let mut value = HeaderValue::from_str(&bearer).map_err(|_| internal())?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }
}

fn too_many() -> Refusal {
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        Denial::new(
            "too-many-model-calls",
            format!("the tier has {CALLS_MOST} model calls under way"),
            "wait for one of them; the limit is fixed for now",
        ),
    )
}

fn internal() -> Refusal {
    Refusal::elsewhere(
        StatusCode::INTERNAL_SERVER_ERROR,
        Denial::new("internal", "the request could not be made", "report this: it is a bug of the broker"),
    )
}
