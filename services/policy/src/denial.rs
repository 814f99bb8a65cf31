//! Why something is refused, in three forms: for programs, for people, and as what to change.

/// A refusal. Made by policy for what rules do not allow, and by the doors for what they do not understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Stable code in kebab case, for example `host-not-allowed`.
    pub reason: &'static str,
    /// One sentence: what was attempted and why it was refused.
    pub detail: String,
    /// The smallest change that would allow it, or why nothing will.
    pub fix: String,
}

impl Denial {
    /// A refusal.
    #[must_use]
    pub fn new(reason: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), fix: fix.into() }
    }
}
