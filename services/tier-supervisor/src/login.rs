//! `tier-supervisor login`: asks the running supervisor for links that log a browser in, and prints them. Whoever may open
//! its control socket may have them.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use assistant_proto::tier::CreateLoginLinksRequest;
use assistant_proto::tier::tier_service_client::TierServiceClient;
use service_kit::text::{harmless, harmless_line};

use crate::status::{self, StatusError};

/// Each link waits for the gates' process, which answers at once or not at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// For which sites.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Name of a site, as the status lists them: prints its link alone. Without it, a line for each.
    pub site: Option<String>,
    /// Control socket of the supervisor.
    #[arg(long, default_value = status::SOCKET)]
    pub socket: PathBuf,
}

/// Why there are no links.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The supervisor cannot be reached.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// No page is open.
    #[error("no page is open; tier-supervisor status says why")]
    None,
    /// Standard output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// Prints the links.
///
/// # Errors
/// See [`LoginError`].
pub async fn run(arguments: &Arguments) -> Result<std::process::ExitCode, LoginError> {
    let links = async {
        let channel = status::connect(&arguments.socket).await?;
        let site = arguments.site.clone().unwrap_or_default();
        let asked = TierServiceClient::new(channel).create_login_links(CreateLoginLinksRequest { site }).await;
        let answer = asked.map_err(|status| LoginError::Refused(harmless(status.message(), 4000)))?;
        Ok::<_, LoginError>(answer.into_inner().links)
    };
    let links = tokio::time::timeout(ANSWER_WITHIN, links)
        .await
        .unwrap_or_else(|_| Err(StatusError::NoAnswer(format!("not within {} s", ANSWER_WITHIN.as_secs())).into()))?;
    if links.is_empty() {
        return Err(LoginError::None);
    }
    let width = links.iter().map(|link| link.site.chars().count()).max().unwrap_or_default();
    let mut output = std::io::stdout().lock();
    for link in &links {
        let (site, url) = (harmless_line(&link.site, 63), harmless_line(&link.url, 400));
        match arguments.site {
            Some(_) => writeln!(output, "{url}")?,
            None => writeln!(output, "{site:<width$}  {url}")?,
        }
    }
    Ok(std::process::ExitCode::SUCCESS)
}
