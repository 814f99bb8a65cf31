//! Where a request goes: one strict parse of an authority, used for the decision, the certificate, the upstream
//! connection and the log.

use std::fmt;

use assistant_proto::name::HostName;

use crate::denial::Denial;

/// Longer authorities cannot be valid: 253 characters of name, a dot, a colon and five digits.
const MOST_AUTHORITY: usize = 260;
/// The port of HTTPS.
pub const HTTPS: u16 = 443;

/// A host and port, in their one spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    host: HostName,
    port: u16,
}

/// Why an authority was refused. Never repeats it: it may hold credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing there.
    #[error("there is no host")]
    Empty,
    /// Longer than any valid one.
    #[error("the authority is longer than {MOST_AUTHORITY} characters")]
    TooLong,
    /// `user@host`, `user:password@host`.
    #[error("the authority has a user part")]
    UserInfo,
    /// `%61.example`: a second spelling of a name.
    #[error("the host is percent-encoded")]
    PercentEncoding,
    /// Something else than ASCII: names travel in their ASCII form (`xn--`).
    #[error("the host is not ASCII")]
    NotAscii,
    /// An IP address in any spelling.
    #[error("the host is an IP address")]
    Address,
    /// No colon, no digits, a leading zero, a sign, more than 65535.
    #[error("the port is missing or not a plain decimal number")]
    Port,
    /// Not a DNS name of at least two labels.
    #[error("the host is not a DNS host name of at least two labels")]
    NotAHost,
    /// A label that begins with `xn--` but decodes to nothing valid (RFC 5891).
    #[error("the host has a label that is not valid IDNA")]
    NotIdna,
}

impl TargetError {
    /// As a refusal.
    #[must_use]
    pub fn denial(self) -> Denial {
        let (reason, fix) = match self {
            Self::Address => ("ip-literal", "use the host's name: addresses are never allowed, in any spelling"),
            Self::UserInfo => ("userinfo", "leave the user part out of the URL"),
            Self::Port => ("malformed-port", "use port 443"),
            Self::Empty | Self::TooLong | Self::PercentEncoding | Self::NotAscii | Self::NotAHost | Self::NotIdna => {
                ("malformed-host", "use the host's DNS name in plain ASCII, for example www.example.org:443")
            }
        };
        Denial::new(reason, self.to_string(), fix)
    }
}

impl Target {
    /// Parses the authority of a CONNECT: `host:port`, the port always there (RFC 9110, section 9.3.6).
    ///
    /// Upper case is folded and one final dot is dropped (both mean the same name); everything else that is not the
    /// canonical spelling is refused.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn parse_authority(text: &str) -> Result<Self, TargetError> {
        Self::parse(text, None)
    }

    /// Parses a `Host` header within an HTTPS connection, or the authority of an `https:` URL: the port may be left out
    /// and is 443 then.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn parse_https(text: &str) -> Result<Self, TargetError> {
        Self::parse(text, Some(HTTPS))
    }

    /// A target whose host is known to be right.
    #[must_use]
    pub fn new(host: HostName, port: u16) -> Self {
        Self { host, port }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// As a `Host` header within HTTPS: without the default port.
    #[must_use]
    pub fn host_header(&self) -> String {
        if self.port == HTTPS { self.host.to_string() } else { self.to_string() }
    }

    fn parse(text: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text.len() > MOST_AUTHORITY {
            return Err(TargetError::TooLong);
        }
        if !text.is_ascii() {
            return Err(TargetError::NotAscii);
        }
        if text.contains('@') {
            return Err(TargetError::UserInfo);
        }
        // Brackets and more than one colon only occur in IPv6 literals, with zone ids or without.
        if text.contains(['[', ']']) || text.bytes().filter(|byte| *byte == b':').count() > 1 {
            return Err(TargetError::Address);
        }
        if text.contains('%') {
            return Err(TargetError::PercentEncoding);
        }
        let (host, port) = match (text.split_once(':'), default_port) {
            (Some((host, port)), _) => (host, parse_port(port)?),
            (None, Some(port)) => (text, port),
            (None, None) => return Err(TargetError::Port),
        };
        Ok(Self { host: parse_host(host)?, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn parse_port(text: &str) -> Result<u16, TargetError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).ok_or(TargetError::Port)
}

/// Parses a host name as a peer spells it, for example in SNI: folds case, drops one final dot.
///
/// # Errors
/// See [`TargetError`].
pub fn parse_host(text: &str) -> Result<HostName, TargetError> {
    if text.is_empty() {
        return Err(TargetError::Empty);
    }
    if !text.is_ascii() {
        return Err(TargetError::NotAscii);
    }
    let folded = text.to_ascii_lowercase();
    let name = folded.strip_suffix('.').unwrap_or(&folded);
    // WHATWG URL: a host whose last label is a number is an IPv4 address, in decimal, octal, hex and short forms.
    if name.rsplit('.').next().is_some_and(is_number) {
        return Err(TargetError::Address);
    }
    let host: HostName = name.parse().map_err(|_| TargetError::NotAHost)?;
    if name.split('.').any(|label| label.starts_with("xn--")) && !is_idna(name) {
        return Err(TargetError::NotIdna);
    }
    Ok(host)
}

fn is_number(label: &str) -> bool {
    let hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit())) || label.strip_prefix("0x").is_some_and(hex)
}

