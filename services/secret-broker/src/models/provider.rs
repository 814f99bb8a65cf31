//! What a class's provider has, as far as it is known: asked for by its LiteLLM, which alone has the provider's key and
//! the way there (`pass_through_endpoints` of litellm.yaml). Asked at the start, again when a call fails as if the model
//! were gone, and when an operator wants to know.
//!
//! Nothing of a tier is in the question, so it needs no permit and no turn. It decides nothing: a name that the list does
//! not have is still called, because some hosts serve more than they list; when that fails, the list says why.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assistant_proto::config::{Confidentiality, ModelRoute, UpstreamModel};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use policy::Denial;
use service_kit::text::{chain, harmless_line};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::litellm::LiteLlm;
use super::names::{self, List};

/// LiteLLM gives the provider six seconds.
const ASK_WITHIN: Duration = Duration::from_secs(8);
/// The longest lists have hundreds of entries of some kilobytes; of each only the identifier is kept.
const LIST_MOST: usize = 2 * 1024 * 1024;
/// While nothing is known: LiteLLM takes some ten seconds to start.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Once a list is known. Lists change when the owner changes something, and that is mostly a restart.
const KNOWN_PAUSE: Duration = Duration::from_secs(1800);
/// What is so young is not doubted because a call failed.
const DOUBT_AFTER: Duration = Duration::from_secs(60);
/// For an operator, a good answer of this age is new enough; anything else is asked for again after [`SETTLE`].
const FRESH: Duration = Duration::from_secs(600);
const SETTLE: Duration = Duration::from_secs(2);
/// Of a provider's name.
const PROVIDER_MOST: usize = 200;

/// What is known of a provider's models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was not asked yet.
    Unasked,
    /// These.
    Listed(Arc<List>),
    /// It has no list, so names cannot be checked; with the reason.
    NoList(String),
    /// It could not be asked, or failed; with the reason.
    Failed(String),
}

/// What is known, since when.
#[derive(Debug)]
pub(super) struct Provider {
    known: Mutex<(Standing, Option<Instant>)>,
    /// Held while asking, so that it is asked once however many want to know.
    asking: tokio::sync::Mutex<()>,
    doubted: Notify,
}

impl Default for Provider {
    fn default() -> Self {
        let known = Mutex::new((Standing::Unasked, None));
        Self { known, asking: tokio::sync::Mutex::default(), doubted: Notify::new() }
    }
}

impl Provider {
    fn known(&self) -> MutexGuard<'_, (Standing, Option<Instant>)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn age(&self) -> Option<Duration> {
        self.known().1.map(|at| at.elapsed())
    }
}

/// One of the stack's names, and what is known of the model behind it.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) model: UpstreamModel,
    /// None where it cannot be told.
    pub(crate) listed: Option<bool>,
}

/// A route as an operator sees it.
#[derive(Debug, Clone)]
pub(crate) struct Checkup {
    pub(crate) class: Confidentiality,
    pub(crate) provider: String,
    pub(crate) standing: Standing,
    pub(crate) models: Vec<Checked>,
    /// A sentence for each model that is not there, or that none can be checked.
    pub(crate) remarks: Vec<String>,
}

