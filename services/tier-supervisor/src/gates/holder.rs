//! Who listens on a TCP port of this VM, for the sentence that says so. Best effort: a name, or nothing.

use std::net::SocketAddrV4;
use std::path::Path;

use service_kit::text::harmless_line;

const MOST_NAME: usize = 40;

/// For example `nginx (process 812)`.
pub(super) fn who_listens(listen: SocketAddrV4) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<String> = tables.iter().flat_map(|table| inodes(table, listen)).collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
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

/// Inodes of the sockets in state LISTEN (0A) that take what is sent to this address: its own, or everyone's.
fn inodes(table: &str, listen: SocketAddrV4) -> Vec<String> {
    // /proc/net/tcp spells an address as the 32 bits in memory order: little endian on every machine we run on.
    let own = format!("{:08X}:{:04X}", u32::from_le_bytes(listen.ip().octets()), listen.port());
    let port = format!(":{:04X}", listen.port());
    let everyone = |local: &str| {
        local.strip_suffix(&port).is_some_and(|address| !address.is_empty() && address.bytes().all(|b| b == b'0'))
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (*fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
            (state == "0A" && (local == own || everyone(local))).then(|| inode.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::net::{SocketAddr, TcpListener};

    use super::*;

    #[test]
    fn finds_listeners_only() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:107E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 111 1 0 100 0 0 10 0\n   \
            1: 00000000:107E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 222 1 0 100 0 0 10 0\n   \
            2: 0200007F:107E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 333 1 0 100 0 0 10 0\n   \
            3: 0100007F:107E 0100007F:8888 01 00000000:00000000 00:00000000 00000000  0        0 444 1 0 100 0 0 10 0\n";
        assert_eq!(inodes(table, "127.0.0.1:4222".parse().unwrap()), ["111", "222"]);
        assert!(inodes(table, "127.0.0.1:4223".parse().unwrap()).is_empty());
    }

    #[test]
    fn names_the_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { return };
        let found = who_listens(address).unwrap();
        assert!(found.contains(&format!("(process {})", std::process::id())), "{found}");
        drop(listener);
        assert_eq!(who_listens(address), None);
    }
}
