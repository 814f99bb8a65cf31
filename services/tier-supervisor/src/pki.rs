//! The stack's own certificates: an internal CA for NATS, the CA with which secret-broker intercepts, and the certificate
//! that Squid's peeking port asks for.
//!
//! Owns making, keeping and renewing them. Two CAs with keys of their own, and no key is both a CA's and a leaf's. The
//! interception CA's key goes to secret-broker only, its certificate to tiers.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::files::{self, FileError};
use crate::tokens::SecretText;

const CA_DAYS: i64 = 3_650;
/// Below the 825 days some clients accept at most.
const LEAF_DAYS: i64 = 730;
/// What has fewer days left is made anew at the next start.
const RENEW_DAYS: i64 = 60;

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: SecretText,
}

/// Every certificate of the stack.
#[derive(Debug)]
pub struct Pki {
    /// The internal CA's certificate.
    pub internal_ca: String,
    /// The NATS server.
    pub nats: Certified,
    /// The interception CA.
    pub intercept: Certified,
    /// What Squid needs to have on its peeking port; it is never shown to anyone.
    pub squid: Certified,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Only one of certificate and key is there, or they cannot be understood.
    #[error("{} and its key cannot be used together ({what}); remove both, then new ones are made", path.display())]
    Damaged {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Making one failed.
    #[error("cannot make the certificate {name}: {source}")]
    Make {
        /// Which one.
        name: &'static str,
        /// The library's reason.
        source: rcgen::Error,
    },
}

impl Pki {
    /// Reads what is there; makes what is missing, about to expire, or names other addresses than `nats_address`.
    ///
    /// # Errors
    /// When files cannot be read, written or understood.
    pub fn load_or_make(state_dir: &Path, nats_address: Ipv4Addr, now: OffsetDateTime) -> Result<Self, PkiError> {
        let store = Store { directory: state_dir.join("pki"), now };
        files::private_directory(&store.directory)?;
        let internal =
            store.kept_or_made("internal-ca", &[], || self_signed(ca("Secure assistant internal CA", now)))?;
        let names =
            [San::Address(nats_address), San::Address(Ipv4Addr::LOCALHOST), San::Name("localhost"), San::Name("nats")];
        let nats = store.kept_or_made_beneath("nats", &internal, &names, |issuer| {
            let mut params = leaf("nats", now);
            params.subject_alt_names = names.into_iter().map(San::to_rcgen).collect::<Result<_, _>>()?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let certificate = params.signed_by(&key, issuer)?;
            Ok((certificate.pem(), key))
        })?;
        let intercept =
            store.kept_or_made("intercept-ca", &[], || self_signed(ca("Secure assistant interception CA", now)))?;
        let squid = store.kept_or_made("squid", &[], || self_signed(leaf("squid", now)))?;
        Ok(Self { internal_ca: internal.certificate, nats, intercept, squid })
    }
}

struct Store {
    directory: PathBuf,
    now: OffsetDateTime,
}

#[derive(Clone, Copy)]
enum San {
    Address(Ipv4Addr),
    Name(&'static str),
}

impl San {
    fn to_rcgen(self) -> Result<SanType, rcgen::Error> {
        Ok(match self {
            Self::Address(address) => SanType::IpAddress(IpAddr::V4(address)),
            Self::Name(name) => SanType::DnsName(name.try_into()?),
        })
    }

    fn is_in(&self, names: &[GeneralName<'_>]) -> bool {
        names.iter().any(|name| match (self, name) {
            (Self::Address(address), GeneralName::IPAddress(bytes)) => *bytes == address.octets().as_slice(),
            (Self::Name(wanted), GeneralName::DNSName(name)) => wanted == name,
            _ => false,
        })
    }
}

impl Store {
    fn kept_or_made(
        &self,
        name: &'static str,
        names: &[San],
        make: impl FnOnce() -> Result<(String, KeyPair), rcgen::Error>,
    ) -> Result<Certified, PkiError> {
        match self.read(name)? {
            Some(kept) if self.still_good(name, &kept, names, None)? => Ok(kept),
            _ => self.make(name, make),
        }
    }

    fn kept_or_made_beneath(
        &self,
        name: &'static str,
        ca: &Certified,
        names: &[San],
        make: impl FnOnce(&Issuer<'_, KeyPair>) -> Result<(String, KeyPair), rcgen::Error>,
    ) -> Result<Certified, PkiError> {
        match self.read(name)? {
            Some(kept) if self.still_good(name, &kept, names, Some(ca))? => Ok(kept),
            _ => self.make(name, || {
                let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(ca.key.expose())?)?;
                make(&issuer)
            }),
        }
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.directory.join(format!("{name}.pem")), self.directory.join(format!("{name}.key")))
    }

    fn read(&self, name: &str) -> Result<Option<Certified>, PkiError> {
        let (certificate_path, key_path) = self.paths(name);
        let certificate = files::read_if_present(&certificate_path)?;
        let key = match files::check_private(&key_path) {
            Ok(()) => Some(SecretText::new(files::read_text(&key_path)?)),
            Err(error) if error.is_absent() => None,
            Err(error) => return Err(error.into()),
        };
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let same = KeyPair::from_pem(key.expose())
                    .ok()
                    .zip(public_key(&certificate))
                    .is_some_and(|(pair, public)| pair.public_key_raw() == public.as_slice());
                if !same {
                    return Err(PkiError::Damaged { path: certificate_path, what: "the key is not the certificate's" });
                }
                Ok(Some(Certified { certificate, key }))
            }
            // The key is written first: a certificate without one was not left behind by a crash of ours.
            (Some(_), None) => Err(PkiError::Damaged { path: certificate_path, what: "the key is missing" }),
            (None, _) => Ok(None),
        }
    }

