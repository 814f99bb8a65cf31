//! The wrapped server as a process: started in a group of its own, fed and read by lines, restarted with backoff.
//!
//! Also reaps every orphan of the container: here the wrapper is process 1, and grandchildren that outlive their parent
//! become its children. One loop does all waiting, so no two parts fight for an exit status.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::message::{self, FromChild};
use super::note;
use super::session::{Child, Lines, Lost, Session};
use crate::visible::visible;

/// Longest line of a child: secret-broker takes 4 MiB, and there is an envelope around it.
const LINE_MOST: usize = 4 * 1024 * 1024 + 64 * 1024;
/// Longest piece of a child's standard error that becomes one line of ours.
const LOG_LINE_MOST: usize = 2_000;
/// Lines that may queue for a child's standard input: as many as may wait, and as many cancellations.
const LINES_QUEUED: usize = 128;
/// How long a child may leave its standard input unread.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a child may take to answer `initialize`.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a child has to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How long what a dead child had written may take to be read, and a child that closed its streams to be dead.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// A child that lived this long was well: the next failure starts with the shortest backoff again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Keeps a child running until `stop`.
///
/// # Errors
/// Where the wrapper itself cannot do its work (signals); a failing child is no error.
pub(crate) async fn supervise(
    command: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    session: Session,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Before the first child, so that none of their ends is missed.
    let mut children = signal(SignalKind::child()).context("cannot receive SIGCHLD")?;
    let mut backoff = BACKOFF_FIRST;
    while !stop.is_cancelled() {
        session.set(Child::Starting);
        let started = Instant::now();
        let why = match Running::start(&command, &environment, &session) {
            Ok(running) => running.watch(&session, &mut children, &stop).await,
            Err(error) => format!("{error:#}"),
        };
        session.set(Child::Down(why.clone()));
        session.lose_all(&Lost::Ended);
        if stop.is_cancelled() {
            break;
        }
        backoff = if started.elapsed() >= WELL_AFTER { BACKOFF_FIRST } else { backoff };
        note(&format!("the MCP server is down ({why}); starting it again in {} ms", backoff.as_millis()));
        let until = Instant::now() + backoff;
        backoff = (backoff * 2).min(BACKOFF_MOST);
        loop {
            // Every arm is cancel-safe: a timer, a coalescing signal and a token.
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                _ = children.recv() => { reap(None); }
                () = stop.cancelled() => break,
            }
        }
    }
    Ok(())
}

struct Running {
    pid: Pid,
    lines: Lines,
    streams: JoinSet<&'static str>,
}

