//! A dropped frame, read from its first bytes. Pure, and written for bytes that a hostile container chose: what is not
//! there or not understood is absent, never an error.

use std::net::{Ipv4Addr, Ipv6Addr};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// What a frame carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet {
    Arp { sender: Ipv4Addr, target: Ipv4Addr },
    Ipv4 { source: Ipv4Addr, destination: Ipv4Addr, transport: Transport },
    Ipv6 { destination: Ipv6Addr, transport: Transport },
    Other { ethertype: u16 },
}

/// What an IP packet carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp {
        source_port: u16,
        port: u16,
        /// Sequence number of a SYN without data, which is what TCP repeats when nobody answers.
        opening: Option<u32>,
    },
    Udp {
        source_port: u16,
        port: u16,
    },
    Icmp,
    /// By its number, or a fragment or too short to say more.
    Other(u8),
}

/// Reads what follows the Ethernet header.
pub(super) fn read(ethertype: u16, bytes: &[u8]) -> Packet {
    let packet = match ethertype {
        ETHERTYPE_ARP => arp(bytes),
        ETHERTYPE_IPV4 => ipv4(bytes),
        ETHERTYPE_IPV6 => ipv6(bytes),
        _ => None,
    };
    packet.unwrap_or(Packet::Other { ethertype })
}

fn arp(bytes: &[u8]) -> Option<Packet> {
    Some(Packet::Arp { sender: array(bytes, 14)?.into(), target: array(bytes, 24)?.into() })
}

fn ipv4(bytes: &[u8]) -> Option<Packet> {
    let [version_and_length] = array(bytes, 0)?;
    let header = usize::from(version_and_length & 0x0f).checked_mul(4)?;
    if version_and_length >> 4 != 4 || header < 20 {
        return None;
    }
    let [protocol] = array(bytes, 9)?;
    // A later fragment has no transport header; its first bytes mean nothing.
    let later_fragment = u16::from_be_bytes(array(bytes, 6)?) & 0x1fff != 0;
    let rest = if later_fragment { &[] } else { bytes.get(header..).unwrap_or_default() };
    let length = usize::from(u16::from_be_bytes(array(bytes, 2)?)).checked_sub(header);
    Some(Packet::Ipv4 {
        source: array(bytes, 12)?.into(),
        destination: array(bytes, 16)?.into(),
        transport: transport(protocol, rest, length),
    })
}

fn ipv6(bytes: &[u8]) -> Option<Packet> {
    let [version] = array(bytes, 0)?;
    if version >> 4 != 6 {
        return None;
    }
    let [next] = array(bytes, 6)?;
    let rest = bytes.get(40..).unwrap_or_default();
    // Multicast listener reports, which every kernel sends, carry hop-by-hop options (RFC 8200, 4.3) before ICMPv6.
    let (next, rest) = match (next, array(rest, 0)) {
        (0, Some([next, length])) => {
            let length: u8 = length;
            (next, rest.get((usize::from(length) + 1) * 8..).unwrap_or_default())
        }
        (next, _) => (next, rest),
    };
    Some(Packet::Ipv6 { destination: array::<16>(bytes, 24)?.into(), transport: transport(next, rest, None) })
}

/// `length` is what the packet says it carries; what was captured may be less.
fn transport(protocol: u8, bytes: &[u8], length: Option<usize>) -> Transport {
    let read = || match protocol {
        6 => Some(Transport::Tcp {
            source_port: u16::from_be_bytes(array(bytes, 0)?),
            port: u16::from_be_bytes(array(bytes, 2)?),
            opening: opening(bytes, length),
        }),
        17 => Some(Transport::Udp {
            source_port: u16::from_be_bytes(array(bytes, 0)?),
            port: u16::from_be_bytes(array(bytes, 2)?),
        }),
        1 | 58 => Some(Transport::Icmp),
        _ => None,
    };
    read().unwrap_or(Transport::Other(protocol))
}

