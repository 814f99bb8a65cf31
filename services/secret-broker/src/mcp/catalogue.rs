//! Which tools a tier has, under which names, and what of a server's own words about them reaches the agent.
//!
//! Names come from the configuration alone: what a server says it has can take a tool away, never add one or rename one.
//! So a name means the same tool whichever servers are up. Of an *open* server, one whose every tool is allowed, the
//! configuration gives the beginning of the names; which tools there are is what the server said when its session began
//! (`session`).

use std::collections::BTreeMap;
use std::sync::Arc;

use assistant_proto::config::{McpServer, ToolRule};
use assistant_proto::name::TierName;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use service_kit::text::{harmless, harmless_line};

/// Longest description that is passed on; a model reads each with every prompt.
const DESCRIPTION_MOST: usize = 8 * 1024;
/// Longest text inside an input schema.
const SCHEMA_TEXT_MOST: usize = 4 * 1024;
/// Largest input schema, serialised.
const SCHEMA_MOST: usize = 64 * 1024;
/// Of a name in the log.
const NAME_SHOWN: usize = 128;

/// One allowed tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tool {
    /// Index of its server in the tier's list.
    pub(super) server: usize,
    /// Its name at the server.
    pub(super) name: String,
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A tool that an allow-list names.
    Listed(Tool),
    /// A tool of an open server, if that server has it.
    Open(Tool),
}

/// A server whose every tool is allowed.
#[derive(Debug, PartialEq, Eq)]
struct Open {
    server: usize,
    /// What its tools' names begin with for the agent: nothing where it is the only server. No server's name has a `_`,
    /// so a name begins with one of them at most.
    beginning: String,
}

/// All allowed tools by the names the agent uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalogue {
    tools: BTreeMap<String, Tool>,
    open: Vec<Open>,
}

impl Catalogue {
    /// For a tier. Names that nobody gets are logged.
    pub(crate) fn of(tier: &TierName, servers: &[McpServer]) -> Self {
        let (catalogue, taken) = Self::new(servers);
        for name in taken {
            tracing::error!(
                %tier,
                tool = %harmless_line(&name, NAME_SHOWN),
                "two tools claim one name and neither is offered; take one out of the tools section of tiers.yaml"
            );
        }
        catalogue
    }

    /// By which name the agent calls a tool of a server; none where another has that name.
    pub(crate) fn name_of(&self, server: usize, tool: &str) -> Option<String> {
        let is_it = |known: &Tool| known.server == server && known.name == tool;
        if let Some((name, _)) = self.tools.iter().find(|(_, known)| is_it(known)) {
            return Some(name.clone());
        }
        let open = self.open.iter().find(|open| open.server == server)?;
        let name = format!("{}{tool}", open.beginning);
        matches!(self.meaning(&name), Some(Meaning::Open(known)) if is_it(&known)).then_some(name)
    }

