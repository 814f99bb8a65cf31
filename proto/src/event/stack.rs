//! The stack itself: what was changed in it, and whether its walls stand.

use serde::{Deserialize, Serialize};

use super::{Event, Scope};
use crate::name::SCOPE_STACK;

/// `tier.changed.<tier>`: tier-supervisor made something different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierChanged {
    /// What it belongs to.
    pub tier: Scope,
    /// What was done, for example `create container zeroclaw-tasks`.
    pub action: String,
    /// Why.
    pub reason: String,
    /// RFC 3339, UTC.
    pub changed_at: String,
}

impl Event for TierChanged {
    const TYPE: &'static str = "tier.changed";
    fn scope(&self) -> &str {
        self.tier.as_str()
    }
}

/// `floor.checked.stack`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorChecked {
    /// How many checks passed.
    pub passed: u32,
    /// How many failed.
    pub failed: u32,
    /// RFC 3339, UTC.
    pub checked_at: String,
}

impl Event for FloorChecked {
    const TYPE: &'static str = "floor.checked";
    fn scope(&self) -> &str {
        SCOPE_STACK
    }
}

/// `floor.breached.stack`: a wall does not stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorBreached {
    /// The check that failed.
    pub check: String,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub fix: String,
    /// RFC 3339, UTC.
    pub checked_at: String,
}

impl Event for FloorBreached {
    const TYPE: &'static str = "floor.breached";
    fn scope(&self) -> &str {
        SCOPE_STACK
    }
}
