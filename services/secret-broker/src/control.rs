//! `assistant.secret.v1.SecretService`: what operators may ask. Read-only, and never a value.

use std::sync::Arc;

use assistant_proto::name::{PrincipalName, TierName};
use assistant_proto::secret::secret_service_server::{SecretService, SecretServiceServer};
use assistant_proto::secret::{
    ExplainDecisionRequest, ExplainDecisionResponse, ListRulesRequest, ListRulesResponse, ListSecretsRequest,
    ListSecretsResponse, Rule, Secret,
};
use policy::decision::Explanation;
use tonic::{Request, Response, Status};

use crate::state::State;

/// The service.
#[derive(Debug)]
pub struct Control {
    state: Arc<State>,
}

impl Control {
    /// Over the broker's state.
    #[must_use]
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// As a gRPC server.
    #[must_use]
    pub fn server(state: Arc<State>) -> SecretServiceServer<Self> {
        SecretServiceServer::new(Self::new(state))
    }
}

#[tonic::async_trait]
impl SecretService for Control {
    async fn list_secrets(&self, _: Request<ListSecretsRequest>) -> Result<Response<ListSecretsResponse>, Status> {
        let secrets = self
            .state
            .secrets
            .names()
            .map(|(name, present)| {
                let mut rules: Vec<String> = Vec::new();
                for tier in self.state.tiers.values() {
                    let using = tier
                        .policy
                        .rules()
                        .iter()
                        .filter(|rule| rule.injection().is_some_and(|injection| injection.secret() == name));
                    rules.extend(using.map(|rule| format!("{}/{}", tier.name, rule.spec().id)));
                }
                Secret { name: name.to_string(), present, rules, injections: self.state.injections(name) }
            })
            .collect();
        Ok(Response::new(ListSecretsResponse { secrets }))
    }

    async fn list_rules(&self, request: Request<ListRulesRequest>) -> Result<Response<ListRulesResponse>, Status> {
        let tier = request.into_inner().tier.parse::<TierName>().ok().and_then(|name| self.state.tiers.get(&name));
        let Some(tier) = tier else {
            return Err(Status::not_found("no such tier; see TierService/ListTiers"));
        };
        let rules = tier
            .policy
            .rules()
            .iter()
            .map(|rule| {
                let spec = rule.spec();
                Rule {
                    id: spec.id.clone(),
                    source: spec.source.clone(),
                    hosts: spec.hosts.clone(),
                    methods: spec.methods.clone(),
                    paths: spec.paths.clone(),
                    secret: rule.injection().map(|injection| injection.secret().to_string()).unwrap_or_default(),
                }
            })
            .collect();
        Ok(Response::new(ListRulesResponse { rules }))
    }

    async fn explain_decision(
        &self,
        request: Request<ExplainDecisionRequest>,
    ) -> Result<Response<ExplainDecisionResponse>, Status> {
        let ExplainDecisionRequest { principal, method, url } = request.into_inner();
        let principal = principal.parse::<PrincipalName>().ok().and_then(|name| self.state.directory.named(&name));
        let tier = principal.and_then(|principal| self.state.tiers.get(&principal.tier));
        let (Some(principal), Some(tier)) = (principal, tier) else {
            return Err(Status::not_found("no such principal; it is a container's name, for example mcp-tasks-marvin"));
        };
        let request = policy::Request::parse_url(&method, &url)
            .map_err(|denial| Status::invalid_argument(format!("{}; {}", denial.detail, denial.fix)))?;
        let Explanation { allowed, rule, source, reason, fix } =
            policy::decision::explain(&tier.policy, &principal.name, &request);
        let mut response = ExplainDecisionResponse { allowed, rule, source, reason, fix };
        // A secret that cannot be used denies as well; the same words as the relay's.
        if let Ok(permit) = policy::decide(&tier.policy, &principal.name, &request, policy::Carried::nothing())
            && let Some(injection) = permit.injection()
            && let Err(problem) = self.state.secrets.value(injection.secret())
        {
            let refusal = self.state.secrets.refusal(injection.secret(), &problem.to_string());
            response.allowed = false;
            response.reason = format!("{}: {}", refusal.denial.reason, refusal.denial.detail);
            response.fix = refusal.denial.fix;
        }
        Ok(Response::new(response))
    }
}
