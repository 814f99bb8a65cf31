//! The secrets the broker holds, until the vault exists: one 0600 file each, read once at start.
//!
//! A secret cannot be printed, serialised or cloned, and is wiped when dropped. Whoever wants to put one into a request
//! has to show the permit that says so. A secret that is missing or unusable does not stop the service: what needs it is
//! refused, with the reason.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use assistant_proto::config::Mode;
use assistant_proto::name::SecretName;
use http::StatusCode;
use policy::{Denial, ModelPermit, Permit};
use service_kit::files::read_secret;
use service_kit::text::chain;
use zeroize::Zeroizing;

use crate::refusal::Refusal;

/// A shorter secret would be found by chance in harmless answers, and its encoded forms even more so.
pub const SHORTEST: usize = 8;
/// Bounds how much of an answer the scrubber has to hold back.
pub const LONGEST: usize = 8 * 1024;
/// Where the VM keeps the stack's state; below it a folder per mode.
const STATE_DIR: &str = "/var/lib/assistant";

/// A secret's value.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a value that can be injected and scrubbed.
    ///
    /// # Errors
    /// [`SecretProblem`] when it is too short, too long, or has characters no header can carry.
    pub fn new(value: Zeroizing<String>) -> Result<Self, SecretProblem> {
        if value.len() < SHORTEST {
            return Err(SecretProblem::TooShort);
        }
        if value.len() > LONGEST {
            return Err(SecretProblem::TooLong);
        }
        if !value.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
            return Err(SecretProblem::NotVisibleAscii);
        }
        Ok(Self(value))
    }

    /// The value, for the one request that `permit` is for.
    #[must_use]
    pub fn expose(&self, permit: &Permit) -> &str {
        tracing::trace!(rule = permit.rule(), "secret exposed");
        &self.0
    }

    /// The value, for the one model call that `permit` is for.
    #[must_use]
    pub fn expose_to_model(&self, permit: &ModelPermit) -> &str {
        tracing::trace!(rule = permit.rule(), "secret exposed");
        &self.0
    }

    /// The value, for a question of the stack's own to its LiteLLM, in which nothing of a tier is.
    #[must_use]
    pub(crate) fn expose_to_own_question(&self) -> &str {
        &self.0
    }

    /// The value without a permit: only for building scrubbers.
    #[must_use]
    pub fn dangerous_expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Why a secret cannot be used. Never repeats any of its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretProblem {
    /// No such file, or not to be read.
    #[error("its file cannot be used")]
    File(#[from] service_kit::files::FileError),
    /// See [`SHORTEST`].
    #[error("it is shorter than {SHORTEST} characters, too short to be recognised in answers")]
    TooShort,
    /// See [`LONGEST`].
    #[error("it is longer than {LONGEST} characters")]
    TooLong,
    /// Spaces, control characters or letters outside ASCII.
    #[error("it has characters other than visible ASCII")]
    NotVisibleAscii,
    /// Nothing refers to it.
    #[error("no rule names it")]
    Unnamed,
}

/// All secrets by name.
#[derive(Debug)]
pub struct Secrets {
    mode: Mode,
    by_name: BTreeMap<SecretName, Result<Secret, SecretProblem>>,
}

impl Secrets {
    /// Reads one file per name from `dir`.
    #[must_use]
    pub fn load(mode: Mode, dir: &Path, names: impl IntoIterator<Item = SecretName>) -> Self {
        let by_name = names
            .into_iter()
            .map(|name| {
                let secret = read_secret(&dir.join(name.as_str())).map_err(SecretProblem::from).and_then(Secret::new);
                if let Err(problem) = &secret {
                    tracing::warn!(secret = %name, problem = %chain(problem), "secret cannot be used; what needs it is refused");
                }
                (name, secret)
            })
            .collect();
        Self { mode, by_name }
    }

    /// What is said where a secret is needed and cannot be used. Names the file that a person has to write on the VM:
    /// the one read here is a copy.
    #[must_use]
    pub fn refusal(&self, name: &SecretName, problem: &str) -> Refusal {
        let file = format!("{STATE_DIR}/{}/secrets/{name}", self.mode.as_str());
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Denial::new(
                "secret-missing",
                format!("the secret {name} cannot be used: {problem}"),
                format!("write its value to {file} (as root, mode 0600); it is taken up within a minute"),
            ),
        )
    }

    /// The secret, or why it cannot be used.
    ///
    /// # Errors
    /// What was found when it was read.
    pub fn value(&self, name: &SecretName) -> Result<&Secret, &SecretProblem> {
        match self.by_name.get(name) {
            Some(secret) => secret.as_ref(),
            None => Err(&SecretProblem::Unnamed),
        }
    }

    /// Every name and whether its value can be used.
    pub fn names(&self) -> impl Iterator<Item = (&SecretName, bool)> {
        self.by_name.iter().map(|(name, secret)| (name, secret.is_ok()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_bad_file_is_a_problem_of_that_secret_only() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value, mode) in [
            ("good", "0123456789\n", 0o600),
            ("open", "0123456789", 0o644),
            ("short", "abc", 0o600),
            ("odd", "0123456 89", 0o600),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, value).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let names = ["good", "open", "short", "odd", "gone"].map(|name| name.parse::<SecretName>().unwrap());
        let secrets = Secrets::load(Mode::Live, dir.path(), names.clone());
        let usable: Vec<_> = names.iter().map(|name| secrets.value(name).is_ok()).collect();
        assert_eq!(usable, [true, false, false, false, false]);
        assert_eq!(secrets.value(&names[0]).unwrap().dangerous_expose(), "0123456789");
        assert!(!format!("{secrets:?}").contains("0123456789"));
    }
}
