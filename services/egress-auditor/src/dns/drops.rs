//! Counts the queries that the kernel dropped because a resolver's socket was full. Without this a flood would hide
//! attempts: what nobody read is still an attempt that was refused.

use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::denials::{Denials, What, Who};

/// The kernel's table of UDP sockets of this network namespace (proc(5)).
const TABLE: &str = "/proc/net/udp";
/// How often it is read: well within the second in which a denial has to be told.
const EVERY: Duration = Duration::from_millis(400);

/// Notes what is dropped on the socket at `at` until `draining`. It holds the socket: one that the resolver alone held
/// would leave the table in the drain before its last drops are counted.
pub(super) async fn watch(
    _socket: Arc<UdpSocket>,
    at: SocketAddrV4,
    who: Who,
    denials: Denials,
    draining: CancellationToken,
) -> anyhow::Result<()> {
    let mut known = read(at).await?;
    loop {
        let ending = tokio::select! {
            () = tokio::time::sleep(EVERY) => false,
            () = draining.cancelled() => true,
        };
        let now = read(at).await?;
        // The kernel's counter has 32 bits and starts again at zero.
        let dropped = now.wrapping_sub(known);
        if dropped > 0 {
            denials.note_many(who.clone(), What::Unread, String::new(), IpAddr::V4(*at.ip()), u64::from(dropped));
        }
        known = now;
        if ending {
            return Ok(());
        }
    }
}

async fn read(at: SocketAddrV4) -> anyhow::Result<u32> {
    let table = tokio::fs::read_to_string(TABLE).await.context(TABLE)?;
    drops(&table, at).with_context(|| format!("{TABLE} has no socket at {at}"))
}

/// The last column of the row with that local address. Addresses are written as the hex of the kernel's own integer:
/// bytes in memory order on a little-endian machine, ports in network order.
fn drops(table: &str, at: SocketAddrV4) -> Option<u32> {
    let address = u32::from_ne_bytes(at.ip().octets());
    let local = format!("{address:08X}:{:04X}", at.port());
    table
        .lines()
        .skip(1)
        .find(|line| line.split_whitespace().nth(1) == Some(local.as_str()))
        .and_then(|line| line.split_whitespace().last())
        .and_then(|count| count.parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::net::{Ipv4Addr, UdpSocket as StdUdpSocket};

    use super::*;

    #[test]
    fn the_kernels_own_table_counts_what_did_not_fit() {
        let socket = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let std::net::SocketAddr::V4(at) = socket.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        assert_eq!(drops(&std::fs::read_to_string(TABLE).unwrap(), at), Some(0));
        let sender = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut sent = 0_u32;
        for _ in 0..20_000 {
            sender.send_to(&[0; 64], at).unwrap();
            sent += 1;
        }
        let dropped = drops(&std::fs::read_to_string(TABLE).unwrap(), at).unwrap();
        assert!(dropped > 0, "{sent} datagrams all fitted");
        socket.set_nonblocking(true).unwrap();
        let mut read = 0;
        while socket.recv(&mut [0; 64]).is_ok() {
            read += 1;
        }
        assert_eq!(read + dropped, sent, "each is either read or counted as dropped");
    }

    #[test]
    fn a_table_without_the_socket() {
        assert_eq!(drops("", SocketAddrV4::new(Ipv4Addr::LOCALHOST, 53)), None);
    }
}
