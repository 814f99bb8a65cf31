//! The gates' process, seen from tier-supervisor.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt;
use service_kit::text::harmless_line;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::Program;
use super::logins::{Logins, Standing};
use super::sockets;
use super::told::{MOST_LINE, Said, Told};

/// It reads as soon as it is told something.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Child {
    child: tokio::process::Child,
    /// Its lifeline: closed, it ends.
    input: ChildStdin,
    output: FramedRead<ChildStdout, LinesCodec>,
    /// What it said was wrong with itself.
    failed: Option<String>,
}

impl Child {
    pub(super) fn spawn(program: &Program) -> io::Result<Self> {
        let mut command = Command::new(&program.path);
        command
            .arg("gates")
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
        let input = child.stdin.take().ok_or_else(lost)?;
        let output = child.stdout.take().ok_or_else(lost)?;
        let output = FramedRead::new(output, LinesCodec::new_with_max_length(MOST_LINE));
        Ok(Self { child, input, output, failed: None })
    }

    /// Tells it something.
    pub(super) async fn tell(&mut self, told: &Told) -> io::Result<()> {
        let mut line = serde_json::to_vec(told)?;
        line.push(b'\n');
        let write = async {
            self.input.write_all(&line).await?;
            self.input.flush().await
        };
        tokio::time::timeout(TAKEN_WITHIN, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Hears what it says next; none when it says nothing any more. Cancel-safe.
    pub(super) async fn hear(&mut self) -> Option<Said> {
        let line = self.output.next().await?.ok()?;
        let not_understood = |_| Said::Failed { why: "their process says something that is not understood".to_owned() };
        Some(serde_json::from_str(&line).unwrap_or_else(not_understood))
    }

    /// Notes what it said.
    pub(super) async fn note(&mut self, said: Said, logins: &Logins) {
        match said {
            Said::Open { listen } => logins.stands(listen, Standing::Open),
            Said::Occupied { name, listen } => {
                let holder = tokio::task::spawn_blocking(move || sockets::who_listens(listen)).await.ok().flatten();
                let holder = holder.unwrap_or_else(|| "another program".to_owned());
                let sentence = super::occupied(&name, listen, &holder);
                logins.stands(listen, Standing::Closed(format!("{sentence}; the gate then opens by itself")));
            }
            Said::Closed { name, listen, why } => {
                let why = format!("the gate to {name} does not open at {listen}: {}", harmless_line(&why, 400));
                logins.stands(listen, Standing::Closed(why));
            }
            Said::Knows { ticket } => logins.knows(ticket),
            Said::LoggedIn { ticket, session } => logins.logged_in(ticket, session),
            Said::LoggedOut { session } => logins.logged_out(session),
            Said::Failed { why } => {
                self.failed = Some(format!("the gates do not open: {}", harmless_line(&why, 400)));
            }
        }
    }

    /// Waits for its end, and says in one sentence why it came.
    pub(super) async fn wait(mut self) -> String {
        drop(self.input);
        let status = self.child.wait().await;
        self.failed.unwrap_or_else(|| match status {
            Ok(status) => format!("the gates' process ended ({status}); it is started again"),
            Err(error) => format!("the gates' process is lost: {error}"),
        })
    }

    /// Ends it and waits until it is gone, so that its ports are free; hears what it said until then.
    pub(super) async fn end(mut self, logins: &Logins) {
        drop(self.input);
        // It owns nothing that would need a graceful end; already gone is fine.
        drop(self.child.kill().await);
        while let Some(Ok(line)) = self.output.next().await {
            match serde_json::from_str(&line) {
                Ok(Said::LoggedIn { ticket, session }) => logins.logged_in(ticket, session),
                Ok(Said::LoggedOut { session }) => logins.logged_out(session),
                Ok(_) | Err(_) => {}
            }
        }
    }
}
