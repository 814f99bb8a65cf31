//! No IPv6 on our bridges and their ports.
//!
//! A port is an interface of the VM, and the kernel gives each one an address of its own (fe80::/10) that answers. Nothing
//! of ours speaks IPv6, so it is switched off, in the network namespace of the calling thread.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::{KernelError, Ruleset};

/// Switches it off where it is on. An interface that is not there, not yet or not any more, has none.
pub(super) fn hush(ruleset: &Ruleset) -> Result<(), KernelError> {
    for (_, path) in loud(ruleset)? {
        match std::fs::write(&path, "1") {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(KernelError::Quiet { path, source }),
            _ => {}
        }
    }
    Ok(())
}

/// Those of the table's bridges and ports that speak IPv6.
///
/// # Errors
/// When it cannot be told.
pub fn speak_ipv6(ruleset: &Ruleset) -> Result<Vec<String>, KernelError> {
    Ok(loud(ruleset)?.into_iter().map(|(interface, _)| interface).collect())
}

/// With their switches.
fn loud(ruleset: &Ruleset) -> Result<Vec<(String, PathBuf)>, KernelError> {
    let mut loud = Vec::new();
    for interface in &ruleset.interfaces {
        let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"));
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim() == "1" => {}
            Ok(_) => loud.push((interface.clone(), path)),
            // Neither the interface nor, on some kernels, IPv6 itself.
            Err(source) if source.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(KernelError::Quiet { path, source }),
        }
    }
    Ok(loud)
}