    /// From the allow-lists. A tool that several servers may offer is called `<server>_<tool>` for each of them, and so is
    /// every tool of an open server that is not alone: whether another has the same is not known. Should even that be
    /// taken, neither claimant gets the name: the second value says which names those are. (An open server's tool yields
    /// to an allow-list's.)
    pub(super) fn new(servers: &[McpServer]) -> (Self, Vec<String>) {
        let mut by_tool: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, server) in servers.iter().enumerate() {
            let ToolRule::Only(allowed) = &server.tools else { continue };
            for tool in allowed {
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
        let beginning = |of: &McpServer| if servers.len() == 1 { String::new() } else { format!("{}_", of.name) };
        let open = servers.iter().enumerate().filter(|(_, server)| server.tools == ToolRule::All);
        let open = open.map(|(server, of)| Open { server, beginning: beginning(of) }).collect();
        (Self { tools, open }, taken)
    }

    /// What a name means, if anything.
    pub(super) fn meaning(&self, name: &str) -> Option<Meaning> {
        if let Some(tool) = self.tools.get(name) {
            return Some(Meaning::Listed(tool.clone()));
        }
        self.open.iter().find_map(|open| {
            let name = name.strip_prefix(open.beginning.as_str())?.to_owned();
            Some(Meaning::Open(Tool { server: open.server, name }))
        })
    }

    /// What the agent is told, as JSON, and of how many tools: of every allowed tool that its server described.
    /// `listed` holds each server's tools by index, none where they are not known.
    ///
    /// # Errors
    /// Never for tools that were read.
    pub(super) fn describe(
        &self,
        listed: &[Option<Arc<Vec<Arc<Described>>>>],
    ) -> Result<(Box<RawValue>, usize), serde_json::Error> {
        let of = |server: usize| listed.get(server).and_then(Option::as_ref).into_iter().flat_map(|all| all.iter());
        let mut tools: BTreeMap<String, &Described> = BTreeMap::new();
        for (name, tool) in &self.tools {
            if let Some(described) = of(tool.server).find(|described| described.name == tool.name) {
                tools.insert(name.clone(), described);
            }
        }
        for open in &self.open {
            for described in of(open.server) {
                let name = format!("{}{}", open.beginning, described.name);
                // Only what a call by this name would reach.
                if matches!(self.meaning(&name), Some(Meaning::Open(_))) {
                    tools.insert(name, described);
                }
            }
        }
        let told = |(name, described): (&String, &&Described)| -> Result<Box<RawValue>, serde_json::Error> {
            to_raw_value(&Told { name, input_schema: &described.schema, description: described.description.as_deref() })
        };
        let told = tools.iter().map(told).collect::<Result<Vec<_>, _>>()?;
        Ok((to_raw_value(&Tools { tools: &told })?, told.len()))
    }
}

#[derive(Serialize)]
struct Tools<'a> {
    tools: &'a [Box<RawValue>],
}

#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    #[serde(rename = "inputSchema")]
    input_schema: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

/// A tool as its server described it, made harmless and bounded: name, description and input schema; nothing else that a
/// server may say of its tool is believed (annotations claim that a tool only reads) or needed. It is kept for as long as
/// the server is, so the schema is kept as text: parsed, a small one may take a hundred times as much.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) name: String,
    description: Option<String>,
    schema: Box<RawValue>,
}

impl Described {
    /// None for what is no tool, or has no schema, or too large a one.
    pub(super) fn read(entry: Value) -> Option<Self> {
        let Value::Object(mut entry) = entry else { return None };
        let Some(Value::String(name)) = entry.shift_remove("name") else { return None };
        let mut schema = match entry.shift_remove("inputSchema") {
            Some(Value::Object(schema)) => schema,
            None => Map::from_iter([("type".to_owned(), json!("object"))]),
            Some(_) => return None,
        };
        schema.values_mut().for_each(make_harmless);
        // Names a dialect or itself; the model ingress passes no such names.
        schema.retain(|key, value| !(matches!(key.as_str(), "$schema" | "$id") && value.is_string()));
        let schema = to_raw_value(&schema).ok()?;
        if schema.get().len() > SCHEMA_MOST {
            let name = harmless_line(&name, NAME_SHOWN);
            tracing::warn!(tool = %name, "a tool's input schema is above {SCHEMA_MOST} bytes; the tool is not offered");
            return None;
        }
        let description = entry.get("description").and_then(Value::as_str);
        Some(Self { name, description: description.map(|text| harmless(text, DESCRIPTION_MOST)), schema })
    }

    pub(super) fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// About how many bytes it takes, here and on the wire.
    pub(super) fn size(&self) -> usize {
        let description = self.description.as_ref().map_or(0, String::len);
        self.name.len().saturating_add(description).saturating_add(self.schema.get().len())
    }
}

