//! Everything a person or `up.sh` writes, read and checked: supervisor.json, images.json, tiers.yaml, the allowlist and
//! the MCP folders.
//!
//! Owns the shapes and the messages. All problems of tiers.yaml and of the files it names are found in one pass, each
//! with file, line, column, what is wrong and what to do. No message repeats a value that could be a secret. It decides
//! nothing about containers or networks; that is `desired`.

mod allowlist;
mod catalog;
mod credentials;
mod images;
mod limits;
mod problem;
mod servers;
mod settings;
mod tier;
mod tiers;
mod tree;
mod version;

pub(crate) use allowlist::squid_list;
pub use allowlist::{Allowlist, HostPattern};
pub use images::Images;
pub use limits::TierLimits;
pub use problem::{Problem, Problems};
pub use settings::{ModelSettings, Operator, Settings, SettingsError};
pub use tier::{Credential, Egress, Server, Subject, Tier};
pub use tiers::{DiskSources, SecretState, Sources, Tiers};
