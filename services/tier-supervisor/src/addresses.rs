//! Which subnet each of our networks has, and which address each container has on it.
//!
//! Owns the pool, the choice of another pool where the VM's routes overlap with it, and the file that keeps what was
//! chosen, so that reordering or removing a tier never moves another one. It reads no routes and touches no interface.

mod cidr;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use assistant_proto::name::{ServerName, TierName};
use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::files;

pub use cidr::{Ipv4Cidr, MalformedCidr};

/// Docker's name of the network on which Squid is alone.
pub const EGRESS: &str = "assistant-egress";
/// Docker's name of the network of NATS.
pub const BUS: &str = "assistant-bus";
/// Docker's name of the network of the collector and Jaeger.
pub const TELEMETRY: &str = "assistant-telemetry";
/// Docker's name of the network on which Squid is reached.
pub const TRANSIT: &str = "assistant-transit";
/// Docker's name of the network of the model route.
pub const MODELS: &str = "assistant-models";

/// Networks that do not depend on the tiers, with their place in the pool and their bridge interface.
pub const FIXED_NETWORKS: [(&str, u8, &str); 5] = [
    (EGRESS, 0, "as-egress"),
    (BUS, 1, "as-bus"),
    (TELEMETRY, 2, "as-telemetry"),
    (TRANSIT, 3, "as-transit"),
    (MODELS, 4, "as-models"),
];

/// Host number of secret-broker on every network it is on.
pub const HOST_BROKER: u8 = 2;
/// Host number of egress-auditor.
pub const HOST_AUDITOR: u8 = 3;
/// Host number of channel-bridge.
pub const HOST_BRIDGE: u8 = 4;
/// Host number of NATS.
pub const HOST_NATS: u8 = 5;
/// Host number of the collector.
pub const HOST_COLLECTOR: u8 = 6;
/// Host number of Jaeger.
pub const HOST_JAEGER: u8 = 7;
/// Host number of Squid.
pub const HOST_SQUID: u8 = 8;
/// Host number of Prometheus.
pub const HOST_PROMETHEUS: u8 = 9;
/// Host number of Grafana.
pub const HOST_GRAFANA: u8 = 10;
/// Host number of the LiteLLM of tiers that need no confidentiality.
pub const HOST_LITELLM: u8 = 11;
/// Host number of the TEE proxy.
pub const HOST_TEE: u8 = 12;
/// Host number of the LiteLLM of confidential tiers.
pub const HOST_LITELLM_CONFIDENTIAL: u8 = 13;
/// Host number of a tier's agent.
pub const HOST_AGENT: u8 = 20;

const FIRST_TIER_NETWORK: u8 = 16;
const FIRST_SERVER: u8 = 30;
const LAST_SERVER: u8 = 250;

/// Pools that are tried, after the configured one, when the VM's routes overlap with it. Written down rather than
/// computed, so that a person can predict them; none is a default of Docker, libvirt, Multipass or a common router.
pub const OTHER_POOLS: [Ipv4Cidr; 6] = [
    Ipv4Cidr { network: Ipv4Addr::new(10, 213, 0, 0), prefix: 16 },
    Ipv4Cidr { network: Ipv4Addr::new(10, 164, 0, 0), prefix: 16 },
    Ipv4Cidr { network: Ipv4Addr::new(10, 239, 0, 0), prefix: 16 },
    Ipv4Cidr { network: Ipv4Addr::new(172, 29, 0, 0), prefix: 16 },
    Ipv4Cidr { network: Ipv4Addr::new(172, 27, 0, 0), prefix: 16 },
    Ipv4Cidr { network: Ipv4Addr::new(10, 51, 0, 0), prefix: 16 },
];

/// Docker's name of a tier's network.
#[must_use]
pub fn tier_network(tier: &TierName) -> String {
    format!("assistant-tier-{tier}")
}

/// Docker's name of the network of a tier's MCP servers.
#[must_use]
pub fn tools_network(tier: &TierName) -> String {
    format!("assistant-tools-{tier}")
}

/// Bridge interface of a tier's network. Interface names have at most 15 bytes, tier names up to 24: hence a hash.
#[must_use]
pub fn tier_bridge(tier: &TierName) -> String {
    format!("ast{}", short_hash(tier))
}

/// Bridge interface of the network of a tier's MCP servers.
#[must_use]
pub fn tools_bridge(tier: &TierName) -> String {
    format!("aso{}", short_hash(tier))
}

fn short_hash(tier: &TierName) -> String {
    let hash = digest::digest(&digest::SHA256, tier.as_str().as_bytes());
    hex::encode(hash.as_ref().get(..4).unwrap_or_default())
}