/// Whether the ASCII form decodes to Unicode that encodes to the same ASCII form.
fn is_idna(name: &str) -> bool {
    let (unicode, valid) = idna::domain_to_unicode(name);
    valid.is_ok() && idna::domain_to_ascii_strict(&unicode).is_ok_and(|ascii| ascii == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_of_a_name() {
        for (text, expected) in [
            ("serv.amazingmarvin.com:443", "serv.amazingmarvin.com:443"),
            ("Serv.AmazingMarvin.COM:443", "serv.amazingmarvin.com:443"),
            ("a.example.:443", "a.example:443"),
            ("xn--bcher-kva.example:8443", "xn--bcher-kva.example:8443"),
            ("1.2.3.4.example:443", "1.2.3.4.example:443"),
        ] {
            assert_eq!(Target::parse_authority(text).unwrap().to_string(), expected);
        }
        assert_eq!(Target::parse_https("A.example").unwrap().to_string(), "a.example:443");
        assert_eq!(Target::parse_https("a.example:8443").unwrap().host_header(), "a.example:8443");
        assert_eq!(Target::parse_https("a.example:443").unwrap().host_header(), "a.example");
    }

    #[test]
    fn everything_else_is_refused() {
        use TargetError as E;
        let table: &[(&str, E)] = &[
            ("", E::Empty),
            (":443", E::Empty),
            ("a.example", E::Port),
            ("a.example:", E::Port),
            ("a.example:0", E::Port),
            ("a.example:0443", E::Port),
            ("a.example:+443", E::Port),
            ("a.example:443 ", E::Port),
            ("a.example:65536", E::Port),
            ("a.example:4 43", E::Port),
            ("a.example:https", E::Port),
            ("user@a.example:443", E::UserInfo),
            ("user:pw@a.example:443", E::UserInfo),
            ("allowed.example:443@evil.example:443", E::UserInfo),
            ("127.0.0.1:443", E::Address),
            ("127.1:443", E::Address),
            ("2130706433:443", E::Address),
            ("0177.0.0.1:443", E::Address),
            ("0x7f.1:443", E::Address),
            ("0x7f000001:443", E::Address),
            ("0X7F000001:443", E::Address),
            ("0x:443", E::Address),
            ("a.example.0x7f:443", E::Address),
            ("127.0.0.1.:443", E::Address),
            ("[::1]:443", E::Address),
            ("::1:443", E::Address),
            ("[::ffff:127.0.0.1]:443", E::Address),
            ("[fe80::1%25eth0]:443", E::Address),
            ("[v1.x]:443", E::Address),
            ("%61.example:443", E::PercentEncoding),
            ("a.example%2ecom:443", E::PercentEncoding),
            ("a.example%00:443", E::PercentEncoding),
            ("localhost:443", E::NotAHost),
            ("a..example:443", E::NotAHost),
            (".a.example:443", E::NotAHost),
            ("a.example..:443", E::NotAHost),
            ("-a.example:443", E::NotAHost),
            ("a_b.example:443", E::NotAHost),
            ("a.example/x:443", E::NotAHost),
            ("a.example\\b:443", E::NotAHost),
            ("a b.example:443", E::NotAHost),
            ("a.example\t:443", E::NotAHost),
            ("a.example\0:443", E::NotAHost),
            ("b\u{fc}cher.example:443", E::NotAscii),
            ("\u{ff41}.example:443", E::NotAscii),
            ("xn--a.example:443", E::NotIdna),
            ("xn--.example:443", E::NotAHost),
        ];
        for (text, expected) in table {
            assert_eq!(Target::parse_authority(text), Err(*expected), "{text:?}");
        }
        assert_eq!(Target::parse_authority(&format!("{}.example:443", "a.".repeat(150))), Err(E::TooLong));
        assert_eq!(Target::parse_https("a.example:"), Err(E::Port));
    }

    proptest! {
        #[test]
        fn parsing_is_total_and_its_result_is_its_own_spelling(text in "\\PC{0,40}") {
            if let Ok(target) = Target::parse_authority(&text) {
                prop_assert_eq!(Target::parse_authority(&target.to_string()), Ok(target.clone()));
                prop_assert!(target.host().as_str().parse::<std::net::IpAddr>().is_err());
            }
        }

        #[test]
        fn addresses_never_pass(address in any::<u32>(), sixteen in any::<u128>(), port in 1_u16..) {
            let four = std::net::Ipv4Addr::from(address);
            let [a, b, c, d] = four.octets();
            let six = std::net::Ipv6Addr::from(sixteen);
            for host in [
                four.to_string(), address.to_string(), format!("{address:#x}"), format!("0{address:o}"),
                format!("{a:#x}.{b}.{c:#x}.{d:#o}").replace("0o", "0"), format!("{a}.{}", address & 0xff_ffff),
                format!("{four}."), format!("[{six}]"), format!("[::ffff:{four}]"), six.to_string(),
            ] {
                let text = format!("{host}:{port}");
                prop_assert!(Target::parse_authority(&text).is_err(), "{}", text);
            }
        }
    }
}
