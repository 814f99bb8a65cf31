//! Messages of a chat: text in four roles, and the tool calls between them. Nothing else: a part that carries a URL
//! would have the upstream fetch it.

use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, misshapen};
use crate::refusal::Refusal;

const PARTS_MOST: usize = 256;
const CALLS_MOST: usize = 256;

/// Replays of a vendor's signed reasoning; only sent by ZeroClaw when it is told to, and opaque here.
const FORGOTTEN: [&str; 1] = ["thinking_blocks"];
/// A prompt-cache mark: a price matter between the tier and one vendor.
const FORGOTTEN_IN_PART: [&str; 1] = ["cache_control"];
/// A vendor's opaque annotation of a call it made earlier.
const FORGOTTEN_IN_CALL: [&str; 1] = ["extra_content"];

/// One message as it goes upstream.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub(super) enum Message {
    System {
        content: Content,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    User {
        content: Content,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    Assistant {
        #[serde(skip_serializing_if = "Option::is_none")]
        content: Option<Content>,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning_content: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tool_calls: Option<Vec<ToolCall>>,
    },
    Tool {
        content: Content,
        tool_call_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Part {
    Text { text: String },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum ToolCall {
    Function { id: String, function: Called },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Called {
    name: String,
    /// JSON in a string, as the model wrote it; opaque.
    arguments: String,
}

/// Reads one message; `at` says where it stands.
pub(super) fn read(value: Value, at: &str) -> Result<Message, Refusal> {
    let mut fields = Fields::of(value, at)?;
    fields.forget(&FORGOTTEN);
    let role = fields.text("role")?;
    let role = fields.required("role", role)?;
    let name = fields.identifier("name")?;
    let content = content(&mut fields)?;
    let message = match role.as_str() {
        "system" => Message::System { content: fields.required("content", content)?, name },
        "user" => Message::User { content: fields.required("content", content)?, name },
        "assistant" => Message::Assistant {
            content,
            name,
            reasoning_content: fields.text("reasoning_content")?,
            reasoning: fields.text("reasoning")?,
            tool_calls: tool_calls(&mut fields)?,
        },
        "tool" => {
            let id = fields.identifier("tool_call_id")?;
            Message::Tool {
                content: fields.required("content", content)?,
                tool_call_id: fields.required("tool_call_id", id)?,
                name,
            }
        }
        _ => return Err(misshapen(&fields.path("role"), "system, user, assistant or tool")),
    };
    fields.finish()?;
    Ok(message)
}

fn content(fields: &mut Fields) -> Result<Option<Content>, Refusal> {
    let path = fields.path("content");
    match fields.take("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(Content::Text(text))),
        Some(Value::Array(parts)) if parts.len() <= PARTS_MOST => {
            let read = |(index, value)| part(value, format!("{path}[{index}]"));
            parts.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Content::Parts).map(Some)
        }
        Some(_) => Err(misshapen(&path, &format!("text, or a list of at most {PARTS_MOST} text parts"))),
    }
}

fn part(value: Value, at: String) -> Result<Part, Refusal> {
    let mut fields = Fields::of(value, at)?;
    fields.forget(&FORGOTTEN_IN_PART);
    let path = fields.path("type");
    let kind = fields.text("type")?;
    let kind = fields.required("type", kind)?;
    match kind.as_str() {
        "text" => {
            let text = fields.text("text")?;
            let text = fields.required("text", text)?;
            fields.finish()?;
            Ok(Part::Text { text })
        }
        "image_url" | "input_image" | "image" | "video_url" | "audio_url" | "file" | "input_file" | "document" => {
            Err(Refusal::forbidden(
                "url-not-allowed",
                format!("{path} names a kind of part by which the model's host could be made to fetch a URL"),
                "nothing allows this for now: send text only",
            ))
        }
        _ => Err(misshapen(&path, "text")),
    }
}

fn tool_calls(fields: &mut Fields) -> Result<Option<Vec<ToolCall>>, Refusal> {
    let path = fields.path("tool_calls");
    let Some(calls) = fields.list("tool_calls", CALLS_MOST)? else { return Ok(None) };
    if calls.is_empty() {
        return Ok(None);
    }
    let read = |(index, value)| tool_call(value, format!("{path}[{index}]"));
    calls.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
}

fn tool_call(value: Value, at: String) -> Result<ToolCall, Refusal> {
    let mut fields = Fields::of(value, at)?;
    fields.forget(&FORGOTTEN_IN_CALL);
    let kind_path = fields.path("type");
    if fields.text("type")?.is_some_and(|kind| kind != "function") {
        return Err(misshapen(&kind_path, "function"));
    }
    let id = fields.identifier("id")?;
    let id = fields.required("id", id)?;
    let function_path = fields.path("function");
    let function = fields.take("function");
    let mut function = Fields::of(fields.required("function", function)?, function_path)?;
    let name = function.identifier("name")?;
    let name = function.required("name", name)?;
    let arguments = function.text("arguments")?.unwrap_or_else(|| "{}".to_owned());
    function.finish()?;
    fields.finish()?;
    Ok(ToolCall::Function { id, function: Called { name, arguments } })
}
