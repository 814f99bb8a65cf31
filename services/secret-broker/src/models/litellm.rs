//! The way to the model: a LiteLLM for each class of confidentiality, plain HTTP/1.1 on `models`, a network that carries
//! nothing else. Owns the master keys and the connections. Which LiteLLM a call goes to is read from its permit.
//!
//! Connections are kept for a few seconds and used again. That must never send a prompt twice: a request is tried anew
//! only when a *kept* connection turned out to be closed before one byte of the request was written to it; hyper gives
//! the request back then, and only then. Whatever else breaks is told to the tier, which alone may decide to ask again.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use assistant_proto::config::{Confidentiality, LITELLM_PROVIDER_MODELS, ModelRoute};
use futures::future::join_all;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use policy::{Denial, ModelPermit, Offer, offer};
use service_kit::files::read_secret;
use service_kit::task::{OnEnd, Tasks};
use service_kit::text::chain;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::provider::{Checkup, Provider};
use crate::body::{self, Body};
use crate::headers;
use crate::journal::Recorded;
use crate::refusal::Refusal;
use crate::secrets::{Secret, SecretProblem};
use crate::state::Tier;
use crate::upstream::{ANSWER_DEADLINE, MOST_ANSWER_HEAD, MOST_ANSWER_HEADERS};

/// LiteLLM is a container of this machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// LiteLLM's server (uvicorn) closes what was idle for 5 s; who comes before that finds it open.
const IDLE_WITHIN: Duration = Duration::from_secs(3);
/// As many as one tier may have calls under way.
const IDLE_MOST: usize = 8;

/// Name of the container that serves a class, for people and events.
pub(super) fn container(class: Confidentiality) -> &'static str {
    match class {
        Confidentiality::Required => "assistant-litellm-confidential",
        Confidentiality::None => "assistant-litellm",
    }
}

/// All model routes of the stack.
#[derive(Debug)]
pub struct Models {
    routes: Vec<ModelRoute>,
    litellms: BTreeMap<Confidentiality, Arc<LiteLlm>>,
}

/// One LiteLLM.
pub(super) struct LiteLlm {
    route: ModelRoute,
    key: Result<Secret, SecretProblem>,
    client: RwLock<Pooled>,
    tasks: Tasks,
    /// What is known of the models behind it.
    pub(super) provider: Provider,
}

pub(super) type Pooled = Client<HttpConnector, Body>;

impl Models {
    /// Reads the keys. One that cannot be used is no error here: calls that need it are refused.
    #[must_use]
    pub fn open(routes: Vec<ModelRoute>, tasks: &Tasks) -> Self {
        let mut litellms = BTreeMap::new();
        for route in &routes {
            litellms.entry(route.confidential).or_insert_with(|| Arc::new(LiteLlm::new(route, tasks)));
        }
        Self { routes, litellms }
    }

    /// What a tier is offered.
    ///
    /// # Errors
    /// 503 `no-model-route`.
    pub fn offer(&self, tier: &Tier) -> Result<Offer<'_>, Refusal> {
        offer(&self.routes, &tier.name, tier.confidential)
            .map_err(|denial| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, denial))
    }

    /// The LiteLLM that a permit is for. Always there: permits come from an offer, and offers from the same routes.
    pub(super) fn litellm(&self, permit: &ModelPermit) -> Option<&LiteLlm> {
        self.litellms.get(&permit.confidential()).map(Arc::as_ref)
    }

    /// Keeps what is known of the providers' models up to date until the service drains.
    pub fn follow_providers(&self, draining: &CancellationToken) {
        for litellm in self.litellms.values() {
            let name = format!("model-names-{}", litellm.class().as_str());
            let (litellm, draining) = (Arc::clone(litellm), draining.clone());
            litellm.tasks.clone().spawn_restarting(name, move || {
                let (litellm, draining) = (Arc::clone(&litellm), draining.clone());
                async move {
                    litellm.follow(draining).await;
                    Ok(())
                }
            });
        }
    }

    /// Whether the providers have the models that the stack names, asked for where what is known is not new enough.
    pub(crate) async fn checkups(&self, anew: bool) -> Vec<Checkup> {
        join_all(self.litellms.values().map(|litellm| litellm.checkup(anew))).await
    }

    /// Where calls of a class go.
    pub(super) fn port(&self, class: Confidentiality) -> Option<u16> {
        self.litellms.get(&class).map(|litellm| litellm.port())
    }

    /// The master key for a class, which its tiers must never see.
    pub(crate) fn key(&self, class: Confidentiality) -> Option<&Secret> {
        self.litellms.get(&class)?.key.as_ref().ok()
    }

    /// From now on no connection is kept: the service drains.
    pub fn keep_no_more(&self) {
        for litellm in self.litellms.values() {
            *litellm.client.write().unwrap_or_else(PoisonError::into_inner) = client(&litellm.tasks, 0);
        }
    }
}

/// Why LiteLLM gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody listens: nothing was sent.
    #[error("LiteLLM cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    /// The connection broke before the answer.
    #[error(
        "the connection to LiteLLM broke before it answered, and whether the model has seen the prompt is not known"
    )]
    Broken(#[source] hyper_util::client::legacy::Error),
    /// Out of time.
    #[error("no answer of the model within {} seconds", ANSWER_DEADLINE.as_secs())]
    TimedOut,
}

