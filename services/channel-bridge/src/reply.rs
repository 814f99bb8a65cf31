//! What is sent of a reply: its markup read, its links made inert, cut into the parts a messenger takes. Pure.
//!
//! A messenger turns whatever looks like an address into a link, and some fetch it unasked: that would lead past every
//! proxy. So a reply goes out with links to hosts only that its tier may itself reach; see [`links`]. Every part names
//! the tier that speaks. Not here: sending (`delivery`).

use assistant_proto::name::TierName;
use serde::{Deserialize, Serialize};

use self::links::Reach;
use self::markup::{Cell, Style};

pub mod links;
pub mod markup;
mod parts;

/// Parts of one reply; at 4096 characters each this is far more than anybody reads in a chat.
const MOST_PARTS: usize = 20;
/// Room for the name of the tier and the number of the part.
const HEADER: usize = 40;

/// One message of a messenger, in the two forms it can be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// As HTML of the few tags that messengers know: `b`, `i`, `code`, `pre`.
    pub html: String,
    /// As plain text, for a messenger that refused the HTML. Nothing in it looks like an address that is not reachable.
    pub plain: String,
}

/// Cuts a reply into parts of at most `most` UTF-16 units, as Telegram and others count. Never empty.
#[must_use]
pub fn plan(tier: &TierName, text: &str, reach: &Reach, most: usize) -> Vec<Part> {
    let cells = links::inert(markup::parse(text), reach);
    let mut pieces = parts::split(&cells, most.saturating_sub(HEADER).max(1));
    let left_out: usize = pieces.iter().skip(MOST_PARTS).map(Vec::len).sum();
    pieces.truncate(MOST_PARTS);
    if left_out > 0 {
        let note = format!("({left_out} more characters are not shown; ask for the rest.)");
        pieces.push(note.chars().map(|character| Cell { character, style: Style::PLAIN }).collect());
    }
    if pieces.is_empty() {
        pieces.push("(no text)".chars().map(|character| Cell { character, style: Style::PLAIN }).collect());
    }
    let count = pieces.len();
    pieces
        .into_iter()
        .enumerate()
        .map(|(index, piece)| {
            let name =
                if count == 1 { format!("[{tier}]") } else { format!("[{tier} {}/{count}]", index.saturating_add(1)) };
            part(&name, &piece, reach)
        })
        .collect()
}

/// The question whether an agent may do something, with what is to be typed. The action is shown to its last character
/// and exactly; the code stands in the last part only, so that nobody can answer what they were not shown in full.
#[must_use]
pub fn question(tier: &TierName, action: &str, code: &str, minutes: u64, reach: &Reach, most: usize) -> Vec<Part> {
    let head = "The agent asks for permission:\n";
    let foot = format!("\nAnswer within {minutes} minutes with  YES {code}  or  NO {code}.");
    let style =
        |text: &str, style: Style| -> Vec<Cell> { text.chars().map(|character| Cell { character, style }).collect() };
    let mut pieces = parts::split_exactly(&style(action, Style::BLOCK), most.saturating_sub(HEADER).max(1));
    if let Some(first) = pieces.first_mut() {
        first.splice(0..0, style(head, Style::PLAIN));
    }
    // The first and the last part may have grown beyond the limit.
    let mut grown = Vec::new();
    for piece in pieces {
        grown.extend(parts::split_exactly(&piece, most.saturating_sub(HEADER).max(1)));
    }
    let foot = style(&foot, Style::PLAIN);
    match grown.last_mut() {
        Some(last) if parts::cost(last).saturating_add(parts::cost(&foot)) <= most.saturating_sub(HEADER) => {
            last.extend(foot);
        }
        _ => grown.push(foot),
    }
    grown.iter().map(|piece| part(&format!("[{tier}]"), piece, reach)).collect()
}

/// A short text of the bridge itself. It may quote nothing of an agent.
#[must_use]
pub fn note(text: &str) -> Part {
    Part { html: escape(text), plain: text.to_owned() }
}

fn part(name: &str, piece: &[Cell], reach: &Reach) -> Part {
    let begins_with_block = piece.first().is_some_and(|cell| cell.style.has(Style::BLOCK));
    let gap = if begins_with_block { '\n' } else { ' ' };
    let mut html = String::with_capacity(piece.len().saturating_add(HEADER));
    html.push_str(&escape(name));
    html.push(gap);
    for run in piece.chunk_by(|a, b| a.style == b.style) {
        let text: String = run.iter().map(|cell| cell.character).collect();
        let style = run.first().map_or(Style::PLAIN, |cell| cell.style);
        let (open, close) = style.tags();
        html.push_str(open);
        html.push_str(&escape(&text));
        html.push_str(close);
    }
    let plain: String = piece.iter().map(|cell| cell.character).collect();
    Part { html, plain: format!("{name}{gap}{}", links::inert_plain(&plain, reach)) }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests;
