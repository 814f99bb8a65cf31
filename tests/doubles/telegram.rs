//! Double of Telegram's Bot API (<https://core.telegram.org/bots/api>) for one bot: long polling with offset and 409,
//! messages with HTML, their limits and errors. Nobody is on the other side: a person is whoever writes over the control
//! socket ([`Telegram::control`]), and reads there what the bot sent.
//!
//! It does with a message what the real one does: it reads the markup, finds what a client would show as a link, and says
//! what its servers would have fetched for a preview.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::web::{Answer, Asked, answer};

mod markup;
pub mod person;

/// The bot's id.
pub const BOT_ID: i64 = 4_200_000_042;
/// The bot's name.
pub const BOT_NAME: &str = "assistant_drill_bot";
/// Longest message in UTF-16 units, after its markup is read.
const MOST_UNITS: usize = 4096;
/// Longest a question for updates is held.
const MOST_HOLD: u64 = 60;
/// Updates in one answer.
const MOST_BATCH: usize = 100;

/// A message the bot sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentMessage {
    /// Place in the order of what was sent, from 1.
    pub sequence: u64,
    /// Its id in the chat.
    pub message_id: i64,
    /// The chat.
    pub chat_id: i64,
    /// As a person sees it.
    pub text: String,
    /// As it was sent.
    pub source: String,
    /// Whether it was sent as HTML.
    pub html: bool,
    /// What a client would show as a link.
    pub links: Vec<String>,
    /// What Telegram's servers would fetch.
    pub fetched: Vec<String>,
}

/// Something that goes wrong once.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Which method.
    pub method: String,
    /// The status to answer with; 0 closes the connection without an answer.
    pub status: u16,
    /// With 429.
    #[serde(default)]
    pub retry_after: Option<u64>,
    /// Instead of the usual words.
    #[serde(default)]
    pub description: Option<String>,
    /// Whether what was asked for is done all the same.
    #[serde(default)]
    pub done: bool,
    /// So many calls go well before.
    #[serde(default)]
    pub after: u32,
    /// How often; once where it is not said.
    #[serde(default)]
    pub times: Option<u32>,
    /// An answer that is not JSON, as a gateway's.
    #[serde(default)]
    pub garbage: bool,
}

/// A message of a person.
#[derive(Debug, Clone, Deserialize)]
struct Written {
    user_id: i64,
    /// The private chat with that person where it is not said.
    #[serde(default)]
    chat_id: Option<i64>,
    #[serde(default)]
    text: Option<String>,
    /// Fields of the message that replace or add to the usual ones.
    #[serde(default)]
    message: serde_json::Map<String, Value>,
}

/// The Bot API for one bot.
#[derive(Debug)]
pub struct Telegram {
    token: Zeroizing<String>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    next_update: i64,
    next_message: i64,
    updates: VecDeque<(i64, Value)>,
    sent: Vec<SentMessage>,
    typing: u64,
    calls: u64,
    faults: Vec<Fault>,
    /// Which question for updates is the newest; an older one that still waits is turned away.
    poll: u64,
}

/// What the API answers, short of HTTP.
enum Said {
    Result(Value),
    Error { status: u16, description: String, parameters: Value },
    Garbage(u16),
    Nothing,
}

fn error(status: u16, description: impl Into<String>) -> Said {
    Said::Error { status, description: description.into(), parameters: Value::Null }
}

impl Telegram {
    /// A Bot API that knows one token.
    #[must_use]
    pub fn new(token: Zeroizing<String>) -> Self {
        let state = State {
            // Who has seen the ids of another run remembers them.
            next_update: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| i64::try_from(since.as_secs()).ok())
                .unwrap_or(700_000_001),
            next_message: 1,
            updates: VecDeque::new(),
            sent: Vec::new(),
            typing: 0,
            calls: 0,
            faults: Vec::new(),
            poll: 0,
        };
        Self { token, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Answers one request. The path that is recorded has no token in it.
    pub async fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap_or_default();
        let (token, method) =
            path.strip_prefix("/bot").and_then(|rest| rest.split_once('/')).unwrap_or(("", "nothing"));
        let authorized = token == self.token.as_str();
        let said = if authorized {
            let params: Value = serde_json::from_slice(&asked.body).unwrap_or_else(|_| json!({}));
            self.call(method, &params).await
        } else {
            error(401, "Unauthorized")
        };
        let mut answer = http(said, authorized);
        answer.recorded_path = Some(format!("/bot.../{method}"));
        answer
    }

