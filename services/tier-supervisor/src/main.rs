//! Command line of tier-supervisor. Everything it does is in the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service_kit::text::harmless;
use tier_supervisor::config::{self, Fate, Images, Settings};
use tier_supervisor::engine::docker::{self, Docker};
use tier_supervisor::lock::Lock;
use tier_supervisor::supervisor::{self, Supervisor};
use tier_supervisor::{down, gates, login, status};

/// Exit status for a configuration that cannot be used.
const EXIT_CONFIG: u8 = 2;
/// Characters of an error; tiers.yaml may have many problems, and all are shown.
const MOST_ERROR: usize = 64 * 1024;

#[derive(Debug, Parser)]
#[command(version, about = "Converges Docker and the kernel's packet table to tiers.yaml")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings the stack up and keeps it up until SIGTERM. What runs then goes on running.
    Run(ConfigArgument),
    /// Checks the configuration and tiers.yaml, prints every problem, exits 2 if there is one.
    CheckConfig(CheckArguments),
    /// Takes over a `.env`: secrets into files of their own, the rest into env.json. Prints no value.
    ImportEnv(ImportArguments),
    /// Prints the images that the enabled MCP servers of a tiers.yaml name, one a line.
    CatalogueImages {
        /// tiers.yaml.
        #[arg(long)]
        tiers_file: PathBuf,
    },
    /// Shows how the stack stands.
    Status(status::Arguments),
    /// Stops and removes everything of the stack. The supervisor itself must have been stopped.
    Down(down::Arguments),
    /// Prints links that log a browser in to the stack's pages. Each works once, within ten minutes.
    Login(login::Arguments),
    /// Joins loopback ports to containers. Started by the supervisor, as a user of its own; told on standard input.
    Gates,
}

#[derive(Debug, clap::Args)]
struct ConfigArgument {
    /// supervisor.json, written by deploy/up.sh.
    #[arg(long, default_value = "/etc/assistant/supervisor.json")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct CheckArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Suppose that every image exists: for asking before one was built. images.json is not read.
    #[arg(long)]
    before_images: bool,
}

#[derive(Debug, clap::Args)]
struct ImportArguments {
    /// The `.env`.
    #[arg(long)]
    file: PathBuf,
    /// State directory of the live stack; the secrets go into its `secrets`.
    #[arg(long)]
    state_dir: PathBuf,
    /// Say of each variable what happened to it.
    #[arg(long)]
    report: bool,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(argument) => run(&argument.config),
        Command::CheckConfig(arguments) => check(&arguments),
        Command::ImportEnv(arguments) => import_env(&arguments),
        Command::CatalogueImages { tiers_file } => {
            let images = config::catalogue_images(&tiers_file);
            images.iter().for_each(|image| print(image));
            ExitCode::SUCCESS
        }
        Command::Status(arguments) => now(async { Ok(status::run(&arguments).await?) }),
        Command::Down(arguments) => now(async {
            down::run(&Docker::at(Path::new(docker::SOCKET)), &arguments).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Login(arguments) => now(async { Ok(login::run(&arguments).await?) }),
        Command::Gates => gates::main(),
    }
}

fn check(arguments: &CheckArguments) -> ExitCode {
    let images = || arguments.before_images.then(Images::supposed);
    let problems = supervisor::problems(&arguments.config.config, images());
    if !problems.is_empty() {
        return refuse(&problems);
    }
    config::remarks(&arguments.config.config, images()).iter().for_each(|remark| note(remark));
    ExitCode::SUCCESS
}

fn run(config: &Path) -> ExitCode {
    let settings = match Settings::load(config) {
        Ok(settings) => settings,
        Err(error) => return refuse(&[error.to_string()]),
    };
    // Before anything is made: a second supervisor must not renew keys under the first one's feet.
    let _held = match Lock::take(&settings.run_dir) {
        Ok(held) => held,
        Err(error) => return fail(&error.to_string()),
    };
    match supervisor::prepare(config) {
        Ok(own) => service_kit::host::run::<Supervisor>(&own),
        Err(problems) => refuse(&problems),
    }
}

fn import_env(arguments: &ImportArguments) -> ExitCode {
    let imported = match config::import(&arguments.file, &arguments.state_dir) {
        Ok(imported) => imported,
        Err(config::ImportError::Problems(problems)) => {
            return refuse(&problems.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        Err(error) => return fail(&error.to_string()),
    };
    for said in imported.said.iter().filter(|said| arguments.report || matches!(said.fate, Fate::Unknown(_))) {
        print(&said.to_string());
    }
    imported.remarks.iter().for_each(|remark| note(remark));
    ExitCode::SUCCESS
}

/// Runs one short command to its end.
fn now(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(command));
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn refuse(problems: &[String]) -> ExitCode {
    for problem in problems {
        say(problem);
    }
    ExitCode::from(EXIT_CONFIG)
}

fn fail(problem: &str) -> ExitCode {
    say(problem);
    ExitCode::FAILURE
}

fn note(remark: &str) {
    print(&format!("note: {remark}"));
}

#[allow(clippy::print_stdout, reason = "the answer of a short command")]
fn print(line: &str) {
    println!("{}", harmless(line, MOST_ERROR));
}

#[allow(clippy::print_stderr, reason = "standard error is where a person at a command line looks")]
fn say(problem: &str) {
    eprintln!("error: {}", harmless(problem, MOST_ERROR));
}
