//! Path and query of a request, parsed once into the spelling that is matched *and* sent.
//!
//! RFC 3986, sections 6.2.2 and 5.2.4: hex digits of escapes upper case, unreserved characters never escaped, dot
//! segments resolved. Servers disagree about encoded slashes, backslashes, empty segments, path parameters before dots
//! and double encoding, so whatever two of them could read differently is refused rather than normalised.

use std::fmt;

use percent_encoding::percent_decode;

use crate::denial::Denial;

/// Longest path and longest query, in bytes as received.
pub const MOST: usize = 8 * 1024;

/// Why a request target was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not an absolute path (`/...`).
    #[error("the request target does not begin with '/'")]
    NotAbsolute,
    /// See [`MOST`].
    #[error("the path or query is longer than {MOST} bytes")]
    TooLong,
    /// `%` without two hex digits.
    #[error("there is a '%' that is not followed by two hex digits")]
    BrokenEscape,
    /// `%2f`, `%5c` or a plain backslash.
    #[error("the path has an encoded slash or a backslash, which servers read differently")]
    HiddenSlash,
    /// A byte below 0x20 or 0x7f, plain or encoded.
    #[error("the path has a control character")]
    Control,
    /// A character that has to be encoded, and which parsers treat differently.
    #[error("there is a character that does not belong into a request target")]
    Forbidden,
    /// Escapes that do not form UTF-8.
    #[error("the path is not UTF-8")]
    NotUtf8,
    /// An escape that decodes to another escape.
    #[error("the path is encoded twice")]
    DoubleEncoding,
    /// `//`.
    #[error("the path has an empty segment, which servers read differently")]
    EmptySegment,
    /// `/..;x/`.
    #[error("the path has a dot segment with a parameter, which servers read differently")]
    DotParameter,
}

impl PathError {
    /// As a refusal.
    #[must_use]
    pub fn denial(self) -> Denial {
        Denial::new("malformed-path", self.to_string(), "send the path in its plain form")
    }
}

/// A path in its one spelling. Begins with `/`; segments are what stands between slashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestPath(String);

impl RequestPath {
    /// Parses the path of an origin-form request target (RFC 9112, section 3.2.1), without query.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > MOST {
            return Err(PathError::TooLong);
        }
        let rest = text.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
        let mut segments: Vec<String> = Vec::new();
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let segment = normalise(part)?;
            match segment.as_str() {
                // RFC 3986, section 5.2.4: at the end they leave the directory, that is a final slash.
                "." | ".." => {
                    if segment == ".." {
                        segments.pop();
                    }
                    if last {
                        segments.push(String::new());
                    }
                }
                "" if !last => return Err(PathError::EmptySegment),
                _ => segments.push(segment),
            }
        }
        Ok(Self(format!("/{}", segments.join("/"))))
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands between the slashes, in order. The path `/` has one empty segment; a final slash makes an empty last
    /// one. Empty segments occur nowhere else.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.strip_prefix('/').unwrap_or_default().split('/')
    }
}

impl fmt::Display for RequestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One segment in its one spelling.
pub(crate) fn normalise(segment: &str) -> Result<String, PathError> {
    let mut bytes = segment.bytes();
    let mut wire = String::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            match byte {
                0..=0x1f | 0x7f => return Err(PathError::Control),
                b'\\' => return Err(PathError::HiddenSlash),
                b' ' | b'#' | b'?' | b'/' => return Err(PathError::Forbidden),
                _ => push(&mut wire, byte, is_pchar(byte)),
            }
            continue;
        }
        let decoded = escape(bytes.next(), bytes.next()).ok_or(PathError::BrokenEscape)?;
        match decoded {
            b'/' | b'\\' => return Err(PathError::HiddenSlash),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            _ => push(&mut wire, decoded, is_unreserved(decoded)),
        }
    }
    let decoded = percent_decode(wire.as_bytes()).decode_utf8().map_err(|_| PathError::NotUtf8)?;
    // U+0080 to U+009F are control characters too, for whatever reads the path on a terminal.
    if decoded.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    if has_escape(decoded.as_bytes()) {
        return Err(PathError::DoubleEncoding);
    }
    if let Some((name, _)) = decoded.split_once(';')
        && (name == "." || name == "..")
    {
        return Err(PathError::DotParameter);
    }
    Ok(wire)
}

fn push(wire: &mut String, byte: u8, plain: bool) {
    if plain {
        wire.push(char::from(byte));
    } else {
        wire.push_str(&format!("%{byte:02X}"));
    }
}

fn escape(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)?.saturating_mul(16).saturating_add(digit(low)?))
}