    async fn call(&self, method: &str, params: &Value) -> Said {
        self.lock().calls += 1;
        let fault = self.lock().fault(method);
        if let Some(fault) = fault {
            if fault.done {
                // The caller does not learn what came of it.
                drop(self.obey(method, params).await);
            }
            return match (fault.status, fault.garbage) {
                (0, _) => Said::Nothing,
                (status, true) => Said::Garbage(status),
                (status, false) => Said::Error {
                    status,
                    description: fault.description.unwrap_or_else(|| usual(status).to_owned()),
                    parameters: fault.retry_after.map_or(Value::Null, |wait| json!({"retry_after": wait})),
                },
            };
        }
        self.obey(method, params).await
    }

    async fn obey(&self, method: &str, params: &Value) -> Said {
        match method {
            "getMe" => Said::Result(json!({
                "id": BOT_ID, "is_bot": true, "first_name": "Assistant", "username": BOT_NAME,
                "can_join_groups": true, "can_read_all_group_messages": false, "supports_inline_queries": false
            })),
            "getUpdates" => self.updates(params).await,
            "sendMessage" => self.lock().send(params),
            "editMessageText" => self.lock().edit(params),
            "sendChatAction" => {
                self.lock().typing += 1;
                Said::Result(json!(true))
            }
            _ => error(404, "Not Found"),
        }
    }

