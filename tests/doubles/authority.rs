//! The drill's certificate authority. Believed by the broker of a drill and by nobody else.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A CA whose key lies in the state directory.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads `ca.key` and `ca.pem`, or makes both.
    ///
    /// # Errors
    /// When they cannot be read, made or written.
    pub fn load_or_make(state_dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(state_dir).with_context(|| state_dir.display().to_string())?;
        let (key_file, certificate_file) = (state_dir.join("ca.key"), state_dir.join("ca.pem"));
        if key_file.exists() && certificate_file.exists() {
            let key = KeyPair::from_pem(&std::fs::read_to_string(&key_file)?)?;
            let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(&certificate_file)?, key)?;
            return Ok(Self { issuer });
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "assistant drill CA (not for real use)");
        let certificate = params.self_signed(&key)?;
        let mut file = std::fs::OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&key_file)?;
        std::io::Write::write_all(&mut file, key.serialize_pem().as_bytes())?;
        std::fs::write(&certificate_file, certificate.pem())?;
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// A TLS server for one host name, HTTP/1.1 only.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn server_config(&self, host: &str) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([host.to_owned()])?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
