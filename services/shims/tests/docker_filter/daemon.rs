//! Stands in for dockerd on a Unix socket: records each request as it came and plays a container that echoes.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use serde_json::{Value, json};

use crate::filter::PATIENCE;

/// A request as the daemon saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Seen>,
    created: usize,
    listed: Vec<String>,
    started: HashSet<String>,
    /// Exited, killed or removed: waits for them are over.
    ended: HashSet<String>,
    image_missing: bool,
    /// Containers go on when their input ends.
    deaf: bool,
    /// Bytes that an attachment writes at its start.
    output: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Daemon(Arc<(Mutex<State>, Condvar)>);

pub(crate) fn id(n: usize) -> String {
    format!("{n:064x}")
}

impl Daemon {
    pub(crate) fn start(socket: &Path) -> Self {
        let daemon = Self::default();
        daemon.listen(socket);
        daemon
    }

    /// Its own thread, and one for each connection. All end with the test's process.
    pub(crate) fn listen(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let daemon = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let daemon = daemon.clone();
                std::thread::spawn(move || daemon.serve(stream));
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    pub(crate) fn lists(&self, ids: &[String]) {
        self.change(|state| state.listed = ids.to_vec());
    }

    pub(crate) fn lacks_the_image(&self, lacks: bool) {
        self.change(|state| state.image_missing = lacks);
    }

    pub(crate) fn is_deaf(&self, deaf: bool) {
        self.change(|state| state.deaf = deaf);
    }

    pub(crate) fn writes_at_attach(&self, bytes: usize) {
        self.change(|state| state.output = bytes);
    }

    pub(crate) fn ends(&self, id: &str) {
        self.change(|state| {
            state.ended.insert(id.to_owned());
        });
    }

    /// All that came, without the filter's own look at what is there.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let state = self.0.0.lock().unwrap();
        state.seen.iter().filter(|seen| !seen.line.starts_with("GET /containers/json")).cloned().collect()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    /// Waits until a request came whose line starts so.
    pub(crate) fn wait_for(&self, line: &str) -> Seen {
        let until = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        loop {
            if let Some(seen) = state.seen.iter().find(|seen| seen.line.starts_with(line)) {
                return seen.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {line} among {:?}", state.seen);
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }

    fn serve(&self, mut stream: UnixStream) {
        let Some(seen) = request(&mut stream) else { return };
        let line = seen.line.clone();
        self.change(|state| state.seen.push(seen));
        let (method, target) = line.split_once(' ').unwrap();
        let path = target.split(['?', ' ']).next().unwrap();
        let parts: Vec<&str> = path.split('/').skip(1).filter(|part| !part.starts_with("v1.")).collect();
        match (method, parts.as_slice()) {
            ("GET", ["_ping"]) => answer(&mut stream, "200 OK\r\nApi-Version: 1.41\r\nSecret: x", "OK"),
            ("GET", ["containers", "json"]) => {
                let state = self.0.0.lock().unwrap();
                let listed: Vec<_> = state.listed.iter().map(|id| json!({"Id": id})).collect();
                drop(state);
                answer(&mut stream, "200 OK", &json!(listed).to_string());
            }
            ("POST", ["containers", "create"]) => {
                let mut state = self.0.0.lock().unwrap();
                let missing = state.image_missing;
                state.created += usize::from(!missing);
                let id = id(state.created);
                drop(state);
                if missing {
                    answer(&mut stream, "404 Not Found", r#"{"message":"No such image"}"#);
                } else {
                    let body = json!({"Id": id, "Warnings": ["Your kernel does not support"]}).to_string();
                    answer(&mut stream, "201 Created", &body);
                }
            }
            ("POST", ["containers", id, "attach"]) => self.echo(stream, id),
            ("POST", ["containers", id, "wait"]) => self.wait(stream, id),
            ("POST", ["containers", id, "start"]) => {
                self.change(|state| {
                    state.started.insert((*id).to_owned());
                });
                answer(&mut stream, "204 No Content", "");
            }
            ("POST", ["containers", id, "kill"]) | ("DELETE", ["containers", id]) => {
                self.ends(id);
                answer(&mut stream, "204 No Content", "");
            }
            ("GET", ["containers", _, "logs"]) => answer(&mut stream, "200 OK", "a line of its log\n"),
            _ => answer(&mut stream, "500 Internal Server Error", r#"{"message":"the stand-in knows no such call"}"#),
        }
    }

    /// What goes in comes out; when nothing more goes in, it says so and the container ends.
    fn echo(&self, mut stream: UnixStream, id: &str) {
        let head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let output = self.0.0.lock().unwrap().output;
        // Clients that do not read end this with an error.
        if stream.write_all(&vec![b'.'; output]).is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
        if self.0.0.lock().unwrap().deaf {
            return;
        }
        drop(stream.write_all(b"end of input"));
        drop(stream.shutdown(Shutdown::Write));
        self.ends(id);
    }

    fn wait(&self, mut stream: UnixStream, id: &str) {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut state = self.0.0.lock().unwrap();
        while !state.ended.contains(id) {
            state = self.0.1.wait(state).unwrap();
        }
        drop(state);
        let body = r#"{"StatusCode":0}"#;
        drop(write!(stream, "{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    }
}

fn answer(stream: &mut UnixStream, head: &str, body: &str) {
    drop(write!(
        stream,
        "HTTP/1.1 {head}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ));
}

/// Reads one request to its end, as its length says.
fn request(stream: &mut UnixStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let (line, headers) = head.split_once("\r\n").unwrap();
    let headers = headers.to_ascii_lowercase();
    assert!(!headers.contains("transfer-encoding"), "the filter says the length of what it sends: {headers}");
    let length = headers.lines().find_map(|header| header.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    Some(Seen { line: line.trim_end_matches(" HTTP/1.1").to_owned(), headers, body })
}