impl LiteLlm {
    /// Keeps what is known up to date until the service drains.
    pub(super) async fn follow(&self, draining: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let fresh = tokio::select! {
                () = draining.cancelled() => return,
                standing = self.fresh(Duration::ZERO) => standing,
            };
            let next = match fresh {
                Standing::Listed(_) | Standing::NoList(_) => KNOWN_PAUSE,
                Standing::Unasked | Standing::Failed(_) => {
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                    pause
                }
            };
            // Cancel-safe: `notified` keeps what nobody took.
            tokio::select! {
                () = draining.cancelled() => return,
                () = sleep(next) => {}
                () = self.provider.doubted.notified() => {}
            }
        }
    }

    /// What is known and not older than that, else asked for now.
    async fn fresh(&self, not_older: Duration) -> Standing {
        let _asking = self.provider.asking.lock().await;
        if self.provider.age().is_some_and(|age| age < not_older) {
            return self.provider.known().0.clone();
        }
        let standing = self.ask().await;
        self.learn(standing.clone());
        standing
    }

    async fn ask(&self) -> Standing {
        match timeout(ASK_WITHIN, self.ask_list()).await {
            Ok(standing) => standing,
            Err(_) => Standing::Failed(format!("no answer within {} seconds", ASK_WITHIN.as_secs())),
        }
    }

    async fn ask_list(&self) -> Standing {
        let response = match self.question().await {
            Ok(response) => response,
            Err(why) => return Standing::Failed(why),
        };
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                return Standing::NoList(format!("it answered with status {}", head.status.as_u16()));
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Standing::Failed(format!("it refused the stack's key with status {}", head.status.as_u16()));
            }
            status => return Standing::Failed(format!("the question failed with status {}", status.as_u16())),
        }
        let body: Bytes = match Limited::new(body, LIST_MOST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return Standing::Failed("its list broke off, or is longer than is read".to_owned()),
        };
        match List::read(&body) {
            Some(list) if list.is_empty() => Standing::NoList("its list is empty".to_owned()),
            Some(list) => Standing::Listed(Arc::new(list)),
            None => Standing::NoList("what it answered is no list of models".to_owned()),
        }
    }

    /// The head of the answer to the question, or why there is none.
    async fn question(&self) -> Result<http::Response<hyper::body::Incoming>, String> {
        let request = self.list_request().map_err(|refusal| refusal.denial.detail)?;
        self.client().request(request).await.map_err(|error| {
            tracing::debug!(container = super::litellm::container(self.class()), error = %chain(&error), "LiteLLM cannot be asked");
            format!("{} cannot be reached", super::litellm::container(self.class()))
        })
    }

    /// Takes an answer, and says in the log what is new.
    fn learn(&self, standing: Standing) {
        let before = {
            let mut known = self.provider.known();
            known.1 = Some(Instant::now());
            std::mem::replace(&mut known.0, standing.clone())
        };
        if before == standing {
            return;
        }
        let container = super::litellm::container(self.class());
        let remarks = self.remarks(&standing);
        for remark in &remarks {
            tracing::warn!(container, "{remark}");
        }
        if remarks.is_empty() {
            tracing::info!(container, "the provider lists every model that the stack names");
        }
    }

    /// A call failed as if its model were not there: that may be new.
    pub(super) fn doubt(&self) {
        if self.provider.age().is_some_and(|age| age > DOUBT_AFTER) {
            self.provider.doubted.notify_one();
        }
    }

    /// That the provider does not list what stands behind a name, as far as that is known.
    pub(super) fn not_listed(&self, name: &str) -> Option<Denial> {
        let standing = self.provider.known().0.clone();
        let Standing::Listed(list) = &standing else { return None };
        let upstream = &self.route().upstream.iter().find(|model| model.name == name)?.upstream;
        self.missing(list).into_iter().find(|(missing, _)| missing == upstream).map(|(_, denial)| denial)
    }

    /// For each model that is not listed, its name and the sentence about it.
    fn missing(&self, list: &List) -> Vec<(String, Denial)> {
        let route = self.route();
        let mut told: Vec<(String, Denial)> = Vec::new();
        for model in route.upstream.iter().filter(|model| !list.has(&model.upstream)) {
            if told.iter().any(|(upstream, _)| *upstream == model.upstream) {
                continue;
            }
            let of: Vec<_> = route.upstream.iter().filter(|other| other.upstream == model.upstream).collect();
            let denial = names::not_listed(&route.provider, list, &of);
            told.extend(denial.map(|denial| (model.upstream.clone(), denial)));
        }
        told
    }

    fn remarks(&self, standing: &Standing) -> Vec<String> {
        let ModelRoute { provider, upstream, .. } = self.route();
        if upstream.is_empty() {
            return Vec::new();
        }
        let provider = harmless_line(provider, PROVIDER_MOST);
        match standing {
            Standing::Unasked => Vec::new(),
            Standing::Listed(list) => {
                let missing = self.missing(list).into_iter();
                missing.map(|(_, denial)| format!("{}; {}", denial.detail, denial.fix)).collect()
            }
            Standing::NoList(why) => vec![format!(
                "the names of the models at {provider} cannot be checked: {why}; a wrong one is noticed at the first message"
            )],
            Standing::Failed(why) => vec![format!(
                "whether {provider} has the models that the stack names is not known: {why}; it is asked again by itself"
            )],
        }
    }

    /// As an operator sees it: new, or as young as good news may be; with `anew` new in any case.
    pub(super) async fn checkup(&self, anew: bool) -> Checkup {
        let good = matches!(&self.provider.known().0, Standing::Listed(list) if self.missing(list).is_empty());
        let no_list = matches!(&self.provider.known().0, Standing::NoList(_));
        let standing = self.fresh(if (good || no_list) && !anew { FRESH } else { SETTLE }).await;
        let route = self.route();
        let listed = |model: &UpstreamModel| match &standing {
            Standing::Listed(list) => Some(list.has(&model.upstream)),
            _ => None,
        };
        let models =
            route.upstream.iter().map(|model| Checked { listed: listed(model), model: model.clone() }).collect();
        let remarks = self.remarks(&standing);
        let provider = harmless_line(&route.provider, PROVIDER_MOST);
        Checkup { class: self.class(), provider, standing, models, remarks }
    }
}
