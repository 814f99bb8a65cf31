//! Questions to a person, and what came of them.

use serde::{Deserialize, Serialize};

use super::Event;
use crate::name::{TierName, TurnId};

/// `approval.requested.<tier>`. The code is not part of it: who can read the bus must not be able to approve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRequested {
    /// Whose agent asks.
    pub tier: TierName,
    /// Identifies the request, not the code.
    pub approval: String,
    /// The turn that asks.
    pub turn: TurnId,
    /// What would be done, made harmless.
    pub action: String,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub expires_at: String,
}

impl Event for ApprovalRequested {
    const TYPE: &'static str = "approval.requested";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// What became of an approval request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalOutcome {
    /// The right person said YES with the right code in time.
    Approved,
    /// They said NO.
    Denied,
    /// Nobody answered in time.
    TimedOut,
    /// The question never reached anybody.
    Undeliverable,
    /// The turn that asked was stopped, or ended otherwise, before anybody answered.
    Withdrawn,
}

/// `approval.decided.<tier>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecided {
    /// Whose agent asked.
    pub tier: TierName,
    /// Identifies the request.
    pub approval: String,
    /// The turn that asked.
    pub turn: TurnId,
    /// What came of it.
    pub outcome: ApprovalOutcome,
    /// 32 hex digits.
    pub trace_id: String,
    /// RFC 3339, UTC.
    pub decided_at: String,
}

impl Event for ApprovalDecided {
    const TYPE: &'static str = "approval.decided";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}
