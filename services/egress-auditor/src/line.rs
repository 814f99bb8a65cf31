//! One line of Squid's access log, parsed strictly. Pure: no I/O, no clock.
//!
//! The format is `logformat` in `squid/squid.conf.template`: a JSON object whose text fields are URL-encoded by Squid
//! (`%#`), so that no byte a client sends can end a string. What this parser does *not* do is decode them: an encoded
//! name is exact and already harmless, and a name that needs decoding is no host name.
//!
//! Two things are not quite JSON. Squid writes a bare `-` where a number is missing (a connection that never became a
//! request has no transaction), and times as seconds with three decimals, which a float would round.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest line accepted. Squid caps request headers at 16 KiB; URL-encoding triples that, and two fields (host and
/// traceparent) can each be that long.
pub const MOST_LINE_BYTES: usize = 128 * 1024;

/// A point in time, in milliseconds since the epoch, as Squid logs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// As the system's type.
    #[must_use]
    pub fn system_time(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.0)).unwrap_or(UNIX_EPOCH)
    }
}

/// What Squid did, from its request status (`%Ss`). The suffixes Squid adds (`_ABORTED`, `_TIMEDOUT`) are in
/// [`Line::aborted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// `TCP_DENIED`: an access rule refused it. The status is 200 on a bump port (a fake answer), so only this counts.
    Denied,
    /// `TCP_TUNNEL`: a tunnel was closed; the line has the bytes.
    Tunnel,
    /// `TCP_MISS`: a plain request was answered. Only the owner's endpoint on the local network is spoken to so.
    Relayed,
    /// `NONE_NONE`: no rule refused and nothing was relayed: the decision line of a tunnel, or an error.
    Undecided,
}

/// `%ssl::bump_mode`: what Squid decided after it saw the ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BumpMode {
    /// `-`: it came to no decision.
    None,
    /// Relayed untouched.
    Splice,
    /// It ended while the ClientHello was awaited.
    Peek,
    /// As peek, for bumping.
    Stare,
    /// Answered by Squid itself: how a denied CONNECT is delivered.
    Bump,
    /// Cut off: the server name was missing, foreign or not allowed.
    Terminate,
}

/// Text as Squid encoded it: printable ASCII without quote and backslash. `-` is [`None`] around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Encoded(String);

impl Encoded {
    /// The encoded text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn accepts(text: &str) -> bool {
        text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
    }
}

impl TryFrom<String> for Encoded {
    type Error = LineError;
    fn try_from(text: String) -> Result<Self, LineError> {
        if Self::accepts(&text) { Ok(Self(text)) } else { Err(LineError::NotEncoded) }
    }
}

impl From<Encoded> for String {
    fn from(text: Encoded) -> String {
        text.0
    }
}

impl fmt::Display for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was written (`%ts`).
    pub logged_at: Millis,
    /// When the transaction began (`%tS`).
    pub started_at: Millis,
    /// Line number of this log (`%sn`); begins again at every reconfigure.
    pub sequence: u64,
    /// Master transaction (`%master_xaction`); begins again at every start of Squid.
    pub transaction: Option<u64>,
    /// Address of Squid's client: one of our services.
    pub client: Option<IpAddr>,
    /// Its port: with the address, what the two lines of a tunnel have in common.
    pub client_port: Option<u16>,
    /// Host of the CONNECT (`%#>rd`).
    pub host: Option<Encoded>,
    /// Port of the CONNECT (`%>rP`).
    pub port: Option<u16>,
    /// Address that was connected to.
    pub peer: Option<IpAddr>,
    /// Status sent to the client; 0 where none was.
    pub status: u16,
    /// What Squid did.
    pub outcome: Outcome,
    /// The client went away or took too long.
    pub aborted: bool,
    /// Bytes received from the client.
    pub bytes_from_client: u64,
    /// Bytes sent to the client.
    pub bytes_to_client: u64,
    /// Server name of the ClientHello.
    pub sni: Option<Encoded>,
    /// What was decided after the ClientHello.
    pub mode: BumpMode,
    /// Squid's error code, for example `ERR_CLIENT_GONE`.
    pub error: Option<Encoded>,
    /// The tier Squid's rules found (`%{tier}note`): only on lines that were allowed.
    pub tier: Option<Encoded>,
    /// The proxy user, not necessarily authenticated: on a 407 it is only claimed.
    pub user: Option<Encoded>,
    /// The `traceparent` header of the CONNECT: only on the first line of a tunnel.
    pub traceparent: Option<Encoded>,
}

