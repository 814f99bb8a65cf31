//! The netlink socket on which the kernel reports dropped frames.
//!
//! The kernel numbers its reports from 0 for each one who binds the group (`nfulnl_instance.seq` in
//! net/netfilter/nfnetlink_log.c), so that those it had no room for are at least counted. It belongs to the network
//! namespace of the thread that opens it.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_netfilter::nflog::{
    ConfigCmd, ConfigFlags, ConfigMode, ConfigNla, PacketHdr, PacketNla, Timeout, ULogMessage, config_request,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::mpsc;

/// Room for what comes while the reader is busy: some 30,000 frames.
const KERNEL_BUFFER: usize = 8 << 20;
/// The kernel sends a batch of reports when it is this large ...
const BATCH_BYTES: u32 = 32 << 10;
const BATCH_FRAMES: u32 = 64;
/// ... or this old.
const BATCH_AGE: Duration = Duration::from_millis(50);
const PATIENCE_MILLIS: i64 = 500;
/// Larger than any datagram the kernel sends here.
const BUFFER: usize = 128 << 10;
/// Read ahead of the counting. More stay with the kernel, which counts what it then has no room for.
const MOST_BATCHES: usize = 64;

/// A dropped frame as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// What the rule says.
    pub(super) prefix: String,
    /// The port of the bridge it came in by; for what the VM itself dropped, the bridge.
    pub(super) interface: Option<u32>,
    pub(super) ethertype: u16,
    /// The first bytes after the Ethernet header.
    pub(super) payload: Vec<u8>,
}

/// What came at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) reports: Vec<Report>,
    /// Frames between the reports that there was no room for.
    pub(super) lost: u64,
}

/// Binds the group and hands on what comes, from a thread of its own, until the receiver is dropped or an error was handed
/// on. Fails where another process has the group.
pub(super) fn listen(group: u16) -> io::Result<mpsc::Receiver<io::Result<Batch>>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER)?;
    // Also how often the thread sees whether anybody still wants it.
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(PATIENCE_MILLIS))?;
    // Overruns are seen in the numbering.
    socket.set_no_enobufs(true)?;
    configure(
        &socket,
        group,
        vec![
            ConfigNla::Cmd(ConfigCmd::Bind),
            ConfigNla::Mode(ConfigMode::PACKET_MAX),
            ConfigNla::Flags(ConfigFlags::SEQ),
            ConfigNla::Timeout(Timeout::from(BATCH_AGE)),
            ConfigNla::NlBufSiz(BATCH_BYTES),
            ConfigNla::QThresh(BATCH_FRAMES),
        ],
    )?;
    let (hand_on, batches) = mpsc::channel(MOST_BATCHES);
    // A thread, because registering a foreign file descriptor with the runtime is unsafe code.
    std::thread::Builder::new().name("nflog".to_owned()).spawn(move || receive(&socket, &hand_on))?;
    Ok(batches)
}

fn receive(socket: &Socket, hand_on: &mpsc::Sender<io::Result<Batch>>) {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut next = 0;
    while !hand_on.is_closed() {
        buffer.clear();
        let batch = match socket.recv(&mut buffer, 0) {
            Ok(_) => Ok(read(&buffer, &mut next)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => Err(error),
        };
        let failed = batch.is_err();
        if hand_on.blocking_send(batch).is_err() || failed {
            return;
        }
    }
}

fn configure(socket: &Socket, group: u16, settings: Vec<ConfigNla>) -> io::Result<()> {
    let request = config_request(NetfilterProtoFamily::Unspec, group, settings);
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let mut answer = Vec::with_capacity(BUFFER);
        socket.recv(&mut answer, 0)?;
        for message in messages(&answer) {
            // Reports may come before the acknowledgement of the bind that causes them: they are counted as lost.
            if let NetlinkPayload::Error(error) = message.payload {
                return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
            }
        }
    }
}

fn read(bytes: &[u8], next: &mut u32) -> Batch {
    let mut batch = Batch::default();
    for message in messages(bytes) {
        let NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::ULog(ULogMessage::Packet(attributes)),
            ..
        }) = message.payload
        else {
            continue;
        };
        let (report, sequence) = report(attributes);
        if let Some(sequence) = sequence {
            batch.lost = batch.lost.saturating_add(u64::from(sequence.wrapping_sub(*next)));
            *next = sequence.wrapping_add(1);
        }
        batch.reports.push(report);
    }
    batch
}

fn report(attributes: Vec<PacketNla>) -> (Report, Option<u32>) {
    let mut report = Report { prefix: String::new(), interface: None, ethertype: 0, payload: Vec::new() };
    let (mut sequence, mut port) = (None, None);
    for attribute in attributes {
        match attribute {
            PacketNla::Prefix(prefix) => report.prefix = prefix.to_string_lossy().into_owned(),
            PacketNla::IfIndexInDev(index) => report.interface = Some(index),
            PacketNla::IfIndexPhysInDev(index) => port = Some(index),
            PacketNla::PacketHdr(header) => report.ethertype = ethertype(&header),
            PacketNla::Payload(payload) => report.payload = payload,
            PacketNla::Seq(number) => sequence = Some(number),
            _ => {}
        }
    }
    report.interface = port.or(report.interface);
    (report, sequence)
}

/// The crate reads the field but has no accessor for it: it is written out again.
fn ethertype(header: &PacketHdr) -> u16 {
    let mut bytes = [0_u8; 4];
    header.emit_value(&mut bytes);
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// The messages of a datagram. The kernel wrote it; should it make no sense all the same, the rest of it is left.
fn messages(mut bytes: &[u8]) -> Vec<NetlinkMessage<NetfilterMessage>> {
    let mut messages = Vec::new();
    while bytes.len() >= 16 {
        match NetlinkMessage::<NetfilterMessage>::deserialize(bytes) {
            Ok(message) => {
                // Messages begin at multiples of four bytes (netlink(7)).
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                let next = length.checked_next_multiple_of(4).unwrap_or(usize::MAX).max(16);
                messages.push(message);
                bytes = bytes.get(next..).unwrap_or_default();
            }
            Err(error) => {
                tracing::error!(%error, "a netlink message of the kernel is not understood");
                break;
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report with nothing in it but its number, as the kernel writes it (nfnetlink.h, nfnetlink_log.h).
    fn numbered(sequence: u32) -> Vec<u8> {
        const LENGTH: u32 = 16 + 4 + 8;
        const PACKET: u16 = 4 << 8;
        const NFULA_SEQ: u16 = 12;
        let mut bytes = LENGTH.to_ne_bytes().to_vec();
        bytes.extend(PACKET.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([7, 0, 0, 87]);
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(NFULA_SEQ.to_ne_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes
    }

    #[test]
    fn what_is_missing_before_the_first_report_is_lost_too() {
        let mut next = 0;
        let batch = read(&numbered(3), &mut next);
        assert_eq!((batch.reports.len(), batch.lost), (1, 3));
        let batch = read(&[numbered(4), numbered(9)].concat(), &mut next);
        assert_eq!((batch.reports.len(), batch.lost), (2, 4));
        let mut next = u32::MAX;
        let batch = read(&[numbered(u32::MAX), numbered(0)].concat(), &mut next);
        assert_eq!((batch.reports.len(), batch.lost), (2, 0));
    }
}
