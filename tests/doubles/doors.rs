//! Doubles of two of the broker's doors, `models` and `mcp`, for a ZeroClaw that runs without a stack around it: plain
//! HTTP on loopback, the agent's own token at both, and a record of what the agent asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use service_kit::task::Tasks;
use zeroize::Zeroizing;

use super::model::{self, Model};
use super::record::Record;
use super::web::{self, Answer, Asked, answer};

/// Both doors, open.
#[derive(Debug)]
pub struct Doors {
    /// Where models are.
    pub models: SocketAddr,
    /// Where the tools of MCP servers are.
    pub mcp: SocketAddr,
    heard: Arc<Heard>,
}

/// What the agent asked so far.
#[derive(Debug, Default)]
struct Heard {
    completions: Mutex<Vec<Value>>,
    calls: Mutex<Vec<(String, Value)>>,
}

impl Doors {
    /// Opens both for the bearer of `token`. `tools` are the names that the second lists; each answers its own arguments.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub async fn open(tasks: &Tasks, token: &str, tools: &[&str]) -> anyhow::Result<Self> {
        let (heard, record) = (Arc::new(Heard::default()), Arc::new(Record::default()));
        let model = Model::new(Zeroizing::new(token.to_owned()));
        let asked = Arc::clone(&heard);
        let models =
            web::serve_plain(tasks, Arc::clone(&record), move |request| complete(&model, request, &asked)).await?;
        let bearer = format!("Bearer {token}");
        let tools: Vec<String> = tools.iter().map(ToString::to_string).collect();
        let asked = Arc::clone(&heard);
        let mcp = web::serve_plain(tasks, record, move |request| {
            let shown = request.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            match serde_json::from_slice::<Value>(&request.body) {
                _ if shown != Some(&bearer) => web::text(401, "unknown token"),
                Ok(call) => tool_call(&call, &tools, &asked),
                Err(_) => web::text(400, "the body is not JSON"),
            }
        })
        .await?;
        Ok(Self { models, mcp, heard })
    }

    /// The bodies of all requests for a completion, in order.
    #[must_use]
    pub fn completions(&self) -> Vec<Value> {
        self.heard.completions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every call of a tool of an MCP server: its name and its arguments.
    #[must_use]
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.heard.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// As LiteLLM does: what a tier calls its model is the provider's name for it.
fn complete(model: &Model, asked: &Asked, heard: &Heard) -> Answer {
    let Ok(mut body) = serde_json::from_slice::<Value>(&asked.body) else { return model.answer(asked) };
    heard.completions.lock().unwrap_or_else(PoisonError::into_inner).push(body.clone());
    if let Some(name) = body.get_mut("model") {
        *name = model::NAME.into();
    }
    let (method, path, headers) = (asked.method.clone(), asked.path.clone(), asked.headers.clone());
    model.answer(&Asked { method, path, headers, body: body.to_string().into() })
}

/// MCP over HTTP (<https://modelcontextprotocol.io/specification/2024-11-05>), as far as ZeroClaw's client uses it.
fn tool_call(call: &Value, tools: &[String], heard: &Heard) -> Answer {
    let Some(id) = call.get("id").filter(|id| !id.is_null()) else { return web::text(202, "") };
    let name = call.pointer("/params/name").and_then(Value::as_str).unwrap_or_default();
    let result = match call.get("method").and_then(Value::as_str) {
        Some("initialize") => json!({"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
            "serverInfo": {"name": "hub", "version": "1"}}),
        Some("tools/list") => {
            let tool =
                |name: &String| json!({"name": name, "description": "A tool.", "inputSchema": {"type": "object"}});
            json!({"tools": tools.iter().map(tool).collect::<Vec<_>>()})
        }
        Some("tools/call") if tools.iter().any(|tool| tool == name) => {
            let arguments = call.pointer("/params/arguments").cloned().unwrap_or_default();
            let text = format!("{name} was called with {arguments}");
            heard.calls.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), arguments));
            json!({"content": [{"type": "text", "text": text}], "isError": false})
        }
        _ => {
            let body =
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method or tool"}});
            return answer(200, "application/json", body.to_string(), true);
        }
    };
    answer(200, "application/json", json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string(), true)
}