/// What makes a line itself, in the file and in the feed alike. `sequence` and `transaction` begin again when Squid is
/// reconfigured or restarted; the time in milliseconds serves as their epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LineKey {
    logged_at: Millis,
    started_at: Millis,
    sequence: u64,
    transaction: Option<u64>,
    client: Option<IpAddr>,
    client_port: Option<u16>,
}

impl LineKey {
    /// As bytes for an event id.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        format!(
            "{} {} {} {:?} {:?} {:?}",
            self.logged_at.0, self.started_at.0, self.sequence, self.transaction, self.client, self.client_port
        )
        .into_bytes()
    }
}

/// Why a line was refused. Never repeats its content: that is hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MOST_LINE_BYTES`].
    #[error("the line is longer than {MOST_LINE_BYTES} bytes")]
    TooLong,
    /// Bytes outside ASCII.
    #[error("the line is not ASCII; every field must be logged with %#")]
    NotAscii,
    /// Not the object that `logformat` describes.
    #[error("the line is not the JSON object of the logformat (column {column})")]
    NotTheFormat {
        /// Where it stopped.
        column: usize,
    },
    /// A field has a value it cannot have.
    #[error("field {field} has a value that is not in its closed set")]
    Field {
        /// Which field.
        field: &'static str,
    },
    /// Text that Squid did not encode.
    #[error("a text field is not URL-encoded; it must be logged with %#")]
    NotEncoded,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(borrow)]
    ts: &'a RawValue,
    #[serde(borrow)]
    start: &'a RawValue,
    seq: u64,
    mx: Option<u64>,
    src: &'a str,
    sport: Option<u16>,
    host: &'a str,
    /// Number or quoted number.
    #[serde(borrow, default)]
    port: Option<&'a RawValue>,
    dst: &'a str,
    st: Option<u16>,
    ss: &'a str,
    r#in: Option<u64>,
    out: Option<u64>,
    ms: Option<u64>,
    sni: &'a str,
    mode: &'a str,
    err: &'a str,
    tier: &'a str,
    #[serde(default = "dash")]
    user: &'a str,
    #[serde(default = "dash")]
    tp: &'a str,
}

fn dash() -> &'static str {
    "-"
}

impl Line {
    /// Parses one line, without its line feed.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, LineError> {
        if bytes.len() > MOST_LINE_BYTES {
            return Err(LineError::TooLong);
        }
        if !bytes.is_ascii() {
            return Err(LineError::NotAscii);
        }
        let json = bare_dashes_to_null(bytes);
        let wire: Wire<'_> =
            serde_json::from_slice(&json).map_err(|error| LineError::NotTheFormat { column: error.column() })?;
        let (outcome, aborted) = outcome(wire.ss)?;
        // `ms` is the whole duration by Squid's own clock; start and end say the same and are what a span needs.
        let _duration_by_squid: Option<u64> = wire.ms;
        Ok(Self {
            logged_at: millis(wire.ts, "ts")?,
            started_at: millis(wire.start, "start")?,
            sequence: wire.seq,
            transaction: wire.mx,
            client: address(wire.src, "src")?,
            client_port: wire.sport,
            host: text(wire.host)?,
            port: port(wire.port)?,
            peer: address(wire.dst, "dst")?,
            status: wire.st.unwrap_or(0),
            outcome,
            aborted,
            bytes_from_client: wire.r#in.unwrap_or(0),
            bytes_to_client: wire.out.unwrap_or(0),
            sni: text(wire.sni)?,
            mode: mode(wire.mode)?,
            error: text(wire.err)?,
            tier: text(wire.tier)?,
            user: text(wire.user)?,
            traceparent: text(wire.tp)?,
        })
    }

    /// What makes the line itself.
    #[must_use]
    pub fn key(&self) -> LineKey {
        LineKey {
            logged_at: self.logged_at,
            started_at: self.started_at,
            sequence: self.sequence,
            transaction: self.transaction,
            client: self.client,
            client_port: self.client_port,
        }
    }
}

