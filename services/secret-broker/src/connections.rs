//! How many connections a tier's containers may hold open at the broker, all ingresses together. Each costs two tasks and
//! some buffers.
//!
//! A tier has [`MOST_OF_TIER`]. Half of them are the agent's own, the other half its MCP servers', of which one may hold
//! no more than [`MOST_OF_SERVER`]: so a server that opens what it can starves neither the agent nor, alone, the others.
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

/// The places of one tier.
#[derive(Debug)]
pub struct Connections {
    tier: Arc<Semaphore>,
    tools: Arc<Semaphore>,
    servers: BTreeMap<PrincipalName, Arc<Semaphore>>,
}

/// Places that one connection holds until this is dropped.
#[derive(Debug)]
#[must_use = "the places are free again when this is dropped"]
pub struct Admission {
    _of_network: OwnedSemaphorePermit,
    _of_server: Option<OwnedSemaphorePermit>,
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
        Self {
            tier: places(MOST_OF_NETWORK),
            tools: places(MOST_OF_NETWORK),
            servers: servers.map(|server| (server.name.clone(), places(MOST_OF_SERVER))).collect(),
        }
    }

    /// Takes places for a connection on a network, of the container whose address it has, if it is anybody's.
    ///
    /// # Errors
    /// See [`Full`].
    pub fn admit(&self, network: Network, principal: Option<&PrincipalName>) -> Result<Admission, Full> {
        let of_server = principal
            .and_then(|name| self.servers.get(name))
            .map(|places| Arc::clone(places).try_acquire_owned().map_err(|_| Full::Container))
            .transpose()?;
        let places = match network {
            Network::Tier => &self.tier,
            Network::Tools => &self.tools,
        };
        let of_network = Arc::clone(places).try_acquire_owned().map_err(|_| Full::Network)?;
        Ok(Admission { _of_network: of_network, _of_server: of_server })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn connections() -> Connections {
        let principal = |name: &str, kind| config::Principal {
            name: name.parse().unwrap(),
            kind,
            address: "127.0.0.1".parse().unwrap(),
            token_sha256: String::new(),
        };
        let server = |name: &str| PrincipalKind::McpServer(name.parse().unwrap());
        Connections::new(&[
            principal("zeroclaw-tasks", PrincipalKind::Agent),
            principal("mcp-tasks-a", server("a")),
            principal("mcp-tasks-b", server("b")),
            principal("mcp-tasks-c", server("c")),
        ])
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
        let connections = connections();
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
}
