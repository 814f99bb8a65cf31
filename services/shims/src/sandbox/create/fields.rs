//! The fields of one object, taken out one by one; what is left at the end must be default.

use std::collections::BTreeMap;

use super::super::json::Json;
use super::super::refusal::{Operation, Reason, Refused};
use crate::visible::visible;

/// The fields that nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Fields {
    at: &'static str,
    left: BTreeMap<String, Json>,
}

/// A field as people find it: `HostConfig.Memory`.
pub(super) fn path(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

impl Fields {
    /// Of the object at a place. An absent one has no fields; then each has its default.
    pub(super) fn of(at: &'static str, json: Json) -> Result<Self, Refused> {
        match json {
            Json::Object(left) => Ok(Self { at, left }),
            // The body itself is never absent.
            Json::Null if !at.is_empty() => Ok(Self { at, left: BTreeMap::new() }),
            _ => {
                let what = if at.is_empty() { "the body" } else { at };
                Err(refused(Reason::Malformed, &format!("{what} must be an object")))
            }
        }
    }

    /// The field's value, once; null where it is not there.
    pub(super) fn take(&mut self, name: &str) -> Json {
        self.left.remove(name).unwrap_or(Json::Null)
    }

    pub(super) fn wrong(&self, name: &str, wanted: &str) -> Refused {
        refused(Reason::Malformed, &format!("{} must be {wanted}", path(self.at, name)))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refused> {
        match self.take(name) {
            Json::Null => Ok(false),
            Json::Bool(flag) => Ok(flag),
            _ => Err(self.wrong(name, "true or false")),
        }
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<i64, Refused> {
        match self.take(name) {
            Json::Null => Ok(0),
            Json::Integer(value) => Ok(value),
            _ => Err(self.wrong(name, "a whole number")),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String, Refused> {
        match self.take(name) {
            Json::Null => Ok(String::new()),
            Json::Text(text) => Ok(text),
            _ => Err(self.wrong(name, "a string")),
        }
    }

    /// A list of strings that a kernel can take, which ends each at a zero byte.
    pub(super) fn words(&mut self, name: &str, most: usize) -> Result<Option<Vec<String>>, Refused> {
        let list = match self.take(name) {
            Json::Null => return Ok(None),
            Json::List(list) if list.len() <= most => list,
            Json::List(_) => return Err(self.wrong(name, &format!("a list of at most {most} strings"))),
            _ => return Err(self.wrong(name, "a list of strings")),
        };
        let words: Option<Vec<String>> = list
            .into_iter()
            .map(|word| match word {
                Json::Text(word) if !word.contains('\0') => Some(word),
                _ => None,
            })
            .collect();
        words.map(Some).ok_or_else(|| self.wrong(name, "a list of strings without zero bytes"))
    }

    /// Refuses the first field of the table that has more than its default.
    pub(super) fn defaults(&mut self, table: &[(&'static str, Reason, &'static str)]) -> Result<(), Refused> {
        for &(name, reason, what) in table {
            if !self.take(name).is_default() {
                let detail = format!("{}: the sandbox does not give {what}; leave it out", path(self.at, name));
                return Err(refused(reason, &detail));
            }
        }
        Ok(())
    }

    /// Refuses what is left, unless it is what clients send unasked.
    pub(super) fn finish(self) -> Result<(), Refused> {
        match self.left.iter().find(|(_, value)| !value.is_default()) {
            None => Ok(()),
            Some((name, _)) => {
                let name = visible(name.as_bytes(), 80);
                let detail = format!("{}: this field is not known here; leave it out", path(self.at, &name));
                Err(refused(Reason::UnknownField, &detail))
            }
        }
    }
}

fn refused(reason: Reason, detail: &str) -> Refused {
    Refused::new(Operation::Create, reason, detail)
}