    async fn updates(&self, params: &Value) -> Said {
        let offset = params.get("offset").and_then(Value::as_i64);
        let hold = params.get("timeout").and_then(Value::as_u64).unwrap_or(0).min(MOST_HOLD);
        let limit = params.get("limit").and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(MOST_BATCH).clamp(1, MOST_BATCH);
        let mine = {
            let mut state = self.lock();
            if let Some(offset) = offset {
                state.updates.retain(|(id, _)| *id >= offset);
            }
            state.poll += 1;
            state.poll
        };
        // Whoever asked before is told.
        self.changed.notify_waiters();
        let end = tokio::time::Instant::now() + Duration::from_secs(hold);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            {
                let state = self.lock();
                if state.poll != mine {
                    return error(409, usual(409));
                }
                if !state.updates.is_empty() {
                    let batch: Vec<Value> =
                        state.updates.iter().take(limit).map(|(_, update)| update.clone()).collect();
                    return Said::Result(Value::Array(batch));
                }
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                return Said::Result(json!([]));
            }
        }
    }

    /// The person's side, over the control socket. None where there is no such thing.
    ///
    /// - `POST /telegram/message` with [`user_id`, `chat_id`, `text`, `message`]: somebody writes. Answers `update_id`.
    /// - `POST /telegram/update` with the fields of an update but its id.
    /// - `POST /telegram/fault` with a [`Fault`]; `DELETE /telegram/fault` ends them all.
    /// - `GET /telegram/sent/<after>`: `{"messages": [...], "typing": n, "calls": n, "waiting": n, "faults": n}`.
    #[must_use]
    pub fn control(&self, method: &str, path: &str, body: &[u8]) -> Option<Value> {
        match (method, path.strip_prefix("/telegram/")?) {
            ("POST", "message") => {
                let written: Written = serde_json::from_slice(body).ok()?;
                let update = self.lock().written(written);
                self.changed.notify_waiters();
                Some(json!({"update_id": update}))
            }
            ("POST", "update") => {
                let update: Value = serde_json::from_slice(body).ok()?;
                let id = self.lock().add(update)?;
                self.changed.notify_waiters();
                Some(json!({"update_id": id}))
            }
            ("POST", "fault") => {
                let fault: Fault = serde_json::from_slice(body).ok()?;
                self.lock().faults.push(fault);
                Some(json!({}))
            }
            ("DELETE", "fault") => {
                self.lock().faults.clear();
                Some(json!({}))
            }
            ("GET", path) => {
                let after: u64 = path.strip_prefix("sent/")?.parse().ok()?;
                let state = self.lock();
                let messages: Vec<&SentMessage> = state.sent.iter().filter(|sent| sent.sequence > after).collect();
                Some(json!({
                    "messages": messages, "typing": state.typing, "calls": state.calls, "waiting": state.updates.len(),
                    "faults": state.faults.len(),
                }))
            }
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fault(&mut self, method: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|fault| fault.method == method)?;
        let fault = self.faults.get_mut(at)?;
        if let Some(left) = fault.after.checked_sub(1) {
            fault.after = left;
            return None;
        }
        let left = fault.times.unwrap_or(1).saturating_sub(1);
        fault.times = Some(left);
        let fault = fault.clone();
        if left == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }

    fn add(&mut self, mut update: Value) -> Option<i64> {
        let id = self.next_update;
        self.next_update += 1;
        update.as_object_mut()?.insert("update_id".to_owned(), json!(id));
        self.updates.push_back((id, update));
        Some(id)
    }

    fn written(&mut self, written: Written) -> Option<i64> {
        let chat_id = written.chat_id.unwrap_or(written.user_id);
        let chat = if chat_id > 0 {
            json!({"id": chat_id, "type": "private", "first_name": "Somebody"})
        } else {
            json!({"id": chat_id, "type": "supergroup", "title": "A group"})
        };
        let date =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut message = json!({
            "message_id": self.next_message,
            "date": date,
            "from": {"id": written.user_id, "is_bot": false, "first_name": "Somebody", "language_code": "en"},
            "chat": chat,
        });
        self.next_message += 1;
        let object = message.as_object_mut()?;
        if let Some(text) = &written.text {
            object.insert("text".to_owned(), json!(text));
            let entities = markup::entities(text);
            if !entities.is_empty() {
                object.insert("entities".to_owned(), Value::Array(entities));
            }
        }
        object.extend(written.message);
        self.add(json!({"message": message}))
    }

    fn send(&mut self, params: &Value) -> Said {
        let Some(chat_id) = params.get("chat_id").and_then(Value::as_i64) else {
            return error(400, "Bad Request: chat_id is empty");
        };
        let (text, source, html, links) = match self.read(params) {
            Ok(read) => read,
            Err(said) => return said,
        };
        let disabled = params.pointer("/link_preview_options/is_disabled").and_then(Value::as_bool) == Some(true);
        let message_id = self.next_message;
        self.next_message += 1;
        let sequence = u64::try_from(self.sent.len()).unwrap_or(u64::MAX).saturating_add(1);
        let fetched = if disabled { Vec::new() } else { links.clone() };
        self.sent.push(SentMessage { sequence, message_id, chat_id, text, source, html, links, fetched });
        self.told(message_id)
    }

    fn edit(&mut self, params: &Value) -> Said {
        let (text, source, html, links) = match self.read(params) {
            Ok(read) => read,
            Err(said) => return said,
        };
        let wanted = params.get("message_id").and_then(Value::as_i64);
        let Some(sent) = self.sent.iter_mut().find(|sent| Some(sent.message_id) == wanted) else {
            return error(400, "Bad Request: message to edit not found");
        };
        if sent.text == text {
            return error(
                400,
                "Bad Request: message is not modified: specified new message content and reply markup are exactly the \
                 same as a current content and reply markup of the message",
            );
        }
        (sent.text, sent.source, sent.html, sent.links) = (text, source, html, links);
        let id = sent.message_id;
        self.told(id)
    }

    /// Text as seen, as sent, whether it is HTML, and its links.
    fn read(&self, params: &Value) -> Result<(String, String, bool, Vec<String>), Said> {
        let source = params.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
        let html = match params.get("parse_mode").and_then(Value::as_str) {
            None => false,
            Some("HTML") => true,
            Some(_) => return Err(error(400, "Bad Request: unsupported parse_mode")),
        };
        let (text, links) = if html {
            markup::read(&source).map_err(|why| error(400, format!("Bad Request: can't parse entities: {why}")))?
        } else {
            (source.clone(), markup::links(&source))
        };
        if text.trim().is_empty() {
            return Err(error(400, "Bad Request: message text is empty"));
        }
        if text.encode_utf16().count() > MOST_UNITS {
            return Err(error(400, "Bad Request: message is too long"));
        }
        Ok((text, source, html, links))
    }

    fn told(&self, message_id: i64) -> Said {
        let Some(sent) = self.sent.iter().find(|sent| sent.message_id == message_id) else {
            return error(400, "Bad Request: message not found");
        };
        Said::Result(json!({
            "message_id": message_id, "date": 0, "text": sent.text,
            "from": {"id": BOT_ID, "is_bot": true, "first_name": "Assistant", "username": BOT_NAME},
            "chat": {"id": sent.chat_id, "type": if sent.chat_id > 0 { "private" } else { "supergroup" }},
        }))
    }
}

fn usual(status: u16) -> &'static str {
    match status {
        400 => "Bad Request: chat not found",
        401 => "Unauthorized",
        403 => "Forbidden: bot was blocked by the user",
        409 => "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
        429 => "Too Many Requests: retry later",
        _ => "Internal Server Error",
    }
}

fn http(said: Said, authorized: bool) -> Answer {
    let json = "application/json";
    match said {
        Said::Result(result) => answer(200, json, json!({"ok": true, "result": result}).to_string(), authorized),
        Said::Error { status, description, parameters } => {
            let mut body = json!({"ok": false, "error_code": status, "description": description});
            if let (Some(body), false) = (body.as_object_mut(), parameters.is_null()) {
                body.insert("parameters".to_owned(), parameters);
            }
            answer(status, json, body.to_string(), authorized)
        }
        Said::Garbage(status) => answer(status, "text/html", "<html>bad gateway</html>".to_owned(), authorized),
        Said::Nothing => {
            let mut nothing = answer(500, json, String::new(), authorized);
            nothing.hang_up = true;
            nothing
        }
    }
}

#[cfg(test)]
mod tests;
