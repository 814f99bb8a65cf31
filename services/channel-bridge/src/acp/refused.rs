//! What ZeroClaw says when its own policy refuses a tool call, so that a person learns which field of tiers.yaml it is.
//! Pure.
//!
//! ACP has no place for this: ZeroClaw 0.8.7 calls every call "completed" and puts the reason into its output, after
//! `Error: ` (zeroclaw-runtime, `agent/tool_execution.rs`; the sentences are in zeroclaw-config, `policy.rs`, and
//! zeroclaw-tools, `wrappers.rs`). So it is recognised by these sentences, at the start of the output.
//!
//! A program can print the same words. That gains nobody anything: what is told then repeats nothing of the output, and
//! whoever has the agent run a program can as well have it try one that is refused. For the same reason it is a hint and
//! no record: there is no event of it, and no wall depends on it.

use assistant_proto::name::TierName;

/// Before every reason of a failed call.
const FAILED: &str = "Error: ";

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnRefusal {
    /// A command that is not allowed, or is written in a way that cannot be told apart.
    Command,
    /// A command that ZeroClaw counts as dangerous.
    Dangerous,
    /// A path that is not in the workspace.
    Path,
}

impl OwnRefusal {
    /// Reads it from the output of a call.
    #[must_use]
    pub fn read(output: &str) -> Option<Self> {
        let reason = output.strip_prefix(FAILED)?;
        let table = [
            ("Command not allowed by security policy: ", Self::Command),
            ("Command blocked: high-risk command is disallowed by policy", Self::Dangerous),
            ("Path blocked by security policy: ", Self::Path),
            ("Path not allowed by security policy: ", Self::Path),
        ];
        table.iter().find(|(sentence, _)| reason.starts_with(sentence)).map(|(_, refusal)| *refusal)
    }

    /// One line for the person.
    #[must_use]
    pub fn note(self, tier: &TierName) -> String {
        let field = match self {
            Self::Command => "a command; `commands` says which may run, each written plainly",
            Self::Dangerous => {
                "a command that it counts as dangerous; it runs where `commands` names it or `block_high_risk` is false"
            }
            Self::Path => "a path outside its workspace; `workspace_unrestricted` allows those",
        };
        format!("(The agent's own policy refused {field} (tiers.yaml, tier {tier}).)\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn only_the_sentences_themselves_count() {
        for (output, expected) in [
            ("Error: Command not allowed by security policy: rm -rf x", Some(OwnRefusal::Command)),
            ("Error: Command blocked: high-risk command is disallowed by policy", Some(OwnRefusal::Dangerous)),
            ("Error: Path blocked by security policy: /etc/shadow", Some(OwnRefusal::Path)),
            ("Error: Path not allowed by security policy: ../x", Some(OwnRefusal::Path)),
            ("Error: exit status 1", None),
            ("Command not allowed by security policy: rm", None),
            ("I read: Error: Command not allowed by security policy: rm", None),
            ("Denied by user. The operator was asked", None),
            ("", None),
        ] {
            assert_eq!(OwnRefusal::read(output), expected, "{output}");
        }
    }

    #[test]
    fn the_note_is_one_line_and_names_field_and_tier() {
        let tier: TierName = "tasks".parse().unwrap();
        for (refusal, field) in [
            (OwnRefusal::Command, "`commands`"),
            (OwnRefusal::Dangerous, "`block_high_risk`"),
            (OwnRefusal::Path, "`workspace_unrestricted`"),
        ] {
            let note = refusal.note(&tier);
            assert!(note.contains(field) && note.contains("tier tasks"), "{note}");
            assert_eq!((note.lines().count(), note.ends_with('\n')), (1, true), "{note}");
        }
    }
}
