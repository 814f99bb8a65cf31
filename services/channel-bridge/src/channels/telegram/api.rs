//! Calls of the Bot API (<https://core.telegram.org/bots/api>). The token is part of every address, so no error and no
//! `Debug` of this module holds an address.
//!
//! What is sent has frankenstein's types. What comes back is read with types of our own that want nothing but what is
//! used: an answer with something new in it must not look like a failure, or a message would be sent twice and a batch of
//! updates never be read.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use service_kit::text::{chain, harmless_line};
use zeroize::Zeroizing;

/// A batch of a hundred updates of the longest kind has a few hundred kilobytes.
const MOST_ANSWER: usize = 8 * 1024 * 1024;
/// Longest description that is repeated, in characters.
const MOST_DESCRIPTION: usize = 200;
/// Longest wait that is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No connection: nothing was sent.
    #[error("Telegram cannot be reached through Squid ({0})")]
    Unreached(String),
    /// It was sent, and there is no answer that says what became of it.
    #[error("Telegram did not answer properly ({0})")]
    Unclear(String),
    /// Too many calls.
    #[error("Telegram wants to be left alone for {} seconds", .0.as_secs())]
    TooMany(Duration),
    /// Somebody else asks for the updates of the same bot.
    #[error("{0}")]
    Conflict(&'static str),
    /// The token is not (any more) that of a bot.
    #[error("Telegram does not accept the bot's token; get a new one from @BotFather and run deploy/up.sh again")]
    Token,
    /// Telegram understood and said no.
    #[error("Telegram refused it: {code} {description}")]
    Refused {
        /// Its status.
        code: u16,
        /// Its words, made harmless.
        description: String,
        /// Where the chat is now, where that is the reason.
        moved_to: Option<i64>,
    },
}

/// The bot as Telegram knows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Me {
    /// Its id.
    pub id: i64,
    /// Its name, without the `@`.
    pub username: String,
}

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sent {
    /// Its id in the chat.
    pub message_id: i64,
}

#[derive(Debug, Deserialize)]
struct Envelope<T> {
    ok: bool,
    result: Option<T>,
    error_code: Option<u16>,
    description: Option<String>,
    parameters: Option<Parameters>,
}

#[derive(Debug, Deserialize)]
struct Parameters {
    retry_after: Option<u64>,
    migrate_to_chat_id: Option<i64>,
}

/// One bot's access.
pub struct Api {
    client: reqwest::Client,
    /// Up to the name of the method, the token included.
    base: Zeroizing<String>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// Whether a text can be a bot's token: a number, a colon, and what may stand in an address as it is.
    #[must_use]
    pub fn is_token(text: &str) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        text.len() <= 256
            && text.split_once(':').is_some_and(|(id, secret)| {
                !id.is_empty()
                    && id.bytes().all(|byte| byte.is_ascii_digit())
                    && !secret.is_empty()
                    && secret.bytes().all(plain)
            })
    }

    /// Access with a token.
    #[must_use]
    pub fn new(client: reqwest::Client, api_url: &str, token: &Zeroizing<String>) -> Self {
        Self { client, base: Zeroizing::new(format!("{api_url}/bot{}", token.as_str())) }
    }

    /// Calls a method. `within` is for everything, from the connection to the last byte of the answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call<P, T>(&self, method: &str, params: &P, within: Duration) -> Result<T, ApiError>
    where
        P: Serialize + Sync,
        T: DeserializeOwned,
    {
        let url = Zeroizing::new(format!("{}/{method}", self.base.as_str()));
        let body =
            serde_json::to_vec(params).map_err(|_| ApiError::Unreached("the call cannot be encoded".to_owned()))?;
        let sent = self
            .client
            .post(url.as_str())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .timeout(within)
            .body(body)
            .send()
            .await;
        let mut response = sent.map_err(failed)?;
        let status = response.status().as_u16();
        let mut answer = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| ApiError::Unclear(told(error)))? {
            if answer.len().saturating_add(piece.len()) > MOST_ANSWER {
                return Err(ApiError::Unclear("the answer is too long".to_owned()));
            }
            answer.extend_from_slice(&piece);
        }
        read(status, &answer)
    }
}

