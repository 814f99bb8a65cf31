//! Whether a provider has the models that stand behind the stack's names, by the provider's own list. Pure: when it is
//! asked, and by which way, is [`super::provider`]'s.
//!
//! The list is a stranger's text. Of it only identifiers count, of a closed alphabet; whatever else it says is not read.

use assistant_proto::config::UpstreamModel;
use policy::Denial;
use serde::Deserialize;
use service_kit::text::harmless_line;

/// The reason of a refused call whose model the provider does not list.
pub(crate) const NOT_LISTED: &str = "model-not-at-provider";
/// Longest identifier that counts; the longest known ones have some 60 characters.
const ID_MOST: usize = 128;
/// Of a provider's name.
const PROVIDER_MOST: usize = 200;
/// How much of a list is repeated in a sentence, in bytes.
const SAID_MOST: usize = 400;

/// Models that a provider says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    ids: Vec<String>,
    /// Entries that cannot be repeated: without an identifier, or with one of other characters than identifiers have.
    odd: usize,
}

/// Of an entry, what is read. Everything else is passed over without being kept.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    id: Option<String>,
}

#[derive(Deserialize)]
struct Wrapped {
    data: Vec<Entry>,
}

impl List {
    /// Reads `{"data": [{"id": ...}]}`, as OpenAI's API has it (<https://platform.openai.com/docs/api-reference/models>),
    /// or the bare array that some hosts answer with. None for anything else.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let entries = match body.trim_ascii_start().first() {
            Some(b'[') => serde_json::from_slice(body).ok()?,
            _ => serde_json::from_slice::<Wrapped>(body).ok()?.data,
        };
        let all = entries.len();
        let fine = |id: &String| (1..=ID_MOST).contains(&id.len()) && id.bytes().all(is_plain);
        let mut ids: Vec<String> = entries.into_iter().filter_map(|entry: Entry| entry.id).filter(fine).collect();
        let odd = all.saturating_sub(ids.len());
        ids.sort_unstable();
        ids.dedup();
        Some(Self { ids, odd })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.odd == 0
    }

    /// All of them, in order.
    pub(crate) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Whether a name leads to one of them. Besides the identifier itself two spellings do, by the hosts' own word:
    /// Google's list says `models/<name>`, and Ollama takes a name without a tag for that with `:latest`.
    pub(crate) fn has(&self, upstream: &str) -> bool {
        let is = |id: &String| id == upstream || id.strip_prefix("models/") == Some(upstream);
        self.ids.iter().any(is) || (!upstream.contains(':') && self.ids.contains(&format!("{upstream}:latest")))
    }

    /// As many of them as a sentence bears, those like the name first.
    fn nearest(&self, upstream: &str) -> String {
        let like = |id: &str| strsim::jaro_winkler(&id.to_ascii_lowercase(), &upstream.to_ascii_lowercase());
        let mut rated: Vec<(f64, &str)> = self.ids.iter().map(|id| (like(id), id.as_str())).collect();
        rated.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let mut said = String::new();
        let mut told = 0_usize;
        for (_, id) in &rated {
            if told > 0 && said.len().saturating_add(id.len()) > SAID_MOST {
                break;
            }
            if told > 0 {
                said.push_str(", ");
            }
            said.push_str(id);
            told = told.saturating_add(1);
        }
        let more = self.ids.len().saturating_sub(told).saturating_add(self.odd);
        match (told, more) {
            (0, _) => "a name it knows".to_owned(),
            (_, 0) => said,
            _ => format!("{said} and {more} more"),
        }
    }
}

/// What identifiers of models are made of. No space, nothing that marks text up, no address.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:/@+~".contains(&byte)
}

