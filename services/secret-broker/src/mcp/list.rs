//! `tools/list`: which servers are asked, and what of their answers makes up the list.

use std::sync::Arc;
use std::time::Duration;

use assistant_proto::config::{McpServer, ToolRule};
use assistant_proto::name::PrincipalName;
use futures::future::join_all;
use service_kit::text::chain;
use tokio::time::{Instant, timeout_at};

use super::called::Called;
use super::catalogue::Described;
use super::rpc::{self, Answer, RpcError};
use super::seen::Outcome;
use super::session::{Session, SessionError};
use super::{Ingress, LISTS_MOST, Reply, too_many};
use crate::attempt::Attempt;
use crate::journal::{self, Departure, Recorded};

/// ZeroClaw gives `tools/list` 30 s, and then does without the tools for the whole conversation.
const LIST_WITHIN: Duration = Duration::from_secs(20);
/// Between attempts at a server that is not up yet.
const LIST_PAUSE: Duration = Duration::from_millis(250);

impl Ingress {
    /// Every allowed tool of every server that can be asked, or could be before. An error only where no server can: then
    /// the agent should know that it has no tools, and ask again.
    ///
    /// Asking a server is something that a tier does, so it is done in a turn only, and recorded. Outside one the agent is
    /// told what the servers said last, and before they ever spoke that there is nothing: ZeroClaw asks when it starts,
    /// which is no attempt at anything, and again when it builds an agent, which it does in the turn.
    pub(super) async fn list(&self, attempt: &mut Attempt, principal: &PrincipalName) -> Result<Reply, RpcError> {
        let began = Instant::now();
        let deadline = began + LIST_WITHIN;
        let asked: Vec<&Arc<Session>> = self.sessions.iter().filter(|session| offers_any(session)).collect();
        let outside = self.state.check_turn(&self.tier, attempt).err();
        let names: Vec<&str> = asked.iter().map(|session| session.server().name.as_str()).collect();
        let names = names.join(" ");
        attempt.aims_at(&names, None);
        let Ok(Ok(_list)) = timeout_at(deadline, self.lists.acquire()).await else {
            return Err(self.refuse(attempt, &too_many("tool lists", LISTS_MOST)));
        };
        let mut recorded = Vec::new();
        for session in asked.iter().filter(|_| outside.is_none()) {
            recorded.push(self.record_list(attempt, principal, session.server()).await?);
        }
        let mut told = Called {
            ingress: self,
            attempt,
            principal,
            server: if outside.is_some() { "" } else { &names },
            tool: "tools/list",
            began,
            outcome: Outcome::Cut,
            listed: Some(0),
        };
        let mut recorded = recorded.iter();
        let wanted = self.sessions.iter().map(|session| {
            let recorded = if offers_any(session) { recorded.next() } else { None };
            async move {
                let Some(recorded) = recorded else {
                    return if offers_any(session) { session.last_listed() } else { Some(Arc::default()) };
                };
                match list_patiently(session, deadline, recorded).await {
                    Ok(tools) => Some(tools),
                    Err(error) => {
                        tracing::warn!(tier = %self.tier.name, server = %session.server().name, error = %chain(&error), "tools cannot be listed");
                        session.last_listed()
                    }
                }
            }
        });
        let listed = join_all(wanted).await;
        if outside.is_none() && !listed.is_empty() && listed.iter().all(Option::is_none) {
            told.outcome = Outcome::NoAnswer;
            return Err(RpcError::new(rpc::INTERNAL, "no MCP server of this tier can be reached; try again"));
        }
        let size = listed.iter().flatten().flat_map(|tools| tools.iter()).map(|tool| tool.size()).sum();
        let held = self.tier.room.take(size, deadline).await.map_err(|refusal| self.refuse(attempt, &refusal))?;
        let (tools, count) = self.tier.catalogue.describe(&listed).map_err(|_| unwritten())?;
        told.outcome = Outcome::Answered;
        told.listed = Some(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(Reply { answer: Answer::Written(tools), held: Some(held) })
    }

    /// Stores that a server is about to be asked for its tools.
    pub(super) async fn record_list(
        &self,
        attempt: &Attempt,
        principal: &PrincipalName,
        server: &McpServer,
    ) -> Result<Recorded, RpcError> {
        let rule = format!("tools/{}", server.name);
        let departure = Departure::of_list(principal, server.name.as_str(), server.address.port(), &rule);
        journal::record(&self.state.bus, attempt, &departure).await.map_err(|refusal| self.refuse(attempt, &refusal))
    }
}

/// Asks until the deadline: at start the servers come up while ZeroClaw already asks. Only what cannot have reached the
/// server, and a wrapper whose server is not up, is worth another attempt.
async fn list_patiently(
    session: &Session,
    deadline: Instant,
    recorded: &Recorded,
) -> Result<Arc<Vec<Arc<Described>>>, SessionError> {
    loop {
        let error = match session.list(deadline, recorded).await {
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

/// Whether there is anything to ask a server for.
fn offers_any(session: &Session) -> bool {
    session.server().tools != ToolRule::Only(Vec::new())
}

fn unwritten() -> RpcError {
    RpcError::new(rpc::INTERNAL, "the list of tools could not be written; this is a bug of the broker: report it")
}
