//! `drill-internet`: the internet of a drill, in one process, to be run inside the network namespace
//! `assistant-drill`.

use std::path::PathBuf;
use std::process::ExitCode;

use assistant_tests::doubles::{self, Settings};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(version, about = "Doubles of the internet for a drill: DNS, a task service, a model, and a sink")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the drill's CA in the state directory, if it is not there yet, and exits.
    Prepare {
        /// Where CA and keys lie.
        #[arg(long)]
        state_dir: PathBuf,
    },
    /// Serves until SIGTERM.
    Run {
        /// Where CA and keys lie.
        #[arg(long)]
        state_dir: PathBuf,
        /// The token the task service asks for.
        #[arg(long)]
        marvin_token_file: PathBuf,
        /// The key the model asks for.
        #[arg(long)]
        model_key_file: PathBuf,
        /// Unix socket that says what arrived.
        #[arg(long, default_value = "/run/assistant-drill/control.sock")]
        control_socket: PathBuf,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let outcome = match Arguments::parse().command {
        Command::Prepare { state_dir } => doubles::authority::Authority::load_or_make(&state_dir).map(|_| ()),
        Command::Run { state_dir, marvin_token_file, model_key_file, control_socket } => {
            doubles::run_to_end(Settings { state_dir, marvin_token_file, model_key_file, control_socket })
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
