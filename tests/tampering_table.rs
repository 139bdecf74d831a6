//! Guards against wrong bytes and against a crash, whichever header, key file, wrapped key or row of the catalog is flipped, swapped,
//! stale, zero or absent, by itself: each line of each file, each value of each row.
//!
//! Always, of each snapshot and volume: its own bytes, or a refusal that says of what; where something is refused, a check of the
//! region says so. No harm to a header or to a key goes unseen.
//!
//! The gate tries a part of each kind, another for each kind of harm; `TERRANE_TAMPER_ALL=1` tries all, and prints the table.

mod tampering_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::types::Value;
use tampering_support::copy_support::common::shrink::failure;
use tampering_support::copy_support::{Disk, Random, copy_files};
use tampering_support::{PIECE, Scene, folders, rows_of, swap};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Harm {
    Flip,
    Swap,
    Stale,
    Zero,
    Absent,
}
use Harm::{Absent, Flip, Stale, Swap, Zero};

/// What is done to a region.
enum Deed {
    /// A file, by its path within the region, gets this content.
    Write(String, Vec<u8>),
    Remove(String),
    Sql(String),
}

struct Case {
    /// What is harmed, of `HARMED`.
    harmed: &'static str,
    harm: Harm,
    what: String,
    deeds: Vec<Deed>,
    /// Which is like what was deleted.
    removes_a_row: bool,
}

const HEADERS: &str = "headers";
const KEY_FILES: &str = "key files";
const KEYS: &str = "wrapped keys, wherever they stand";
const ROWS: &str = "rows";

/// A scene with a state before: a key was rotated since, and a volume's layer sealed.
fn scene() -> (Scene, PathBuf) {
    let mut scene = Scene::new();
    let earlier = scene.world.path("earlier");
    fs::rename(&scene.pristine, &earlier).unwrap();
    let key = scene.world.default_key("north");
    terrane::kms::rotate_key(&scene.world.region("north"), key, 0).unwrap();
    let (id, model) = scene.volumes.iter().next().map(|(id, model)| (*id, model.clone())).unwrap();
    let mut disk = Disk { region: "north".into(), id, model };
    let mut random = Random::new(99);
    let later = disk.change(&scene.world, "later", |c| c.random(&mut random, 7 * PIECE, PIECE));
    scene.snapshots.insert(later, disk.model.clone());
    scene.names.insert("later".into(), later);
    scene.write(&mut disk, &mut random, 9 * PIECE);
    scene.volumes.insert(id, disk.model);
    copy_files(&scene.region(), &scene.pristine);
    (scene, earlier)
}

/// A flipped bit that leaves text to be text.
fn flipped(line: &str, at: usize) -> String {
    let mut bytes = line.as_bytes().to_vec();
    bytes[at] ^= 1;
    String::from_utf8(bytes).expect("ASCII stays ASCII")
}

/// The same with each digit and letter of its value made 0.
fn zeroed(line: &str) -> String {
    let (name, value) = line.split_once('=').unwrap_or(("", line));
    let value: String = value.chars().map(|c| if c.is_ascii_alphanumeric() { '0' } else { c }).collect();
    if name.is_empty() { value } else { format!("{name}={value}") }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).map_or(vec![], |text| text.split_inclusive('\n').map(str::to_owned).collect())
}

