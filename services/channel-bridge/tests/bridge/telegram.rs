//! One bridge in process against the Bot API double of the drill, over real TLS and through a double of Squid. What an
//! adapter of a messenger has to stand is in the submodules, by what it is about.

mod approvals;
mod crashes;
mod people;
mod replies;
pub(crate) mod stand;
mod trouble;
