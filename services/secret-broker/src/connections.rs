//! How many connections a tier's containers may hold open at the broker, all ingresses together. Each costs two tasks and
//! some buffers.
//!
//! A tier has [`MOST_OF_TIER`]. Half of them are the agent's own, the other half its MCP servers'. Of these each server
//! has some that nobody else can take; the rest is for who comes first, and one server may hold no more than
//! [`MOST_OF_SERVER`] in all. So servers that open what they can, however many, starve neither the agent nor each other.
//! Who a connection is of is told by its address, which the kernel pins: a cap has to hold before anybody authenticates.

use std::collections::BTreeMap;
use std::sync::Arc;

use assistant_proto::config::{self, PrincipalKind};
use assistant_proto::name::PrincipalName;
use http::StatusCode;
use policy::Denial;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::identity::Network;
use crate::refusal::Refusal;

/// All connections of a tier.
pub const MOST_OF_TIER: usize = 256;
const MOST_OF_NETWORK: usize = MOST_OF_TIER / 2;
/// Connections of one MCP server.
pub const MOST_OF_SERVER: usize = 48;
/// Of these, a server's own, where they go round.
const OWN_OF_SERVER: usize = 16;

/// The places of one tier.
#[derive(Debug)]
pub struct Connections {
    tier: Arc<Semaphore>,
    /// Of the servers' half, what is nobody's own.
    shared: Arc<Semaphore>,
    servers: BTreeMap<PrincipalName, Places>,
}

/// Those of one server.
#[derive(Debug)]
struct Places {
    own: Arc<Semaphore>,
    /// How many of the shared ones it may hold.
    more: Arc<Semaphore>,
}

/// Places that one connection holds until this is dropped.
#[derive(Debug)]
#[must_use = "the places are free again when this is dropped"]
pub struct Admission {
    _place: OwnedSemaphorePermit,
    /// Where the place is a shared one.
    _more: Option<OwnedSemaphorePermit>,
}

/// Whose places are all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Those of this container.
    #[error("the container has as many connections open as it may")]
    Container,
    /// Those of all containers of this network.
    #[error("the containers of this network have as many connections open as they may together")]
    Network,
}

impl Full {
    /// As a refusal.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Denial::new(
                "too-many-connections",
                self.to_string(),
                "close idle connections; the limits are per container and per network of a tier, and fixed for now",
            ),
        )
    }
}

impl Connections {
    /// For a tier with these containers.
    #[must_use]
    pub fn new(principals: &[config::Principal]) -> Self {
        let places = |most| Arc::new(Semaphore::new(most));
        let servers = principals.iter().filter(|principal| matches!(principal.kind, PrincipalKind::McpServer(_)));
        let count = servers.clone().count();
        let own = MOST_OF_NETWORK.checked_div(count).unwrap_or_default().clamp(1, OWN_OF_SERVER);
        let of_server = || Places { own: places(own), more: places(MOST_OF_SERVER.saturating_sub(own)) };
        Self {
            tier: places(MOST_OF_NETWORK),
            shared: places(MOST_OF_NETWORK.saturating_sub(own.saturating_mul(count))),
            servers: servers.map(|server| (server.name.clone(), of_server())).collect(),
        }
    }

    /// Takes places for a connection on a network, of the container whose address it has, if it is anybody's.
    ///
    /// # Errors
    /// See [`Full`].
    pub fn admit(&self, network: Network, principal: Option<&PrincipalName>) -> Result<Admission, Full> {
        let of_server = principal.and_then(|name| self.servers.get(name));
        if let Some(own) = of_server.and_then(|places| Arc::clone(&places.own).try_acquire_owned().ok()) {
            return Ok(Admission { _place: own, _more: None });
        }
        let more = of_server
            .map(|places| Arc::clone(&places.more).try_acquire_owned().map_err(|_| Full::Container))
            .transpose()?;
        let places = match network {
            Network::Tier => &self.tier,
            Network::Tools => &self.shared,
        };
        let place = Arc::clone(places).try_acquire_owned().map_err(|_| Full::Network)?;
        Ok(Admission { _place: place, _more: more })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn connections(servers: &[&str]) -> Connections {
        let principal = |name: &str, kind| config::Principal {
            name: name.parse().unwrap(),
            kind,
            address: "127.0.0.1".parse().unwrap(),
            token_sha256: String::new(),
        };
        let server = |name: &str| PrincipalKind::McpServer(name.parse().unwrap());
        let servers = servers.iter().map(|name| principal(&format!("mcp-tasks-{name}"), server(name)));
        let principals: Vec<_> =
            [principal("zeroclaw-tasks", PrincipalKind::Agent)].into_iter().chain(servers).collect();
        Connections::new(&principals)
    }

    /// Takes what there is to take.
    fn all(connections: &Connections, network: Network, name: &str) -> (Vec<Admission>, Full) {
        let name = name.parse().unwrap();
        let mut held = Vec::new();
        loop {
            match connections.admit(network, Some(&name)) {
                Ok(admission) => held.push(admission),
                Err(full) => return (held, full),
            }
        }
    }

    #[test]
    fn a_greedy_server_starves_nobody() {
        let connections = connections(&["a", "b", "c"]);
        let (a, full) = all(&connections, Network::Tools, "mcp-tasks-a");
        assert_eq!((a.len(), full), (MOST_OF_SERVER, Full::Container));
        let (b, full) = all(&connections, Network::Tools, "mcp-tasks-b");
        assert_eq!((b.len(), full), (MOST_OF_SERVER, Full::Container));
        let (c, full) = all(&connections, Network::Tools, "mcp-tasks-c");
        assert_eq!((c.len(), full), (MOST_OF_NETWORK - 2 * MOST_OF_SERVER, Full::Network));
        assert_eq!(connections.admit(Network::Tools, None).unwrap_err(), Full::Network);
        let (agent, full) = all(&connections, Network::Tier, "zeroclaw-tasks");
        assert_eq!((agent.len(), full), (MOST_OF_NETWORK, Full::Network));
        assert_eq!(a.len() + b.len() + c.len() + agent.len(), MOST_OF_TIER);
        drop(a);
        assert!(connections.admit(Network::Tools, Some(&"mcp-tasks-c".parse().unwrap())).is_ok());
    }

    #[test]
    fn many_greedy_servers_starve_nobody_together() {
        let names: Vec<String> = (0..12).map(|n| format!("s{n}")).collect();
        let connections = connections(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let own = MOST_OF_NETWORK / 12;
        let held: Vec<_> = (0..11).map(|n| all(&connections, Network::Tools, &format!("mcp-tasks-s{n}")).0).collect();
        assert!(held.iter().all(|held| (own..=MOST_OF_SERVER).contains(&held.len())));
        let (last, full) = all(&connections, Network::Tools, "mcp-tasks-s11");
        assert_eq!((last.len(), full), (own, Full::Network), "its own were left to it");
        assert_eq!(held.iter().map(Vec::len).sum::<usize>() + last.len(), MOST_OF_NETWORK);
        assert_eq!(connections.admit(Network::Tools, None).unwrap_err(), Full::Network);
    }
}
