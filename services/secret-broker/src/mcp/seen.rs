//! What the ingress has seen of a tier's MCP servers: whether they answer, what they list, the newest calls and refusals.
//! For people (the tier's page, `ListTools`); nothing here decides anything, and it asks nobody.
//!
//! Never holds arguments or results. Every text of a server or of an agent is made harmless and cut before it is kept, and
//! what is kept has a bound, so that nobody can fill the memory by being seen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use assistant_proto::config::McpServer;
use service_kit::clock;
use service_kit::text::{harmless, harmless_line};

/// Calls and refusals that are remembered, each.
pub(crate) const REMEMBERED: usize = 50;
/// Of a tool's name.
const NAME_MOST: usize = 128;
/// Of a tool's description; the agent is told more of it.
const DESCRIPTION_MOST: usize = 500;
/// Of a reason.
const REASON_MOST: usize = 300;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server answered with a result.
    Answered,
    /// The server answered that the tool failed.
    ToolFailed,
    /// The server answered with an error of the protocol.
    Refused,
    /// The server gave no answer that counts.
    NoAnswer,
    /// Whoever asked hung up, or the turn ended.
    Cut,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ToolFailed => "the tool failed",
            Self::Refused => "the server refused",
            Self::NoAnswer => "no answer",
            Self::Cut => "ended before an answer",
        }
    }
}

/// A call of a tool, or a list of tools.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// When it ended, RFC 3339.
    pub(crate) at: String,
    pub(crate) server: String,
    pub(crate) tool: String,
    pub(crate) outcome: Outcome,
    pub(crate) took_millis: u64,
    pub(crate) trace_id: String,
}

/// Something that was refused to the agent at this ingress, or to a server anywhere.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// RFC 3339.
    pub(crate) at: String,
    /// The container; empty where that is not known.
    pub(crate) who: String,
    /// What it wanted: a host, a server or a tool.
    pub(crate) what: String,
    pub(crate) reason: &'static str,
    pub(crate) trace_id: String,
}

/// How a server's last question went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was not asked anything yet.
    #[default]
    Unasked,
    /// It answered then.
    Answered(String),
    /// It did not answer then, for this reason.
    Failed(String, String),
}

/// Whether the agent is offered a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is.
    Offered,
    /// tiers.yaml names others.
    NotAllowed,
    /// Its name or its input schema is none that could be offered.
    Unusable,
    /// It came after the server's session had begun.
    TooLate,
}

/// A tool as its server described it.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) offer: Offer,
}

/// What a server listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed {
    /// RFC 3339; empty before it listed anything.
    pub(crate) at: String,
    pub(crate) tools: Vec<Tool>,
    /// Tools that tiers.yaml allows and that are not among them.
    pub(crate) missing: Vec<String>,
}

/// What was seen of one server.
#[derive(Debug, Default)]
pub(crate) struct SeenServer(Mutex<(Standing, Listed)>);

/// What was seen of a tier's servers, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct Seen {
    servers: Vec<Arc<SeenServer>>,
    calls: Mutex<VecDeque<Call>>,
    refusals: Mutex<VecDeque<Refused>>,
}

impl Tool {
    pub(crate) fn new(name: &str, description: Option<&str>, offer: Offer) -> Self {
        let description = harmless(description.unwrap_or_default(), DESCRIPTION_MOST);
        Self { name: harmless_line(name, NAME_MOST), description, offer }
    }
}

impl SeenServer {
    fn locked(&self) -> MutexGuard<'_, (Standing, Listed)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answered(&self) {
        self.locked().0 = Standing::Answered(clock::now_rfc3339());
    }

    pub(crate) fn failed(&self, why: &str) {
        self.locked().0 = Standing::Failed(clock::now_rfc3339(), harmless_line(why, REASON_MOST));
    }

    /// Takes a list. True when it says something new about tools that are allowed and not there.
    pub(crate) fn listed(&self, tools: Vec<Tool>, missing: Vec<String>) -> bool {
        let listed = &mut self.locked().1;
        let is_new = listed.missing != missing;
        *listed = Listed { at: clock::now_rfc3339(), tools, missing };
        is_new
    }

    pub(crate) fn standing(&self) -> Standing {
        self.locked().0.clone()
    }

    pub(crate) fn last_list(&self) -> Listed {
        self.locked().1.clone()
    }
}

impl Seen {
    pub(crate) fn new(servers: &[McpServer]) -> Self {
        Self {
            servers: servers.iter().map(|_| Arc::default()).collect(),
            calls: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    /// What was seen of the server at that place of the configuration.
    pub(crate) fn server(&self, index: usize) -> Arc<SeenServer> {
        self.servers.get(index).cloned().unwrap_or_default()
    }

    pub(crate) fn called(&self, call: Call) {
        remember(&self.calls, call);
    }

    pub(crate) fn refused(&self, refused: Refused) {
        remember(&self.refusals, refused);
    }

    /// The newest first.
    pub(crate) fn calls(&self) -> Vec<Call> {
        newest(&self.calls)
    }

    /// The newest first.
    pub(crate) fn refusals(&self) -> Vec<Refused> {
        newest(&self.refusals)
    }
}

fn remember<T>(list: &Mutex<VecDeque<T>>, item: T) {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.truncate(REMEMBERED.saturating_sub(1));
    list.push_front(item);
}

fn newest<T: Clone>(list: &Mutex<VecDeque<T>>) -> Vec<T> {
    list.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}
