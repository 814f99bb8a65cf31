//! The kernel table: what our bridges carry, written once and held by nftables in the families `bridge` and `inet`.
//!
//! It owns the table named `assistant` in both families: its text ([`ruleset`], pure), its atomic replacement, and the
//! proof that what is loaded is what was meant. It works with or without Docker's own rules, br_netfilter, `ct` and
//! `reject` in family bridge, none of which every kernel has there.
//!
//! It does not decide who may speak to whom (that is `desired`), nor read what it logs (that is `nflog`).
//!
//! Everything that does I/O here blocks; async callers go through `spawn_blocking`.

mod listing;
mod sets;
mod table;

use std::sync::{Mutex, PoisonError};

pub use sets::ContainerPort;
pub use table::ruleset;

use crate::command::{self, CommandError};
use crate::netns::{self, NetnsError};

/// Name of the table, in both families.
pub const TABLE: &str = "assistant";
/// The NFLOG group dropped frames are reported to.
pub const NFLOG_GROUP: u16 = 87;
/// The VM's end of the veth into the drill's internet. In a drill nothing of ours leaves by another interface.
pub const DRILL_INTERFACE: &str = "as-drill0";
/// Who but root may dial our networks from the VM: the gates.
pub const GATES_UID: u32 = 8711;

/// The families the table exists in.
const FAMILIES: [&str; 2] = ["bridge", "inet"];

/// A whole table as `nft` reads it. Loading it replaces the old one in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    script: String,
}

impl Ruleset {
    /// What `nft -f` is given.
    #[must_use]
    pub fn script(&self) -> &str {
        &self.script
    }
}

/// Why the kernel table does not stand.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// `nft` could not do it.
    #[error("the kernel table could not be {what}: {source}")]
    Tool {
        /// `loaded`, `read` or `removed`.
        what: &'static str,
        /// What happened.
        source: CommandError,
    },
    /// The namespace in which the text is turned into the kernel's own spelling could not be had.
    #[error("the kernel table could not be compared: {0}")]
    Scratch(#[from] NetnsError),
    /// `nft` listed something that is not understood.
    #[error("the listing of nft is not understood: {why}; is it nftables 1.0 or later, built with JSON?")]
    Listing {
        /// Why.
        why: String,
    },
    /// The kernel holds something else than what was just loaded.
    #[error("the kernel holds another table than the one just loaded; is something else writing to the table {TABLE}?")]
    NotAsLoaded,
}

/// Replaces the table, in both families, in one transaction, and reads it back.
///
/// # Errors
/// When the kernel refuses it (then the old table still stands) or holds something else afterwards.
pub fn load(ruleset: &Ruleset) -> Result<(), KernelError> {
    command::run("nft", &["-f", "-"], &ruleset.script)
        .map_err(|source| KernelError::Tool { what: "loaded", source })?;
    if matches_loaded(ruleset)? { Ok(()) } else { Err(KernelError::NotAsLoaded) }
}

/// Whether the table that is loaded is exactly this one: every chain, hook, priority, policy, rule, set and element.
///
/// # Errors
/// When it cannot be read.
pub fn matches_loaded(ruleset: &Ruleset) -> Result<bool, KernelError> {
    let loaded = read()?;
    Ok(loaded.is_some() && loaded == expected(ruleset)?)
}

/// Removes the table. Not there is success.
///
/// # Errors
/// When the kernel refuses.
pub fn unload() -> Result<(), KernelError> {
    let script: String = FAMILIES.iter().map(|family| table::absent(family)).collect();
    command::run("nft", &["-f", "-"], &script).map_err(|source| KernelError::Tool { what: "removed", source })?;
    Ok(())
}

/// The table in one spelling, or none when it is missing in a family.
fn read() -> Result<Option<String>, KernelError> {
    let mut whole = String::new();
    for family in FAMILIES {
        let listing = match command::run("nft", &["-j", "list", "table", family, TABLE], "") {
            Ok(listing) => listing,
            Err(CommandError::Failed { said, .. }) if said.contains("No such file or directory") => return Ok(None),
            Err(source) => return Err(KernelError::Tool { what: "read", source }),
        };
        whole.push_str(&listing::canonical(&listing)?);
        whole.push('\n');
    }
    Ok(Some(whole))
}

/// How the kernel would spell this ruleset: it is loaded into a network namespace that exists for this alone and read back
/// there. So nothing here has to know how `nft` orders, merges or abbreviates what it is given.
fn expected(ruleset: &Ruleset) -> Result<Option<String>, KernelError> {
    // The newest answer is kept: the reconciler asks for the same one every few seconds.
    static NEWEST: Mutex<Option<(Ruleset, Option<String>)>> = Mutex::new(None);
    if let Some((known, spelling)) = &*NEWEST.lock().unwrap_or_else(PoisonError::into_inner)
        && known == ruleset
    {
        return Ok(spelling.clone());
    }
    let spelling = netns::scratch(|| {
        command::run("nft", &["-f", "-"], &ruleset.script)
            .map_err(|source| KernelError::Tool { what: "compared", source })?;
        read()
    })??;
    *NEWEST.lock().unwrap_or_else(PoisonError::into_inner) = Some((ruleset.clone(), spelling.clone()));
    Ok(spelling)
}
