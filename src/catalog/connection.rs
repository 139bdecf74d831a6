use std::collections::HashSet;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, Params, Transaction, TransactionBehavior};

use super::error::{from_sqlite, is_duplicate};
use super::row::Fields;
use super::schema::{APPLICATION_ID, MIGRATIONS};
use super::{CatalogError, Kind, LastTime, SCHEMA_VERSION};
use crate::sys::{crashsafe, owned};

/// How long a transaction waits for those of other processes.
pub(super) const BUSY_SECONDS: u64 = 60;
/// SQLite's own limit on a path is 512 bytes, and it appends `-journal`.
const PATH_BYTES_MAX: usize = 500;
/// No row and no text is longer; a longer one is not read into memory.
const ROW_BYTES_MAX: i32 = 1 << 20;
/// Connections kept for the next caller.
const IDLE_MAX: usize = 8;

/// Connections to one region's catalog, handed from thread to thread.
#[derive(Debug)]
pub struct Pool {
    pub(super) path: PathBuf,
    region: Arc<str>,
    pub(super) last_time: Arc<LastTime>,
    idle: Mutex<Vec<Connection>>,
    written: AtomicU64,
}

impl Pool {
    /// The catalog at `path` (a canonical path) of the region named `region`. Opens nothing yet.
    pub fn new(path: PathBuf, region: &str, last_time: Arc<LastTime>) -> Arc<Self> {
        Arc::new(Self {
            path,
            region: region.into(),
            last_time,
            idle: Mutex::new(Vec::new()),
            written: AtomicU64::new(0),
        })
    }

