//! The drill's internet. One process in a network namespace where every address is local, so that one listener answers
//! for all of them and knows which was meant.

pub mod authority;
pub mod capture;
pub mod control;
pub mod dns;
pub mod doors;
pub mod marvin;
pub mod model;
pub mod record;
pub mod script;
pub mod telegram;
pub mod web;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use service_kit::files::read_secret;
use service_kit::task::{OnEnd, Tasks};
use zeroize::Zeroizing;

use self::authority::Authority;
use self::record::Record;

/// The authoritative name server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// The model.
pub const MODEL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The task service.
pub const MARVIN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// Telegram's Bot API.
pub const TELEGRAM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
/// A host that exists, has a name and a valid certificate, and that nobody allowed.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// Name of the model.
pub const MODEL_HOST: &str = "model.drill.example";
/// Name of the task service; the real client has it compiled in.
pub const MARVIN_HOST: &str = "serv.amazingmarvin.com";
/// Name of Telegram's Bot API.
pub const TELEGRAM_HOST: &str = "api.telegram.org";
/// Name of the host that nobody allowed.
pub const OUTSIDE_HOST: &str = "outside.drill.example";

/// The interface by which everything arrives.
pub const INTERFACE: &str = "as-drill1";

/// What the doubles need to know.
#[derive(Debug)]
pub struct Settings {
    /// Where CA and keys lie.
    pub state_dir: PathBuf,
    /// The token the task service asks for.
    pub marvin_token_file: PathBuf,
    /// The key the model asks for.
    pub model_key_file: PathBuf,
    /// The token of the bot that Telegram knows; without it Telegram knows none.
    pub telegram_token_file: Option<PathBuf>,
    /// Unix socket that says what arrived, and where one writes as a person on Telegram.
    pub control_socket: PathBuf,
}

/// Serves until SIGTERM or SIGINT, or until a part fails.
///
/// # Errors
/// When a part cannot be started or ends.
pub fn run_to_end(settings: Settings) -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a TLS provider was installed twice");
    }
    tokio::runtime::Runtime::new()?.block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let authority = Authority::load_or_make(&settings.state_dir)?;
    let marvin_token = read_secret(&settings.marvin_token_file).context("the task service's token")?;
    let model_key = read_secret(&settings.model_key_file).context("the model's key")?;
    let record = Arc::new(Record::default());
    let tasks = Tasks::default();

    capture::redirect_what_nobody_serves()?;
    capture::start(&tasks, INTERFACE, Arc::clone(&record))?;
    dns::start(&tasks, DNS, Arc::clone(&record)).await?;
    let marvin = marvin::Marvin::new(marvin_token);
    web::start(&tasks, MARVIN, authority.server_config(MARVIN_HOST)?, Arc::clone(&record), move |request| {
        marvin.answer(request)
    })
    .await?;
    let model = Arc::new(model::Model::new(model_key));
    let served = Arc::clone(&model);
    web::start(&tasks, MODEL, authority.server_config(MODEL_HOST)?, Arc::clone(&record), move |request| {
        served.answer(request)
    })
    .await?;
    web::start(&tasks, OUTSIDE, authority.server_config(OUTSIDE_HOST)?, Arc::clone(&record), |_| web::text(200, "out"))
        .await?;
    // Without a bot no token is right: there is always somebody at the address.
    let telegram_token = match &settings.telegram_token_file {
        Some(file) => read_secret(file).context("the Telegram bot's token")?,
        None => Zeroizing::new(format!("0:{}", uuid::Uuid::new_v4().simple())),
    };
    let telegram = Arc::new(telegram::Telegram::new(telegram_token));
    let (tls, asked) = (authority.server_config(TELEGRAM_HOST)?, Arc::clone(&telegram));
    web::serve_at(&tasks, (TELEGRAM, 443).into(), tls, Arc::clone(&record), move |request| {
        let telegram = Arc::clone(&asked);
        async move { telegram.answer(&request).await }
    })
    .await?;
    control::start(&tasks, &settings.control_socket, record, Some(telegram), Some(model))?;
    tracing::info!("the drill's internet is up");

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        reason = tasks.critical_end() => anyhow::bail!(reason),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Spawns the accept loop of a double: critical, because a drill without it proves nothing.
fn critical(tasks: &Tasks, name: String, work: impl std::future::Future<Output = anyhow::Result<()>> + Send + 'static) {
    tasks.spawn(name, OnEnd::Critical, work);
}
