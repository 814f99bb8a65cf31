//! channel-bridge: the service, its configuration check, and the terminal client.

use std::process::ExitCode;

use channel_bridge::chat::{self, ChatArguments};
use channel_bridge::service::ChannelBridge;
use clap::{Parser, Subcommand};
use service_kit::host::{self, ConfigArgument};

#[derive(Debug, Parser)]
#[command(version, about = "Carries messages and approvals between people and the agents of the tiers")]
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
    /// Talks to a tier from this terminal.
    Chat(ChatArguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(argument) => host::run::<ChannelBridge>(&argument.config),
        Command::CheckConfig(argument) => host::check_config::<ChannelBridge>(&argument.config),
        Command::Chat(arguments) => chat::main(&arguments),
    }
}
