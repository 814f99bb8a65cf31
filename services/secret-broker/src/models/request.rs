//! A chat completion request, taken apart and made anew.
//!
//! What goes upstream is serialised from the closed types here and holds nothing that was not understood: no field by
//! which a caller could name a fallback, another base URL, a callback, a hosted tool or anything to fetch. Unknown fields
//! are refused, not dropped, except for a written list of harmless ones that ZeroClaw 0.8.7 may add.
//!
//! Source of the fields: OpenAI's API reference for chat completions; what ZeroClaw sends was read in its
//! `zeroclaw-providers` crate (`compatible.rs`: `NativeChatRequest`, `ApiChatRequest`, `NativeMessage`).

use assistant_proto::name::PrincipalName;
use http::StatusCode;
use policy::{ModelPermit, Offer};
use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, misshapen};
use super::message::{self, Message};
use super::tool::{self, ResponseFormat, Tool, ToolChoice};
use crate::ingress::exact;
use crate::refusal::Refusal;

const MESSAGES_MOST: usize = 4_096;
const TOOLS_MOST: usize = 512;
const STOPS_MOST: usize = 16;
/// Above what any model can answer with.
const TOKENS_MOST: u32 = 1_000_000;

/// Fields that change nothing that may be changed here, dropped by name. `tool_stream`: ZeroClaw's switch for one
/// vendor's endpoint. `user`: names the caller's end user to the vendor; nobody needs to know.
const FORGOTTEN: [&str; 2] = ["tool_stream", "user"];

/// A request as it goes upstream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatRequest {
    model: String,
    messages: Vec<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<Stop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<Effort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<Vec<Tool>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Any(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
}

/// A request that was understood in full.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebuilt {
    /// What permits it.
    pub permit: ModelPermit,
    /// Whether the answer is to be a stream of events.
    pub stream: bool,
    /// What goes upstream.
    pub request: ChatRequest,
}

impl ChatRequest {
    /// The bytes that go upstream.
    ///
    /// # Errors
    /// Never for a value that was parsed; kept as an error so that nothing half serialised leaves.
    pub fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// Reads a body, decides on it, and makes the request that goes upstream in its stead.
///
/// # Errors
/// 400 with the first thing that was not understood, 403 for what is understood and never allowed, 404 for a model that
/// is not offered.
pub fn rebuild(body: &[u8], offer: Offer<'_>, principal: &PrincipalName) -> Result<Rebuilt, Refusal> {
    let value = exact::parse(body).map_err(|error| {
        Refusal::bad_request(
            "not-json",
            format!("the body cannot be read in exactly one way: {error}"),
            "send plain JSON",
        )
    })?;
    let mut fields = Fields::of(value, "")?;
    fields.forget(&FORGOTTEN);

    let asked = fields.text("model")?;
    let asked = fields.required("model", asked)?;
    let not_offered = |denial| Refusal::new(StatusCode::NOT_FOUND, denial);
    let permit = offer.decide(principal, &asked).map_err(not_offered)?;

    let messages = fields.list("messages", MESSAGES_MOST)?;
    let messages = fields.required("messages", messages.filter(|all| !all.is_empty()))?;
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, value)| message::read(value, &format!("messages[{index}]")))
        .collect::<Result<_, _>>()?;

    let tools = fields.list("tools", TOOLS_MOST)?;
    let tools = tools
        .filter(|all| !all.is_empty())
        .map(|all| {
            let read = |(index, value)| tool::read(value, &format!("tools[{index}]"));
            all.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()
        })
        .transpose()?;
    let tool_choice = fields
        .take("tool_choice")
        .map(|value| tool::choice(value, tools.as_deref().unwrap_or_default()))
        .transpose()?;

    let stream = fields.flag("stream")?;
    let request = ChatRequest {
        model: permit.model().to_owned(),
        messages,
        temperature: fields.number("temperature", 0.0, 2.0)?,
        top_p: fields.number("top_p", 0.0, 1.0)?,
        max_tokens: fields.count("max_tokens", TOKENS_MOST)?,
        max_completion_tokens: fields.count("max_completion_tokens", TOKENS_MOST)?,
        stream,
        stream_options: stream_options(&mut fields)?,
        stop: stop(&mut fields)?,
        seed: seed(&mut fields)?,
        n: fields.count("n", 1)?,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?,
        reasoning_effort: effort(&mut fields)?,
        response_format: fields.take("response_format").map(tool::response_format).transpose()?,
        tools,
        tool_choice,
        parallel_tool_calls: fields.flag("parallel_tool_calls")?,
    };
    fields.finish()?;
    Ok(Rebuilt { permit, stream: stream == Some(true), request })
}

fn stream_options(fields: &mut Fields) -> Result<Option<StreamOptions>, Refusal> {
    let Some(value) = fields.take("stream_options") else { return Ok(None) };
    let mut options = Fields::of(value, "stream_options")?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    options.finish()?;
    Ok(Some(StreamOptions { include_usage }))
}

fn stop(fields: &mut Fields) -> Result<Option<Stop>, Refusal> {
    let malformed = || misshapen("stop", &format!("a string, or a list of at most {STOPS_MOST} strings"));
    match fields.take("stop") {
        None => Ok(None),
        Some(Value::String(one)) => Ok(Some(Stop::One(one))),
        Some(Value::Array(items)) if items.len() <= STOPS_MOST => {
            let text = |item| match item {
                Value::String(text) => Ok(text),
                _ => Err(malformed()),
            };
            items.into_iter().map(text).collect::<Result<_, _>>().map(Stop::Any).map(Some)
        }
        Some(_) => Err(malformed()),
    }
}

fn seed(fields: &mut Fields) -> Result<Option<i64>, Refusal> {
    fields
        .take("seed")
        .map(|value| value.as_i64().ok_or_else(|| misshapen("seed", "a whole number of 64 bits")))
        .transpose()
}

fn effort(fields: &mut Fields) -> Result<Option<Effort>, Refusal> {
    let Some(text) = fields.text("reasoning_effort")? else { return Ok(None) };
    match text.as_str() {
        "none" => Ok(Some(Effort::None)),
        "minimal" => Ok(Some(Effort::Minimal)),
        "low" => Ok(Some(Effort::Low)),
        "medium" => Ok(Some(Effort::Medium)),
        "high" => Ok(Some(Effort::High)),
        "xhigh" => Ok(Some(Effort::Xhigh)),
        _ => Err(misshapen("reasoning_effort", "none, minimal, low, medium, high or xhigh")),
    }
}

#[cfg(test)]
mod tests;
