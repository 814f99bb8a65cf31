//! Names that cross a boundary, each checked once and then trusted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused. `Display` repeats the rule, never the whole input: the input may be hostile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The rule of the kind of name was broken.
    #[error("not a {kind}: {rule}")]
    Malformed {
        /// What kind of name it should have been.
        kind: &'static str,
        /// The rule in words.
        rule: &'static str,
    },
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError::Malformed { kind: $kind, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A tier of tiers.yaml. Part of container names, NATS subjects and host names, hence the narrow alphabet.
    TierName,
    "tier name",
    "1 to 24 characters of a-z, 0-9 and '-', starting with a letter, not ending with '-', and not 'stack'",
    |text| is_label(text, 24) && text != SCOPE_STACK
);

name!(
    /// A principal: one container that may speak to a door. Equal to the container's name.
    PrincipalName,
    "principal name",
    "1 to 63 characters of a-z, 0-9 and '-', starting with a letter, not ending with '-'",
    |text| is_label(text, 63)
);

name!(
    /// A secret, by the name rules refer to it with. Never its value.
    SecretName,
    "secret name",
    "1 to 64 characters of a-z, 0-9, '_' and '-', starting with a letter",
    |text| {
        text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
    }
);

name!(
    /// A DNS host name in its one canonical spelling: lower case LDH labels (RFC 952, RFC 1123), at least two of them,
    /// no trailing dot, no address in any spelling. What is compared, dialled, certified and logged is this value.
    HostName,
    "host name",
    "two or more labels of a-z, 0-9 and '-' (63 characters each, 253 in all), lower case, no final dot, and the last \
     label is not a number",
    is_host
);

name!(
    /// An MCP server of a tier, by its name in the catalogue.
    ServerName,
    "MCP server name",
    "1 to 24 characters of a-z, 0-9 and '-', starting with a letter, not ending with '-'",
    |text| is_label(text, 24)
);

name!(
    /// A turn: one message and all that comes of it. UUIDv7 in its hyphenated form.
    TurnId,
    "turn id",
    "a hyphenated lower-case UUID",
    |text| uuid::Uuid::parse_str(text).is_ok_and(|id| id.hyphenated().to_string() == text)
);

impl TurnId {
    /// A new id, ordered by time.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().hyphenated().to_string())
    }
}

/// The scope of events that belong to no tier. Not a valid [`TierName`].
pub const SCOPE_STACK: &str = "stack";

fn is_label(text: &str, most: usize) -> bool {
    !text.is_empty()
        && text.len() <= most
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
}

fn is_host(text: &str) -> bool {
    let ldh = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let mut labels = text.split('.').rev();
    // WHATWG URL, "ends in a number": such a host would be parsed as an IPv4 address (also 0x7f, octal and short forms).
    let last_is_name = labels.next().is_some_and(|label| {
        ldh(label)
            && !label.bytes().all(|b| b.is_ascii_digit())
            && !(label.starts_with("0x") && label.bytes().skip(2).all(|b| b.is_ascii_hexdigit()))
    });
    let mut more = 0_usize;
    let rest = labels.all(|label| {
        more = more.saturating_add(1);
        ldh(label)
    });
    last_is_name && rest && more >= 1 && text.len() <= 253
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_spelling() {
        for good in ["serv.amazingmarvin.com", "a.b", "xn--bcher-kva.example", "1.example"] {
            assert!(good.parse::<HostName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "com",
            "A.b",
            "a.b.",
            ".a.b",
            "a..b",
            "-a.b",
            "a-.b",
            "127.0.0.1",
            "1.2",
            "a.0x7f",
            "a.0x",
            "a_b.c",
            "a.b/c",
            "a.b:443",
            "u@a.b",
            "[::1]",
            "b\u{fc}cher.example",
            "a.b\n",
            "a b.c",
            "0177.0.0.01",
            "2130706433",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
        let long = format!("{}.example", "a".repeat(64));
        assert!(long.parse::<HostName>().is_err());
    }

    #[test]
    fn tiers_are_labels() {
        assert!("tasks".parse::<TierName>().is_ok());
        for bad in ["", "stack", "Tasks", "1tasks", "a.b", "a*", "a>", "tasks-", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(bad.parse::<TierName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn turn_ids_are_their_own_spelling() {
        let id = TurnId::generate();
        assert_eq!(id.as_str().parse::<TurnId>(), Ok(id));
        assert!("0191B5C4-0000-7000-8000-000000000000".parse::<TurnId>().is_err());
    }
}