impl Running {
    fn start(command: &[OsString], environment: &[(OsString, OsString)], session: &Session) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("no command was given")?;
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that whatever it starts can be ended with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", visible(program.as_encoded_bytes(), 200)))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id out of range")?);
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            end_group(pid, Signal::SIGKILL);
            anyhow::bail!("the process has no standard streams");
        };
        let (lines, queue) = mpsc::channel(LINES_QUEUED);
        let mut streams = JoinSet::new();
        let stdin = ChildStdin::from_std(stdin)?;
        streams.spawn(feed(stdin, queue));
        streams.spawn(listen(ChildStdout::from_std(stdout)?, session.clone(), lines.clone()));
        streams.spawn(log(ChildStderr::from_std(stderr)?));
        // The handle goes, the process stays: the loop in `watch` waits for it with all other children.
        drop(child);
        Ok(Self { pid, lines, streams })
    }

    /// Returns why the child is no more.
    async fn watch(mut self, session: &Session, children: &mut SignalStream, stop: &CancellationToken) -> String {
        let lines = self.lines.clone();
        let handshake = handshake(session, &lines);
        tokio::pin!(handshake);
        let mut shaken = false;
        let why = loop {
            // Cancel-safety: `recv` and `cancelled` lose nothing; `join_next` is cancel-safe; `handshake` is pinned
            // outside the loop and never polled again once it is done.
            tokio::select! {
                _ = children.recv() => {
                    if let Some(status) = reap(Some(self.pid)) {
                        self.drain().await;
                        self.end(children).await;
                        return status;
                    }
                }
                Some(stream) = self.streams.join_next() => {
                    match stream {
                        // A program may close its standard error and live on.
                        Ok("stderr") => {}
                        Ok(name) => break format!("its {name} is closed or stuck"),
                        Err(error) => break format!("a reader failed: {error}"),
                    }
                }
                result = &mut handshake, if !shaken => {
                    shaken = true;
                    match result {
                        Ok(initialized) => {
                            note("the MCP server is ready");
                            session.set(Child::Ready { lines: self.lines.clone(), initialized });
                        }
                        Err(why) => break why,
                    }
                }
                () = stop.cancelled() => break "the wrapper was told to end".to_owned(),
            }
        };
        // A dying child closes its streams before its end is reported: its exit status is the better reason.
        let status = if stop.is_cancelled() { None } else { self.settle(children).await };
        self.end(children).await;
        status.map_or(why.clone(), |status| format!("{why}; {status}"))
    }

    /// Waits a moment for the child to end by itself; says how it did.
    async fn settle(&self, children: &mut SignalStream) -> Option<String> {
        let ended = async {
            loop {
                if let Some(status) = reap(Some(self.pid)) {
                    return status;
                }
                children.recv().await;
            }
        };
        timeout(DRAIN_PATIENCE, ended).await.ok()
    }

    /// Lets the readers finish with what the dead child had written.
    async fn drain(&mut self) {
        let finished = async {
            while let Some(stream) = self.streams.join_next().await {
                if matches!(stream, Ok("standard output")) {
                    return;
                }
            }
        };
        // A grandchild that keeps the pipe open must not hold this up.
        drop(timeout(DRAIN_PATIENCE, finished).await);
    }

    /// Ends the whole group: politely, then not. Also runs when the child itself has ended, for what it left behind.
    async fn end(&mut self, children: &mut SignalStream) {
        end_group(self.pid, Signal::SIGTERM);
        let gone = async {
            while !group_is_empty(self.pid) {
                children.recv().await;
                reap(Some(self.pid));
            }
        };
        if timeout(END_PATIENCE, gone).await.is_err() {
            end_group(self.pid, Signal::SIGKILL);
            let gone = async {
                while !group_is_empty(self.pid) {
                    children.recv().await;
                    reap(Some(self.pid));
                }
            };
            drop(timeout(END_PATIENCE, gone).await);
        }
    }
}

/// Collects every child that has ended; says how `pid` did, if it is among them. Zero or more per signal: SIGCHLD
/// coalesces.
fn reap(pid: Option<Pid>) -> Option<String> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(who, code)) if Some(who) == pid => ended = Some(format!("it exited with {code}")),
            Ok(WaitStatus::Signaled(who, by, _)) if Some(who) == pid => ended = Some(format!("it was killed by {by}")),
            Ok(WaitStatus::StillAlive) => return ended,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            // ECHILD: there are no children at all.
            Err(_) => return ended,
        }
    }
}

fn end_group(pid: Pid, by: Signal) {
    match killpg(pid, by) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => note(&format!("cannot send {by} to the MCP server: {error}")),
    }
}

fn group_is_empty(pid: Pid) -> bool {
    killpg(pid, None) == Err(nix::errno::Errno::ESRCH)
}

/// `initialize` and `notifications/initialized`, once a child.
async fn handshake(session: &Session, lines: &Lines) -> Result<Arc<RawValue>, String> {
    let params = RawValue::from_string(format!(
        r#"{{"protocolVersion":"2024-11-05","capabilities":{{}},"clientInfo":{{"name":"mcp-stdio","version":"{}"}}}}"#,
        env!("CARGO_PKG_VERSION")
    ))
    .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + HANDSHAKE_PATIENCE;
    match session.request_on(lines, "initialize", Some(&params), deadline).await {
        Ok(Ok(result)) => {
            let line = message::request_line(None, "notifications/initialized", None);
            lines.send(line).await.map_err(|_| "it closed its standard input".to_owned())?;
            Ok(Arc::from(result))
        }
        Ok(Err(error)) => Err(format!("it refused to initialize: {}", visible(error.get().as_bytes(), 300))),
        Err(lost) => Err(format!("no handshake: {lost}")),
    }
}

