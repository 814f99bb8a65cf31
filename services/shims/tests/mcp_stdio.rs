//! `mcp-stdio` as it runs in a container: the real program around a real child, spoken to over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take on a busy machine before the test says it will not happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that keeps requests apart by id and does as its tool's name says. `initialize` counts itself into a file.
const SERVER: &str = r#"
dir="$1"
echo "a stray line"
printf 'hello \033[31mred\n' >&2
env > "$dir/environment"
echo $$ >> "$dir/pids"
reply() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$1" "$2"; }
held=""
while IFS= read -r line; do
  rest="${line#*\"id\":}"; id="${rest%%,*}"
  case "$line" in
    *'"method":"initialize"'*) echo x >> "$dir/initialized"; reply "$id" '{"protocolVersion":"2024-11-05","capabilities":{"tools":{}},"serverInfo":{"name":"test","version":"1"}}';;
    *'"method":"notifications/cancelled"'*) echo "$line" >> "$dir/cancelled";;
    *'"method":"notifications/'*) ;;
    *'"method":"tools/list"'*) reply "$id" '{"tools":[{"name":"echo","inputSchema":{}}]}';;
    *'"name":"hold"'*) held="$id"; touch "$dir/held";;
    *'"name":"release"'*) reply "$id" '{"content":[{"type":"text","text":"released"}]}'; reply "$held" '{"content":[{"type":"text","text":"held"}]}';;
    *'"name":"fail"'*) printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"no"}}\n' "$id";;
    *'"name":"ask"'*) printf '{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage"}\n'; IFS= read -r answer; echo "$answer" > "$dir/asked"; reply "$id" '{}';;
    *'"name":"flood"'*) head -c 5000000 /dev/zero | tr '\0' x; echo;;
    *'"name":"orphan"'*) ( sh -c 'echo $$ > "'"$dir"'/orphan"; exec sleep 0' & ) ; reply "$id" '{}';;
    *'"name":"die"'*) exit 3;;
    *) reply "$id" "{\"content\":[{\"type\":\"text\",\"text\":\"line of ${#line}\"}]}";;
  esac
done
"#;

struct Wrapper {
    child: Child,
    address: SocketAddr,
    log: Mutex<mpsc::Receiver<String>>,
    dir: TempDir,
}

impl Wrapper {
    fn start(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("server.sh"), script).unwrap();
        std::fs::write(path("wrapper.token"), "wrapper-token\n").unwrap();
        std::fs::write(path("principal.token"), "principal-token\n").unwrap();
        std::fs::write(path("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        std::fs::write(path("env"), "API_KEY=placeholder\n").unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mcp-stdio"))
            .env("LEAKED", "must not reach the child")
            .args(["--listen", "127.0.0.1:0", "--proxy-name", "mcp-tasks-test", "--proxy", "http://10.87.17.2:10255"])
            .arg("--token-file")
            .arg(path("wrapper.token"))
            .arg("--proxy-token-file")
            .arg(path("principal.token"))
            .arg("--ca")
            .arg(path("ca.pem"))
            .arg("--env-file")
            .arg(path("env"))
            .arg("--")
            .arg("/bin/sh")
            .arg(path("server.sh"))
            .arg(dir.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut wrapper = Self { child, address: ([127, 0, 0, 1], 0).into(), log: Mutex::new(log), dir };
        let line = wrapper.wait_for_log("mcp-stdio: listening on ");
        wrapper.address = line.rsplit(' ').next().unwrap().parse().unwrap();
        wrapper
    }

