//! The kernel's table of TCP sockets: who listens on a port of this VM, and whose program is at the other end of a
//! connection.

use std::net::SocketAddrV4;
use std::path::Path;

use service_kit::text::harmless_line;

const MOST_NAME: usize = 40;
/// State LISTEN (include/net/tcp_states.h of Linux).
const LISTEN: &str = "0A";

/// ::1, as the kernel spells it: four numbers of 32 bits in memory order.
const LOOPBACK_6: &str = "00000000000000000000000001000000";

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Its own address, as the kernel spells it: 8 or 32 hex digits, a colon, the port in 4.
    local: String,
    remote: String,
    state: String,
    /// Whose it is.
    pub(crate) uid: u32,
    inode: String,
}

impl Socket {
    /// Whether it waits for connections.
    pub(crate) fn listens(&self) -> bool {
        self.state == LISTEN
    }

    /// Its own port.
    pub(crate) fn port(&self) -> Option<u16> {
        self.local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok())
    }

    /// Whether its own address is exactly this one.
    pub(crate) fn is_at(&self, address: SocketAddrV4) -> bool {
        spellings(address).contains(&self.local)
    }

    /// Whether it takes what is sent to this address of loopback: at its own, at ::1, or at everyone's.
    pub(crate) fn takes(&self, address: SocketAddrV4) -> bool {
        let of_loopback = |(host, _): (&str, &str)| host == LOOPBACK_6 || host.bytes().all(|byte| byte == b'0');
        self.is_at(address)
            || (self.port() == Some(address.port()) && self.local.rsplit_once(':').is_some_and(of_loopback))
    }
}

/// Every TCP socket of this VM.
pub(crate) fn all() -> Vec<Socket> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .flat_map(|path| parse(&std::fs::read_to_string(path).unwrap_or_default()))
        .collect()
}

fn parse(table: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let text = |index: usize| fields.get(index).map(|field| (*field).to_owned());
        Some(Socket {
            local: text(1)?,
            remote: text(2)?,
            state: text(3)?,
            uid: fields.get(7)?.parse().ok()?,
            inode: text(9)?,
        })
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// How the kernel spells an IPv4 address: the 32 bits in memory order (little endian on every machine we run on), alone or
/// mapped into IPv6.
fn spellings(address: SocketAddrV4) -> [String; 2] {
    let (host, port) = (u32::from_le_bytes(address.ip().octets()), address.port());
    [format!("{host:08X}:{port:04X}"), format!("0000000000000000FFFF0000{host:08X}:{port:04X}")]
}

/// Whose program opened the connection from `client` to `gate`, both on this VM. None when it cannot be told: then it is
/// nobody's.
pub(super) fn whose(client: SocketAddrV4, gate: SocketAddrV4) -> Option<u32> {
    owner(&all(), client, gate)
}

fn owner(sockets: &[Socket], client: SocketAddrV4, gate: SocketAddrV4) -> Option<u32> {
    let gates = spellings(gate);
    // A socket that no program has any more has no inode, and says that it is root's.
    let held = |socket: &&Socket| socket.inode != "0" && !socket.listens();
    sockets
        .iter()
        .filter(held)
        .find(|socket| socket.is_at(client) && gates.contains(&socket.remote))
        .map(|socket| socket.uid)
}

/// Who listens on a TCP port of this VM, for the sentence that says so: for example `nginx (process 812)`. Best effort: a
/// name, or nothing.
pub(crate) fn who_listens(listen: SocketAddrV4) -> Option<String> {
    let links: Vec<String> = all()
        .iter()
        .filter(|socket| socket.listens() && socket.takes(listen))
        .map(|socket| format!("socket:[{}]", socket.inode))
        .collect();
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        let pid = name.to_str()?.parse::<u32>().ok()?;
        let mut open = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let holds = |path: &Path| {
            std::fs::read_link(path).is_ok_and(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
        };
        if !open.any(|file| holds(&file.path())) {
            return None;
        }
        let program = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some(format!("{} (process {pid})", harmless_line(program.trim(), MOST_NAME)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const HEADER: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn table(lines: &[&str]) -> Vec<Socket> {
        parse(&format!("{HEADER}{}\n", lines.join("\n")))
    }

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn finds_listeners_only() {
        let sockets = table(&[
            "   0: 0100007F:107E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 111 1 0 100 0 0 10 0",
            "   1: 00000000:107E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 222 1 0 100 0 0 10 0",
            "   2: 0200007F:107E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 333 1 0 100 0 0 10 0",
            "   3: 0100007F:107E 0100007F:8888 01 00000000:00000000 00:00000000 00000000  0        0 444 1 0 100 0 0 10 0",
        ]);
        let takes = |listen: &str| -> Vec<&str> {
            let taking = sockets.iter().filter(|socket| socket.listens() && socket.takes(at(listen)));
            taking.map(|socket| socket.inode.as_str()).collect()
        };
        assert_eq!(takes("127.0.0.1:4222"), ["111", "222"]);
        assert!(takes("127.0.0.1:4223").is_empty());
        assert_eq!(sockets[0].port(), Some(4222));
        assert!(sockets[0].is_at(at("127.0.0.1:4222")) && !sockets[1].is_at(at("127.0.0.1:4222")));
    }

    #[test]
    fn tells_whose_connection_it_is_as_long_as_somebody_has_it() {
        let (client, gate) = (at("127.0.0.1:34952"), at("127.0.0.1:4222"));
        // The gate's own end, then the client's.
        let ends = [
            "   0: 0100007F:107E 0100007F:8888 01 00000000:00000000 00:00000000 00000000  8713  0 444 1 0 100 0 0 10 0",
            "   1: 0100007F:8888 0100007F:107E 01 00000000:00000000 00:00000000 00000000  1000  0 555 1 0 100 0 0 10 0",
        ];
        assert_eq!(owner(&table(&ends), client, gate), Some(1000));
        assert_eq!(owner(&table(&ends[..1]), client, gate), None);
        assert_eq!(owner(&table(&ends), at("127.0.0.1:34953"), gate), None);
        assert_eq!(owner(&table(&ends), client, at("127.0.0.1:4223")), None);
        // Closed: the kernel says that such a socket is root's.
        let closed = ends[1].replace(" 1000 ", " 0 ").replace(" 555 ", " 0 ");
        assert_eq!(owner(&table(&[&closed]), client, gate), None);
        // A client that speaks IPv6 to a mapped address.
        let mapped = ends[1].replace("0100007F:", "0000000000000000FFFF00000100007F:");
        assert_eq!(owner(&table(&[&mapped]), client, gate), Some(1000));
    }

    #[test]
    fn names_the_process_and_the_user() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { return };
        let found = who_listens(address).unwrap();
        assert!(found.contains(&format!("(process {})", std::process::id())), "{found}");
        let client = TcpStream::connect(address).unwrap();
        let SocketAddr::V4(own) = client.local_addr().unwrap() else { return };
        assert_eq!(whose(own, address), Some(std::fs::metadata("/proc/self").unwrap().uid()));
        drop((listener, client));
        assert_eq!((who_listens(address), whose(own, address)), (None, None));
    }
}
