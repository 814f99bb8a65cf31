//! Puts the desired state together: networks, volumes, containers in their order, flows, gates.

use super::containers::{self, Parts};
use super::{Desired, DesiredError, NetworkKind, NetworkSpec, TierSummary, flows, gate, outward};
use crate::addresses::{self, Addresses, BUS, EGRESS, FIXED_NETWORKS, MODELS, TELEMETRY, TRANSIT};
use crate::config::{Endpoint, EndpointHost, Images, Scheme, Settings, Tiers};
use crate::prepare::Material;

/// The desired state for these inputs. Pure: equal inputs give equal values, down to the bytes of every rendered file.
///
/// # Errors
/// When an address, image or token that the inputs must hold is not in them, which is a bug, or when squid.conf.template
/// is not the one this program belongs to.
pub fn desired(
    config: &Tiers,
    settings: &Settings,
    images: &Images,
    addresses: &Addresses,
    material: &Material,
) -> Result<Desired, DesiredError> {
    let parts = Parts { config, settings, images, addresses, material };
    let networks = networks(&parts)?;
    let (containers, volumes) = containers::all(&parts)?;
    let flows = flows::flows(&containers);
    let gates = gate::gates(&parts, &containers)?;
    let tiers = config
        .tiers
        .iter()
        .map(|tier| TierSummary {
            name: tier.name.clone(),
            identity: tier.identity.clone(),
            model: tier.model.clone(),
            confidential: tier.confidential,
            containers: containers
                .iter()
                .filter(|container| container.tier.as_ref() == Some(&tier.name))
                .map(|container| container.name.clone())
                .collect(),
        })
        .collect();
    Ok(Desired {
        mode: settings.mode,
        networks,
        volumes,
        containers,
        flows,
        gates,
        tiers,
        tiers_file: parts.config.file.clone(),
        remarks: remarks(&parts),
        dns_servers: settings.dns_servers.clone(),
        exits: outward::exits(&parts),
        drill_table: settings.drill_table,
    })
}

/// What the files' own checks found worth saying, and what only the machine shows.
fn remarks(parts: &Parts<'_>) -> Vec<String> {
    let mut remarks: Vec<String> = parts.config.remarks.iter().map(ToString::to_string).collect();
    if parts.settings.tee.is_some() && !outward::has_tee(parts) {
        remarks.push(format!(
            "PrivateMode is configured, but the image \"{}\" of its proxy is not on this machine: confidential tiers have no \
             model; run deploy/up.sh where it can be pulled",
            outward::TEE_IMAGE
        ));
    }
    for (_, reach) in outward::reaches(parts) {
        let outward::Reach::Endpoint(Endpoint { scheme: Scheme::Http, host: EndpointHost::Name(name), .. }) = reach
        else {
            continue;
        };
        if parts.material.home.get(&name).is_none_or(Vec::is_empty) {
            remarks.push(format!(
                "{name} has no address on your network, and plain http goes nowhere else: nothing can reach it; write its \
                 address in place of its name, or use https"
            ));
        }
    }
    remarks
}

fn networks(parts: &Parts<'_>) -> Result<Vec<NetworkSpec>, DesiredError> {
    let mut networks = Vec::new();
    for (name, _, bridge) in FIXED_NETWORKS {
        // The VM dials into bus and telemetry; on the others nobody but their members has an address.
        let kind = match name {
            EGRESS => NetworkKind::Egress,
            BUS | TELEMETRY => NetworkKind::Internal,
            TRANSIT | MODELS => NetworkKind::Isolated,
            _ => return Err(DesiredError::Missing { what: "the kind of a network" }),
        };
        networks.push(network(parts, name.to_owned(), bridge.to_owned(), kind, None)?);
    }
    for tier in &parts.config.tiers {
        let name = addresses::tier_network(&tier.name);
        let bridge = addresses::tier_bridge(&tier.name);
        networks.push(network(parts, name, bridge, NetworkKind::Isolated, Some(&tier.name))?);
        if !tier.servers.is_empty() {
            let name = addresses::tools_network(&tier.name);
            let bridge = addresses::tools_bridge(&tier.name);
            networks.push(network(parts, name, bridge, NetworkKind::Isolated, Some(&tier.name))?);
        }
    }
    Ok(networks)
}

fn network(
    parts: &Parts<'_>,
    name: String,
    bridge: String,
    kind: NetworkKind,
    tier: Option<&assistant_proto::name::TierName>,
) -> Result<NetworkSpec, DesiredError> {
    let missing = || DesiredError::Missing { what: "the subnet of a network" };
    let subnet = parts.addresses.subnet(&name).ok_or_else(missing)?;
    let gateway = parts.addresses.gateway(&name).ok_or_else(missing)?;
    Ok(NetworkSpec { name, bridge, subnet, gateway, kind, tier: tier.cloned() })
}
