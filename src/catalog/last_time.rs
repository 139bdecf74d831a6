//! The newest moment that a region has seen, which all who have it open share by its catalog, and how it is put back.

use parking_lot::Mutex;

use super::{CatalogError, ReadTx, WriteTx};

/// The newest moment a region has seen, in microseconds since the epoch: its clock never goes below it, unless it is put back.
#[derive(Debug, Default)]
pub struct LastTime(Mutex<Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    micros: i64,
    /// How often the clock was put back.
    turn: i64,
}

impl LastTime {
    /// Raises it to at least `micros`; the newest moment now known.
    pub fn raise(&self, micros: i64) -> i64 {
        let mut seen = self.0.lock();
        seen.micros = seen.micros.max(micros);
        seen.micros
    }

    /// What the catalog says: also less than was known, where the clock was put back meanwhile. What was read before that, and comes
    /// late, counts no more.
    fn learn(&self, stored: Seen) {
        let mut seen = self.0.lock();
        match stored.turn.cmp(&seen.turn) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => seen.micros = seen.micros.max(stored.micros),
            std::cmp::Ordering::Greater => *seen = stored,
        }
    }

    pub(super) fn micros(&self) -> i64 {
        self.0.lock().micros
    }
}

impl ReadTx<'_> {
    /// Learns what others have seen, and whether its clock was put back.
    pub(super) fn load_last_time(&self) -> Result<(), CatalogError> {
        self.last_time.learn(self.stored_last_time()?);
        Ok(())
    }

    fn stored_last_time(&self) -> Result<Seen, CatalogError> {
        let sql = "SELECT k, v FROM state WHERE k IN ('last_time', 'clock_turn')";
        let mut seen = Seen::default();
        for (is_turn, v) in self.list(sql, [], |f| Ok((f.text("k")? == "clock_turn", f.int("v")?)))? {
            *(if is_turn { &mut seen.turn } else { &mut seen.micros }) = v;
        }
        Ok(seen)
    }
}

impl WriteTx<'_> {
    /// Puts the region's clock back to a moment. Who has the region open learns of it with the next transaction.
    pub(super) fn put_clock_back(&self, to: i64) -> Result<(), CatalogError> {
        self.execute("UPDATE state SET v = ?1 WHERE k = 'last_time'", [to])?;
        self.execute(
            // A number that somebody put there is no end of it.
            "INSERT INTO state (k, v) VALUES ('clock_turn', 1) ON CONFLICT (k) DO UPDATE SET v = min(v, 9223372036854775806) + 1",
            [],
        )?;
        *self.last_time.0.lock() = self.stored_last_time()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::Pool;

    /// Who has the region open, and was told the wrong time, does not bring it back.
    #[test]
    fn a_clock_that_is_put_back_stays_so_whoever_writes() {
        let dir = tempfile::tempdir().unwrap();
        let cured = crate::catalog::connection::scratch(dir.path());
        let other = |pool: &Pool| Pool::new(pool.path.clone(), "here", Arc::default());
        let (reader, writer, later) = (other(&cured), other(&cured), other(&cured));
        let write = |pool: &Arc<Pool>| pool.catalog().unwrap().write(|_| Ok::<_, CatalogError>(())).unwrap();
        cured.last_time.raise(5_000_000);
        write(&cured);
        for pool in [&reader, &writer] {
            pool.load_state().unwrap();
            assert_eq!(pool.last_time.micros(), 5_000_000);
        }
        let put_back = |to, undone| {
            cured.catalog().unwrap().write(|tx| {
                tx.put_clock_back(to)?;
                if undone { Err(CatalogError::Refused { what: "no".into() }) } else { Ok(()) }
            })
        };
        assert!(put_back(700, true).is_err());
        later.load_state().unwrap();
        assert_eq!(later.last_time.micros(), 5_000_000, "it was undone");
        put_back(1_000, false).unwrap();
        reader.catalog().unwrap().read(|_| Ok::<_, CatalogError>(())).unwrap();
        assert_eq!(reader.last_time.raise(2_000), 2_000);
        write(&writer);
        assert_eq!(writer.last_time.raise(10), 1_000);
        // What was read before is late.
        writer.last_time.learn(Seen { micros: 5_000_000, turn: 0 });
        write(&writer);
        for pool in [&later, &other(&cured)] {
            pool.load_state().unwrap();
            assert_eq!(pool.last_time.micros(), 1_000);
        }
        put_back(500, false).unwrap();
        later.load_state().unwrap();
        assert_eq!(later.last_time.micros(), 500, "more than once");
    }
}
