//! Which tools a tier has, under which names, and what of a server's own words about them reaches the agent.
//!
//! Names come from the configuration alone: what a server says it has can take a tool away, never add one or rename one.
//! So a name means the same tool whichever servers are up.

use std::collections::BTreeMap;
use std::sync::Arc;

use assistant_proto::config::McpServer;
use serde_json::{Map, Value, json};
use service_kit::text::harmless;

/// Longest description that is passed on; a model reads each with every prompt.
const DESCRIPTION_MOST: usize = 8 * 1024;
/// Longest text inside an input schema.
const SCHEMA_TEXT_MOST: usize = 4 * 1024;
/// Largest input schema, serialised.
const SCHEMA_MOST: usize = 64 * 1024;

/// One allowed tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tool {
    /// Index of its server in the tier's list.
    pub(super) server: usize,
    /// Its name at the server.
    pub(super) name: String,
}

/// All allowed tools by the names the agent uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Catalogue {
    tools: BTreeMap<String, Tool>,
}

impl Catalogue {
    /// From the allow-lists. A tool that several servers may offer is called `<server>_<tool>` for each of them. Should
    /// even that be taken, neither claimant gets the name: the second value says which names those are.
    pub(super) fn new(servers: &[McpServer]) -> (Self, Vec<String>) {
        let mut by_tool: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, server) in servers.iter().enumerate() {
            for tool in &server.tools {
                let holders = by_tool.entry(tool).or_default();
                if !holders.contains(&index) {
                    holders.push(index);
                }
            }
        }
        let mut claims: BTreeMap<String, Vec<Tool>> = BTreeMap::new();
        for (tool, holders) in &by_tool {
            for &server in holders {
                let name = match (holders.len(), servers.get(server)) {
                    (1, _) | (_, None) => (*tool).to_owned(),
                    (_, Some(of)) => format!("{}_{tool}", of.name),
                };
                claims.entry(name).or_default().push(Tool { server, name: (*tool).to_owned() });
            }
        }
        let mut tools = BTreeMap::new();
        let mut taken = Vec::new();
        for (name, mut claimants) in claims {
            match (claimants.pop(), claimants.is_empty()) {
                (Some(tool), true) => {
                    tools.insert(name, tool);
                }
                _ => taken.push(name),
            }
        }
        (Self { tools }, taken)
    }

    /// The tool that a name means.
    pub(super) fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.get(name)
    }

    /// What the agent is told: of every allowed tool that its server described, the description made harmless.
    /// `listed` holds each server's `tools/list` by index, none where it is not known.
    pub(super) fn describe(&self, listed: &[Option<Arc<Vec<Value>>>]) -> Value {
        let tools: Vec<Value> = self
            .tools
            .iter()
            .filter_map(|(name, tool)| {
                let described = listed.get(tool.server)?.as_ref()?;
                let description = described.iter().find(|entry| entry.get("name") == Some(&json!(tool.name)))?;
                describe(name, description)
            })
            .collect();
        json!({ "tools": tools })
    }
}

/// Name, description and input schema; nothing else a server may say of its tool is believed (annotations claim that a
/// tool only reads) or needed.
fn describe(name: &str, entry: &Value) -> Option<Value> {
    let mut schema = match entry.get("inputSchema") {
        Some(Value::Object(schema)) => schema.clone(),
        None => Map::from_iter([("type".to_owned(), json!("object"))]),
        Some(_) => return None,
    };
    schema.values_mut().for_each(make_harmless);
    // Names a dialect or itself; the model ingress passes no such names.
    schema.retain(|key, value| !(matches!(key.as_str(), "$schema" | "$id") && value.is_string()));
    let schema = Value::Object(schema);
    if schema.to_string().len() > SCHEMA_MOST {
        tracing::warn!(tool = name, "a tool's input schema is above {SCHEMA_MOST} bytes; the tool is not offered");
        return None;
    }
    let mut described = json!({"name": name, "inputSchema": schema});
    if let Some(text) = entry.get("description").and_then(Value::as_str) {
        described["description"] = Value::String(harmless(text, DESCRIPTION_MOST));
    }
    Some(described)
}

