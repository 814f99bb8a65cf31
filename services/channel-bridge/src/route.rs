//! What an incoming message is and where it goes. Pure.

use assistant_proto::name::TierName;

use crate::approvals::Answer;

/// Longest message, in bytes.
pub const MOST_TEXT: usize = 65_536;
/// Longest name of a conversation, in bytes.
const MOST_CONVERSATION: usize = 64;
/// Longest idempotency key, in bytes.
const MOST_KEY: usize = 128;
/// What stops the turns of a conversation instead of starting one.
pub const STOP: &str = "/stop";

/// Why a message goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such tier.
    #[error("there is no tier of that name; there {}", listed(known))]
    UnknownTier {
        /// Those there are.
        known: Vec<TierName>,
    },
    /// Nothing but white space.
    #[error("the message is empty")]
    Empty,
    /// Longer than [`MOST_TEXT`].
    #[error("the message has {0} bytes; at most {MOST_TEXT} are taken")]
    TooLong(usize),
    /// Not usable as a name.
    #[error("a conversation is named with 1 to {MOST_CONVERSATION} letters, digits, '.', '_' or '-'")]
    Conversation,
    /// Not usable as a key.
    #[error("an idempotency key is 1 to {MOST_KEY} visible ASCII characters")]
    Key,
}

fn listed(known: &[TierName]) -> String {
    match known {
        [] => "is none; add one to tiers.yaml and apply".to_owned(),
        [one] => format!("is one: {one}"),
        many => format!("are: {}", many.iter().map(TierName::as_str).collect::<Vec<_>>().join(", ")),
    }
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// It starts a turn.
    Turn,
    /// It answers an approval. The agent never sees it.
    Answer(Answer),
    /// YES or NO without a code. An answer only while a question is open, else a message like any other.
    BareAnswer,
    /// It stops what runs in the conversation. The agent never sees it.
    Stop,
}

/// What is said to the bridge itself, on a messenger. The agent never sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// `/start` or `/help`
    Help,
    /// `/tier`
    Tiers,
    /// `/tier <name>`
    Tier(String),
}

impl Order {
    /// Reads an order.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (order, name) = (words.next()?, words.next());
        match order.to_ascii_lowercase().as_str() {
            // A link to the bot may add a word to /start.
            "/start" | "/help" => Some(Self::Help),
            "/tier" | "/tiers" if name.is_none() => Some(Self::Tiers),
            "/tier" if words.next().is_none() => name.map(|name| Self::Tier(name.to_ascii_lowercase())),
            _ => None,
        }
    }
}

/// Classifies a text that was found usable.
#[must_use]
pub fn classify(text: &str) -> Route {
    let text = text.trim();
    if let Some(answer) = Answer::parse(text) {
        return Route::Answer(answer);
    }
    if text.eq_ignore_ascii_case("yes") || text.eq_ignore_ascii_case("no") {
        return Route::BareAnswer;
    }
    if text.eq_ignore_ascii_case(STOP) { Route::Stop } else { Route::Turn }
}

/// Finds a tier by name.
///
/// # Errors
/// [`RouteError::UnknownTier`] lists those there are; the name that was given is not repeated.
pub fn tier<'a>(name: &str, known: impl Iterator<Item = &'a TierName> + Clone) -> Result<TierName, RouteError> {
    match known.clone().find(|tier| tier.as_str() == name) {
        Some(tier) => Ok(tier.clone()),
        None => Err(RouteError::UnknownTier { known: known.cloned().collect() }),
    }
}

/// Checks the text of a message.
///
/// # Errors
/// [`RouteError::Empty`] and [`RouteError::TooLong`].
pub fn usable_text(text: &str) -> Result<(), RouteError> {
    if text.len() > MOST_TEXT {
        Err(RouteError::TooLong(text.len()))
    } else if text.trim().is_empty() {
        Err(RouteError::Empty)
    } else {
        Ok(())
    }
}

/// Checks the name of a conversation; an empty one is the default.
///
/// # Errors
/// [`RouteError::Conversation`].
pub fn conversation(name: &str, default: &str) -> Result<String, RouteError> {
    if name.is_empty() {
        return Ok(default.to_owned());
    }
    let usable = name.len() <= MOST_CONVERSATION
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if usable { Ok(name.to_owned()) } else { Err(RouteError::Conversation) }
}

/// Checks an idempotency key; an empty one is none.
///
/// # Errors
/// [`RouteError::Key`].
pub fn key(key: &str) -> Result<Option<&str>, RouteError> {
    match key {
        "" => Ok(None),
        key if key.len() <= MOST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(key)),
        _ => Err(RouteError::Key),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn messages_and_answers() {
        for turn in
            ["hello", "yes please", "no wait", "No, more", "yes 12345", "yes 2345 x", "stop", "/stop now", "YES"]
        {
            let route = classify(turn);
            assert!(matches!(route, Route::Turn | Route::BareAnswer), "{turn}: {route:?}");
        }
        for answer in ["YES 7K3M", "no 7k3m", "  Yes   o2li  "] {
            assert!(matches!(classify(answer), Route::Answer(_)), "{answer}");
        }
        assert_eq!(classify(" no "), Route::BareAnswer);
        assert_eq!(classify("/STOP\n"), Route::Stop);
    }

    #[test]
    fn orders() {
        assert_eq!(Order::parse("/start abc"), Some(Order::Help));
        assert_eq!(Order::parse(" /HELP\n"), Some(Order::Help));
        assert_eq!(Order::parse("/tier"), Some(Order::Tiers));
        assert_eq!(Order::parse("/tier Updates"), Some(Order::Tier("updates".to_owned())));
        for text in ["", "tier", "/tier a b", "/tierx", "say /tier", "/stop"] {
            assert_eq!(Order::parse(text), None, "{text}");
        }
    }

    #[test]
    fn tiers_are_listed() {
        let known: Vec<TierName> = vec!["tasks".parse().unwrap(), "updates".parse().unwrap()];
        assert_eq!(tier("tasks", known.iter()), Ok("tasks".parse().unwrap()));
        let error = tier("task\u{1b}", known.iter()).unwrap_err();
        assert_eq!(error.to_string(), "there is no tier of that name; there are: tasks, updates");
        assert!(tier("", std::iter::empty()).unwrap_err().to_string().contains("add one to tiers.yaml"));
    }

    #[test]
    fn what_is_not_usable() {
        assert_eq!(usable_text(" \n"), Err(RouteError::Empty));
        assert_eq!(usable_text(&"a".repeat(MOST_TEXT + 1)), Err(RouteError::TooLong(MOST_TEXT + 1)));
        assert_eq!(usable_text(&"a".repeat(MOST_TEXT)), Ok(()));
        assert_eq!(conversation("", "terminal").as_deref(), Ok("terminal"));
        for bad in ["a/b", "a b", "\u{e4}", "a\n", &"a".repeat(65)] {
            assert_eq!(conversation(bad, "terminal"), Err(RouteError::Conversation), "{bad:?}");
        }
        assert_eq!(key(""), Ok(None));
        assert_eq!(key("a-1"), Ok(Some("a-1")));
        assert_eq!(key("a b"), Err(RouteError::Key));
    }
}
