//! What ends by the clock: snapshots whose retention is over, and what has been long enough in the bin. When that is, and whether it
//! may be, `catalog` and `volume` say; here is only when a region is looked at, and what is told.
//!
//! A region is opened when its catalog has changed, and when the next moment that it knew of has come by its clock; each time in a
//! thread of its own, so that no copy waits for layers to go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;

use super::backoff::Backoff;
use super::stamp::Stamp;
use crate::catalog::{ReadTx, Snapshot, SnapshotState};
use crate::ids::{RegionId, SnapshotId};
use crate::region::{Clock, Config, Region, RegionError};
use crate::volume::{HostError, Order, Waits, perform_all};

/// So many are ended before others have their turn with the layers.
const AT_ONCE: usize = 16;

/// All regions that a daemon serves.
#[derive(Default)]
pub struct Keeping {
    watches: HashMap<RegionId, Watch>,
}

/// What is known of a region without looking at it.
#[derive(Default)]
struct Watch {
    is_busy: bool,
    /// As the catalog was when it was looked at.
    seen: Option<Stamp>,
    /// When something ends next, by what the region's clock is certain of.
    next: Option<(Arc<Clock>, Timestamp)>,
    /// Something could not be ended: until when that is let be.
    rest: Option<Instant>,
    backoff: Backoff,
    /// Why the region could not be looked at, as it was told.
    failed: Option<String>,
    /// What stands in the way of what, as it was told.
    said: HashMap<SnapshotId, String>,
}

impl Watch {
    fn is_to_be_looked_at(&self, stamp: Stamp) -> bool {
        // What is certain is never later than what is shown, and takes longer to ask for.
        let has_come =
            |(clock, time): &(Arc<Clock>, Timestamp)| clock.now() >= *time && clock.certain() >= *time;
        if self.is_busy {
            return false;
        }
        match self.rest {
            Some(until) if until > Instant::now() => false,
            Some(_) => true,
            None => self.seen != Some(stamp) || self.next.as_ref().is_some_and(has_come),
        }
    }
}

/// A look at a region, to be taken.
pub struct Look {
    id: RegionId,
    name: String,
    dir: PathBuf,
}

/// What a look gave.
pub struct Looked {
    id: RegionId,
    region: String,
    result: Result<Turn, Failure>,
    seen: Option<Stamp>,
}

/// Why nothing could be done in a region.
enum Failure {
    /// It can't be opened: its queue says why.
    Closed,
    /// In words.
    Other(String),
}

impl From<RegionError> for Failure {
    fn from(error: RegionError) -> Self {
        Self::Other(error.to_string())
    }
}

/// What was done in a region.
#[derive(Default)]
struct Turn {
    /// In words.
    ended: Vec<String>,
    left: Vec<(SnapshotId, String)>,
    next: Option<(Arc<Clock>, Timestamp)>,
}

/// What is told of a region.
pub struct Told {
    /// Its name.
    pub region: String,
    /// What ended, and what could not be and was not told of before.
    pub lines: Vec<String>,
    /// Something could not be ended now.
    pub is_put_off: bool,
}

impl Keeping {
    /// The look that has to be taken at a region now, if any. [`Keeping::end`] has to follow.
    pub fn begin(&mut self, id: RegionId, name: &str, dir: &Path) -> Option<Look> {
        let watch = self.watches.entry(id).or_default();
        if !watch.is_to_be_looked_at(Stamp::of(dir)) {
            return None;
        }
        watch.is_busy = true;
        Some(Look { id, name: name.to_owned(), dir: dir.to_owned() })
    }

    /// Whether some look is being taken.
    pub fn is_busy(&self) -> bool {
        self.watches.values().any(|watch| watch.is_busy)
    }

