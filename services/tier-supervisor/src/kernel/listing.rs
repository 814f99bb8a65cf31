//! One spelling for what `nft -j list table` says, so that two listings can be compared. Pure.
//!
//! Handles and counter values differ between equal tables and are taken out; elements of sets have no order and are sorted.

use std::collections::BTreeMap;

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

/// What the rules that report to a group have counted, and what the named counters have: by their names.
pub(super) fn counted(listing: &str, group: u16) -> Result<Counted, KernelError> {
    let value: Value =
        serde_json::from_str(listing).map_err(|error| KernelError::Listing { why: error.to_string() })?;
    let Some(Value::Array(parts)) = value.get("nftables") else {
        return Err(KernelError::Listing { why: "there is no \"nftables\" in it".to_owned() });
    };
    let packets = |counter: &Value| counter.get("packets").and_then(Value::as_u64);
    let mut counted = Counted::default();
    for part in parts {
        if let Some(table) = part.get("table").and_then(|table| table.get("handle")?.as_u64()) {
            counted.table = table;
        }
        if let Some(counter) = part.get("counter")
            && let (Some(name), Some(packets)) = (counter.get("name").and_then(Value::as_str), packets(counter))
        {
            counted.named.insert(name.to_owned(), packets);
        }
        let Some(statements) = part.get("rule").and_then(|rule| rule.get("expr")?.as_array()) else { continue };
        let reports = |part: &Value| part.get("log").and_then(|log| log.get("group")?.as_u64()) == Some(group.into());
        if statements.iter().any(reports) {
            let counters = statements.iter().filter_map(|part| packets(part.get("counter")?));
            counted.reported = counters.fold(counted.reported, u64::saturating_add);
        }
    }
    Ok(counted)
}

/// What one table has counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// The kernel's number of this table: another table has another one.
    pub(super) table: u64,
    pub(super) reported: u64,
    pub(super) named: BTreeMap<String, u64>,
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.shift_remove("handle");
            for (name, field) in fields.iter_mut() {
                match (name.as_str(), &mut *field) {
                    ("counter", Value::Object(counter)) => {
                        counter.retain(|name, _| !matches!(name.as_str(), "handle" | "packets" | "bytes"));
                    }
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
    fn what_was_reported_is_summed() {
        let listing = r#"{"nftables":[{"metainfo":{}},{"table":{"name":"assistant","handle":4}},
            {"counter":{"name":"zeroclaw-tasks","packets":7,"bytes":9}},
            {"rule":{"expr":[{"counter":{"packets":3,"bytes":4}},{"log":{"prefix":"as:flow","group":87}},{"drop":null}]}},
            {"rule":{"expr":[{"counter":{"packets":40,"bytes":4}},{"drop":null}]}},
            {"rule":{"expr":[{"counter":"zeroclaw-tasks"},{"drop":null}]}},
            {"rule":{"expr":[{"counter":{"packets":500,"bytes":4}},{"log":{"group":1}},{"drop":null}]}},
            {"rule":{"expr":[{"counter":{"packets":2,"bytes":4}},{"log":{"group":87}},{"drop":null}]}}]}"#;
        let named = BTreeMap::from([("zeroclaw-tasks".to_owned(), 7)]);
        assert_eq!(counted(listing, 87).unwrap(), Counted { table: 4, reported: 5, named });
        assert!(counted("{}", 87).is_err());
    }

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
