//! The decision, pure: who may send which request where, and with which secret in which place. No I/O, no clock, no
//! randomness; the same values give the same answer, which is what lets the auditor explain and replay.
//!
//! What comes from a hostile peer is parsed here once, strictly, into [`Target`], [`Method`], [`RequestPath`] and
//! [`Query`]. The decision is made on these values and the bytes that are sent are written from them: nothing is matched
//! in one form and sent in another. What is not recognised is refused; what no rule allows is denied.
//!
//! A [`Permit`] can be made by [`decide`] only, a [`ModelPermit`] by an [`Offer`] only.

pub mod carrying;
pub mod decision;
pub mod denial;
pub mod explain;
pub mod model;
pub mod path;
pub mod pattern;
pub mod reading;
pub mod remedy;
pub mod rules;
pub mod target;

pub use decision::{HostPermit, Method, MethodError, Permit, Request, decide, decide_host, decide_turn, explain};
pub use denial::Denial;
pub use model::{ModelPermit, Offer, offer};
pub use path::{PathError, Query, RequestPath};
pub use reading::Carried;
pub use rules::{Injection, RuleProblem, TierPolicy};
pub use target::{Target, TargetError};
