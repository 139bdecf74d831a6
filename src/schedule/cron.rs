//! Times as cron has them: `M H D M W`, in UTC. The rules are those of Vixie's cron and POSIX's crontab.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// So many days hold each date that there is: two leap days are eight years apart at most.
const DAYS_MAX: u32 = 366 * 9;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A set of small numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set(u64);

impl Set {
    fn has(self, n: i8) -> bool {
        u32::try_from(n).is_ok_and(|n| n < 64 && self.0 & (1 << n) != 0)
    }

    /// Its members in order.
    fn members(self) -> impl DoubleEndedIterator<Item = i8> {
        (0..64).filter(move |n| self.has(*n))
    }
}

/// A field: which numbers, and whether it began with `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    set: Set,
    is_star: bool,
}

/// What one field may hold.
struct Bounds {
    what: &'static str,
    min: u8,
    max: u8,
    /// Names of its numbers, the first that of `min`.
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { what: "minute", min: 0, max: 59, names: &[] };
const HOUR: Bounds = Bounds { what: "hour", min: 0, max: 23, names: &[] };
const DAY: Bounds = Bounds { what: "day of the month", min: 1, max: 31, names: &[] };
const MONTH: Bounds = Bounds { what: "month", min: 1, max: 12, names: &MONTHS };
/// Sunday is 0 and 7.
const WEEKDAY: Bounds = Bounds { what: "day of the week", min: 0, max: 7, names: &DAYS };

/// When something is due, by the minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl std::str::FromStr for Cron {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(format!(
                "it has {} fields, and not five: minute, hour, day of the month, month, day of the week",
                fields.len()
            ));
        };
        let mut cron = Self {
            text: fields.join(" "),
            minute: MINUTE.parse(minute)?,
            hour: HOUR.parse(hour)?,
            day: DAY.parse(day)?,
            month: MONTH.parse(month)?,
            weekday: WEEKDAY.parse(weekday)?,
        };
        let Set(bits) = cron.weekday.set;
        cron.weekday.set = Set((bits | bits >> 7) & 0x7f);
        // From before two leap days.
        let first: Date = jiff::civil::date(2000, 1, 1);
        let is_ever_due = cron.days_from(first).any(|day| cron.is_on(day));
        match is_ever_due {
            true => Ok(cron),
            false => Err("it is never due: no month it names has such a day".into()),
        }
    }
}

impl std::fmt::Display for Cron {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Cron {
    /// The first due time after a moment; none: beyond the end of the calendar.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let from = moment.to_zoned_datetime(TimeZone::UTC).datetime();
        let is_after = |time: &Timestamp| *time > moment;
        self.days_from(from.date())
            .filter(|day| self.is_on(*day))
            .find_map(|day| self.times_of(day).find(is_after))
    }

    /// The last due time up to `until`, if it is after `after`.
    pub fn last_until(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut day = until.to_zoned_datetime(TimeZone::UTC).date();
        let first = after.to_zoned_datetime(TimeZone::UTC).date();
        for _ in 0..DAYS_MAX {
            if day < first {
                return None;
            }
            let last =
                self.is_on(day).then(|| self.times_of(day).rev().find(|time| *time <= until)).flatten();
            if last.is_some() {
                return last.filter(|time| *time > after);
            }
            day = day.yesterday().ok()?;
        }
        None
    }

    fn days_from(&self, first: Date) -> impl Iterator<Item = Date> {
        std::iter::successors(Some(first), |day| day.tomorrow().ok()).take(DAYS_MAX as usize)
    }

    /// Where both the day of the month and that of the week are said, one is enough.
    fn is_on(&self, day: Date) -> bool {
        let of_month = self.day.set.has(day.day());
        let of_week = self.weekday.set.has(day.weekday().to_sunday_zero_offset());
        let is_day = match self.day.is_star || self.weekday.is_star {
            true => of_month && of_week,
            false => of_month || of_week,
        };
        self.month.set.has(day.month()) && is_day
    }

    /// The due times of a day that is one of its days, in order.
    fn times_of(&self, day: Date) -> impl DoubleEndedIterator<Item = Timestamp> {
        let (hours, minutes) = (self.hour.set, self.minute.set);
        hours.members().flat_map(move |hour| minutes.members().map(move |minute| (hour, minute))).filter_map(
            move |(hour, minute)| {
                let time = DateTime::from_parts(day, jiff::civil::time(hour, minute, 0, 0));
                time.to_zoned_datetime(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
            },
        )
    }
}

impl Bounds {
    /// Lists of `*`, `n`, `n-m`, each range with `/step` or without.
    fn parse(&self, text: &str) -> Result<Field, String> {
        let mut bits = 0;
        for part in text.split(',') {
            bits |= self.part(part).map_err(|why| {
                let shown: String = text.chars().take(40).collect();
                format!("its {} {shown:?}: {why}", self.what)
            })?;
        }
        Ok(Field { set: Set(bits), is_star: text.starts_with('*') })
    }

    fn part(&self, text: &str) -> Result<u64, String> {
        let (range, step) = match text.split_once('/') {
            None => (text, None),
            Some((range, step)) => (range, Some(number(step).filter(|step| *step > 0))),
        };
        let ends = match range.split_once('-') {
            _ if range == "*" => Some((self.min, self.max)),
            None if step.is_some() => return Err("a step follows * or a range, as */5 or 10-30/5".into()),
            None => self.number(range, false).map(|n| (n, n)),
            Some((first, last)) => self.number(first, false).zip(self.number(last, true)),
        };
        let wrong = || format!("write numbers of {} to {}, lists, ranges and steps", self.min, self.max);
        let (first, last) = ends.ok_or_else(wrong)?;
        let step = step.map_or(Some(1), |step| step).ok_or_else(wrong)?;
        if first > last {
            return Err(format!("{first} to {last} runs backwards"));
        }
        Ok((first..=last).step_by(step.into()).fold(0, |bits, n| bits | 1 << n))
    }

