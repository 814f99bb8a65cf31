//! The frames of the dashboard's chat, as zeroclaw-gateway 0.8.7 (`ws.rs`) and its page speak them: what a page sends, read,
//! and what becomes of a turn, written. Pure but for what a conversation has on its screen.

use std::collections::{HashMap, VecDeque};

use assistant_proto::event::ApprovalOutcome;
use serde::Deserialize;
use serde_json::{Value, json};

use super::markdown;
use crate::acp::message::ToolStatus;
use crate::approvals::{ApprovalId, Code};
use crate::envelope::Update;
use crate::reply::links::Reach;

/// Tool calls that are told apart at a time.
const MOST_TOOLS: usize = 256;

/// What a page sends. Fields that newer pages add mean nothing here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Said {
    /// Other clients introduce themselves; the page does not.
    Connect {},
    /// A message of the person.
    Message {
        /// Its text.
        content: String,
    },
    /// An answer to a question.
    ApprovalResponse {
        /// Which question.
        request_id: String,
        /// What it is answered with.
        decision: Choice,
    },
}

/// The three buttons of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// This once.
    Approve,
    /// No.
    Deny,
    /// For good; counts as this once here.
    Always,
}

impl Said {
    /// Reads a frame.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// What is on a conversation's screen.
#[derive(Debug, Default)]
pub struct Screen {
    /// Questions that were shown and can be answered.
    asked: HashMap<ApprovalId, Code>,
    /// Tool calls that are shown as running, by name; the page tells them apart by a number.
    tools: HashMap<String, VecDeque<String>>,
    running: usize,
    numbered: u64,
}

impl Screen {
    /// The code of a question that is shown.
    #[must_use]
    pub fn code(&self, request: &str) -> Option<Code> {
        self.asked.iter().find(|(approval, _)| approval.as_str() == request).map(|(_, code)| code.clone())
    }

    /// What the page is sent for an update.
    #[must_use]
    pub fn show(&mut self, update: Update, reach: &Reach) -> Vec<Value> {
        match update {
            // The person's own words are there already.
            Update::Accepted { .. } => Vec::new(),
            Update::Queued => {
                vec![note("The tier is busy with another message. This one waits its turn."), working()]
            }
            Update::Text(text) => vec![json!({"type": "chunk", "content": text})],
            Update::ToolCall { title, status } => self.tool(title, status).into_iter().collect(),
            Update::Ask { approval, action, code, expires_in } => {
                if self.asked.insert(approval.clone(), code).is_some() {
                    return Vec::new();
                }
                let tool = action.lines().next().unwrap_or_default().to_owned();
                vec![json!({"type": "approval_request", "request_id": approval.as_str(), "tool": tool,
                    "arguments_summary": action, "timeout_secs": expires_in.as_secs()})]
            }
            Update::Decided { code, outcome } => {
                let before = self.asked.len();
                self.asked.retain(|_, asked| !asked.matches(&code));
                // Told once, however many turns of the conversation are watched.
                if self.asked.len() == before {
                    return Vec::new();
                }
                match outcome {
                    ApprovalOutcome::Approved | ApprovalOutcome::Denied | ApprovalOutcome::Withdrawn => Vec::new(),
                    ApprovalOutcome::TimedOut => {
                        vec![note("Nobody answered in time: it counts as denied."), working()]
                    }
                    ApprovalOutcome::Undeliverable => {
                        vec![note("The question could not be shown in time: it counts as denied."), working()]
                    }
                }
            }
            Update::Ended { turn, reply, .. } if turn.is_empty() => vec![note(&reply)],
            Update::Ended { trace_id, reply, stop_reason, .. } => {
                let reply =
                    if reply.trim().is_empty() && stop_reason == "cancelled" { "Stopped.".into() } else { reply };
                let done = json!({"type": "done", "full_response": markdown::safe(&reply, reach)});
                self.over(done, &trace_id)
            }
            Update::Failed { trace_id, reason, fix, .. } => {
                let error = json!({"type": "error", "message": format!("{reason}. {fix}")});
                if trace_id.is_empty() { vec![error] } else { self.over(error, &trace_id) }
            }
        }
    }

    /// The end of a turn: what is left of it goes from the screen, and the person is told where to look it up.
    fn over(&mut self, last: Value, trace_id: &str) -> Vec<Value> {
        let mut frames: Vec<Value> = Vec::new();
        for (name, ids) in self.tools.drain() {
            frames.extend(ids.into_iter().map(|id| tool_result(&name, &id, "no result was seen")));
        }
        self.running = 0;
        // Takes a question off the screen that can no longer be answered.
        frames.push(json!({"type": "aborted"}));
        frames.push(last);
        frames.push(json!({"type": "message", "content": trace_note(trace_id)}));
        frames
    }

