//! Tools offered to the model, which of them it has to use, and the shape its answer has to have: all of it JSON Schema,
//! which may refer only to itself.

use serde::Serialize;
use serde_json::{Map, Value};

use super::fields::{Fields, misshapen};
use crate::refusal::Refusal;

/// A prompt-cache mark: a price matter between the tier and one vendor.
const FORGOTTEN: [&str; 1] = ["cache_control"];

/// A tool the caller itself will run. Hosted tools (search, code, remote MCP) run at the model's host, beyond every wall
/// here, and have no type.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Tool {
    Function { function: Function },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Function {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum ToolChoice {
    Mode(&'static str),
    Named(Named),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Named {
    Function { function: Name },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Name {
    name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: AnswerSchema },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AnswerSchema {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// Reads one tool; `at` says where it stands.
pub(super) fn read(value: Value, at: &str) -> Result<Tool, Refusal> {
    let mut fields = Fields::of(value, at)?;
    fields.forget(&FORGOTTEN);
    let kind_path = fields.path("type");
    let kind = fields.text("type")?;
    if fields.required("type", kind)? != "function" {
        return Err(Refusal::forbidden(
            "hosted-tool",
            format!("{kind_path} names a tool that the model's host would run itself"),
            "nothing allows this: only tools of type function are passed, and the agent runs them",
        ));
    }
    let function_path = fields.path("function");
    let function = fields.take("function");
    let mut function = Fields::of(fields.required("function", function)?, function_path)?;
    let name = function.identifier("name")?;
    let name = function.required("name", name)?;
    let description = function.text("description")?;
    let parameters = schema_field(&mut function, "parameters")?;
    let strict = function.flag("strict")?;
    function.finish()?;
    fields.finish()?;
    Ok(Tool::Function { function: Function { name, description, parameters, strict } })
}

/// Reads `tool_choice`; a named tool has to be among those offered.
pub(super) fn choice(value: Value, tools: &[Tool]) -> Result<ToolChoice, Refusal> {
    let malformed = || misshapen("tool_choice", "none, auto, required or the name of a function among the tools");
    if let Value::String(mode) = &value {
        let mode = ["none", "auto", "required"].into_iter().find(|known| known == mode).ok_or_else(malformed)?;
        return Ok(ToolChoice::Mode(mode));
    }
    let mut fields = Fields::of(value, "tool_choice")?;
    if fields.text("type")?.as_deref() != Some("function") {
        return Err(malformed());
    }
    let function = fields.take("function").ok_or_else(malformed)?;
    let mut function = Fields::of(function, "tool_choice.function")?;
    let name = function.identifier("name")?.ok_or_else(malformed)?;
    function.finish()?;
    fields.finish()?;
    let offered = tools.iter().any(|Tool::Function { function }| function.name == name);
    if offered { Ok(ToolChoice::Named(Named::Function { function: Name { name } })) } else { Err(malformed()) }
}

/// Reads `response_format`.
pub(super) fn response_format(value: Value) -> Result<ResponseFormat, Refusal> {
    let mut fields = Fields::of(value, "response_format")?;
    let format = match fields.text("type")?.as_deref() {
        Some("text") => ResponseFormat::Text,
        Some("json_object") => ResponseFormat::JsonObject,
        Some("json_schema") => {
            let schema = fields.take("json_schema");
            let mut schema = Fields::of(fields.required("json_schema", schema)?, "response_format.json_schema")?;
            let name = schema.identifier("name")?;
            let answer = AnswerSchema {
                name: schema.required("name", name)?,
                description: schema.text("description")?,
                schema: schema_field(&mut schema, "schema")?,
                strict: schema.flag("strict")?,
            };
            schema.finish()?;
            ResponseFormat::JsonSchema { json_schema: answer }
        }
        _ => return Err(misshapen("response_format.type", "text, json_object or json_schema")),
    };
    fields.finish()?;
    Ok(format)
}

fn schema_field(fields: &mut Fields, name: &str) -> Result<Option<Map<String, Value>>, Refusal> {
    let path = fields.path(name);
    match fields.take(name) {
        None => Ok(None),
        Some(Value::Object(mut schema)) => {
            keep_local(&mut schema, &path)?;
            Ok(Some(schema))
        }
        Some(_) => Err(misshapen(&path, "a JSON Schema object")),
    }
}

/// Keeps a schema from pointing outside itself. `$schema` and `$id` only name things, and go; a reference to anything but
/// a place in the same schema would have to be fetched, and is refused. Both are strings; a *property* of such a name is
/// an object, and stays.
fn keep_local(schema: &mut Map<String, Value>, path: &str) -> Result<(), Refusal> {
    schema.retain(|key, value| !(matches!(key.as_str(), "$schema" | "$id") && value.is_string()));
    for (key, value) in schema {
        match value {
            Value::String(target) if matches!(key.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef") => {
                if !target.starts_with('#') {
                    return Err(Refusal::forbidden(
                        "url-not-allowed",
                        format!("{path} holds a reference that would have to be fetched"),
                        "refer only to places within the same schema, as in #/$defs/name",
                    ));
                }
            }
            value => keep_value_local(value, path)?,
        }
    }
    Ok(())
}

fn keep_value_local(value: &mut Value, path: &str) -> Result<(), Refusal> {
    match value {
        Value::Object(schema) => keep_local(schema, path),
        Value::Array(items) => items.iter_mut().try_for_each(|item| keep_value_local(item, path)),
        _ => Ok(()),
    }
}
