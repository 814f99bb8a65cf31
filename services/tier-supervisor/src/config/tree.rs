//! YAML as a tree in which every node knows its place, and typed access to it that reports what is wrong and goes on.
//!
//! serde would stop at the first problem. Nothing here repeats a scalar: it may be a secret in the wrong place.

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};

use super::problem::{At, Report, shown, suggestion};

/// Longest line that is parsed. Block collections nest by column, so this bounds the depth of the tree, and with it the
/// stack that walking and dropping it takes. Flow collections are bounded by the parser.
const LONGEST_LINE: usize = 2_000;

/// A node and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// A float, a tagged node or something else that no field of ours takes.
    Other(Option<f64>),
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: At,
    pub(super) key: String,
    pub(super) node: Node,
}

impl Node {
    fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "empty",
            Value::Bool(_) => "true or false",
            Value::Integer(_) | Value::Other(Some(_)) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Other(None) => "a value with a tag",
        }
    }
}

/// Parses one document. Problems of the syntax are reported; then there is no tree.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Option<Node> {
    let long = text.lines().position(|line| line.chars().nth(LONGEST_LINE).is_some());
    if let Some(index) = long {
        let at = At { line: index.saturating_add(1), column: LONGEST_LINE };
        report.problem(at, format!("this line is longer than {LONGEST_LINE} characters"), "break it up");
        return None;
    }
    let documents = match MarkedYaml::load_from_str(text) {
        Ok(documents) => documents,
        Err(error) => {
            let at = At { line: error.marker().line(), column: error.marker().col().saturating_add(1) };
            let fix = match error.info() {
                "duplicated key in mapping" => "keep one of the two",
                _ => "check indentation, quotes and colons on this line and the one before",
            };
            report.problem(at, format!("this is not valid YAML: {}", error.info()), fix);
            return None;
        }
    };
    let mut documents = documents.into_iter();
    let first = documents.next();
    if let Some(second) = documents.next() {
        let at = At { line: second.span.start.line(), column: 1 };
        report.problem(at, "there is a second YAML document in this file", "keep one");
        return None;
    }
    let start = At { line: 1, column: 1 };
    first.map_or(Some(Node { at: start, value: Value::Null }), |document| convert(document, report))
}

fn convert(yaml: MarkedYaml<'_>, report: &mut Report<'_>) -> Option<Node> {
    let at = At { line: yaml.span.start.line().max(1), column: yaml.span.start.col().saturating_add(1) };
    let value = match yaml.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(value)) => Value::Bool(value),
        YamlData::Value(Scalar::Integer(value)) => Value::Integer(value),
        YamlData::Value(Scalar::FloatingPoint(value)) => Value::Other(Some(value.into_inner())),
        YamlData::Value(Scalar::String(value)) => Value::Text(value.into_owned()),
        YamlData::Sequence(items) => Value::List(items.into_iter().filter_map(|item| convert(item, report)).collect()),
        YamlData::Mapping(entries) => {
            let mut map = Vec::new();
            for (key, node) in entries {
                let at = At { line: key.span.start.line().max(1), column: key.span.start.col().saturating_add(1) };
                let key = match key.data {
                    YamlData::Value(Scalar::String(text)) => text.into_owned(),
                    // `true:` or `1:` is a name all the same in a catalogue; as a field it will be unknown.
                    YamlData::Value(Scalar::Boolean(value)) => value.to_string(),
                    YamlData::Value(Scalar::Integer(value)) => value.to_string(),
                    _ => {
                        report.problem(at, "this key is not a name", "write a plain word before the colon");
                        continue;
                    }
                };
                if let Some(node) = convert(node, report) {
                    map.push(Entry { at, key, node });
                }
            }
            Value::Map(map)
        }
        YamlData::Tagged(..) | YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
            Value::Other(None)
        }
    };
    Some(Node { at, value })
}

/// A mapping whose keys were checked against the known ones.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    pub(super) at: At,
    entries: &'n [Entry],
    /// Whether a key was reported: a field that seems to be absent may be there under a wrong name.
    has_unknown: bool,
}

