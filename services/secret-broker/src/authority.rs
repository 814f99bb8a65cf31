//! The interception authority: a certificate per host for the tiers' side of a tunnel, signed by the stack's
//! interception CA. Each host has a key of its own, made here and never written anywhere; the CA's key signs and does
//! nothing else.
//!
//! A leaf is only made for a [`HostPermit`], so the cache cannot be filled with names that no rule reaches; it is bounded
//! all the same, because a rule may reach a whole subtree.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use assistant_proto::name::HostName;
use policy::HostPermit;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use service_kit::files::{FileError, read_secret};
use time::{Duration, OffsetDateTime};

/// Hosts whose leaf is kept. Making one anew costs well under a millisecond.
const MOST_LEAVES: usize = 512;
/// Clocks of containers are the VM's, but a VM may have just been corrected.
const BEFORE: Duration = Duration::hours(1);
/// How long a leaf is valid.
const VALID: Duration = Duration::days(7);
/// A leaf is made anew when it is older than this, long before it ends.
const FRESH: Duration = Duration::days(2);

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate file.
    #[error("cannot read the interception CA's certificate from {path}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key file.
    #[error("cannot read the interception CA's key")]
    Key(#[from] FileError),
    /// The two are not what they should be, or a leaf could not be made.
    #[error("the interception CA cannot sign")]
    Sign(#[from] rcgen::Error),
    /// rustls does not take what was made.
    #[error("TLS cannot be set up with the certificate")]
    Tls(#[from] rustls::Error),
}

/// Makes and keeps leaves.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<HostName, Leaf>>,
    refusing: Arc<ServerConfig>,
}

struct Leaf {
    config: Arc<ServerConfig>,
    made: OffsetDateTime,
    used: OffsetDateTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Has no certificate for anyone: rustls then ends the handshake with an alert.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl Authority {
    /// Reads certificate and key (PEM), and proves that they can sign.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, AuthorityError> {
        let pem = std::fs::read_to_string(certificate)
            .map_err(|source| AuthorityError::Certificate { path: certificate.to_owned(), source })?;
        let key = KeyPair::from_pem(&read_secret(key)?)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
        let refusing = server_config()?.with_cert_resolver(Arc::new(Nobody));
        let authority = Self { issuer, leaves: Mutex::default(), refusing: Arc::new(refusing) };
        authority.make("probe.invalid", OffsetDateTime::now_utc())?;
        Ok(authority)
    }

    /// TLS in the name of the permitted host, HTTP/1.1 only.
    ///
    /// # Errors
    /// When a leaf cannot be made: a bug, since [`Authority::load`] made one.
    pub fn leaf(&self, permit: &HostPermit) -> Result<Arc<ServerConfig>, AuthorityError> {
        self.leaf_at(permit.target().host(), OffsetDateTime::now_utc())
    }

    /// TLS that ends every handshake with an alert, for clients that have to be refused in their own language.
    #[must_use]
    pub fn refusing(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.refusing)
    }

    fn leaf_at(&self, host: &HostName, now: OffsetDateTime) -> Result<Arc<ServerConfig>, AuthorityError> {
        // Held while a leaf is made: a burst of first connections to a host makes one leaf, not many.
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get_mut(host)
            && now - leaf.made < FRESH
        {
            leaf.used = now;
            return Ok(Arc::clone(&leaf.config));
        }
        if leaves.len() >= MOST_LEAVES
            && let Some(oldest) = leaves.iter().min_by_key(|(_, leaf)| leaf.used).map(|(host, _)| host.clone())
        {
            leaves.remove(&oldest);
        }
        let config = Arc::new(self.make(host.as_str(), now)?);
        leaves.insert(host.clone(), Leaf { config: Arc::clone(&config), made: now, used: now });
        Ok(config)
    }

    fn make(&self, host: &str, now: OffsetDateTime) -> Result<ServerConfig, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        let mut name = DistinguishedName::new();
        // A common name holds at most 64 characters (RFC 5280, ub-common-name); clients look at the alternative name.
        name.push(DnType::CommonName, "assistant interception");
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - BEFORE;
        params.not_after = now + VALID;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(server_config()?.with_single_cert(vec![certificate.der().clone()], key).map(|mut config| {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config
        })?)
    }
}

fn server_config() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::PermissionsExt;

    use rcgen::BasicConstraints;

    use super::*;

    fn authority() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap();
        let (cert_file, key_file) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        std::fs::write(&cert_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, PermissionsExt::from_mode(0o600)).unwrap();
        Authority::load(&cert_file, &key_file).unwrap()
    }

    #[test]
    fn a_leaf_is_kept_while_fresh_and_the_cache_is_bounded() {
        let authority = authority();
        let host: HostName = "a.example".parse().unwrap();
        let now = OffsetDateTime::now_utc();
        let first = authority.leaf_at(&host, now).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.leaf_at(&host, now + Duration::hours(1)).unwrap()));
        assert!(!Arc::ptr_eq(&first, &authority.leaf_at(&host, now + FRESH).unwrap()));
        for index in 0..MOST_LEAVES {
            authority.leaf_at(&format!("h{index}.example").parse().unwrap(), now + FRESH + Duration::hours(1)).unwrap();
        }
        let leaves = authority.leaves.lock().unwrap();
        assert_eq!(leaves.len(), MOST_LEAVES);
        assert!(!leaves.contains_key(&host), "the one used longest ago goes first");
    }
}