    fn tool(&mut self, name: String, status: ToolStatus) -> Option<Value> {
        if status == ToolStatus::Pending {
            if self.running >= MOST_TOOLS {
                return None;
            }
            self.running = self.running.saturating_add(1);
            self.numbered = self.numbered.saturating_add(1);
            let id = format!("tool-{}", self.numbered);
            self.tools.entry(name.clone()).or_default().push_back(id.clone());
            return Some(json!({"type": "tool_call", "id": id, "name": name, "args": {}}));
        }
        let id = self.tools.get_mut(&name).and_then(VecDeque::pop_front)?;
        self.running = self.running.saturating_sub(1);
        Some(tool_result(&name, &id, status.as_str()))
    }
}

/// How a trace is named in a conversation. The person's command line and Jaeger's page take it as it is.
#[must_use]
pub fn trace_note(trace_id: &str) -> String {
    format!("Trace {}", markdown::code(trace_id))
}

/// Tells a page that something is under way: one that has just come, and one that was sent a note, which it takes for the
/// end of it.
#[must_use]
pub fn working() -> Value {
    json!({"type": "thinking", "content": ""})
}

/// Something the bridge itself says. It may quote nothing of an agent.
#[must_use]
pub fn note(text: &str) -> Value {
    json!({"type": "message", "content": text})
}

fn tool_result(name: &str, id: &str, output: &str) -> Value {
    json!({"type": "tool_result", "id": id, "name": name, "output": output})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use assistant_proto::name::TurnId;

    use super::*;

    #[test]
    fn frames_of_the_page() {
        assert_eq!(Said::parse(r#"{"type":"message","content":"a"}"#), Some(Said::Message { content: "a".to_owned() }));
        assert_eq!(
            Said::parse(r#"{"type":"approval_response","request_id":"x","decision":"deny"}"#),
            Some(Said::ApprovalResponse { request_id: "x".to_owned(), decision: Choice::Deny })
        );
        assert_eq!(Said::parse(r#"{"type":"connect","device_name":"x"}"#), Some(Said::Connect {}));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"type":"message"}"#,
            r#"{"type":"shell","content":"a"}"#,
            r#"{"type":"approval_response","request_id":"x","decision":"allow"}"#,
        ] {
            assert_eq!(Said::parse(bad), None, "{bad}");
        }
    }

    fn types(frames: &[Value]) -> Vec<&str> {
        frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_turn_ends_with_its_answer_and_its_trace() {
        let mut screen = Screen::default();
        let reach = Reach::default();
        let turn = TurnId::generate();
        let started = screen.show(Update::ToolCall { title: "shell".into(), status: ToolStatus::Pending }, &reach);
        let again = screen.show(Update::ToolCall { title: "shell".into(), status: ToolStatus::Pending }, &reach);
        let over = screen.show(Update::ToolCall { title: "shell".into(), status: ToolStatus::Completed }, &reach);
        assert_eq!((&started[0]["id"], &over[0]["type"]), (&over[0]["id"], &json!("tool_result")));
        let ended = Update::Ended {
            turn: turn.to_string(),
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            reply: "see [x](https://evil.example)".into(),
            stop_reason: "end_turn".into(),
        };
        let frames = screen.show(ended, &reach);
        assert_eq!(types(&frames), ["tool_result", "aborted", "done", "message"]);
        assert_eq!(frames[0]["id"], again[0]["id"]);
        assert!(frames[2]["full_response"].as_str().unwrap().contains("`hxxps://evil[.]example`"));
        assert_eq!(frames[3]["content"], "Trace `0af7651916cd43dd8448eb211c80319c`");
    }

    #[test]
    fn a_question_is_shown_once_and_leaves_the_screen() {
        let mut screen = Screen::default();
        let reach = Reach::default();
        let (approval, code) = (ApprovalId::generate(), Code::parse("70KM").unwrap());
        let ask = Update::Ask {
            approval: approval.clone(),
            action: "Approve shell?\ncommand: ls".into(),
            code: code.clone(),
            expires_in: Duration::from_secs(600),
        };
        let frames = screen.show(ask.clone(), &reach);
        assert_eq!(frames[0]["timeout_secs"], 600);
        assert!(!frames[0].to_string().contains("70KM"), "the page needs no code");
        assert!(screen.show(ask, &reach).is_empty());
        assert!(screen.code(approval.as_str()).is_some() && screen.code("other").is_none());
        let decided = Update::Decided { code, outcome: ApprovalOutcome::TimedOut };
        assert_eq!(types(&screen.show(decided.clone(), &reach)), ["message", "thinking"]);
        assert!(screen.show(decided, &reach).is_empty() && screen.code(approval.as_str()).is_none());
    }
}
