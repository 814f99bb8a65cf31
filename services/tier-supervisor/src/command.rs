//! Running `nft` and `ip`: with a deadline, without a shell, with what they say in the error.
//!
//! Owns nothing but the run. A child inherits the network namespace of the *calling thread*, which is how `netns` and
//! `kernel` aim it. Everything here blocks: async callers go through `spawn_blocking`.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far more than either tool ever needs; whoever waits longer waits for a kernel that hangs.
const DEADLINE: Duration = Duration::from_secs(20);
/// How much of what a tool says goes into an error.
const MOST_SAID: usize = 400;

/// A tool that could not be run, or said no.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("{program} is not installed; deploy/up.sh installs it (packages nftables and iproute2)")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// The system refused.
    #[error("{program} cannot be run: {source}")]
    Io {
        /// Its name.
        program: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It did not end.
    #[error("{program} did not end within {} s and was killed", DEADLINE.as_secs())]
    TooSlow {
        /// Its name.
        program: &'static str,
    },
    /// It ended with an error.
    #[error("{program} {arguments}: {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// What it was asked; what it was given on standard input is not repeated.
        arguments: String,
        /// The beginning of what it said on standard error, made harmless.
        said: String,
    },
}

/// Runs a tool, hands it `input`, and returns what it wrote to standard output.
///
/// # Errors
/// When it is missing, does not end in time, or ends with a status other than 0.
pub(crate) fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => CommandError::Missing { program },
        _ => CommandError::Io { program, source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let pid = child.id();
    let stdin = child.stdin.take();
    let input = input.to_owned();
    let (done, outcome) = mpsc::channel();
    // Written from a thread of its own, so that a tool that says much before it has read everything cannot block us.
    std::thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // A tool that ends early (a syntax error) closes the pipe; its status says why.
            drop(stdin.write_all(input.as_bytes()));
        }
    });
    std::thread::spawn(move || {
        // The receiver is gone only after the deadline, and then nobody wants to know.
        drop(done.send(child.wait_with_output()));
    });
    let output = match outcome.recv_timeout(DEADLINE) {
        Ok(output) => output.map_err(failed)?,
        Err(_) => {
            if let Ok(pid) = i32::try_from(pid) {
                // Not reaped before `wait_with_output` returns, so the id is still this child's.
                if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    tracing::debug!(program, %error, "it ended just now");
                }
            }
            return Err(CommandError::TooSlow { program });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(CommandError::Failed {
        program,
        arguments: service_kit::text::harmless_line(&arguments.join(" "), MOST_SAID),
        said: service_kit::text::harmless_line(String::from_utf8_lossy(&output.stderr).trim(), MOST_SAID),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn says_what_went_wrong() {
        assert_eq!(run("cat", &[], "a\nb").unwrap(), "a\nb");
        assert!(matches!(run("zz5-no-such-tool", &[], ""), Err(CommandError::Missing { .. })));
        let error = run("cat", &["/nonexistent/\u{1b}"], "").unwrap_err().to_string();
        assert!(error.contains("No such file") && !error.contains('\u{1b}'), "{error}");
        // More input than a pipe holds, for a tool that reads none of it.
        assert_eq!(run("true", &[], &"x".repeat(1 << 20)).unwrap(), "");
    }
}
