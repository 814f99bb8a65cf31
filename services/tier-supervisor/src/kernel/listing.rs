//! One spelling for what `nft -j list table` says, so that two listings can be compared. Pure.
//!
//! Handles and counter values differ between equal tables and are taken out; elements of sets have no order and are sorted.

use serde_json::Value;

use super::KernelError;

/// The listing without what may differ between equal tables.
pub(super) fn canonical(listing: &str) -> Result<String, KernelError> {
    let mut value: Value =
        serde_json::from_str(listing).map_err(|error| KernelError::Listing { why: error.to_string() })?;
    let Some(Value::Array(parts)) = value.get_mut("nftables") else {
        return Err(KernelError::Listing { why: "there is no \"nftables\" in it".to_owned() });
    };
    parts.retain(|part| part.get("metainfo").is_none());
    parts.iter_mut().for_each(tidy);
    Ok(value.to_string())
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.shift_remove("handle");
            for (name, field) in fields.iter_mut() {
                match (name.as_str(), &mut *field) {
                    ("counter", Value::Object(counter)) => counter.clear(),
                    (_, field) => tidy(field),
                }
                if let ("elem" | "set", Value::Array(elements)) = (name.as_str(), field) {
                    elements.sort_by_cached_key(Value::to_string);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn only_what_matters_counts() {
        let one = r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},{"set":{"name":"s","handle":4,"elem":["b","a"]}},
            {"rule":{"handle":9,"expr":[{"counter":{"packets":3,"bytes":4}},{"drop":null}]}}]}"#;
        let same = r#"{"nftables":[{"set":{"name":"s","handle":5,"elem":["a","b"]}},
            {"rule":{"handle":1,"expr":[{"counter":{"packets":0,"bytes":0}},{"drop":null}]}}]}"#;
        let more = same.replace(r#""b"]"#, r#""b","c"]"#);
        let other = same.replace("drop", "accept");
        assert_eq!(canonical(one).unwrap(), canonical(same).unwrap());
        assert_ne!(canonical(one).unwrap(), canonical(&more).unwrap());
        assert_ne!(canonical(one).unwrap(), canonical(&other).unwrap());
        assert!(canonical("{}").is_err());
        assert!(canonical("").is_err());
    }
}
