//! Who listens on the VM for the stack, and who gets at the pages behind it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Verdict, failed, passed};
use crate::desired::{ContainerSpec, Desired, Gate};
use crate::gates::sockets::{self, Socket};
use crate::kernel::GATES_UID;
use crate::vm::pages;

/// The gates, and nobody else, listen at the gates' ports, on 127.0.0.1 alone; and nowhere else.
pub(super) fn on_loopback(desired: &Desired) -> Verdict {
    const CHECK: &str = "gates-on-loopback";
    // Control: a listener of our own must be among what is read.
    let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) else {
        return failed(
            CHECK,
            "nothing can listen on 127.0.0.1".to_owned(),
            "look at the interface lo: ip address show lo",
        );
    };
    let sockets = sockets::all();
    let own = match listener.local_addr() {
        Ok(SocketAddr::V4(own)) => sockets.iter().any(|socket| socket.listens() && socket.is_at(own)),
        Ok(SocketAddr::V6(_)) | Err(_) => false,
    };
    if !own {
        return failed(
            CHECK,
            "the kernel's table of sockets does not show who listens".to_owned(),
            "run the check again",
        );
    }
    let strangers = strangers(&desired.gates, &sockets, GATES_UID);
    if strangers.is_empty() {
        let count = desired.gates.len();
        return passed(
            CHECK,
            format!("nobody but the gates listens at the {count} ports of gates, on 127.0.0.1 alone"),
        );
    }
    failed(
        CHECK,
        strangers.join("; "),
        "stop the program that is named (ss -ltnp shows it); if it is the gates' own, restart tier-supervisor",
    )
}

/// What listens at a gate's port without being the gate, and what of the gates' listens elsewhere.
fn strangers(gates: &[Gate], sockets: &[Socket], gates_uid: u32) -> Vec<String> {
    let of_gate = |socket: &Socket| gates.iter().any(|gate| socket.is_at(gate.listen));
    let in_the_way = |socket: &Socket| gates.iter().any(|gate| socket.takes(gate.listen));
    sockets
        .iter()
        .filter(|socket| socket.listens())
        .filter_map(|socket| {
            let (port, uid) = (socket.port()?, socket.uid);
            match (uid == gates_uid, of_gate(socket)) {
                (true, true) => None,
                (true, false) => {
                    Some(format!("the gates listen at port {port}, which is no gate's, or not on 127.0.0.1"))
                }
                (false, _) if in_the_way(socket) => {
                    let holder = sockets::who_listens(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
                    let holder = holder.unwrap_or_else(|| format!("a program of uid {uid}"));
                    Some(format!("port {port}, a gate's, is held by {holder}"))
                }
                (false, _) => None,
            }
        })
        .collect()
}

/// Nobody but the service and the gates gets at the sockets of its pages.
pub(super) fn page_sockets(spec: &ContainerSpec) -> Option<Verdict> {
    const CHECK: &str = "page-sockets";
    const FIX: &str =
        "tier-supervisor mends the directory by itself within seconds, the service its sockets when it starts";
    let directory = spec.pages.as_ref()?;
    let name = &spec.name;
    if let Some(problem) = pages::problem(directory) {
        return Some(failed(CHECK, format!("{name}: {problem}"), FIX));
    }
    Some(match open_to_others(&directory.path, directory.gid) {
        Ok(count) => passed(CHECK, format!("{name}: {count} sockets of pages, for the gates alone")),
        Err(problem) => failed(CHECK, format!("{name}: {problem}"), FIX),
    })
}

/// How many sockets there are, if all are closed to others.
fn open_to_others(directory: &Path, gid: u32) -> Result<usize, String> {
    let entries =
        std::fs::read_dir(directory).map_err(|error| format!("{} cannot be read: {error}", directory.display()))?;
    let mut count: usize = 0;
    for entry in entries.flatten() {
        let path = entry.path();
        // One that has just gone is open to nobody.
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if !found.file_type().is_socket() {
            continue;
        }
        if found.mode() & 0o007 != 0 || found.gid() != gid {
            let mode = found.mode() & 0o777;
            return Err(format!("{} is of group {} with mode {mode:o}", path.display(), found.gid()));
        }
        count = count.saturating_add(1);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::desired::GateKind;

    fn gate(listen: SocketAddr) -> Gate {
        let SocketAddr::V4(listen) = listen else { unreachable!("it is IPv4") };
        Gate { name: "tasks".to_owned(), listen, kind: GateKind::Tcp(listen) }
    }

    #[test]
    fn whoever_else_listens_is_seen() {
        let own = std::fs::metadata("/proc/self").unwrap().uid();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listen = listener.local_addr().unwrap();
        let sockets = |port: u16| -> Vec<Socket> {
            // Of this process's others nothing is said here: tests run beside each other.
            sockets::all().into_iter().filter(|socket| socket.port() == Some(port)).collect()
        };
        let there = sockets(listen.port());
        assert_eq!(strangers(&[gate(listen)], &there, own), Vec::<String>::new());
        // The same socket, if the gates are another user: somebody else has the port.
        let held = strangers(&[gate(listen)], &there, own.wrapping_add(1));
        assert!(
            matches!(held.as_slice(), [one] if one.contains(&format!("(process {})", std::process::id()))),
            "{held:?}"
        );
        // The gates' own, where there is no gate.
        assert_eq!(strangers(&[], &there, own).len(), 1);
        // At another address of this machine nobody looks for a page.
        let beside = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), listen.port())).unwrap();
        drop(listener);
        let alone = sockets(listen.port());
        assert_eq!((alone.len(), strangers(&[gate(listen)], &alone, own.wrapping_add(1))), (1, Vec::new()));
        drop(beside);
        // On every address.
        let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let wide = gate(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        assert_eq!(strangers(std::slice::from_ref(&wide), &sockets(port), own).len(), 1);
        assert_eq!(strangers(&[wide], &sockets(port), own.wrapping_add(1)).len(), 1);
    }

    #[test]
    fn a_socket_that_is_open_to_others_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let gid = std::fs::metadata(dir.path()).unwrap().gid();
        let path = dir.path().join("tasks.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        std::fs::write(dir.path().join("note"), "no socket").unwrap();
        let chmod = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        chmod(0o660);
        assert_eq!(open_to_others(dir.path(), gid), Ok(1));
        assert!(open_to_others(dir.path(), gid.wrapping_add(1)).is_err());
        chmod(0o666);
        assert!(open_to_others(dir.path(), gid).unwrap_err().contains("666"));
    }
}