    fn still_good(
        &self,
        name: &str,
        kept: &Certified,
        names: &[San],
        ca: Option<&Certified>,
    ) -> Result<bool, PkiError> {
        let damaged = |what| PkiError::Damaged { path: self.paths(name).0, what };
        let der = der(&kept.certificate).ok_or_else(|| damaged("it is not PEM"))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| damaged("it is not a certificate"))?;
        let left = certificate.validity().not_after.timestamp().saturating_sub(self.now.unix_timestamp());
        if left < Duration::days(RENEW_DAYS).whole_seconds() {
            return Ok(false);
        }
        if let Some(ca) = ca {
            let ca_der = self::der(&ca.certificate).ok_or_else(|| damaged("its CA is not PEM"))?;
            let (_, ca) = X509Certificate::from_der(&ca_der).map_err(|_| damaged("its CA is not a certificate"))?;
            if certificate.verify_signature(Some(ca.public_key())).is_err() {
                return Ok(false);
            }
        }
        let none = Vec::new();
        let held = certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(held) => Some(&held.general_names),
                _ => None,
            })
            .unwrap_or(&none);
        Ok(held.len() == names.len() && names.iter().all(|wanted| wanted.is_in(held)))
    }

    fn make(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Result<(String, KeyPair), rcgen::Error>,
    ) -> Result<Certified, PkiError> {
        let (certificate, key) = make().map_err(|source| PkiError::Make { name, source })?;
        let key = SecretText::new(key.serialize_pem());
        let (certificate_path, key_path) = self.paths(name);
        // An old certificate beside a new key would be damage; beside no key it would be too: so it goes first.
        match std::fs::remove_file(&certificate_path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(FileError::Io { what: "replace", path: certificate_path, source }.into()),
        }
        files::write_atomically(&key_path, key.expose().as_bytes(), 0o600)?;
        files::write_atomically(&certificate_path, certificate.as_bytes(), 0o600)?;
        Ok(Certified { certificate, key })
    }
}

fn self_signed(params: CertificateParams) -> Result<(String, KeyPair), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key))
}

fn ca(name: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = named(name, now, CA_DAYS);
    // No intermediate beneath it: what it signs are leaves.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(name: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = named(name, now, LEAF_DAYS);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn named(name: &str, now: OffsetDateTime, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // An hour back for clocks that are behind.
    params.not_before = now.saturating_sub(Duration::hours(1));
    params.not_after = now.saturating_add(Duration::days(days));
    params
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    (pem.label == "CERTIFICATE").then_some(pem.contents)
}

fn public_key(pem: &str) -> Option<Vec<u8>> {
    let der = der(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-01-02 3:04:05 UTC);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 87, 1, 5);

    fn make(dir: &Path, address: Ipv4Addr, now: OffsetDateTime) -> Pki {
        Pki::load_or_make(dir, address, now).unwrap()
    }

    #[test]
    fn made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), ADDRESS, NOW);
        let again = make(dir.path(), ADDRESS, NOW + Duration::days(300));
        assert_eq!(first.internal_ca, again.internal_ca);
        assert_eq!(first.nats.certificate, again.nats.certificate);
        assert_eq!(first.intercept.key.expose(), again.intercept.key.expose());
        for entry in std::fs::read_dir(dir.path().join("pki")).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        assert!(!format!("{first:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn keys_are_not_shared_and_cas_sign_only_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let pki = make(dir.path(), ADDRESS, NOW);
        let mut keys: Vec<_> =
            [&pki.internal_ca, &pki.nats.certificate, &pki.intercept.certificate, &pki.squid.certificate]
                .into_iter()
                .map(|pem| public_key(pem).unwrap())
                .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 4);
        for (pem, is_ca) in [
            (&pki.internal_ca, true),
            (&pki.intercept.certificate, true),
            (&pki.nats.certificate, false),
            (&pki.squid.certificate, false),
        ] {
            let der = der(pem).unwrap();
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            let constraints =
                certificate.basic_constraints().unwrap().map(|held| (held.value.ca, held.value.path_len_constraint));
            let expected = if is_ca { (true, Some(0)) } else { (false, None) };
            assert_eq!(constraints.unwrap_or((false, None)), expected);
        }
    }

    #[test]
    fn renewed_when_due_or_moved_beneath_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), ADDRESS, NOW);
        let moved = make(dir.path(), Ipv4Addr::new(10, 213, 1, 5), NOW);
        assert_ne!(first.nats.certificate, moved.nats.certificate);
        assert_eq!(first.internal_ca, moved.internal_ca);
        let due = make(dir.path(), Ipv4Addr::new(10, 213, 1, 5), NOW + Duration::days(LEAF_DAYS - RENEW_DAYS + 1));
        assert_ne!(moved.nats.certificate, due.nats.certificate);
        assert_eq!(first.intercept.certificate, due.intercept.certificate);
    }

    #[test]
    fn a_lost_ca_takes_its_leaves_along_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), ADDRESS, NOW);
        let pki = dir.path().join("pki");
        for file in ["internal-ca.pem", "internal-ca.key"] {
            std::fs::remove_file(pki.join(file)).unwrap();
        }
        let second = make(dir.path(), ADDRESS, NOW);
        assert_ne!(first.internal_ca, second.internal_ca);
        assert_ne!(first.nats.certificate, second.nats.certificate);
        std::fs::copy(pki.join("squid.key"), pki.join("intercept-ca.key")).unwrap();
        assert!(matches!(Pki::load_or_make(dir.path(), ADDRESS, NOW), Err(PkiError::Damaged { .. })));
        std::fs::remove_file(pki.join("intercept-ca.key")).unwrap();
        assert!(matches!(Pki::load_or_make(dir.path(), ADDRESS, NOW), Err(PkiError::Damaged { .. })));
    }
}