fn has_escape(bytes: &[u8]) -> bool {
    bytes
        .windows(3)
        .any(|window| matches!(window, [b'%', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()))
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

/// A query, as received and as sent: its order and spelling are the server's business. No rule matches on it yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Query(String);

impl Query {
    /// Parses what follows `?`.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > MOST {
            return Err(PathError::TooLong);
        }
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    escape(bytes.next(), bytes.next()).ok_or(PathError::BrokenEscape)?;
                }
                0..=0x1f | 0x7f => return Err(PathError::Control),
                b' ' | b'#' | b'\\' | 0x80.. => return Err(PathError::Forbidden),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names of the parameters, decoded once, `+` as space.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.0.split(['&', ';']).map(|pair| {
            let name = pair.split('=').next().unwrap_or_default().replace('+', " ");
            percent_decode(name.as_bytes()).decode_utf8_lossy().into_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_of_a_path() {
        for (text, expected) in [
            ("/", "/"),
            ("/api/addTask", "/api/addTask"),
            ("/api/%61ddTask", "/api/addTask"),
            ("/api/%7euser", "/api/~user"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/../../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/a/", "/a/"),
            ("/a%3ab", "/a%3Ab"),
            ("/a:b", "/a:b"),
            ("/a%20b", "/a%20b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/{id}|x", "/%7Bid%7D%7Cx"),
            ("/100%25", "/100%25"),
            ("/...", "/..."),
            ("/a;v=1/b", "/a;v=1/b"),
        ] {
            assert_eq!(RequestPath::parse(text).map(|path| path.to_string()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_servers_read_differently_is_refused() {
        use PathError as E;
        for (text, expected) in [
            ("", E::NotAbsolute),
            ("api", E::NotAbsolute),
            ("*", E::NotAbsolute),
            ("https://a.example/", E::NotAbsolute),
            ("/a%2fb", E::HiddenSlash),
            ("/a%2Fb", E::HiddenSlash),
            ("/a%5cb", E::HiddenSlash),
            ("/a\\b", E::HiddenSlash),
            ("/a%00b", E::Control),
            ("/a%0d%0ab", E::Control),
            ("/a\nb", E::Control),
            ("/a%7f", E::Control),
            ("/a%c2%85", E::Control),
            ("/a%ff", E::NotUtf8),
            ("/a%c0%ae", E::NotUtf8),
            ("/%c0%ae%c0%ae/x", E::NotUtf8),
            ("/a%", E::BrokenEscape),
            ("/a%2", E::BrokenEscape),
            ("/a%zz", E::BrokenEscape),
            ("/%252e%252e/x", E::DoubleEncoding),
            ("/a%252fb", E::DoubleEncoding),
            ("//a", E::EmptySegment),
            ("/a//b", E::EmptySegment),
            ("/..;/x", E::DotParameter),
            ("/a/..;x=1/b", E::DotParameter),
            ("/a/%2e.%3bx/b", E::DotParameter),
            ("/a b", E::Forbidden),
            ("/a#b", E::Forbidden),
            ("/a?b", E::Forbidden),
        ] {
            assert_eq!(RequestPath::parse(text), Err(expected), "{text:?}");
        }
        assert_eq!(RequestPath::parse(&format!("/{}", "a".repeat(MOST))), Err(E::TooLong));
    }

    #[test]
    fn queries_stay_as_they_are() {
        let query = Query::parse("b=2&a=%31&access%5Ftoken=x&q").unwrap();
        assert_eq!(query.as_str(), "b=2&a=%31&access%5Ftoken=x&q");
        assert_eq!(query.names().collect::<Vec<_>>(), ["b", "a", "access_token", "q"]);
        for bad in ["a b", "a\nb", "a#b", "a%2", "a\\b", "\u{e9}"] {
            assert!(Query::parse(bad).is_err(), "{bad:?}");
        }
    }

    /// Decodes like a server that is more generous than ours, once.
    fn decoded(path: &str) -> String {
        percent_decode(path.as_bytes()).decode_utf8().unwrap().into_owned()
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent(text in "/[a-c./%2eE5cf;: \\\\é0-9]{0,30}") {
            if let Ok(path) = RequestPath::parse(&text) {
                prop_assert_eq!(RequestPath::parse(path.as_str()), Ok(path.clone()), "{}", text);
            }
        }

        #[test]
        fn nobody_downstream_finds_a_dot_segment(text in "/[ab./%2eE5cfF;]{0,30}") {
            if let Ok(path) = RequestPath::parse(&text) {
                let twice = decoded(&decoded(path.as_str()));
                for form in [path.as_str().to_owned(), decoded(path.as_str()), twice] {
                    prop_assert!(!form.contains('\\'));
                    prop_assert!(!form.contains("//"));
                    for segment in form.split('/') {
                        let bare = segment.split(';').next().unwrap_or_default();
                        prop_assert!(bare != "." && bare != "..", "{} became {}", text, path);
                    }
                }
            }
        }
    }
}
