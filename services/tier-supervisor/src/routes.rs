//! The drill's policy routes: whatever enters the VM's routing from one of our bridges is led, to any address, into the
//! namespace of doubles behind [`DRILL_INTERFACE`], so that a broken wall is seen there instead of being a packet on the
//! real internet.
//!
//! It owns the rules of priority [`PRIORITY`] and the routing table they name. The namespace and the veth are made by
//! `deploy/lib/drill-net.sh`; where they are missing nothing is claimed and the caller starts nothing.
//!
//! Everything here blocks; async callers go through `spawn_blocking`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::command::{self, CommandError};
use crate::desired::Desired;
use crate::kernel::DRILL_INTERFACE;

/// The drill's end of the veth.
const DRILL_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Before whatever a VPN in the VM may have written; after the local table, so that the VM's own addresses stay its own.
const PRIORITY: &str = "87";
const PRIORITY_NUMBER: u32 = 87;
/// Of the route that remains when the veth goes: then nothing leaves, instead of everything by the main table.
const LAST_RESORT: u32 = 9999;
/// Addresses of no particular host, in the networks for documentation and in the real internet's range.
const CANARIES: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 77), Ipv4Addr::new(9, 9, 9, 9)];

/// Why nothing is claimed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// `ip` could not do it.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// `ip` said something that is not understood.
    #[error("the answer of ip is not understood: {why}; is it iproute2 5.10 or later, with JSON?")]
    Listing {
        /// Why.
        why: String,
    },
    /// There is no drill internet.
    #[error(
        "the drill's internet is not there: {DRILL_INTERFACE} is missing or down; run deploy/lib/drill-net.sh up (deploy/up.sh --drill does)"
    )]
    NoDrill,
    /// Something of it does not hold.
    #[error("the drill's routes do not hold: {why}; nothing is started until they do")]
    NotClaimed {
        /// What.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
struct Rule {
    priority: u32,
    iif: Option<String>,
    table: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Route {
    #[serde(rename = "type")]
    kind: Option<String>,
    dst: Option<String>,
    gateway: Option<Ipv4Addr>,
    dev: Option<String>,
    metric: Option<u32>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Link {
    flags: Vec<String>,
}

/// Makes the drill's routes stand for every bridge of ours, whether or not it exists yet, and reads them back. In a live
/// stack: removes what a drill left behind. Safe to repeat.
///
/// # Errors
/// When the drill's internet is not there, or a route does not hold. Nothing may be started then.
pub fn claim(desired: &Desired) -> Result<(), RouteError> {
    let Some(table) = desired.drill_table else { return release() };
    drill_is_up()?;
    let table = table.to_string();
    let wanted: BTreeSet<&str> = desired.networks.iter().map(|network| network.bridge.as_str()).collect();
    let mut lines = vec![
        format!("route replace unreachable default metric {LAST_RESORT} table {table}\n"),
        format!("route replace default via {DRILL_GATEWAY} dev {DRILL_INTERFACE} table {table}\n"),
    ];
    let rules = rules()?;
    for bridge in &wanted {
        if !rules.iter().any(|rule| rule.leads(bridge, &table)) {
            lines.push(format!("rule add priority {PRIORITY} iif {bridge} lookup {table}\n"));
        }
    }
    for rule in &rules {
        if !rule.iif.as_deref().is_some_and(|iif| wanted.contains(iif) && rule.leads(iif, &table)) {
            lines.push(rule.removal());
        }
    }
    command::run("ip", &["-batch", "-"], &lines.concat())?;
    verify(desired)
}

/// Reads back that every bridge of ours is led into the drill, and asks the kernel where a packet from each would go. A
/// bridge that does not exist yet cannot be asked about; its rule is there all the same. Always fine in a live stack that
/// has no rule of a drill left.
///
/// # Errors
/// When it is not so, with the first thing that does not hold.
pub fn verify(desired: &Desired) -> Result<(), RouteError> {
    let rules = rules()?;
    let not_claimed = |why: String| Err(RouteError::NotClaimed { why });
    let Some(table) = desired.drill_table else {
        return match rules.first() {
            Some(_) => not_claimed("rules of a drill are still there in a live stack".to_owned()),
            None => Ok(()),
        };
    };
    drill_is_up()?;
    let routes: Vec<Route> = parse(&command::run("ip", &["-j", "route", "show", "table", &table.to_string()], "")?)?;
    let into_drill = routes.iter().any(|route| {
        route.dst.as_deref() == Some("default")
            && route.gateway == Some(DRILL_GATEWAY)
            && route.dev.as_deref() == Some(DRILL_INTERFACE)
            && !route.flags.iter().any(|flag| flag == "linkdown" || flag == "dead")
    });
    let last_resort =
        routes.iter().any(|route| route.kind.as_deref() == Some("unreachable") && route.metric == Some(LAST_RESORT));
    if !into_drill || !last_resort || routes.len() != 2 {
        return not_claimed(format!("routing table {table} is not what it should be"));
    }
    for network in &desired.networks {
        let bridge = network.bridge.as_str();
        if !rules.iter().any(|rule| rule.leads(bridge, &table.to_string())) {
            return not_claimed(format!("{bridge} is not led into routing table {table}"));
        }
        if nix::net::if_::if_nametoindex(bridge).is_ok() {
            for canary in CANARIES {
                led_into_drill(desired, bridge, canary)?;
            }
        }
    }
    Ok(())
}

/// Removes every rule of ours and empties the tables they named. None there is success.
///
/// # Errors
/// When `ip` refuses.
pub fn release() -> Result<(), RouteError> {
    let rules = rules()?;
    if rules.is_empty() {
        return Ok(());
    }
    let tables: BTreeSet<&str> = rules.iter().filter_map(|rule| rule.table.as_deref()).collect();
    let removals: String = rules.iter().map(Rule::removal).collect();
    command::run("ip", &["-batch", "-"], &removals)?;
    // Numbers only: a rule of this priority that names a table of the system is not ours to empty.
    for table in tables.into_iter().filter(|table| table.parse::<u32>().is_ok()) {
        command::run("ip", &["route", "flush", "table", table], "")?;
    }
    Ok(())
}

/// What the kernel would do with a packet from a host on that bridge.
fn led_into_drill(desired: &Desired, bridge: &str, to: Ipv4Addr) -> Result<(), RouteError> {
    let Some(network) = desired.networks.iter().find(|network| network.bridge == bridge) else { return Ok(()) };
    // Any address of the subnet but the gateway's, which may be the VM's own.
    let from = Ipv4Addr::from_bits(network.subnet.network().to_bits().saturating_add(250));
    let arguments = ["-j", "route", "get", &to.to_string(), "from", &from.to_string(), "iif", bridge];
    let said = match command::run("ip", &arguments, "") {
        Ok(said) => said,
        // A bridge without an address of its own has no forwarding route that the source check accepts: no packet leaves.
        Err(CommandError::Failed { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let routes: Vec<Route> = parse(&said)?;
    match routes.first() {
        Some(route) if route.dev.as_deref() == Some(DRILL_INTERFACE) => Ok(()),
        _ => Err(RouteError::NotClaimed { why: format!("a packet from {bridge} to {to} would not go into the drill") }),
    }
}

fn drill_is_up() -> Result<(), RouteError> {
    let links: Vec<Link> = match command::run("ip", &["-j", "link", "show", "dev", DRILL_INTERFACE], "") {
        Ok(said) => parse(&said)?,
        Err(CommandError::Failed { .. }) => return Err(RouteError::NoDrill),
        Err(error) => return Err(error.into()),
    };
    // The other end's namespace gone, this end is gone too; the other end down, this one has no carrier.
    let up = links.iter().any(|link| ["UP", "LOWER_UP"].iter().all(|flag| link.flags.iter().any(|had| had == flag)));
    if up { Ok(()) } else { Err(RouteError::NoDrill) }
}

/// The rules of our priority.
fn rules() -> Result<Vec<Rule>, RouteError> {
    let mut rules: Vec<Rule> = parse(&command::run("ip", &["-j", "-4", "rule", "show"], "")?)?;
    rules.retain(|rule| rule.priority == PRIORITY_NUMBER);
    Ok(rules)
}

impl Rule {
    fn leads(&self, bridge: &str, table: &str) -> bool {
        self.iif.as_deref() == Some(bridge) && self.table.as_deref() == Some(table)
    }

    fn removal(&self) -> String {
        let iif = self.iif.as_ref().map(|iif| format!(" iif {iif}")).unwrap_or_default();
        let table = self.table.as_ref().map(|table| format!(" lookup {table}")).unwrap_or_default();
        format!("rule del priority {PRIORITY}{iif}{table}\n")
    }
}

fn parse<T: serde::de::DeserializeOwned>(said: &str) -> Result<Vec<T>, RouteError> {
    // `ip -j` says nothing at all, or an empty list, when there is nothing.
    if said.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(said).map_err(|error| RouteError::Listing { why: error.to_string() })
}
