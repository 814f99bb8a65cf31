//! How far Squid's log was read: egress-auditor writes it into its volume, tier-supervisor looks at it before it lets go
//! of a file of the log. Names and shape only; neither reads or writes anything here.

use serde::{Deserialize, Serialize};

/// The file, directly in egress-auditor's volume. It is replaced as a whole, after the events of what it covers were
/// stored.
pub const CHECKPOINT: &str = "squid-log.checkpoint.json";

/// How far a file was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Inode of the file.
    pub inode: u64,
    /// Hex SHA-256 of the beginning of its first line: inodes are used again.
    pub fingerprint: String,
    /// The first byte not yet taken.
    pub offset: u64,
}

/// As much of the file [`CHECKPOINT`] as its other reader needs; what else stands in it is egress-auditor's own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Progress {
    /// None before the first complete line.
    pub position: Option<Position>,
}
