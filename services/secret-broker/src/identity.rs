//! Who speaks. A principal is one container: it is believed only on its own network's listener, from its pinned
//! address, with its own token. Tokens are known here only as SHA-256 and compared in constant time.
//!
//! Authentication says who; what they may do is `policy`'s. There is no anonymous caller.

use std::net::{Ipv4Addr, SocketAddr};

use assistant_proto::config::{self, PrincipalKind};
use assistant_proto::name::{PrincipalName, TierName};
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderName, PROXY_AUTHORIZATION};
use http::{HeaderMap, StatusCode};
use policy::Denial;
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::refusal::Refusal;

/// Longest credential that is looked at; a token has 43 characters and a container name at most 63.
const MOST_CREDENTIAL: usize = 512;

/// Which of a tier's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Network {
    /// `tier-<t>`: the agent.
    Tier,
    /// `tools-<t>`: its MCP servers.
    Tools,
}

/// A listener, by the network it serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerId {
    /// Whose network.
    pub tier: TierName,
    /// Which one.
    pub network: Network,
}

/// A container that may speak to this broker.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Its name; the container's.
    pub name: PrincipalName,
    /// What it is.
    pub kind: PrincipalKind,
    /// Its tier.
    pub tier: TierName,
    /// Its pinned address on its network.
    pub address: Ipv4Addr,
    token_sha256: [u8; 32],
}

impl Principal {
    /// From the configuration; `None` when the hash is not 64 hex digits.
    #[must_use]
    pub fn new(tier: &TierName, principal: &config::Principal) -> Option<Self> {
        let mut token_sha256 = [0_u8; 32];
        hex::decode_to_slice(&principal.token_sha256, &mut token_sha256).ok()?;
        Some(Self {
            name: principal.name.clone(),
            kind: principal.kind.clone(),
            tier: tier.clone(),
            address: principal.address,
            token_sha256,
        })
    }

    /// The network on which it may speak.
    #[must_use]
    pub fn network(&self) -> Network {
        match self.kind {
            PrincipalKind::Agent => Network::Tier,
            PrincipalKind::McpServer(_) => Network::Tools,
        }
    }
}

/// How a credential is spelled at a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `Proxy-Authorization: Basic base64(<container name>:<token>)`, refused with 407.
    ProxyBasic,
    /// `Authorization: Bearer <token>`, refused with 401.
    Bearer,
}

impl Scheme {
    fn header(self) -> HeaderName {
        match self {
            Self::ProxyBasic => PROXY_AUTHORIZATION,
            Self::Bearer => AUTHORIZATION,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::ProxyBasic => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            Self::Bearer => StatusCode::UNAUTHORIZED,
        }
    }
}

/// Everybody who may speak, over all tiers: knowing all of them lets a refusal say that a token is somebody else's.
#[derive(Debug, Default)]
pub struct Directory {
    principals: Vec<Principal>,
}

/// The presented credential: whom it names, if it names anyone, and the token.
struct Presented {
    user: Option<String>,
    token: Zeroizing<String>,
}

impl Directory {
    /// All principals of all tiers.
    #[must_use]
    pub fn new(principals: Vec<Principal>) -> Self {
        Self { principals }
    }

    /// Who holds a name, in any tier.
    #[must_use]
    pub fn named(&self, name: &PrincipalName) -> Option<&Principal> {
        self.principals.iter().find(|principal| principal.name == *name)
    }

    /// Whose pinned address a peer has on this listener's network: an indication for events, not an authentication.
    #[must_use]
    pub fn at(&self, listener: &ListenerId, peer: SocketAddr) -> Option<&Principal> {
        self.principals.iter().find(|principal| {
            principal.tier == listener.tier
                && principal.network() == listener.network
                && SocketAddr::from((principal.address, peer.port())).ip() == peer.ip()
        })
    }

    /// Decides who the peer is.
    ///
    /// # Errors
    /// 407 or 401, by scheme, with what is wrong; never with any part of the credential.
    pub fn authenticate(
        &self,
        listener: &ListenerId,
        peer: SocketAddr,
        headers: &HeaderMap,
        scheme: Scheme,
    ) -> Result<&Principal, Refusal> {
        let refuse =
            |reason, detail: String, fix: &str| Err(Refusal::new(scheme.status(), Denial::new(reason, detail, fix)));
        let presented = match present(headers, scheme) {
            Ok(presented) => presented,
            Err((reason, detail)) => {
                return refuse(
                    reason,
                    detail,
                    "use the container's own proxy settings and token; they are in its environment",
                );
            }
        };
        let hash = digest::digest(&digest::SHA256, presented.token.as_bytes());
        // Every hash is compared, so that the time says nothing about which one came close.
        let mut owner = None;
        for principal in &self.principals {
            let same: Choice = principal.token_sha256.as_slice().ct_eq(hash.as_ref());
            if bool::from(same) {
                owner = Some(principal);
            }
        }
        let Some(owner) = owner else {
            return refuse(
                "wrong-token",
                "the token belongs to no container of this stack".to_owned(),
                "apply again: tier-supervisor gives each container its current token",
            );
        };
        if owner.tier != listener.tier || owner.network() != listener.network {
            return refuse(
                "foreign-token",
                "the token belongs to a container of another network".to_owned(),
                "nothing allows this: a token works only on the network it was made for",
            );
        }
        if presented.user.as_deref().is_some_and(|user| user != owner.name.as_str()) {
            return refuse(
                "wrong-user",
                "the user name and the token belong to different containers".to_owned(),
                "use the container's own name with its own token",
            );
        }
        if self.at(listener, peer).map(|principal| &principal.name) != Some(&owner.name) {
            return refuse(
                "wrong-address",
                format!("the token of {} came from {}, which is not its pinned address", owner.name, peer.ip()),
                "nothing allows this: a token works only from the container it was made for",
            );
        }
        Ok(owner)
    }
}

