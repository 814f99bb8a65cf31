//! A double of ZeroClaw's gateway: `GET /health`, `/acp` and, as told, `/api` as zeroclaw-gateway 0.8.7 serves them, with an agent that
//! does what the prompt says. It checks token, agent and subprotocol, and keeps sessions beyond a connection as
//! ZeroClaw's store does. It stands for the peer only; nothing of the bridge is replaced by it.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};

pub(crate) const TOKEN: &str = "token-of-the-bridge";

/// What happened, in order, across the doubles of one test.
pub(crate) type Journal = Arc<Mutex<Vec<String>>>;

pub(crate) struct AgentDouble {
    pub(crate) address: SocketAddrV4,
    /// `[session, text]` of every prompt, in order.
    pub(crate) prompts: Arc<Mutex<Vec<(String, String)>>>,
    pub(crate) sessions: Arc<Mutex<BTreeSet<String>>>,
    /// What `/api` answers, to the byte; nothing for what is not told.
    pub(crate) api: Arc<Mutex<Vec<u8>>>,
    /// The heads of requests to anything but `/health` and `/acp`.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl Drop for AgentDouble {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Shared {
    prompts: Arc<Mutex<Vec<(String, String)>>>,
    sessions: Arc<Mutex<BTreeSet<String>>>,
    api: Arc<Mutex<Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
    journal: Journal,
}

impl AgentDouble {
    pub(crate) async fn start(journal: Journal) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("not IPv4") };
        let shared = Shared {
            prompts: Arc::default(),
            sessions: Arc::default(),
            api: Arc::default(),
            asked: Arc::default(),
            journal,
        };
        let (prompts, sessions) = (Arc::clone(&shared.prompts), Arc::clone(&shared.sessions));
        let (api, asked) = (Arc::clone(&shared.api), Arc::clone(&shared.asked));
        let accepting = tokio::spawn(async move {
            // Connections die with the double: dropping the set aborts them.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, prompts, sessions, api, asked, accepting }
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.prompts.lock().unwrap().iter().map(|(_, text)| text.clone()).collect()
    }
}

async fn serve(mut stream: TcpStream, shared: Shared) {
    let mut start = [0_u8; 11];
    if stream.peek(&mut start).await.is_ok() && start.starts_with(b"GET /health") {
        let mut request = [0_u8; 1024];
        let _read = stream.read(&mut request).await;
        let _written = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    if !start.starts_with(b"GET /acp") {
        return answer_api(stream, &shared).await;
    }
    #[allow(clippy::result_large_err, reason = "the signature is tungstenite's")]
    let check = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let refused = |status: StatusCode| {
            let mut response = ErrorResponse::new(None);
            *response.status_mut() = status;
            Err(response)
        };
        if header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return refused(StatusCode::UNAUTHORIZED);
        }
        if request.uri() != "/acp?agent=default" || header("sec-websocket-protocol") != Some("zeroclaw.acp.v1") {
            return refused(StatusCode::NOT_FOUND);
        }
        response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("zeroclaw.acp.v1"));
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
    let mut agent = Agent { socket, shared, live: None };
    while let Some(frame) = agent.receive().await {
        if !agent.answer(frame).await {
            return;
        }
    }
}

/// Answers as it was told, whatever was asked.
async fn answer_api(mut stream: TcpStream, shared: &Shared) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16_384 {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    shared.asked.lock().unwrap().push(String::from_utf8(head).unwrap());
    let answer = shared.api.lock().unwrap().clone();
    let _written = stream.write_all(&answer).await;
}

struct Agent {
    socket: WebSocketStream<TcpStream>,
    shared: Shared,
    live: Option<String>,
}

