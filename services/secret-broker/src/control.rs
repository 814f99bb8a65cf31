//! `assistant.secret.v1.SecretService`: what operators may ask. Read-only, and never a value.

use std::sync::Arc;

use assistant_proto::config::Confidentiality;
use assistant_proto::name::{PrincipalName, TierName};
use assistant_proto::secret::secret_service_server::{SecretService, SecretServiceServer};
use assistant_proto::secret::{
    ExplainDecisionRequest, ExplainDecisionResponse, ListModelsRequest, ListModelsResponse, ListRemarksRequest,
    ListRemarksResponse, ListRulesRequest, ListRulesResponse, ListSecretsRequest, ListSecretsResponse,
    ListToolsRequest, ListToolsResponse, McpServer, ModelPresence, ModelProvider, NamedModel, Rule, Secret, Tool,
};
use policy::decision::Explanation;
use tonic::{Request, Response, Status};

use crate::models::provider::{Checkup, Standing};
use crate::page::report::{self, Report, Server};
use crate::state::{State, Tier};

/// Of a provider's list, so many are told one by one.
const LISTED_MOST: usize = 256;

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

impl Control {
    fn tier(&self, name: &str) -> Result<&Arc<Tier>, Status> {
        let tier = name.parse::<TierName>().ok().and_then(|name| self.state.tiers.get(&name));
        tier.ok_or_else(|| Status::not_found("no such tier; see TierService/ListTiers"))
    }
}

fn provider(checkup: Checkup) -> ModelProvider {
    let (listed, problem) = match &checkup.standing {
        Standing::Listed(list) => (list.ids(), String::new()),
        Standing::Unasked => (&[][..], "it was not asked yet".to_owned()),
        Standing::NoList(why) | Standing::Failed(why) => (&[][..], why.clone()),
    };
    let models = checkup.models.into_iter().map(|checked| NamedModel {
        name: checked.model.name,
        upstream: checked.model.upstream,
        named_in: checked.model.named_in,
        presence: match checked.listed {
            Some(true) => ModelPresence::Listed,
            Some(false) => ModelPresence::NotListed,
            None => ModelPresence::Unknown,
        }
        .into(),
    });
    ModelProvider {
        confidential: checkup.class == Confidentiality::Required,
        name: checkup.provider,
        has_list: problem.is_empty(),
        problem,
        listed: listed.iter().take(LISTED_MOST).cloned().collect(),
        listed_total: u32::try_from(listed.len()).unwrap_or(u32::MAX),
        models: models.collect(),
        remarks: checkup.remarks,
    }
}

fn server(server: Server) -> McpServer {
    let tools = server.tools.into_iter().map(|tool| Tool {
        name: tool.name,
        description: tool.description,
        offered: tool.offered,
        note: tool.note,
    });
    McpServer {
        name: server.name,
        standing: server.standing,
        source: server.source,
        listed_at: server.listed_at,
        tools: tools.collect(),
        missing: server.missing,
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
        let tier = self.tier(&request.into_inner().tier)?;
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

    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let checkups = self.state.models.checkups(request.into_inner().ask_anew).await;
        Ok(Response::new(ListModelsResponse { providers: checkups.into_iter().map(provider).collect() }))
    }

    async fn list_tools(&self, request: Request<ListToolsRequest>) -> Result<Response<ListToolsResponse>, Status> {
        let report = Report::of(self.tier(&request.into_inner().tier)?).await;
        Ok(Response::new(ListToolsResponse { servers: report.servers.into_iter().map(server).collect() }))
    }

    async fn list_remarks(&self, _: Request<ListRemarksRequest>) -> Result<Response<ListRemarksResponse>, Status> {
        let of_models = self.state.models.checkups(false).await.into_iter().flat_map(|checkup| checkup.remarks);
        let of_tools = self.state.tiers.values().flat_map(|tier| report::remarks(tier));
        Ok(Response::new(ListRemarksResponse { remarks: of_models.chain(of_tools).collect() }))
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
