//! Calls that an agent makes: of its model, and of its tools.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Event, Measure, Work};
use crate::config::Confidentiality;
use crate::name::{PrincipalName, TierName, TurnId};

/// `model.called.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCalled {
    /// Whose call it was.
    pub tier: TierName,
    /// The container.
    pub principal: PrincipalName,
    /// Model name as the tier knows it.
    pub model: String,
    /// The class of the route it went by; none in events from before there were classes.
    #[serde(default)]
    pub confidential: Option<Confidentiality>,
    /// Where LiteLLM says it went (`x-litellm-model-api-base`), made harmless; empty where it does not say.
    #[serde(default)]
    pub api_base: String,
    /// Upstream status; 0 when it never answered.
    pub status: u16,
    /// The turn it was attached to.
    pub turn: Option<TurnId>,
    /// 32 hex digits.
    pub trace_id: String,
    /// How long until the last byte, in milliseconds.
    pub took_millis: u64,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for ModelCalled {
    const TYPE: &'static str = "model.called";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }

    fn measure(&self) -> Measure<'_> {
        Measure::Finished {
            work: Work::ModelCall,
            took: Some(Duration::from_millis(self.took_millis)),
            succeeded: (200..300).contains(&self.status),
        }
    }
}

/// `tool.called.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCalled {
    /// Whose call it was.
    pub tier: TierName,
    /// The container.
    pub principal: PrincipalName,
    /// MCP server.
    pub server: String,
    /// Tool name.
    pub tool: String,
    /// Whether the server answered without an error.
    pub succeeded: bool,
    /// The turn it was attached to.
    pub turn: Option<TurnId>,
    /// 32 hex digits.
    pub trace_id: String,
    /// How long it took, in milliseconds.
    pub took_millis: u64,
    /// Of a list of tools that was asked for, how many were told; none of a call. `tool` is `tools/list` then, and
    /// `server` has the names of all servers that were asked, separated by blanks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<u64>,
    /// RFC 3339, UTC.
    pub observed_at: String,
}

impl Event for ToolCalled {
    const TYPE: &'static str = "tool.called";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }

    fn measure(&self) -> Measure<'_> {
        if self.listed.is_some() {
            return Measure::Nothing;
        }
        Measure::Finished {
            work: Work::ToolCall,
            took: Some(Duration::from_millis(self.took_millis)),
            succeeded: self.succeeded,
        }
    }
}
