//! What the model and the MCP ingress have in common: both are HTTP servers of ours that take in whole JSON bodies. What a
//! body may say is each ingress's own.

pub(crate) mod exact;
pub(crate) mod wire;
