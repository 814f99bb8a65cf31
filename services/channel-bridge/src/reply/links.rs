//! Makes inert what a messenger would turn into a link: addresses with a scheme, bare domains, mentions. What stays a
//! link is `http` or `https`, to a host that the tier may itself reach, in a spelling that cannot be read in two ways.
//!
//! The rule works on words, that is on whatever stands between white space once the markup is gone, because that is what
//! a messenger sees: an address put together from a bold and a plain half is one address. A word that is in doubt is
//! inert: it is shown as code, in which messengers make no links, an address with a scheme also disfigured
//! (`hxxps://host[.]example/…`; what follows the host could carry something away and is left out).

use policy::pattern::HostPattern;
use policy::target::parse_host;

use super::markup::{Cell, Style};

/// Longest authority of an address that is shown.
const MOST_AUTHORITY: usize = 100;
/// What may stand before and behind a word without being part of it.
const BEFORE: &[char] = &['(', '[', '{', '<', '"', '\'', '*', '_', '\u{201c}', '\u{2018}', '\u{ab}'];
const BEHIND: &[char] = &[
    '.', ',', ';', ':', '!', '?', ')', ']', '}', '>', '"', '\'', '*', '_', '\u{201d}', '\u{2019}', '\u{bb}', '\u{2026}',
];

/// Hosts a tier may reach.
#[derive(Debug, Clone, Default)]
pub struct Reach(Vec<HostPattern>);

impl Reach {
    /// From patterns as in rules; none where one of them is not a pattern.
    #[must_use]
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        patterns.into_iter().map(HostPattern::parse).collect::<Option<Vec<_>>>().map(Self)
    }

    fn has(&self, host: &str) -> bool {
        parse_host(host).is_ok_and(|host| self.0.iter().any(|pattern| pattern.matches(&host)))
    }
}

/// Makes inert what is in a text with markup. Code stays as it is: it is inert.
#[must_use]
pub fn inert(cells: Vec<Cell>, reach: &Reach) -> Vec<Cell> {
    let mut out = Vec::with_capacity(cells.len());
    for word in cells.chunk_by(|a, b| a.character.is_whitespace() == b.character.is_whitespace()) {
        if word.iter().all(|cell| cell.style.is_code() || cell.character.is_whitespace()) {
            out.extend_from_slice(word);
            continue;
        }
        let characters: Vec<char> = word.iter().map(|cell| cell.character).collect();
        let (from, to) = core(&characters);
        let text: String = characters.get(from..to).unwrap_or_default().iter().collect();
        let shown = match verdict(&text, reach) {
            Verdict::Harmless => {
                out.extend_from_slice(word);
                continue;
            }
            Verdict::Address => disfigured(&text),
            Verdict::Name => text,
        };
        out.extend_from_slice(word.get(..from).unwrap_or_default());
        out.extend(shown.chars().map(|character| Cell { character, style: Style::CODE }));
        out.extend_from_slice(word.get(to..).unwrap_or_default());
    }
    out
}

/// The same for text that goes out without any markup: every doubtful word is disfigured, in code or not.
#[must_use]
pub fn inert_plain(text: &str, reach: &Reach) -> String {
    let mut out = String::with_capacity(text.len());
    let characters: Vec<char> = text.chars().collect();
    for word in characters.chunk_by(|a, b| a.is_whitespace() == b.is_whitespace()) {
        let (from, to) = core(word);
        let middle: String = word.get(from..to).unwrap_or_default().iter().collect();
        out.extend(word.get(..from).unwrap_or_default());
        match verdict(&middle, reach) {
            Verdict::Harmless => out.push_str(&middle),
            Verdict::Address | Verdict::Name => out.push_str(&broken_up(&middle)),
        }
        out.extend(word.get(to..).unwrap_or_default());
    }
    out
}