    /// Makes the file, mode 0600, with the newest schema and no rows. `AlreadyExists` if there is one.
    pub fn create(self: &Arc<Self>) -> Result<(), CatalogError> {
        crashsafe::create_file(&self.path, b"", 0o600)
            .map_err(|source| CatalogError::Io { path: self.path.clone(), source })?;
        let mut connection = self.connect()?;
        let sql = |error| from_sqlite(&self.region, error);
        connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0))
            .map_err(sql)?;
        migrate(&mut connection, &self.region, MIGRATIONS)?;
        self.idle.lock().push(connection);
        Ok(())
    }

    /// A connection, checked to be to a catalog of this version.
    pub fn catalog(self: &Arc<Self>) -> Result<Catalog, CatalogError> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = self.connect()?;
                let found = self.check(&connection)?;
                if found < SCHEMA_VERSION {
                    return Err(CatalogError::OlderSchema {
                        region: self.region.to_string(),
                        found,
                        known: SCHEMA_VERSION,
                    });
                }
                connection
            }
        };
        Ok(Catalog { connection: Some(connection), pool: self.clone() })
    }

    /// The schema version the file has; refuses newer ones and files that are no catalog.
    pub fn schema_version(self: &Arc<Self>) -> Result<u32, CatalogError> {
        let connection = self.connect()?;
        let found = self.check(&connection)?;
        if found == SCHEMA_VERSION {
            self.idle.lock().push(connection);
        }
        Ok(found)
    }

    /// Takes an older catalog to the newest schema. The caller holds the region alone.
    pub fn migrate(self: &Arc<Self>) -> Result<(), CatalogError> {
        let mut connection = self.connect()?;
        self.check(&connection)?;
        migrate(&mut connection, &self.region, MIGRATIONS)
    }

    /// Reads the newest moment the catalog knows into the region's clock; the catalog's generation.
    pub fn load_state(self: &Arc<Self>) -> Result<u64, CatalogError> {
        self.catalog()?.read(|tx| {
            tx.load_last_time()?;
            tx.generation()
        })
    }

    /// The newest generation this process has made durable; 0 if it wrote nothing.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn connect(&self) -> Result<Connection, CatalogError> {
        if self.path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(CatalogError::Refused {
                what: format!(
                    "the path of region {} has more than {PATH_BYTES_MAX} bytes; move it to a shorter one",
                    self.region
                ),
            });
        }
        self.check_files()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let sql = |error| from_sqlite(&self.region, error);
        let mut connection = Connection::open_with_flags(&self.path, flags).map_err(sql)?;
        let mut since = Instant::now();
        connection
            .busy_handler(Some(move |tries: i32| {
                // Short, uneven waits: fair to many writers, where SQLite's own grow to 100 ms and starve some.
                if tries == 0 {
                    since = Instant::now();
                }
                std::thread::sleep(Duration::from_micros(
                    500 + u64::from(tries.unsigned_abs()) * 7919 % 4000,
                ));
                since.elapsed() < Duration::from_secs(BUSY_SECONDS)
            }))
            .map_err(sql)?;
        distrust(&connection).map_err(sql)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(sql)?;
        connection.pragma_update(None, "synchronous", "full").map_err(sql)?;
        connection.set_prepared_statement_cache_capacity(64);
        // One plan a statement, whatever is bound to it: built with STAT4, SQLite else compiles it anew at each binding of another id.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(sql)?;
        Ok(connection)
    }

    /// Not a link, not a pipe: SQLite would follow the one and wait for the other. And no rollback journal: a catalog is in
    /// WAL mode from before it gets its name, and SQLite believes a journal, which may name any file to be removed.
    fn check_files(&self) -> Result<(), CatalogError> {
        let refused = |path: &Path, expected: &str, source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData => CatalogError::Corrupted {
                region: self.region.to_string(),
                what: path.display().to_string(),
                expected: expected.into(),
                found: source.to_string(),
            },
            _ => CatalogError::Io { path: path.to_owned(), source },
        };
        // Not opened: POSIX locks of a process go when it closes any descriptor of the file, and with those of the pool's other
        // connections gone, another program's SQLite takes the WAL away under them.
        owned::check(&self.path).map_err(|e| refused(&self.path, "a file", e))?;
        let beside = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        for path in ["-wal", "-shm"].map(beside) {
            owned::check_if_there(&path).map_err(|e| refused(&path, "a file", e))?;
        }
        let journal = beside("-journal");
        let there = io::Error::new(io::ErrorKind::InvalidData, "there: move it away");
        match journal.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            found => Err(refused(&journal, "absent", found.err().unwrap_or(there))),
        }
    }

    fn check(&self, connection: &Connection) -> Result<u32, CatalogError> {
        let sql = |error| from_sqlite(&self.region, error);
        let pragma =
            |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(sql);
        let corrupted = |what: &str, expected: String, found: i64| CatalogError::Corrupted {
            region: self.region.to_string(),
            what: format!("the {what} of catalog.db"),
            expected,
            found: found.to_string(),
        };
        let id = pragma("application_id")?;
        if id != i64::from(APPLICATION_ID) {
            return Err(corrupted("application_id", APPLICATION_ID.to_string(), id));
        }
        let version = pragma("user_version")?;
        let found =
            u32::try_from(version).map_err(|_| corrupted("user_version", "a version".into(), version))?;
        if found > SCHEMA_VERSION {
            return Err(CatalogError::NewerSchema {
                region: self.region.to_string(),
                found,
                known: SCHEMA_VERSION,
            });
        }
        if found == 0 {
            return Err(corrupted("user_version", format!("1 to {SCHEMA_VERSION}"), version));
        }
        self.check_schema(connection, found)?;
        Ok(found)
    }
}

impl Pool {
    /// A catalog has the tables and indexes of its version, word for word, and nothing else: a trigger, a view, an expression in
    /// an index or a check would run within our statements, and need not end.
    fn check_schema(&self, connection: &Connection, version: u32) -> Result<(), CatalogError> {
        let sql = |error| from_sqlite(&self.region, error);
        let corrupted = |what: &str, expected: &str, found: &str| CatalogError::Corrupted {
            region: self.region.to_string(),
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
        };
        let mode: String =
            connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).map_err(sql)?;
        if mode != "wal" {
            return Err(corrupted("the journal mode of catalog.db", "wal", &mode));
        }
        let known = objects_of_version(version).map_err(sql)?;
        let found = objects(connection).map_err(sql)?;
        match found.iter().find(|object| !known.contains(object)) {
            Some(other) => Err(corrupted(
                &format!(
                    "the {} {:?} of catalog.db",
                    other.kind,
                    other.name.chars().take(64).collect::<String>()
                ),
                &format!("one of schema {version}"),
                "another",
            )),
            None if found.len() < known.len() => {
                Err(corrupted("catalog.db", &format!("all tables of schema {version}"), "fewer"))
            }
            None => Ok(()),
        }
    }
}

