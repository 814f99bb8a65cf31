//! Everything a person or `up.sh` writes, read and checked: supervisor.json, images.json, tiers.yaml, the allowlist, the
//! MCP folders and `.env`.
//!
//! Owns the shapes and the messages. All problems of tiers.yaml and of the files it names are found in one pass, each
//! with file, line, column, what is wrong and what to do. No message repeats a value that could be a secret. It decides
//! nothing about containers or networks; that is `desired`.

mod allowlist;
mod catalog;
mod credentials;
mod env_file;
mod env_import;
mod hosts;
mod images;
mod implied;
mod limits;
mod problem;
mod route;
mod runtime;
mod servers;
mod settings;
mod talk;
mod tier;
mod tiers;
pub(crate) mod toolset;
mod tree;
mod version;

pub(crate) use allowlist::squid_list;
pub use allowlist::{Allowlist, HostPattern};
pub(crate) use env_import::model_variable;
pub use env_import::{Fate, ImportError, Imported, Said, import};
pub use images::Images;
pub use limits::TierLimits;
pub use problem::{Problem, Problems};
pub use route::{Endpoint, EndpointError, EndpointHost, ModelSettings, Scheme, TeeSettings};
pub use settings::{DEFAULT_BOT, Operator, Settings, SettingsError, TelegramSettings};
pub use tier::FIELDS as TIER_FIELDS;
pub use tier::{AllowedTools, Channel, Credential, Egress, Runtime, Server, Subject, Tier};
pub use tiers::{DiskSources, SecretState, Sources, Tiers, catalogue_images, remarks};
pub use toolset::DANGEROUS as DANGEROUS_COMMANDS;
