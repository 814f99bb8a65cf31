//! The sink: records every packet for every address, and accepts every TCP connection that no double serves, so that
//! an escape gets to say what it wanted to say.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use service_kit::task::Tasks;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;

use super::record::{Arrival, Record};
use super::{DNS, MARVIN, MODEL, OUTSIDE, TELEGRAM, critical};

/// Where connections go that no double serves.
const CATCH_ALL_PORT: u16 = 9;
/// Recorded payload of one packet.
const MOST_PAYLOAD: usize = 2048;
/// `ETH_P_ALL`, in the byte order the kernel wants.
const ETH_P_ALL: i32 = 0x0300;

/// Sends connections to addresses and ports without a double to the catch-all listener.
///
/// # Errors
/// When `nft` fails: without it an escape over TCP would be seen as a SYN only.
pub fn redirect_what_nobody_serves() -> anyhow::Result<()> {
    let rules = format!(
        "table ip sink {{}}\ndelete table ip sink\ntable ip sink {{\n chain prerouting {{\n  type nat hook prerouting \
         priority -100; policy accept;\n  ip daddr {{ {MODEL}, {MARVIN}, {OUTSIDE}, {TELEGRAM} }} tcp dport 443 accept\n  ip daddr {DNS} \
         meta l4proto {{ tcp, udp }} th dport 53 accept\n  meta l4proto tcp redirect to :{CATCH_ALL_PORT}\n }}\n}}\n"
    );
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft")?;
    nft.stdin.take().context("nft")?.write_all(rules.as_bytes())?;
    let status = nft.wait()?;
    anyhow::ensure!(status.success(), "nft refused the sink's rules: {status}");
    Ok(())
}

/// Starts capture and catch-all.
///
/// # Errors
/// When the packet socket or the listener cannot be opened.
pub fn start(tasks: &Tasks, interface: &str, record: Arc<Record>) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ETH_P_ALL)))
        .context("the sink needs a packet socket (root, inside the drill's namespace)")?;
    let own = own_mac(interface)?;
    let capture = std::thread::Builder::new().name("capture".to_owned());
    critical(tasks, "catch-all".to_owned(), async move {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, CATCH_ALL_PORT)).await?;
        let open = Tasks::default();
        loop {
            let (mut stream, _) = listener.accept().await?;
            open.spawn("caught", service_kit::task::OnEnd::Expected, async move {
                // What is said is recorded by the capture; here it is only kept flowing for a while.
                let mut buffer = vec![0; 16 * 1024];
                let listen = async { while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {} };
                tokio::time::timeout(std::time::Duration::from_secs(10), listen).await.ok();
                Ok(())
            });
        }
    });
    capture.spawn(move || {
        let mut socket = socket;
        let mut buffer = vec![0_u8; 65_536];
        loop {
            match socket.read(&mut buffer) {
                Ok(count) => {
                    if let Some(arrival) = buffer.get(..count).and_then(|frame| arrival(frame, own)) {
                        record.add(arrival);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "the sink's capture ended");
                    std::process::exit(1);
                }
            }
        }
    })?;
    Ok(())
}

fn own_mac(interface: &str) -> anyhow::Result<[u8; 6]> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/address"))
        .with_context(|| format!("no interface {interface} in this namespace"))?;
    let mut mac = [0; 6];
    hex::decode_to_slice(text.trim().replace(':', ""), &mut mac).context("its MAC address")?;
    Ok(mac)
}

/// An Ethernet frame from elsewhere that holds an IP packet; none for what this namespace itself sends (own MAC, or
/// the zero MAC of `lo`).
fn arrival(frame: &[u8], own: [u8; 6]) -> Option<Arrival> {
    let source = frame.get(6..12)?;
    if source == own || source == [0; 6] { None } else { packet(frame.get(14..)?) }
}

fn packet(bytes: &[u8]) -> Option<Arrival> {
    let (protocol, source, destination, body) = match bytes.first()? >> 4 {
        4 => {
            let header = usize::from(bytes.first()? & 0x0f).checked_mul(4)?;
            let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])).min(bytes.len());
            let address = |at: usize| -> Option<Ipv4Addr> {
                Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at.checked_add(4)?)?).ok()?))
            };
            (*bytes.get(9)?, address(12)?.to_string(), address(16)?.to_string(), bytes.get(header..length)?)
        }
        6 => {
            let address = |at: usize| -> Option<Ipv6Addr> {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at.checked_add(16)?)?).ok()?))
            };
            (*bytes.get(6)?, address(8)?.to_string(), address(24)?.to_string(), bytes.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at.checked_add(1)?)?]));
    let (name, to, syn, payload) = match protocol {
        6 => {
            let offset = usize::from(body.get(12)? >> 4).checked_mul(4)?;
            // SYN set, ACK clear.
            ("tcp".to_owned(), port(2)?, body.get(13)? & 0x12 == 0x02, body.get(offset..).unwrap_or_default())
        }
        17 => ("udp".to_owned(), port(2)?, false, body.get(8..).unwrap_or_default()),
        1 | 58 => ("icmp".to_owned(), 0, false, body),
        other => (other.to_string(), 0, false, body),
    };
    let payload = payload.get(..payload.len().min(MOST_PAYLOAD)).unwrap_or_default();
    Some(Arrival::Packet {
        protocol: name,
        source,
        destination,
        port: to,
        syn,
        payload: String::from_utf8_lossy(payload).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_is_told_from_an_answer() {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 87, 16, 20, 203, 0, 113, 9];
        bytes.extend([0x80, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(packet(&bytes), Some(Arrival::Packet { syn: true, port: 80, .. })));
        if let Some(flags) = bytes.get_mut(33) {
            *flags = 0x12;
        }
        assert!(matches!(packet(&bytes), Some(Arrival::Packet { syn: false, .. })));
        assert!(packet(bytes.get(..10).unwrap_or_default()).is_none());
        let frame = |source: [u8; 6]| [&[2; 6], &source[..], &[8, 0], &bytes[..]].concat();
        assert!(arrival(&frame([2, 0, 0, 0, 0, 1]), [2, 0, 0, 0, 0, 9]).is_some());
        assert!(arrival(&frame([2, 0, 0, 0, 0, 9]), [2, 0, 0, 0, 0, 9]).is_none());
    }
}
