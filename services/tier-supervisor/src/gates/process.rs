//! The gates' process, seen from tier-supervisor.

use std::io;
use std::process::Stdio;

use service_kit::text::harmless_line;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};

use super::{Line, Program, Said, holder};

/// What it may say in one line.
const MOST_LINE: u64 = 4096;

/// How it ended.
#[derive(Debug)]
pub(super) struct End {
    /// One sentence: what, and what to do.
    pub(super) why: String,
}

#[derive(Debug)]
pub(super) struct Child {
    child: tokio::process::Child,
    /// Its lifeline: closed, it ends.
    input: Option<ChildStdin>,
    output: BufReader<tokio::io::Take<ChildStdout>>,
}

impl Child {
    pub(super) async fn spawn(program: &Program, gates: &[Line]) -> io::Result<Self> {
        let mut command = Command::new(&program.path);
        command
            .args(["gates", "--config", "-"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        if let Some(uid) = program.uid {
            // Setting a uid as root also drops root's supplementary groups (std::os::unix::process::CommandExt::uid).
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn()?;
        let lost = || io::Error::other("a pipe is missing");
        let mut input = child.stdin.take().ok_or_else(lost)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(lost)?.take(MOST_LINE));
        let mut line = serde_json::to_vec(gates)?;
        line.push(b'\n');
        input.write_all(&line).await?;
        input.flush().await?;
        Ok(Self { child, input: Some(input), output })
    }

    /// Waits for its end; calls `ready` when it says that every gate listens.
    pub(super) async fn watch(&mut self, ready: impl Fn()) -> End {
        let mut why = None;
        let mut line = String::new();
        loop {
            line.clear();
            self.output.get_mut().set_limit(MOST_LINE);
            match self.output.read_line(&mut line).await {
                Ok(0) | Err(_) => break,
                Ok(_) => match serde_json::from_str(&line) {
                    Ok(Said::Ready) => ready(),
                    Ok(said) => why = Some(sentence(&said).await),
                    Err(_) => why = Some("the gates' process says something that is not understood".to_owned()),
                },
            }
        }
        let status = self.child.wait().await;
        let ended = || match status {
            Ok(status) => format!("the gates' process ended ({status}); it is started again"),
            Err(error) => format!("the gates' process is lost: {error}"),
        };
        End { why: why.unwrap_or_else(ended) }
    }

    /// Ends it and waits until it is gone, so that its ports are free.
    pub(super) async fn end(&mut self) {
        self.input = None;
        // It owns nothing that would need a graceful end; already gone is fine.
        drop(self.child.kill().await);
    }
}

async fn sentence(said: &Said) -> String {
    match said {
        Said::Ready => String::new(),
        Said::Occupied { name, listen } => {
            let listen = *listen;
            let holder = tokio::task::spawn_blocking(move || holder::who_listens(listen)).await.ok().flatten();
            let holder = holder.unwrap_or_else(|| "another program".to_owned());
            let port = listen.port();
            format!(
                "port {port} on 127.0.0.1, the gate to {name}, is taken by {holder}: stop it (find it with: ss -ltnp 'sport = :{port}'); the gate then opens by itself"
            )
        }
        Said::Failed { why } => format!("the gates do not open: {}", harmless_line(why, 400)),
    }
}
