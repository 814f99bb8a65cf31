//! JSON of which nothing is lost or guessed: a key that appears twice in one object is an error, at any depth.
//!
//! Go's decoder, which the daemon uses, takes the last of two equal keys and ignores case. Here neither matters, because
//! what the daemon gets is written anew; that a body means one thing only is asked for all the same, so that the record
//! of what was refused is the record of what was sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `null`, and a field that is not there.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A number without a fraction or exponent.
    Integer(i64),
    /// Any other number.
    Fraction,
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Self>),
    /// An object.
    Object(BTreeMap<String, Self>),
}

impl Json {
    /// Parses one whole document; serde_json limits its depth.
    ///
    /// # Errors
    /// Where it is not JSON or a key is there twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// What a client sends for a field that its user said nothing about: null, false, 0 or nothing.
    /// Not an object of such: `{"/x": {}}` asks for a volume.
    #[must_use]
    pub fn is_default(&self) -> bool {
        match self {
            Self::Null | Self::Bool(false) | Self::Integer(0) => true,
            Self::Bool(true) | Self::Integer(_) | Self::Fraction => false,
            Self::Text(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
            Self::Object(fields) => fields.is_empty(),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict)
    }
}

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        i64::try_from(value).map(Json::Integer).map_err(|_| E::custom("a number is out of range"))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Fraction)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value()?;
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            fields.insert(key, value);
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn nothing_is_there_twice_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":{"b":1,"b":2}}"#, r#"[{"a":1,"\u0061":2}]"#] {
            let error = Json::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("twice"), "{error}");
        }
        assert!(Json::parse(br#"{"a":1,"A":1}"#).is_ok(), "keys differ by case: two fields");
    }

    #[test]
    fn one_document_only_of_bounded_depth() {
        for text in [r#"{}{}"#, "", "{", "nul", r#"{"a":18446744073709551615}"#, "\u{feff}{}"] {
            assert!(Json::parse(text.as_bytes()).is_err(), "{text}");
        }
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::parse(deep(100).as_bytes()).is_ok());
        assert!(Json::parse(deep(100_000).as_bytes()).is_err());
        assert!(Json::parse(b"\"\xff\"").is_err(), "not UTF-8");
    }

    #[test]
    fn defaults_are_what_clients_send_unasked() {
        for text in ["null", "false", "0", "\"\"", "[]", "{}"] {
            assert!(Json::parse(text.as_bytes()).unwrap().is_default(), "{text}");
        }
        for text in ["true", "1", "-1", "0.0", "\"x\"", "[null]", "[0]", r#"{"/x":{}}"#] {
            assert!(!Json::parse(text.as_bytes()).unwrap().is_default(), "{text}");
        }
    }
}