/// Of a file of `name = value` lines in the region: itself and its lines one by one, harmed, or as in another one or one from before.
fn text_cases(
    cases: &mut Vec<Case>,
    harmed: &'static str,
    scene: &Scene,
    path: &str,
    theirs: &[String],
    before: &[String],
) {
    let own = lines(&scene.region().join(path));
    let mut add = |harm, what: String, content: Option<String>| {
        if content.as_ref() != Some(&own.concat()) {
            let deed =
                content.map_or(Deed::Remove(path.into()), |text| Deed::Write(path.into(), text.into_bytes()));
            cases.push(Case {
                harmed,
                harm,
                what: format!("{path}: {what}"),
                deeds: vec![deed],
                removes_a_row: false,
            });
        }
    };
    let with = |n: usize, line: &str| {
        let mut lines = own.clone();
        lines[n] = line.to_owned();
        Some(lines.concat())
    };
    add(Swap, "another's".into(), Some(theirs.concat()));
    if !before.is_empty() {
        add(Stale, "as it was".into(), Some(before.concat()));
    }
    add(Zero, "zeros".into(), Some("\0".repeat(own.concat().len())));
    add(Absent, "removed".into(), None);
    add(Absent, "emptied".into(), Some(String::new()));
    for (n, line) in own.iter().enumerate() {
        let name = line.split('=').next().unwrap();
        let of = |lines: &[String]| lines.iter().find(|l| l.split('=').next() == Some(name)).cloned();
        for at in [0, line.len() / 2, line.trim_end().len() - 1] {
            add(Flip, format!("line {n}, byte {at}"), with(n, &flipped(line, at)));
        }
        for (harm, line) in [(Swap, of(theirs)), (Stale, of(before)), (Zero, Some(zeroed(line)))] {
            if let Some(line) = line {
                add(harm, format!("line {n} made {line:?}"), with(n, &line));
            }
        }
        add(Absent, format!("line {n}"), with(n, ""));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A wrapped key at both of its places at once, so that neither can stand in for the other: a line of a file, and a row.
fn key_cases(
    cases: &mut Vec<Case>,
    scene: &Scene,
    what: &str,
    own: &Wrapped,
    others: &[(Harm, Option<Vec<u8>>)],
) {
    let text = fs::read_to_string(scene.region().join(&own.file)).unwrap();
    let mut add = |harm, how: String, wrapped: Option<Vec<u8>>| {
        let line = format!("wrapped_key = \"{}\"\n", hex(&own.bytes));
        assert!(text.contains(&line), "{text}");
        let (new, value) = match wrapped {
            Some(bytes) if bytes == own.bytes => return,
            Some(bytes) => (format!("wrapped_key = \"{}\"\n", hex(&bytes)), format!("x'{}'", hex(&bytes))),
            None => (String::new(), "x''".into()),
        };
        let deeds = vec![
            Deed::Write(own.file.clone(), text.replace(&line, &new).into_bytes()),
            Deed::Sql(format!("UPDATE {} SET {} = {value} WHERE {}", own.table, own.column, own.row)),
        ];
        cases.push(Case { harmed: KEYS, harm, what: format!("{what}: {how}"), deeds, removes_a_row: false });
    };
    for at in 0..own.bytes.len() {
        let mut bytes = own.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        add(Flip, format!("byte {at}"), Some(bytes));
    }
    add(Zero, "zeros".into(), Some(vec![0; own.bytes.len()]));
    for (harm, bytes) in others {
        add(*harm, "another's".into(), bytes.clone());
    }
    add(Absent, "removed".into(), None);
}

/// Where a wrapped key stands.
struct Wrapped {
    file: String,
    table: &'static str,
    column: &'static str,
    row: String,
    bytes: Vec<u8>,
}

/// Of each layer and each version of a CMK. What is stale is what the layer below has, or the version before.
fn all_key_cases(cases: &mut Vec<Case>, scene: &Scene) {
    let catalog = Connection::open(scene.region().join("catalog.db")).unwrap();
    let mut layers = catalog.prepare("SELECT id, parent, wrapped_key FROM layers").unwrap();
    let layers = layers.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let layers: Vec<(String, Option<String>, Vec<u8>)> = layers.map(Result::unwrap).collect();
    for (n, (id, parent, bytes)) in layers.iter().enumerate() {
        let file = format!("layers/{id}/header.toml");
        let row = format!("id = '{id}'");
        let own = Wrapped { file, table: "layers", column: "wrapped_key", row, bytes: bytes.clone() };
        let below =
            layers.iter().find(|(id, ..)| Some(id) == parent.as_ref()).map(|(.., bytes)| bytes.clone());
        let mut others = vec![(Swap, Some(layers[(n + 1) % layers.len()].2.clone()))];
        others.extend(below.map(|bytes| (Stale, Some(bytes))));
        key_cases(cases, scene, &format!("data key of {id}"), &own, &others);
    }
    let mut versions = catalog.prepare("SELECT key, version, wrapped FROM key_versions").unwrap();
    let versions = versions.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let versions: Vec<(String, u32, Vec<u8>)> = versions.map(Result::unwrap).collect();
    for (key, version, bytes) in &versions {
        let file = format!("keys/{key}.{version}");
        let row = format!("key = '{key}' AND version = {version}");
        let own = Wrapped { file, table: "key_versions", column: "wrapped", row, bytes: bytes.clone() };
        let find =
            |is: &dyn Fn(&str, u32) -> bool| versions.iter().find(|(k, v, _)| is(k, *v)).map(|v| v.2.clone());
        let others = [(Swap, find(&|k, _| k != key)), (Stale, find(&|k, v| k == key && v < *version))];
        let others: Vec<_> = others.into_iter().filter(|(_, bytes)| bytes.is_some()).collect();
        key_cases(cases, scene, &format!("version {version} of {key}"), &own, &others);
    }
}

/// A value in SQL.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Blob(bytes) => format!("x'{}'", hex(bytes)),
    }
}

