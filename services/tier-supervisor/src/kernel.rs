//! The kernel table: what our bridges carry, written once and held by nftables in the families `bridge`, `inet` and `arp`.
//!
//! It owns the table named `assistant` in each of them: its text ([`ruleset`], pure), its atomic replacement, the proof
//! that what is loaded is what was meant, and its mending ([`Standing`], [`watch`]); and that interfaces which the table
//! names speak no IPv6. It works with or without Docker's own rules, br_netfilter, `ct` and
//! `reject` in family bridge, none of which every kernel has there.
//!
//! It does not decide who may speak to whom (that is `desired`), nor read what it logs (that is `nflog`).
//!
//! Everything that does I/O here blocks; async callers go through `spawn_blocking`.

mod generation;
mod listing;
mod quiet;
mod sets;
mod standing;
mod table;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

pub use quiet::speak_ipv6;
pub use sets::ContainerPort;
pub use standing::{Mended, Standing};
pub use table::ruleset;
pub use watch::watch;

use crate::command::{self, CommandError};
use crate::netns::{self, NetnsError};

/// Name of the table, in every family.
pub const TABLE: &str = "assistant";
/// The NFLOG group dropped frames are reported to.
pub const NFLOG_GROUP: u16 = 87;
/// The VM's end of the veth into the drill's internet. In a drill nothing of ours leaves by another interface.
pub const DRILL_INTERFACE: &str = "as-drill0";
/// Who but root may dial our networks from the VM: the gates.
pub const GATES_UID: u32 = 8713;

/// Name of the counter of frames that are not of a port in the table. No container is called so.
pub const NOBODYS: &str = "nobody";

/// The families the table exists in.
const FAMILIES: [&str; 3] = ["bridge", "inet", "arp"];

/// A whole table as `nft` reads it. Loading it replaces the old one in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    script: String,
    /// Bridges and ports it names: they speak no IPv6.
    interfaces: BTreeSet<String>,
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
    /// IPv6 of an interface could not be switched off.
    #[error("{}: {source}", path.display())]
    Quiet {
        /// The switch.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The kernel does not say which generation of tables it has.
    #[error(
        "the kernel cannot be asked whether its tables have changed: {source}; tier-supervisor runs as root, outside of any container"
    )]
    Generation {
        /// The system's reason.
        source: std::io::Error,
    },
    /// The kernel holds something else than what was just loaded.
    #[error("the kernel holds another table than the one just loaded; is something else writing to the table {TABLE}?")]
    NotAsLoaded,
}

/// Replaces the table, in every family, in one transaction, reads it back, and takes IPv6 from the interfaces it names.
///
/// # Errors
/// When the kernel refuses it (then the old table still stands), holds something else afterwards, or keeps IPv6.
pub fn load(ruleset: &Ruleset) -> Result<(), KernelError> {
    command::run("nft", &["-f", "-"], &ruleset.script)
        .map_err(|source| KernelError::Tool { what: "loaded", source })?;
    if !matches_loaded(ruleset)? {
        return Err(KernelError::NotAsLoaded);
    }
    quiet::hush(ruleset)
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

/// What the table that is loaded has dropped since it was loaded, whether or not somebody listened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drops {
    /// Frames reported to [`NFLOG_GROUP`].
    pub reported: u64,
    /// Frames beyond what is reported of one container, by container; those that are not a container's as [`NOBODYS`].
    pub unreported: BTreeMap<String, u64>,
    /// The kernel's numbers of the tables: counters of others are not to be compared with these.
    pub tables: Vec<u64>,
}

impl Drops {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.unreported.values().copied().fold(self.reported, u64::saturating_add)
    }
}

/// Reads the counters. None when there is no table.
///
/// # Errors
/// When it cannot be read.
pub fn drops() -> Result<Option<Drops>, KernelError> {
    let Some(listings) = listings()? else { return Ok(None) };
    let mut drops = Drops::default();
    for listing in &listings {
        let counted = listing::counted(listing, NFLOG_GROUP)?;
        drops.reported = drops.reported.saturating_add(counted.reported);
        drops.tables.push(counted.table);
        for (name, packets) in counted.named {
            let sum = drops.unreported.entry(name).or_default();
            *sum = sum.saturating_add(packets);
        }
    }
    Ok(Some(drops))
}

/// The table in one spelling, or none when it is missing in a family.
fn read() -> Result<Option<String>, KernelError> {
    let Some(listings) = listings()? else { return Ok(None) };
    let mut whole = String::new();
    for listing in &listings {
        whole.push_str(&listing::canonical(listing)?);
        whole.push('\n');
    }
    Ok(Some(whole))
}

/// What `nft` lists of the table, by family; none when it is missing in one.
fn listings() -> Result<Option<Vec<String>>, KernelError> {
    let mut listings = Vec::new();
    for family in FAMILIES {
        match command::run("nft", &["-j", "list", "table", family, TABLE], "") {
            Ok(listing) => listings.push(listing),
            Err(CommandError::Failed { said, .. }) if said.contains("No such file or directory") => return Ok(None),
            Err(source) => return Err(KernelError::Tool { what: "read", source }),
        }
    }
    Ok(Some(listings))
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