/// The file may be anybody's.
pub(super) fn distrust(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // There are none, and what is not of our schema is refused; these would run before that is seen.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, ROW_BYTES_MAX)?;
    connection.pragma_update(None, "cell_size_check", true)
}

/// Whether each table of ours that a database has is word for word that of some version.
pub(super) fn has_our_tables(connection: &Connection) -> Result<bool, rusqlite::Error> {
    let versions = (1..=SCHEMA_VERSION).map(objects_of_version).collect::<Result<Vec<_>, _>>()?;
    let known: HashSet<&Object> = versions.iter().flat_map(|objects| objects.iter()).collect();
    let is_ours = |found: &Object| known.contains(found) || !known.iter().any(|ours| ours.name == found.name);
    Ok(objects(connection)?.iter().all(is_ours))
}

/// A table, index, trigger or view.
#[derive(PartialEq, Eq, Hash)]
struct Object {
    kind: String,
    name: String,
    sql: Option<String>,
}

/// What a database has, but for what ANALYZE notes.
fn objects(connection: &Connection) -> Result<HashSet<Object>, rusqlite::Error> {
    let mut statement = connection.prepare(
        "SELECT type, name, sql FROM sqlite_schema WHERE type <> 'table' OR name NOT IN ('sqlite_stat1', 'sqlite_stat4')",
    )?;
    let rows = statement
        .query_map([], |row| Ok(Object { kind: row.get(0)?, name: row.get(1)?, sql: row.get(2)? }))?;
    rows.collect()
}

/// What the schema of a version has.
fn objects_of_version(version: u32) -> Result<Arc<HashSet<Object>>, rusqlite::Error> {
    static KNOWN: Mutex<Option<(u32, Arc<HashSet<Object>>)>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    if let Some((_, objects)) = known.as_ref().filter(|(of, _)| *of == version) {
        return Ok(objects.clone());
    }
    let scratch = Connection::open_in_memory()?;
    MIGRATIONS.iter().take(version as usize).try_for_each(|step| scratch.execute_batch(step))?;
    let objects = Arc::new(objects(&scratch)?);
    *known = Some((version, objects.clone()));
    Ok(objects)
}

/// Steps a catalog from its `user_version` through the rest of `steps`, all in one transaction.
fn migrate(connection: &mut Connection, region: &str, steps: &[&str]) -> Result<(), CatalogError> {
    let sql = |error| from_sqlite(region, error);
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let done: u32 = tx.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)?;
    for (version, step) in (1u32..).zip(steps).skip(done as usize) {
        tx.execute_batch(step).map_err(sql)?;
        tx.pragma_update(None, "user_version", version).map_err(sql)?;
    }
    tx.commit().map_err(sql)
}

/// A connection to a region's catalog; back in the pool when dropped.
#[derive(Debug)]
pub struct Catalog {
    connection: Option<Connection>,
    pool: Arc<Pool>,
}

impl Catalog {
    /// Runs `f` on one unchanging state of the catalog.
    pub fn read<T, E: From<CatalogError>>(
        &mut self,
        f: impl FnOnce(&ReadTx) -> Result<T, E>,
    ) -> Result<T, E> {
        let region = self.pool.region.clone();
        let last_time = self.pool.last_time.clone();
        let tx = self.begin(TransactionBehavior::Deferred)?;
        let read = ReadTx { tx, region, last_time };
        // A process that has the region open for long, and writes seldom, learns here that its clock was put back.
        read.load_last_time()?;
        f(&read)
    }