impl<'n> Fields<'n> {
    /// Takes a node as a mapping. Reports when it is none, and every key that is not known.
    pub(super) fn of(node: &'n Node, what: &str, known: &[&str], report: &mut Report<'_>) -> Option<Self> {
        let mut fields = Self::open(node, what, report)?;
        for entry in fields.entries {
            if !known.contains(&entry.key.as_str()) {
                fields.has_unknown = true;
                let shown = shown(&entry.key);
                report.problem(
                    entry.at,
                    format!("{what} has no field {shown}"),
                    suggestion(&entry.key, known.iter().copied()),
                );
            }
        }
        Some(fields)
    }

    /// Takes a node as a mapping with keys of the user's own.
    pub(super) fn open(node: &'n Node, what: &str, report: &mut Report<'_>) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => Some(Self { at: node.at, entries, has_unknown: false }),
            _ => {
                report.problem(node.at, format!("{what} is {}", node.kind()), "write it as a mapping (name: value)");
                None
            }
        }
    }

    pub(super) fn entries(&self) -> &'n [Entry] {
        self.entries
    }

    /// Whether a field is surely not meant to be there: absent, and no key was reported that may be a misspelling of it.
    pub(super) fn lacks(&self, name: &str) -> bool {
        !self.has_unknown && !self.entries.iter().any(|entry| entry.key == name)
    }

    /// Whether a field is there and null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name && matches!(entry.node.value, Value::Null))
    }

    /// The value of a field; none where it is absent or null.
    pub(super) fn node(&self, name: &str) -> Option<&'n Node> {
        self.entries
            .iter()
            .find(|entry| entry.key == name)
            .map(|entry| &entry.node)
            .filter(|node| !matches!(node.value, Value::Null))
    }

    /// Place of a field, or of the mapping where the field is absent.
    pub(super) fn at(&self, name: &str) -> At {
        self.entries.iter().find(|entry| entry.key == name).map_or(self.at, |entry| entry.at)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name)
    }

    /// Whether a list is not there or holds nothing. A value that is no list is something else.
    pub(super) fn is_absent_or_empty(&self, name: &str) -> bool {
        self.node(name).is_none_or(|node| matches!(&node.value, Value::List(items) if items.is_empty()))
    }

    pub(super) fn text(&self, name: &str, report: &mut Report<'_>) -> Option<(At, &'n str)> {
        let node = self.node(name)?;
        match &node.value {
            Value::Text(text) => Some((node.at, text)),
            _ => wrong(node, name, "text; put it in quotes", report),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool, report: &mut Report<'_>) -> bool {
        let Some(node) = self.node(name) else { return default };
        match node.value {
            Value::Bool(value) => value,
            _ => wrong(node, name, "true or false", report).unwrap_or(default),
        }
    }

    /// Whether a field is there and true, without a word when it is something else.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.node(name).is_some_and(|node| matches!(node.value, Value::Bool(true)))
    }

    pub(super) fn port(&self, name: &str, report: &mut Report<'_>) -> Option<(At, u16)> {
        let node = self.node(name)?;
        match node.value {
            Value::Integer(value) => match u16::try_from(value) {
                Ok(port) if port >= 1024 => Some((node.at, port)),
                _ => wrong(node, name, "a port from 1024 to 65535", report),
            },
            _ => wrong(node, name, "a port from 1024 to 65535", report),
        }
    }

    pub(super) fn number(&self, name: &str, report: &mut Report<'_>) -> Option<(At, f64)> {
        let node = self.node(name)?;
        let value = match node.value {
            Value::Other(Some(value)) => Some(value),
            // Numbers of this file are small; what i32 cannot hold is out of every range asked for.
            Value::Integer(value) => i32::try_from(value).ok().map(f64::from),
            _ => None,
        };
        match value {
            Some(value) => Some((node.at, value)),
            None => wrong(node, name, "a number", report),
        }
    }

    /// A list of texts in which each stands once; empty where it is absent.
    pub(super) fn texts(&self, name: &str, report: &mut Report<'_>) -> Vec<(At, &'n str)> {
        let texts = self.words(name, report);
        for (index, (at, text)) in texts.iter().enumerate() {
            if texts.iter().take(index).any(|(_, earlier)| earlier == text) {
                report.problem(*at, format!("\"{name}\" has this item twice"), "keep one");
            }
        }
        texts
    }

    /// A list of texts in which one may stand again; empty where it is absent.
    pub(super) fn words(&self, name: &str, report: &mut Report<'_>) -> Vec<(At, &'n str)> {
        let Some(node) = self.node(name) else { return Vec::new() };
        let Some(items) = self.list(name, report) else { return Vec::new() };
        let mut texts = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(text) => texts.push((item.at, text.as_str())),
                _ => {
                    let fix = "write each item as text, in quotes where needed";
                    report.problem(item.at, format!("an item of \"{name}\" is {}", item.kind()), fix);
                }
            }
        }
        if texts.len() > 1_000 {
            report.problem(node.at, format!("\"{name}\" has more than 1000 items"), "that cannot be meant");
        }
        texts
    }

    /// A list; none where it is absent or something else, which is reported.
    pub(super) fn list(&self, name: &str, report: &mut Report<'_>) -> Option<&'n [Node]> {
        let node = self.node(name)?;
        match &node.value {
            Value::List(items) => Some(items),
            _ => wrong(node, name, "a list", report),
        }
    }
}

