//! What an update of Telegram is to the bridge (<https://core.telegram.org/bots/api#update>). Pure.
//!
//! People are told apart by numeric id only: names, and the names of those whose messages were forwarded, can be chosen
//! freely. In groups a message counts only if it is addressed to the bot: a mention of it, an answer to it, a command.

use serde::Deserialize;
use serde_json::Value;

use super::api::Me;
use crate::intake::{Arrived, Content, Incoming};

/// What every update has.
#[derive(Debug, Deserialize)]
pub struct Update {
    /// Its id, and what acknowledges it.
    pub update_id: i64,
    message: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Message {
    message_id: i64,
    date: Option<u64>,
    from: Option<User>,
    sender_chat: Option<Chat>,
    chat: Chat,
    forward_origin: Option<Value>,
    via_bot: Option<Value>,
    reply_to_message: Option<Box<Answered>>,
    text: Option<String>,
    caption: Option<String>,
    #[serde(default)]
    entities: Vec<Entity>,
    #[serde(default)]
    caption_entities: Vec<Entity>,
    /// Everything else; its names say what kind of message it is.
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct User {
    id: i64,
    #[serde(default)]
    is_bot: bool,
}

#[derive(Debug, Deserialize)]
struct Chat {
    id: i64,
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Answered {
    from: Option<User>,
}

#[derive(Debug, Deserialize)]
struct Entity {
    #[serde(rename = "type")]
    kind: String,
    /// In UTF-16 units.
    offset: usize,
    /// In UTF-16 units.
    length: usize,
}

/// What carries something that is not text.
const MEDIA: &[&str] = &[
    "animation",
    "audio",
    "contact",
    "dice",
    "document",
    "game",
    "live_photo",
    "location",
    "paid_media",
    "photo",
    "poll",
    "sticker",
    "story",
    "venue",
    "video",
    "video_note",
    "voice",
    "checklist",
];

/// Reads one update.
#[must_use]
pub fn read(update: Update, me: &Me) -> Arrived {
    let Update { update_id, message } = update;
    // Edits, posts of channels, reactions: not asked for, and nothing to answer.
    let Some(message) = message else { return Arrived::Nothing };
    let Ok(message) = serde_json::from_value::<Message>(message) else {
        tracing::warn!(update_id, "an update of Telegram cannot be read and is passed over");
        return Arrived::Nothing;
    };
    message.read(update_id, me)
}

impl Message {
    fn read(self, update_id: i64, me: &Me) -> Arrived {
        let private = match self.chat.kind.as_str() {
            "private" => true,
            "group" | "supergroup" => false,
            _ => return self.ignored("not-a-chat"),
        };
        if self.from.as_ref().is_some_and(|from| from.id == me.id) {
            return Arrived::Nothing;
        }
        let content = match (&self.text, &self.caption) {
            (Some(_), _) => true,
            (None, _) if MEDIA.iter().any(|kind| self.rest.contains_key(*kind)) => false,
            // Somebody joined, something was pinned, and so on.
            _ => return Arrived::Nothing,
        };
        let (text, entities) = match &self.text {
            Some(text) => (text.as_str(), &self.entities),
            None => (self.caption.as_deref().unwrap_or_default(), &self.caption_entities),
        };
        let addressed = addressed(text, entities, me);
        let answers_us = self
            .reply_to_message
            .as_ref()
            .and_then(|message| message.from.as_ref())
            .is_some_and(|from| from.id == me.id);
        let Some(text) = addressed.or_else(|| (private || answers_us).then(|| text.to_owned())) else {
            return Arrived::Nothing;
        };
        // An anonymous administrator, a channel, a group that speaks: nobody in particular.
        if self.sender_chat.is_some() {
            return self.ignored("anonymous");
        }
        let Some(from) = &self.from else { return self.ignored("anonymous") };
        if from.is_bot {
            return self.ignored("bot");
        }
        if private && self.chat.id != from.id {
            return self.ignored("not-a-chat");
        }
        tracing::debug!(update_id, message_id = self.message_id, "a message of Telegram");
        Arrived::Message(Incoming {
            key: update_id.to_string(),
            address: self.chat.id.to_string(),
            sender: from.id.to_string(),
            // Written by somebody else: information, and never an order or an answer.
            quoted: self.forward_origin.is_some() || self.via_bot.is_some(),
            sent_at: self.date,
            content: if content { Content::Text(text) } else { Content::Media },
        })
    }

    fn ignored(&self, reason: &'static str) -> Arrived {
        let sender = self.sender_chat.as_ref().map(|chat| chat.id).or(self.from.as_ref().map(|from| from.id));
        Arrived::Ignored { sender: sender.unwrap_or(self.chat.id).to_string(), reason }
    }
}

/// The text without what addresses the bot, if something does.
fn addressed(text: &str, entities: &[Entity], me: &Me) -> Option<String> {
    let units: Vec<u16> = text.encode_utf16().collect();
    let name = format!("@{}", me.username);
    for entity in entities {
        let end = entity.offset.saturating_add(entity.length);
        let Some(marked) = units.get(entity.offset..end) else { continue };
        let marked = String::from_utf16_lossy(marked);
        let without = |from: usize| -> Option<String> {
            let before = String::from_utf16_lossy(units.get(..from)?);
            let behind = String::from_utf16_lossy(units.get(end..)?);
            Some(format!("{before}{behind}").trim().to_owned())
        };
        match entity.kind.as_str() {
            "mention" if marked.eq_ignore_ascii_case(&name) => return without(entity.offset),
            // `/tier` or `/tier@bot`, but not `/tier@another_bot`.
            "bot_command" if entity.offset == 0 => {
                let (command, at) = marked.split_once('@').map_or((marked.as_str(), None), |(c, at)| (c, Some(at)));
                if at.is_none_or(|at| at.eq_ignore_ascii_case(&me.username)) {
                    return without(command.encode_utf16().count());
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn me() -> Me {
        Me { id: 42, username: "Helper_bot".to_owned() }
    }

    fn private(extra: Value) -> Value {
        merged(
            json!({"message_id": 1, "date": 1000, "from": {"id": 7, "is_bot": false, "first_name": "A"},
                   "chat": {"id": 7, "type": "private"}}),
            extra,
        )
    }

    fn group(extra: Value) -> Value {
        merged(private(json!({})), merged(json!({"chat": {"id": -100, "type": "supergroup"}}), extra))
    }

    fn merged(mut base: Value, extra: Value) -> Value {
        let object = base.as_object_mut().unwrap();
        for (name, value) in extra.as_object().unwrap() {
            object.insert(name.clone(), value.clone());
        }
        base
    }

    fn arrived(message: Value) -> Arrived {
        read(serde_json::from_value(json!({"update_id": 5, "message": message})).unwrap(), &me())
    }

    fn text(message: Value) -> Option<(String, bool)> {
        match arrived(message) {
            Arrived::Message(Incoming { content: Content::Text(text), quoted, .. }) => Some((text, quoted)),
            _ => None,
        }
    }

    fn reason(message: Value) -> Option<(String, &'static str)> {
        match arrived(message) {
            Arrived::Ignored { sender, reason } => Some((sender, reason)),
            _ => None,
        }
    }

    #[test]
    fn private_messages() {
        let Arrived::Message(message) = arrived(private(json!({"text": "hello", "something_new": {"a": 1}}))) else {
            panic!("not a message")
        };
        assert_eq!((message.key.as_str(), message.address.as_str(), message.sender.as_str()), ("5", "7", "7"));
        assert_eq!((message.sent_at, message.quoted), (Some(1000), false));
        let forwarded = json!({"text": "x", "forward_origin": {"type": "hidden_user", "sender_user_name": "A"}});
        assert_eq!(text(private(forwarded)), Some(("x".to_owned(), true)));
        assert_eq!(text(private(json!({"text": "x", "via_bot": {"id": 9}}))), Some(("x".to_owned(), true)));
        assert!(matches!(
            arrived(private(json!({"photo": [{}], "caption": "look"}))),
            Arrived::Message(Incoming { content: Content::Media, .. })
        ));
        assert!(matches!(arrived(private(json!({"pinned_message": {}}))), Arrived::Nothing));
    }

    #[test]
    fn nobody_in_particular() {
        let channel = json!({"text": "x", "from": null, "sender_chat": {"id": -5, "type": "channel"}});
        assert_eq!(reason(private(channel)), Some(("-5".to_owned(), "anonymous")));
        let admin = json!({"text": "@Helper_bot x", "entities": [{"type": "mention", "offset": 0, "length": 11}],
            "from": {"id": 1_087_968_824, "is_bot": true}, "sender_chat": {"id": -100, "type": "supergroup"}});
        assert_eq!(reason(group(admin)), Some(("-100".to_owned(), "anonymous")));
        assert_eq!(
            reason(private(json!({"text": "x", "from": {"id": 7, "is_bot": true}}))),
            Some(("7".to_owned(), "bot"))
        );
        assert_eq!(reason(private(json!({"text": "x", "from": {"id": 8}}))), Some(("8".to_owned(), "not-a-chat")));
        let post = json!({"text": "x", "chat": {"id": -9, "type": "channel"}});
        assert_eq!(reason(private(post)), Some(("7".to_owned(), "not-a-chat")));
        // Its own words come back to it.
        assert!(matches!(arrived(private(json!({"text": "x", "from": {"id": 42, "is_bot": true}}))), Arrived::Nothing));
    }

    #[test]
    fn groups_have_to_address_the_bot() {
        let mention = |at: usize, length: usize| json!([{"type": "mention", "offset": at, "length": length}]);
        assert_eq!(text(group(json!({"text": "hello"}))), None);
        assert_eq!(
            text(group(json!({"text": "hey @helper_BOT do it", "entities": mention(4, 11)}))),
            Some(("hey  do it".to_owned(), false))
        );
        // Offsets count UTF-16 units.
        let wide = json!({"text": "\u{1f600} @Helper_bot go", "entities": mention(3, 11)});
        assert_eq!(text(group(wide)), Some(("\u{1f600}  go".to_owned(), false)));
        assert_eq!(text(group(json!({"text": "@other_bot go", "entities": mention(0, 10)}))), None);
        assert_eq!(text(group(json!({"text": "@Helper_bot", "entities": mention(0, 999)}))), None);
        let answer = json!({"text": "YES 7K3M", "reply_to_message": {"from": {"id": 42}}});
        assert_eq!(text(group(answer)), Some(("YES 7K3M".to_owned(), false)));
        assert_eq!(text(group(json!({"text": "x", "reply_to_message": {"from": {"id": 43}}}))), None);
        let command = |text: &str, length: usize| json!({"text": text, "entities": [{"type": "bot_command", "offset": 0, "length": length}]});
        assert_eq!(text(group(command("/tier updates", 5))), Some(("/tier updates".to_owned(), false)));
        assert_eq!(text(group(command("/tier@helper_bot updates", 16))), Some(("/tier updates".to_owned(), false)));
        assert_eq!(text(group(command("/tier@other_bot updates", 15))), None);
        // A stranger who does not address the bot is a member of the group like any other, and no event.
        assert!(matches!(arrived(group(json!({"text": "x", "from": {"id": 99}}))), Arrived::Nothing));
    }

    proptest! {
        #[test]
        fn places_that_are_none_are_survived(
            text in ".{0,20}",
            kind in "mention|bot_command|other",
            offset in 0_usize..30,
            length in 0_usize..30,
            far in any::<bool>(),
        ) {
            let offset = if far { usize::MAX - offset } else { offset };
            let entity = json!({"type": kind, "offset": offset, "length": length});
            let read = arrived(group(json!({"text": text, "entities": [entity]})));
            prop_assert!(matches!(read, Arrived::Nothing | Arrived::Message(_)));
        }
    }

    #[test]
    fn other_updates_are_nothing() {
        for update in [
            json!({"update_id": 1, "edited_message": private(json!({"text": "x"}))}),
            json!({"update_id": 1, "channel_post": private(json!({"text": "x"}))}),
            json!({"update_id": 1, "message": {"message_id": "not a number"}}),
            json!({"update_id": 1, "message": 7}),
        ] {
            assert!(matches!(read(serde_json::from_value(update).unwrap(), &me()), Arrived::Nothing));
        }
    }
}