/// What an address costs at most when it is broken up, in UTF-16 units.
#[must_use]
pub fn cost(character: char) -> usize {
    match character {
        '@' => 4,
        character if character == ':' || is_dot(character) => 3,
        character => character.len_utf16(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Harmless,
    /// Has a scheme.
    Address,
    /// A bare domain, an IP address, a mention.
    Name,
}

/// A word without what surrounds it.
fn core(word: &[char]) -> (usize, usize) {
    let from = word.iter().take_while(|character| BEFORE.contains(character)).count();
    let rest = word.get(from..).unwrap_or_default();
    let behind = rest.iter().rev().take_while(|character| BEHIND.contains(character)).count();
    (from, word.len().saturating_sub(behind).max(from))
}

fn verdict(word: &str, reach: &Reach) -> Verdict {
    if word.contains("://") {
        return if reachable_address(word, reach) { Verdict::Harmless } else { Verdict::Address };
    }
    if mentions(word) {
        return Verdict::Name;
    }
    if !names_a_host(word) || is_mail_address(word) || reachable_after_scheme(word, reach) {
        Verdict::Harmless
    } else {
        Verdict::Name
    }
}

fn reachable_address(word: &str, reach: &Reach) -> bool {
    let Some((scheme, rest)) = word.split_once("://") else { return false };
    (scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http")) && reachable_after_scheme(rest, reach)
}

/// `host[:port][/...]`, where everything up to the first of `/?#` is a host in its plain spelling.
fn reachable_after_scheme(rest: &str, reach: &Reach) -> bool {
    let (authority, path) = authority(rest);
    let host = match authority.split_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        Some(_) => return false,
        None => authority,
    };
    // Whatever could end the address for one reader and not for another, so that the next begins in the middle of it.
    let plain = |c: char| c.is_alphanumeric() || "-._~:/?#@!$&*+,;=%".contains(c);
    path.chars().all(plain) && !path.contains("://") && reach.has(host)
}

fn authority(rest: &str) -> (&str, &str) {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    rest.split_at_checked(end).unwrap_or((rest, ""))
}

/// Whether something in a word would be taken for a host: a dot with a label of letters behind it, or four numbers.
fn names_a_host(word: &str) -> bool {
    let characters: Vec<char> = word.chars().collect();
    // Messengers take far more for part of a name than names may have: every symbol beyond ASCII, emoji included, and `~`
    // (Telegram's TDLib, `is_domain_symbol`).
    let label = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | '~') || !(c.is_ascii() || is_dot(*c));
    let dots: Vec<usize> = characters
        .iter()
        .enumerate()
        .filter(|(at, character)| {
            is_dot(**character) && at.checked_sub(1).and_then(|before| characters.get(before)).is_some_and(label)
        })
        .map(|(at, _)| at)
        .collect();
    let behind = |dot: usize| -> &[char] {
        let rest = characters.get(dot.saturating_add(1)..).unwrap_or_default();
        rest.get(..rest.iter().take_while(|c| label(c)).count()).unwrap_or_default()
    };
    let named = dots.iter().any(|dot| {
        let label = behind(*dot);
        label.len() >= 2 && label.first().is_some_and(|first| first.is_alphabetic())
    });
    let numbers = dots.windows(3).any(|dots| {
        dots.iter().all(|dot| {
            let label = behind(*dot);
            !label.is_empty() && label.iter().all(char::is_ascii_digit)
        })
    });
    named || numbers
}

/// Whether an `@` begins a name.
fn mentions(word: &str) -> bool {
    let characters: Vec<char> = word.chars().collect();
    let named = |c: &char| c.is_alphanumeric() || *c == '_';
    characters.windows(2).enumerate().any(|(at, pair)| {
        let after_a_name = at.checked_sub(1).and_then(|before| characters.get(before)).is_some_and(named);
        matches!(pair, ['@', next] if named(next)) && !after_a_name
    })
}

/// Dots, and what browsers read as one (UTS #46).
fn is_dot(character: char) -> bool {
    matches!(character, '.' | '\u{2024}' | '\u{3002}' | '\u{ff0e}' | '\u{ff61}')
}

/// Longest part of a person's name, and of a host's, in a mail address.
const MOST_PERSON_PART: usize = 26;
const MOST_HOST_PART: usize = 30;
/// Parts of either.
const MOST_PARTS: usize = 6;
/// Letters of the last part of a mail address.
const LAST_PART: std::ops::RangeInclusive<usize> = 2..=8;

/// A mail address is no address of a page, as long as it is nothing else: what Telegram does not take for one, it takes
/// for a page of the host behind the `@` (TDLib, `find_email_addresses` and `find_urls`). Within its bounds on both sides.
fn is_mail_address(word: &str) -> bool {
    let plain = |part: &str, most: usize| {
        (1..=most).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && part.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && part.bytes().next_back().is_some_and(|last| last.is_ascii_alphanumeric())
    };
    let Some((person, host)) = word.split_once('@') else { return false };
    let Some((host, last)) = host.rsplit_once('.') else { return false };
    let person: Vec<&str> = person.split(['.', '+']).collect();
    let host: Vec<&str> = host.split('.').collect();
    person.len().max(host.len()) <= MOST_PARTS
        && person.iter().all(|part| plain(part, MOST_PERSON_PART))
        && host.iter().all(|part| plain(part, MOST_HOST_PART))
        && LAST_PART.contains(&last.len())
        && last.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// An address one can read and not follow.
fn disfigured(word: &str) -> String {
    let plain = word.split_once("://").filter(|(scheme, rest)| {
        (scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http")) && !rest.contains("://")
    });
    let Some((scheme, rest)) = plain else { return broken_up(word) };
    let (authority, path) = authority(rest);
    let scheme = if scheme.eq_ignore_ascii_case("https") { "hxxps" } else { "hxxp" };
    let host = broken_up(&clipped(authority));
    let path = if path.is_empty() { "" } else { "/\u{2026}" };
    format!("{scheme}://{host}{path}")
}

fn clipped(text: &str) -> String {
    if text.chars().count() > MOST_AUTHORITY {
        text.chars().take(MOST_AUTHORITY).chain(['\u{2026}']).collect()
    } else {
        text.to_owned()
    }
}

/// With every character gone that makes a link of it.
fn broken_up(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    for character in word.chars() {
        match character {
            ':' => out.push_str("[:]"),
            '@' => out.push_str("(at)"),
            character if is_dot(character) => out.push_str("[.]"),
            character => out.push(character),
        }
    }
    out
}