    /// Takes note of what a look gave.
    pub fn end(&mut self, looked: Looked) -> Told {
        let Looked { id, region, result, seen } = looked;
        let watch = self.watches.entry(id).or_default();
        watch.is_busy = false;
        let Turn { ended: mut lines, left, next } = match result {
            Ok(turn) => turn,
            Err(failure) => {
                watch.rest = Some(Instant::now() + watch.backoff.pause());
                let Failure::Other(why) = failure else {
                    return Told { region, lines: Vec::new(), is_put_off: false };
                };
                let is_new = watch.failed.as_ref() != Some(&why);
                watch.failed = Some(why.clone());
                return Told { region, lines: Vec::from_iter(is_new.then_some(why)), is_put_off: true };
            }
        };
        watch.failed = None;
        (watch.seen, watch.next) = (seen, next);
        let is_put_off = !left.is_empty();
        if is_put_off {
            watch.rest = Some(Instant::now() + watch.backoff.pause());
        } else {
            (watch.rest, watch.backoff) = (None, Backoff::default());
        }
        watch.said.retain(|id, _| left.iter().any(|(other, _)| other == id));
        for (id, why) in left {
            if watch.said.get(&id) != Some(&why) {
                lines.push(why.clone());
                watch.said.insert(id, why);
            }
        }
        Told { region, lines, is_put_off }
    }
}

impl Look {
    /// Ends what is over, or the first of it.
    pub fn take(self, config: &Config, cancel: &AtomicBool) -> Looked {
        let before = Stamp::of(&self.dir);
        // What panics is no end of the other regions.
        let turn = std::panic::AssertUnwindSafe(|| self.turn(config, cancel));
        let result = std::panic::catch_unwind(turn)
            .unwrap_or_else(|_| Err(Failure::Other("ending what is over panicked: see the log".into())));
        // The last to close a catalog empties its log. Another's change meanwhile looks the same: once more, then.
        let seen = Some(before).filter(|before| *before == Stamp::of(&self.dir));
        Looked { id: self.id, region: self.name, result, seen }
    }

    fn turn(&self, config: &Config, cancel: &AtomicBool) -> Result<Turn, Failure> {
        let open = || Region::choose(Some(&self.id.to_string()), config).map_err(|_| Failure::Closed);
        let region = open()?;
        let read = |tx: &ReadTx| Ok::<_, RegionError>(tx.endings(region.certain())?);
        let endings = region.catalog()?.read(read)?;
        let next = endings.next.map(|time| (region.clock(), time));
        let mut turn = Turn { next, ..Turn::default() };
        if !endings.over.is_empty() && region.asks_for_passphrase() {
            return Err(Failure::Closed);
        }
        for ids in endings.over.chunks(AT_ONCE) {
            if cancel.load(Ordering::Relaxed) {
                break;
            }
            let rows = region.catalog()?.read(|tx| -> Result<Vec<_>, RegionError> {
                Ok(ids.iter().map(|id| tx.find_snapshot(*id)).collect::<Result<Vec<_>, _>>()?)
            })?;
            let rows: Vec<Snapshot> = rows.into_iter().flatten().collect();
            turn.end(&region, open()?, &rows)?;
        }
        Ok(turn)
    }
}

impl Turn {
    /// Ends these, by the region's owner, for whom it is opened a second time.
    fn end(&mut self, region: &Region, for_owner: Region, rows: &[Snapshot]) -> Result<(), RegionError> {
        let order = |row: &Snapshot| Order::EndSnapshot { snapshot: row.id.to_string() };
        let orders: Vec<_> = rows.iter().map(order).collect();
        match perform_all(for_owner, &orders, Waits::BACKGROUND) {
            Ok(done) => {
                // Those behind an error of the layers' owner were not given: another look finds them.
                for (row, done) in rows.iter().zip(done) {
                    match done {
                        Ok(()) => match words_of_end(region, row)? {
                            Some(words) => self.ended.push(words),
                            None if is_still_over(region, row)? => {
                                self.left.push((row.id, words_of_refusal(row)))
                            }
                            None => {}
                        },
                        // Somebody else has ended it.
                        Err(_) if region.catalog()?.read(|tx| tx.find_snapshot(row.id))?.is_none() => {}
                        Err(error) => self.left.push((row.id, words_of_failure(row, &error))),
                    }
                }
            }
            Err(error) => self.left.extend(rows.iter().map(|row| (row.id, words_of_failure(row, &error)))),
        }
        Ok(())
    }
}

