//! Tokens and nkeys: what containers prove themselves with. Made once, kept in files that only root may read.
//!
//! Owns their making, keeping and redaction. A token goes only to the container it is for; others get its SHA-256. No
//! SaaS secret is ever one of these.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use assistant_proto::config::Confidentiality;
use assistant_proto::name::{PrincipalName, TierName};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::files::{self, FileError};

/// Squid's user for the model route without a TEE.
pub const SQUID_MODELS_USER: &str = "models";
/// Squid's user for the TEE proxy.
pub const SQUID_TEE_USER: &str = "tee";
/// Squid's user for the messengers of channel-bridge.
pub const SQUID_CHANNELS_USER: &str = "channels";
/// Squid's user for the collector's way to an outside one.
pub const SQUID_TELEMETRY_USER: &str = "telemetry";
/// Squid's users that are no tiers. No tier is called like one of them.
pub const SQUID_SERVICE_USERS: [&str; 4] =
    [SQUID_MODELS_USER, SQUID_TEE_USER, SQUID_CHANNELS_USER, SQUID_TELEMETRY_USER];

/// NATS users with an nkey of their own.
pub const NATS_USERS: [&str; 5] = ["tier-supervisor", "secret-broker", "egress-auditor", "channel-bridge", "operator"];

/// Why tokens cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is there and holds something else.
    #[error("{} does not hold {what}; remove it, then a new one is made and its containers are replaced", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The system has no random numbers, or a key cannot be made of them.
    #[error("cannot make {what}: the system's random number generator failed")]
    Random {
        /// What was to be made.
        what: &'static str,
    },
}

/// Text that must not be shown: no `Display`, no `Clone`, overwritten when dropped.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one place it goes to.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// 256 random bits in base64url without padding.
#[derive(Debug)]
pub struct Token(SecretText);

impl Token {
    fn generate() -> Result<Self, TokenError> {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        rand::fill(bytes.as_mut_slice()).map_err(|_| TokenError::Random { what: "a token" })?;
        Ok(Self(SecretText::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        (bytes.len() == 32).then(|| Self(SecretText::new(text.to_owned())))
    }

    /// The text, for the container it belongs to.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Hex SHA-256 of the text, for whoever checks it.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, self.expose().as_bytes()))
    }
}

/// An nkey of a NATS user.
#[derive(Debug)]
pub struct Nkey {
    /// The seed, for its owner.
    pub seed: SecretText,
    /// The public key, for the server.
    pub public: String,
}

/// Every token and nkey of the stack.
#[derive(Debug)]
pub struct Tokens {
    principals: BTreeMap<PrincipalName, Token>,
    wrappers: BTreeMap<PrincipalName, Token>,
    gateways: BTreeMap<TierName, Token>,
    squid_users: BTreeMap<String, Token>,
    litellm: BTreeMap<Confidentiality, Token>,
    nkeys: BTreeMap<&'static str, Nkey>,
}

/// For whom tokens are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Every tier.
    pub tiers: Vec<TierName>,
    /// Every agent and MCP server.
    pub principals: Vec<PrincipalName>,
    /// Every MCP server.
    pub servers: Vec<PrincipalName>,
}

