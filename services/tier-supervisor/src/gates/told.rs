//! What tier-supervisor and the gates' process say to each other, one line of JSON each.

use std::fmt;
use std::net::SocketAddrV4;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{constant_time, digest};
use serde::{Deserialize, Serialize};

use crate::desired::{Gate, GateKind};

/// The longest line of either. A list of gates is the longest; a hundred tiers make some 40 KiB.
pub(super) const MOST_LINE: usize = 256 << 10;

/// What the process is told on standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Told {
    /// All gates that there are to be from now on.
    Gates(Vec<Line>),
    /// Who has this ticket may log in, once.
    Ticket(Ticket),
    /// Who has logged in before this process was started.
    Session(Session),
}

/// A gate as its process is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) listen: SocketAddrV4,
    pub(super) kind: GateKind,
}

impl From<&Gate> for Line {
    fn from(gate: &Gate) -> Self {
        Self { name: gate.name.clone(), listen: gate.listen, kind: gate.kind.clone() }
    }
}

/// A ticket by its hash: the ticket itself is nowhere but in the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ticket {
    /// The one site it is for.
    pub(super) site: String,
    pub(super) hash: Hash,
    /// Seconds since 1970.
    pub(super) expires: u64,
}

/// A session by the hash of its cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    /// The one site it is for.
    pub(super) site: String,
    pub(super) hash: Hash,
    /// The user of this machine whose program logged in; nobody else's may use it.
    pub(super) uid: u32,
    /// Seconds since 1970.
    pub(super) expires: u64,
}

/// What the process says on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Said {
    /// A gate listens.
    Open { listen: SocketAddrV4 },
    /// Somebody else listens there. It is tried again.
    Occupied { name: String, listen: SocketAddrV4 },
    /// A gate cannot listen for another reason. It is tried again.
    Closed { name: String, listen: SocketAddrV4, why: String },
    /// It has this ticket.
    Knows { ticket: Hash },
    /// The ticket was used, and this is the session it opened. Said before the browser is answered.
    LoggedIn { ticket: Hash, session: Session },
    /// A session was ended by who has it, or made room for newer ones.
    LoggedOut { session: Hash },
    /// It cannot go on.
    Failed { why: String },
}

/// SHA-256 of a ticket or a cookie's value, as text in hex. Compared in constant time.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(text: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self(hash)
    }
}

impl PartialEq for Hash {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Hash {}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hash>")
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hex::encode(hash.0)
    }
}

impl TryFrom<String> for Hash {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash)?;
        Ok(Self(hash))
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_hash_survives_the_way_and_is_not_shown() {
        let said = Said::Knows { ticket: Hash::of("x") };
        let line = serde_json::to_string(&said).unwrap();
        assert!(line.contains("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"), "{line}");
        assert_eq!(serde_json::from_str::<Said>(&line).unwrap(), said);
        assert_ne!(Hash::of("x"), Hash::of("y"));
        assert!(!format!("{said:?}").contains("2d71"));
        assert!(serde_json::from_str::<Said>(r#"{"knows":{"ticket":"2d71"}}"#).is_err());
    }
}