/// Says that a provider has no such model: the same words for whoever calls it and for who looks after the stack. The
/// names `of` all stand for the one model.
pub(super) fn not_listed(provider: &str, list: &List, of: &[&UpstreamModel]) -> Option<Denial> {
    let first = of.first()?;
    let names: Vec<&str> = of.iter().map(|model| model.name.as_str()).collect();
    let provider = harmless_line(provider, PROVIDER_MOST);
    let upstream = harmless_line(&first.upstream, ID_MOST);
    Some(Denial::new(
        NOT_LISTED,
        format!("{provider} lists no model \"{upstream}\", which stands behind {}", names.join(" and ")),
        format!(
            "set {} to one that it lists, and run deploy/up.sh: {}",
            harmless_line(&first.named_in, ID_MOST),
            list.nearest(&first.upstream)
        ),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn list(ids: &[&str]) -> List {
        let data: Vec<_> = ids.iter().map(|id| serde_json::json!({"id": id, "object": "model"})).collect();
        List::read(serde_json::json!({"object": "list", "data": data}).to_string().as_bytes()).unwrap()
    }

    fn model(name: &str, upstream: &str) -> UpstreamModel {
        UpstreamModel {
            name: name.to_owned(),
            upstream: upstream.to_owned(),
            named_in: format!("OPENAI_{} in .env", name.to_uppercase()),
        }
    }

    #[test]
    fn lists_are_read_in_both_shapes_and_nothing_else_is_a_list() {
        let expected = list(&["a", "b"]);
        for body in [r#"{"data":[{"id":"b"},{"id":"a","owned_by":{"deep":[1]}}]}"#, r#" [{"id":"a"},{"id":"b"}]"#] {
            assert_eq!(List::read(body.as_bytes()), Some(expected.clone()), "{body}");
        }
        for body in ["", "<html>", "{}", r#"{"data":{"id":"a"}}"#, r#"{"data":[{"id":7}]}"#, r#""a""#] {
            assert_eq!(List::read(body.as_bytes()), None, "{body}");
        }
        assert!(list(&[]).is_empty());
    }

    #[test]
    fn a_name_is_there_in_the_spellings_that_hosts_accept() {
        let list = list(&["gpt-oss-120b", "models/gemini-2", "llama3:latest", "qwen:32b"]);
        for name in ["gpt-oss-120b", "gemini-2", "models/gemini-2", "llama3", "llama3:latest", "qwen:32b"] {
            assert!(list.has(name), "{name}");
        }
        for name in ["gpt-oss", "GPT-OSS-120B", "qwen", "llama3:8b", "latest", ""] {
            assert!(!list.has(name), "{name}");
        }
    }

    #[test]
    fn the_nearest_are_named_first_and_a_long_list_is_cut() {
        let ids: Vec<String> =
            (0..500).map(|n| format!("vendor/model-{n}")).chain(["gpt-oss-120b".to_owned()]).collect();
        let list = list(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        let (one, two) = (model("assistant", "gpt-oss-20b"), model("thinker", "gpt-oss-20b"));
        let denial = not_listed("https://llm.example/v1", &list, &[&one, &two]).unwrap();
        assert_eq!(
            denial.detail,
            "https://llm.example/v1 lists no model \"gpt-oss-20b\", which stands behind assistant and thinker"
        );
        assert!(denial.fix.starts_with("set OPENAI_ASSISTANT in .env to one that it lists"), "{}", denial.fix);
        assert!(denial.fix.contains(": gpt-oss-120b, ") && denial.fix.ends_with(" more"), "{}", denial.fix);
        assert!(denial.fix.len() < 600, "{}", denial.fix);
    }

    #[test]
    fn what_could_act_is_counted_and_never_repeated() {
        let list = list(&["fine", "\u{1b}[2Jx", "\u{202e}x", "<b>", "a b", &"x".repeat(300), ""]);
        assert_eq!(list.ids(), ["fine"]);
        let denial = not_listed("p\u{1b}", &list, &[&model("assistant", "m\u{202e}")]).unwrap();
        assert!(denial.fix.ends_with(": fine and 6 more"), "{}", denial.fix);
        assert!(denial.detail.starts_with("p\\u{1b} lists no model \"m\\u{202e}\""), "{}", denial.detail);
        let odd = not_listed("p", &super::List { ids: Vec::new(), odd: 3 }, &[&model("assistant", "m")]).unwrap();
        assert!(odd.fix.ends_with(": a name it knows"), "{}", odd.fix);
    }

    proptest! {
        #[test]
        fn no_list_makes_a_sentence_that_acts_or_that_is_long(ids in proptest::collection::vec(".{0,200}", 0..40), name in ".{0,60}") {
            let list = list(&ids.iter().map(String::as_str).collect::<Vec<_>>());
            let denial = not_listed("provider", &list, &[&model("assistant", &name)]).unwrap();
            for text in [&denial.detail, &denial.fix] {
                prop_assert_eq!(service_kit::text::harmless_line(text, usize::MAX), text.clone());
                prop_assert!(text.chars().count() < 1_200);
            }
        }
    }
}
