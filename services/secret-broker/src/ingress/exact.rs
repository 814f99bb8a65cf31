//! JSON read in exactly one way: no key twice, no bottomless nesting, no sea of tiny values.
//!
//! Parsers differ in which of two equal keys they believe, so a body with one is refused rather than decided on in one
//! reading and sent on in another. Shared by the model and the MCP ingress.
//!
//! What is counted is the memory that the parsed form takes, not its bytes on the wire: `{"":0}` is seven bytes there, and
//! half a kilobyte here.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Values of any kind in one body. A prompt with all its tools has some thousands.
const VALUES_MOST: usize = 20_000;
/// Memory that lists and objects of one body may take besides the text in them, in bytes. A conversation with thousands of
/// messages and dozens of tools takes half of it.
pub(crate) const STRUCTURE_MOST: usize = 4 * 1024 * 1024;

/// What a place in a list takes.
const ITEM: usize = size_of::<Value>();
/// What a place in an object takes: value, key, hash, and two words of its index.
const ENTRY: usize = ITEM + size_of::<String>() + 3 * size_of::<usize>();
/// Lists and objects get places for so many at once, then double them; objects one entry early.
const PLACES: usize = 4;
/// What an allocation takes besides what is asked for, at most.
const ALLOCATION: usize = 32;

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
    /// See [`STRUCTURE_MOST`].
    #[error("its lists and objects take more than {} MiB of memory", STRUCTURE_MOST / 1024 / 1024)]
    TooDense,
}

/// Parses a whole body.
///
/// # Errors
/// See [`InexactJson`].
pub(crate) fn parse(body: &[u8]) -> Result<Value, InexactJson> {
    let reading = Reading { values: Cell::new(0), structure: Cell::new(0), problem: Cell::new(InexactJson::Malformed) };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Exact(&reading).deserialize(&mut deserializer).map_err(|_| reading.problem.get())?;
    deserializer.end().map_err(|_| InexactJson::Malformed)?;
    Ok(value)
}

struct Reading {
    values: Cell<usize>,
    /// Bytes of memory, see [`STRUCTURE_MOST`].
    structure: Cell<usize>,
    problem: Cell<InexactJson>,
}

impl Reading {
    fn fail<E: serde::de::Error>(&self, problem: InexactJson) -> E {
        self.problem.set(problem);
        E::custom(problem)
    }

    fn take<E: serde::de::Error>(&self, bytes: usize) -> Result<(), E> {
        let structure = self.structure.get().saturating_add(bytes);
        self.structure.set(structure);
        if structure > STRUCTURE_MOST { Err(self.fail(InexactJson::TooDense)) } else { Ok(()) }
    }

    /// Before the next place of a list or object with `taken` places, each of `size` bytes, is taken: what growing costs.
    fn grow<E: serde::de::Error>(&self, taken: usize, size: usize) -> Result<(), E> {
        match taken {
            0 => self.take(PLACES.saturating_mul(size).saturating_add(ALLOCATION.saturating_mul(2))),
            _ => {
                let next = taken.saturating_add(1);
                let grows = next >= PLACES && next.is_power_of_two();
                if grows { self.take(next.saturating_mul(size)) } else { Ok(()) }
            }
        }
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
            self.0.grow(all.len(), ITEM)?;
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
            self.0.grow(all.len(), ENTRY)?;
            // The key's own allocation.
            self.0.take(ALLOCATION)?;
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

    #[test]
    fn what_is_small_on_the_wire_and_large_in_memory_is_refused() {
        // 800 kB on the wire, 50 MB parsed.
        let dense = format!("[{}0]", r#"{"":0},"#.repeat(100_000));
        assert_eq!(parse(dense.as_bytes()), Err(InexactJson::TooDense));
        let deep = format!("[{}0]", "[[[[0]]]],".repeat(4_000));
        assert_eq!(parse(deep.as_bytes()), Err(InexactJson::TooDense));
        // The control: what a long conversation with many tools has.
        let message = r#"{"role":"assistant","content":"words","tool_calls":[]}"#;
        let property = r#""p":{"type":"string","description":"d"}"#;
        let properties: Vec<String> = (0..8).map(|n| property.replacen('p', &format!("p{n}"), 1)).collect();
        let tool = format!(
            r#"{{"type":"function","function":{{"name":"n","description":"d","parameters":{{"type":"object","properties":{{{}}}}}}}}}"#,
            properties.join(",")
        );
        let (messages, tools) = (vec![message; 2_000].join(","), vec![tool.as_str(); 200].join(","));
        let usual = format!(r#"{{"messages":[{messages}],"tools":[{tools}]}}"#);
        assert!(parse(usual.as_bytes()).is_ok());
    }

    /// What the values of a parsed body really take, by the sizes their places have.
    fn memory(value: &Value) -> usize {
        match value {
            Value::Array(items) => items.capacity() * ITEM + items.iter().map(memory).sum::<usize>(),
            // An object does not say how many places it has; it has this many at least.
            Value::Object(fields) => fields.len().max(1) * ENTRY + fields.values().map(memory).sum::<usize>(),
            _ => 0,
        }
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
        fn no_structure_takes_more_than_was_counted(value in any_json()) {
            let reading =
                Reading { values: Cell::new(0), structure: Cell::new(0), problem: Cell::new(InexactJson::Malformed) };
            let text = value.to_string();
            let read = Exact(&reading).deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap();
            let empty_objects = text.matches("{}").count();
            prop_assert!(memory(&read) <= reading.structure.get() + empty_objects * ENTRY);
        }

        #[test]
        fn anything_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
        }
    }
}
