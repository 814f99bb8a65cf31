//! The certificates that a service believes on its way out.
//!
//! Owned here: which files and which part of the system's store become roots. Not here: TLS itself, or who is dialled.

use std::path::{Path, PathBuf};

use assistant_proto::config::Mode;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Why there are no roots to use.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A file of certificates.
    #[error("cannot read certificates from {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate in it.
    #[error("a certificate in {path} cannot be used as a root")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Nothing would be trusted.
    #[error("there is no root certificate for TLS; install ca-certificates, or name a file in upstream_roots")]
    None,
}

/// Drill: only the named PEM files, so that nothing of the real internet is believed. Live: the system's store as well.
///
/// # Errors
/// When a file cannot be used, or nothing would be trusted.
pub fn trusted(mode: Mode, files: &[PathBuf]) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    if mode == Mode::Live {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "part of the system's certificate store cannot be read");
        }
        let (_, ignored) = roots.add_parsable_certificates(system.certs);
        if ignored > 0 {
            tracing::debug!(ignored, "certificates of the system's store that cannot be used");
        }
    }
    for path in files {
        add(&mut roots, path)?;
    }
    if roots.is_empty() { Err(RootsError::None) } else { Ok(roots) }
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), RootsError> {
    let unreadable = |source| RootsError::Unreadable { path: path.to_owned(), source };
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| RootsError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_believes_only_what_is_named() {
        assert!(matches!(trusted(Mode::Drill, &[]), Err(RootsError::None)));
        let missing = PathBuf::from("/nowhere/ca.pem");
        assert!(matches!(trusted(Mode::Drill, &[missing]), Err(RootsError::Unreadable { .. })));
    }
}
