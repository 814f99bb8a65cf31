//! What the stack's own services reach outside, and nobody else: model, TEE, messengers, the owner's collector. Pure.
//!
//! Each is a user at Squid with hosts of its own, or with one endpoint of the owner's choice. A tier never reaches them,
//! whatever its file says. From the endpoints follows what Squid's packets may reach beside port 443 of public addresses.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use assistant_proto::config::Confidentiality;

use super::Exit;
use super::containers::Parts;
use crate::config::{Endpoint, EndpointHost, HostPattern, Scheme};
use crate::tokens::{SQUID_CHANNELS_USER, SQUID_MODELS_USER, SQUID_TEE_USER, SQUID_TELEMETRY_USER};

/// Hosts of PrivateMode: its API, and where the manifest comes from that the proxy verifies.
const TEE_HOSTS: [&str; 2] = ["api.privatemode.ai", "cdn.confidential.cloud"];
/// Hosts of messengers.
const MESSENGER_HOSTS: [&str; 1] = ["api.telegram.org"];
/// Key of the TEE proxy in images.json. It can only be pulled.
pub(crate) const TEE_IMAGE: &str = "privatemode-proxy";

/// What a service may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// These hosts, at port 443.
    Hosts(Vec<HostPattern>),
    /// One endpoint.
    Endpoint(Endpoint),
}

/// Every service that reaches something, by its user at Squid.
pub(crate) fn reaches(parts: &Parts<'_>) -> Vec<(&'static str, Reach)> {
    let mut reaches = Vec::new();
    if let Some(endpoint) = model_endpoint(parts) {
        reaches.push((SQUID_MODELS_USER, Reach::Endpoint(endpoint)));
    }
    if has_tee(parts) {
        reaches.push((SQUID_TEE_USER, Reach::Hosts(patterns(TEE_HOSTS))));
    }
    if has_messengers(parts) {
        reaches.push((SQUID_CHANNELS_USER, Reach::Hosts(patterns(MESSENGER_HOSTS))));
    }
    if let Some(endpoint) = export_endpoint(parts) {
        reaches.push((SQUID_TELEMETRY_USER, Reach::Endpoint(endpoint)));
    }
    reaches
}

/// Hosts that belong to services, whether or not they are in use: no tier reaches them.
pub(crate) fn services_hosts(parts: &Parts<'_>) -> Vec<HostPattern> {
    let named = [model_endpoint(parts), export_endpoint(parts)].into_iter().flatten();
    let named = named.filter_map(|endpoint| match endpoint.host {
        EndpointHost::Name(name) => Some(HostPattern::Exact(name)),
        EndpointHost::Address(_) => None,
    });
    patterns(TEE_HOSTS).into_iter().chain(patterns(MESSENGER_HOSTS)).chain(named).collect()
}

/// Whether there is a model route of that class.
pub(crate) fn has_route(parts: &Parts<'_>, class: Confidentiality) -> bool {
    match class {
        Confidentiality::Required => has_tee(parts),
        Confidentiality::None => model_endpoint(parts).is_some(),
    }
}

/// Whether the attested route is there: configured, and its proxy's image is on this machine.
pub(crate) fn has_tee(parts: &Parts<'_>) -> bool {
    parts.settings.tee.is_some() && parts.images.reference(TEE_IMAGE).is_some()
}

/// Whether a channel needs a way out.
pub(crate) fn has_messengers(parts: &Parts<'_>) -> bool {
    !parts.settings.telegram.is_empty()
}

/// Where the model route of tiers leads that need no confidentiality.
pub(crate) fn model_endpoint(parts: &Parts<'_>) -> Option<Endpoint> {
    parts.settings.model.as_ref()?.endpoint()
}

/// The owner's collector outside the stack.
pub(crate) fn export_endpoint(parts: &Parts<'_>) -> Option<Endpoint> {
    let url = parts.settings.otlp_export.as_ref().filter(|_| parts.settings.otlp)?;
    url.parse().ok()
}

/// What Squid's packets may reach beside port 443 of public addresses.
pub(super) fn exits(parts: &Parts<'_>) -> BTreeSet<Exit> {
    let mut exits = BTreeSet::new();
    for (_, reach) in reaches(parts) {
        let Reach::Endpoint(Endpoint { scheme, host, port, .. }) = reach else { continue };
        match (scheme, host) {
            (_, EndpointHost::Address(address)) => drop(exits.insert(Exit::Address(SocketAddrV4::new(address, port)))),
            (Scheme::Https, EndpointHost::Name(_)) if port == 443 => {}
            (Scheme::Https, EndpointHost::Name(_)) => drop(exits.insert(Exit::Port(port))),
            // A name of the local network, at the addresses that it had when it was looked up. Prompts, keys and traces do
            // not cross the internet in the clear: a public address is not among them.
            (Scheme::Http, EndpointHost::Name(name)) => {
                let known = parts.material.home.get(&name).into_iter().flatten();
                exits.extend(known.map(|address| Exit::Address(SocketAddrV4::new(*address, port))));
            }
        }
    }
    exits
}

/// Whether an address can belong to a machine of a local network: RFC 1918, and what carriers and overlay networks use
/// (RFC 6598).
pub(crate) fn is_home(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_private() || (first == 100 && (64..128).contains(&second))
}

fn patterns<const N: usize>(hosts: [&str; N]) -> Vec<HostPattern> {
    hosts.iter().filter_map(|host| host.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_written_host_is_one() {
        assert_eq!(patterns(TEE_HOSTS).len(), TEE_HOSTS.len());
        assert_eq!(patterns(MESSENGER_HOSTS).len(), MESSENGER_HOSTS.len());
    }

    #[test]
    fn homes() {
        for home in [[10, 0, 0, 1], [172, 31, 0, 1], [192, 168, 1, 1], [100, 64, 0, 1], [100, 127, 255, 254]] {
            assert!(is_home(home.into()), "{home:?}");
        }
        for other in [[9, 9, 9, 9], [100, 63, 0, 1], [100, 128, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254]] {
            assert!(!is_home(other.into()), "{other:?}");
        }
    }
}
