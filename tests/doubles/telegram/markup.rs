//! What Telegram reads in a text: the tags of its HTML (<https://core.telegram.org/bots/api#html-style>), what its clients
//! show as a link, commands and mentions. Pure. Where the real rules are not published it sees rather a link too many.

use serde_json::{Value, json};

/// Tags without attributes.
const TAGS: &[&str] =
    &["b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "tg-spoiler", "code", "pre", "blockquote"];

/// Reads HTML: what is seen, and its links. An error is what the real one says.
pub(super) fn read(source: &str) -> Result<(String, Vec<String>), String> {
    let mut seen = String::new();
    // What is in code is not searched for links.
    let mut searched = String::new();
    let mut links = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let mut rest = source;
    while let Some(character) = rest.chars().next() {
        match character {
            '<' => {
                let Some((tag, behind)) = rest.split_once('>') else { return Err("Unclosed start tag".to_owned()) };
                let tag = tag.trim_start_matches('<');
                rest = behind;
                if let Some(name) = tag.strip_prefix('/') {
                    match open.pop() {
                        Some(last) if last == name => {}
                        _ => return Err(format!("Unexpected end tag {name}")),
                    }
                    continue;
                }
                let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
                if name == "a" {
                    let address = attributes.strip_prefix("href=\"").and_then(|rest| rest.strip_suffix('"'));
                    links.push(address.ok_or("Bad attribute")?.to_owned());
                } else if !TAGS.contains(&name) {
                    return Err(format!("Unsupported start tag \"{name}\""));
                }
                open.push(name.to_owned());
            }
            '&' => {
                let known = [("&lt;", '<'), ("&gt;", '>'), ("&amp;", '&'), ("&quot;", '"')];
                let found = known.iter().find_map(|(entity, meant)| Some((rest.strip_prefix(entity)?, *meant)));
                let (behind, meant) = found.unwrap_or_else(|| (rest.strip_prefix('&').unwrap_or_default(), '&'));
                add(meant, &open, &mut seen, &mut searched);
                rest = behind;
            }
            other => {
                add(other, &open, &mut seen, &mut searched);
                rest = rest.strip_prefix(other).unwrap_or_default();
            }
        }
    }
    match open.pop() {
        Some(tag) => Err(format!("Can't find end tag corresponding to start tag {tag}")),
        None => {
            links.extend(self::links(&searched));
            Ok((seen, links))
        }
    }
}

fn add(character: char, open: &[String], seen: &mut String, searched: &mut String) {
    seen.push(character);
    let code = open.iter().any(|tag| tag == "code" || tag == "pre");
    // Code separates words for who looks for links.
    searched.push(if code { '\n' } else { character });
}

/// What a client would show as a link in a text without markup: anything with a scheme, anything with a domain in it, a
/// mention of somebody.
pub(super) fn links(text: &str) -> Vec<String> {
    text.split(|character: char| character.is_whitespace() || "<>\"'()[]{}|`".contains(character))
        .map(|word| word.trim_end_matches(['.', ',', ';', ':', '!', '?', '\u{2026}']))
        .filter(|word| is_link(word))
        .map(str::to_owned)
        .collect()
}

fn is_link(word: &str) -> bool {
    let mention = word.strip_prefix('@').is_some_and(|name| name.len() >= 3);
    mention || word.contains("://") || (!word.contains('@') && domain(word))
}

/// A label, a dot, and two letters or more; or four numbers.
fn domain(word: &str) -> bool {
    let authority = word.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.split(':').next().unwrap_or_default();
    let labels: Vec<&str> = host.split('.').collect();
    let plain = |label: &&str| !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_');
    let last = labels.last().copied().unwrap_or_default();
    let named = last.chars().count() >= 2 && last.chars().all(char::is_alphabetic);
    let numbers = labels.len() == 4 && labels.iter().all(|label| label.parse::<u8>().is_ok());
    labels.len() >= 2 && labels.iter().all(plain) && (named || numbers)
}

/// Commands and mentions of a message that a person writes.
pub(super) fn entities(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut offset = 0_usize;
    for word in text.split_inclusive(char::is_whitespace) {
        let name = word.trim_end();
        let length = name.encode_utf16().count();
        if offset == 0 && name.len() > 1 && name.starts_with('/') {
            found.push(json!({"type": "bot_command", "offset": offset, "length": length}));
        } else if name.len() > 3 && name.starts_with('@') {
            found.push(json!({"type": "mention", "offset": offset, "length": length}));
        }
        offset = offset.saturating_add(word.encode_utf16().count());
    }
    found
}
