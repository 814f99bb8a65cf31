//! Small programs that live inside other containers: the HTTP face of a stdio MCP server, the filter in front of a
//! sandbox's Docker daemon, and two helpers of Squid.
//!
//! Here are their parts that can be tested without the container around them; `src/bin/` holds the thin programs. They
//! know nothing of tiers, events or the bus, and depend on no service: what runs beside a third-party program should be
//! small enough to read.

mod accept;
pub mod helper;
pub mod life;
pub mod sandbox;
pub mod sni;
pub mod users;
pub mod visible;
pub mod wrapper;