/// Whether an interface name is that of one of our bridges, of whatever tier. For callers that read the VM's routes: a
/// route of ours must not count against the pool.
#[must_use]
pub fn is_our_bridge(interface: &str) -> bool {
    let hashed = |prefix: &str| {
        interface.strip_prefix(prefix).is_some_and(|rest| {
            rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    FIXED_NETWORKS.iter().any(|(_, _, bridge)| *bridge == interface) || hashed("ast") || hashed("aso")
}

/// What was chosen. Kept in `state_dir/addresses.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    pool: Ipv4Cidr,
    /// Docker's name of a tier's network -> number of its /24 in the pool.
    networks: BTreeMap<String, u8>,
    /// Docker's name of a network -> MCP server -> last byte of its address.
    servers: BTreeMap<String, BTreeMap<ServerName, u8>>,
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Every pool overlaps.
    #[error(
        "the VM's routes overlap with the address pool {preferred} and with every other pool that is tried; set \"pool\" \
         in supervisor.json to a free /16"
    )]
    NoFreePool {
        /// What was configured.
        preferred: Ipv4Cidr,
    },
    /// The configured pool has the wrong size.
    #[error("the address pool {pool} is not a /16; set \"pool\" in supervisor.json to one, for example 10.87.0.0/16")]
    NotSixteen {
        /// What was configured.
        pool: Ipv4Cidr,
    },
    /// More tiers than subnets.
    #[error("there are more than {most} tiers; one pool holds no more")]
    TooManyTiers {
        /// The bound.
        most: usize,
    },
    /// More servers than addresses.
    #[error("tier {tier} has more than {most} MCP servers; one network holds no more")]
    TooManyServers {
        /// The tier.
        tier: TierName,
        /// The bound.
        most: usize,
    },
    /// The file is there but unusable.
    #[error("{} is damaged ({detail}); move it away and start again, then every container is made anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] files::FileError),
}

