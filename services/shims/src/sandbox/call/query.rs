//! The parameters of a call, taken out one by one; what is left at the end must be empty.

use super::super::refusal::{Operation, Reason, Refused};
use crate::visible::visible;

/// The parameters that nobody has asked for yet. None of those accepted has a value that would need an escape.
pub(super) struct Query<'a> {
    operation: Operation,
    left: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    pub(super) fn of(operation: Operation, query: Option<&'a str>) -> Result<Self, Refused> {
        let refused = |detail: &str| Refused::new(operation, Reason::Parameter, detail);
        let mut left: Vec<(&str, &str)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !plain(name) || !plain(value) {
                let pair = visible(pair.as_bytes(), 80);
                return Err(refused(&format!("the parameter {pair:?} has characters that none here has")));
            }
            if left.iter().any(|(known, _)| *known == name) {
                return Err(refused(&format!("the parameter {name} is there twice")));
            }
            left.push((name, value));
        }
        Ok(Self { operation, left })
    }

    pub(super) fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.left.iter().position(|(known, _)| *known == name)?;
        Some(self.left.swap_remove(at).1)
    }

    pub(super) fn wrong(&self, name: &str, wanted: &str) -> Refused {
        Refused::new(self.operation, Reason::Parameter, &format!("the parameter {name} must be {wanted}"))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refused> {
        match self.take(name) {
            None | Some("" | "0" | "false" | "False") => Ok(false),
            Some("1" | "true" | "True") => Ok(true),
            Some(_) => Err(self.wrong(name, "0 or 1")),
        }
    }

    /// Seconds since 1970 with at most nanoseconds.
    pub(super) fn moment(&mut self, name: &str) -> Result<Option<String>, Refused> {
        let Some(text) = self.take(name).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if digits(seconds, 12) && digits(fraction, 9) {
            Ok(Some(text.to_owned()))
        } else {
            Err(self.wrong(name, "seconds since 1970, as in 1700000000.5"))
        }
    }

    pub(super) fn finish(self) -> Result<(), Refused> {
        match self.left.iter().find(|(_, value)| !value.is_empty()) {
            None => Ok(()),
            Some((name, _)) => {
                let detail = format!("the parameter {} is not known here", visible(name.as_bytes(), 80));
                Err(Refused::new(self.operation, Reason::Parameter, &detail))
            }
        }
    }
}
