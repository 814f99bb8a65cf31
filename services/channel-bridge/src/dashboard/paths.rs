//! What a request to a dashboard is for. Pure.
//!
//! The list is closed: what is not named here is refused. Nothing named here writes to the agent, reads its
//! configuration, or reaches it outside a turn; of what is forwarded, the target is a constant.

use hyper::{Method, Uri};

use crate::route;

/// The agent's name in every tier's configuration.
pub const AGENT: &str = "default";
/// Where a person begins.
pub const HOME: &str = "/agent/default";
/// First words of the addresses that the page's own script understands (0.8.7). All of them are the same page.
const PAGES: &[&str] = &[
    "agent",
    "agents",
    "tools",
    "cron",
    "skills",
    "sops",
    "runs",
    "integrations",
    "plugins",
    "memory",
    "config",
    "setup",
    "logs",
    "doctor",
    "pairing",
    "canvas",
    "acp-console",
    "quickstart",
];

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To where a person begins.
    Home,
    /// The page.
    Page,
    /// A file of this name.
    File(String),
    /// Whether a login is asked for: the gate has done that.
    Health,
    /// The names of the agents: one.
    Agents,
    /// What the list of agents shows of it.
    AgentShown,
    /// Asked from the agent.
    Forward(Forwarded),
    /// The conversations there are.
    Sessions,
    /// What was said in one.
    Messages(String),
    /// A name for one.
    Rename(String),
    /// Forgets one.
    Forget(String),
    /// Stops what runs in one.
    Stop(String),
    /// The chat of one.
    Chat(String),
    /// None of these.
    Refused(Refusal),
}

/// What is asked from the agent: to be read, and nothing a person has to be shown to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// Its model, how long it has been running.
    Status,
    /// How its parts are.
    Health,
    /// Its tools.
    Tools,
    /// What it believes to have spent.
    Cost,
}

impl Forwarded {
    /// The path at the agent's gateway.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Self::Status => "/api/status?agent=default",
            Self::Health => "/api/health",
            Self::Tools => "/api/tools?agent=default",
            Self::Cost => "/api/cost",
        }
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A part of ZeroClaw's dashboard that is not open here.
    Closed,
    /// Nothing of that name.
    NoSuch,
    /// The right address with another method.
    Method,
    /// Not addressed to this site, or sent by a page of another.
    Foreign,
    /// A conversation or an agent that cannot be meant.
    Unusable,
    /// More at once than anybody opens.
    Busy,
}

impl Refusal {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 6] = [Self::Closed, Self::NoSuch, Self::Method, Self::Foreign, Self::Unusable, Self::Busy];

    /// Status, stable code, and words for a person.
    #[must_use]
    pub fn told(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Closed => (
                403,
                "closed_here",
                "this stack does not open this part of ZeroClaw's dashboard: settings come from tiers.yaml, and the \
                 agent works only inside turns",
            ),
            Self::NoSuch => (404, "no_such_page", "there is nothing of that name here; begin at /agent/default"),
            Self::Method => (405, "method_not_allowed", "this address takes another method"),
            Self::Foreign => (
                403,
                "not_from_this_site",
                "the request came from another site; open the dashboard by the link that tier-supervisor login shows",
            ),
            Self::Unusable => (400, "unusable_name", "the name of the conversation or of the agent cannot be used"),
            Self::Busy => (503, "too_many", "too many connections to this dashboard; close a few of its pages"),
        }
    }
}

/// Reads a request line.
#[must_use]
pub fn way(method: &Method, uri: &Uri) -> Way {
    // Browsers send the origin form; whatever else is meant for a proxy.
    if uri.scheme().is_some() || uri.authority().is_some() {
        return Way::Refused(Refusal::Foreign);
    }
    let reads = *method == Method::GET || *method == Method::HEAD;
    let reading = |way: Way| if reads { way } else { Way::Refused(Refusal::Method) };
    let path = uri.path();
    if let Some(name) = path.strip_prefix("/_app/") {
        return reading(Way::File(name.to_owned()));
    }
    let mut words = path.strip_prefix('/').unwrap_or_default().split('/');
    match (words.next().unwrap_or_default(), words.next(), words.next(), words.next(), words.next()) {
        ("", None, ..) => reading(Way::Home),
        ("health", None, ..) => reading(Way::Health),
        ("ws", Some("chat"), None, ..) => reading(chat(uri.query().unwrap_or_default())),
        ("api", Some("status"), None, ..) => reading(Way::Forward(Forwarded::Status)),
        ("api", Some("health"), None, ..) => reading(Way::Forward(Forwarded::Health)),
        ("api", Some("tools"), None, ..) => reading(Way::Forward(Forwarded::Tools)),
        ("api", Some("cost"), None, ..) => reading(Way::Forward(Forwarded::Cost)),
        // The two questions about the configuration that lead to the chat; the answers are ours, the agent is not asked.
        ("api", Some("config"), Some("map-keys"), None, _) if uri.query() == Some("path=agents") => {
            reading(Way::Agents)
        }
        ("api", Some("config"), Some("list"), None, _) if uri.query() == Some("prefix=agents.default") => {
            reading(Way::AgentShown)
        }
        ("api", Some("sessions"), None, ..) => reading(Way::Sessions),
        ("api", Some("sessions"), Some("running"), ..) => Way::Refused(Refusal::Closed),
        ("api", Some("sessions"), Some(id), what, None) => session(method, id, what),
        ("api" | "ws" | "acp" | "admin" | "pair" | "webhook" | "hooks" | "metrics" | "sop", ..) => {
            Way::Refused(Refusal::Closed)
        }
        (first, ..) if PAGES.contains(&first) => reading(Way::Page),
        _ => Way::Refused(Refusal::NoSuch),
    }
}