impl CallError {
    /// Whether it is certain that nothing of the prompt left.
    pub(super) fn nothing_sent(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// What the tier is told. A model that is slow or breaks refused nothing.
    pub(super) fn refusal(&self, class: Confidentiality) -> Refusal {
        let container = container(class);
        let denial = |reason, fix: String| Denial::new(reason, self.to_string(), fix);
        match self {
            Self::Unreachable(_) => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                denial(
                    "litellm-unreachable",
                    format!("see whether the container {container} runs; it recovers by itself"),
                ),
            ),
            Self::Broken(_) => Refusal::elsewhere(
                StatusCode::BAD_GATEWAY,
                denial("litellm-failed", format!("ask again; `docker logs {container}` may say why")),
            ),
            Self::TimedOut => Refusal::elsewhere(
                StatusCode::GATEWAY_TIMEOUT,
                denial("upstream-timeout", "ask again; the model is slow".to_owned()),
            ),
        }
    }
}

impl LiteLlm {
    fn new(route: &ModelRoute, tasks: &Tasks) -> Self {
        let key = read_secret(&route.key_file).map_err(SecretProblem::from).and_then(Secret::new);
        if let Err(problem) = &key {
            let container = container(route.confidential);
            tracing::warn!(container, problem = %chain(problem), "LiteLLM's master key cannot be used; model calls are refused");
        }
        let client = RwLock::new(client(tasks, IDLE_MOST));
        Self { route: route.clone(), key, client, tasks: tasks.clone(), provider: Provider::default() }
    }

    pub(super) fn port(&self) -> u16 {
        self.route.litellm.port()
    }

    pub(super) fn class(&self) -> Confidentiality {
        self.route.confidential
    }

    pub(super) fn route(&self) -> &ModelRoute {
        &self.route
    }

    /// The request as it goes out: its head is made here in full, and nothing of the tier's is in it.
    ///
    /// # Errors
    /// 503 `litellm-key-missing`.
    pub(super) fn request(
        &self,
        permit: &ModelPermit,
        stream: bool,
        content: Vec<u8>,
    ) -> Result<Request<Body>, Refusal> {
        let authorization = bearer(self.key()?.expose_to_model(permit))?;
        Request::post(self.url(super::COMPLETIONS))
            .header(USER_AGENT, headers::USER_AGENT_VALUE)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, if stream { "text/event-stream" } else { "application/json" })
            // What is compressed could not be searched for the key.
            .header(ACCEPT_ENCODING, "identity")
            .header(AUTHORIZATION, authorization)
            .body(body::full(content))
            .map_err(|_| super::internal())
    }

    /// The question for the provider's own list of models.
    ///
    /// # Errors
    /// 503 `litellm-key-missing`.
    pub(super) fn list_request(&self) -> Result<Request<Body>, Refusal> {
        let authorization = bearer(self.key()?.expose_to_own_question())?;
        Request::get(self.url(LITELLM_PROVIDER_MODELS))
            .header(USER_AGENT, headers::USER_AGENT_VALUE)
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header(AUTHORIZATION, authorization)
            .body(body::empty())
            .map_err(|_| super::internal())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.route.litellm)
    }

    fn key(&self) -> Result<&Secret, Refusal> {
        self.key.as_ref().map_err(|problem| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Denial::new(
                    "litellm-key-missing",
                    format!("the master key of {} cannot be used: {problem}", container(self.class())),
                    format!("run deploy/up.sh again: tier-supervisor writes it to {}", self.route.key_file.display()),
                ),
            )
        })
    }

    pub(super) fn client(&self) -> Pooled {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a call whose permit was stored, and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        _recorded: &Recorded,
    ) -> Result<Response<Incoming>, CallError> {
        match timeout(ANSWER_DEADLINE, self.client().request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(CallError::Unreachable(error)),
            Ok(Err(error)) => Err(CallError::Broken(error)),
            Err(_) => Err(CallError::TimedOut),
        }
    }
}

impl fmt::Debug for LiteLlm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiteLlm").field("route", &self.route).finish_non_exhaustive()
    }
}

/// A key as it is sent.
fn bearer(key: &str) -> Result<HeaderValue, Refusal> {
    let bearer = Zeroizing::new(format!("Bearer {key}"));
    let mut authorization = HeaderValue::from_str(&bearer).map_err(|_| super::internal())?;
    authorization.set_sensitive(true);
    Ok(authorization)
}

/// A client that keeps at most `idle` connections.
fn client(tasks: &Tasks, idle: usize) -> Pooled {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_WITHIN));
    connector.set_nodelay(true);
    Client::builder(Spawner(tasks.clone()))
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_WITHIN)
        .pool_max_idle_per_host(idle)
        .retry_canceled_requests(true)
        .http1_max_buf_size(MOST_ANSWER_HEAD)
        .http1_max_headers(MOST_ANSWER_HEADERS)
        .build(connector)
}

/// Gives the client's connections a name and an owner.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("litellm-connection", OnEnd::Expected, async move {
            future.await;
            Ok(())
        });
    }
}