impl PartialEq for Described {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.description, self.schema.get()) == (&other.name, &other.description, other.schema.get())
    }
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
            tools: ToolRule::Only(tools.iter().map(|tool| (*tool).to_owned()).collect()),
            source: String::new(),
        }
    }

    fn listed(entries: impl IntoIterator<Item = Value>) -> Option<Arc<Vec<Arc<Described>>>> {
        Some(Arc::new(entries.into_iter().filter_map(Described::read).map(Arc::new).collect()))
    }

    fn told(catalogue: &Catalogue, listed: &[Option<Arc<Vec<Arc<Described>>>>]) -> Value {
        let (told, count) = catalogue.describe(listed).unwrap();
        let told: Value = serde_json::from_str(told.get()).unwrap();
        assert_eq!(told["tools"].as_array().unwrap().len(), count);
        told
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
        assert_eq!(catalogue.meaning("a_both"), None);
        assert_eq!(catalogue.meaning("b_both"), Some(Meaning::Listed(Tool { server: 1, name: "both".to_owned() })));
        assert_eq!(catalogue.meaning("both"), None);
    }

    fn open(name: &str) -> McpServer {
        McpServer { tools: ToolRule::All, ..server(name, &[]) }
    }

    #[test]
    fn an_open_server_has_its_own_names_only() {
        let tool = |server, name: &str| Tool { server, name: name.to_owned() };
        let (alone, _) = Catalogue::new(&[open("a")]);
        assert_eq!(alone.meaning("x"), Some(Meaning::Open(tool(0, "x"))));
        let (several, _) = Catalogue::new(&[open("a"), server("b", &["y", "a_z"]), open("c-a")]);
        for (name, expected) in [
            ("a_x", Some(Meaning::Open(tool(0, "x")))),
            ("c-a_x", Some(Meaning::Open(tool(2, "x")))),
            ("x", None),
            ("y", Some(Meaning::Listed(tool(1, "y")))),
            ("a_z", Some(Meaning::Listed(tool(1, "a_z")))),
            ("b_y", None),
        ] {
            assert_eq!(several.meaning(name), expected, "{name}");
        }
    }

    #[test]
    fn a_tool_is_shown_by_the_name_that_leads_to_it() {
        let (catalogue, _) = Catalogue::new(&[open("a"), server("b", &["y", "a_z", "both"]), server("c", &["both"])]);
        let shown = |server, tool: &str| catalogue.name_of(server, tool);
        for (server, tool, name) in
            [(0, "x", "a_x"), (1, "y", "y"), (1, "a_z", "a_z"), (1, "both", "b_both"), (2, "both", "c_both")]
        {
            assert_eq!(shown(server, tool).as_deref(), Some(name));
            let (Meaning::Listed(found) | Meaning::Open(found)) = catalogue.meaning(name).unwrap();
            assert_eq!((found.server, found.name.as_str()), (server, tool));
        }
        // Another has the name, or it is not allowed.
        assert_eq!((shown(0, "z"), shown(1, "x"), shown(2, "y"), shown(7, "y")), (None, None, None, None));
    }

    #[test]
    fn an_open_server_is_told_as_it_is_called() {
        let (catalogue, _) = Catalogue::new(&[open("a"), server("b", &["y", "a_z"])]);
        let of = |names: &[&str]| listed(names.iter().map(|name| json!({"name": name, "inputSchema": {}})));
        let told = told(&catalogue, &[of(&["x", "z", "y"]), of(&["y", "other"])]);
        let names: Vec<_> = told["tools"].as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
        assert_eq!(names, ["a_x", "a_y", "y"], "a_z is the other server's, though it did not list it");
    }

    #[test]
    fn only_allowed_and_described_tools_are_told() {
        let (catalogue, _) = Catalogue::new(&[server("a", &["x", "missing"]), server("b", &["z"])]);
        let all = [json!({"name": "x", "description": "d"}), json!({"name": "secretly_more", "description": "d"})];
        assert_eq!(
            told(&catalogue, &[listed(all), None]),
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
        let described =
            told(&catalogue, &[listed([entry("x", schema), entry("y", huge), entry("z", json!("no schema"))])]);
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

    #[test]
    fn what_is_kept_of_a_tool_is_text_and_bounded() {
        // Much in memory for little on the wire.
        let dense = json!({"type": "object", "x": vec![json!({"": 0}); 5_000]});
        let kept = Described::read(json!({"name": "x", "inputSchema": dense, "annotations": vec![json!({}); 5_000]}));
        assert!(kept.unwrap().size() < 64 * 1024);
        let larger = json!({"type": "object", "x": vec![json!({"": 0}); 10_000]});
        assert!(Described::read(json!({"name": "x", "inputSchema": larger})).is_none());
        let described = json!({"name": "x", "description": "d".repeat(100_000)});
        assert!(Described::read(described).unwrap().size() < 10_000);
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