    /// A number within the bounds, or a name. At a range's end Sunday is the last day.
    fn number(&self, text: &str, is_last: bool) -> Option<u8> {
        let lower = text.to_ascii_lowercase();
        let named = self.names.iter().position(|name| *name == lower);
        let n = match named {
            Some(0) if is_last && self.max == WEEKDAY.max => self.max,
            Some(at) => self.min + u8::try_from(at).ok()?,
            None => number(text)?,
        };
        (self.min..=self.max).contains(&n).then_some(n)
    }
}

fn number(text: &str) -> Option<u8> {
    let is_number = !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(text: &str) -> Cron {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    // X7
    #[test]
    fn due_times_follow_each_other() {
        // 2026-11-29 is a Sunday.
        let now = at("2026-11-29T12:34:56Z");
        for (text, next) in [
            ("* * * * *", "2026-11-29T12:35:00Z"),
            ("*/15 * * * *", "2026-11-29T12:45:00Z"),
            ("0 * * * *", "2026-11-29T13:00:00Z"),
            ("34 12 * * *", "2026-11-30T12:34:00Z"),
            ("5,35,50 6-12/3 * * *", "2026-11-29T12:35:00Z"),
            ("0 0 * * *", "2026-11-30T00:00:00Z"),
            ("0 3 * * mon", "2026-11-30T03:00:00Z"),
            ("0 3 * * 0", "2026-12-06T03:00:00Z"),
            ("0 3 * * 7", "2026-12-06T03:00:00Z"),
            ("0 3 * * SAT-SUN", "2026-12-05T03:00:00Z"),
            ("30 2 1 * *", "2026-12-01T02:30:00Z"),
            ("0 0 31 * *", "2026-12-31T00:00:00Z"),
            ("0 0 31 feb,apr,jun,sep,nov,oct *", "2027-10-31T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            // One of both days is enough; with a star at one of them, the other alone counts.
            ("0 0 13 * fri", "2026-12-04T00:00:00Z"),
            ("0 0 13 * *", "2026-12-13T00:00:00Z"),
            ("0 0 */2 * fri", "2026-12-11T00:00:00Z"),
            ("0 0 30 2 mon", "2027-02-01T00:00:00Z"),
            ("  0  0  1  jan  * ", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(cron(text).next_after(now), Some(at(next)), "{text}");
        }
        // Of the century without a leap day.
        let leap = cron("0 0 29 2 *");
        assert_eq!(leap.next_after(at("2096-03-01T00:00:00Z")), Some(at("2104-02-29T00:00:00Z")));
        assert_eq!(
            leap.last_until(at("2050-01-01T00:00:00Z"), at("2104-02-28T23:59:59Z")),
            Some(at("2096-02-29T00:00:00Z"))
        );
        assert_eq!(leap.next_after(at("9999-03-01T00:00:00Z")), None);
    }

    // X7
    #[test]
    fn the_last_due_time_is_the_one_before_the_next() {
        for text in ["*/7 * * * *", "0 3 * * 1-5", "15 4 1,15 * sun", "0 0 29 2 *", "59 23 31 12 *"] {
            let cron = cron(text);
            let (start, mut times) = (at("2026-01-01T00:00:00Z"), vec![at("2026-01-01T00:00:00Z")]);
            for _ in 0..200 {
                let next = cron.next_after(*times.last().unwrap()).unwrap();
                times.push(next);
            }
            for pair in times[1..].windows(2) {
                let almost = pair[1] - jiff::SignedDuration::from_nanos(1);
                assert_eq!(cron.last_until(start, almost), Some(pair[0]), "{text}");
                assert_eq!(cron.last_until(start, pair[1]), Some(pair[1]), "{text}");
                assert_eq!(cron.last_until(pair[0], almost), None, "{text}");
            }
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for (text, why) in [
            ("", "0 fields"),
            ("* * * *", "4 fields"),
            ("* * * * * *", "6 fields"),
            ("@daily", "1 fields"),
            ("60 * * * *", "its minute \"60\""),
            ("* 24 * * *", "its hour"),
            ("* * 0 * *", "its day of the month"),
            ("* * 32 * *", "its day of the month"),
            ("* * * 13 *", "its month"),
            ("* * * foo *", "its month"),
            ("* * * * 8", "its day of the week"),
            ("-1 * * * *", "its minute"),
            ("+1 * * * *", "its minute"),
            ("1- * * * *", "its minute"),
            ("5-1 * * * *", "5 to 1 runs backwards"),
            ("5/10 * * * *", "a step follows"),
            ("*/0 * * * *", "its minute"),
            ("*/ * * * *", "its minute"),
            ("*/5/5 * * * *", "its minute"),
            ("*/999 * * * *", "its minute"),
            ("1,, * * * *", "its minute"),
            ("** * * * *", "its minute"),
            ("١ * * * *", "its minute"),
            ("0 0 30 2 *", "never due"),
            ("0 0 31 4,6,9,11 *", "never due"),
        ] {
            let refused = text.parse::<Cron>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        assert!("9".repeat(100_000).parse::<Cron>().is_err());
        assert!(format!("{} * * * *", "1,".repeat(50_000)).parse::<Cron>().is_err());
    }
}