fn session(method: &Method, id: &str, what: Option<&str>) -> Way {
    if !usable(id) {
        return Way::Refused(Refusal::Unusable);
    }
    let id = id.to_owned();
    match (what, method) {
        (Some("messages"), &Method::GET) => Way::Messages(id),
        (Some("abort"), &Method::POST) => Way::Stop(id),
        (None, &Method::PUT) => Way::Rename(id),
        (None, &Method::DELETE) => Way::Forget(id),
        (Some("messages" | "abort") | None, _) => Way::Refused(Refusal::Method),
        (Some(_), _) => Way::Refused(Refusal::Closed),
    }
}

/// `agent=default&session_id=<id>`; a token or a label that a client sends along means nothing here.
fn chat(query: &str) -> Way {
    let mut session = None;
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "session_id" if session.is_none() && usable(value) => session = Some(value.to_owned()),
            "session_id" => return Way::Refused(Refusal::Unusable),
            "agent" | "agent_alias" | "agentAlias" if value != AGENT => return Way::Refused(Refusal::Unusable),
            _ => {}
        }
    }
    session.map_or(Way::Refused(Refusal::Unusable), Way::Chat)
}

fn usable(id: &str) -> bool {
    !id.is_empty() && route::conversation(id, "").is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn get(target: &str) -> Way {
        way(&Method::GET, &target.parse().unwrap())
    }

    #[test]
    fn what_the_chat_needs_is_open() {
        assert_eq!(get("/"), Way::Home);
        for page in ["/agent/default", "/agents", "/config/agents/x", "/agent/default?x=1"] {
            assert_eq!(get(page), Way::Page, "{page}");
        }
        assert_eq!(get("/_app/assets/a.js"), Way::File("assets/a.js".to_owned()));
        assert_eq!(get("/health"), Way::Health);
        assert_eq!(get("/api/status?agent=default"), Way::Forward(Forwarded::Status));
        assert_eq!(get("/api/status?agent=../../api/config"), Way::Forward(Forwarded::Status));
        assert_eq!(get("/api/config/map-keys?path=agents"), Way::Agents);
        assert_eq!(get("/api/config/list?prefix=agents.default"), Way::AgentShown);
        assert_eq!(get("/api/sessions"), Way::Sessions);
        assert_eq!(get("/api/sessions/a-1/messages"), Way::Messages("a-1".to_owned()));
        assert_eq!(get("/ws/chat?session_id=a-1&agent=default&token=x"), Way::Chat("a-1".to_owned()));
        let session = |method: Method, path: &str| way(&method, &path.parse().unwrap());
        assert_eq!(session(Method::POST, "/api/sessions/a/abort"), Way::Stop("a".to_owned()));
        assert_eq!(session(Method::PUT, "/api/sessions/a"), Way::Rename("a".to_owned()));
        assert_eq!(session(Method::DELETE, "/api/sessions/a"), Way::Forget("a".to_owned()));
    }

    #[test]
    fn everything_else_is_closed() {
        for path in [
            "/api/config",
            "/api/config/list",
            "/api/config/list?prefix=agents.default&prefix=gateway",
            "/api/config/list?prefix=providers.models",
            "/api/config/prop?path=agents.default.model_provider",
            "/api/config/map-keys?path=gateway",
            "/api/config/map-keys?path=agents&path=gateway",
            "/api/cron",
            "/api/plugins",
            "/api/memory",
            "/api/personality",
            "/api/logs",
            "/api/events",
            "/api/pair",
            "/api/devices",
            "/api/sessions/running",
            "/api/sessions/a/state",
            "/api/agents/default/workspace/read?path=x",
            "/api/version/check",
            "/api/status/../config",
            "/api",
            "/api/",
            "/ws/nodes",
            "/ws/canvas/a",
            "/ws",
            "/acp",
            "/acp?agent=default",
            "/admin/shutdown",
            "/pair",
            "/pair/code",
            "/webhook",
            "/hooks/claude-code",
            "/metrics",
            "/sop/x",
        ] {
            assert_eq!(get(path), Way::Refused(Refusal::Closed), "{path}");
        }
        for path in ["//", "/x", "/_app", "/%61pi/config", "/API/config", "/index.html", "/agentx", "/.", "/.."] {
            assert_eq!(get(path), Way::Refused(Refusal::NoSuch), "{path}");
        }
        for path in [
            "/api/sessions/a%2fb/messages",
            "/api/sessions//messages",
            "/ws/chat",
            "/ws/chat?agent=default",
            "/ws/chat?session_id=a&session_id=b",
            "/ws/chat?session_id=a&agent=other",
            "/ws/chat?session_id=a/b",
        ] {
            assert_eq!(get(path), Way::Refused(Refusal::Unusable), "{path}");
        }
        assert_eq!(get("http://evil.example/api/status"), Way::Refused(Refusal::Foreign));
        for (method, path) in [
            (Method::POST, "/api/status"),
            (Method::PATCH, "/api/sessions/a"),
            (Method::POST, "/api/sessions/a/messages"),
            (Method::GET, "/api/sessions/a/abort"),
            (Method::POST, "/agent/default"),
            (Method::PUT, "/_app/assets/a.js"),
            (Method::POST, "/ws/chat?session_id=a"),
        ] {
            assert_eq!(way(&method, &path.parse().unwrap()), Way::Refused(Refusal::Method), "{method} {path}");
        }
        for method in [Method::PUT, Method::PATCH, Method::POST, Method::DELETE, Method::OPTIONS] {
            for path in ["/api/config", "/api/config/prop", "/api/cron", "/api/upload", "/admin/reload"] {
                assert_eq!(way(&method, &path.parse().unwrap()), Way::Refused(Refusal::Closed), "{method} {path}");
            }
        }
    }
}
