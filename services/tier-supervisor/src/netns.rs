//! Inside a container's network namespace, from the VM: finding its ports, giving it the routes that turn attempts into
//! frames, and asking whether it listens.
//!
//! A namespace is entered on a thread of its own, which ends with the visit, so that no other work can ever run there by
//! accident. It changes routes, neighbour entries and IPv6 of containers, and nothing of the VM.
//!
//! Everything here blocks; async callers go through `spawn_blocking`.

mod inside;
mod links;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{self, CommandError};
use crate::desired::{ContainerSpec, Desired};

/// A MAC address that nobody has (locally administered): where a tier container's packets to an address that is not a door
/// of its are sent, so that they become frames which the kernel table counts and drops.
pub const NOBODY: [u8; 6] = [0x06, 0x61, 0x73, 0x00, 0x00, 0x01];

const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What could not be done in a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is none, or it cannot be entered. The process has usually ended.
    #[error("the network namespace {} cannot be entered: {source}", path.display())]
    Enter {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// None could be made.
    #[error("no network namespace can be made: {source}; tier-supervisor runs as root, outside of any container")]
    Make {
        /// The system's reason.
        source: std::io::Error,
    },
    /// The visitor's thread died.
    #[error("the thread that visited a network namespace ended abnormally; this is a bug")]
    Lost,
    /// `ip` could not do it.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// `ip` said something that is not understood.
    #[error("the answer of ip is not understood: {why}; is it iproute2 5.10 or later, with JSON?")]
    Listing {
        /// Why.
        why: String,
    },
    /// A file of /proc could not be used.
    #[error("{}: {source}", path.display())]
    Proc {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A container has no interface with an address it should have.
    #[error("{container} has no interface with the address {address}; remove the container, it will be made again")]
    NoSuchAddress {
        /// Which container.
        container: String,
        /// Which address.
        address: Ipv4Addr,
    },
}

/// An interface of a container, with the port of the bridge that it is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its name inside. Docker numbers interfaces at random: nothing may be derived from it.
    pub ifname: String,
    /// The other end, in the VM: the name that the kernel table knows it by.
    pub host_ifname: String,
    /// The bridge that the other end is a port of.
    pub bridge: Option<String>,
}

/// Runs `work` on a thread inside the network namespace with that file (`/proc/<pid>/ns/net`, `/run/netns/<name>`).
///
/// # Errors
/// When it cannot be entered; `work` has then not run.
pub fn within<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let enter = || {
        let file = File::open(namespace)?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
    };
    apart(|| {
        enter().map_err(|source| NetnsError::Enter { path: namespace.to_owned(), source })?;
        Ok(work())
    })
}

/// Runs `work` on a thread inside a network namespace that is made for it and vanishes afterwards.
///
/// # Errors
/// When none can be made; `work` has then not run.
pub(crate) fn scratch<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    apart(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NetnsError::Make { source: error.into() })?;
        Ok(work())
    })
}

fn apart<T: Send>(work: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or(Err(NetnsError::Lost)))
}

fn of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Where the container with this process is plugged in. Only veths whose ends name each other count.
///
/// # Errors
/// When its namespace cannot be entered or `ip` is of no use.
pub fn ports(pid: u32) -> Result<Vec<Port>, NetnsError> {
    let inside = within(&of(pid), || command::run("ip", &["-j", "address", "show"], ""))??;
    let outside = command::run("ip", &["-j", "link", "show"], "")?;
    links::ports(&inside, &outside)
}

/// Makes a container's every attempt a frame: see [`ContainerSpec::inert_default_route`]. Switches IPv6 off in any
/// container. Makes the gateway of `egress` the default route of who is on it, since an engine may have picked another
/// network's. Safe to repeat.
///
/// A tier container's own subnet is not on-link for it, except for the peers it has a flow with: an attempt at a neighbour
/// then is a packet with a port, not an ARP request that says less and comes three times.
///
/// # Errors
/// When anything of it could not be done: the container must then not go on running.
pub fn prepare(pid: u32, container: &ContainerSpec, desired: &Desired) -> Result<(), NetnsError> {
    let ports = ports(pid)?;
    let commands = inside::commands(container, desired, &ports)?;
    within(&of(pid), || {
        for scope in ["all", "default"] {
            let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"));
            // A kernel without IPv6 has nothing to switch off.
            if path.exists() {
                std::fs::write(&path, "1").map_err(|source| NetnsError::Proc { path, source })?;
            }
        }
        if !commands.is_empty() {
            command::run("ip", &["-batch", "-"], &commands.concat())?;
        }
        Ok(())
    })?
}

/// Whether the container still has the routes that [`prepare`] gave it, and no IPv6.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_prepared(pid: u32, container: &ContainerSpec, desired: &Desired) -> Result<bool, NetnsError> {
    let ports = ports(pid)?;
    if container.networks.is_empty() {
        // Nothing but its loopback; an interface would be somebody's mistake.
        let ipv6 = within(&of(pid), quiet)?;
        return Ok(ipv6 && ports.is_empty());
    }
    let wanted = inside::routes(container, desired, &ports)?;
    let (routes, neighbours, quiet) = within(&of(pid), || {
        Ok::<_, NetnsError>((
            command::run("ip", &["-j", "-4", "route", "show"], "")?,
            command::run("ip", &["-j", "-4", "neigh", "show", "nud", "permanent"], "")?,
            quiet(),
        ))
    })??;
    Ok(quiet && wanted.stand(&routes, &neighbours)?)
}

/// Whether IPv6 is off in the namespace of this thread. A kernel without IPv6 has nothing to switch off.
fn quiet() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").map_or(true, |text| text.trim() == "1")
}

/// Whether the container would hand on packets between its networks.
///
/// # Errors
/// When it cannot be looked at.
pub fn forwards(pid: u32) -> Result<bool, NetnsError> {
    within(&of(pid), || {
        let path = PathBuf::from("/proc/sys/net/ipv4/ip_forward");
        let text = std::fs::read_to_string(&path).map_err(|source| NetnsError::Proc { path, source })?;
        Ok(text.trim() != "0")
    })?
}

/// Whether anything in the container listens on that TCP port, on whatever address. Read from the kernel's list: a
/// connection would be a line in Squid's log.
///
/// # Errors
/// When the list cannot be read; the process has usually ended.
pub fn tcp_open(pid: u32, port: u16) -> Result<bool, NetnsError> {
    for table in ["tcp", "tcp6"] {
        let path = PathBuf::from(format!("/proc/{pid}/net/{table}"));
        match std::fs::read_to_string(&path) {
            Ok(text) if links::listens(&text, port) => return Ok(true),
            Ok(_) => {}
            Err(_) if table == "tcp6" => {}
            Err(source) => return Err(NetnsError::Proc { path, source }),
        }
    }
    Ok(false)
}

/// Whether `GET http://127.0.0.1:<port><path>`, asked inside the container, is answered with a 2xx within two seconds.
/// No answer is `false`.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn http_ok(pid: u32, port: u16, path: &str) -> Result<bool, NetnsError> {
    within(&of(pid), || {
        let ask = || -> std::io::Result<bool> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
            // "HTTP/1.1 200": the status line says it all.
            let mut start = [0_u8; 12];
            stream.read_exact(&mut start)?;
            Ok(start.starts_with(b"HTTP/1.") && start.get(8..10) == Some(b" 2".as_slice()))
        };
        ask().unwrap_or(false)
    })
}