/// Replaces a `-` that stands alone where a value is expected, outside strings, by `null`.
fn bare_dashes_to_null(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().saturating_add(16));
    let mut in_string = false;
    let mut escaped = false;
    for (at, &byte) in bytes.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if byte == b'"' {
            in_string = true;
        }
        let alone = byte == b'-'
            && !in_string
            && at.checked_sub(1).and_then(|before| bytes.get(before)) == Some(&b':')
            && matches!(bytes.get(at.saturating_add(1)), Some(b',' | b'}'));
        if alone {
            out.extend_from_slice(b"null");
        } else {
            out.push(byte);
        }
    }
    out
}

fn outcome(text: &str) -> Result<(Outcome, bool), LineError> {
    let (base, aborted) = match text.strip_suffix("_ABORTED").or_else(|| text.strip_suffix("_TIMEDOUT")) {
        Some(base) => (base, true),
        None => (text, false),
    };
    let outcome = match base {
        "TCP_DENIED" | "TCP_DENIED_REPLY" => Outcome::Denied,
        "TCP_TUNNEL" => Outcome::Tunnel,
        // The second where the client wants nothing from a cache; there is none either way.
        "TCP_MISS" | "TCP_CLIENT_REFRESH_MISS" => Outcome::Relayed,
        "NONE_NONE" => Outcome::Undecided,
        _ => return Err(LineError::Field { field: "ss" }),
    };
    Ok((outcome, aborted))
}

fn mode(text: &str) -> Result<BumpMode, LineError> {
    match text {
        "-" | "none" => Ok(BumpMode::None),
        "splice" => Ok(BumpMode::Splice),
        "peek" => Ok(BumpMode::Peek),
        "stare" => Ok(BumpMode::Stare),
        "bump" => Ok(BumpMode::Bump),
        "terminate" => Ok(BumpMode::Terminate),
        _ => Err(LineError::Field { field: "mode" }),
    }
}

fn text(text: &str) -> Result<Option<Encoded>, LineError> {
    if text == "-" || text.is_empty() { Ok(None) } else { Encoded::try_from(text.to_owned()).map(Some) }
}

fn address(text: &str, field: &'static str) -> Result<Option<IpAddr>, LineError> {
    if text == "-" { Ok(None) } else { text.parse().map(Some).map_err(|_| LineError::Field { field }) }
}

fn port(raw: Option<&RawValue>) -> Result<Option<u16>, LineError> {
    let Some(raw) = raw else { return Ok(None) };
    match raw.get().trim_matches('"') {
        "-" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| LineError::Field { field: "port" }),
    }
}

