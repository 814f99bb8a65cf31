//! Which addresses the VM already routes somewhere, so that our pool does not collide with them.

use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::addresses::{Ipv4Cidr, is_our_bridge};
use crate::command::{self, CommandError};

#[derive(Debug, Deserialize)]
struct Route {
    dst: Option<String>,
    dev: Option<String>,
}

/// Every destination in any routing table of the VM (a VPN may have one of its own), but for default routes and for those
/// of our own bridges. Blocks.
///
/// # Errors
/// When `ip` cannot be run.
pub fn occupied() -> Result<Vec<Ipv4Cidr>, CommandError> {
    Ok(destinations(&command::run("ip", &["-j", "-4", "route", "show", "table", "all"], "")?))
}

fn destinations(listing: &str) -> Vec<Ipv4Cidr> {
    let routes: Vec<Route> = serde_json::from_str(listing).unwrap_or_default();
    let mut found: Vec<Ipv4Cidr> = routes
        .into_iter()
        .filter(|route| !route.dev.as_deref().is_some_and(is_our_bridge))
        .filter_map(|route| destination(route.dst.as_deref()?))
        .collect();
    found.sort_by_key(|cidr| (cidr.network(), cidr.prefix()));
    found.dedup();
    found
}

/// `10.0.0.0/8`, or a single address; `default` is none.
fn destination(text: &str) -> Option<Ipv4Cidr> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) => Ipv4Cidr::new(address, 32).ok(),
        Err(_) => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_others_count_and_ours_do_not() {
        let listing = r#"[
            {"dst":"default","gateway":"192.0.2.1","dev":"eth0"},
            {"dst":"172.17.0.0/16","dev":"docker0","scope":"link"},
            {"dst":"10.87.1.0/24","dev":"as-bus","scope":"link"},
            {"dst":"10.87.200.0/24","dev":"tailscale0","table":"52"},
            {"type":"local","dst":"192.0.2.7","dev":"eth0","table":"local"}
        ]"#;
        let found: Vec<String> = destinations(listing).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.87.200.0/24", "172.17.0.0/16", "192.0.2.7/32"]);
        assert!(destinations("").is_empty());
    }
}
