//! Ethernet frames, byte by byte, as a container with raw sockets would make them.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

pub(crate) fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    // Not padded: a veth carries frames of any length, and a bridge may take padding off again.
    [to.as_slice(), from.as_slice(), &ethertype.to_be_bytes(), payload].concat()
}

pub(crate) fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(sender.1.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    bytes
}

/// `fragment` is the whole 16-bit field: flags and offset.
pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 20).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    let sum = checksum(&bytes);
    bytes.splice(10..12, sum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    // Another number for every segment, or it would be a retransmission.
    bytes.extend(
        std::sync::atomic::AtomicU32::fetch_add(&SEQUENCE, 1, std::sync::atomic::Ordering::Relaxed).to_be_bytes(),
    );
    bytes.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

static SEQUENCE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);

pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

pub(crate) fn ping() -> Vec<u8> {
    vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0]
}

/// "Port unreachable", about no packet in particular.
pub(crate) fn unreachable() -> Vec<u8> {
    let mut bytes = vec![3, 3, 0xfc, 0xfc];
    bytes.extend([0; 32]);
    bytes
}

pub(crate) fn ipv6_ping() -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    bytes.extend(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).octets());
    bytes.extend(std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
    bytes.extend([128, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

pub(crate) fn ipv6_udp(from: Ipv6Addr, to: Ipv6Addr, from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = udp(from_port, to_port, payload);
    let length = u16::try_from(datagram.len()).unwrap().to_be_bytes();
    // Over IPv6 the checksum is not optional (RFC 8200, 8.1). To an even length.
    let mut summed = [from.octets(), to.octets()].concat();
    summed.extend(length);
    summed.extend([0, UDP]);
    summed.extend(&datagram);
    summed.resize(summed.len().next_multiple_of(2), 0);
    datagram.splice(6..8, checksum(&summed).to_be_bytes());
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length);
    bytes.extend([UDP, 64]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(datagram);
    bytes
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap()
}
