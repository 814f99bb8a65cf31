//! The model ingress: `POST /v1/chat/completions` and `GET /v1/models` on a tier's network, as ZeroClaw asks for them at
//! `http://models:4000/v1`.
//!
//! Owns what a model request may be ([`request`]): each is taken apart, understood in full and made anew. It sends it to
//! the LiteLLM of the tier's class of confidentiality with that LiteLLM's key ([`litellm`]), and streams the answer back
//! without the key. It knows which models the providers list ([`provider`], [`names`]), to say so where one is missing. Which class a tier is of is configuration's, what that means `policy`'s; which model host stands
//! behind a name is LiteLLM's. Offers no other endpoint.

mod answer;
mod fields;
pub mod litellm;
mod message;
pub(crate) mod names;
pub(crate) mod provider;
pub mod request;
mod tool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use assistant_proto::event::Layer;
use assistant_proto::name::PrincipalName;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use policy::{Denial, Offer};
use service_kit::text::chain;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::account::Account;
use crate::attempt::Attempt;
use crate::body::{self, Body};
use crate::identity::{ListenerId, Network};
use crate::ingress::{self, wire};
use crate::journal::{self, Departure};
use crate::listener::Door;
use crate::refusal::Refusal;
use crate::state::{State, Tier};
use crate::turn::{self, InTurn};

/// Path of chat completions, here and at LiteLLM.
pub(crate) const COMPLETIONS: &str = "/v1/chat/completions";
const LIST: &str = "/v1/models";
const SERVED: &str = "POST /v1/chat/completions and GET /v1/models";
/// A prompt that fills the largest context windows has a few MiB.
const BODY_MOST: usize = 8 * 1024 * 1024;
/// Calls of one tier at once. What they may hold in memory together is bounded by its room (`ingress::room`).
const CALLS_MOST: usize = 8;

/// Serves a tier's model ingress until the service drains.
///
/// # Errors
/// Never by itself.
pub async fn serve_models(
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: TcpListener,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let id = ListenerId { tier: tier.name.clone(), network: Network::Tier };
    let ingress = Arc::new(Ingress {
        state: Arc::clone(&state),
        tier: Arc::clone(&tier),
        listener: id.clone(),
        calls: Semaphore::new(CALLS_MOST),
    });
    let door = Door { id, layer: Layer::Models, protocol: "http", task: "models-connection" };
    let answer = move |peer, request| Arc::clone(&ingress).answer(peer, request);
    ingress::serve(state, tier, listener, door, draining, answer).await
}

struct Ingress {
    state: Arc<State>,
    tier: Arc<Tier>,
    listener: ListenerId,
    calls: Semaphore,
}

impl Ingress {
    async fn answer(self: Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let target = wire::target(&request);
        let lists = matches!(&target, Some((Method::GET, path)) if path == LIST);
        let name = if lists { "broker.models" } else { "broker.model" };
        let mut attempt = Attempt::begin(&self.state.turns, &self.tier.name, Layer::Models, "http", name);
        attempt.asks(request.method(), request.uri());
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
            let class = self.tier.confidential;
            attempt.aims_at(litellm::container(class), self.state.models.port(class));
            match target {
                Some((Method::GET, path)) if path == LIST => self.state.models.offer(&self.tier).map(list),
                Some((Method::POST, path)) if path == COMPLETIONS => self.complete(&attempt, principal, request).await,
                _ => Err(wire::not_served(SERVED)),
            }
        }
        .instrument(span)
        .await;
        outcome.unwrap_or_else(|refusal| self.state.deny(&attempt, &refusal))
    }

    async fn complete(
        &self,
        attempt: &Attempt,
        principal: PrincipalName,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let state = &self.state;
        let offer = state.models.offer(&self.tier)?;
        state.check_turn(&self.tier, attempt)?;
        let began = Instant::now();
        // Held until the answer's head is there: by then the body and its parsed form are gone.
        let _call = self.calls.try_acquire().map_err(|_| too_many())?;
        let (body, mut held) = wire::json_body(request, BODY_MOST, &self.tier.room).await?;
        let request::Rebuilt { permit, stream, request } = request::rebuild(&body, offer, &principal)?;
        drop(body);
        attempt.span.record("rule", permit.rule());
        attempt.span.record("http.request.method", "POST");
        let content = request.bytes().map_err(|_| internal())?;
        // A model thinks for long: of the prompt there is only what is being sent.
        drop(request);
        let length = content.len();
        held.shrink_to_text(length);
        let litellm = state.models.litellm(&permit).ok_or_else(internal)?;
        let container = litellm::container(permit.confidential());
        let request = litellm.request(&permit, stream, content)?;
        // The permit is recorded as this span's, so that egress-auditor can hang the call's tunnels below it.
        let span = tracing::info_span!(
            parent: &attempt.span,
            "broker.litellm",
            otel.kind = "client",
            server.address = container,
            server.port = litellm.port(),
            model = permit.model(),
            confidential = permit.confidential().as_str(),
            http.response.status_code = Empty,
            bytes_out = Empty,
            bytes_in = Empty,
            error = Empty,
        );
        let departure = Departure::of_model(&permit, container, litellm.port(), COMPLETIONS, &span);
        let recorded = journal::record(&state.bus, attempt, &departure).await.inspect_err(|_| {
            span.record("error", "not recorded, so nothing was sent");
        })?;
        let mut within = InTurn::of(&state.turns, &self.tier, attempt);
        if within.is_over() {
            return Err(turn::over());
        }

        // From here on the prompt counts as having left, whatever comes of it.
        let mut account = Account::of_model(state, &self.tier, attempt, &permit, length, began, span.clone());
        // Dropping the call ends its connection.
        let response = tokio::select! {
            response = litellm.send(request, &recorded).instrument(span.clone()) => response,
            () = within.over() => {
                account.cut = Some(turn::OVER);
                return Err(turn::cut());
            }
        };
        let response = response.map_err(|error| {
            tracing::warn!(parent: &attempt.span, container, error = %chain(&error), "no answer of LiteLLM");
            span.record("error", chain(&error));
            account.left = !error.nothing_sent();
            error.refusal(permit.confidential())
        })?;
        drop(held);
        answer::pass(response, litellm, permit.model(), &self.tier.scrubber, account).await
    }
}

/// The names a tier may use, and nothing of what stands behind them.
fn list(offer: Offer<'_>) -> Response<Body> {
    let entry = |name| serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "assistant"});
    let data: Vec<_> = offer.models().iter().map(entry).collect();
    let content = serde_json::json!({"object": "list", "data": data}).to_string();
    let mut response = Response::new(body::full(Bytes::from(content)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
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
