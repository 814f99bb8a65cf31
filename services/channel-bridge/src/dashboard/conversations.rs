//! What the page asks about conversations, answered from the bridge's own history. The agent is not asked.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::text::harmless_line;
use tokio::time::timeout;

use super::answers::{self, Answer};
use super::history::{self, Told};
use super::paths::{AGENT, Refusal};
use super::{Shared, frames, markdown};
use crate::envelope::Outcome;
use crate::record::RecordError;

/// For a body, which is at most a name.
const BODY_WITHIN: Duration = Duration::from_secs(10);
const MOST_BODY: usize = 4096;

/// What names a conversation anew.
#[derive(Debug, Deserialize)]
struct NewName {
    name: String,
}

impl Shared {
    pub(super) async fn sessions(&self) -> Result<Value, RecordError> {
        let sessions: Vec<Value> = self
            .history
            .list(&self.tier)
            .await?
            .into_iter()
            .map(|summary| {
                json!({"session_id": summary.id, "session_key": format!("gw_{}", summary.id), "name": summary.name,
                    "created_at": summary.began_at, "last_activity": summary.used_at,
                    "message_count": summary.turns.saturating_mul(2), "agent_alias": AGENT, "channel_id": null})
            })
            .collect();
        Ok(json!({ "sessions": sessions }))
    }

    pub(super) async fn messages(&self, id: &str) -> Result<Value, RecordError> {
        let told = self.history.conversation(&self.tier, id).await?;
        let messages = told.map_or_else(Vec::new, |told| self.shown(told));
        Ok(json!({"session_id": id, "messages": messages, "session_persistence": true}))
    }

    /// A conversation as the page shows it: `user` as it was written, `assistant` as Markdown, all else as it is.
    fn shown(&self, told: Told) -> Vec<Value> {
        let mut messages = Vec::new();
        for seen in told.turns {
            let mut say = |role: &str, content: String| {
                messages.push(json!({"role": role, "content": content, "created_at": seen.asked_at}));
            };
            say("user", seen.text);
            match seen.outcome {
                Some(Outcome::Answered { reply, .. }) => say("assistant", markdown::safe(&reply, &self.reach)),
                Some(failed @ Outcome::Failed { .. }) => say("notice", failed.message()),
                None => continue,
            }
            say("assistant", frames::trace_note(&seen.trace_id));
        }
        messages
    }

    pub(super) async fn rename(&self, id: &str, body: Incoming) -> Answer {
        let read = timeout(BODY_WITHIN, Limited::new(body, MOST_BODY).collect()).await;
        let name = match read {
            Ok(Ok(body)) => serde_json::from_slice::<NewName>(&body.to_bytes()).ok(),
            Ok(Err(_)) | Err(_) => None,
        };
        let name = name.map(|new| harmless_line(new.name.trim(), history::MOST_NAME)).filter(|name| !name.is_empty());
        let Some(name) = name else {
            return answers::problem(StatusCode::BAD_REQUEST, "unusable_name", "the name of a conversation is a text");
        };
        match self.history.rename(&self.tier, id, name).await {
            Ok(true) => answers::json(StatusCode::OK, &json!({"session_id": id, "renamed": true})),
            Ok(false) => answers::refused(Refusal::NoSuch),
            Err(error) => unkept(&error),
        }
    }

    /// What the agent remembers of it stays in the agent's store; the next message begins another session there.
    pub(super) async fn forget(&self, id: &str) -> Result<Value, RecordError> {
        let person = self.person(id.to_owned());
        let stopped = self.terminal.registry.stop(&person).len();
        self.terminal.records.forget_session(&person.conversation).await?;
        let deleted = self.history.forget(&self.tier, id).await?;
        Ok(json!({"deleted": deleted, "session_id": id, "stopped": stopped}))
    }
}

/// JSON, or what became of the records.
pub(super) fn kept(result: Result<Value, RecordError>) -> Answer {
    match result {
        Ok(value) => answers::json(StatusCode::OK, &value),
        Err(error) => unkept(&error),
    }
}

fn unkept(error: &RecordError) -> Answer {
    tracing::error!(%error, "the history of a dashboard cannot be used");
    answers::problem(StatusCode::INTERNAL_SERVER_ERROR, "history_unusable", "the bridge's own records cannot be used")
}
