//! From supervisor.json to the desired state: reads and checks every file, chooses addresses, makes what has to exist
//! once (certificates, tokens), and hands it all to the pure `desired`.
//!
//! The one place of this part that does I/O. It touches neither Docker nor the network, and it never reads a SaaS secret
//! into a value: of those it keeps the hash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use assistant_proto::name::{PrincipalName, SecretName, TierName};
use aws_lc_rs::digest;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::addresses::{AddressError, Addresses, BUS, HOST_NATS, Ipv4Cidr};
use crate::config::{
    DiskSources, Endpoint, EndpointHost, Images, ModelSettings, Problems, Scheme, SecretState, Settings, SettingsError,
    Sources, Tiers,
};
use crate::desired::containers::{agent_name, server_name};
use crate::desired::outward::is_home;
use crate::desired::{Desired, DesiredError, desired};
use crate::files::{self, FileError};
use crate::home::{self, Homes};
use crate::pki::{Pki, PkiError};
use crate::tokens::{TokenError, Tokens, Wanted};

/// What is made once or only read, beside what a person writes.
#[derive(Debug)]
pub struct Material {
    /// Certificates.
    pub pki: Pki,
    /// Tokens and nkeys.
    pub tokens: Tokens,
    /// SaaS secrets in use -> hex SHA-256 of their files.
    pub secrets: BTreeMap<SecretName, String>,
    /// PEM files of roots for upstream TLS, with hex SHA-256.
    pub upstream_roots: Vec<(PathBuf, String)>,
    /// `squid.conf.template`.
    pub squid_template: String,
    /// Names of the local network that are spoken to in plain HTTP -> their addresses.
    pub home: Homes,
}

/// Everything [`desired`] needs.
#[derive(Debug)]
pub struct Inputs {
    /// supervisor.json.
    pub settings: Settings,
    /// images.json.
    pub images: Images,
    /// tiers.yaml and what it names.
    pub tiers: Tiers,
    /// The addresses in use.
    pub addresses: Addresses,
    /// Certificates, tokens, hashes.
    pub material: Material,
}

/// Why there is nothing to converge to.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// images.json.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// tiers.yaml, the allowlist, the MCP folders: every problem.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// Addresses.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// A file that is read or copied.
    #[error(transparent)]
    File(#[from] FileError),
    /// Keys of models and tokens of bots, and endpoints that must not be used: every problem.
    #[error("{}", .0.join("; "))]
    Stack(Vec<String>),
    /// Names that are too long, and bugs.
    #[error(transparent)]
    Desired(#[from] DesiredError),
}

impl PrepareError {
    /// Each problem as a sentence of its own.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Problems(problems) => problems.0.iter().map(ToString::to_string).collect(),
            Self::Stack(problems) => problems.clone(),
            other => vec![other.to_string()],
        }
    }
}

impl Inputs {
    /// Reads, checks, chooses and makes. `routes` are the VM's, without those of our own bridges
    /// ([`crate::addresses::is_our_bridge`]). Idempotent: a second call changes nothing.
    ///
    /// # Errors
    /// With everything that is wrong with the files, or the first thing that cannot be made.
    pub fn prepare(settings: Settings, routes: &[Ipv4Cidr], now: OffsetDateTime) -> Result<Self, PrepareError> {
        let images = Images::load(&settings.images_file)?;
        let tiers = Tiers::load(&settings, &images)?;
        let problems = stack_problems(&settings);
        if !problems.is_empty() {
            return Err(PrepareError::Stack(problems));
        }

        files::private_directory(&settings.state_dir)?;
        let addresses = choose_addresses(&settings, &tiers, routes)?;
        let nats = addresses.host(BUS, HOST_NATS).ok_or(DesiredError::Missing { what: "the address of NATS" })?;
        let material = Material {
            pki: Pki::load_or_make(&settings.state_dir, nats, now)?,
            tokens: Tokens::load_or_make(&settings.state_dir, &token_names(&tiers)?)?,
            secrets: secret_hashes(&settings, &tiers)?,
            upstream_roots: settings
                .upstream_roots
                .iter()
                .map(|path| hash(path).map(|sha256| (path.clone(), sha256)))
                .collect::<Result<_, _>>()?,
            squid_template: files::read_text(&settings.squid_template)?,
            home: home::look_up(&settings, &settings.state_dir.join("home-addresses.json"))?,
        };
        Ok(Self { settings, images, tiers, addresses, material })
    }

