//! This machine's wall clock, and the file that remembers when it was believed last.
//!
//! ```text
//! <configuration>/clock          what the clocks showed when the wall clock was believed last, and since, where it is away
//! <configuration>/clock.lock     held by whoever changes it
//! ```
//! Anybody who asks compares it with the clocks: a jump is seen by the first, whoever that is. A daemon writes it, each few minutes, and at
//! once where the clock is away or back; so does a person's word, and whoever meets a doubt. Where there is no file nothing is known, and the
//! clock is believed: as on the first day. Where it can't be read, nothing has come for sure, until a person says that the clock is right.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::doubt::{Away, Doubt, Memory, Reading};
use super::format::check_format;
use super::{Config, RegionError, files};
use crate::sys::crashsafe;
use crate::sys::lock_file::LockFile;

const FORMAT: &str = "terrane-clock";
const FORMAT_VERSION: i64 = 1;
/// No clock that is right shows less: November 2026.
pub const EARLIEST_CLOCK: Timestamp = Timestamp::constant(1_793_491_200, 0);
/// Seconds after which the file is written though nothing is new.
const INTERVAL: i64 = 300;
/// No number of seconds in the file is larger: 30,000 years.
const SECONDS_MAX: i64 = 1 << 40;
/// Letters of a boot's id: a UUID has 36.
const BOOT_LEN_MAX: usize = 64;
/// Others hold the lock while they write one small file.
const TRIES: u32 = 250;

