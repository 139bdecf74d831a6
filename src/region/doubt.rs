//! Whether a machine's wall clock can be believed: it can where it goes on from a moment at which it was, as the clocks do that nobody
//! sets. What it shows, and what was remembered, comes in; nothing is read here.
//!
//! - It is *away* where it is further than [`TOLERANCE`] from where it should be; after a reboot or a sleep, when nobody can say how long it was
//!   (on waking, the kernel asks the same clock that may be wrong), where it is behind, or more than [`OFF`] ahead.
//! - Away and ahead it is in doubt: all that is dated would be over at once. Away and behind it ends nothing early, and is not.
//! - It is believed again once it is back where it should be; once the machine has run for as long as its lead asks for with it going on steadily
//!   where it is ([`steady`]); or when a person says so, which makes a new memory.
//! - Meanwhile what has come for sure goes on from the moment at which it was believed, by the time that the machine is known to have run.
//!
//! While it is away, the moment at which it was believed last is kept: a machine whose clock begins in 1970 until the network sets it is not in
//! doubt each time.

use jiff::Timestamp;

/// Seconds by which a clock may be set without being away: what a machine that was paused, or a correction, makes of it. What is ended so
/// much too early was dated no better.
const TOLERANCE: i64 = 600;
const DAY: i64 = 86_400;
/// Seconds that a machine may have been off, or asleep.
const OFF: i64 = DAY;

/// Seconds that a machine runs, and is not asleep, until a clock that is away by so much and steady is believed; none: until a person
/// says so. Most machines that are off are so for days; a battery that is flat makes up years.
fn steady(lead: i64) -> Option<i64> {
    match lead.saturating_abs() {
        0..=2_592_000 => Some(DAY),
        2_592_001..=31_622_400 => Some(7 * DAY),
        _ => None,
    }
}

/// What the clocks of a machine show at one moment, in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock, since 1970.
    pub wall: i64,
    /// Which boot of which machine the others count from; empty: not known.
    pub boot: String,
    /// Since then.
    pub since_boot: i64,
    /// The same without the time asleep.
    pub awake: i64,
}

/// What is remembered of a machine's clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The last moment at which the wall clock was believed.
    pub believed: Reading,
    /// It is away from where it should be.
    pub away: Option<Away>,
}

/// A wall clock that is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// What was seen last.
    pub last: Reading,
    /// Seconds that the machine has run with it going on steadily.
    pub ran: i64,
    /// Seconds that the machine has run since the wall clock was believed.
    pub passed: i64,
}

/// A wall clock that is ahead, and not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// What it shows.
    pub shown: Timestamp,
    /// What it showed when it was believed last.
    pub believed: Timestamp,
    /// What has come for sure.
    pub certain: Timestamp,
    /// Seconds for which the machine has to run until it is believed, if it is not set meanwhile; none: until a person says so.
    pub left: Option<i64>,
}

impl Reading {
    /// Seconds by which the wall clock is ahead of where it should be, by an earlier reading; negative: behind; 0: within what may be.
    fn lead(&self, earlier: &Self) -> i64 {
        let passed = self.wall.saturating_sub(earlier.wall);
        // Beside what it ran, anything up to a day may have passed while it was off, or asleep.
        let (ran, off) = match self.is_of_boot_of(earlier) {
            true => {
                let ran = self.ran_since(earlier);
                (ran, self.since_boot.saturating_sub(earlier.since_boot).saturating_sub(ran).clamp(0, OFF))
            }
            false => (0, OFF),
        };
        let beside = passed.saturating_sub(ran);
        let lead = beside.saturating_sub(beside.clamp(0, off));
        if lead.saturating_abs() <= TOLERANCE { 0 } else { lead }
    }

    fn is_of_boot_of(&self, other: &Self) -> bool {
        !self.boot.is_empty() && self.boot == other.boot
    }

    /// Seconds for which the machine is known to have run since an earlier reading.
    fn ran_since(&self, earlier: &Self) -> i64 {
        match self.is_of_boot_of(earlier) {
            true => self.awake.saturating_sub(earlier.awake).max(0),
            false => 0,
        }
    }
}

impl Memory {
    /// Of a clock that is believed.
    pub fn believing(reading: Reading) -> Self {
        Self { believed: reading, away: None }
    }

