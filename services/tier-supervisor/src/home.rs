//! Addresses of machines of the local network that supervisor.json names over plain HTTP: a model's server, a collector.
//!
//! Squid resolves such a name by itself, and the kernel table opens only the addresses that are found here. What was found
//! last is kept in a file, so that a resolver that is away for a moment closes nothing. A name of the internet finds
//! nothing here: what is plain does not go there.
//!
//! It blocks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::path::Path;

use assistant_proto::config::Mode;
use assistant_proto::name::HostName;

use crate::config::{Endpoint, EndpointHost, Scheme, Settings};
use crate::desired::outward::is_home;
use crate::files::{self, FileError};

/// Most addresses of one name.
const MOST: usize = 8;

/// Name -> its addresses on the local network.
pub type Homes = BTreeMap<HostName, Vec<Ipv4Addr>>;

/// Looks every such name up, and falls back to what `state` holds.
///
/// # Errors
/// When the file cannot be read or written.
pub fn look_up(settings: &Settings, state: &Path) -> Result<Homes, FileError> {
    let names = names(settings);
    if names.is_empty() {
        return Ok(Homes::new());
    }
    // One that is damaged is as good as none.
    let known: Homes =
        files::read_if_present(state)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    // In a drill names are the drill's, and this VM's resolver does not know them.
    let resolve = |name: &HostName| if settings.mode == Mode::Live { resolve(name) } else { Vec::new() };
    let homes = merge(&names, &known, resolve);
    if homes != known
        && let Ok(text) = serde_json::to_vec(&homes)
    {
        files::write_atomically(state, &text, 0o600)?;
    }
    Ok(homes)
}

fn merge(names: &[HostName], known: &Homes, resolve: impl Fn(&HostName) -> Vec<Ipv4Addr>) -> Homes {
    let newest = |name: &HostName| {
        let found = resolve(name);
        if found.is_empty() { known.get(name).cloned().unwrap_or_default() } else { found }
    };
    names.iter().map(|name| (name.clone(), newest(name))).collect()
}

fn names(settings: &Settings) -> Vec<HostName> {
    let model = settings.model.as_ref().and_then(crate::config::ModelSettings::endpoint);
    let export = settings.otlp_export.as_ref().and_then(|url| url.parse::<Endpoint>().ok());
    [model, export]
        .into_iter()
        .flatten()
        .filter_map(|endpoint| match (endpoint.scheme, endpoint.host) {
            (Scheme::Http, EndpointHost::Name(name)) => Some(name),
            _ => None,
        })
        .collect()
}

/// By the VM's own resolver, /etc/hosts included.
fn resolve(name: &HostName) -> Vec<Ipv4Addr> {
    let Ok(found) = (name.as_str(), 0).to_socket_addrs() else { return Vec::new() };
    let mut addresses: Vec<Ipv4Addr> = found
        .filter_map(|at| match at.ip() {
            IpAddr::V4(address) if is_home(address) => Some(address),
            _ => None,
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MOST);
    addresses
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn what_was_known_stays_while_nobody_answers() {
        let name: HostName = "llm.home.arpa".parse().unwrap();
        let (old, new) = (Ipv4Addr::new(192, 168, 1, 5), Ipv4Addr::new(192, 168, 1, 6));
        let known = Homes::from([(name.clone(), vec![old])]);
        let names = [name.clone()];
        assert_eq!(merge(&names, &known, |_| Vec::new()), known);
        assert_eq!(merge(&names, &known, |_| vec![new]), Homes::from([(name.clone(), vec![new])]));
        assert_eq!(merge(&names, &Homes::new(), |_| Vec::new()), Homes::from([(name, Vec::new())]));
        assert_eq!(merge(&[], &known, |_| vec![new]), Homes::new(), "what nobody names any more is forgotten");
    }
}
