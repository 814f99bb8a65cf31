//! The system tests of the stack, and the drill's internet that both they and `deploy/up.sh --drill` run against.
//!
//! `doubles` stand in the *place* of peers on the internet, in a network namespace; `harness` drives the stack the way
//! an operator does; `soak` makes many turns and says what grew. Nothing here is part of the product.

pub mod doubles;
pub mod harness;
pub mod soak;
