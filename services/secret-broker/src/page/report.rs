//! What the page about a tier's MCP servers says, as one value: the page, `/data.json` and `ListTools` are made from it.
//! Texts of servers came here harmless and cut (`mcp::seen`).

use std::net::SocketAddrV4;
use std::time::Duration;

use assistant_proto::config::{McpServer, ToolRule};
use futures::future::join_all;
use serde::Serialize;
use service_kit::clock;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::mcp::seen::{Call, Offer, Refused, Standing};
use crate::state::Tier;

/// A container of this machine accepts at once, or not at all.
const LOOK_WITHIN: Duration = Duration::from_millis(800);

/// A tier's MCP servers, and what happened lately.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) tier: String,
    /// When it was made, RFC 3339.
    pub(crate) at: String,
    /// What does not fit together, a sentence each.
    pub(crate) remarks: Vec<String>,
    pub(crate) servers: Vec<Server>,
    /// The newest first.
    pub(crate) calls: Vec<CallLine>,
    /// The newest first.
    pub(crate) refusals: Vec<RefusalLine>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// Whether its container accepts connections at this moment.
    pub(crate) accepts: bool,
    /// What became of the last question to it.
    pub(crate) standing: String,
    /// Which line of tiers.yaml says what of it may be called, and what that is.
    pub(crate) source: String,
    pub(crate) rule: String,
    /// RFC 3339; empty before it listed its tools.
    pub(crate) listed_at: String,
    pub(crate) tools: Vec<Tool>,
    /// Allowed, and not there.
    pub(crate) missing: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: String,
    /// Whether the agent is offered it.
    pub(crate) offered: bool,
    /// By which name; else why not.
    pub(crate) note: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct CallLine {
    pub(crate) at: String,
    pub(crate) server: String,
    pub(crate) tool: String,
    pub(crate) outcome: &'static str,
    pub(crate) took_millis: u64,
    pub(crate) trace_id: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct RefusalLine {
    pub(crate) at: String,
    pub(crate) who: String,
    pub(crate) what: String,
    pub(crate) reason: &'static str,
    pub(crate) trace_id: String,
}

impl Report {
    /// As of now.
    pub(crate) async fn of(tier: &Tier) -> Self {
        let accepts = join_all(tier.mcp_servers.iter().map(|server| accepts(server.address))).await;
        let servers = tier.mcp_servers.iter().zip(accepts).enumerate();
        Self {
            tier: tier.name.to_string(),
            at: clock::now_rfc3339(),
            remarks: remarks(tier),
            servers: servers.map(|(index, (server, accepts))| Server::of(tier, index, server, accepts)).collect(),
            calls: tier.seen.calls().into_iter().map(CallLine::from).collect(),
            refusals: tier.seen.refusals().into_iter().map(RefusalLine::from).collect(),
        }
    }
}

/// What does not fit together of a tier's tools, a sentence each.
pub(crate) fn remarks(tier: &Tier) -> Vec<String> {
    let servers = tier.mcp_servers.iter().enumerate();
    let missing = servers.map(|(index, server)| (server, tier.seen.server(index).last_list().missing));
    missing
        .filter(|(_, missing)| !missing.is_empty())
        .map(|(server, missing)| {
            format!(
                "{}: tier {} allows what MCP server {} does not have: {}; write its tools as it calls them, or remove these",
                server.source,
                tier.name,
                server.name,
                missing.join(", ")
            )
        })
        .collect()
}

impl Server {
    fn of(tier: &Tier, index: usize, server: &McpServer, accepts: bool) -> Self {
        let seen = tier.seen.server(index);
        let listed = seen.last_list();
        let tools = listed.tools.into_iter().map(|tool| {
            let name = tier.catalogue.name_of(index, &tool.name);
            let (offered, note) = match (tool.offer, name) {
                (Offer::Offered, Some(name)) => (true, format!("the agent calls it {name}")),
                (Offer::Offered, None) => (false, "another tool has its name".to_owned()),
                (Offer::NotAllowed, _) => (false, "not among those that tiers.yaml allows".to_owned()),
                (Offer::Unusable, _) => (false, "its name or its input schema cannot be offered".to_owned()),
                (Offer::TooLate, _) => (false, "it came after the server's session had begun".to_owned()),
            };
            Tool { name: tool.name, description: tool.description, offered, note }
        });
        Self {
            name: server.name.to_string(),
            accepts,
            standing: match seen.standing() {
                Standing::Unasked => "not asked anything yet: the broker asks in a turn only".to_owned(),
                Standing::Answered(at) => format!("answered at {at}"),
                Standing::Failed(at, why) => format!("failed at {at}: {why}"),
            },
            source: server.source.clone(),
            rule: match &server.tools {
                ToolRule::All => "every tool it has may be called".to_owned(),
                ToolRule::Only(tools) if tools.is_empty() => "none of its tools may be called".to_owned(),
                ToolRule::Only(tools) => format!("may be called: {}", tools.join(", ")),
            },
            listed_at: listed.at,
            tools: tools.collect(),
            missing: listed.missing,
        }
    }
}

impl From<Call> for CallLine {
    fn from(call: Call) -> Self {
        let Call { at, server, tool, outcome, took_millis, trace_id } = call;
        Self { at, server, tool, outcome: outcome.as_str(), took_millis, trace_id }
    }
}

impl From<Refused> for RefusalLine {
    fn from(refused: Refused) -> Self {
        let Refused { at, who, what, reason, trace_id } = refused;
        Self { at, who, what, reason, trace_id }
    }
}

/// Nothing is said on the connection.
async fn accepts(address: SocketAddrV4) -> bool {
    matches!(timeout(LOOK_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_)))
}