fn read<T: DeserializeOwned>(status: u16, answer: &[u8]) -> Result<T, ApiError> {
    let Ok(envelope) = serde_json::from_slice::<Envelope<T>>(answer) else {
        return Err(match status {
            401 | 404 => ApiError::Token,
            429 => ApiError::TooMany(Duration::from_secs(1)),
            _ => ApiError::Unclear(format!("status {status}")),
        });
    };
    if let (true, Some(result)) = (envelope.ok, envelope.result) {
        return Ok(result);
    }
    let code = envelope.error_code.unwrap_or(status);
    let description = harmless_line(&envelope.description.unwrap_or_default(), MOST_DESCRIPTION);
    let retry_after = envelope.parameters.as_ref().and_then(|parameters| parameters.retry_after);
    let moved_to = envelope.parameters.as_ref().and_then(|parameters| parameters.migrate_to_chat_id);
    Err(match code {
        // Telegram answers an unknown token with 401, and an unknown bot with 404.
        401 | 404 => ApiError::Token,
        409 if description.contains("webhook") => ApiError::Conflict(
            "the bot has a webhook, so its messages go elsewhere; remove it (deleteWebhook), or use another bot",
        ),
        409 => ApiError::Conflict(
            "another program asks for the messages of the same bot; stop it, or give it a bot of its own",
        ),
        429 => ApiError::TooMany(Duration::from_secs(retry_after.unwrap_or(1)).min(LONGEST_WAIT)),
        400..=499 => ApiError::Refused { code, description, moved_to },
        _ => ApiError::Unclear(format!("status {code}")),
    })
}

fn failed(error: reqwest::Error) -> ApiError {
    if error.is_connect() || error.is_builder() {
        ApiError::Unreached(told(error))
    } else {
        ApiError::Unclear(told(error))
    }
}

/// What an error says, without the address it is about.
fn told(error: reqwest::Error) -> String {
    let text = chain(&error.without_url());
    harmless_line(&text, MOST_DESCRIPTION)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn answered(status: u16, answer: &str) -> Result<Sent, ApiError> {
        read(status, answer.as_bytes())
    }

    #[test]
    fn answers_are_told_apart() {
        let new = r#"{"ok":true,"result":{"message_id":7,"brand_new":{"x":[1]}},"extra":1}"#;
        assert_eq!(answered(200, new), Ok(Sent { message_id: 7 }));
        let many = r#"{"ok":false,"error_code":429,"description":"Too Many Requests: retry after 3","parameters":{"retry_after":3}}"#;
        assert_eq!(answered(429, many), Err(ApiError::TooMany(Duration::from_secs(3))));
        let endless = r#"{"ok":false,"error_code":429,"parameters":{"retry_after":99999999999}}"#;
        assert_eq!(answered(429, endless), Err(ApiError::TooMany(LONGEST_WAIT)));
        let bad = r#"{"ok":false,"error_code":400,"description":"Bad Request: can't parse entities\u001b"}"#;
        assert!(
            matches!(answered(400, bad), Err(ApiError::Refused { code: 400, description, .. }) if description.ends_with("\\u{1b}"))
        );
        let moved =
            r#"{"ok":false,"error_code":400,"description":"upgraded","parameters":{"migrate_to_chat_id":-1001}}"#;
        assert!(matches!(answered(400, moved), Err(ApiError::Refused { moved_to: Some(-1001), .. })));
        let two = r#"{"ok":false,"error_code":409,"description":"Conflict: terminated by other getUpdates request"}"#;
        assert!(matches!(answered(409, two), Err(ApiError::Conflict(why)) if why.contains("another program")));
        let hook =
            r#"{"ok":false,"error_code":409,"description":"Conflict: can't use getUpdates while webhook is active"}"#;
        assert!(matches!(answered(409, hook), Err(ApiError::Conflict(why)) if why.contains("webhook")));
        assert_eq!(
            answered(401, r#"{"ok":false,"error_code":401,"description":"Unauthorized"}"#),
            Err(ApiError::Token)
        );
        for (status, answer) in
            [(502, "<html>"), (500, r#"{"ok":false,"error_code":500}"#), (200, "{"), (200, r#"{"ok":true}"#)]
        {
            assert!(matches!(answered(status, answer), Err(ApiError::Unclear(_))), "{status} {answer}");
        }
    }

    #[test]
    fn what_can_be_a_token() {
        assert!(Api::is_token("123456:AAE-x_y9"));
        for bad in ["", "123456", "123456:", ":abc", "12a:abc", "1:a/b", "1:a b", "1:a?b", "1:a\n"] {
            assert!(!Api::is_token(bad), "{bad:?}");
        }
    }

    #[test]
    fn nobody_sees_the_token() {
        let token = Zeroizing::new("123456:secret-part".to_owned());
        let client = reqwest::Client::builder().tls_backend_preconfigured(plain_tls()).build().unwrap();
        let api = Api::new(client, "https://api.telegram.org", &token);
        assert!(!format!("{api:?}").contains("secret-part"));
    }

    fn plain_tls() -> rustls::ClientConfig {
        rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    }
}
