//! Guards against a catalog that is stepped to a newer schema under a process that knows the older one, and against one that is
//! stepped by halves.

#[path = "common/world.rs"]
mod world;

use std::os::unix::fs::FileExt;
use std::process::Stdio;

use rusqlite::{Connection, TransactionBehavior};
use world::{MIB, World, pattern, read_at, writable, write_at};

/// What steps 1 to 7 leave.
const SCHEMA_7: &str = include_str!("vectors/catalog_7.sql");

fn open(world: &World) -> Connection {
    let catalog = Connection::open(world.path("r/catalog.db")).unwrap();
    catalog.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    catalog
}

fn version(world: &World) -> u32 {
    open(world).pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// Names in a catalog or of a table, in a column that a query has first.
fn names(catalog: &Connection, query: &str) -> Vec<String> {
    let mut rows = catalog.prepare(query).unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Makes the catalog what the version of schema 7 would have made of it: its tables and columns, with the rows that there are.
fn back_to_schema_7(world: &World) {
    let mut catalog = open(world);
    catalog.pragma_update(None, "foreign_keys", false).unwrap();
    // Alone from its beginning: the mount may be writing.
    let tx = catalog.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let tables = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
    for table in names(&tx, tables) {
        tx.execute_batch(&format!(
            "CREATE TEMP TABLE kept_{table} AS SELECT * FROM main.{table}; DROP TABLE main.{table}"
        ))
        .unwrap();
    }
    tx.execute_batch(SCHEMA_7).unwrap();
    for table in names(&tx, tables) {
        let columns =
            names(&tx, &format!("SELECT name FROM pragma_table_info('{table}', 'main')")).join(", ");
        tx.execute_batch(&format!(
            "INSERT INTO main.{table} ({columns}) SELECT {columns} FROM temp.kept_{table}"
        ))
        .unwrap();
    }
    tx.pragma_update(None, "user_version", 7).unwrap();
    tx.commit().unwrap();
}

/// Whoever has the region open is named, and works on; once it has ended, the next command steps the catalog.
#[test]
fn a_region_of_an_older_schema_that_is_open_is_refused_and_named() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
    world.snapshot("web", "s1");
    let file = writable(&world.file("web")).unwrap();
    let snapshot = || {
        let listed = world.json(&["snapshot", "list"]);
        // Not what it takes: the space of its seal is given back beside this.
        ["id", "name", "state", "created_at", "key_id", "changed_bytes"].map(|field| listed[0][field].clone())
    };
    let (newest, before) = (version(&world), snapshot());
    back_to_schema_7(&world);

    let pid = format!("is in use by process {}", world.server());
    std::fs::create_dir(world.path("second")).unwrap();
    for args in [
        &["volume", "list"][..],
        &["volume", "create", "--name", "more", "--size", "4M"],
        &["snapshot", "create", "web", "--name", "s2"],
        &["mount", &world.at("second"), "--read-only"],
        &["region", "check"],
        &["volume", "list", "--output", "json"],
    ] {
        let said = world.fails(args, 5, &["region here", &pid, "terrane unmount"]);
        assert!(!args.contains(&"json") || said.contains("\"exit\":5"), "{said}");
    }
    let problems = world.problems();
    assert!(matches!(&*problems, [problem] if problem.contains(&pid)), "{problems:?}");
    assert_eq!(version(&world), 7, "somebody stepped it");
    // What it has open it serves as before, and it ends in order.
    file.write_all_at(&pattern(MIB as usize, 2), MIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    world.unmount();
    assert_eq!(version(&world), 7, "somebody stepped it");

    assert_eq!(snapshot(), before);
    assert_eq!(version(&world), newest);
    world.ok(&["region", "check"]);
    world.mount();
    assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
    assert!(read_at(&world.file("web"), MIB, MIB as usize).unwrap() == pattern(MIB as usize, 2));
    world.snapshot("web", "s2");
}

/// Of many that find an older schema at once one steps it; the others go on with that, or are told who does.
#[test]
fn many_that_open_an_older_schema_at_once_step_it_once() {
    let world = World::new();
    world.volume("web", "4M");
    let newest = version(&world);
    for _ in 0..4 {
        back_to_schema_7(&world);
        let spawn = |_| {
            world.command(&["volume", "list"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..8).map(spawn).collect();
        let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        for output in &outputs {
            let said = world::words(output);
            let is_told = output.status.code() == Some(5) && said.contains("is in use");
            assert!(output.status.success() || is_told, "{:?}: {said}", output.status);
        }
        assert!(outputs.iter().any(|output| output.status.success()));
        assert_eq!(version(&world), newest);
    }
    assert_eq!(world.json(&["volume", "list"])[0]["name"], "web");
    world.ok(&["region", "check"]);
}