impl Agent {
    async fn receive(&mut self) -> Option<Value> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Text(text)) => return serde_json::from_str(text.as_str()).ok(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                _ => return None,
            }
        }
    }

    async fn send(&mut self, frame: Value) {
        let _sent = self.socket.send(Message::text(frame.to_string())).await;
    }

    async fn result(&mut self, id: &Value, result: Value) {
        self.send(json!({"jsonrpc": "2.0", "result": result, "id": id})).await;
    }

    async fn update(&mut self, update: Value) {
        let session = self.live.clone();
        self.send(
            json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": update}}),
        )
        .await;
    }

    async fn chunk(&mut self, text: &str) {
        self.update(json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}})).await;
    }

    async fn answer(&mut self, frame: Value) -> bool {
        let id = frame["id"].clone();
        match frame["method"].as_str() {
            Some("initialize") => {
                self.result(
                    &id,
                    json!({"protocolVersion": 1, "agentCapabilities": {"loadSession": true,
                        "sessionCapabilities": {"resume": {}, "close": {}}}}),
                )
                .await;
            }
            Some("session/new") => {
                let session = uuid::Uuid::new_v4().to_string();
                self.shared.sessions.lock().unwrap().insert(session.clone());
                self.live = Some(session.clone());
                self.result(&id, json!({"sessionId": session, "workspaceDir": "/x"})).await;
            }
            Some("session/resume") => {
                let session = frame["params"]["sessionId"].as_str().unwrap().to_owned();
                if self.shared.sessions.lock().unwrap().contains(&session) {
                    self.live = Some(session);
                    self.result(&id, json!({})).await;
                } else {
                    let error = json!({"code": -32000, "message": "Session not found"});
                    self.send(json!({"jsonrpc": "2.0", "error": error, "id": id})).await;
                }
            }
            Some("session/prompt") => return self.prompt(&id, &frame["params"]).await,
            _ => {}
        }
        true
    }

    /// Does what the first part of the prompt says. False ends the connection.
    async fn prompt(&mut self, id: &Value, params: &Value) -> bool {
        assert_eq!(params["sessionId"].as_str(), self.live.as_deref());
        let parts: Vec<&str> =
            params["prompt"].as_array().unwrap().iter().filter_map(|part| part["text"].as_str()).collect();
        let text = parts.join("\n\n");
        self.shared.journal.lock().unwrap().push(format!("prompted {text}"));
        self.shared.prompts.lock().unwrap().push((self.live.clone().unwrap(), text.clone()));
        let (verb, rest) = parts[0].split_once(' ').unwrap_or((parts[0], ""));
        match verb {
            "say" => {
                for word in rest.split_inclusive(' ') {
                    self.chunk(word).await;
                }
                self.result(id, json!({"stopReason": "end_turn", "content": rest})).await;
            }
            "ask" => return self.ask(id, rest).await,
            "choose" => {
                let options = json!([{"optionId": "choice-0", "name": "red", "kind": "allow_once"},
                                     {"optionId": "choice-1", "name": "blue", "kind": "reject_once"}]);
                return self.request(id, json!({"title": rest}), options).await;
            }
            "drop" => {
                self.chunk("half").await;
                return false;
            }
            "garbage" => {
                let _sent = self.socket.send(Message::text("{\"jsonrpc\":")).await;
            }
            "fail" => {
                let error = json!({"code": -32603, "message": "Agent turn failed: \u{1b}[31mmodel"});
                self.send(json!({"jsonrpc": "2.0", "error": error, "id": id})).await;
            }
            "hang" => {
                self.chunk("hanging").await;
                loop {
                    let Some(frame) = self.receive().await else { return false };
                    if frame["method"] == "session/cancel" {
                        break;
                    }
                }
                self.note("cancelled");
                self.result(id, json!({"stopReason": "cancelled", "content": "hanging [cancelled]"})).await;
            }
            "deaf" => {
                self.chunk("deaf").await;
                while let Some(frame) = self.receive().await {
                    if frame["method"] == "session/cancel" {
                        self.note("cancelled");
                    }
                }
                self.note("left alone");
                return false;
            }
            "refuse" => {
                // As ZeroClaw tells it: the call is completed, and the reason is its output.
                for call in ["c1", "c2"] {
                    let title = json!({"toolCallId": call, "title": "shell"});
                    let mut pending = title.clone();
                    pending["sessionUpdate"] = json!("tool_call");
                    pending["status"] = json!("pending");
                    self.update(pending).await;
                    let mut completed = title;
                    completed["sessionUpdate"] = json!("tool_call_update");
                    completed["status"] = json!("completed");
                    completed["rawOutput"] = json!(rest);
                    self.update(completed).await;
                }
                self.result(id, json!({"stopReason": "end_turn", "content": "done"})).await;
            }
            "nag" => return self.nag(id, rest.parse().unwrap()).await,
            other => panic!("the double cannot {other}"),
        }
        true
    }

    fn note(&self, what: &str) {
        self.shared.journal.lock().unwrap().push(what.to_owned());
    }

    /// Asks what the bridge never puts to anybody, and says in the reply how often that was withdrawn.
    async fn nag(&mut self, id: &Value, times: u32) -> bool {
        let options = json!([{"optionId": "maybe", "name": "maybe", "kind": "allow_once"}]);
        let mut withdrawn = 0;
        for _ in 0..times {
            let params = json!({"sessionId": self.live, "options": options, "toolCall": {"title": "nag"}});
            self.send(json!({"jsonrpc": "2.0", "id": "n", "method": "session/request_permission", "params": params}))
                .await;
            let Some(frame) = self.receive().await else { return false };
            withdrawn += u32::from(frame["result"]["outcome"]["outcome"] == "cancelled");
        }
        self.result(id, json!({"stopReason": "end_turn", "content": withdrawn.to_string()})).await;
        true
    }

    async fn ask(&mut self, id: &Value, what: &str) -> bool {
        let options = json!([
            {"optionId": "allow-once", "name": "Allow once", "kind": "allow_once"},
            {"optionId": "allow-always", "name": "Always allow", "kind": "allow_always"},
            {"optionId": "reject-once", "name": "Reject", "kind": "reject_once"}]);
        let call = json!({"toolCallId": "approval-1", "title": "Approve shell?", "kind": "execute", "status": "pending",
            "rawInput": {"tool": "shell"},
            "content": [{"type": "content", "content": {"type": "text", "text": format!("command: {what}")}}]});
        self.update(json!({"sessionUpdate": "tool_call", "toolCallId": "c", "title": "shell", "status": "pending"}))
            .await;
        self.request(id, call, options).await
    }

    /// Requests a permission and says in the reply what was chosen.
    async fn request(&mut self, id: &Value, call: Value, options: Value) -> bool {
        let params = json!({"sessionId": self.live, "options": options, "toolCall": call});
        self.send(
            json!({"jsonrpc": "2.0", "id": "zc-out-7", "method": "session/request_permission", "params": params}),
        )
        .await;
        let chosen = loop {
            let Some(frame) = self.receive().await else { return false };
            if frame["id"] == "zc-out-7" {
                let outcome = &frame["result"]["outcome"];
                break outcome["optionId"].as_str().unwrap_or(outcome["outcome"].as_str().unwrap_or("?")).to_owned();
            }
            if frame["method"] == "session/cancel" {
                self.result(id, json!({"stopReason": "cancelled", "content": ""})).await;
                return true;
            }
        };
        self.result(id, json!({"stopReason": "end_turn", "content": chosen})).await;
        true
    }
}