async fn feed(mut stdin: ChildStdin, mut queue: mpsc::Receiver<Vec<u8>>) -> &'static str {
    while let Some(line) = queue.recv().await {
        let written = async {
            stdin.write_all(&line).await?;
            stdin.flush().await
        };
        if !matches!(timeout(WRITE_PATIENCE, written).await, Ok(Ok(()))) {
            break;
        }
    }
    "standard input"
}

async fn listen(stdout: ChildStdout, session: Session, lines: Lines) -> &'static str {
    let mut reader = BufReader::with_capacity(64 * 1024, stdout);
    let mut line = Vec::new();
    while let Ok(Some(whole)) = next_line(&mut reader, &mut line, LINE_MOST).await {
        if !whole {
            // Whose answer it was cannot be known without reading it; all who wait are told.
            note("the MCP server wrote a line above the size limit; it was dropped");
            session.lose_all(&Lost::TooLong);
            continue;
        }
        match message::from_child(&line) {
            FromChild::Answer { id, outcome } => session.resolve(id, outcome),
            FromChild::Ask { id, method } => {
                if let Some(answer) = answer_to(&id, &method) {
                    // A full queue means a child that does not read; its question may starve, its reader may not.
                    drop(lines.try_send(answer));
                }
            }
            FromChild::Notice => {}
            FromChild::Noise => {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    note(&format!("not a message on standard output: {}", visible(&line, 200)));
                }
            }
        }
    }
    "standard output"
}

/// The server may ask whether we live. Sampling, roots and the like would let it act through its client: refused.
fn answer_to(id: &RawValue, method: &str) -> Option<Vec<u8>> {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).ok();
    if method == "ping" {
        Some(message::answer_line(id, Ok(raw("{}")?.as_ref())))
    } else {
        let refusal = raw(r#"{"code":-32601,"message":"this client offers nothing to servers"}"#)?;
        Some(message::answer_line(id, Err(refusal.as_ref())))
    }
}

async fn log(stderr: ChildStderr) -> &'static str {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(Some(whole)) = next_line(&mut reader, &mut line, LOG_LINE_MOST).await {
        eprintln!("server: {}{}", visible(&line, LOG_LINE_MOST), if whole { "" } else { "…" });
    }
    "stderr"
}

/// Reads a line into `line`, without its end, keeping at most `most` bytes; says whether that was all of it. `None` at
/// the end of the stream, where an unfinished line still counts.
async fn next_line<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    line: &mut Vec<u8>,
    most: usize,
) -> std::io::Result<Option<bool>> {
    line.clear();
    let mut whole = true;
    let mut any = false;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(any.then_some(whole));
        }
        any = true;
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
        let room = most.saturating_sub(line.len());
        whole &= part.len() <= room;
        line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        let used = part.len().saturating_add(usize::from(end.is_some()));
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(whole));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    #[tokio::test]
    async fn lines_are_capped_and_the_next_is_whole() {
        let mut reader = BufReader::with_capacity(3, &b"abcdef\n\nghi\nend"[..]);
        let mut line = Vec::new();
        let mut seen = Vec::new();
        while let Some(whole) = next_line(&mut reader, &mut line, 4).await.unwrap() {
            seen.push((String::from_utf8(line.clone()).unwrap(), whole));
        }
        let expected = [("abcd", false), ("", true), ("ghi", true), ("end", true)];
        assert_eq!(seen, expected.map(|(text, whole)| (text.to_owned(), whole)));
    }

    #[test]
    fn servers_get_a_pong_and_nothing_else() {
        let id = RawValue::from_string("9".to_owned()).unwrap();
        let text = |method| String::from_utf8(answer_to(&id, method).unwrap()).unwrap();
        assert_eq!(text("ping"), "{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{}}\n");
        assert!(text("sampling/createMessage").contains("-32601"));
    }
}
