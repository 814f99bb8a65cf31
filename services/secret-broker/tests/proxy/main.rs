//! The HTTPS proxy of secret-broker against real peers on loopback. Containment is judged by what the origin and the
//! CONNECT proxy received, not by what the client was told; each refusal is one event.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::string_slice, reason = "a test may panic")]
#![allow(unreachable_pub, missing_debug_implementations, reason = "a test binary exports nothing")]

mod answers;
mod doors;
mod peers;
mod requests;
mod turns;
mod upstream;
mod world;