impl Tokens {
    /// Reads what is there and makes what is missing, beneath `state_dir`.
    ///
    /// # Errors
    /// When a file cannot be read, made or understood. A damaged one is never replaced silently.
    pub fn load_or_make(state_dir: &Path, wanted: &Wanted) -> Result<Self, TokenError> {
        let tokens = state_dir.join("tokens");
        let directory = |kind: &str| {
            let path = tokens.join(kind);
            files::private_directory(&path).map(|()| path)
        };
        let (principals, wrappers, gateways, squid) =
            (directory("principal")?, directory("wrapper")?, directory("gateway")?, directory("squid")?);
        let litellm = directory("litellm")?;
        let nkeys = state_dir.join("nkeys");
        files::private_directory(&nkeys)?;

        let squid_users =
            wanted.tiers.iter().map(|tier| tier.to_string()).chain(SQUID_SERVICE_USERS.map(str::to_owned));
        Ok(Self {
            principals: each(&wanted.principals, |name| token(&principals.join(name.as_str())))?,
            wrappers: each(&wanted.servers, |name| token(&wrappers.join(name.as_str())))?,
            gateways: each(&wanted.tiers, |name| token(&gateways.join(name.as_str())))?,
            squid_users: squid_users
                .map(|user| token(&squid.join(&user)).map(|token| (user, token)))
                .collect::<Result<_, _>>()?,
            litellm: [Confidentiality::Required, Confidentiality::None]
                .into_iter()
                .map(|class| token(&litellm.join(class.as_str())).map(|token| (class, token)))
                .collect::<Result<_, _>>()?,
            nkeys: NATS_USERS
                .into_iter()
                .map(|user| nkey(&nkeys.join(format!("{user}.nk"))).map(|nkey| (user, nkey)))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The token with which a container speaks to doors.
    #[must_use]
    pub fn principal(&self, name: &PrincipalName) -> Option<&Token> {
        self.principals.get(name)
    }

    /// The token with which the broker speaks to an MCP server's wrapper.
    #[must_use]
    pub fn wrapper(&self, name: &PrincipalName) -> Option<&Token> {
        self.wrappers.get(name)
    }

    /// The token with which the bridge speaks to a tier's gateway.
    #[must_use]
    pub fn gateway(&self, tier: &TierName) -> Option<&Token> {
        self.gateways.get(tier)
    }

    /// Squid's users with their passwords.
    pub fn squid_users(&self) -> impl Iterator<Item = (&str, &Token)> {
        self.squid_users.iter().map(|(user, token)| (user.as_str(), token))
    }

    /// The password of one of Squid's users.
    #[must_use]
    pub fn squid_user(&self, user: &str) -> Option<&Token> {
        self.squid_users.get(user)
    }

    /// The token with which the broker speaks to the LiteLLM of a class.
    #[must_use]
    pub fn litellm(&self, class: Confidentiality) -> Option<&Token> {
        self.litellm.get(&class)
    }

    /// The nkey of one of [`NATS_USERS`].
    #[must_use]
    pub fn nkey(&self, user: &str) -> Option<&Nkey> {
        self.nkeys.get(user)
    }
}

fn each<N: Ord + Clone>(
    names: &[N],
    make: impl Fn(&N) -> Result<Token, TokenError>,
) -> Result<BTreeMap<N, Token>, TokenError> {
    names.iter().map(|name| make(name).map(|token| (name.clone(), token))).collect()
}

fn token(path: &Path) -> Result<Token, TokenError> {
    match read_private(path)? {
        Some(text) => Token::parse(&text).ok_or_else(|| TokenError::Damaged { path: path.to_owned(), what: "a token" }),
        None => {
            let token = Token::generate()?;
            files::write_atomically(path, token.expose().as_bytes(), 0o600)?;
            Ok(token)
        }
    }
}

fn nkey(path: &Path) -> Result<Nkey, TokenError> {
    let what = "the seed of a NATS user";
    if let Some(text) = read_private(path)? {
        let seed = text.trim();
        let pair = nkeys::KeyPair::from_seed(seed).map_err(|_| TokenError::Damaged { path: path.to_owned(), what })?;
        if !matches!(pair.key_pair_type(), nkeys::KeyPairType::User) {
            return Err(TokenError::Damaged { path: path.to_owned(), what });
        }
        return Ok(Nkey { seed: SecretText::new(seed.to_owned()), public: pair.public_key() });
    }
    let mut bytes = Zeroizing::new([0_u8; 32]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| TokenError::Random { what: "an nkey" })?;
    let random = || TokenError::Random { what: "an nkey" };
    let pair = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, *bytes).map_err(|_| random())?;
    let seed = SecretText::new(pair.seed().map_err(|_| random())?);
    files::write_atomically(path, seed.expose().as_bytes(), 0o600)?;
    Ok(Nkey { seed, public: pair.public_key() })
}

fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, TokenError> {
    match files::check_private(path) {
        Ok(()) => Ok(Some(Zeroizing::new(files::read_text(path)?))),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            tiers: vec!["tasks".parse().unwrap()],
            principals: vec!["zeroclaw-tasks".parse().unwrap(), "mcp-tasks-marvin".parse().unwrap()],
            servers: vec!["mcp-tasks-marvin".parse().unwrap()],
        }
    }

    #[test]
    fn made_once_private_and_all_different() {
        let dir = tempfile::tempdir().unwrap();
        let first = Tokens::load_or_make(dir.path(), &wanted()).unwrap();
        let again = Tokens::load_or_make(dir.path(), &wanted()).unwrap();
        let all = |tokens: &Tokens| -> Vec<String> {
            let mut all: Vec<String> = tokens.principals.values().map(|token| token.expose().to_owned()).collect();
            all.extend(tokens.wrappers.values().map(|token| token.expose().to_owned()));
            all.extend(tokens.gateways.values().map(|token| token.expose().to_owned()));
            all.extend(tokens.squid_users.values().map(|token| token.expose().to_owned()));
            all.extend(tokens.litellm.values().map(|token| token.expose().to_owned()));
            all.extend(tokens.nkeys.values().map(|nkey| nkey.seed.expose().to_owned()));
            all
        };
        assert_eq!(all(&first), all(&again));
        let mut distinct = all(&first);
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 2 + 1 + 1 + (1 + SQUID_SERVICE_USERS.len()) + 2 + 5);
        let mode = std::fs::metadata(dir.path().join("tokens/principal/zeroclaw-tasks")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = std::fs::metadata(dir.path().join("nkeys")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let shown = format!("{first:?}");
        assert!(all(&first).iter().all(|secret| !shown.contains(secret)), "Debug shows a token");
    }

    #[test]
    fn damage_is_an_error_not_a_new_token() {
        let dir = tempfile::tempdir().unwrap();
        Tokens::load_or_make(dir.path(), &wanted()).unwrap();
        let path = dir.path().join("tokens/gateway/tasks");
        files::write_atomically(&path, b"short", 0o600).unwrap();
        assert!(matches!(Tokens::load_or_make(dir.path(), &wanted()), Err(TokenError::Damaged { .. })));
        std::fs::remove_file(&path).unwrap();
        let nk = dir.path().join("nkeys/operator.nk");
        let account = nkeys::KeyPair::new_account().seed().unwrap();
        files::write_atomically(&nk, account.as_bytes(), 0o600).unwrap();
        assert!(matches!(Tokens::load_or_make(dir.path(), &wanted()), Err(TokenError::Damaged { .. })));
        std::fs::remove_file(&nk).unwrap();
        let open = dir.path().join("tokens/squid/models");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            Tokens::load_or_make(dir.path(), &wanted()),
            Err(TokenError::File(FileError::TooOpen { .. }))
        ));
    }
}