impl Addresses {
    /// Reads what was chosen before; none when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(path: &Path) -> Result<Option<Self>, AddressError> {
        let Some(text) = files::read_if_present(path)? else { return Ok(None) };
        let damaged = |detail: String| AddressError::Damaged { path: path.to_owned(), detail };
        let addresses: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        addresses.check().map_err(|detail| damaged(detail.to_owned()))?;
        Ok(Some(addresses))
    }

    /// Keeps what was chosen.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), AddressError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| AddressError::Damaged { path: path.to_owned(), detail: error.to_string() })?;
        Ok(files::write_atomically(path, text.as_bytes(), 0o600)?)
    }

    /// Gives every tier and server of `wanted` its numbers, keeping those it had. `routes` are the VM's, without those of
    /// our own bridges. Pure.
    ///
    /// # Errors
    /// When no pool is free or one is too small.
    pub fn assign(
        previous: Option<&Self>,
        preferred: Ipv4Cidr,
        routes: &[Ipv4Cidr],
        wanted: &[(TierName, Vec<ServerName>)],
    ) -> Result<Self, AddressError> {
        if preferred.prefix != 16 {
            return Err(AddressError::NotSixteen { pool: preferred });
        }
        // A default route leads everywhere and says nothing about what is taken.
        let free = |pool: &Ipv4Cidr| !routes.iter().any(|route| route.prefix > 0 && route.overlaps(pool));
        let pool = previous
            .map(|previous| previous.pool)
            .into_iter()
            .chain([preferred])
            .chain(OTHER_POOLS)
            .find(free)
            .ok_or(AddressError::NoFreePool { preferred })?;
        let (networks, servers) =
            previous.map(|previous| (previous.networks.clone(), previous.servers.clone())).unwrap_or_default();
        let mut addresses = Self { pool, networks, servers };
        for (tier, servers) in wanted {
            addresses.assign_tier(tier, servers, wanted)?;
        }
        Ok(addresses)
    }

    fn assign_tier(
        &mut self,
        tier: &TierName,
        servers: &[ServerName],
        wanted: &[(TierName, Vec<ServerName>)],
    ) -> Result<(), AddressError> {
        let in_use: BTreeSet<String> =
            wanted.iter().flat_map(|(tier, _)| [tier_network(tier), tools_network(tier)]).collect();
        for network in [tier_network(tier), tools_network(tier)] {
            if self.networks.contains_key(&network) {
                continue;
            }
            let taken: BTreeSet<u8> = self.networks.values().copied().collect();
            let number = match (FIRST_TIER_NETWORK..=u8::MAX).find(|number| !taken.contains(number)) {
                Some(number) => number,
                // Every number was used once: take that of a tier that is gone.
                None => {
                    let gone = self.networks.keys().find(|name| !in_use.contains(*name)).cloned();
                    let most = usize::from(u8::MAX - FIRST_TIER_NETWORK).saturating_add(1) / 2;
                    let gone = gone.ok_or(AddressError::TooManyTiers { most })?;
                    self.servers.remove(&gone);
                    self.networks.remove(&gone).ok_or(AddressError::TooManyTiers { most })?
                }
            };
            self.networks.insert(network, number);
        }
        let known = self.servers.entry(tools_network(tier)).or_default();
        for server in servers {
            if known.contains_key(server) {
                continue;
            }
            let taken: BTreeSet<u8> = known.values().copied().collect();
            let number = match (FIRST_SERVER..=LAST_SERVER).find(|number| !taken.contains(number)) {
                Some(number) => number,
                None => {
                    let most = usize::from(LAST_SERVER - FIRST_SERVER).saturating_add(1);
                    let error = || AddressError::TooManyServers { tier: tier.clone(), most };
                    let gone = known.keys().find(|name| !servers.contains(name)).cloned().ok_or_else(error)?;
                    known.remove(&gone).ok_or_else(error)?
                }
            };
            known.insert(server.clone(), number);
        }
        Ok(())
    }

    /// The pool in use.
    #[must_use]
    pub fn pool(&self) -> Ipv4Cidr {
        self.pool
    }

    /// Subnet of a network, by Docker's name for it.
    #[must_use]
    pub fn subnet(&self, network: &str) -> Option<Ipv4Cidr> {
        let number = FIXED_NETWORKS
            .iter()
            .find(|(name, _, _)| *name == network)
            .map(|(_, number, _)| *number)
            .or_else(|| self.networks.get(network).copied())?;
        Some(self.pool.subnet(number))
    }

    /// The address that Docker calls the gateway.
    #[must_use]
    pub fn gateway(&self, network: &str) -> Option<Ipv4Addr> {
        self.host(network, 1)
    }

    /// The address with that host number.
    #[must_use]
    pub fn host(&self, network: &str, number: u8) -> Option<Ipv4Addr> {
        Some(self.subnet(network)?.host(number))
    }

    /// The address of a tier's MCP server on the tier's tools network.
    #[must_use]
    pub fn server(&self, tier: &TierName, server: &ServerName) -> Option<Ipv4Addr> {
        let network = tools_network(tier);
        let number = *self.servers.get(&network)?.get(server)?;
        self.host(&network, number)
    }

    /// What a damaged or edited file could hold and assignment never makes.
    fn check(&self) -> Result<(), &'static str> {
        if self.pool.prefix != 16 {
            return Err("the pool is not a /16");
        }
        let distinct: BTreeSet<u8> = self.networks.values().copied().collect();
        if distinct.len() != self.networks.len() || distinct.iter().any(|number| *number < FIRST_TIER_NETWORK) {
            return Err("two networks have the same number, or one has a reserved number");
        }
        for servers in self.servers.values() {
            let distinct: BTreeSet<u8> = servers.values().copied().collect();
            if distinct.len() != servers.len()
                || distinct.iter().any(|number| !(FIRST_SERVER..=LAST_SERVER).contains(number))
            {
                return Err("two servers have the same number, or one has a reserved number");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    fn wanted(tiers: &[(&str, &[&str])]) -> Vec<(TierName, Vec<ServerName>)> {
        tiers
            .iter()
            .map(|(tier, servers)| {
                (tier.parse().unwrap(), servers.iter().map(|server| server.parse().unwrap()).collect())
            })
            .collect()
    }

    #[test]
    fn pool_gives_way_to_routes_and_then_stays() {
        let pool = cidr("10.87.0.0/16");
        let tiers = wanted(&[("tasks", &["marvin"])]);
        let first = Addresses::assign(None, pool, &[cidr("0.0.0.0/0"), cidr("192.168.1.0/24")], &tiers).unwrap();
        assert_eq!(first.pool(), pool);
        let moved = Addresses::assign(Some(&first), pool, &[cidr("10.87.9.0/24")], &tiers).unwrap();
        assert_eq!(moved.pool(), OTHER_POOLS[0]);
        let stays = Addresses::assign(Some(&moved), pool, &[], &tiers).unwrap();
        assert_eq!(stays, moved, "a chosen pool does not move back by itself");
        let all = [cidr("10.0.0.0/8"), cidr("172.16.0.0/12")];
        assert!(matches!(Addresses::assign(None, pool, &all, &tiers), Err(AddressError::NoFreePool { .. })));
        assert!(matches!(
            Addresses::assign(None, cidr("10.87.0.0/20"), &[], &tiers),
            Err(AddressError::NotSixteen { .. })
        ));
    }

    #[test]
    fn addresses_are_the_written_ones() {
        let tiers = wanted(&[("tasks", &["marvin", "mail"])]);
        let addresses = Addresses::assign(None, cidr("10.87.0.0/16"), &[], &tiers).unwrap();
        let tasks: TierName = "tasks".parse().unwrap();
        assert_eq!(addresses.host(BUS, HOST_NATS), Some(Ipv4Addr::new(10, 87, 1, 5)));
        assert_eq!(addresses.host(&tier_network(&tasks), HOST_AGENT), Some(Ipv4Addr::new(10, 87, 16, 20)));
        assert_eq!(addresses.server(&tasks, &"marvin".parse().unwrap()), Some(Ipv4Addr::new(10, 87, 17, 30)));
        assert_eq!(addresses.server(&tasks, &"mail".parse().unwrap()), Some(Ipv4Addr::new(10, 87, 17, 31)));
        assert_eq!(addresses.subnet("assistant-tier-other"), None);
    }

    #[test]
    fn bridges_fit_and_are_recognised() {
        let long: TierName = "abcdefghijklmnopqrstuvwx".parse().unwrap();
        for bridge in [tier_bridge(&long), tools_bridge(&long)] {
            assert!(bridge.len() <= 15, "{bridge}");
            assert!(is_our_bridge(&bridge), "{bridge}");
        }
        assert!(is_our_bridge("as-egress"));
        for other in ["docker0", "asterisk", "ast1234567", "ast1234567g", "as-drill0"] {
            assert!(!is_our_bridge(other), "{other}");
        }
    }

    #[test]
    fn file_round_trips_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        assert!(Addresses::load(&path).unwrap().is_none());
        let tiers = wanted(&[("tasks", &["marvin"])]);
        let addresses = Addresses::assign(None, cidr("10.87.0.0/16"), &[], &tiers).unwrap();
        addresses.store(&path).unwrap();
        assert_eq!(Addresses::load(&path).unwrap(), Some(addresses));
        for damage in [
            "{",
            r#"{"pool":"10.87.0.0/16","networks":{"a":16,"b":16},"servers":{}}"#,
            r#"{"pool":"10.87.0.0/16","networks":{"a":3},"servers":{}}"#,
            r#"{"pool":"10.87.0.0/20","networks":{},"servers":{}}"#,
            r#"{"pool":"10.87.0.0/16","networks":{},"servers":{"a":{"x":2}}}"#,
        ] {
            std::fs::write(&path, damage).unwrap();
            assert!(matches!(Addresses::load(&path), Err(AddressError::Damaged { .. })), "{damage}");
        }
    }

    #[test]
    fn numbers_of_gone_tiers_are_used_last() {
        let many: Vec<(TierName, Vec<ServerName>)> =
            (0..120).map(|n| (format!("t{n}").parse().unwrap(), Vec::new())).collect();
        let full = Addresses::assign(None, cidr("10.87.0.0/16"), &[], &many).unwrap();
        let mut other = many.clone();
        other[0].0 = "fresh".parse().unwrap();
        let next = Addresses::assign(Some(&full), cidr("10.87.0.0/16"), &[], &other).unwrap();
        let t0 = tier_network(&"t0".parse().unwrap());
        assert_eq!(next.subnet(&t0), None);
        assert!(next.subnet("assistant-tier-fresh").is_some());
        let mut too_many = many;
        too_many.push(("one-more".parse().unwrap(), Vec::new()));
        assert!(matches!(
            Addresses::assign(None, cidr("10.87.0.0/16"), &[], &too_many),
            Err(AddressError::TooManyTiers { most: 120 })
        ));
    }

    proptest! {
        #[test]
        fn reordering_and_removing_move_nobody(
            names in proptest::collection::btree_set("[a-z][a-z0-9]{0,8}", 1..12),
            keep in proptest::collection::vec(any::<bool>(), 12),
            seed in any::<u64>(),
        ) {
            let server: ServerName = "marvin".parse().unwrap();
            let names: Vec<TierName> =
                names.iter().filter_map(|name| name.parse().ok()).collect();
            let first: Vec<_> = names.iter().map(|name| (name.clone(), vec![server.clone()])).collect();
            let pool = cidr("10.87.0.0/16");
            let before = Addresses::assign(None, pool, &[], &first).unwrap();
            let mut second: Vec<_> =
                first.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(tier, _)| tier.clone()).collect();
            let len = second.len();
            second.rotate_left(usize::try_from(seed % (len.max(1) as u64)).unwrap().min(len));
            second.push(("zz-newcomer".parse().unwrap(), vec![server.clone()]));
            let after = Addresses::assign(Some(&before), pool, &[], &second).unwrap();
            let mut seen = BTreeSet::new();
            for (tier, _) in &second {
                for network in [tier_network(tier), tools_network(tier)] {
                    let subnet = after.subnet(&network).unwrap();
                    prop_assert!(seen.insert(subnet), "{network} shares {subnet}");
                    if let Some(had) = before.subnet(&network) {
                        prop_assert_eq!(subnet, had);
                    }
                }
            }
        }
    }
}