    /// The memory once this is seen.
    pub fn seeing(&self, now: Reading) -> Self {
        let lead = now.lead(&self.believed);
        // After a reboot a clock that was ahead, and only went on, has not come back.
        let was_ahead = self.is_ahead() && !now.is_of_boot_of(&self.believed) && now.wall >= self.last().wall;
        if lead == 0 && !was_ahead {
            return Self::believing(now);
        }
        let last = self.last();
        let ran_on = match now.is_of_boot_of(last) {
            true => now.ran_since(last),
            false => now.awake.max(0),
        };
        let passed = self.away.as_ref().map_or(0, |away| away.passed).saturating_add(ran_on);
        let steadily = self.away.as_ref().filter(|away| now.lead(&away.last) == 0);
        let ran = steadily.map_or(0, |away| away.ran.saturating_add(now.ran_since(&away.last)));
        match steady(lead).is_some_and(|steady| ran >= steady) {
            true => Self::believing(now),
            false => Self { believed: self.believed.clone(), away: Some(Away { last: now, ran, passed }) },
        }
    }

    fn lead(&self) -> i64 {
        self.away.as_ref().map_or(0, |away| away.last.lead(&self.believed))
    }

    /// Away and ahead; or so by less than may be, after a reboot.
    fn is_ahead(&self) -> bool {
        self.away.as_ref().is_some_and(|away| self.lead() > 0 || away.last.wall > self.sure())
            && self.lead() >= 0
    }

    /// What has come for sure, where it is away.
    fn sure(&self) -> i64 {
        self.believed.wall.saturating_add(self.away.as_ref().map_or(0, |away| away.passed))
    }

    /// Whether its clock, as it was seen last, is in doubt.
    pub fn doubt(&self) -> Option<Doubt> {
        let away = self.away.as_ref().filter(|_| self.is_ahead())?;
        let time = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
        Some(Doubt {
            shown: time(away.last.wall),
            believed: time(self.believed.wall),
            certain: time(self.sure().min(away.last.wall)),
            left: steady(self.lead()).map(|steady| steady.saturating_sub(away.ran).max(0)),
        })
    }