/// A value with its lowest bit flipped, and one of zeros; none of what is none.
fn harmed(value: &Value) -> Option<(Value, Value)> {
    Some(match value {
        Value::Integer(number) => (Value::Integer(number ^ 1), Value::Integer(0)),
        Value::Text(text) if !text.is_empty() => {
            (Value::Text(flipped(text, text.len() - 1)), Value::Text("0".repeat(text.len())))
        }
        Value::Blob(bytes) if !bytes.is_empty() => {
            let mut flipped = bytes.clone();
            flipped[bytes.len() / 2] ^= 1;
            (Value::Blob(flipped), Value::Blob(vec![0; bytes.len()]))
        }
        _ => return None,
    })
}

/// The values of a row, if it is there.
fn values(catalog: &Connection, table: &str, row: &str) -> Option<Vec<Value>> {
    let mut statement = catalog.prepare(&format!("SELECT * FROM {table} WHERE {row}")).unwrap();
    let count = statement.column_count();
    statement.query_row([], |row| (0..count).map(|n| row.get(n)).collect()).ok()
}

fn insert(table: &str, values: &[Value]) -> String {
    let values: Vec<_> = values.iter().map(literal).collect();
    format!("INSERT INTO {table} VALUES ({})", values.join(", "))
}

/// Each value of each row of each table, and the rows themselves; those that were there, too.
fn row_cases(cases: &mut Vec<Case>, scene: &Scene, earlier: &Path) {
    let catalog = Connection::open(scene.region().join("catalog.db")).unwrap();
    let before = Connection::open(earlier.join("catalog.db")).unwrap();
    let names =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut names = catalog.prepare(names).unwrap();
    let tables: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut add = |harm, what: String, sql: String| {
        let removes_a_row = sql.starts_with("DELETE") && !sql.contains("INSERT");
        cases.push(Case { harmed: ROWS, harm, what, deeds: vec![Deed::Sql(sql)], removes_a_row });
    };
    for table in &tables {
        let mut columns = catalog.prepare(&format!("SELECT name FROM pragma_table_info('{table}')")).unwrap();
        let columns: Vec<String> =
            columns.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let (rows, gone) = (rows_of(&catalog, table), rows_of(&before, table));
        for (n, row) in rows.iter().enumerate() {
            let other = &rows[(n + 1) % rows.len()];
            let [own, theirs] = [row, other].map(|row| values(&catalog, table, row).expect("it is there"));
            let was = values(&before, table, row);
            for (c, column) in columns.iter().enumerate() {
                let of = format!("{table}.{column} where {row}");
                let set =
                    |value: &Value| format!("UPDATE {table} SET {column} = {} WHERE {row}", literal(value));
                if let Some((flipped, zero)) = harmed(&own[c]) {
                    add(Flip, format!("{of} flipped"), set(&flipped));
                    if zero != own[c] {
                        add(Zero, format!("{of} zero"), set(&zero));
                    }
                }
                if own[c] != Value::Null {
                    add(Absent, format!("{of} absent"), set(&Value::Null));
                }
                if own[c] != theirs[c] {
                    add(Swap, format!("{of} and where {other}"), swap(table, column, row, other));
                }
                if let Some(was) = was.as_ref().filter(|was| was[c] != own[c]) {
                    add(Stale, format!("{of} as it was"), set(&was[c]));
                }
            }
            let delete = format!("DELETE FROM {table} WHERE {row}");
            if let Some(was) = was.filter(|was| *was != own) {
                add(
                    Stale,
                    format!("{table} where {row} as it was"),
                    format!("{delete}; {}", insert(table, &was)),
                );
            }
            add(Absent, format!("{table} where {row} removed"), delete);
        }
        for row in gone.iter().filter(|row| !rows.contains(row)) {
            let was = values(&before, table, row).expect("it was there");
            add(Stale, format!("{table} where {row} there again"), insert(table, &was));
        }
    }
}