    /// The desired state for these inputs.
    ///
    /// # Errors
    /// See [`desired`].
    pub fn desired(&self) -> Result<Desired, DesiredError> {
        desired(&self.tiers, &self.settings, &self.images, &self.addresses, &self.material)
    }
}

/// What is wrong with the secrets that the stack itself needs, whatever its tiers, and with where it speaks to; a sentence
/// each. Makes nothing.
#[must_use]
pub fn stack_problems(settings: &Settings) -> Vec<String> {
    let mut problems = Vec::new();
    for name in settings.own_secrets() {
        let what = match (DiskSources { settings }).secret(name) {
            SecretState::Present | SecretState::Short => continue,
            SecretState::Absent => "is missing".to_owned(),
            SecretState::Unusable(why) => format!("cannot be used: {why}"),
        };
        problems.push(format!(
            "secret {name}, named in supervisor.json, {what}; put it there, it is read from standard input: sudo install \
             -m 600 /dev/stdin {}",
            settings.secret_file(name).display()
        ));
    }
    let model = settings.model.as_ref().and_then(ModelSettings::endpoint);
    let export = settings.otlp_export.as_ref().and_then(|url| url.parse::<Endpoint>().ok());
    for (field, endpoint) in [("model.base_url", model), ("otlp_export", export)] {
        if let Some(Endpoint { scheme: Scheme::Http, host: EndpointHost::Address(address), .. }) = endpoint
            && !is_home(address)
        {
            problems.push(format!(
                "\"{field}\" in supervisor.json: plain http to {address} would cross the internet in the clear; use https, or \
                 a machine of your own network"
            ));
        }
    }
    problems
}

fn choose_addresses(settings: &Settings, tiers: &Tiers, routes: &[Ipv4Cidr]) -> Result<Addresses, PrepareError> {
    let path = settings.addresses_file();
    let previous = Addresses::load(&path)?;
    let wanted: Vec<_> = tiers
        .tiers
        .iter()
        .map(|tier| (tier.name.clone(), tier.servers.iter().map(|server| server.name.clone()).collect()))
        .collect();
    let addresses = Addresses::assign(previous.as_ref(), settings.pool, routes, &wanted)?;
    if previous.as_ref() != Some(&addresses) {
        addresses.store(&path)?;
    }
    Ok(addresses)
}

fn token_names(tiers: &Tiers) -> Result<Wanted, DesiredError> {
    let mut principals: Vec<PrincipalName> = Vec::new();
    let mut servers: Vec<PrincipalName> = Vec::new();
    for tier in &tiers.tiers {
        principals.push(agent_name(&tier.name)?);
        for server in &tier.servers {
            servers.push(server_name(&tier.name, &server.name)?);
        }
    }
    principals.extend(servers.iter().cloned());
    let tiers: Vec<TierName> = tiers.tiers.iter().map(|tier| tier.name.clone()).collect();
    Ok(Wanted { tiers, principals, servers })
}

fn secret_hashes(settings: &Settings, tiers: &Tiers) -> Result<BTreeMap<SecretName, String>, FileError> {
    let names: BTreeSet<&SecretName> = tiers
        .tiers
        .iter()
        .flat_map(|tier| tier.credentials.iter().map(|credential| &credential.secret))
        .chain(settings.own_secrets())
        .collect();
    names.into_iter().map(|name| hash(&settings.secret_file(name)).map(|sha256| (name.clone(), sha256))).collect()
}

fn hash(path: &Path) -> Result<String, FileError> {
    let bytes = Zeroizing::new(files::read_bytes(path)?);
    Ok(hex::encode(digest::digest(&digest::SHA256, &bytes)))
}
