//! `drill-internet`: the internet of a drill, in one process, to be run inside the network namespace
//! `assistant-drill`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use assistant_tests::doubles::telegram::SentMessage;
use assistant_tests::doubles::telegram::person::{self, Person};
use assistant_tests::doubles::{self, Settings};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(version, about = "Doubles of the internet for a drill: DNS, a task service, a model, Telegram, and a sink")]
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
        /// The token of the bot that Telegram knows.
        #[arg(long)]
        telegram_token_file: Option<PathBuf>,
        /// Unix socket that says what arrived, and where one writes as a person on Telegram.
        #[arg(long, default_value = "/run/assistant-drill/control.sock")]
        control_socket: PathBuf,
    },
    /// Writes to the bot as a person on the double of Telegram.
    Write {
        /// The numeric id of the person.
        #[arg(long, default_value_t = 1_000_001)]
        user: i64,
        /// The chat; the private one with that person where it is not said.
        #[arg(long, allow_negative_numbers = true)]
        chat: Option<i64>,
        /// What they write.
        text: String,
        /// Unix socket of the drill's internet.
        #[arg(long, default_value = "/run/assistant-drill/control.sock")]
        control_socket: PathBuf,
    },
    /// Shows what the bot sent on the double of Telegram: one JSON object a line.
    Sent {
        /// Only what came after the message with this sequence.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Unix socket of the drill's internet.
        #[arg(long, default_value = "/run/assistant-drill/control.sock")]
        control_socket: PathBuf,
    },
}

fn alone<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn show(sent: &[SentMessage]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for message in sent {
        writeln!(out, "{}", serde_json::to_string(message)?)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let outcome = match Arguments::parse().command {
        Command::Prepare { state_dir } => doubles::authority::Authority::load_or_make(&state_dir).map(|_| ()),
        Command::Run { state_dir, marvin_token_file, model_key_file, telegram_token_file, control_socket } => {
            doubles::run_to_end(Settings {
                state_dir,
                marvin_token_file,
                model_key_file,
                telegram_token_file,
                control_socket,
            })
        }
        Command::Write { user, chat, text, control_socket } => {
            alone(Person { socket: control_socket, user, chat }.write(&text)).map(|_| ())
        }
        Command::Sent { after, control_socket } => {
            alone(person::sent(&control_socket, after)).and_then(|sent| show(&sent.messages))
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
