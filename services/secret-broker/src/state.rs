//! What the three ingresses share: tiers, principals, secrets, the way out, the bus. Built once from the configuration;
//! nothing here changes afterwards except counters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use assistant_proto::config::{self, BrokerConfig, BrokerTier, Confidentiality, McpServer, PrincipalKind};
use assistant_proto::event::{EventId, Layer, SecretInjected};
use assistant_proto::name::{HostName, PrincipalName, SecretName, TierName};
use http::{HeaderMap, Response};
use policy::TierPolicy;
use service_kit::bus::Bus;
use service_kit::clock;
use service_kit::task::Tasks;
use service_kit::text::harmless_line;
use service_kit::turns::Turns;

use crate::attempt::{Attempt, Left, MOST_HOST};
use crate::authority::{Authority, AuthorityError};
use crate::body::Body;
use crate::connections::Connections;
use crate::denials::Denials;
use crate::identity::{Directory, ListenerId, Principal, Scheme};
use crate::ingress::room::{Room, Rooms};
use crate::mcp::catalogue::Catalogue;
use crate::mcp::seen::{Refused, Seen};
use crate::models::litellm::Models;
use crate::refusal::{Counted, Refusal};
use crate::rewrite::Scrubber;
use crate::secrets::Secrets;
use crate::upstream::{SetupError, Upstream};

