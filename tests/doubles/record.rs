//! What arrived, in order. Tests ask for what came after a cursor, so nothing is ever cleared.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// How many entries are kept. A drill that runs for days keeps the newest.
const KEPT: usize = 200_000;

/// One thing that arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Arrival {
    /// An IPv4 or IPv6 packet for any address, as captured on the interface.
    Packet {
        /// `tcp`, `udp`, `icmp` or the protocol's number.
        protocol: String,
        /// Where it came from.
        source: String,
        /// Where it was to go.
        destination: String,
        /// Port it was to go to; 0 without ports.
        port: u16,
        /// Whether it is a TCP SYN without ACK.
        syn: bool,
        /// Payload above TCP or UDP, or of the IP packet otherwise; lossy text, capped.
        payload: String,
    },
    /// A DNS question.
    Query {
        /// The name as asked, lower case.
        name: String,
        /// The type's number.
        record_type: u16,
        /// Who asked.
        source: String,
    },
    /// An HTTP request that a double answered.
    Request {
        /// `Host`.
        host: String,
        /// Method.
        method: String,
        /// Path and query.
        path: String,
        /// Names of all headers, in order.
        headers: Vec<String>,
        /// Whether it carried the credential the double asks for.
        authorized: bool,
        /// Status that was answered.
        status: u16,
    },
}

/// An arrival with its place in the order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// 1 for the first.
    pub sequence: u64,
    /// What it was.
    #[serde(flatten)]
    pub arrival: Arrival,
}

/// All that arrived.
#[derive(Debug, Default)]
pub struct Record {
    entries: Mutex<(u64, VecDeque<Entry>)>,
}

impl Record {
    /// Adds one.
    pub fn add(&self, arrival: Arrival) {
        let mut locked = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, entries) = &mut *locked;
        *last = last.saturating_add(1);
        entries.push_back(Entry { sequence: *last, arrival });
        if entries.len() > KEPT {
            entries.pop_front();
        }
    }

    /// What came after `cursor`.
    #[must_use]
    pub fn since(&self, cursor: u64) -> Vec<Entry> {
        let locked = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        locked.1.iter().filter(|entry| entry.sequence > cursor).cloned().collect()
    }

    /// Sequence of the newest.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}
