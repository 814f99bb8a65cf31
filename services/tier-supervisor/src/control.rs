//! `assistant.tier.v1.TierService`: what an operator may see and ask for. The only module that names the protobuf types,
//! beside the command line's client.

mod memory;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assistant_proto::config::Confidentiality;
use assistant_proto::tier::tier_service_server::TierService;
use assistant_proto::tier::{
    ApplyTiersRequest, ApplyTiersResponse, CheckFloorRequest, CheckFloorResponse, Container, ContainerState,
    CreateLoginLinksRequest, CreateLoginLinksResponse, ListTiersRequest, ListTiersResponse, LoginLink,
    PlanTiersRequest, PlanTiersResponse, Site, Step, Tier, WatchStackRequest, WatchStackResponse,
};
use futures::{Stream, StreamExt};
use service_kit::host::Health;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::desired::{ContainerSpec, Gate, TierSummary};
use crate::engine::Engine;
use crate::gates::{LinkError, Logins, Standing as GateStanding};
use crate::observed::State;
use crate::plan;
use crate::reconciler::{Apply, LookError, Picture, Stack, Standing};
use crate::vm::Vm;

/// Reports of one round that wait for a reader. More than a round ever has steps; a reader that lags loses reports, not
/// the round.
const REPORTS: usize = 256;
/// The reconciler takes a request between rounds; a round waits for containers at most this long.
const TAKEN_WITHIN: Duration = Duration::from_secs(600);

/// The service.
#[derive(Debug)]
pub struct Control<E, V> {
    stack: Arc<Stack<E, V>>,
    applies: mpsc::Sender<Apply>,
    logins: Arc<Logins>,
    health: Health,
    draining: CancellationToken,
}

