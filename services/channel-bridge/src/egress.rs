//! The way out for messengers: an HTTP client whose every connection is a CONNECT to Squid as the channels' user, then
//! TLS that is verified here, against exactly the roots of the configuration. It reads no proxy from the environment,
//! follows no redirect, and repeats nothing by itself.

use std::sync::Arc;
use std::time::Duration;

use assistant_proto::config::{ChannelEgress, Mode};
use rustls::ClientConfig;
use service_kit::files::{FileError, read_secret};
use service_kit::roots::{RootsError, trusted};

/// For TCP to Squid, CONNECT and TLS together.
const CONNECT: Duration = Duration::from_secs(15);
/// An idle connection is dropped before anybody on the way forgets it.
const IDLE: Duration = Duration::from_secs(30);
/// How long a connection to Squid says nothing before it is asked for, how often then, and how many answers may fail: a
/// Squid that is gone without a word is noticed within half a minute. What is dead behind Squid it does not show: for that
/// every call has an end.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
const KEEPALIVE_MISSED: u32 = 3;
/// What was sent and is not acknowledged after this long never will be.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Why there is no way out.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The password of the Squid user.
    #[error("no usable password for the Squid user of the channels")]
    Password(#[source] FileError),
    /// No certificates to believe messengers by.
    #[error("TLS with messengers")]
    Roots(#[from] RootsError),
    /// rustls refused its own defaults: a bug.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The client could not be made.
    #[error("the HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// Makes the client.
///
/// # Errors
/// See [`EgressError`].
pub fn client(mode: Mode, egress: &ChannelEgress) -> Result<reqwest::Client, EgressError> {
    let password = read_secret(&egress.squid_password_file).map_err(EgressError::Password)?;
    let proxy = reqwest::Proxy::all(format!("http://{}", egress.squid))
        .map_err(EgressError::Client)?
        .basic_auth(&egress.squid_user, &password);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(trusted(mode, &egress.upstream_roots)?)
        .with_no_client_auth();
    reqwest::Client::builder()
        .no_proxy()
        .proxy(proxy)
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .tcp_keepalive(KEEPALIVE)
        .tcp_keepalive_interval(KEEPALIVE_AGAIN)
        .tcp_keepalive_retries(KEEPALIVE_MISSED)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .build()
        .map_err(EgressError::Client)
}
