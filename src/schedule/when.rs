//! When a schedule is due: at multiples of a span of time, or as cron has it. All in UTC, by the calendar alone: a due time is the same
//! whoever asks, and whenever.

use jiff::Timestamp;

use super::cron::Cron;

/// A Monday, 1970-01-05: a week ends and begins at its midnight, and so do day and hour.
const EPOCH_SECONDS: i64 = 4 * 86_400;
const SECONDS_MAX: i64 = 366 * 86_400;

/// When a schedule is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// At all multiples of a span.
    Every(Every),
    /// By the calendar.
    Cron(Cron),
}

/// A span of time: minutes to a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every {
    seconds: i64,
}

impl When {
    /// The first due time after a moment; none: beyond the end of the calendar.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(every) => every.next_after(moment),
            Self::Cron(cron) => cron.next_after(moment),
        }
    }

    /// The last due time up to `until`, if it is after `after`.
    pub fn last_until(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(every) => every.last_until(after, until),
            Self::Cron(cron) => cron.last_until(after, until),
        }
    }
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Every(every) => write!(f, "every {every}"),
            Self::Cron(cron) => write!(f, "cron {cron}"),
        }
    }
}

impl Every {
    /// A span of whole minutes, as it was written down.
    pub fn of_seconds(seconds: i64) -> Option<Self> {
        let is_one = (60..=SECONDS_MAX).contains(&seconds) && seconds % 60 == 0;
        is_one.then_some(Self { seconds })
    }

    /// The span.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    fn next_after(self, moment: Timestamp) -> Option<Timestamp> {
        let last = self.last(moment)?;
        Timestamp::from_second(last.checked_add(self.seconds)?).ok()
    }

    fn last_until(self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        Timestamp::from_second(self.last(until)?).ok().filter(|last| *last > after)
    }

    /// The last multiple up to a moment.
    fn last(self, moment: Timestamp) -> Option<i64> {
        let second = moment.as_second() - i64::from(moment.subsec_nanosecond() < 0);
        let since = second.checked_sub(EPOCH_SECONDS)?;
        (since.div_euclid(self.seconds)).checked_mul(self.seconds)?.checked_add(EPOCH_SECONDS)
    }
}

impl std::str::FromStr for Every {
    type Err = String;

    /// `15m`, `1h`, `1d`, `1w`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || "write digits and one of m, h, d, w: from 1m to 366d".to_owned();
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
        let (number, unit) = text.split_at(end);
        let unit = match unit {
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return Err(refused()),
        };
        let number: i64 = number.parse().map_err(|_| refused())?;
        number.checked_mul(unit).and_then(Self::of_seconds).ok_or_else(refused)
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(7 * 86_400, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm')];
        let whole = units.into_iter().find(|(unit, _)| self.seconds % unit == 0);
        let (unit, letter) = whole.unwrap_or((1, 's'));
        write!(f, "{}{letter}", self.seconds / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    // X7
    #[test]
    fn spans_divide_the_calendar() {
        let now = at("2026-11-29T12:34:56.5Z");
        for (text, last, next) in [
            ("1m", "2026-11-29T12:34:00Z", "2026-11-29T12:35:00Z"),
            ("15m", "2026-11-29T12:30:00Z", "2026-11-29T12:45:00Z"),
            ("1h", "2026-11-29T12:00:00Z", "2026-11-29T13:00:00Z"),
            ("6h", "2026-11-29T12:00:00Z", "2026-11-29T18:00:00Z"),
            ("1d", "2026-11-29T00:00:00Z", "2026-11-30T00:00:00Z"),
            ("24h", "2026-11-29T00:00:00Z", "2026-11-30T00:00:00Z"),
            // Mondays.
            ("1w", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
        ] {
            let every: Every = text.parse().unwrap();
            assert_eq!(every.last_until(Timestamp::UNIX_EPOCH, now), Some(at(last)), "{text}");
            assert_eq!(every.next_after(now), Some(at(next)), "{text}");
            // A due time is after itself no more.
            assert_eq!(every.last_until(at(last), now), None, "{text}");
            assert_eq!(every.next_after(at(last)), Some(at(next)), "{text}");
            assert_eq!(every.last_until(at(last), at(next)), Some(at(next)), "{text}");
        }
        let hour: Every = "1h".parse().unwrap();
        assert_eq!(hour.next_after(at("1969-12-31T23:59:59.5Z")), Some(at("1970-01-01T00:00:00Z")));
        assert_eq!(hour.next_after(Timestamp::MAX), None);
        assert!(hour.last_until(Timestamp::MIN, Timestamp::MIN).is_none());
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in [
            "",
            "1",
            "m",
            "0m",
            "0h",
            "1s",
            "60s",
            "1M",
            "1y",
            "1.5h",
            "-1h",
            "+1h",
            " 1h",
            "1h ",
            "1h30m",
            "367d",
            "53w",
            "99999999999999999999m",
            "9223372036854775807w",
            "١h",
        ] {
            assert!(text.parse::<Every>().is_err(), "{text}");
        }
        assert_eq!("90m".parse::<Every>().unwrap().to_string(), "90m");
        assert_eq!("48h".parse::<Every>().unwrap().to_string(), "2d");
        assert_eq!("14d".parse::<Every>().unwrap().to_string(), "2w");
        assert_eq!(Every::of_seconds(61), None);
    }
}
