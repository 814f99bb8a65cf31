//! images.json: which image references exist on this machine. Written by `up.sh` after building or pulling.

use std::collections::BTreeMap;
use std::path::Path;

use super::settings::SettingsError;
use crate::files;

/// Logical name (`squid`), or an `image:` of a catalogue or of tiers.yaml -> reference that exists locally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    named: BTreeMap<String, String>,
    /// For every other name.
    other: Option<String>,
}

/// What every stack needs, whatever its tiers.
const NEEDED: [&str; 8] =
    ["zeroclaw", "squid", "nats", "jaeger", "otel-collector", "secret-broker", "egress-auditor", "channel-bridge"];

impl Images {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it is absent, malformed, or an image every stack needs is missing.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = files::read_text(path)?;
        let named = serde_json::from_str(&text).map_err(|error| SettingsError::Shape {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            detail: error.to_string(),
        })?;
        let images = Self { named, other: None };
        let problems: Vec<String> = NEEDED
            .iter()
            .filter(|name| images.reference(name).is_none())
            .map(|name| format!("the image \"{name}\" is missing; run deploy/up.sh again, it builds what is missing"))
            .collect();
        if problems.is_empty() { Ok(images) } else { Err(SettingsError::Values { path: path.to_owned(), problems }) }
    }

    /// What is supposed before any image was built: there will be every one, made by the stack. For checking the other files.
    #[must_use]
    pub fn supposed() -> Self {
        Self { named: BTreeMap::new(), other: Some("assistant/not-built-yet".to_owned()) }
    }

    /// The local reference of an image.
    #[must_use]
    pub fn reference(&self, name: &str) -> Option<&str> {
        self.named.get(name).or(self.other.as_ref()).map(String::as_str)
    }

    /// Every name there is.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }
}

impl FromIterator<(String, String)> for Images {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(iter: T) -> Self {
        Self { named: iter.into_iter().collect(), other: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn missing_images_are_named_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.json");
        std::fs::write(&path, r#"{"zeroclaw":"a:b","squid":"a:b","nats":"a:b","base":"a:b"}"#).unwrap();
        let error = Images::load(&path).unwrap_err().to_string();
        for name in ["jaeger", "otel-collector", "secret-broker", "egress-auditor", "channel-bridge"] {
            assert!(error.contains(name), "{name} not in {error}");
        }
        assert!(!error.contains("\"squid\""), "{error}");
    }
}