fn present(headers: &HeaderMap, scheme: Scheme) -> Result<Presented, (&'static str, String)> {
    let malformed = || ("malformed-token", format!("the {} header is not what this door expects", scheme.header()));
    let mut values = headers.get_all(scheme.header()).iter();
    let Some(value) = values.next() else {
        return Err(("no-token", format!("there is no {} header: nobody is served without a token", scheme.header())));
    };
    if values.next().is_some() || value.len() > MOST_CREDENTIAL {
        return Err(malformed());
    }
    let text = value.to_str().map_err(|_| malformed())?;
    let (name, credential) = text.split_once(' ').ok_or_else(malformed)?;
    let credential = credential.trim();
    match scheme {
        Scheme::Bearer if name.eq_ignore_ascii_case("bearer") && !credential.is_empty() => {
            Ok(Presented { user: None, token: Zeroizing::new(credential.to_owned()) })
        }
        Scheme::ProxyBasic if name.eq_ignore_ascii_case("basic") => {
            let decoded = Zeroizing::new(STANDARD.decode(credential).map_err(|_| malformed())?);
            let decoded = std::str::from_utf8(&decoded).map_err(|_| malformed())?;
            let (user, token) = decoded.split_once(':').ok_or_else(malformed)?;
            Ok(Presented { user: Some(user.to_owned()), token: Zeroizing::new(token.to_owned()) })
        }
        Scheme::Bearer | Scheme::ProxyBasic => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use assistant_proto::config::PrincipalKind;
    use http::HeaderValue;

    use super::*;

    fn principal(tier: &str, name: &str, kind: PrincipalKind, address: [u8; 4], token: &str) -> Principal {
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        let config = config::Principal {
            name: name.parse().unwrap(),
            kind,
            address: address.into(),
            token_sha256: hex::encode(hash.as_ref()),
        };
        Principal::new(&tier.parse().unwrap(), &config).unwrap()
    }

    fn directory() -> Directory {
        let server = || PrincipalKind::McpServer("marvin".parse().unwrap());
        Directory::new(vec![
            principal("tasks", "zeroclaw-tasks", PrincipalKind::Agent, [10, 0, 1, 20], "agent"),
            principal("tasks", "mcp-tasks-marvin", server(), [10, 0, 2, 30], "server"),
            principal("news", "zeroclaw-news", PrincipalKind::Agent, [10, 0, 3, 20], "news"),
        ])
    }

    fn basic(user: &str, token: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:{token}")));
        HeaderMap::from_iter([(PROXY_AUTHORIZATION, HeaderValue::from_str(&value).unwrap())])
    }

    fn outcome(listener: (&str, Network), from: [u8; 4], headers: &HeaderMap, scheme: Scheme) -> String {
        let listener = ListenerId { tier: listener.0.parse().unwrap(), network: listener.1 };
        match directory().authenticate(&listener, (from, 4242).into(), headers, scheme) {
            Ok(principal) => principal.name.to_string(),
            Err(refusal) => format!("{} {}", refusal.status.as_u16(), refusal.denial.reason),
        }
    }

    #[test]
    fn only_the_container_itself_is_believed() {
        let tasks = ("tasks", Network::Tier);
        let tools = ("tasks", Network::Tools);
        let agent = [10, 0, 1, 20];
        let table = [
            (tasks, agent, basic("zeroclaw-tasks", "agent"), "zeroclaw-tasks"),
            (tools, [10, 0, 2, 30], basic("mcp-tasks-marvin", "server"), "mcp-tasks-marvin"),
            (tasks, agent, HeaderMap::new(), "407 no-token"),
            (tasks, agent, basic("zeroclaw-tasks", "guess"), "407 wrong-token"),
            (tasks, agent, basic("zeroclaw-tasks", "server"), "407 foreign-token"),
            (tasks, agent, basic("zeroclaw-tasks", "news"), "407 foreign-token"),
            (tasks, agent, basic("mcp-tasks-marvin", "agent"), "407 wrong-user"),
            (tasks, [10, 0, 1, 21], basic("zeroclaw-tasks", "agent"), "407 wrong-address"),
            (tools, agent, basic("zeroclaw-tasks", "agent"), "407 foreign-token"),
        ];
        for (listener, from, headers, expected) in table {
            assert_eq!(outcome(listener, from, &headers, Scheme::ProxyBasic), expected);
        }
    }

    #[test]
    fn bearer_and_its_malformations() {
        let tasks = ("tasks", Network::Tier);
        let agent = [10, 0, 1, 20];
        let with = |value: &str| HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
        for (value, expected) in [
            ("Bearer agent", "zeroclaw-tasks"),
            ("bearer agent", "zeroclaw-tasks"),
            ("Bearer", "401 malformed-token"),
            ("Bearer ", "401 malformed-token"),
            ("Basic YWdlbnQ=", "401 malformed-token"),
            ("Bearer nope", "401 wrong-token"),
        ] {
            assert_eq!(outcome(tasks, agent, &with(value), Scheme::Bearer), expected, "{value}");
        }
        let mut twice = with("Bearer agent");
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer agent"));
        assert_eq!(outcome(tasks, agent, &twice, Scheme::Bearer), "401 malformed-token");
    }
}
