//! Squid's users: who may use it at all, by name and SHA-256 of the password.
//!
//! The file holds hashes only. Passwords are 256 random bits, so a plain digest is as good as a slow one; comparing
//! takes the same time whoever asks and whatever they guess.

use aws_lc_rs::{constant_time, digest};
use percent_encoding::percent_decode;

use crate::helper::channel;

const DIGEST_BYTES: usize = 32;

/// Why a users file was refused. Never repeats the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the users file {problem}; each line must be `user:<64 hex digits>`")]
pub struct MalformedUsers {
    line: usize,
    problem: &'static str,
}

/// The users that may authenticate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Users {
    entries: Vec<(String, [u8; DIGEST_BYTES])>,
}

impl Users {
    /// Parses a users file. Empty lines and lines that start with `#` mean nothing.
    ///
    /// # Errors
    /// On the first line that is not a user: a file that is not understood admits nobody.
    pub fn parse(text: &str) -> Result<Self, MalformedUsers> {
        let mut entries: Vec<(String, [u8; DIGEST_BYTES])> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let refuse = |problem| MalformedUsers { line: index.saturating_add(1), problem };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, digest_hex) = line.split_once(':').ok_or_else(|| refuse("has no colon"))?;
            if user.is_empty() || !user.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(refuse("has a user name outside letters, digits, '-' and '_'"));
            }
            let mut digest = [0; DIGEST_BYTES];
            hex::decode_to_slice(digest_hex, &mut digest).map_err(|_| refuse("has no SHA-256"))?;
            if entries.iter().any(|(other, _)| other == user) {
                return Err(refuse("repeats a user"));
            }
            entries.push((user.to_owned(), digest));
        }
        Ok(Self { entries })
    }

    /// Whether the password is the user's.
    #[must_use]
    pub fn admits(&self, user: &[u8], password: &[u8]) -> bool {
        let given = digest::digest(&digest::SHA256, password);
        let mut admitted = false;
        for (name, expected) in &self.entries {
            let equal = constant_time::verify_slices_are_equal(given.as_ref(), expected).is_ok();
            admitted |= equal & (name.as_bytes() == user);
        }
        admitted
    }

    /// The answer to one line of Squid's basic authentication: `<channel> <user> <password>` with `concurrency=`,
    /// `<user> <password>` without. Both fields are percent-encoded, so a space never belongs to them. `None` where
    /// nothing can be answered.
    #[must_use]
    pub fn answer(&self, line: &[u8], whole: bool) -> Option<String> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let (prefix, admitted) = match *fields.as_slice() {
            [number, user, password] => {
                (format!("{} ", channel(number)?), self.admits(&decoded(user), &decoded(password)))
            }
            [user, password] => (String::new(), self.admits(&decoded(user), &decoded(password))),
            [number, ..] => (format!("{} ", channel(number)?), false),
            [] => return None,
        };
        Some(format!("{prefix}{}", if admitted && whole { "OK" } else { "ERR" }))
    }
}

fn decoded(field: &[u8]) -> Vec<u8> {
    percent_decode(field).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;

    fn users() -> Users {
        let hash = |text: &str| hex::encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Users::parse(&format!("# who may\n\ntasks:{}\nmodels:{}\n", hash("pa ss%"), hash("other"))).unwrap()
    }

    #[test]
    fn only_the_right_pair_is_admitted() {
        for (line, verdict) in [
            ("0 tasks pa%20ss%25", "0 OK"),
            ("12 models other", "12 OK"),
            ("tasks pa%20ss%25", "OK"),
            ("0 tasks other", "0 ERR"),
            ("0 models pa%20ss%25", "0 ERR"),
            ("0 nobody other", "0 ERR"),
            ("0 tasks ", "0 ERR"),
            ("0  ", "0 ERR"),
            ("0 tasks", "ERR"),
            ("0", "0 ERR"),
            ("0 tasks pa%20ss%25 more", "0 ERR"),
        ] {
            assert_eq!(users().answer(line.as_bytes(), true).as_deref(), Some(verdict), "{line}");
        }
        assert_eq!(users().answer(b"0 models other", false).as_deref(), Some("0 ERR"), "a cut line");
        assert_eq!(users().answer(b"x models other", true), None);
        assert_eq!(Users::default().answer(b"0 models other", true).as_deref(), Some("0 ERR"));
    }

    #[test]
    fn a_file_is_understood_as_a_whole_or_refused() {
        let good = "0".repeat(64);
        for bad in [
            "tasks".to_owned(),
            "tasks:".to_owned(),
            "tasks:abc".to_owned(),
            format!(":{good}"),
            format!("a b:{good}"),
            format!("tasks:{good}\ntasks:{good}"),
            format!("tasks:{good}:x"),
        ] {
            assert!(Users::parse(&bad).is_err(), "{bad}");
        }
        let error = Users::parse(&format!("ok:{good}\nsecret")).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn garbage_is_never_admitted(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(reply) = users().answer(&bytes, true) {
                prop_assert!(reply.ends_with("ERR"));
            }
        }
    }
}
