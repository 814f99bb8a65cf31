//! From the files a person writes to the desired state: the project's own files, the older stack's, and wrong ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod desired;
mod effects;
mod gates;
mod glue;
mod launcher;
mod outward;
mod parts;
mod problems;
mod programs;
mod rendered;
mod sets;
mod shell;
mod squid;
mod stack;
