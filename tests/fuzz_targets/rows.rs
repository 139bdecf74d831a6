//! A catalog whose rows, or whose bytes, somebody else has written.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Value;
use terrane::catalog::{BinKind, CatalogError, LayerState, Pool, ReadTx, Setting};
use terrane::schedule::{Terms, next_due};

use super::input::Input;

const ROWS: &str = "
INSERT INTO accounts VALUES ('acc-00000000000000001', 'default', 1, 1);
INSERT INTO kms_instances VALUES ('kms-00000000000000001', 'acc-00000000000000001', 'default', 'software', 1, 1);
INSERT INTO keys VALUES ('key-00000000000000001', 'acc-00000000000000001', 'kms-00000000000000001', 'enabled', 1, 1, NULL, 1);
INSERT INTO key_aliases VALUES ('default', 'key-00000000000000001');
INSERT INTO key_versions VALUES ('key-00000000000000001', 1, zeroblob(61), 1);
INSERT INTO settings VALUES ('encrypt_by_default', 'true');
INSERT INTO layers VALUES ('00000000000000000000000000000001', 'acc-00000000000000001', 'vol-00000000000000001', NULL, 8388608,
  'sealed', 'aes-xts-plain64', 'key-00000000000000001', 1, zeroblob(93), '00000000000000000000000000000009', 3, zeroblob(16), 0, 1);
INSERT INTO layers VALUES ('00000000000000000000000000000002', 'acc-00000000000000001', 'vol-00000000000000001',
  '00000000000000000000000000000001', 8388608, 'active', 'none', NULL, 0, zeroblob(93), NULL, NULL, NULL, 0, 1);
INSERT INTO layer_points VALUES ('00000000000000000000000000000001', 0, '00000000000000000000000000000009');
INSERT INTO folds VALUES ('00000000000000000000000000000001', '00000000000000000000000000000002', 'up', 1, zeroblob(32), 1, 0);
INSERT INTO volumes VALUES ('vol-00000000000000001', 'acc-00000000000000001', 'web', 8388608, 'data', 'aes-xts-plain64',
  'key-00000000000000001', '00000000000000000000000000000002', NULL, NULL, 0, 1);
INSERT INTO snapshots VALUES ('snap-00000000000000001', 'acc-00000000000000001', 's1', 'words', '00000000000000000000000000000001',
  'vol-00000000000000001', 8388608, 'data', 'aes-xts-plain64', 'key-00000000000000001', 'success', 100, 'create', NULL, NULL, 1, 1,
  1, NULL, 7, 1, zeroblob(16), 2, 'governance');
INSERT INTO snapshots VALUES ('snap-00000000000000002', 'acc-00000000000000001', 's2', 'words', '00000000000000000000000000000001',
  'vol-00000000000000001', 8388608, 'data', 'aes-xts-plain64', 'key-00000000000000001', 'deleted', 100, 'create', NULL, NULL, 1, 1,
  1, NULL, 7, 1, zeroblob(16), NULL, NULL);
INSERT INTO bin VALUES ('snap-00000000000000002', 1, 2, zeroblob(16));
INSERT INTO bin_rules VALUES ('bin-00000000000000001', 'acc-00000000000000001', 'snapshot', 7, 1);
INSERT INTO retentions VALUES ('snap-00000000000000001', zeroblob(16));
INSERT INTO tags VALUES ('snap-00000000000000001', 'k', 'v');
INSERT INTO tasks VALUES ('task-00000000000000001', 'acc-00000000000000001', 'copy', 'snap-00000000000000001', 'x', 'failed', 1, 2,
  'words', 1, 1, 3, 6, zeroblob(16));
INSERT INTO schedules VALUES ('sched-00000000000000001', 'acc-00000000000000001', 'hourly', '{\"every_seconds\":3600,\"cron\":null,
  \"volumes\":[\"vol-00000000000000001\"],\"tags\":[],\"keep\":3,\"copies\":[]}', zeroblob(16), 1, 2, 3, 'words', 4);
INSERT INTO schedule_snapshots VALUES ('snap-00000000000000001', 'sched-00000000000000001', 'vol-00000000000000001', 1, 's1', zeroblob(16), 0);
INSERT INTO schedule_copies VALUES ('snap-00000000000000001', 'sched-00000000000000001', 'snap-00000000000000002',
  'vol-00000000000000001', 1, zeroblob(16));
";

/// A place for the file, in memory where there is such a folder; and what it holds before it is changed.
struct Base {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Table and column.
    columns: Vec<(String, String)>,
    _dir: tempfile::TempDir,
}

fn pool(path: &Path) -> Arc<Pool> {
    Pool::new(path.to_owned(), "here", Arc::default())
}

impl Base {
    fn new() -> Self {
        let within = Some(Path::new("/dev/shm")).filter(|dir| dir.is_dir());
        let dir = within.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
        let path = dir.path().canonicalize().unwrap().join("catalog.db");
        pool(&path).create().unwrap();
        let catalog = Connection::open(&path).unwrap();
        catalog.execute_batch(ROWS).unwrap();
        let mut statement = catalog
            .prepare("SELECT t.name, c.name FROM pragma_table_list t, pragma_table_info(t.name) c WHERE t.name NOT LIKE 'sqlite_%'")
            .unwrap();
        let columns = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let columns = columns.collect::<Result<_, _>>().unwrap();
        drop(statement);
        drop(catalog);
        let bytes = std::fs::read(&path).unwrap();
        Self { path, bytes, columns, _dir: dir }
    }
}

/// A thread's own, which goes with it, and its files too.
fn base() -> Rc<Base> {
    thread_local!(static BASE: Rc<Base> = Rc::new(Base::new()));
    BASE.with(Rc::clone)
}

fn value(input: &mut Input) -> Value {
    match input.byte() % 6 {
        0 => Value::Null,
        1 | 2 => Value::Integer(input.number() as i64),
        3 => {
            let len = usize::from(input.byte());
            Value::Blob(input.bytes(len))
        }
        4 => Value::Text("x".repeat(input.number() as usize % (1 << 21))),
        _ => {
            let len = usize::from(input.byte());
            Value::Text(String::from_utf8_lossy(&input.bytes(len)).into_owned())
        }
    }
}

/// Each column, with values that no row of ours has; and changes of bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    let values: [&[u8]; 9] = [
        &[0],
        &[1, 2, 0],
        &[1, 1, 0],
        &[1, 3, 63, 1],
        &[1, 3, 63, 0],
        &[1, 3, 47, 0],
        &[3, 3, 7, 8, 9],
        &[4, 3, 20, 1],
        &[5, 8, b'.', b'.', b'/', 0, 0x1b, b'[', b'2', b'J'],
    ];
    let columns = 0..base().columns.len() as u8;
    let of_column = |column| values.iter().map(move |value| [&[1, column], *value].concat());
    let bytes = (0..8u8).map(|n| (0..60u8).map(|i| i.wrapping_mul(n).wrapping_mul(4)).collect());
    columns.flat_map(of_column).chain(bytes).collect()
}

