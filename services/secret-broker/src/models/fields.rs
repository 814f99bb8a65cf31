//! Taking an object apart by name: each field is asked for once, and what nobody asked for is refused.
//!
//! Errors say where and what shape, never which value: bodies are prompts.

use serde_json::{Map, Value};
use service_kit::text::harmless_line;

use crate::refusal::Refusal;

const REBUILT: &str = "take it out: the model ingress rebuilds each request and sends only the fields it knows";

/// An object whose fields are being taken.
#[derive(Debug)]
pub(crate) struct Fields {
    at: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Starts with an object; `at` says where it stands, empty for the body itself.
    pub(crate) fn of(value: Value, at: impl Into<String>) -> Result<Self, Refusal> {
        let at = at.into();
        match value {
            Value::Object(map) => Ok(Self { at, map }),
            _ => Err(misshapen(if at.is_empty() { "the body" } else { &at }, "an object")),
        }
    }

    /// Where a field of this object stands.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// Takes a field out; null is the same as none.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Forgets fields that are known to do no harm and are not sent on.
    pub(crate) fn forget(&mut self, names: &[&str]) {
        for name in names {
            self.map.shift_remove(*name);
        }
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(misshapen(&self.path(name), "a string")),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(misshapen(&self.path(name), "true or false")),
        }
    }

    /// A number between `least` and `most`, both included.
    pub(crate) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
                _ => Err(misshapen(&self.path(name), &format!("a number from {least} to {most}"))),
            },
        }
    }

    /// A whole number from 1 to `most`.
    pub(crate) fn count(&mut self, name: &str, most: u32) -> Result<Option<u32>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|count| u32::try_from(count).ok()) {
                Some(count) if (1..=most).contains(&count) => Ok(Some(count)),
                _ => Err(misshapen(&self.path(name), &format!("a whole number from 1 to {most}"))),
            },
        }
    }

    /// A list of at most `most` items.
    pub(crate) fn list(&mut self, name: &str, most: usize) -> Result<Option<Vec<Value>>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() <= most => Ok(Some(items)),
            Some(_) => Err(misshapen(&self.path(name), &format!("a list of at most {most}"))),
        }
    }

    /// An identifier: what ends up as a name or id upstream.
    pub(crate) fn identifier(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        let path = self.path(name);
        match self.text(name)? {
            Some(text) if !is_identifier(&text) => {
                Err(misshapen(&path, "1 to 128 letters, digits and '_', '-', '.', ':'"))
            }
            text => Ok(text),
        }
    }

    /// Whatever a missing field is refused with.
    pub(crate) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, Refusal> {
        value.ok_or_else(|| misshapen(&self.path(name), "there"))
    }

    /// Ends it: nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let name = harmless_line(name, 64);
                let place = if self.at.is_empty() { String::new() } else { format!(" in {}", self.at) };
                Err(Refusal::bad_request(
                    "field-not-allowed",
                    format!("the field {name:?}{place} is not passed on"),
                    REBUILT,
                ))
            }
        }
    }
}

/// A field that is there and not what it has to be.
pub(crate) fn misshapen(path: &str, expected: &str) -> Refusal {
    Refusal::bad_request(
        "malformed-request",
        format!("{path} has to be {expected}"),
        "send a chat completion request as OpenAI documents it",
    )
}

fn is_identifier(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':'))
}