    fn wait_for_log(&self, part: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.log.lock().unwrap().recv_timeout(left).unwrap_or_else(|_| panic!("no line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn wait_for_file(&self, name: &str, ready: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let text = self.file(name);
            if self.dir.path().join(name).exists() && ready(&text) {
                return text;
            }
            assert!(Instant::now() < until, "{name} never became right: {text:?}");
            std::thread::yield_now();
        }
    }

    /// Sends raw bytes and reads until the peer closes.
    fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A refusal may arrive, and the connection close, before all is written.
        let written = stream.write_all(request);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(!text.is_empty(), "no answer: {written:?} {read:?}");
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn request(&self, head: &str, body: &str) -> (u16, String) {
        self.raw(
            format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                .as_bytes(),
        )
    }

    fn post(&self, body: &Value) -> (u16, Value) {
        let (status, text) = self.request(
            "POST /mcp HTTP/1.1\r\nauthorization: Bearer wrapper-token\r\ncontent-type: application/json",
            &body.to_string(),
        );
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn call(&self, id: u64, tool: &str) -> (u16, Value) {
        self.post(&json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":tool,"arguments":{}}}))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn is_alive(pid: &str) -> bool {
    std::path::Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn the_handshake_is_done_once_and_replayed() {
    let wrapper = Wrapper::start(SERVER);
    for id in [1, 2] {
        let (status, answer) = wrapper.post(&json!({"jsonrpc":"2.0","id":id,"method":"initialize","params":{}}));
        assert_eq!((status, &answer["id"]), (200, &json!(id)));
        assert_eq!(answer["result"]["serverInfo"]["name"], "test");
    }
    let (status, _) = wrapper.post(&json!({"jsonrpc":"2.0","method":"notifications/initialized"}));
    assert_eq!(status, 202);
    assert_eq!(wrapper.file("initialized"), "x\n");
    let (status, answer) = wrapper.post(&json!({"jsonrpc":"2.0","id":"a","method":"tools/list"}));
    assert_eq!((status, &answer["id"]), (200, &json!("a")));
    assert_eq!(answer["result"]["tools"][0]["name"], "echo");
    let (status, answer) = wrapper.post(&json!({"jsonrpc":"2.0","id":3,"method":"resources/list"}));
    assert_eq!((status, &answer["error"]["code"]), (200, &json!(-32601)));
    let (status, answer) = wrapper.call(4, "fail");
    assert_eq!((status, &answer["error"]["code"], &answer["id"]), (200, &json!(-32602), &json!(4)));
    assert_eq!(wrapper.request("GET /health HTTP/1.1", "").0, 200);
}

#[test]
fn the_child_gets_a_closed_environment_and_a_visible_log() {
    let wrapper = Wrapper::start(SERVER);
    assert_eq!(wrapper.wait_for_log("server: hello"), "server: hello \\u{1b}[31mred");
    let text = wrapper.wait_for_file("environment", |text| text.contains("https_proxy="));
    assert!(text.contains("HTTPS_PROXY=http://mcp%2Dtasks%2Dtest:principal%2Dtoken@10.87.17.2:10255\n"), "{text}");
    assert!(text.contains("API_KEY=placeholder\n") && text.contains("SSL_CERT_FILE="), "{text}");
    assert!(!text.contains("LEAKED"), "{text}");
    assert!(!text.contains("wrapper-token"), "{text}");
}

#[test]
fn only_the_token_opens_the_door() {
    let wrapper = Wrapper::start(SERVER);
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let json_type = "content-type: application/json";
    for (head, expected) in [
        (format!("POST /mcp HTTP/1.1\r\n{json_type}\r\nauthorization: Bearer wrapper-token"), 200),
        (format!("POST /mcp HTTP/1.1\r\n{json_type}"), 401),
        (format!("POST /mcp HTTP/1.1\r\n{json_type}\r\nauthorization: Bearer wrapper-toke"), 401),
        (format!("POST /mcp HTTP/1.1\r\n{json_type}\r\nauthorization: Bearer wrapper-token "), 200),
        (format!("POST /mcp HTTP/1.1\r\n{json_type}\r\nauthorization: Basic wrapper-token"), 401),
        (
            format!(
                "POST /mcp HTTP/1.1\r\n{json_type}\r\nauthorization: Bearer x\r\nauthorization: Bearer wrapper-token"
            ),
            401,
        ),
        ("POST /mcp HTTP/1.1\r\nauthorization: Bearer wrapper-token".to_owned(), 415),
        (
            format!("POST /mcp HTTP/1.1\r\n{json_type}\r\nauthorization: Bearer wrapper-token\r\norigin: http://a.b"),
            403,
        ),
        ("GET /mcp HTTP/1.1\r\nauthorization: Bearer wrapper-token".to_owned(), 405),
        ("GET / HTTP/1.1\r\nauthorization: Bearer wrapper-token".to_owned(), 404),
    ] {
        assert_eq!(wrapper.request(&head, body).0, expected, "{head}");
    }
}

#[test]
fn bodies_are_strict_and_capped() {
    let wrapper = Wrapper::start(SERVER);
    let head =
        "POST /mcp HTTP/1.1\r\nauthorization: Bearer wrapper-token\r\ncontent-type: application/json; charset=utf-8";
    for body in
        ["", "[]", r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, r#"{"jsonrpc":"2.0","id":1,"method":"ping","x":1}"#]
    {
        assert_eq!(wrapper.request(head, body).0, 400, "{body}");
    }
    let big = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":"{}"}}"#, "x".repeat(4 * 1024 * 1024));
    assert_eq!(wrapper.request(head, &big).0, 413);
    // A control for all of the above, with line ends inside: it must reach the child as one line.
    let (status, text) = wrapper.request(
        head,
        "{\"jsonrpc\":\"2.0\",\n\"id\":1,\n\"method\":\"tools/call\",\"params\":{\n\"name\":\"echo\"\n}}",
    );
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("line of"), "{text}");
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let wrapper = Wrapper::start(SERVER);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| wrapper.call(7, "hold"));
        wrapper.wait_for_file("held", |_| true);
        let (_, released) = wrapper.call(7, "release");
        assert_eq!(released["result"]["content"][0]["text"], "released");
        let (status, answer) = held.join().unwrap();
        assert_eq!((status, &answer["id"]), (200, &json!(7)));
        assert_eq!(answer["result"]["content"][0]["text"], "held");
    });
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let wrapper = Wrapper::start(SERVER);
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"hold"}}"#;
    let mut stream = TcpStream::connect(wrapper.address).unwrap();
    write!(
        stream,
        "POST /mcp HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrapper-token\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    wrapper.wait_for_file("held", |_| true);
    drop(stream);
    let line = wrapper.wait_for_file("cancelled", |text| text.ends_with('\n'));
    assert!(line.contains("requestId"), "{line}");
}

#[test]
fn a_server_that_dies_is_told_apart_and_restarted() {
    let wrapper = Wrapper::start(SERVER);
    let (status, answer) = wrapper.call(1, "die");
    assert_eq!((status, &answer["reason"]), (502, &json!("server-ended")));
    wrapper.wait_for_log("it exited with 3");
    wrapper.wait_for_file("initialized", |text| text.lines().count() == 2);
    wrapper.wait_for_log("the MCP server is ready");
    let (status, _) = wrapper.call(2, "echo");
    assert_eq!(status, 200);
}

#[test]
fn an_oversize_answer_fails_its_request_and_no_other() {
    let wrapper = Wrapper::start(SERVER);
    let (status, answer) = wrapper.call(1, "flood");
    assert_eq!((status, &answer["reason"]), (502, &json!("answer-too-large")));
    assert_eq!(wrapper.call(2, "echo").0, 200);
}

#[test]
fn a_server_may_not_ask_through_its_client() {
    let wrapper = Wrapper::start(SERVER);
    assert_eq!(wrapper.call(1, "ask").0, 200);
    let answer: Value = serde_json::from_str(&wrapper.file("asked")).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("q"), &json!(-32601)));
}