/// `seconds.mmm`, exactly three decimals.
fn millis(raw: &RawValue, field: &'static str) -> Result<Millis, LineError> {
    let wrong = LineError::Field { field };
    let (seconds, thousandths) = raw.get().split_once('.').ok_or(wrong)?;
    if thousandths.len() != 3 {
        return Err(wrong);
    }
    let seconds: u64 = seconds.parse().map_err(|_| wrong)?;
    let thousandths: u64 = thousandths.parse().map_err(|_| wrong)?;
    seconds.checked_mul(1000).and_then(|millis| millis.checked_add(thousandths)).map(Millis).ok_or(wrong)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    // Lines of a real Squid 5.7 with this format, addresses and names shortened.
    const DECISION: &str = r#"{"ts":1795363871.092,"start":1795363871.036,"seq":0,"mx":53,"src":"127.0.0.1","sport":37212,"host":"good.example","port":"8443","dst":"-","st":200,"ss":"NONE_NONE","in":174,"out":0,"ms":56,"sni":"good.example","mode":"splice","err":"-","tier":"tasks","user":"tasks","tp":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
    const NOTHING: &str = r#"{"ts":1795363882.864,"start":1795363882.864,"seq":27,"mx":-,"src":"127.0.0.1","sport":51214,"host":"-","port":-,"dst":"-","st":0,"ss":"NONE_NONE","in":0,"out":0,"ms":0,"sni":"-","mode":"-","err":"ERR_CLIENT_GONE","tier":"-","user":"-","tp":"-"}"#;

    #[test]
    fn a_decision_line() {
        let line = Line::parse(DECISION.as_bytes()).unwrap();
        assert_eq!(line.logged_at, Millis(1_795_363_871_092));
        assert_eq!(line.started_at, Millis(1_795_363_871_036));
        assert_eq!((line.sequence, line.transaction), (0, Some(53)));
        assert_eq!(line.host.as_ref().map(Encoded::as_str), Some("good.example"));
        assert_eq!((line.port, line.status, line.outcome), (Some(8443), 200, Outcome::Undecided));
        assert_eq!((line.mode, line.aborted, line.peer), (BumpMode::Splice, false, None));
        assert!(line.traceparent.is_some());
        let kept: Line = serde_json::from_str(&serde_json::to_string(&line).unwrap()).unwrap();
        assert_eq!(kept, line);
    }

    #[test]
    fn missing_numbers_are_none() {
        let line = Line::parse(NOTHING.as_bytes()).unwrap();
        assert_eq!((line.transaction, line.port, line.host, line.status), (None, None, None, 0));
        let denied = DECISION.replace("NONE_NONE", "TCP_DENIED_ABORTED");
        let line = Line::parse(denied.as_bytes()).unwrap();
        assert_eq!((line.outcome, line.aborted), (Outcome::Denied, true));
        let without = DECISION.replace(r#","port":"8443""#, "");
        assert_eq!(Line::parse(without.as_bytes()).unwrap().port, None);
        let encoded = DECISION.replace(r#""host":"good.example""#, r#""host":"a%22b%5C.example""#);
        assert_eq!(Line::parse(encoded.as_bytes()).unwrap().host.unwrap().as_str(), "a%22b%5C.example");
    }

    #[test]
    fn what_is_not_the_format_is_refused() {
        type Expected = fn(&LineError) -> bool;
        let cases: [(String, Expected); 12] = [
            (String::new(), |e| matches!(e, LineError::NotTheFormat { .. })),
            ("{}".to_owned(), |e| matches!(e, LineError::NotTheFormat { .. })),
            (format!("{DECISION} "), |_| false),
            (format!("{DECISION}{{}}"), |e| matches!(e, LineError::NotTheFormat { .. })),
            (DECISION.replace("\"seq\":0", "\"seq\":0,\"new\":1"), |e| matches!(e, LineError::NotTheFormat { .. })),
            (DECISION.replace("\"seq\":0", "\"seq\":0,\"seq\":1"), |e| matches!(e, LineError::NotTheFormat { .. })),
            (DECISION.replace("871.092", "871.0921"), |e| *e == LineError::Field { field: "ts" }),
            (DECISION.replace("1795363871.092", "-1.092"), |e| *e == LineError::Field { field: "ts" }),
            (DECISION.replace("NONE_NONE", "TCP_HIT"), |e| *e == LineError::Field { field: "ss" }),
            (DECISION.replace("splice", "tunnel"), |e| *e == LineError::Field { field: "mode" }),
            (DECISION.replace("good.example", "a\\u0022b"), |e| matches!(e, LineError::NotTheFormat { .. })),
            (DECISION.replace("good.example", "a b"), |e| *e == LineError::NotEncoded),
        ];
        for (line, expected) in cases {
            match Line::parse(line.as_bytes()) {
                Ok(_) => assert!(line.ends_with(' '), "accepted: {line}"),
                Err(error) => assert!(expected(&error), "{error:?}: {line}"),
            }
        }
        assert_eq!(Line::parse(&vec![b' '; MOST_LINE_BYTES + 1]), Err(LineError::TooLong));
        assert_eq!(Line::parse("{\"\u{fc}\":1}".as_bytes()), Err(LineError::NotAscii));
    }

    #[test]
    fn the_key_tells_lines_apart() {
        let a = Line::parse(DECISION.as_bytes()).unwrap();
        for other in [("\"seq\":0", "\"seq\":1"), ("\"mx\":53", "\"mx\":54"), ("871.092", "871.093")] {
            let b = Line::parse(DECISION.replace(other.0, other.1).as_bytes()).unwrap();
            assert_ne!(a.key(), b.key());
            assert_ne!(a.key().bytes(), b.key().bytes());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Line::parse(&bytes).is_err());
        }

        #[test]
        fn no_damage_panics(at in 0..DECISION.len(), byte in any::<u8>(), cut in 0..DECISION.len()) {
            let mut bytes = DECISION.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(line) = Line::parse(&bytes) {
                // Whatever was accepted can be shown.
                for text in [&line.host, &line.sni, &line.user, &line.traceparent].into_iter().flatten() {
                    prop_assert!(text.as_str().bytes().all(|b| b.is_ascii_graphic()));
                }
            }
            bytes.truncate(cut);
            prop_assert!(Line::parse(&bytes).is_err());
        }
    }
}
