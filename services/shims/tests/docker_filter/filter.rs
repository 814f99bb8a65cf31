//! The real program, and clients that send it bytes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::Daemon;

/// How long anything may take on a busy machine before the test says it will not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Filter {
    child: Child,
    dir: TempDir,
    notes: Mutex<mpsc::Receiver<String>>,
    refusals: Mutex<mpsc::Receiver<String>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }
}

impl Filter {
    /// With a daemon behind it, and ready.
    pub(crate) fn with_daemon() -> (Self, Daemon) {
        let filter = Self::start();
        let daemon = Daemon::start(&filter.upstream());
        filter.wait_for_note("the sandbox is ready");
        (filter, daemon)
    }

    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_docker-filter"))
            .args(["--image", "assistant-sandbox:latest", "--workspace", "/zeroclaw-data/workspace"])
            .arg("--listen")
            .arg(dir.path().join("api.sock"))
            .arg("--upstream")
            .arg(dir.path().join("docker.sock"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let notes = Mutex::new(lines(child.stderr.take().unwrap()));
        let refusals = Mutex::new(lines(child.stdout.take().unwrap()));
        let filter = Self { child, dir, notes, refusals };
        filter.wait_for_note("listening on ");
        let mode = std::fs::metadata(filter.dir.path().join("api.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        filter
    }

    pub(crate) fn upstream(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    pub(crate) fn wait_for_note(&self, part: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.notes.lock().unwrap().recv_timeout(left).unwrap_or_else(|_| panic!("no note of {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The next refusal on standard output.
    pub(crate) fn refusal(&self) -> Value {
        let line = self.refusals.lock().unwrap().recv_timeout(PATIENCE).expect("no refusal was written");
        let mut line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line.as_object().unwrap().len(), 1);
        line["refused"].take()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("api.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends raw bytes and reads until the filter closes.
    pub(crate) fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        // A refusal may arrive, and the connection close, before all is written.
        drop(stream.write_all(request));
        Reply::of(&rest(&mut stream))
    }

    pub(crate) fn call(&self, line: &str, body: &str) -> Reply {
        let length = body.len();
        self.raw(format!("{line} HTTP/1.1\r\nHost: docker\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
    }

    /// Creates a container and tells its id.
    pub(crate) fn create(&self) -> String {
        let reply = self.call("POST /v1.41/containers/create", &least().to_string());
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.json()["Id"].as_str().unwrap().to_owned()
    }

    /// Attaches and reads the head of the answer.
    pub(crate) fn attach(&self, id: &str) -> UnixStream {
        let mut stream = self.connect();
        let line = format!("POST /v1.41/containers/{id}/attach?stderr=1&stdin=1&stdout=1&stream=1 HTTP/1.1");
        let head = "Host: \r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        stream.write_all(format!("{line}\r\n{head}").as_bytes()).unwrap();
        let reply = read_head(&mut stream);
        assert!(reply.starts_with("HTTP/1.1 101 "), "{reply}");
        stream
    }

    /// Waits for the end of a container; reads the head of the answer only.
    pub(crate) fn wait(&self, id: &str) -> UnixStream {
        let mut stream = self.connect();
        let line = format!("POST /v1.41/containers/{id}/wait?condition=removed HTTP/1.1\r\nHost: d\r\n");
        stream.write_all(format!("{line}Content-Length: 0\r\n\r\n").as_bytes()).unwrap();
        let reply = read_head(&mut stream);
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        stream
    }

    pub(crate) fn start_container(&self, id: &str) {
        let reply = self.call(&format!("POST /v1.41/containers/{id}/start"), "");
        assert_eq!(reply.status, 204, "{reply:?}");
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success(), "{status}");
            assert!(!self.dir.path().join("api.sock").exists(), "its socket is taken away at the end");
        }
    }
}

/// A body as small as it may be, with the container removed at its end.
pub(crate) fn least() -> Value {
    json!({
        "Image": "assistant-sandbox:latest",
        "Cmd": ["true"],
        "HostConfig": {"NetworkMode": "none", "AutoRemove": true},
    })
}

pub(crate) fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Everything until the peer closes, however it does.
pub(crate) fn rest(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn lines(from: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