/// Does it; whether that changed anything. A rule of the schema may be against it.
fn harm(scene: &Scene, deeds: &[Deed]) -> bool {
    let mut changed = false;
    for deed in deeds {
        match deed {
            Deed::Write(path, content) => {
                fs::write(scene.region().join(path), content).unwrap();
                changed = true;
            }
            Deed::Remove(path) => {
                fs::remove_file(scene.region().join(path)).unwrap();
                changed = true;
            }
            Deed::Sql(sql) => changed |= harm_rows(scene, sql),
        }
    }
    changed
}

fn harm_rows(scene: &Scene, sql: &str) -> bool {
    let catalog = Connection::open(scene.region().join("catalog.db")).unwrap();
    catalog.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    if catalog.execute_batch(&format!("BEGIN; {sql}; COMMIT")).is_err() {
        catalog.execute_batch("ROLLBACK").unwrap();
        return false;
    }
    true
}

/// What it says; or what it panics with.
fn failed(run: impl FnOnce() -> bool) -> Result<bool, String> {
    let mut said = false;
    failure(|| said = run()).map_or(Ok(said), Err)
}

#[derive(Default)]
struct Told {
    cases: u64,
    /// Refused, or found by a check.
    told: u64,
}

#[test]
fn nothing_harmed_by_itself_gives_wrong_bytes() {
    let (scene, earlier) = scene();
    assert!(scene.try_it("untouched"));
    scene.restore();
    let mut cases = Vec::new();
    let headers: Vec<String> = folders(&scene)
        .iter()
        .map(|folder| format!("layers/{}/header.toml", folder.file_name().unwrap().to_str().unwrap()))
        .collect();
    let mut keys: Vec<String> = fs::read_dir(scene.region().join("keys"))
        .unwrap()
        .map(|entry| format!("keys/{}", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    keys.sort();
    // No key file was ever another: the stale one is that of the version before.
    let version_before = |path: &str| {
        let (key, version) = path.rsplit_once('.').unwrap();
        scene.region().join(format!("{key}.{}", version.parse::<u32>().unwrap() - 1))
    };
    for (n, path) in headers.iter().enumerate() {
        let [other, before] = [scene.region().join(&headers[(n + 1) % headers.len()]), earlier.join(path)];
        text_cases(&mut cases, HEADERS, &scene, path, &lines(&other), &lines(&before));
    }
    for (n, path) in keys.iter().enumerate() {
        let [other, before] = [scene.region().join(&keys[(n + 1) % keys.len()]), version_before(path)];
        text_cases(&mut cases, KEY_FILES, &scene, path, &lines(&other), &lines(&before));
    }
    all_key_cases(&mut cases, &scene);
    row_cases(&mut cases, &scene, &earlier);

    let all = std::env::var_os("TERRANE_TAMPER_ALL").is_some();
    let mut places: BTreeMap<(&str, Harm), u64> = BTreeMap::new();
    let mut table: BTreeMap<(&str, Harm), Told> = BTreeMap::new();
    let (mut harmless, mut wrong) = (Vec::new(), Vec::new());
    for case in &cases {
        let place = places.entry((case.harmed, case.harm)).or_default();
        *place += 1;
        if !all && *place != 1 && *place % 37 != case.harm as u64 + 1 {
            continue;
        }
        if harm(&scene, &case.deeds) {
            let told = table.entry((case.harmed, case.harm)).or_default();
            told.cases += 1;
            match failed(|| scene.try_after(&case.what, case.removes_a_row)) {
                Ok(true) => harmless.push((case.harmed, &case.what)),
                Ok(false) => told.told += 1,
                Err(why) => wrong.push(why),
            }
        }
        scene.restore();
    }
    for ((harmed, harm), Told { cases, told }) in &table {
        println!("{harmed:34} {harm:6?} {cases:5} cases, {told:5} told");
    }
    println!("harmless: {harmless:#?}");
    assert!(wrong.is_empty(), "{} are wrong: {wrong:#?}", wrong.len());
    for harmed in [HEADERS, KEY_FILES, KEYS, ROWS] {
        for harm in [Flip, Swap, Stale, Zero, Absent] {
            assert!(table.contains_key(&(harmed, harm)), "nothing of {harmed} was {harm:?}");
        }
    }
    let unseen: Vec<_> = harmless.iter().filter(|(harmed, _)| *harmed != ROWS).collect();
    assert!(unseen.is_empty(), "harmed, and nobody saw it: {unseen:#?}");
}
