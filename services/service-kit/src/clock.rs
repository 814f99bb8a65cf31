//! Wall-clock time as events and records carry it.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, as RFC 3339 in UTC with milliseconds, for example `2026-01-31T12:00:00.123Z`.
#[must_use]
pub fn now_rfc3339() -> String {
    rfc3339(SystemTime::now())
}

/// A point in time as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    // Formatting can only fail for years outside 0..=9999; an empty string then says "unknown".
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn milliseconds_in_utc() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_micros(1_234_567_890)), "1970-01-01T00:20:34.567Z");
    }
}