fn make_harmless(value: &mut Value) {
    match value {
        Value::String(text) => *text = harmless(text, SCHEMA_TEXT_MOST),
        Value::Array(items) => items.iter_mut().for_each(make_harmless),
        Value::Object(fields) => {
            // Keys are the names of arguments and must stay as they are, or calls would not work: who uses odd ones goes.
            fields.retain(|key, _| harmless(key, 256) == *key);
            fields.values_mut().for_each(make_harmless);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn server(name: &str, tools: &[&str]) -> McpServer {
        McpServer {
            name: name.parse().unwrap(),
            address: "127.0.0.1:8811".parse().unwrap(),
            token_file: "/nowhere".into(),
            tools: tools.iter().map(|tool| (*tool).to_owned()).collect(),
        }
    }

    fn names(servers: &[McpServer]) -> Vec<(String, usize, String)> {
        let (catalogue, _) = Catalogue::new(servers);
        catalogue.tools.into_iter().map(|(name, tool)| (name, tool.server, tool.name)).collect()
    }

    #[test]
    fn names_come_from_the_allow_lists() {
        let of = |name: &str, server, tool: &str| (name.to_owned(), server, tool.to_owned());
        assert_eq!(names(&[]), []);
        assert_eq!(names(&[server("a", &[])]), [], "an empty allow-list allows nothing");
        assert_eq!(
            names(&[server("a", &["x", "both"]), server("b", &["y", "both", "both"])]),
            [of("a_both", 0, "both"), of("b_both", 1, "both"), of("x", 0, "x"), of("y", 1, "y")]
        );
    }

    #[test]
    fn a_name_taken_twice_is_nobodys() {
        let servers = [server("a", &["both", "a_both"]), server("b", &["both"])];
        let (catalogue, taken) = Catalogue::new(&servers);
        assert_eq!(taken, ["a_both"]);
        assert_eq!(catalogue.tool("a_both"), None);
        assert_eq!(catalogue.tool("b_both"), Some(&Tool { server: 1, name: "both".to_owned() }));
        assert_eq!(catalogue.tool("both"), None);
    }

    #[test]
    fn only_allowed_and_described_tools_are_told() {
        let (catalogue, _) = Catalogue::new(&[server("a", &["x", "missing"]), server("b", &["z"])]);
        let listed =
            vec![json!({"name": "x", "description": "d"}), json!({"name": "secretly_more", "description": "d"})];
        assert_eq!(
            catalogue.describe(&[Some(Arc::new(listed)), None]),
            json!({"tools": [{"name": "x", "inputSchema": {"type": "object"}, "description": "d"}]})
        );
    }

    #[test]
    fn descriptions_are_harmless_and_bounded() {
        let (catalogue, _) = Catalogue::new(&[server("a", &["x", "y", "z"])]);
        let entry = |name: &str, schema: Value| json!({"name": name, "description": "a\u{1b}[2Jb\nc\u{202e}", "inputSchema": schema, "annotations": {"readOnlyHint": true}});
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"p": {"description": "\u{200b}hidden", "enum": ["\u{7}"]}, "od\u{1b}d": {}},
        });
        let huge = json!({"type": "object", "properties": {"p": {"enum": vec!["v"; 20_000]}}});
        let described = catalogue.describe(&[Some(Arc::new(vec![
            entry("x", schema),
            entry("y", huge),
            entry("z", json!("no schema")),
        ]))]);
        assert_eq!(
            described,
            json!({"tools": [{
                "name": "x",
                "inputSchema": {
                    "type": "object",
                    "properties": {"p": {"description": "\\u{200b}hidden", "enum": ["\\u{7}"]}},
                },
                "description": "a\\u{1b}[2Jb\nc\\u{202e}",
            }]})
        );
    }

    proptest! {
        #[test]
        fn every_allowed_tool_has_one_name_or_is_reported(
            lists in proptest::collection::vec(proptest::collection::vec("[ab_]{1,3}", 0..5), 0..4)
        ) {
            let servers: Vec<McpServer> = lists
                .iter()
                .enumerate()
                .map(|(index, tools)| {
                    let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
                    server(["a", "b", "a-b", "b-a"][index], &tools)
                })
                .collect();
            let (catalogue, taken) = Catalogue::new(&servers);
            for (index, tools) in lists.iter().enumerate() {
                for tool in tools {
                    let own = Tool { server: index, name: tool.clone() };
                    let offered = catalogue.tools.values().filter(|other| **other == own).count();
                    prop_assert!(offered == 1 || (offered == 0 && !taken.is_empty()));
                }
            }
        }
    }
}