fn wrong<T>(node: &Node, name: &str, expected: &str, report: &mut Report<'_>) -> Option<T> {
    report.problem(node.at, format!("\"{name}\" is {}", node.kind()), format!("it must be {expected}"));
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> (Option<Node>, Vec<String>) {
        let (mut problems, mut remarks) = (Vec::new(), Vec::new());
        let mut report = Report { file: "f", problems: &mut problems, remarks: &mut remarks };
        let node = parse(text, &mut report);
        (node, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn places_count_from_one() {
        let (node, problems) = parsed("a: 1\nbb:\n  - x\n  - y: true\n");
        assert!(problems.is_empty());
        let Some(Node { value: Value::Map(entries), .. }) = node else { panic!("no map") };
        assert_eq!(entries[1].at, At { line: 2, column: 1 });
        let Value::List(items) = &entries[1].node.value else { panic!("no list") };
        assert_eq!(items[0].at, At { line: 3, column: 5 });
        let Value::Map(inner) = &items[1].value else { panic!("no map") };
        assert_eq!(inner[0].at, At { line: 4, column: 5 });
        assert_eq!(inner[0].node.at, At { line: 4, column: 8 });
    }

    #[test]
    fn broken_syntax_is_one_problem_with_a_place_and_no_content() {
        for (text, line) in [
            ("a: [1, 2\nb: hunter2hunter2", 2),
            ("a: 1\na: hunter2", 2),
            ("a: \"hunter2", 1),
            ("a: 1\n---\nb: hunter2", 3),
            ("a:\n\t- hunter2", 2),
        ] {
            let (node, problems) = parsed(text);
            assert!(node.is_none(), "{text}");
            assert_eq!(problems.len(), 1, "{text}");
            assert!(!problems[0].contains("hunter2"), "{}", problems[0]);
            let at: usize = problems[0].split(':').nth(1).unwrap().parse().unwrap();
            assert!(at.abs_diff(line) <= 1, "{text}: {}", problems[0]);
        }
    }

    #[test]
    fn depth_and_expansion_are_bounded() {
        let (node, _) = parsed(&"- ".repeat(400_000));
        assert!(node.is_none());
        drop(parsed(&"- ".repeat(999)));
        let (node, _) = parsed(&"[".repeat(1_000));
        assert!(node.is_none());
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let alias = format!("*a{}", n - 1);
            bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![alias; 10].join(", ")));
        }
        let (node, problems) = parsed(&bomb);
        assert!(node.is_none() && problems.len() == 1, "{problems:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-\\[\\]{}:,&*!|>'\"%@`#a-z0-9 \\n\\t]{0,200}") {
            drop(parsed(&text));
        }
    }
}