fn change_cells(input: &mut Input) {
    let base = base();
    let catalog = Connection::open(&base.path).unwrap();
    catalog.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF").unwrap();
    for _ in 0..4 {
        if input.is_empty() {
            break;
        }
        let (table, column) = &base.columns[usize::from(input.byte()) % base.columns.len()];
        // A value of another type is refused, and changes nothing.
        let _ = catalog.execute(&format!("UPDATE {table} SET {column} = ?1"), [value(input)]);
    }
}

/// One file, and a change of it.
pub fn catalog(bytes: &[u8]) {
    let base = base();
    let mut input = Input(bytes);
    let mut file = base.bytes.clone();
    let is_rows = input.byte() % 4 != 0;
    if !is_rows {
        for _ in 0..16 {
            if input.is_empty() {
                break;
            }
            let page = usize::from(input.byte()) * 4096 % file.len();
            input.edit(&mut file[page..page + 4096]);
        }
    }
    for suffix in ["-wal", "-shm"] {
        let mut name = base.path.clone().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
    std::fs::write(&base.path, &file).unwrap();
    if is_rows {
        change_cells(&mut input);
    }
    let Ok(mut catalog) = pool(&base.path).catalog() else { return };
    let _ = catalog.read(|tx| {
        read_all(tx);
        Ok::<_, CatalogError>(())
    });
    let _ = catalog.write(|tx| tx.set_flag(Setting::KmsEnabled, true));
}

fn read_all(tx: &ReadTx) {
    let (layer, volume) = ("00000000000000000000000000000002", "vol-00000000000000001");
    let layer = layer.parse().unwrap();
    for row in tx.layers().unwrap_or_default() {
        let _ = tx.layer_points(row.id);
        let _ = tx.layer_needs(row.id);
        let _ = tx.children_of_layer(row.id);
    }
    let _ = tx.layer_chain(layer).map(|chain| assert!(!chain.is_empty()));
    let _ = tx.layers_in_state(LayerState::Sealed);
    let _ = tx.unneeded_layers();
    let _ = tx.foldable_layers();
    let _ = tx.folds();
    let _ = tx.find_fold_of_gone(layer);
    for row in tx.volumes().unwrap_or_default() {
        assert!(row.size_bytes > 0 && row.size_bytes <= 64 << 40);
    }
    let _ = tx.find_volume(volume.parse().unwrap());
    for row in tx.snapshots().unwrap_or_default() {
        let _ = tx.bin_entry(row.id);
        let _ = tx.retention_mac(row.id);
    }
    let _ = tx.endings(jiff::Timestamp::UNIX_EPOCH);
    let _ = tx.days_in_bin(BinKind::Snapshot, &[]);
    let _ = tx.tasks();
    for row in tx.schedules().unwrap_or_default() {
        let _ = (next_due(&row), Terms::of_row(&row));
        let _ = (tx.scheduled_snapshots(row.id), tx.scheduled_copies(row.id));
    }
    let _ = tx.schedule_problems();
    let _ = tx.resolve_schedule("hourly");
    for key in tx.keys().unwrap_or_default() {
        let _ = tx.key_versions(key.id);
    }
    let _ = tx.default_account();
    let _ = tx.default_instance();
    let _ = tx.generation();
    let _ = tx.resolve_volume("web");
    let _ = tx.resolve_volume("vol-0000000");
    let _ = tx.resolve_snapshot("s1");
    let _ = tx.resolve_deleted_snapshot("s2");
    let _ = tx.resolve_bin_rule("bin-000000");
    let _ = tx.resolve_key("default");
    let _ = tx.resolve_task("task-000000");
    Setting::ALL.iter().for_each(|setting| drop(tx.flag(*setting)));
    let _ = tx.integrity_problems();
}
