//! Wall-clock time as events and records carry it.

use std::time::SystemTime;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// RFC 3339 with three digits whatever the third is: such times sort as text.
const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Now, as RFC 3339 in UTC with milliseconds, for example `2026-01-31T12:00:00.123Z`.
#[must_use]
pub fn now_rfc3339() -> String {
    rfc3339(SystemTime::now())
}

/// A point in time as RFC 3339 in UTC with milliseconds, always three digits of them; what is finer is cut off.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    // Years that do not fit four digits are no RFC 3339; an empty string then says "unknown".
    let at = OffsetDateTime::from(at);
    if !(0..=9999).contains(&at.year()) {
        return String::new();
    }
    at.format(MILLISECONDS).unwrap_or_default()
}

/// The milliseconds since the epoch of a time that [`rfc3339`] wrote; none for anything else.
#[must_use]
pub fn millis(text: &str) -> Option<u64> {
    let at = PrimitiveDateTime::parse(text, MILLISECONDS).ok()?.assume_utc();
    u64::try_from(at.unix_timestamp_nanos().checked_div(1_000_000)?).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn milliseconds_in_utc() {
        for (after_epoch, text) in [
            (Duration::from_micros(1_234_567_890), "1970-01-01T00:20:34.567Z"),
            (Duration::from_millis(1_750_000_053_750), "2025-06-15T15:07:33.750Z"),
            (Duration::from_millis(1_750_000_053_700), "2025-06-15T15:07:33.700Z"),
            (Duration::from_millis(1_750_000_053_007), "2025-06-15T15:07:33.007Z"),
            (Duration::from_secs(1_750_000_053), "2025-06-15T15:07:33.000Z"),
            (Duration::from_nanos(999_999_999), "1970-01-01T00:00:00.999Z"),
            (Duration::from_secs(253_402_300_799), "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + after_epoch), text, "{after_epoch:?}");
            assert_eq!(millis(text), u64::try_from(after_epoch.as_millis()).ok(), "{text}");
        }
        for text in
            ["", "2025-06-15", "1969-12-31T23:59:59.000Z", "2025-06-15T15:07:33+00:00", "2025-02-30T00:00:00.000Z"]
        {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
