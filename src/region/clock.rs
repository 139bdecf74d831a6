//! A region's wall clock: the machine's, or in regions made for it the one `TERRANE_CLOCK` gives. It never goes back.
//!
//! What is made is dated by [`Clock::now`]. What ends by the clock ends by [`Clock::certain`], which is earlier where the machine's clock is,
//! or is not believed: one wrong time ends nothing, neither then nor, by what the region remembers of it, later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::machine_clock::MachineClock;
use super::{Config, RegionError};
use crate::catalog::LastTime;
use crate::sys::crashsafe;

/// The variable that replaces the wall clock.
pub(super) const VARIABLE: &str = "TERRANE_CLOCK";
const FILE_BYTES_MAX: u64 = 256;

#[derive(Debug)]
enum Source {
    Machine(MachineClock),
    Fixed(Timestamp),
    File(PathBuf),
}

/// A region's clock, which can be asked without its region. It goes on while that is closed, but learns no moment that others have seen.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    last: Arc<LastTime>,
}

impl Clock {
    /// The machine's clock, as this configuration knows it, or `replaced`, an RFC 3339 time or `@FILE`.
    pub fn new(replaced: Option<&str>, last: Arc<LastTime>, config: &Config) -> Result<Self, RegionError> {
        let source = match replaced {
            None => Source::Machine(MachineClock::new(config)),
            Some(text) => match text.strip_prefix('@') {
                Some(path) => {
                    read(Path::new(path)).map_err(RegionError::Clock)?;
                    Source::File(path.into())
                }
                None => Source::Fixed(parse(text).map_err(RegionError::Clock)?),
            },
        };
        Ok(Self { source, last })
    }

    /// What `TERRANE_CLOCK` says, if it is set.
    pub(super) fn replacement() -> Option<String> {
        std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())
    }

    /// What the machine's clock shows, or what replaces it; it may go back.
    pub fn shown(&self) -> Timestamp {
        self.read().unwrap_or_else(|error| {
            tracing::warn!("{error}; the last time known is used");
            Timestamp::UNIX_EPOCH
        })
    }

    /// The same; an error where what replaces the machine's clock can't be read.
    pub fn read(&self) -> Result<Timestamp, RegionError> {
        match &self.source {
            Source::Machine(machine) => Ok(machine.shown()),
            Source::Fixed(time) => Ok(*time),
            Source::File(path) => read(path).map_err(RegionError::Clock),
        }
    }

    /// Now, and never before any moment this region has seen.
    pub fn now(&self) -> Timestamp {
        let shown = self.shown();
        let micros = self.last.raise(shown.as_microsecond());
        Timestamp::from_microsecond(micros).unwrap_or(shown)
    }

    /// The latest moment that has come for sure: nothing ends by the clock, and no lock, before it is past. By the machine's clock what
    /// that shows, unless it is [in doubt](MachineClock); what replaces it is taken at its word.
    pub fn certain(&self) -> Timestamp {
        match &self.source {
            Source::Machine(machine) => machine.certain(),
            Source::Fixed(_) | Source::File(_) => self.now(),
        }
    }

    /// The machine's clock, if it is this one.
    pub fn machine(&self) -> Option<&MachineClock> {
        match &self.source {
            Source::Machine(machine) => Some(machine),
            Source::Fixed(_) | Source::File(_) => None,
        }
    }
}

fn parse(text: &str) -> Result<Timestamp, String> {
    text.trim().parse().map_err(|error| format!("{text:?} is no RFC 3339 time: {error}"))
}

fn read(path: &Path) -> Result<Timestamp, String> {
    let bytes =
        crashsafe::read_file(path, FILE_BYTES_MAX).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(replaced: Option<&str>, last: i64, config: &Path) -> Result<Clock, RegionError> {
        let known = Arc::<LastTime>::default();
        known.raise(last);
        Clock::new(replaced, known, &Config::at(config).unwrap())
    }

    #[test]
    fn a_replaced_clock_is_read_anew_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("2030-05-01T00:00:00Z\n");
        let clock = clock(Some(&format!("@{}", path.display())), 0, dir.path()).unwrap();
        assert_eq!(clock.now().to_string(), "2030-05-01T00:00:00Z");
        write("2030-05-02T00:00:00Z");
        assert_eq!(clock.now().to_string(), "2030-05-02T00:00:00Z");
        for earlier in ["2030-05-01T00:00:00Z", "nonsense"] {
            write(earlier);
            assert_eq!(clock.now().to_string(), "2030-05-02T00:00:00Z");
            assert_eq!(clock.certain(), clock.now());
        }
        assert!(clock.read().is_err());
    }

    #[test]
    fn a_region_ahead_of_the_machine_ends_nothing_early() {
        let dir = tempfile::tempdir().unwrap();
        let later: Timestamp = "2999-01-01T00:00:00Z".parse().unwrap();
        let clock = clock(None, later.as_microsecond(), dir.path()).unwrap();
        assert_eq!(clock.now(), later);
        assert!(clock.certain() <= Timestamp::now() && clock.shown() <= Timestamp::now());
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["yesterday", "2030-05-01", "@/nonexistent", "@"] {
            assert!(matches!(clock(Some(text), 0, Path::new("/")), Err(RegionError::Clock(_))), "{text}");
        }
    }
}