    /// Runs `f` alone among writers, and makes what it changed durable; an error undoes all of it.
    pub fn write<T, E: From<CatalogError>>(
        &mut self,
        f: impl FnOnce(&WriteTx) -> Result<T, E>,
    ) -> Result<T, E> {
        let pool = self.pool.clone();
        let region = pool.region.clone();
        let last_time = self.pool.last_time.clone();
        let tx = self.begin(TransactionBehavior::Immediate)?;
        let write = WriteTx { read: ReadTx { tx, region, last_time } };
        write.load_last_time()?;
        let result = f(&write)?;
        let generation = write.store_state()?;
        let ReadTx { tx, region, .. } = write.read;
        tx.commit().map_err(|error| from_sqlite(&region, error))?;
        pool.written.fetch_max(generation, Ordering::Relaxed);
        Ok(result)
    }

    fn begin(&mut self, behavior: TransactionBehavior) -> Result<Transaction<'_>, CatalogError> {
        let region = &self.pool.region;
        let connection =
            self.connection.as_mut().expect("a catalog keeps its connection until it is dropped");
        connection.transaction_with_behavior(behavior).map_err(|error| from_sqlite(region, error))
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let mut idle = self.pool.idle.lock();
        if connection.is_autocommit() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

/// One state of the catalog. Its queries are in the files of the nouns.
pub struct ReadTx<'c> {
    tx: Transaction<'c>,
    region: Arc<str>,
    pub(super) last_time: Arc<LastTime>,
}

/// A transaction that may change rows, and reads as well.
pub struct WriteTx<'c> {
    read: ReadTx<'c>,
}

impl<'c> Deref for WriteTx<'c> {
    type Target = ReadTx<'c>;

    fn deref(&self) -> &ReadTx<'c> {
        &self.read
    }
}

impl ReadTx<'_> {
    /// The region's name, for sentences.
    pub fn region(&self) -> &str {
        &self.region
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        params: impl Params,
        decode: impl Fn(&Fields) -> Result<T, CatalogError>,
    ) -> Result<Vec<T>, CatalogError> {
        let sqlite = |error| from_sqlite(&self.region, error);
        let mut statement = self.tx.prepare_cached(sql).map_err(sqlite)?;
        let mut rows = statement.query(params).map_err(sqlite)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            found.push(decode(&Fields::new(row, &self.region))?);
        }
        Ok(found)
    }

    pub(super) fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        decode: impl Fn(&Fields) -> Result<T, CatalogError>,
    ) -> Result<Option<T>, CatalogError> {
        Ok(self.list(sql, params, decode)?.into_iter().next())
    }

    pub(super) fn not_found(&self, kind: Kind, text: impl ToString) -> CatalogError {
        CatalogError::NotFound { kind, text: text.to_string(), region: self.region.to_string() }
    }

    /// How many writes the catalog has seen: an older one put back has a lower number.
    pub fn generation(&self) -> Result<u64, CatalogError> {
        let stored = self.first("SELECT v FROM state WHERE k = 'generation'", [], |f| f.unsigned("v"))?;
        Ok(stored.unwrap_or(0))
    }

    /// What SQLite's own check finds wrong, in its words; nothing if all is well.
    pub fn integrity_problems(&self) -> Result<Vec<String>, CatalogError> {
        let mut found =
            self.list("PRAGMA integrity_check(20)", [], |f| Ok(f.text("integrity_check")?.to_owned()))?;
        found.retain(|line| line != "ok");
        let broken = self.list("PRAGMA foreign_key_check", [], |f| {
            Ok(format!("a row of {} refers to nothing", f.text("table")?))
        })?;
        found.extend(broken);
        Ok(found)
    }
}

