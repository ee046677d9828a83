//! Points in time, for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tartarus_types::Timestamp;

/// How long ago, in its largest unit: `5s`, `3m`, `2h`, `4d`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.ms_since(then) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Date and time in UTC, to the millisecond.
pub(crate) fn date(at: Timestamp) -> String {
    let micros = u64::try_from(at.0).unwrap_or(0);
    let time = UNIX_EPOCH.checked_add(Duration::from_micros(micros)).unwrap_or(SystemTime::UNIX_EPOCH);
    // Beyond the year 9999 there is no such format.
    let limit = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(time.min(limit)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_dates() {
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7_199, "1h"), (200_000, "2d")] {
            assert_eq!(age(at(0), at(seconds)), text);
        }
        assert_eq!(age(at(5), at(0)), "0s", "clocks may disagree");
        assert_eq!(date(Timestamp(1_700_000_000_123_456)), "2023-11-14T22:13:20.123Z");
        date(Timestamp(i64::MAX));
        date(Timestamp(i64::MIN));
    }
}
