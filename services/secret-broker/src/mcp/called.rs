//! The event of a tool call, or of a list of tools.

use assistant_proto::event::{EventId, ToolCalled};
use assistant_proto::name::PrincipalName;
use service_kit::clock;
use service_kit::text::harmless_line;
use tokio::time::Instant;

use super::seen::{Call, Outcome};
use super::{Ingress, TOOL_NAME_MOST};
use crate::attempt::Attempt;

/// Publishes a tool call, or a list of tools, when it is dropped, so that a caller who hangs up is counted too.
pub(super) struct Called<'a> {
    pub(super) ingress: &'a Ingress,
    pub(super) attempt: &'a Attempt,
    pub(super) principal: &'a PrincipalName,
    pub(super) server: &'a str,
    pub(super) tool: &'a str,
    pub(super) began: Instant,
    pub(super) outcome: Outcome,
    /// Of a list, how many tools were told.
    pub(super) listed: Option<u64>,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        let took_millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Outside a turn a list is told from memory, and no server is called.
        if !self.server.is_empty() {
            self.ingress.tier.seen.called(Call {
                at: clock::now_rfc3339(),
                server: self.server.to_owned(),
                tool: harmless_line(self.tool, TOOL_NAME_MOST),
                outcome: self.outcome,
                took_millis,
                trace_id: self.attempt.trace_id(),
            });
        }
        let event = ToolCalled {
            tier: self.attempt.tier.clone(),
            principal: self.principal.clone(),
            server: self.server.to_owned(),
            tool: harmless_line(self.tool, TOOL_NAME_MOST),
            succeeded: self.outcome == Outcome::Answered,
            turn: self.attempt.turn.turn.clone(),
            trace_id: self.attempt.trace_id(),
            took_millis,
            listed: self.listed,
            observed_at: clock::now_rfc3339(),
        };
        self.ingress.state.bus.emit(&event, EventId::unique(), Some(self.attempt.traceparent()));
    }
}
