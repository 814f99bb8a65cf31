//! Where model calls go: the one URL of the configuration, parsed once into what is dialled, verified and logged.

use assistant_proto::name::HostName;

/// A parsed `base_url`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Dialled, and verified by TLS.
    pub host: HostName,
    /// 443 unless the URL says otherwise.
    pub port: u16,
    /// Path of chat completions below the base.
    pub path: String,
}

/// A `base_url` that cannot be used. Does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "model.base_url must be https://<host name>[:<port>]/<path> without user, query, fragment or final slash, for example \
     https://model.example/v1"
)]
pub struct UnusableRoute;

impl Route {
    /// Parses a `base_url`.
    ///
    /// # Errors
    /// [`UnusableRoute`] for everything that is not the one spelling.
    pub fn parse(base_url: &str) -> Result<Self, UnusableRoute> {
        let rest = base_url.strip_prefix("https://").ok_or(UnusableRoute)?;
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0') => {
                (host, port.parse().map_err(|_| UnusableRoute)?)
            }
            Some(_) => return Err(UnusableRoute),
            None => (authority, 443),
        };
        let segment = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.');
        let plain = path.bytes().all(segment)
            && !path.ends_with('/')
            && !path.contains("//")
            && path.split('/').all(|part| part != "." && part != "..");
        if !plain {
            return Err(UnusableRoute);
        }
        Ok(Self { host: host.parse().map_err(|_| UnusableRoute)?, port, path: format!("{path}/chat/completions") })
    }

    /// As it stands in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == 443 { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn one_spelling() {
        let route = Route::parse("https://model.drill.example/v1").unwrap();
        assert_eq!(
            (route.host.as_str(), route.port, route.path.as_str()),
            ("model.drill.example", 443, "/v1/chat/completions")
        );
        assert_eq!(route.authority(), "model.drill.example");
        let route = Route::parse("https://a.example:8443").unwrap();
        assert_eq!(
            (route.port, route.path.as_str(), route.authority().as_str()),
            (8443, "/chat/completions", "a.example:8443")
        );
        for bad in [
            "",
            "http://a.example/v1",
            "https://a.example/v1/",
            "https://a.example/",
            "https://u@a.example/v1",
            "https://a.example/v1?x",
            "https://a.example/v1#x",
            "https://10.0.0.1/v1",
            "https://a.example:/v1",
            "https://a.example:99999/v1",
            "https://a.example:0443/v1",
            "https://A.example/v1",
            "https://a.example//v1",
            "https://a.example/../v1",
            "https://a.example/%2e/v1",
            "https://a/v1",
            "https://a.example:+443/v1",
        ] {
            assert_eq!(Route::parse(bad), Err(UnusableRoute), "{bad}");
        }
    }
}
