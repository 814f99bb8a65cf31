//! Offers one stdio MCP server as HTTP. See [`shims::wrapper`].

use std::ffi::OsString;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use shims::life::until_told;
use shims::wrapper::environment::environment;
use shims::wrapper::ingress::TokenHash;
use shims::wrapper::{Settings, run};
use zeroize::Zeroizing;

/// Wraps one MCP server that speaks over its standard streams and offers it as HTTP.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; POST /mcp with the token, GET /health without.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// File with the bearer token that clients must send.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// File with the token by which this container authenticates at the proxy.
    #[arg(long, value_name = "FILE")]
    proxy_token_file: PathBuf,
    /// This container's name, the user name at the proxy.
    #[arg(long, value_name = "NAME")]
    proxy_name: String,
    /// The proxy, http://<address>:<port>.
    #[arg(long, value_name = "URL")]
    proxy: String,
    /// PEM file of the CA the server must trust.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// File with more variables for the server, one NAME=value a line.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// The server and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = match settings(arguments) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("mcp-stdio: {error:#}");
            return ExitCode::from(2);
        }
    };
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mcp-stdio: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings(arguments: Arguments) -> anyhow::Result<Settings> {
    let token = read(&arguments.token_file)?;
    let proxy_token = read(&arguments.proxy_token_file)?;
    let env_file = match &arguments.env_file {
        Some(path) => read_text(path)?,
        None => Zeroizing::default(),
    };
    // A server that cannot read the CA would silently trust nothing, or everything; here it is one clear sentence.
    let ca = read_text(&arguments.ca)?;
    anyhow::ensure!(ca.contains("-----BEGIN CERTIFICATE-----"), "{} holds no certificate", arguments.ca.display());
    #[allow(
        clippy::disallowed_methods,
        reason = "where an image keeps its programs is the image's to say; not a setting"
    )]
    let path = std::env::var_os("PATH");
    let environment =
        environment(path, &arguments.proxy, &arguments.proxy_name, &proxy_token, &arguments.ca, &env_file)?;
    Ok(Settings { listen: arguments.listen, token: TokenHash::of(&token), command: arguments.command, environment })
}

fn serve(settings: Settings) -> anyhow::Result<()> {
    // As process 1 all orphans come here anyway. Outside a container this makes it so.
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of orphans")?;
    until_told(|stop| run(settings, stop))
}

/// A token: the file's text without its final line end, never empty.
fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = read_text(path)?;
    let token = Zeroizing::new(text.strip_suffix('\n').unwrap_or(&text).to_owned());
    anyhow::ensure!(!token.is_empty(), "{} is empty", path.display());
    anyhow::ensure!(token.bytes().all(|byte| byte.is_ascii_graphic()), "{} holds more than one token", path.display());
    Ok(token)
}

fn read_text(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    const FILE_MOST: u64 = 1024 * 1024;
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MOST).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}