impl WriteTx<'_> {
    /// Changes rows; how many.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, CatalogError> {
        self.execute_raw(sql, params).map_err(|error| from_sqlite(&self.region, error))
    }

    /// Adds a row; a taken name or id is [`CatalogError::Exists`], a reference to nothing [`CatalogError::Needed`].
    pub(super) fn insert(
        &self,
        kind: Kind,
        name: &str,
        sql: &str,
        params: impl Params,
    ) -> Result<(), CatalogError> {
        match self.execute_raw(sql, params) {
            Ok(_) => Ok(()),
            Err(error) if is_duplicate(&error) => {
                Err(CatalogError::Exists { kind, name: name.into(), region: self.region.to_string() })
            }
            Err(error) => Err(named(from_sqlite(&self.region, error), kind, name)),
        }
    }

    /// Changes exactly one row, else it was not there.
    pub(super) fn update(
        &self,
        kind: Kind,
        id: impl ToString,
        sql: &str,
        params: impl Params,
    ) -> Result<(), CatalogError> {
        let id = id.to_string();
        match self.execute_raw(sql, params) {
            Ok(0) => Err(self.not_found(kind, id)),
            Ok(_) => Ok(()),
            Err(error) => Err(named(from_sqlite(&self.region, error), kind, &id)),
        }
    }

    fn execute_raw(&self, sql: &str, params: impl Params) -> Result<usize, rusqlite::Error> {
        self.read.tx.prepare_cached(sql)?.execute(params)
    }

    /// Stores the newest moment and counts this write; the generation it makes.
    fn store_state(&self) -> Result<u64, CatalogError> {
        let last = self.last_time.micros();
        self.execute("UPDATE state SET v = ?1 WHERE k = 'last_time' AND v < ?1", [last])?;
        self.execute("UPDATE state SET v = v + 1 WHERE k = 'generation'", [])?;
        self.generation()
    }
}

fn named(error: CatalogError, kind: Kind, name: &str) -> CatalogError {
    match error {
        CatalogError::Needed { region, .. } => {
            CatalogError::Needed { what: format!("{kind} {name}"), region }
        }
        other => other,
    }
}

