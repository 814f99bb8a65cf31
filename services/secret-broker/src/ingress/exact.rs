//! JSON read in exactly one way: no key twice, no bottomless nesting, no sea of tiny values.
//!
//! Parsers differ in which of two equal keys they believe, so a body with one is refused rather than decided on in one
//! reading and sent on in another. Shared by the model and the MCP ingress.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Values of any kind in one body. A prompt with all its tools has some thousands; each costs tens of bytes of memory.
const VALUES_MOST: usize = 200_000;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InexactJson {
    /// Not JSON, or nested deeper than 128 levels (the parser's own limit).
    #[error("it is not JSON")]
    Malformed,
    /// Two equal keys in one object.
    #[error("an object names the same key twice")]
    DuplicateKey,
    /// See [`VALUES_MOST`].
    #[error("it holds more than {VALUES_MOST} values")]
    TooMany,
}

/// Parses a whole body.
///
/// # Errors
/// See [`InexactJson`].
pub(crate) fn parse(body: &[u8]) -> Result<Value, InexactJson> {
    let reading = Reading { values: Cell::new(0), problem: Cell::new(InexactJson::Malformed) };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Exact(&reading).deserialize(&mut deserializer).map_err(|_| reading.problem.get())?;
    deserializer.end().map_err(|_| InexactJson::Malformed)?;
    Ok(value)
}

struct Reading {
    values: Cell<usize>,
    problem: Cell<InexactJson>,
}

impl Reading {
    fn fail<E: serde::de::Error>(&self, problem: InexactJson) -> E {
        self.problem.set(problem);
        E::custom(problem)
    }
}

#[derive(Clone, Copy)]
struct Exact<'a>(&'a Reading);

impl<'de> DeserializeSeed<'de> for Exact<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let values = self.0.values.get().saturating_add(1);
        self.0.values.set(values);
        if values > VALUES_MOST {
            return Err(self.0.fail(InexactJson::TooMany));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Exact<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if all.contains_key(&key) {
                return Err(self.0.fail(InexactJson::DuplicateKey));
            }
            let value = entries.next_value_seed(self)?;
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_readings_are_none() {
        for (body, problem) in [
            (r#"{"a":1,"a":1}"#, InexactJson::DuplicateKey),
            (r#"{"a":1,"\u0061":2}"#, InexactJson::DuplicateKey),
            (r#"{"x":[{"b":{},"b":{}}]}"#, InexactJson::DuplicateKey),
            ("", InexactJson::Malformed),
            ("{} {}", InexactJson::Malformed),
            ("{\"a\":1,}", InexactJson::Malformed),
            ("\"\u{1}\"", InexactJson::Malformed),
            ("[NaN]", InexactJson::Malformed),
            ("1e999", InexactJson::Malformed),
            ("'a'", InexactJson::Malformed),
        ] {
            assert_eq!(parse(body.as_bytes()), Err(problem), "{body}");
        }
        assert_eq!(parse(b"\"\xff\""), Err(InexactJson::Malformed));
        assert_eq!(parse("[".repeat(10_000).as_bytes()), Err(InexactJson::Malformed));
        let many = format!("[{}0]", "0,".repeat(VALUES_MOST));
        assert_eq!(parse(many.as_bytes()), Err(InexactJson::TooMany));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(".*", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(value in any_json()) {
            prop_assert_eq!(parse(value.to_string().as_bytes()), Ok(value));
        }

        #[test]
        fn anything_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
        }
    }
}
