//! A region's wall clock: the machine's, or in regions made for it the one `TERRANE_CLOCK` gives. It never goes back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::RegionError;
use crate::catalog::LastTime;
use crate::sys::crashsafe;

/// The variable that replaces the wall clock.
pub(super) const VARIABLE: &str = "TERRANE_CLOCK";
const FILE_BYTES_MAX: u64 = 256;

#[derive(Debug)]
enum Source {
    Machine,
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
    /// The machine's clock, or `replaced`, an RFC 3339 time or `@FILE`.
    pub fn new(replaced: Option<&str>, last: Arc<LastTime>) -> Result<Self, RegionError> {
        let source = match replaced {
            None => Source::Machine,
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
        match &self.source {
            Source::Machine => Timestamp::now(),
            Source::Fixed(time) => *time,
            Source::File(path) => read(path).unwrap_or_else(|why| {
                tracing::warn!("{VARIABLE}: {why}; the last time known is used");
                Timestamp::UNIX_EPOCH
            }),
        }
    }

    /// Now, and never before any moment this region has seen.
    pub fn now(&self) -> Timestamp {
        let shown = self.shown();
        let micros = self.last.raise(shown.as_microsecond());
        Timestamp::from_microsecond(micros).unwrap_or(shown)
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

    #[test]
    fn a_replaced_clock_is_read_anew_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("2030-05-01T00:00:00Z\n");
        let clock = Clock::new(Some(&format!("@{}", path.display())), Arc::default()).unwrap();
        assert_eq!(clock.now().to_string(), "2030-05-01T00:00:00Z");
        write("2030-05-02T00:00:00Z");
        assert_eq!(clock.now().to_string(), "2030-05-02T00:00:00Z");
        for earlier in ["2030-05-01T00:00:00Z", "nonsense"] {
            write(earlier);
            assert_eq!(clock.now().to_string(), "2030-05-02T00:00:00Z");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["yesterday", "2030-05-01", "@/nonexistent", "@"] {
            assert!(matches!(Clock::new(Some(text), Arc::default()), Err(RegionError::Clock(_))), "{text}");
        }
    }
}
