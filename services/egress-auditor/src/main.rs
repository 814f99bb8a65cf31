//! egress-auditor's binary: the service, and four commands for a person.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use assistant_proto::egress::ExplainRequest;
use clap::{Parser, Subcommand};
use egress_auditor::{EgressAuditor, client};
use service_kit::host::{self, ConfigArgument};

#[derive(Debug, Parser)]
#[command(version, about = "Sees every attempt to leave a tier, explains it, and keeps the record")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service until SIGTERM.
    Run(ConfigArgument),
    /// Checks the configuration, prints every problem, exits 2 if there is one.
    CheckConfig(ConfigArgument),
    /// Prints one trace as a tree: from the chat message to the bytes that left.
    Trace {
        #[command(flatten)]
        socket: SocketArgument,
        /// Seconds to wait for spans that have not arrived.
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        wait: u16,
        /// 32 hex digits, for example the trace_id of an event.
        trace_id: String,
    },
    /// Prints what was denied, why, and what would allow it.
    Denied {
        #[command(flatten)]
        socket: SocketArgument,
        /// Only this tier.
        #[arg(long, default_value = "")]
        tier: String,
        /// Goes on printing as it happens.
        #[arg(long)]
        follow: bool,
    },
    /// Says what each wall would do with a request, why, and what would allow it; exits 0 allowed, 1 denied, 2 error.
    Explain {
        #[command(flatten)]
        socket: SocketArgument,
        /// The tier that would ask.
        tier: String,
        /// GET, POST ...
        method: String,
        /// https://host/path
        url: String,
        /// An MCP server of the tier, or a container's name, instead of the agent.
        #[arg(long = "as", value_name = "SERVER", default_value = "")]
        principal: String,
        /// As if no message was being answered.
        #[arg(long)]
        outside_turn: bool,
        /// As if the client did not send the placeholder.
        #[arg(long)]
        without_placeholder: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verifies the audit store's hash chain; exits 1 if it is broken.
    Verify {
        #[command(flatten)]
        socket: SocketArgument,
    },
}

#[derive(Debug, clap::Args)]
struct SocketArgument {
    /// The service's control socket.
    #[arg(long, value_name = "PATH", default_value = "/run/assistant/egress-auditor.sock")]
    socket: PathBuf,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(argument) => host::run::<EgressAuditor>(&argument.config),
        Command::CheckConfig(argument) => host::check_config::<EgressAuditor>(&argument.config),
        Command::Trace { socket, wait, trace_id } => ask(async {
            client::trace(&socket.socket, &trace_id, Duration::from_secs(wait.into())).await.map(|()| true)
        }),
        Command::Denied { socket, tier, follow } => {
            ask(async { client::denied(&socket.socket, &tier, follow).await.map(|()| true) })
        }
        Command::Verify { socket } => ask(client::verify(&socket.socket)),
        Command::Explain { socket, tier, method, url, principal, outside_turn, without_placeholder, json } => {
            let request = ExplainRequest { tier, method, url, principal, outside_turn, without_placeholder };
            ask_or(2, client::explain(&socket.socket, request, json))
        }
    }
}

fn ask(work: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    ask_or(1, work)
}

/// Runs a command; `failed` is the exit status where it gets no answer.
#[allow(clippy::print_stderr, reason = "a command's errors belong on standard error")]
fn ask_or(failed: u8, work: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::from(failed);
        }
    };
    match runtime.block_on(work) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(failed)
        }
    }
}