/// A catalog in a folder of its own, for tests of this crate.
#[cfg(test)]
pub(crate) fn scratch(dir: &std::path::Path) -> Arc<Pool> {
    let pool = Pool::new(dir.canonicalize().unwrap().join("catalog.db"), "here", Arc::default());
    pool.create().unwrap();
    pool
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// With the last of them anybody's SQLite that looks at the catalog takes the WAL away under its other connections.
    #[test]
    fn more_connections_take_no_locks_from_the_first() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let pool = scratch(dir.path());
        let first = pool.catalog().unwrap();
        let inode = std::fs::metadata(dir.path().join("catalog.db")).unwrap().ino();
        let is_locked = || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let ours = format!(":{inode} ");
            locks.lines().any(|line| line.contains("POSIX") && line.contains("READ") && line.contains(&ours))
        };
        assert!(is_locked(), "SQLite holds no lock: this test looks for the wrong one");
        let more: Vec<_> = (0..3).map(|_| pool.catalog().unwrap()).collect();
        assert!(is_locked());
        drop((more, first));
    }

    #[test]
    fn the_file_is_private_durable_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let pool = scratch(dir.path());
        let mut catalog = pool.catalog().unwrap();
        catalog
            .read(|tx| {
                let value =
                    |name: &str| tx.tx.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
                assert_eq!(value("synchronous"), 2);
                assert_eq!(value("foreign_keys"), 1);
                assert_eq!(value("trusted_schema"), 0);
                let mode: String = tx.tx.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
                assert_eq!(mode, "wal");
                Ok::<_, CatalogError>(())
            })
            .unwrap();
        for name in ["catalog.db", "catalog.db-wal"] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(pool.create().is_err(), "made once only");
    }

    #[test]
    fn an_error_undoes_the_whole_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = scratch(dir.path()).catalog().unwrap();
        let failed = catalog.write(|tx| {
            tx.set_flag(super::super::Setting::KmsEnabled, false)?;
            Err::<(), _>(CatalogError::Refused { what: "no".into() })
        });
        assert!(failed.is_err());
        assert!(catalog.read(|tx| tx.flag(super::super::Setting::KmsEnabled)).unwrap());
    }

    #[test]
    fn newer_foreign_and_damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let pool = scratch(dir.path());
            pool.path.clone()
        };
        let open = || Pool::new(path.clone(), "here", Arc::default()).catalog().map(drop);
        open().unwrap();
        let raw = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        raw("PRAGMA user_version = 99");
        assert!(matches!(open(), Err(CatalogError::NewerSchema { found: 99, .. })));
        raw("PRAGMA user_version = -1");
        assert!(matches!(open(), Err(CatalogError::Corrupted { .. })));
        raw("PRAGMA user_version = 1; PRAGMA application_id = 7");
        assert!(matches!(open(), Err(CatalogError::Corrupted { .. })));
        for wrong in [&b"not a database, but long enough to look at"[..], b"", &[0; 100_000]] {
            for name in ["catalog.db-wal", "catalog.db-shm"] {
                let _ = std::fs::remove_file(dir.path().join(name));
            }
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(open(), Err(CatalogError::Corrupted { .. })), "{:?}", open());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(open(), Err(CatalogError::Corrupted { .. })));
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(open().is_err());
    }

    #[test]
    fn migrations_step_from_where_the_file_is() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = ["CREATE TABLE a (x)", "CREATE TABLE b (x)", "INSERT INTO b VALUES (1)"];
        migrate(&mut connection, "here", &steps[..1]).unwrap();
        migrate(&mut connection, "here", &steps).unwrap();
        migrate(&mut connection, "here", &steps).unwrap();
        let rows: i64 = connection.query_row("SELECT count(*) FROM b", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
        assert!(
            migrate(&mut connection, "here", &[steps[0], steps[1], steps[2], "CREATE TABLE c (x); nonsense"])
                .is_err()
        );
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 3, "a failed step undoes its migration");
        assert!(connection.prepare("SELECT * FROM c").is_err());
    }

    #[test]
    fn what_schedules_took_before_it_was_noted_is_taken() {
        let mut old = Connection::open_in_memory().unwrap();
        migrate(&mut old, "here", &MIGRATIONS[..7]).unwrap();
        old.execute_batch(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO accounts VALUES ('acc', 'default', 1, 0);
             INSERT INTO schedules (id, account, name, detail, created_at, last_due) VALUES ('sched', 'acc', 'nightly', '', 0, 50);
             INSERT INTO snapshots (id, account, name, size_bytes, kind, cipher, state, progress_percent, created_by, changed_bytes,
               shipped_bytes, stored_bytes, created_at)
             VALUES ('there', 'acc', 'there', 4096, 'data', 'none', 'success', 100, '', 0, 0, 0, 0);
             INSERT INTO schedule_snapshots (snapshot, schedule, volume, due, name)
             VALUES ('there', 'sched', 'v', 90, 'there'), ('gone', 'sched', 'v', 50, 'gone'), ('written-down', 'sched', 'w', 90, 'w');",
        )
        .unwrap();
        migrate(&mut old, "here", MIGRATIONS).unwrap();
        let mut taken =
            old.prepare("SELECT snapshot FROM schedule_snapshots WHERE is_taken = 1 ORDER BY 1").unwrap();
        let taken: Vec<String> = taken.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(taken, ["gone", "there"]);
    }

    /// A catalog of each earlier version is asked to be migrated, and keeps its rows; what is damaged is salvaged as it is.
    #[test]
    fn catalogs_of_all_versions_open_and_are_salvaged() {
        for version in 1..SCHEMA_VERSION {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().canonicalize().unwrap().join("catalog.db");
            let region = "here";
            {
                let mut old = Connection::open(&path).unwrap();
                old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
                old.pragma_update(None, "journal_mode", "wal").unwrap();
                migrate(&mut old, region, &MIGRATIONS[..version as usize]).unwrap();
                let layer = "0123456789abcdef0123456789abcdef";
                old.execute_batch(&format!(
                    "INSERT INTO accounts VALUES ('acc-00000000000000001', 'default', 1, 0);
                     INSERT INTO layers VALUES ('{layer}', 'acc-00000000000000001', NULL, NULL, 4096, 'sealed', 'none', NULL,
                       1, x'00', NULL, NULL, NULL, 0, 0);
                     INSERT INTO snapshots (id, account, name, layer, size_bytes, kind, cipher, state, progress_percent,
                       created_by, changed_bytes, shipped_bytes, stored_bytes, created_at)
                     VALUES ('snap-00000000000000001', 'acc-00000000000000001', 'old', '{layer}', 4096, 'data', 'none',
                       'success', 100, 'snapshot create', 0, 0, 0, 0);
                     INSERT INTO tasks (id, account, kind, detail, state, bytes_done, bytes_total, created_at, updated_at)
                     VALUES ('task-00000000000000001', 'acc-00000000000000001', 'copy', '{{}}', 'running', 1, 2, 0, 0);"
                ))
                .unwrap();
            }
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let salvaged = super::super::Salvaged::read(&path, region);
            assert_eq!(
                (salvaged.accounts.len(), salvaged.ended_layers.len()),
                (1, 1),
                "of version {version}"
            );
            // The column `mac` is of version 3.
            assert_eq!(salvaged.snapshots.len(), usize::from(version >= 3), "of version {version}");
            assert!(salvaged.locks.is_empty());
            let pool = Pool::new(path, region, Arc::default());
            assert_eq!(pool.schema_version().unwrap(), version);
            assert!(matches!(pool.catalog(), Err(CatalogError::OlderSchema { .. })));
            pool.migrate().unwrap();
            let locked = pool.catalog().unwrap().write(|tx| {
                let old = tx.resolve_snapshot("old")?;
                // Nobody can go on with what a version before the queue began; what a later one did goes on.
                let task = tx.tasks()?.remove(0);
                if version < 5 {
                    assert_eq!((task.state, task.exit), (super::super::TaskState::Failed, Some(4)));
                    assert!(task.error.unwrap().contains("an earlier version"));
                } else {
                    assert_eq!((task.state, task.exit), (super::super::TaskState::Running, None));
                }
                // One in the bin has freed its name, and no other.
                let twin = super::super::Snapshot { id: crate::ids::SnapshotId::random(), ..old.clone() };
                assert!(matches!(tx.insert_snapshot(&twin), Err(CatalogError::Exists { .. })));
                let time = jiff::Timestamp::UNIX_EPOCH;
                let entry = super::super::BinEntry { deleted_at: time, purge_at: time, mac: None };
                tx.put_in_bin(old.id, &entry)?;
                tx.insert_snapshot(&twin)?;
                assert_eq!(tx.resolve_snapshot("old")?.id, twin.id);
                assert_eq!(tx.bin_entry(old.id)?, Some(entry));
                assert!(matches!(
                    tx.take_out_of_bin(&old, &old.name, old.mac),
                    Err(CatalogError::Exists { .. })
                ));
                tx.delete_snapshot(twin.id)?;
                tx.take_out_of_bin(&old, &old.name, old.mac)?;
                assert_eq!((tx.resolve_snapshot("old")?, tx.bin_entry(old.id)?), (old.clone(), None));
                assert_eq!(tx.snapshot_lock(old.id)?, None);
                let until = jiff::Timestamp::UNIX_EPOCH;
                let lock = super::super::SnapshotLock { until, mode: super::super::LockMode::Compliance };
                tx.set_snapshot_lock(old.id, Some(lock))?;
                Ok::<_, CatalogError>(tx.snapshot_lock(old.id)? == Some(lock))
            });
            assert!(locked.unwrap(), "of version {version}");
        }
    }

    #[test]
    fn eight_writers_never_see_busy() {
        let dir = tempfile::tempdir().unwrap();
        let pool = scratch(dir.path());
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let pool = Pool::new(pool.path.clone(), "here", Arc::default());
                scope.spawn(move || {
                    for n in 0..100 {
                        let resource = format!("vol-{writer}-{n}");
                        let tag = super::super::Tag { key: "n".into(), value: n.to_string() };
                        pool.catalog().unwrap().write(|tx| tx.set_tags(&resource, &[tag])).unwrap();
                    }
                });
            }
        });
        let tags: i64 = pool
            .catalog()
            .unwrap()
            .read(|tx| {
                Ok::<_, CatalogError>(tx.list("SELECT count(*) AS n FROM tags", [], |f| f.int("n"))?[0])
            })
            .unwrap();
        assert_eq!(tags, 800);
    }

    #[test]
    fn the_last_time_survives_and_never_falls() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let pool = scratch(dir.path());
            pool.last_time.raise(5_000);
            pool.catalog().unwrap().write(|_| Ok::<_, CatalogError>(())).unwrap();
            pool.path.clone()
        };
        let pool = Pool::new(path, "here", Arc::default());
        assert_eq!(pool.load_state().unwrap(), 1);
        assert_eq!(pool.last_time.raise(10), 5_000);
    }
}
