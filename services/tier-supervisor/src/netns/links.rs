//! What `ip -j` and /proc say about interfaces and sockets, understood. Pure.

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{NetnsError, Port};

#[derive(Debug, Deserialize)]
struct Link {
    ifindex: u32,
    ifname: String,
    address: Option<String>,
    /// Index of a veth's other end, in the other end's namespace.
    link_index: Option<u32>,
    /// Present where the other end is in another namespace.
    link_netnsid: Option<i32>,
    master: Option<String>,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    family: String,
    local: Option<String>,
}

/// Joins the two listings. A pair counts only if each end names the other: an index alone could belong to anything.
pub(super) fn ports(inside: &str, outside: &str) -> Result<Vec<Port>, NetnsError> {
    let (inside, outside) = (links(inside)?, links(outside)?);
    let mut ports = Vec::new();
    for link in &inside {
        let Some(peer) = outside.iter().find(|peer| {
            link.link_netnsid.is_some()
                && peer.link_netnsid.is_some()
                && link.link_index == Some(peer.ifindex)
                && peer.link_index == Some(link.ifindex)
        }) else {
            continue;
        };
        let Some(mac) = link.address.as_deref().and_then(mac) else { continue };
        let addresses = link.addr_info.iter().filter(|address| address.family == "inet");
        for address in addresses.filter_map(|address| address.local.as_deref()?.parse::<Ipv4Addr>().ok()) {
            ports.push(Port {
                address,
                mac,
                ifname: link.ifname.clone(),
                host_ifname: peer.ifname.clone(),
                bridge: peer.master.clone(),
            });
        }
    }
    Ok(ports)
}

fn links(listing: &str) -> Result<Vec<Link>, NetnsError> {
    serde_json::from_str(listing).map_err(|error| NetnsError::Listing { why: error.to_string() })
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Whether /proc/net/tcp or tcp6 has a socket in state LISTEN (0A) on that port.
pub(super) fn listens(table: &str, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, _, state) = (fields.next(), fields.next(), fields.next());
        local.is_some_and(|local| local.ends_with(&wanted)) && state == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    const INSIDE: &str = r#"[
        {"ifindex":1,"ifname":"lo","address":"00:00:00:00:00:00","addr_info":[{"family":"inet","local":"127.0.0.1"}]},
        {"ifindex":7,"ifname":"eth1","link_index":8,"link_netnsid":0,"address":"02:42:0a:57:10:14",
         "addr_info":[{"family":"inet","local":"10.87.16.20"},{"family":"inet6","local":"fe80::1"}]},
        {"ifindex":9,"ifname":"eth0","link_index":11,"link_netnsid":0,"address":"02:42:0a:57:11:14",
         "addr_info":[{"family":"inet","local":"10.87.17.20"}]}]"#;
    const OUTSIDE: &str = r#"[
        {"ifindex":8,"ifname":"vethaa","link_index":7,"link_netnsid":3,"master":"ast01234567","address":"c2:00:00:00:00:01"},
        {"ifindex":11,"ifname":"eth0","address":"52:54:00:00:00:01"},
        {"ifindex":12,"ifname":"vethbb","link_index":9,"link_netnsid":3,"address":"c2:00:00:00:00:02"}]"#;

    #[test]
    fn a_pair_is_two_ends_that_name_each_other() {
        let found = ports(INSIDE, OUTSIDE).unwrap();
        assert_eq!(
            found,
            [Port {
                address: Ipv4Addr::new(10, 87, 16, 20),
                mac: [2, 0x42, 0x0a, 0x57, 0x10, 0x14],
                ifname: "eth1".to_owned(),
                host_ifname: "vethaa".to_owned(),
                bridge: Some("ast01234567".to_owned()),
            }]
        );
        assert!(ports("", OUTSIDE).is_err());
    }

    #[test]
    fn listening_is_a_state_and_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n   \
             1: 0100007F:1F91 0100007F:1234 01 00000000:00000000\n   \
             2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n";
        assert!(listens(table, 0x1f90) && listens(table, 80));
        assert!(!listens(table, 0x1f91) && !listens(table, 0x90) && !listens("", 80));
    }

    #[test]
    fn macs_are_six_bytes() {
        assert_eq!(mac("02:00:00:00:00:ff"), Some([2, 0, 0, 0, 0, 255]));
        for bad in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "0g:00:00:00:00:00"] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
