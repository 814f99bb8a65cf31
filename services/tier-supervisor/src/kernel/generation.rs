//! Which generation of nftables rules the kernel has. It counts every transaction that changed any table of the calling
//! thread's network namespace, so that equal generations mean equal tables.
//!
//! Three calls to the kernel instead of a program: it is asked several times a second.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::KernelError;

/// nfnetlink.h: the subsystem in the upper byte; nf_tables.h: the messages and the attribute.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const ASK_GENERATION: u16 = SUBSYSTEM | 16;
const GENERATION_ID: u16 = 1;
/// netlink.h.
const IS_REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// struct nlmsghdr and struct nfgenmsg.
const HEADERS: usize = 20;
/// The kernel answers while it is asked.
const PATIENCE_SECONDS: i64 = 2;

/// A number that changes with every transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u32);

/// The generation now.
pub(super) fn current() -> Result<Generation, KernelError> {
    ask().map_err(|source| KernelError::Generation { source })
}

fn ask() -> io::Result<Generation> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
    socket.send_to(&question(), &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    read(&answer)
}

fn question() -> Vec<u8> {
    let length = u32::try_from(HEADERS).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(ASK_GENERATION.to_ne_bytes());
    bytes.extend(IS_REQUEST.to_ne_bytes());
    // Sequence and sender, then family, version and resource: all 0.
    bytes.resize(HEADERS, 0);
    bytes
}

fn read(answer: &[u8]) -> io::Result<Generation> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "its answer is not understood");
    let number = |at: usize| Some(u16::from_ne_bytes(answer.get(at..)?.first_chunk().copied()?));
    match number(4).ok_or_else(unknown)? {
        NEW_GENERATION => {}
        ERROR => {
            let code = answer.get(16..).and_then(|rest| rest.first_chunk().copied()).map(i32::from_ne_bytes);
            return Err(io::Error::from_raw_os_error(code.unwrap_or_default().saturating_neg()));
        }
        _ => return Err(unknown()),
    }
    let mut at = HEADERS;
    while let (Some(length), Some(kind)) = (number(at), number(at.saturating_add(2))) {
        if kind == GENERATION_ID {
            let id = answer.get(at.saturating_add(4)..).and_then(|rest| rest.first_chunk().copied());
            return id.map(u32::from_be_bytes).map(Generation).ok_or_else(unknown);
        }
        // Attributes begin at multiples of four bytes (netlink(7)).
        at = at.saturating_add(usize::from(length.max(4)).next_multiple_of(4));
    }
    Err(unknown())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn answer(kind: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16, 0);
        bytes.extend(rest);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_number_is_found_among_the_attributes() {
        let rest = [vec![0; 4], attribute(3, b"name!"), attribute(GENERATION_ID, &[0, 0, 1, 2])].concat();
        assert_eq!(read(&answer(NEW_GENERATION, &rest)).unwrap(), Generation(258));
        assert!(read(&answer(NEW_GENERATION, &[0; 4])).is_err());
        assert!(read(&answer(7, &rest)).is_err());
        assert!(read(&[]).is_err());
        let refused = read(&answer(ERROR, &(-1_i32).to_ne_bytes())).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
