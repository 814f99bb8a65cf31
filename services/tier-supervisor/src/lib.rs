//! tier-supervisor: converges Docker and the kernel's packet table to `tiers.yaml`.
//!
//! It owns networks, containers, volumes, the kernel table, keys, tokens, rendered configurations and loopback gates. It
//! holds no SaaS secret as a value, decides nothing about requests, and needs no bus to reconcile. It alone has the Docker
//! socket. The way from a file to a running container: `config` -> `prepare` -> `desired` -> `plan` (with `observed`)
//! -> `execute`, driven by `reconciler`.

pub mod addresses;
mod command;
pub mod config;
pub mod control;
pub mod desired;
pub mod disk;
pub mod down;
pub mod engine;
pub mod execute;
pub mod files;
pub mod floor;
pub mod gates;
pub mod home;
pub mod kernel;
pub mod lock;
pub mod login;
pub mod netns;
pub mod nflog;
pub mod observed;
pub mod pki;
pub mod plan;
pub mod prepare;
pub mod provision;
pub mod reconciler;
pub mod render;
pub mod routes;
pub mod sandbox;
pub mod status;
pub mod supervisor;
pub mod tokens;
pub mod vm;
pub mod wanted;