/// What became of a snapshot; none: nothing.
fn words_of_end(region: &Region, row: &Snapshot) -> Result<Option<String>, RegionError> {
    let (now, entry) = region
        .catalog()?
        .read(|tx| Ok::<_, RegionError>((tx.find_snapshot(row.id)?, tx.bin_entry(row.id)?)))?;
    let what = format!("snapshot {} ({})", row.name, row.id);
    Ok(match (row.state, now, entry) {
        (SnapshotState::Deleted, None, _) => Some(format!("{what} is gone: its time in the bin is over")),
        (_, None, _) => Some(format!("{what} is deleted: its retention is over")),
        (SnapshotState::Success, Some(now), Some(entry)) if now.state == SnapshotState::Deleted => {
            Some(format!("{what} is in the bin until {}: its retention is over", entry.purge_at))
        }
        _ => None,
    })
}

/// Nothing became of it, and by what this process is certain of it should have.
fn is_still_over(region: &Region, row: &Snapshot) -> Result<bool, RegionError> {
    let over = region.catalog()?.read(|tx| Ok::<_, RegionError>(tx.endings(region.certain())?))?.over;
    Ok(over.contains(&row.id))
}

/// The mount has a clock of its own, where its configuration is another: asked at once again it would say the same.
fn words_of_refusal(row: &Snapshot) -> String {
    format!(
        "snapshot {} ({}) stays: its time is over by the clock that this daemon knows, and not by the one that the mount does; mount with \
         the same configuration",
        row.name, row.id
    )
}

fn words_of_failure(row: &Snapshot, error: &HostError) -> String {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("snapshot {} ({}) stays, though its time is over: {error}{hint}", row.name, row.id)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn looked(id: RegionId, seen: Option<Stamp>, turn: Turn) -> Looked {
        Looked { id, region: "here".into(), result: Ok(turn), seen }
    }

    /// A clock that a test sets.
    fn clock(at: &Path, time: &str) -> Arc<Clock> {
        std::fs::write(at, time).unwrap();
        let config = Config::at(at).unwrap();
        Arc::new(Clock::new(Some(&format!("@{}", at.display())), Arc::default(), &config).unwrap())
    }

    #[test]
    fn a_region_is_looked_at_when_its_catalog_changed_or_a_moment_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let (id, at) = (RegionId::random(), dir.path().join("clock"));
        let clock = clock(&at, "2031-01-01T00:00:00Z");
        let mut keeping = Keeping::default();
        let begins = |keeping: &mut Keeping| keeping.begin(id, "here", dir.path()).is_some();
        assert!(begins(&mut keeping) && keeping.is_busy());
        assert!(!begins(&mut keeping), "one look at a time");
        let seen = Some(Stamp::of(dir.path()));
        let next = Some((clock, "2031-01-08T00:00:00Z".parse().unwrap()));
        keeping.end(looked(id, seen, Turn { next, ..Turn::default() }));
        assert!(!keeping.is_busy());
        for _ in 0..3 {
            assert!(!begins(&mut keeping), "nothing has changed");
        }
        std::fs::write(&at, "2031-01-07T23:59:59.999999Z").unwrap();
        assert!(!begins(&mut keeping));
        std::fs::write(&at, "2031-01-08T00:00:00Z").unwrap();
        assert!(begins(&mut keeping), "the moment has come");
        keeping.end(looked(id, seen, Turn::default()));
        assert!(!begins(&mut keeping));
        std::fs::write(dir.path().join("catalog.db"), "changed").unwrap();
        assert!(begins(&mut keeping), "the catalog has changed");
        // It changed once more during the look.
        keeping.end(looked(id, None, Turn::default()));
        assert!(begins(&mut keeping));
    }

    #[test]
    fn what_stays_is_told_once_and_tried_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let (id, snapshot) = (RegionId::random(), SnapshotId::random());
        let mut keeping = Keeping::default();
        let seen = Some(Stamp::of(dir.path()));
        let mut lines = |why: &str| {
            let left = vec![(snapshot, why.to_owned())];
            let told = keeping.end(looked(id, seen, Turn { left, ..Turn::default() }));
            assert!(told.is_put_off);
            assert!(keeping.begin(id, "here", dir.path()).is_none(), "not at once");
            told.lines
        };
        assert_eq!(lines("it is read"), ["it is read"]);
        assert!(lines("it is read").is_empty());
        assert_eq!(lines("it is damaged"), ["it is damaged"]);
    }
}
