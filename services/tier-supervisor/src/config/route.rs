//! Where model calls go: an attested route (TEE), any OpenAI-compatible endpoint, or both.
//!
//! Owns the shape of an endpoint's address, and which class of tiers has which route. Knows no key: only the names of
//! secrets. Whether a model exists at its provider is secret-broker's to find out, once the route stands.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use assistant_proto::config::Confidentiality;
use assistant_proto::name::{HostName, SecretName};
use serde::Deserialize;

/// An OpenAI-compatible endpoint of the owner's choice. Nothing attests it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// `https://host[:port]/v1`, without a final slash. Also `http://` and an IPv4 address: a server at home.
    pub base_url: String,
    /// Name of the secret that is sent as bearer token.
    pub key_secret: Option<SecretName>,
    /// Name the tiers use -> name upstream.
    pub models: BTreeMap<String, String>,
}

/// PrivateMode: its proxy verifies the enclave before it sends a byte.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeeSettings {
    /// Name of the secret with the account's key.
    pub key_secret: SecretName,
    /// Name the tiers use -> name upstream.
    pub models: BTreeMap<String, String>,
}

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain. Only for a server at home.
    Http,
    /// With TLS.
    Https,
}

/// The host of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointHost {
    /// A name, resolved by Squid.
    Name(HostName),
    /// An address, private ones included.
    Address(Ipv4Addr),
}

impl fmt::Display for EndpointHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A base URL, taken apart: the one host, port and scheme that are opened for the model route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its scheme.
    pub scheme: Scheme,
    /// Its host.
    pub host: EndpointHost,
    /// Its port; 80 or 443 where the URL names none.
    pub port: u16,
    /// Path with a leading slash and no final one; empty when there is none.
    pub path: String,
}

/// Why a base URL cannot be used. Repeats nothing of it: someone may have pasted a key there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not of the accepted form.
    #[error("it must be http(s)://<host name or IPv4 address>[:port]/<path>, without user, query or final slash")]
    Form,
    /// A container has a loopback of its own.
    #[error(
        "a loopback address is not this machine's from inside a container; use the address that this machine, or the \
         server, has on your network"
    )]
    Loopback,
    /// Not the address of one server.
    #[error("this is not the address of a server")]
    NotAServer,
}

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (Scheme::Https, rest),
            (_, Some(rest)) => (Scheme::Http, rest),
            _ => return Err(EndpointError::Form),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
        if path.ends_with('/') || path.contains("..") || path.contains("//") || !path.bytes().all(plain) {
            return Err(EndpointError::Form);
        }
        let (host, port) = match (authority.rsplit_once(':'), scheme) {
            (Some((host, port)), _) if port.bytes().all(|b| b.is_ascii_digit()) => {
                (host, port.parse().ok().filter(|port| *port != 0).ok_or(EndpointError::Form)?)
            }
            (Some(_), _) => return Err(EndpointError::Form),
            (None, Scheme::Https) => (authority, 443),
            (None, Scheme::Http) => (authority, 80),
        };
        let host = match host.parse::<Ipv4Addr>() {
            Ok(address) if address.is_loopback() => return Err(EndpointError::Loopback),
            // Link-local is where clouds keep the machine's own credentials.
            Ok(address)
                if address.is_unspecified()
                    || address.is_multicast()
                    || address.is_broadcast()
                    || address.is_link_local() =>
            {
                return Err(EndpointError::NotAServer);
            }
            Ok(address) => EndpointHost::Address(address),
            Err(_) if host == "localhost" || host.ends_with(".localhost") => return Err(EndpointError::Loopback),
            Err(_) => EndpointHost::Name(host.parse().map_err(|_| EndpointError::Form)?),
        };
        Ok(Self { scheme, host, port, path })
    }
}

impl ModelSettings {
    /// The base URL, taken apart; none when it is not of the accepted form.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.base_url.parse().ok()
    }

    /// The endpoint's host name; none when it is an address.
    #[must_use]
    pub fn host(&self) -> Option<HostName> {
        match self.endpoint()?.host {
            EndpointHost::Name(name) => Some(name),
            EndpointHost::Address(_) => None,
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.base_url.parse::<Endpoint>() {
            problems.push(format!("\"model.base_url\": {error}"));
        }
        if self.models.is_empty() {
            problems.push("\"model.models\" is empty: name at least one model".to_owned());
        }
        problems
    }
}

/// The routes of a stack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Routes<'a> {
    pub(super) open: Option<&'a ModelSettings>,
    pub(super) tee: Option<&'a TeeSettings>,
}

impl<'a> Routes<'a> {
    /// The class of a tier that does not say.
    pub(super) fn default_class(self) -> Confidentiality {
        if self.tee.is_some() { Confidentiality::Required } else { Confidentiality::None }
    }

    /// The models of a class; none where it has no route.
    pub(super) fn models(self, class: Confidentiality) -> Option<&'a BTreeMap<String, String>> {
        match class {
            Confidentiality::Required => self.tee.map(|tee| &tee.models),
            Confidentiality::None => self.open.map(|open| &open.models),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn endpoints() {
        for (url, scheme, host, port, path) in [
            ("https://model.drill.example/v1", Scheme::Https, "model.drill.example", 443, "/v1"),
            ("https://model.drill.example:8443/openai/v1", Scheme::Https, "model.drill.example", 8443, "/openai/v1"),
            ("https://model.drill.example", Scheme::Https, "model.drill.example", 443, ""),
            ("http://192.168.1.20:11434/v1", Scheme::Http, "192.168.1.20", 11434, "/v1"),
            ("http://llm.home.arpa/v1", Scheme::Http, "llm.home.arpa", 80, "/v1"),
        ] {
            let endpoint: Endpoint = url.parse().unwrap();
            assert_eq!(
                (endpoint.scheme, endpoint.host.to_string().as_str(), endpoint.port, endpoint.path.as_str()),
                (scheme, host, port, path),
                "{url}"
            );
        }
        for (url, error) in [
            ("", EndpointError::Form),
            ("model.drill.example/v1", EndpointError::Form),
            ("ftp://model.drill.example/v1", EndpointError::Form),
            ("https://model.drill.example/v1/", EndpointError::Form),
            ("https://user@model.drill.example/v1", EndpointError::Form),
            ("https://model.drill.example/v1?x=y", EndpointError::Form),
            ("https://model.drill.example/../v1", EndpointError::Form),
            ("https://model.drill.example:0/v1", EndpointError::Form),
            ("https://model.drill.example:x/v1", EndpointError::Form),
            ("https://[::1]/v1", EndpointError::Form),
            ("https://Model.drill.example/v1", EndpointError::Form),
            ("http://nas:11434/v1", EndpointError::Form),
            ("http://127.0.0.1:11434/v1", EndpointError::Loopback),
            ("http://localhost:11434/v1", EndpointError::Loopback),
            ("http://169.254.169.254/v1", EndpointError::NotAServer),
            ("http://0.0.0.0:11434/v1", EndpointError::NotAServer),
        ] {
            assert_eq!(url.parse::<Endpoint>(), Err(error), "{url}");
        }
    }
}
