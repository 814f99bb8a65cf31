//! The terminal client as a program, over gRPC on a Unix socket, without a terminal.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use assistant_proto::channel::channel_service_server::ChannelServiceServer;
use channel_bridge::channels::{Channels, Statuses};
use channel_bridge::control::Control;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio_stream::wrappers::UnixListenerStream;

use crate::stack::{Stack, until};

fn serve(stack: &Stack, dir: &Path) -> PathBuf {
    let socket = dir.join("api.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service =
        ChannelServiceServer::new(Control::new(stack.bridge.terminal(), Channels::default(), Statuses::default()));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener));
    socket
}

fn chat(socket: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_channel-bridge"))
        .arg("chat")
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn run(socket: &Path, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = chat(socket, arguments);
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn piped_lines_are_messages() {
    let (stack, dir) = (Stack::start().await, tempfile::tempdir().unwrap());
    let socket = serve(&stack, dir.path());
    let (status, out, err) = run(&socket, &["tasks"], "say one two\n\nsay three\n").await;
    assert_eq!((status, err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[2]), (4, "| one two", "| three"), "{out}");
    let trace = stack.post.received.lock().unwrap()[0].traceparent.trace_id();
    assert_eq!(lines[1], format!("trace: {trace}  (deploy/trace.sh {trace})"));
    assert!(!out.contains('\u{1b}'));
    let (status, out, _) = run(&socket, &["tasks"], "drop\nsay x\n").await;
    assert_eq!(status, Some(1));
    assert!(out.contains("| half\nfailed: the connection to the agent broke in the middle of the turn\n"), "{out}");
    assert!(out.contains("\n| x\n"), "{out}");
}

#[tokio::test]
async fn one_message_and_no_standard_input() {
    let (stack, dir) = (Stack::start().await, tempfile::tempdir().unwrap());
    let socket = serve(&stack, dir.path());
    let (status, out, _) = run(&socket, &["--conversation", "k", "--once", "say x", "tasks"], "say y\n").await;
    assert_eq!(status, Some(0));
    assert!(out.starts_with("| x\ntrace: "), "{out}");
    assert_eq!(stack.agent.texts(), ["say x"]);
    assert_eq!(stack.post.received.lock().unwrap()[0].conversation, "k");
    let (status, out, _) = run(&socket, &["--once", "say x", "nosuch"], "").await;
    assert_eq!((status, out.as_str()), (Some(1), "failed: there is no tier of that name; there is one: tasks\n"));
    let (status, out, err) = run(&socket, &["nosuch"], "").await;
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert_eq!(err, "error: there is no tier of that name; there are: tasks\n");
    let (status, out, err) = run(&socket, &["tasks"], "\n").await;
    assert_eq!((status, out.as_str(), err.as_str()), (Some(0), "There was no message on standard input.\n", ""));
    let (status, _, err) = run(&dir.path().join("none.sock"), &["tasks"], "").await;
    assert_eq!(status, Some(1));
    assert!(err.contains("is not there: start the stack with deploy/up.sh"), "{err}");
}

#[tokio::test]
async fn a_question_is_answered_while_the_turn_waits() {
    let (stack, dir) = (Stack::start().await, tempfile::tempdir().unwrap());
    let socket = serve(&stack, dir.path());
    let mut child = chat(&socket, &["tasks"]);
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    input.write_all(b"ask ls\nsay after\n").await.unwrap();
    let mut seen = Vec::new();
    let code = loop {
        let line = output.next_line().await.unwrap().unwrap();
        if let Some(rest) = line.strip_prefix("Type YES ") {
            break rest.split(' ').next().unwrap().to_owned();
        }
        seen.push(line);
    };
    assert_eq!(
        seen[..],
        ["| [shell: pending]", "The agent asks for permission:", "  | Approve shell?", "  | command: ls"]
    );
    input.write_all(format!("yes 9999\nyes {code}\n").as_bytes()).await.unwrap();
    drop(input);
    let mut rest = Vec::new();
    while let Some(line) = output.next_line().await.unwrap() {
        rest.push(line);
    }
    let rest = rest.join("\n");
    // 9999 may by chance be the code itself.
    assert!(
        code == "9999" || rest.starts_with("failed: no open question of this conversation has that code"),
        "{rest}"
    );
    assert!(rest.contains(&format!("[{code}: approved, this once]\n| allow-once\ntrace: ")), "{rest}");
    assert!(rest.contains("\n| after\ntrace: "), "{rest}");
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    assert_eq!(stack.agent.texts(), ["ask ls", "say after"]);
}

#[tokio::test]
async fn an_interrupt_stops_the_answer() {
    let (stack, dir) = (Stack::start().await, tempfile::tempdir().unwrap());
    let socket = serve(&stack, dir.path());
    let mut child = chat(&socket, &["--once", "hang", "tasks"]);
    until("it is prompted", || stack.agent.texts().len() == 1).await;
    let mut output = child.stdout.take().unwrap();
    let mut shown = String::new();
    // The first words show that the client waits for an interrupt.
    while !shown.contains("hanging") {
        let mut piece = [0_u8; 256];
        let read = output.read(&mut piece).await.unwrap();
        shown.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let status = child.wait().await.unwrap();
    let mut piece = [0_u8; 1024];
    let read = output.read(&mut piece).await.unwrap();
    shown.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.starts_with("| hanging\nStopping; Ctrl-C again leaves.\n  [stopped]\ntrace: "), "{shown}");
}
