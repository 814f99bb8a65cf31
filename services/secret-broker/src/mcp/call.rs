//! `tools/call`: whether a call may be made, and what comes of it.

use std::time::Duration;

use assistant_proto::config::McpServer;
use assistant_proto::name::PrincipalName;
use serde_json::{Map, Value};
use service_kit::text::{chain, harmless_line};
use tokio::time::Instant;

use super::called::Called;
use super::catalogue::Meaning;
use super::rpc::{self, Answer, RpcError};
use super::seen::Outcome;
use super::{CALLS_MOST, Ingress, Reply, TOOL_NAME_MOST, result, too_many};
use crate::attempt::Attempt;
use crate::ingress::room::Held;
use crate::journal::{self, Departure};
use crate::refusal::Refusal;
use crate::state::Tier;
use crate::turn::{self, InTurn};

/// ZeroClaw gives up after 120 s; the broker should be the one to say why.
const CALL_WITHIN: Duration = Duration::from_secs(110);

impl Ingress {
    pub(super) async fn call(
        &self,
        attempt: &mut Attempt,
        principal: &PrincipalName,
        mut params: Map<String, Value>,
        held: Held,
    ) -> Result<Reply, RpcError> {
        // Progress tokens and the like: there is nobody to report progress to.
        params.shift_remove("_meta");
        let name = params.shift_remove("name");
        let arguments = params.shift_remove("arguments").filter(|arguments| !arguments.is_null());
        let (Some(Value::String(name)), Some(arguments), true) =
            (name, arguments.map_or_else(|| Some(Map::new()), into_object), params.is_empty())
        else {
            return Err(RpcError { code: rpc::INVALID_PARAMS, ..self.refuse(attempt, &malformed_call()) });
        };
        let meaning = self.tier.catalogue.meaning(&name);
        let is_open = matches!(meaning, Some(Meaning::Open(_)));
        let Some((tool, session)) = meaning.and_then(|(Meaning::Listed(tool) | Meaning::Open(tool))| {
            let session = self.sessions.get(tool.server)?;
            Some((tool, session))
        }) else {
            attempt.aims_at(&name, None);
            return Err(self.refuse(attempt, &not_allowed(&self.tier, &name)));
        };
        let server = session.server();
        attempt.aims_at(server.name.as_str(), Some(server.address.port()));
        let rule = format!("tools/{}/{}", server.name, harmless_line(&tool.name, TOOL_NAME_MOST));
        attempt.span.record("rule", rule.as_str());
        self.state.check_turn(&self.tier, attempt).map_err(|refusal| self.refuse(attempt, &refusal))?;
        let _call = self.calls.try_acquire().map_err(|_| self.refuse(attempt, &too_many("tool calls", CALLS_MOST)))?;
        let began = Instant::now();
        let deadline = began + CALL_WITHIN;
        if is_open {
            if session.has(&tool.name).is_none() {
                let recorded = self.record_list(attempt, principal, server).await?;
                if let Err(error) = session.list(deadline, &recorded).await {
                    tracing::warn!(tier = %self.tier.name, server = %server.name, error = %chain(&error), "tools cannot be listed");
                    return Err(RpcError::new(rpc::INTERNAL, format!("{error}; nothing was done; try again")));
                }
            }
            if session.has(&tool.name) != Some(true) {
                return Err(self.refuse(attempt, &not_there(server, &tool.name)));
            }
        }
        let departure = Departure::of_tool(principal, server.name.as_str(), server.address.port(), &tool.name, &rule);
        let recorded = journal::record(&self.state.bus, attempt, &departure)
            .await
            .map_err(|refusal| self.refuse(attempt, &refusal))?;

        let mut called = Called {
            ingress: self,
            attempt,
            principal,
            server: server.name.as_str(),
            tool: &tool.name,
            began,
            outcome: Outcome::Cut,
            listed: None,
        };
        let mut within = InTurn::of(&self.state.turns, &self.tier, attempt);
        // Dropping the call ends its connection.
        let answered = tokio::select! {
            answered = session.call(&tool.name, arguments, held, deadline, &recorded) => answered,
            () = within.over() => return Err(RpcError::refused(&turn::cut(), &attempt.trace_id())),
        };
        match answered {
            Ok((Ok(result), held)) => {
                called.outcome = if result::is_error(&result) { Outcome::ToolFailed } else { Outcome::Answered };
                Ok(Reply { answer: Answer::Made(result::rebuild(result)), held: Some(held) })
            }
            Ok((Err((code, text)), _)) => {
                called.outcome = Outcome::Refused;
                Err(RpcError::new(code, text))
            }
            Err(error) => {
                called.outcome = Outcome::NoAnswer;
                tracing::warn!(tier = %self.tier.name, server = %server.name, error = %chain(&error), "tool call failed");
                let done = if error.nothing_sent() {
                    "nothing was done; try again"
                } else {
                    "whether the call did something is not known: look before repeating it"
                };
                Err(RpcError::new(rpc::INTERNAL, format!("{error}; {done}")))
            }
        }
    }
}

fn into_object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

fn not_allowed(tier: &Tier, name: &str) -> Refusal {
    let name = harmless_line(name, TOOL_NAME_MOST);
    Refusal::forbidden(
        "tool-not-allowed",
        format!("the tool {name:?} is not among those that tier {} may call", tier.name),
        format!("add it to the tools section of tier {} in tiers.yaml, under the server that has it", tier.name),
    )
}

fn not_there(server: &McpServer, name: &str) -> Refusal {
    let name = harmless_line(name, TOOL_NAME_MOST);
    Refusal::forbidden(
        "tool-not-allowed",
        format!("the MCP server {} did not list the tool {name:?} when its session began", server.name),
        "list the tools, and call one of them; what a server adds later counts once the server has started anew",
    )
}

fn malformed_call() -> Refusal {
    Refusal::bad_request(
        "malformed-call",
        "the parameters of tools/call are not those of a tool call",
        "tools/call takes a name and an object of arguments",
    )
}
