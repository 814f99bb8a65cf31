//! Offers the few calls of the Docker API that a sandboxed agent needs. See [`shims::sandbox`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use shims::life::until_told;
use shims::sandbox::create::Policy;
use shims::sandbox::{Settings, run};

const MIB: i64 = 1024 * 1024;

/// Filters the Docker API between a sandboxed agent and the sandbox's own daemon.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Socket to make; the agent's docker client connects to it.
    #[arg(long, value_name = "SOCKET")]
    listen: PathBuf,
    /// Socket of the sandbox's daemon.
    #[arg(long, value_name = "SOCKET")]
    upstream: PathBuf,
    /// The one image that containers may be made of, as clients must name it.
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// The one directory that may be mounted, as the daemon sees it.
    #[arg(long, value_name = "DIRECTORY")]
    workspace: String,
    /// Most memory of a container, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(i64).range(6..=1_048_576))]
    memory_most: i64,
    /// Most processors of a container.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(i64).range(1..=1_024))]
    cpus_most: i64,
    /// Most processes of a container.
    #[arg(long, value_name = "NUMBER", default_value_t = 512, value_parser = clap::value_parser!(i64).range(2..=65_536))]
    pids_most: i64,
}

fn main() -> ExitCode {
    let settings = match settings(Arguments::parse()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("docker-filter: {error:#}");
            return ExitCode::from(2);
        }
    };
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("docker-filter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings(arguments: Arguments) -> anyhow::Result<Settings> {
    let Arguments { listen, upstream, image, workspace, memory_most, cpus_most, pids_most } = arguments;
    // A colon would end the path in what clients send; a link or a dot could make it another.
    let plain = workspace.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte))
        && workspace.split('/').skip(1).all(|part| !["", ".", ".."].contains(&part))
        && workspace.len() > 1
        && workspace.starts_with('/');
    anyhow::ensure!(plain, "--workspace must be an absolute path of letters, digits, - _ . and /, without . or ..");
    let named =
        !image.is_empty() && image.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.:@".contains(&byte));
    anyhow::ensure!(named, "--image must be the name of an image");
    anyhow::ensure!(listen != upstream, "--listen and --upstream must be two sockets");
    let policy = Policy {
        image,
        workspace,
        memory_most: memory_most * MIB,
        nano_cpus_most: cpus_most * 1_000_000_000,
        pids_most,
    };
    Ok(Settings { listen, upstream, policy })
}

fn serve(settings: Settings) -> anyhow::Result<()> {
    until_told(|stop| run(settings, Box::new(std::io::stdout()), stop))
}
