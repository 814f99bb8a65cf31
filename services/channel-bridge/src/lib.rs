//! channel-bridge holds the conversations, so that the agents do not: it takes messages in, drives the turns that answer
//! them, relays what an agent asks a person, and sends the reply once.
//!
//! Owned here: inbox and outbox (on JetStream), the conversation with each tier's ZeroClaw over `/acp`, the dialogue of
//! approvals, the messengers' accounts and the way out to them, the terminal channel with its gRPC and its client, the
//! tiers' dashboards. Not here: what an agent may reach (secret-broker), what it tried (egress-auditor), whether it runs
//! (tier-supervisor). An agent never sees a credential of a channel, and
//! nothing an agent says reaches a person before it was made harmless.

pub mod acp;
pub mod approvals;
pub mod attendant;
pub mod channels;
pub mod chat;
pub mod config;
pub mod control;
pub mod dashboard;
pub mod delivery;
pub mod egress;
pub mod envelope;
pub mod inbox;
pub mod intake;
pub mod outbox;
pub mod outgoing;
pub mod post;
pub mod record;
pub mod registry;
pub mod reply;
pub mod route;
pub mod service;
pub mod turn;