/// This machine's wall clock.
#[derive(Clone, Debug)]
pub struct MachineClock {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: String,
    format_version: i64,
    features: Vec<String>,
    believed: ReadingFields,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    away: Option<AwayFields>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingFields {
    wall: String,
    boot: String,
    since_boot_seconds: i64,
    awake_seconds: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AwayFields {
    ran_seconds: i64,
    passed_seconds: i64,
    last: ReadingFields,
}

impl MachineClock {
    /// As this configuration remembers it.
    pub fn new(config: &Config) -> Self {
        Self { path: config.dir().join("clock") }
    }

    /// What it shows.
    pub fn shown(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Whether it is in doubt. Writes nothing.
    pub fn doubt(&self) -> Result<Option<Doubt>, RegionError> {
        Ok(self.known()?.and_then(|known| known.seeing(Reading::now()).doubt()))
    }

    /// What it showed when it was believed last, where it is behind that now.
    pub fn behind(&self) -> Result<Option<Timestamp>, RegionError> {
        Ok(self.known()?.and_then(|known| known.seeing(Reading::now()).behind()))
    }

    /// The latest moment that has come for sure: what it shows, unless it is in doubt; where what was remembered can't be read, none.
    pub fn certain(&self) -> Timestamp {
        let now = Reading::now();
        let known = self.known().map(|known| known.and_then(|known| known.seeing(now.clone()).doubt()));
        match known {
            // By the reading that was judged, and no later one.
            Ok(None) => Timestamp::from_second(now.wall).unwrap_or(Timestamp::UNIX_EPOCH),
            Ok(Some(doubt)) => {
                // Else nobody would know for how long it has been so, where no daemon runs.
                if let Err(error) = self.watch() {
                    tracing::warn!(%error, "a doubt of this machine's clock is not written down");
                }
                doubt.certain
            }
            Err(error) => {
                tracing::warn!(%error, "nothing ends by this machine's clock");
                Timestamp::UNIX_EPOCH
            }
        }
    }

    /// Whether it is in doubt, remembered from time to time: for processes that stay, or come again.
    pub fn watch(&self) -> Result<Option<Doubt>, RegionError> {
        let (seen, is_due) = self.see()?;
        if !is_due || !self.has_folder() {
            return Ok(seen.doubt());
        }
        // Else another process does just that.
        let Some(_lock) = self.lock(1)? else { return Ok(seen.doubt()) };
        // Behind the lock: a person may have spoken.
        let (seen, _) = self.see()?;
        self.write(&seen)?;
        Ok(seen.doubt())
    }

    /// Believes it, whatever it shows: a person says that it is right.
    pub fn believe(&self) -> Result<(), RegionError> {
        // A region that is named by its directory needs no configuration, and then there is no doubt to end.
        if !self.has_folder() {
            return Ok(());
        }
        let _lock = self.lock(TRIES)?.ok_or_else(|| {
            RegionError::io("changing it", &self.path)(io::Error::other(
                "another process does so: run the command again",
            ))
        })?;
        self.write(&Memory::believing(Reading::now()))
    }

    /// What is to be remembered from now on, and whether it is time to write it.
    fn see(&self) -> Result<(Memory, bool), RegionError> {
        let now = Reading::now();
        Ok(match self.known()? {
            // A clock that begins long ago until the network sets it is not what others go on from.
            None => (Memory::believing(now.clone()), now.wall >= EARLIEST_CLOCK.as_second()),
            Some(known) => {
                let seen = known.seeing(now);
                let is_due = is_to_be_written(&seen, &known);
                (seen, is_due)
            }
        })
    }

    fn has_folder(&self) -> bool {
        self.path.parent().is_some_and(|dir| fs::symlink_metadata(dir).is_ok())
    }

    fn lock(&self, tries: u32) -> Result<Option<LockFile>, RegionError> {
        let dir = self.path.parent().unwrap_or(&self.path);
        // A configuration may be reached through a link, which a lock's path may not.
        let path = fs::canonicalize(dir).map_err(RegionError::io("finding it", dir))?.join("clock.lock");
        for _ in 0..tries {
            if let Some(lock) = LockFile::take(&path).map_err(RegionError::io("locking it", &path))? {
                return Ok(Some(lock));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    }

    fn known(&self) -> Result<Option<Memory>, RegionError> {
        let text = match files::read_toml(&self.path) {
            Err(RegionError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        let corrupted = |found: String| RegionError::Corrupted {
            path: self.path.clone(),
            what: "the file".into(),
            expected: "what was remembered of a clock".into(),
            found: found.chars().take(80).collect(),
        };
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| corrupted(error.message().to_owned()))?;
        check_format(&table, &self.path, FORMAT, FORMAT_VERSION, &[])?;
        let fields: Fields = table.try_into().map_err(|error| corrupted(error.message().to_owned()))?;
        fields.memory().map(Some).ok_or_else(|| corrupted("moments that are none".into()))
    }

    fn write(&self, memory: &Memory) -> Result<(), RegionError> {
        let text = toml::to_string(&Fields::of(memory)).expect("plain fields are always TOML");
        crashsafe::write_file(&self.path, text.as_bytes(), 0o600)
            .map_err(RegionError::io("writing it", &self.path))
    }
}

fn is_to_be_written(seen: &Memory, known: &Memory) -> bool {
    let (now, before) = (seen.last(), known.last());
    let age = now.since_boot.saturating_sub(before.since_boot);
    seen.is_news_to(known) || now.boot != before.boot || !(0..INTERVAL).contains(&age)
}

impl Reading {
    /// What the clocks show now.
    fn now() -> Self {
        let seconds = |clock| clock_gettime(clock).tv_sec;
        Self {
            wall: Timestamp::now().as_second(),
            boot: boot().to_owned(),
            since_boot: seconds(ClockId::Boottime),
            awake: seconds(ClockId::Monotonic),
        }
    }
}

/// The kernel's name for this boot.
fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().chars().take(BOOT_LEN_MAX).collect()
    })
}

impl Fields {
    fn of(memory: &Memory) -> Self {
        Self {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            believed: ReadingFields::of(&memory.believed),
            away: memory.away.as_ref().map(|away| AwayFields {
                ran_seconds: away.ran,
                passed_seconds: away.passed,
                last: ReadingFields::of(&away.last),
            }),
        }
    }

    fn memory(self) -> Option<Memory> {
        let away = match self.away {
            Some(away) => Some(Away {
                last: away.last.reading()?,
                ran: seconds(away.ran_seconds)?,
                passed: seconds(away.passed_seconds)?,
            }),
            None => None,
        };
        Some(Memory { believed: self.believed.reading()?, away })
    }
}

impl ReadingFields {
    fn of(reading: &Reading) -> Self {
        Self {
            wall: Timestamp::from_second(reading.wall).unwrap_or(Timestamp::UNIX_EPOCH).to_string(),
            boot: reading.boot.clone(),
            since_boot_seconds: reading.since_boot,
            awake_seconds: reading.awake,
        }
    }

    fn reading(self) -> Option<Reading> {
        let wall: Timestamp = self.wall.parse().ok()?;
        (self.boot.len() <= BOOT_LEN_MAX).then_some(Reading {
            wall: wall.as_second(),
            boot: self.boot,
            since_boot: seconds(self.since_boot_seconds)?,
            awake: seconds(self.awake_seconds)?,
        })
    }
}

fn seconds(n: i64) -> Option<i64> {
    (0..=SECONDS_MAX).contains(&n).then_some(n)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const YEAR: i64 = 365 * 86_400;

    fn clock() -> (tempfile::TempDir, MachineClock) {
        let dir = tempfile::tempdir().unwrap();
        let clock = MachineClock::new(&Config::at(dir.path()).unwrap());
        (dir, clock)
    }

    /// What was believed so many seconds before now, by the same boot or another.
    fn remember(clock: &MachineClock, wall: i64, boot: Option<&str>) {
        let now = Reading::now();
        let boot = boot.map_or(now.boot.clone(), str::to_owned);
        clock.write(&Memory::believing(Reading { wall: now.wall - wall, boot, ..now })).unwrap();
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let (dir, clock) = clock();
        assert_eq!(clock.known().unwrap(), None);
        let reading = |n| Reading { wall: n, boot: "b".into(), since_boot: n + 1, awake: n + 2 };
        for away in [None, Some(Away { last: reading(70), ran: 5, passed: 6 })] {
            let memory = Memory { believed: reading(7), away };
            clock.write(&memory).unwrap();
            assert_eq!(clock.known().unwrap(), Some(memory));
        }
        assert_eq!(fs::metadata(&clock.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::metadata(&clock.path).unwrap().len() < 1000);
        drop(dir);
    }

    #[test]
    fn a_jump_is_seen_by_whoever_asks_and_ended_by_a_word() {
        let (_dir, clock) = clock();
        assert_eq!(clock.doubt().unwrap(), None, "nothing is known");
        assert_eq!(clock.watch().unwrap(), None);
        // Where it should be now it was a year ago, by this boot's own seconds.
        remember(&clock, YEAR, None);
        for doubt in [clock.doubt().unwrap(), clock.watch().unwrap(), clock.doubt().unwrap()] {
            let doubt = doubt.expect("it is in doubt");
            assert!(doubt.shown.as_second() - doubt.believed.as_second() >= YEAR);
        }
        assert!(clock.certain().as_second() <= clock.shown().as_second() - YEAR);
        clock.believe().unwrap();
        assert_eq!((clock.doubt().unwrap(), clock.watch().unwrap()), (None, None));
        assert!(clock.shown().as_second() - clock.certain().as_second() < 60);
        // Off for an hour, and for a year.
        remember(&clock, 3600, Some("another"));
        assert_eq!(clock.doubt().unwrap(), None);
        remember(&clock, YEAR, Some("another"));
        assert!(clock.watch().unwrap().is_some());
        assert_eq!(clock.known().unwrap().unwrap().away.expect("it is written down").ran, 0);
        // Behind it is no doubt.
        remember(&clock, -YEAR, None);
        assert_eq!(clock.watch().unwrap(), None);
    }

    #[test]
    fn it_is_written_seldom() {
        let (_dir, clock) = clock();
        let written = |clock: &MachineClock| fs::metadata(&clock.path).unwrap().ino();
        clock.watch().unwrap();
        let first = written(&clock);
        for _ in 0..3 {
            clock.watch().unwrap();
        }
        assert_eq!(written(&clock), first);
        remember(&clock, YEAR, None);
        let before = written(&clock);
        clock.watch().unwrap();
        let after = written(&clock);
        assert_ne!(before, after, "a doubt is written down at once");
        clock.watch().unwrap();
        assert_eq!(written(&clock), after);
        assert!(!clock.path.with_extension("lock").exists());
    }

    /// Damage is no reason to believe a clock: what cuts the power is what stops it.
    #[test]
    fn with_a_file_that_can_not_be_read_nothing_is_certain() {
        let (_dir, clock) = clock();
        remember(&clock, 60, None);
        let text = fs::read_to_string(&clock.path).unwrap();
        let harms = [
            String::new(),
            "\u{0}".repeat(100),
            "#".repeat(70_000),
            "[".repeat(60_000),
            text.replace("terrane-clock", "terrane-anchor"),
            text.replace("format_version = 1", "format_version = 2"),
            text.replace("since_boot_seconds = ", "since_boot_seconds = -"),
            text.replace("awake_seconds = ", "awake_seconds = 9000000000000000000 #"),
            text.replace("wall = \"20", "wall = \"x20"),
            text.replace("boot = \"", &format!("boot = \"{}", "b".repeat(100))),
            text[..text.len() / 2].to_owned(),
        ];
        for harm in harms {
            fs::write(&clock.path, &harm).unwrap();
            assert_eq!(clock.certain(), Timestamp::UNIX_EPOCH, "{harm}");
            assert!(clock.doubt().is_err() && clock.watch().is_err(), "{harm}");
            assert_eq!(fs::read(&clock.path).unwrap(), harm.as_bytes(), "it is left as it is");
            clock.believe().unwrap();
            assert!(clock.shown().as_second() - clock.certain().as_second() < 60, "a person's word");
        }
        // What can't be replaced is an error.
        fs::remove_file(&clock.path).unwrap();
        fs::create_dir(&clock.path).unwrap();
        assert!(clock.doubt().is_err() && clock.watch().is_err() && clock.believe().is_err());
        assert_eq!(clock.certain(), Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn without_a_configuration_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let clock = MachineClock::new(&Config::at(&dir.path().join("none")).unwrap());
        clock.believe().unwrap();
        assert_eq!(clock.watch().unwrap(), None);
        assert!(!dir.path().join("none").exists());
    }
}
