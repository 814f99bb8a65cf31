//! The dashboard: HTTP and the chat, over the socket that the gate would connect to.

pub(crate) mod browser;
mod chat;
mod doors;