/// Why the state could not be built from a configuration.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Problems of the configuration itself.
    #[error("the configuration has problems: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The interception CA.
    #[error("the interception CA cannot be used")]
    Authority(#[from] AuthorityError),
    /// The way to Squid.
    #[error("the way out cannot be set up")]
    Upstream(#[from] SetupError),
    /// A scrubber cannot be built: too many or too long secrets.
    #[error("the scrubber of tier {tier} cannot be built")]
    Scrubber {
        /// Whose.
        tier: TierName,
        /// Why.
        #[source]
        source: crate::rewrite::ScrubberError,
    },
}

/// Everything the ingresses share.
#[derive(Debug)]
pub struct State {
    /// The tiers by name.
    pub tiers: BTreeMap<TierName, Arc<Tier>>,
    /// Who may speak.
    pub directory: Directory,
    /// The secrets.
    pub secrets: Secrets,
    /// The way out.
    pub upstream: Upstream,
    /// Leaves for interception.
    pub authority: Authority,
    /// Where model calls go.
    pub models: Models,
    /// Which turn each tier is in.
    pub turns: Turns,
    /// Where events go.
    pub bus: Bus,
    /// Tells refusals on the bus.
    pub denials: Denials,
    /// Spawns connection tasks.
    pub tasks: Tasks,
    injections: BTreeMap<SecretName, AtomicU64>,
}

/// A tier as the ingresses see it.
#[derive(Debug)]
pub struct Tier {
    /// Its name; also the name of its Squid user.
    pub name: TierName,
    /// Whether requests outside a turn are allowed.
    pub background: bool,
    /// Which model route it has.
    pub confidential: Confidentiality,
    /// What its principals may do.
    pub policy: TierPolicy,
    /// Its MCP servers.
    pub mcp_servers: Vec<McpServer>,
    /// Finds, in answers, every secret that can be put into this tier's requests, and the key of its LiteLLM.
    pub scrubber: Arc<Scrubber>,
    /// By which names the agent calls the tools of its MCP servers.
    pub(crate) catalogue: Catalogue,
    /// What was seen of its MCP servers, for people.
    pub(crate) seen: Seen,
    /// How many connections its containers hold open.
    pub connections: Connections,
    /// Containers of its MCP servers.
    servers: BTreeSet<PrincipalName>,
    /// Where the page about its MCP servers is served, where it has one.
    pub tools_page: Option<PathBuf>,
    /// Its share of the memory for what is parsed.
    pub(crate) room: Room,
}

impl State {
    /// Reads every file the configuration names.
    ///
    /// # Errors
    /// See [`StateError`]. A missing *secret* is not among them: what needs it is refused.
    pub fn open(config: BrokerConfig, bus: Bus, tasks: Tasks) -> Result<Self, StateError> {
        let mut problems = Vec::new();
        let mut policies = BTreeMap::new();
        for tier in &config.tiers {
            match TierPolicy::compile(&tier.name, &tier.rules) {
                Ok(policy) => {
                    policies.insert(tier.name.clone(), policy);
                }
                Err(found) => problems.extend(found.iter().map(ToString::to_string)),
            }
        }
        if !problems.is_empty() {
            return Err(StateError::Config(problems));
        }
        let named: Vec<SecretName> = policies.values().flat_map(TierPolicy::secrets).cloned().collect();
        let injections = named.iter().map(|name| (name.clone(), AtomicU64::new(0))).collect();
        let secrets = Secrets::load(config.common.mode, &config.secrets_dir, named);
        let models = Models::open(config.models, &tasks);
        let principals = config
            .tiers
            .iter()
            .flat_map(|tier| tier.principals.iter().filter_map(|principal| Principal::new(&tier.name, principal)))
            .collect();
        let users = config.tiers.iter().map(|tier| tier.name.as_str());
        let upstream =
            Upstream::new(config.common.mode, config.squid, &config.upstream_roots, &config.squid_users_dir, users)?;
        let authority = Authority::load(&config.intercept_ca_file, &config.intercept_ca_key_file)?;
        let mut tiers = BTreeMap::new();
        let rooms = Rooms::default();
        for tier in config.tiers {
            let Some(policy) = policies.remove(&tier.name) else { continue };
            let tier = Tier::new(tier, policy, &secrets, &models, rooms.share())?;
            tiers.insert(tier.name.clone(), Arc::new(tier));
        }
        Ok(Self {
            tiers,
            directory: Directory::new(principals),
            secrets,
            upstream,
            authority,
            models,
            turns: Turns::new(),
            denials: Denials::new(bus.clone()),
            bus,
            tasks,
            injections,
        })
    }

    /// Who speaks at the model or MCP ingress.
    ///
    /// # Errors
    /// 401 with the reason.
    pub fn authenticate_bearer(
        &self,
        listener: &ListenerId,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<&Principal, Refusal> {
        self.directory.authenticate(listener, peer, headers, Scheme::Bearer)
    }

    /// Who speaks at the proxy.
    ///
    /// # Errors
    /// 407 with the reason.
    pub fn authenticate_proxy(
        &self,
        listener: &ListenerId,
        peer: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<&Principal, Refusal> {
        self.directory.authenticate(listener, peer, headers, Scheme::ProxyBasic)
    }

    /// Whether the tier may do anything now: in a turn, just after one, or always when it says `background: true`.
    ///
    /// # Errors
    /// 403 `outside-turn`.
    pub fn check_turn(&self, tier: &Tier, attempt: &Attempt) -> Result<(), Refusal> {
        policy::decide_turn(&tier.name, tier.background, attempt.turn.attachment).map_err(Refusal::from)
    }

    /// Counts a refusal, exactly once, without answering it (where the protocol has no answer left).
    pub fn count_denied(&self, attempt: &Attempt, refusal: &Refusal) {
        let reason = refusal.denial.reason;
        if let Some(tier) = self.tiers.get(&attempt.tier) {
            tier.show_refused(attempt, reason);
        }
        attempt.span.record("denied", reason);
        attempt.span.record("otel.status_code", "ERROR");
        if refusal.counted == Counted::Here
            && !self.denials.count(attempt.denied(&refusal.denial), attempt.traceparent())
        {
            // Folded with its equals, in the log as well.
            return;
        }
        tracing::info!(
            parent: &attempt.span,
            tier = %attempt.tier,
            principal = attempt.principal.as_ref().map(PrincipalName::as_str),
            layer = attempt.layer.as_str(),
            host = %attempt.host,
            reason,
            trace_id = attempt.trace_id(),
            "refused"
        );
    }

    /// Counts a refusal, exactly once, and makes the answer for it.
    #[must_use]
    pub fn deny(&self, attempt: &Attempt, refusal: &Refusal) -> Response<Body> {
        self.count_denied(attempt, refusal);
        attempt.span.record("http.response.status_code", refusal.status.as_u16());
        refusal.response(attempt.layer, &attempt.trace_id())
    }

    /// Publishes that a request left.
    pub fn allowed(&self, attempt: &Attempt, left: &Left<'_>) {
        attempt.span.record("http.response.status_code", left.status);
        self.bus.emit(&attempt.allowed(left), EventId::unique(), Some(attempt.traceparent()));
    }

    /// Publishes that a secret was put into a request.
    pub fn injected(
        &self,
        attempt: &Attempt,
        principal: &PrincipalName,
        secret: &SecretName,
        host: &HostName,
        rule: &str,
    ) {
        if let Some(count) = self.injections.get(secret) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let event = SecretInjected {
            tier: attempt.tier.clone(),
            principal: principal.clone(),
            secret: secret.clone(),
            host: host.clone(),
            rule: rule.to_owned(),
            trace_id: attempt.trace_id(),
            observed_at: clock::now_rfc3339(),
        };
        self.bus.emit(&event, EventId::unique(), Some(attempt.traceparent()));
    }

    /// How often a secret was put into a request since start.
    #[must_use]
    pub fn injections(&self, secret: &SecretName) -> u64 {
        self.injections.get(secret).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Tier {
    /// For people, where it has to do with its MCP servers: what was refused at their ingress, and what was refused to them.
    fn show_refused(&self, attempt: &Attempt, reason: &'static str) {
        let is_servers = attempt.principal.as_ref().is_some_and(|who| self.servers.contains(who));
        if attempt.layer != Layer::Mcp && !is_servers {
            return;
        }
        self.seen.refused(Refused {
            at: clock::now_rfc3339(),
            who: attempt.principal.as_ref().map(ToString::to_string).unwrap_or_default(),
            what: harmless_line(&attempt.host, MOST_HOST),
            reason,
            trace_id: attempt.trace_id(),
        });
    }

    fn new(
        tier: BrokerTier,
        policy: TierPolicy,
        secrets: &Secrets,
        models: &Models,
        room: Room,
    ) -> Result<Self, StateError> {
        let values = policy
            .secrets()
            .filter_map(|name| secrets.value(name).ok())
            .chain(models.key(tier.confidential))
            .map(|secret| secret.dangerous_expose().as_bytes());
        let scrubber =
            Scrubber::new(values).map_err(|source| StateError::Scrubber { tier: tier.name.clone(), source })?;
        let is_server = |one: &config::Principal| matches!(one.kind, PrincipalKind::McpServer(_));
        Ok(Self {
            background: tier.background,
            confidential: tier.confidential,
            policy,
            connections: Connections::new(&tier.principals),
            catalogue: Catalogue::of(&tier.name, &tier.mcp_servers),
            seen: Seen::new(&tier.mcp_servers),
            servers: tier.principals.iter().filter(|one| is_server(one)).map(|one| one.name.clone()).collect(),
            tools_page: tier.tools_page_socket,
            room,
            name: tier.name,
            mcp_servers: tier.mcp_servers,
            scrubber: Arc::new(scrubber),
        })
    }
}
