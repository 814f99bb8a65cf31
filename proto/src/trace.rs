//! W3C Trace Context identifiers (<https://www.w3.org/TR/trace-context/>), without any telemetry library.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The part of a `traceparent` that matters here: which trace, and which span is the parent. Always sampled: a turn
/// that leaves no trace would be a hole in the record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceParent {
    /// Trace id, 16 bytes, not all zero.
    pub trace: [u8; 16],
    /// Parent span id, 8 bytes, not all zero.
    pub span: [u8; 8],
}

/// A `traceparent` that does not follow the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct MalformedTraceParent;

impl TraceParent {
    /// The trace id as 32 hex digits, as people look it up.
    #[must_use]
    pub fn trace_id(&self) -> String {
        hex::encode(self.trace)
    }

    /// The span id as 16 hex digits.
    #[must_use]
    pub fn span_id(&self) -> String {
        hex::encode(self.span)
    }
}

impl FromStr for TraceParent {
    type Err = MalformedTraceParent;

    fn from_str(text: &str) -> Result<Self, MalformedTraceParent> {
        let mut parts = text.split('-');
        let (Some("00"), Some(trace), Some(span), Some(flags), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(MalformedTraceParent);
        };
        let lower = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if flags.len() != 2 || !lower(flags) || !lower(trace) || !lower(span) {
            return Err(MalformedTraceParent);
        }
        let mut value = Self { trace: [0; 16], span: [0; 8] };
        hex::decode_to_slice(trace, &mut value.trace).map_err(|_| MalformedTraceParent)?;
        hex::decode_to_slice(span, &mut value.span).map_err(|_| MalformedTraceParent)?;
        if value.trace == [0; 16] || value.span == [0; 8] {
            return Err(MalformedTraceParent);
        }
        Ok(value)
    }
}

impl TryFrom<String> for TraceParent {
    type Error = MalformedTraceParent;
    fn try_from(text: String) -> Result<Self, MalformedTraceParent> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(value: TraceParent) -> String {
        value.to_string()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", hex::encode(self.trace), hex::encode(self.span))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(text.parse::<TraceParent>().map(|t| t.to_string()).as_deref(), Ok(text));
        for bad in [
            "",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f-00f067aa0ba902b7-01",
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(MalformedTraceParent), "{bad}");
        }
    }
}