#[test]
fn orphans_are_reaped() {
    let wrapper = Wrapper::start(SERVER);
    assert_eq!(wrapper.call(1, "orphan").0, 200);
    let pid = wrapper.wait_for_file("orphan", |text| text.ends_with('\n'));
    let until = Instant::now() + PATIENCE;
    while is_alive(&pid) {
        assert!(Instant::now() < until, "process {pid} was never reaped");
        std::thread::yield_now();
    }
    assert_eq!(wrapper.call(2, "echo").0, 200, "the server itself lives");
}

#[test]
fn sigterm_ends_the_server_too() {
    let mut wrapper = Wrapper::start(SERVER);
    assert_eq!(wrapper.call(1, "echo").0, 200);
    let pid = wrapper.file("pids");
    assert!(is_alive(&pid));
    wrapper.signal(Signal::SIGTERM);
    assert!(wrapper.child.wait().unwrap().success());
    assert!(!is_alive(&pid));
}

#[test]
fn health_says_when_there_is_no_server() {
    let wrapper = Wrapper::start("exit 9");
    wrapper.wait_for_log("it exited with 9");
    let (status, text) = wrapper.request("GET /health HTTP/1.1", "");
    assert_eq!(status, 503, "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["reason"], "server-down");
}

#[test]
fn bad_arguments_are_one_clear_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let output = Command::new(env!("CARGO_BIN_EXE_mcp-stdio"))
        .args(["--listen", "127.0.0.1:0", "--proxy-name", "n", "--proxy", "http://127.0.0.1:1", "--ca", "/dev/null"])
        .arg("--token-file")
        .arg(&missing)
        .arg("--proxy-token-file")
        .arg(&missing)
        .args(["--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cannot read") && text.contains("missing"), "{text}");
}