impl<E: Engine, V: Vm> Control<E, V> {
    /// The service over a stack.
    #[must_use]
    pub fn new(
        stack: Arc<Stack<E, V>>,
        applies: mpsc::Sender<Apply>,
        logins: Arc<Logins>,
        health: Health,
        draining: CancellationToken,
    ) -> Self {
        Self { stack, applies, logins, health, draining }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<E: Engine, V: Vm> TierService for Control<E, V> {
    async fn list_tiers(&self, _: Request<ListTiersRequest>) -> Result<Response<ListTiersResponse>, Status> {
        let picture = self.stack.watch().borrow().clone();
        let tiers = picture.desired.tiers.iter().map(|summary| Tier {
            containers: summary
                .containers
                .iter()
                .filter_map(|name| picture.desired.container(name))
                .map(|spec| container(&picture, spec))
                .collect(),
            ..tier(summary)
        });
        Ok(Response::new(ListTiersResponse { tiers: tiers.collect() }))
    }

    async fn plan_tiers(&self, _: Request<PlanTiersRequest>) -> Result<Response<PlanTiersResponse>, Status> {
        self.files_are_fine()?;
        let look = self.stack.look().await.map_err(|error| status(&error))?;
        if let Some(conflict) = look.plan.conflicts.first() {
            return Err(Status::failed_precondition(conflict.to_string()));
        }
        Ok(Response::new(PlanTiersResponse { steps: look.plan.steps.iter().map(step).collect() }))
    }

    type ApplyTiersStream = Answers<ApplyTiersResponse>;

    async fn apply_tiers(&self, _: Request<ApplyTiersRequest>) -> Result<Response<Self::ApplyTiersStream>, Status> {
        self.files_are_fine()?;
        let (reports, received) = mpsc::channel(REPORTS);
        match tokio::time::timeout(TAKEN_WITHIN, self.applies.send(Apply { reports })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Status::unavailable("the supervisor is ending")),
            Err(_) => return Err(Status::unavailable("the supervisor is busy with an earlier apply")),
        }
        let answers = ReceiverStream::new(received).map(|report| match report {
            Ok(report) => Ok(ApplyTiersResponse {
                step: Some(step(&report.step)),
                done: report.done,
                total: report.total,
                error: report.error.unwrap_or_default(),
                took_millis: u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
            }),
            Err(problem) => Err(Status::unavailable(problem)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    type CheckFloorStream = Answers<CheckFloorResponse>;

    async fn check_floor(&self, _: Request<CheckFloorRequest>) -> Result<Response<Self::CheckFloorStream>, Status> {
        let verdicts = self.stack.check_floor().await.map_err(|error| status(&error))?;
        let answers = verdicts.into_iter().map(|verdict| {
            Ok(CheckFloorResponse {
                check: verdict.check.to_string(),
                passed: verdict.passed,
                detail: verdict.detail,
                fix: verdict.fix,
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    type WatchStackStream = Answers<WatchStackResponse>;

    async fn watch_stack(&self, _: Request<WatchStackRequest>) -> Result<Response<Self::WatchStackStream>, Status> {
        // The watch gives the current picture first.
        let (health, logins) = (self.health.clone(), Arc::clone(&self.logins));
        let answers = WatchStream::new(self.stack.watch()).map(move |picture| Ok(watched(&picture, &health, &logins)));
        // An open watch must not hold up the end of the service.
        Ok(Response::new(Box::pin(answers.take_until(self.draining.clone().cancelled_owned()))))
    }

    async fn create_login_links(
        &self,
        request: Request<CreateLoginLinksRequest>,
    ) -> Result<Response<CreateLoginLinksResponse>, Status> {
        let wanted = request.into_inner().site;
        let desired = Arc::clone(&self.stack.wanted().desired);
        let sites: Vec<&Gate> = desired.gates.iter().filter(|gate| gate.site().is_some()).collect();
        let one = sites.iter().any(|gate| gate.name == wanted);
        if !one && !wanted.is_empty() {
            let names: Vec<&str> = sites.iter().map(|gate| gate.name.as_str()).collect();
            return Err(Status::not_found(format!("there is no such site; there are: {}", names.join(", "))));
        }
        let mut links = Vec::new();
        for gate in sites.into_iter().filter(|gate| !one || gate.name == wanted) {
            match self.logins.link(gate).await {
                Ok(link) => links.push(LoginLink {
                    site: link.site,
                    url: link.url,
                    expires_at: i64::try_from(link.expires).unwrap_or(i64::MAX),
                }),
                // Of many, those that are not open are told by the status.
                Err(LinkError::NotOpen { .. }) if !one => {}
                Err(error) => return Err(no_link(&error)),
            }
        }
        Ok(Response::new(CreateLoginLinksResponse { links }))
    }
}

impl<E: Engine, V: Vm> Control<E, V> {
    /// Every problem of the files at once.
    fn files_are_fine(&self) -> Result<(), Status> {
        let problems = self.stack.wanted().problems;
        if problems.is_empty() { Ok(()) } else { Err(Status::invalid_argument(problems.join("\n"))) }
    }
}

/// The one map from errors to gRPC's codes.
fn status(error: &LookError) -> Status {
    match error {
        LookError::Engine(engine) if engine.is_unavailable() => Status::unavailable(error.to_string()),
        LookError::Engine(_) => Status::aborted(error.to_string()),
        LookError::Vm(_) => Status::internal(error.to_string()),
    }
}

/// The same for links.
fn no_link(error: &LinkError) -> Status {
    match error {
        LinkError::NoSite { .. } | LinkError::NotOpen { .. } => Status::failed_precondition(error.to_string()),
        LinkError::NoAnswer => Status::unavailable(error.to_string()),
        LinkError::Random => Status::internal(error.to_string()),
    }
}

fn step(step: &plan::Step) -> Step {
    Step { action: step.action.to_string(), reason: step.reason.clone() }
}

/// A tier without its containers.
fn tier(summary: &TierSummary) -> Tier {
    Tier {
        name: summary.name.to_string(),
        identity: summary.identity.clone().unwrap_or_default(),
        containers: Vec::new(),
        model: summary.model.clone(),
        confidential: summary.confidential == Confidentiality::Required,
    }
}

fn watched(picture: &Picture, health: &Health, logins: &Logins) -> WatchStackResponse {
    let (current_step, steps_done, steps_total) = match &picture.progress {
        Some(progress) => (progress.step.clone(), progress.done, progress.total),
        None => (String::new(), 0, 0),
    };
    // What the supervisor itself cannot do yet (streams on NATS) counts as well, once NATS had its chance to come up.
    let idle = picture.progress.is_none();
    let of_ours =
        health.problems().into_iter().map(|(part, problem)| format!("{part}: {problem}")).next().filter(|_| idle);
    WatchStackResponse {
        containers: picture.desired.containers.iter().map(|spec| container(picture, spec)).collect(),
        converged: picture.converged && idle && of_ours.is_none(),
        current_step,
        steps_done,
        steps_total,
        problem: picture.problem.clone().or(of_ours).unwrap_or_default(),
        drill: picture.desired.mode == assistant_proto::config::Mode::Drill,
        file_problems: picture.file_problems.clone(),
        configured_at: seconds(picture.configured_at),
        remarks: picture.desired.remarks.clone(),
        tiers: picture.desired.tiers.iter().map(tier).collect(),
        sites: picture.desired.gates.iter().filter_map(|gate| site(gate, logins)).collect(),
    }
}

/// A gate that is a site, and how it stands.
fn site(gate: &Gate, logins: &Logins) -> Option<Site> {
    let problem = match logins.standing(gate) {
        Some(GateStanding::Open) => String::new(),
        Some(GateStanding::Closed(why)) => why,
        None => "it is being opened".to_owned(),
    };
    Some(Site { name: gate.name.clone(), url: gate.site()?, problem })
}

/// Since 1970.
fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

fn container(picture: &Picture, spec: &ContainerSpec) -> Container {
    let (standing, problem) = picture.standing(spec);
    let state = match standing {
        Standing::Absent => ContainerState::Absent,
        Standing::Starting => ContainerState::Starting,
        Standing::Healthy => ContainerState::Healthy,
        Standing::Unhealthy => ContainerState::Unhealthy,
        Standing::Stopped => ContainerState::Stopped,
    };
    let (memory_bytes, started_at) = match picture.found(spec).map(|found| found.state) {
        Some(State::Running { pid, started_at }) => (memory::resident(pid), seconds(started_at)),
        _ => (0, 0),
    };
    Container {
        name: spec.name.clone(),
        role: spec.role.as_str().to_owned(),
        state: state.into(),
        problem,
        image: spec.image.clone(),
        memory_bytes,
        started_at,
        addresses: spec.networks.iter().map(|at| (at.network.clone(), at.address.to_string())).collect(),
    }
}
