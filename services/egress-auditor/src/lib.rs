//! egress-auditor: the resolver of every tier network, the reader of Squid's log, the keeper of the audit store.
//!
//! It observes, explains and proves. It never decides what is allowed and never applies anything: taking it over gains
//! no exit, and losing it closes the tiers' DNS rather than opening it.

pub mod answer;
pub mod calls;
pub mod chain;
pub mod checkpoint;
pub mod client;
pub mod compare;
pub mod control;
pub mod denials;
pub mod disk;
pub mod dns;
pub mod feed;
pub mod figures;
pub mod intake;
pub mod jaeger;
pub mod ledger;
pub mod line;
pub mod picture;
pub mod record;
pub mod reserve;
pub mod retention;
pub mod service;
pub mod squid;
pub mod store;
pub mod tail;
pub mod tree;
pub mod tunnel;

pub use service::EgressAuditor;