    /// What its clock showed when it was believed last, where it is behind that now.
    pub fn behind(&self) -> Option<Timestamp> {
        let is_behind = self.lead() < 0;
        is_behind.then(|| Timestamp::from_second(self.believed.wall).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// What was seen last.
    pub fn last(&self) -> &Reading {
        self.away.as_ref().map_or(&self.believed, |away| &away.last)
    }

    /// Whether it says something else than an earlier one, and not only that time has passed: the clock is away, back, or has been set
    /// while it was away.
    pub fn is_news_to(&self, earlier: &Self) -> bool {
        match (&self.away, &earlier.away) {
            (None, None) => false,
            (Some(now), Some(before)) => now.ran < before.ran || now.last.lead(&before.last) != 0,
            _ => true,
        }
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alone = match self.left {
            Some(left) => format!(", or {} h of running with it as it is", left.saturating_add(3599) / 3600),
            None => ", and nothing else does".into(),
        };
        write!(
            f,
            "this machine's clock shows {}, and showed {} when it was believed last: it is further ahead than can be explained, and until \
             it is believed nothing ends by it, neither retentions nor the bin nor locks, but what was over by {}. If it is wrong, set it; if \
             it is right, `terrane region trust-clock` says so{alone}",
            self.shown, self.believed, self.certain
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const YEAR: i64 = 365 * DAY;
    /// 2026-11-24.
    const START: i64 = 1_795_478_400;

    /// A machine whose clock a test sets.
    struct Machine {
        boot: u32,
        wall: i64,
        since_boot: i64,
        awake: i64,
        memory: Option<Memory>,
    }

    impl Machine {
        fn new() -> Self {
            let mut machine = Self { boot: 1, wall: START, since_boot: 100, awake: 100, memory: None };
            machine.runs(0);
            machine
        }

        fn sees(&mut self) {
            let (boot, since_boot, awake) = (self.boot.to_string(), self.since_boot, self.awake);
            let now = Reading { wall: self.wall, boot, since_boot, awake };
            let seen = self.memory.as_ref().map(|memory| memory.seeing(now.clone()));
            self.memory = Some(seen.unwrap_or_else(|| Memory::believing(now)));
        }

        /// Seconds go by, looked at each minute.
        fn runs(&mut self, seconds: i64) {
            for _ in 0..seconds / 60 {
                (self.wall, self.since_boot, self.awake) =
                    (self.wall + 60, self.since_boot + 60, self.awake + 60);
                self.sees();
            }
            self.sees();
        }

        fn sleeps(&mut self, seconds: i64) {
            (self.wall, self.since_boot) = (self.wall + seconds, self.since_boot + seconds);
            self.sees();
        }

        fn is_set(&mut self, by: i64) {
            self.wall += by;
            self.sees();
        }

        /// It is off for so long, and its clock is set by so much meanwhile.
        fn boots(&mut self, off: i64, by: i64) {
            (self.boot, self.since_boot, self.awake) = (self.boot + 1, 5, 5);
            self.is_set(off + by);
        }

        fn doubts(&self) -> bool {
            self.memory.as_ref().is_some_and(|memory| memory.doubt().is_some())
        }
    }

    #[test]
    fn a_clock_that_goes_on_is_believed() {
        let mut machine = Machine::new();
        machine.runs(3 * DAY);
        machine.sleeps(DAY);
        machine.boots(23 * HOUR, 0);
        machine.runs(HOUR);
        for by in [60, -60, 599, -599] {
            machine.is_set(by);
        }
        assert!(!machine.doubts() && machine.memory.as_ref().unwrap().away.is_none());
        assert_eq!(machine.memory.as_ref().unwrap().last().wall, machine.wall);
    }

    #[test]
    fn a_jump_ahead_is_in_doubt_for_a_day_of_running() {
        for by in [TOLERANCE + 1, HOUR, DAY, 30 * DAY] {
            let mut machine = Machine::new();
            let before = machine.wall;
            machine.is_set(by);
            let doubt = machine.memory.as_ref().unwrap().doubt().expect("it is in doubt");
            assert_eq!((doubt.believed.as_second(), doubt.shown.as_second()), (before, machine.wall));
            assert_eq!((doubt.left, doubt.certain), (Some(DAY), doubt.believed));
            machine.runs(DAY - 60);
            // Nobody has had the time to see it while the machine slept.
            machine.sleeps(DAY);
            assert!(machine.doubts(), "{by}");
            machine.runs(60);
            assert!(!machine.doubts(), "{by}");
            assert_eq!(machine.memory.as_ref().unwrap().believed.wall, machine.wall);
        }
    }

    #[test]
    fn another_jump_begins_the_day_anew() {
        let mut machine = Machine::new();
        machine.is_set(20 * DAY);
        machine.runs(23 * HOUR);
        machine.is_set(-HOUR);
        machine.runs(23 * HOUR);
        assert!(machine.doubts());
        machine.runs(HOUR);
        assert!(!machine.doubts());
    }

    #[test]
    fn a_clock_that_is_set_right_is_believed_at_once() {
        let mut machine = Machine::new();
        machine.is_set(10 * YEAR);
        machine.runs(5 * HOUR);
        assert!(machine.doubts());
        machine.is_set(-10 * YEAR + 30);
        assert!(!machine.doubts());
        machine.is_set(10 * YEAR);
        assert!(machine.doubts(), "once more");
    }

    #[test]
    fn a_day_of_running_is_counted_over_reboots() {
        let mut machine = Machine::new();
        // A battery that is flat, and a year that the firmware made up.
        machine.boots(HOUR, 20 * DAY);
        for _ in 0..8 {
            assert!(machine.doubts());
            machine.runs(3 * HOUR - 60);
            machine.boots(20 * HOUR, 0);
        }
        assert!(machine.doubts(), "what was not looked at is not known to have run");
        machine.runs(8 * 60);
        assert!(!machine.doubts());
    }

    #[test]
    fn a_machine_that_was_off_for_more_than_a_day_is_in_doubt() {
        let mut machine = Machine::new();
        machine.boots(DAY + TOLERANCE, 0);
        assert!(!machine.doubts());
        machine.boots(DAY + TOLERANCE + 1, 0);
        assert!(machine.doubts());
        machine.runs(DAY);
        assert!(!machine.doubts());
    }

    #[test]
    fn the_further_ahead_the_longer_it_takes() {
        for (by, days) in [(30 * DAY, 1), (40 * DAY, 7), (YEAR, 7)] {
            let mut machine = Machine::new();
            machine.is_set(by);
            machine.runs(days * DAY - 60);
            assert!(machine.doubts(), "{by}");
            machine.runs(60);
            assert!(!machine.doubts(), "{by}");
        }
        let mut machine = Machine::new();
        let before = machine.wall;
        machine.is_set(10 * YEAR);
        machine.runs(30 * DAY);
        let doubt = machine.memory.as_ref().unwrap().doubt().expect("for ever");
        assert_eq!(doubt.left, None);
        assert!(doubt.to_string().contains("and nothing else does"), "{doubt}");
        // What was to end in these thirty days has ended.
        assert_eq!(doubt.certain.as_second(), before + 30 * DAY);
    }

    /// On waking the kernel asks the clock that may be wrong how long it was.
    #[test]
    fn a_long_sleep_is_in_doubt_as_a_long_time_off_is() {
        let mut machine = Machine::new();
        machine.sleeps(DAY + TOLERANCE + 1);
        assert!(machine.doubts());
        machine.runs(DAY);
        assert!(!machine.doubts());
    }

    #[test]
    fn a_reboot_makes_no_jump_right() {
        let mut machine = Machine::new();
        machine.is_set(20 * HOUR);
        machine.runs(HOUR);
        machine.boots(HOUR, 0);
        assert!(machine.doubts());
        machine.runs(HOUR);
        assert!(machine.doubts());
        // It was put back meanwhile.
        machine.boots(HOUR, -20 * HOUR);
        assert!(!machine.doubts());
    }

    /// What has come for sure goes on, over reboots too.
    #[test]
    fn a_machine_that_is_mostly_off_is_never_stuck() {
        let mut machine = Machine::new();
        let before = machine.wall;
        for week in 1..5 {
            machine.boots(7 * DAY, 0);
            machine.runs(3 * HOUR);
            let doubt = machine.memory.as_ref().unwrap().doubt().expect("off for a week");
            let certain = doubt.certain.as_second() - before;
            assert!((week * 3 * HOUR..week * 3 * HOUR + 60).contains(&certain), "{certain}");
        }
    }

    /// Each boot begins in 1970, until the network is there.
    #[test]
    fn a_clock_that_is_behind_is_no_doubt_and_is_not_gone_on_from() {
        let mut machine = Machine::new();
        for _ in 0..5 {
            let right = machine.wall + 2 * HOUR;
            machine.boots(0, -machine.wall);
            assert!(!machine.doubts());
            machine.runs(HOUR);
            assert!(!machine.doubts());
            let by = right - machine.wall;
            machine.is_set(by);
            assert!(!machine.doubts(), "it is where it should be");
        }
        // Unless it stays so for a day.
        let right = machine.wall;
        assert_eq!(machine.memory.as_ref().unwrap().behind(), None);
        machine.is_set(-20 * DAY);
        assert_eq!(machine.memory.as_ref().unwrap().behind().map(|time| time.as_second()), Some(right));
        machine.runs(DAY);
        machine.is_set(20 * DAY);
        assert!(machine.doubts());
    }

    /// What nobody could have written is no panic.
    #[test]
    fn numbers_at_their_ends_are_borne() {
        let ends = [i64::MIN, -1, 0, 1, i64::MAX];
        for (n, wall) in ends.into_iter().enumerate() {
            for since in ends {
                for boot in ["", "a", "b"] {
                    let reading =
                        |wall, since| Reading { wall, boot: boot.into(), since_boot: since, awake: since };
                    let away = Some(Away { last: reading(ends[4 - n], since), ran: since, passed: since });
                    let memory = Memory { believed: reading(wall, since), away };
                    for now in ends {
                        let seen = memory.seeing(reading(now, now));
                        drop((seen.doubt().map(|doubt| doubt.to_string()), seen.is_news_to(&memory)));
                    }
                    let _ = memory.doubt();
                }
            }
        }
    }

    #[test]
    fn news_is_what_changes_more_than_the_time() {
        let mut machine = Machine::new();
        let mut is_news = |change: &mut dyn FnMut(&mut Machine)| {
            let before = machine.memory.clone().unwrap();
            change(&mut machine);
            machine.memory.as_ref().unwrap().is_news_to(&before)
        };
        assert!(!is_news(&mut |machine| machine.runs(HOUR)));
        assert!(is_news(&mut |machine| machine.is_set(YEAR)));
        assert!(!is_news(&mut |machine| machine.runs(HOUR)));
        assert!(is_news(&mut |machine| machine.is_set(YEAR)));
        assert!(is_news(&mut |machine| machine.is_set(-2 * YEAR)));
        assert!(!is_news(&mut |machine| machine.runs(0)));
    }
}