fn opening(segment: &[u8], length: Option<usize>) -> Option<u32> {
    const FIN_SYN_RST_ACK: u8 = 0x17;
    const SYN: u8 = 0x02;
    let [offset, flags] = array(segment, 12)?;
    let header = usize::from(offset >> 4).checked_mul(4)?;
    let bare = flags & FIN_SYN_RST_ACK == SYN && length == Some(header);
    bare.then_some(u32::from_be_bytes(array(segment, 4)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 header with a transport that begins with ports 40000 and 443 and, in TCP, is a SYN with sequence number 7.
    fn ipv4_bytes(protocol: u8, fragment: u16) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 87, 16, 20, 203, 0, 113, 9]);
        bytes.extend([0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2]);
        bytes
    }

    fn transport_of(packet: Packet) -> Option<Transport> {
        match packet {
            Packet::Ipv4 { transport, .. } | Packet::Ipv6 { transport, .. } => Some(transport),
            _ => None,
        }
    }

    #[test]
    fn reads_what_containers_send() {
        let tcp = Transport::Tcp { source_port: 40000, port: 443, opening: Some(7) };
        assert_eq!(
            read(ETHERTYPE_IPV4, &ipv4_bytes(6, 0)),
            Packet::Ipv4 {
                source: Ipv4Addr::new(10, 87, 16, 20),
                destination: Ipv4Addr::new(203, 0, 113, 9),
                transport: tcp
            }
        );
        let udp = Transport::Udp { source_port: 40000, port: 443 };
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, &ipv4_bytes(17, 0))), Some(udp));
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, &ipv4_bytes(1, 0))), Some(Transport::Icmp));
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, &ipv4_bytes(47, 0))), Some(Transport::Other(47)));
        // More fragments: the header is there. A later fragment: it is not.
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, &ipv4_bytes(6, 0x2000))), Some(tcp));
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, &ipv4_bytes(6, 3))), Some(Transport::Other(6)));
        // Data in it, another flag, too short to tell: nothing that TCP would repeat unasked.
        let later = Transport::Tcp { source_port: 40000, port: 443, opening: None };
        for (at, byte) in [(3, 41), (33, 0x12), (33, 0x10), (33, 0x03), (32, 0x60)] {
            let mut other = ipv4_bytes(6, 0);
            if let Some(changed) = other.get_mut(at) {
                *changed = byte;
            }
            assert_eq!(transport_of(read(ETHERTYPE_IPV4, &other)), Some(later), "{at}");
        }
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, ipv4_bytes(6, 0).get(..30).unwrap_or_default())), Some(later));
        // With options the transport begins later.
        let mut options = ipv4_bytes(6, 0);
        options.splice(20..20, [1, 1, 1, 1]);
        if let Some(first) = options.first_mut() {
            *first = 0x46;
        }
        if let Some(length) = options.get_mut(3) {
            *length = 44;
        }
        assert_eq!(transport_of(read(ETHERTYPE_IPV4, &options)), Some(tcp));
    }

    #[test]
    fn reads_arp_and_ipv6() {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([2, 0, 0, 0, 0, 1, 10, 87, 16, 20, 0, 0, 0, 0, 0, 0, 10, 87, 16, 4]);
        assert_eq!(
            read(ETHERTYPE_ARP, &request),
            Packet::Arp { sender: Ipv4Addr::new(10, 87, 16, 20), target: Ipv4Addr::new(10, 87, 16, 4) }
        );
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
        packet.extend(Ipv6Addr::LOCALHOST.octets());
        packet.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).octets());
        assert_eq!(
            read(ETHERTYPE_IPV6, &packet),
            Packet::Ipv6 { destination: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), transport: Transport::Icmp }
        );
        let mut options = packet.clone();
        options.splice(6..7, [0]);
        options.extend([58, 0, 5, 2, 0, 0, 1, 0, 143]);
        assert_eq!(transport_of(read(ETHERTYPE_IPV6, &options)), Some(Transport::Icmp));
        assert_eq!(read(0x88cc, &[1, 2]), Packet::Other { ethertype: 0x88cc });
        assert_eq!(read(ETHERTYPE_IPV4, &packet), Packet::Other { ethertype: ETHERTYPE_IPV4 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(ethertype in prop::sample::select(vec![0x0800u16, 0x0806, 0x86dd, 0x8100]),
                              bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            read(ethertype, &bytes);
        }
    }
}
