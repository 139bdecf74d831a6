//! Guards against a region that a stranger made, as `hostile_region.rs` does: its catalog's files, schema and rows.

#[path = "common/bad_region.rs"]
mod bad_region;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bad_region::*;
use hostile::{chmod, make_pipe};
use world::{World, pattern, read_at, within, write_at};

#[test]
fn catalog_files() {
    check_all(&[
        Case {
            name: "empty",
            harm: |b| sparse(&b.at("catalog.db"), 0),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "--repair"],
        },
        Case {
            name: "missing",
            harm: |b| remove(&b.at("catalog.db")),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "--repair"],
        },
        Case {
            name: "a random page",
            harm: |b| {
                let file = File::options().write(true).open(b.at("catalog.db")).unwrap();
                let pages = file.metadata().unwrap().len() / 4096;
                (1..pages).for_each(|page| file.write_all_at(&pattern(4096, page), page * 4096).unwrap());
            },
            command: LIST,
            exit: 6,
            words: &["catalog.db", "--repair"],
        },
        Case {
            name: "a random first page",
            harm: |b| write_at(&b.at("catalog.db"), 100, &pattern(3996, 7)).unwrap(),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "--repair"],
        },
        Case {
            name: "a link",
            harm: |b| b.move_out(&b.at("catalog.db")),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "symbolic link"],
        },
        Case {
            name: "a hard link",
            harm: |b| fs::hard_link(b.at("catalog.db"), b.outside.join("second")).unwrap(),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "2 names"],
        },
        Case {
            name: "a pipe",
            harm: |b| pipe_instead(&b.at("catalog.db")),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "a pipe"],
        },
        Case {
            name: "writable by others",
            harm: |b| chmod(&b.at("catalog.db"), 0o606),
            command: LIST,
            exit: 6,
            words: &["catalog.db", "chmod 600"],
        },
        Case {
            name: "a WAL that is a pipe",
            harm: |b| pipe_instead(&b.at("catalog.db-wal")),
            command: LIST,
            exit: 6,
            words: &["catalog.db-wal", "a pipe"],
        },
        Case {
            name: "a WAL that is a link",
            harm: |b| b.link(&b.at("catalog.db-wal")),
            command: LIST,
            exit: 6,
            words: &["catalog.db-wal", "symbolic link"],
        },
        Case {
            name: "a WAL of noise",
            harm: |b| {
                fs::write(b.at("catalog.db-wal"), pattern(100_000, 9)).unwrap();
                chmod(&b.at("catalog.db-wal"), 0o600);
            },
            command: LIST,
            exit: 0,
            words: &["web"],
        },
        Case {
            name: "shared memory that is a link",
            harm: |b| b.link(&b.at("catalog.db-shm")),
            command: LIST,
            exit: 6,
            words: &["catalog.db-shm", "symbolic link"],
        },
        Case {
            name: "a journal that is a pipe",
            harm: |b| make_pipe(&b.at("catalog.db-journal")),
            command: LIST,
            exit: 6,
            words: &["catalog.db-journal", "move it away"],
        },
        Case {
            name: "a journal that names a file to be removed",
            harm: |b| fs::write(b.at("catalog.db-journal"), journal_naming(&b.victim())).unwrap(),
            command: LIST,
            exit: 6,
            words: &["catalog.db-journal", "move it away"],
        },
        Case {
            name: "in the mode of rollback journals",
            harm: |b| b.sql("PRAGMA journal_mode = delete"),
            command: LIST,
            exit: 6,
            words: &["journal mode", "wal"],
        },
        Case {
            name: "a trigger that never ends",
            harm: |b| {
                b.sql(
                    "CREATE TRIGGER t AFTER UPDATE ON state BEGIN INSERT INTO settings SELECT n, n FROM
                 (WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x); END",
                )
            },
            command: &["volume", "set", "web", "--name", "www"],
            exit: 6,
            words: &["trigger", "--repair"],
        },
        Case {
            name: "a view that never ends",
            harm: |b| {
                b.sql(
                    "ALTER TABLE volumes RENAME TO v; CREATE VIEW volumes AS SELECT v.* FROM v,
                 (WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x)",
                )
            },
            command: LIST,
            exit: 6,
            words: &["catalog.db", "another"],
        },
        Case {
            name: "an index by an expression",
            harm: |b| b.sql("CREATE INDEX i ON state (abs(v))"),
            command: LIST,
            exit: 6,
            words: &["catalog.db"],
        },
        Case {
            name: "a table too many",
            harm: |b| b.sql("CREATE TABLE extra (x)"),
            command: LIST,
            exit: 6,
            words: &["extra"],
        },
        Case {
            name: "a table too few",
            harm: |b| b.sql("DROP TABLE folds"),
            command: LIST,
            exit: 6,
            words: &["fewer"],
        },
        Case {
            name: "an older catalog with newer layers",
            harm: |b| {
                b.sql(&format!(
                "DELETE FROM snapshots; UPDATE volumes SET active = '{0}' WHERE name = 'web';
                 UPDATE layers SET state = 'active', point = NULL, sealed_generation = NULL, sealed_mac = NULL WHERE id = '{0}'",
                b.ids.sealed
            ))
            },
            command: &["snapshot", "list"],
            exit: 0,
            words: &["NAME"],
        },
        Case {
            name: "older layers with a newer catalog",
            harm: |b| remove(&b.layer(&b.ids.active)),
            command: SNAPSHOT,
            exit: 6,
            words: &["layer"],
        },
    ]);
}

/// The commits of a killed mount that only the catalog's log has are taken away, and with them the rows of snapshots: the volume's layer is
/// of a moment that its row does not know, so it is refused and told of. A repair has the volume and both snapshots.
#[test]
fn a_live_log_of_the_catalog_that_is_removed() {
    for gone in [&["catalog.db-wal"][..], &["catalog.db-wal", "catalog.db-shm"]] {
        let mut world = World::new();
        world.expect_disorder();
        world.volume("web", "8M");
        world.mount();
        let has = |path: &Path, seed| read_at(path, 0, 64 << 10).unwrap() == pattern(64 << 10, seed);
        for seed in 1..4 {
            write_at(&world.file("web"), 0, &pattern(64 << 10, seed)).unwrap();
            if seed < 3 {
                let name = format!("s{seed}");
                world.snapshot("web", &name);
                let is_sealed =
                    || world.json(&["snapshot", "show", &name])["stored_bytes"].as_u64() > Some(0);
                assert!(within(20, is_sealed), "the seal of {name} is not finished");
            }
        }
        // One for what comes next is made behind a snapshot: killed amid that, its folder would be without a row, and a check names it.
        let is_made = |layer: std::path::PathBuf| layer.join("header.toml").exists();
        let made =
            || fs::read_dir(world.path("r/layers")).unwrap().filter(|l| is_made(l.as_ref().unwrap().path()));
        assert!(within(20, || made().count() == 4), "the next layer is not made");
        world.kill_server();
        assert!(
            fs::metadata(world.path("r/catalog.db-wal")).unwrap().len() > 4096,
            "no commit is in the log"
        );
        gone.iter().for_each(|name| remove(&world.path("r").join(name)));
        world.unmount();

        let checked = world.run(CHECK);
        let told = String::from_utf8_lossy(&checked.stdout);
        assert_eq!(checked.status.code(), Some(6), "{told}");
        assert!(told.contains("a header of the moment") && told.contains("volume web"), "{told}");
        world.mount();
        assert_eq!(world.json(&["snapshot", "list"]).as_array().unwrap().len(), 0);
        assert_eq!(File::open(world.file("web")).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(world.log().contains("a header of the moment"), "{}", world.log());
        world.unmount();

        world.ok(&["region", "check", "--repair", "--yes"]);
        world.ok(CHECK);
        let snapshots = world.json(&["snapshot", "list"]);
        let names: Vec<_> =
            snapshots.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        world.mount();
        assert!(has(&world.file("web"), 3), "the volume");
        for seed in 1..3 {
            assert!(names.iter().any(|name| has(&world.snapshot_file(name), seed)), "snapshot s{seed}");
        }
        world.unmount();
    }
}

/// A rollback journal that a power cut might have left of a transaction over several databases, the journal of which is said to
/// be this file: SQLite opens that to read, and removes it.
fn journal_naming(path: &Path) -> Vec<u8> {
    let mut bytes = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7".to_vec();
    // Pages (none), nonce, pages of the database, sector, page size.
    for word in [0u32, 1, 1, 512, 4096] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.resize(512, 0);
    let name = path.to_str().unwrap().as_bytes();
    bytes.extend_from_slice(&(0x4000_0000u32 / 4096 + 1).to_be_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
    let sum = name.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7");
    bytes
}

#[test]
fn catalog_rows() {
    check_all(&[
        Case {
            name: "a negative size",
            harm: |b| b.sql("UPDATE volumes SET size_bytes = -4096"),
            command: LIST,
            exit: 6,
            words: &["size_bytes", "-4096"],
        },
        Case {
            name: "a size of 2^63 - 1",
            harm: |b| b.sql("UPDATE volumes SET size_bytes = 9223372036854775807"),
            command: LIST,
            exit: 6,
            words: &["size_bytes", "64 TiB"],
        },
        Case {
            name: "a negative size of a layer",
            harm: |b| b.sql("UPDATE layers SET size_bytes = -1"),
            command: VERIFY,
            exit: 6,
            words: &["size_bytes"],
        },
        Case {
            name: "negative counts",
            harm: |b| b.sql("UPDATE snapshots SET changed_bytes = -1"),
            command: &["snapshot", "list"],
            exit: 6,
            words: &["changed_bytes", "-1"],
        },
        Case {
            name: "a negative generation",
            harm: |b| b.sql("UPDATE state SET v = -9223372036854775808"),
            command: LIST,
            exit: 6,
            words: &["catalog", "0 or more"],
        },
        Case {
            name: "the last generation there is",
            harm: |b| b.sql("UPDATE state SET v = 9223372036854775807"),
            command: LIST,
            exit: 0,
            words: &["web"],
        },
        Case {
            name: "a name of 10 MB",
            harm: |b| b.sql("UPDATE volumes SET name = printf('%.10000000c', 'x') WHERE name = 'web'"),
            command: LIST,
            exit: 6,
            words: &["catalog", "too big"],
        },
        Case {
            name: "a description of 10 MB",
            harm: |b| b.sql("UPDATE snapshots SET description = printf('%.10000000c', 'x')"),
            command: &["snapshot", "list"],
            exit: 6,
            words: &["catalog", "too big"],
        },
        Case {
            name: "a row of 50 MB",
            harm: |b| b.sql("UPDATE snapshots SET description = printf('%.50000000c', 'x')"),
            command: &["snapshot", "list"],
            exit: 6,
            words: &["catalog", "too big"],
        },
        Case {
            name: "a name that steers the terminal",
            harm: |b| {
                b.sql(
                    "UPDATE volumes SET name = char(27) || '[2J' || char(155) || '1;31m' WHERE name = 'web'",
                )
            },
            command: LIST,
            exit: 6,
            words: &["name", "\\u{1b}[2J"],
        },
        Case {
            name: "a description that steers the terminal",
            harm: |b| {
                b.sql("UPDATE snapshots SET description = char(27) || ']0;x' || char(7) || char(155) || char(8238)")
            },
            command: &["snapshot", "show", "s1"],
            exit: 0,
            words: &["\\u{1b}]0;x\\u{7}\\u{9b}\\u{202e}"],
        },
        Case {
            name: "and in JSON",
            harm: |b| {
                b.sql("UPDATE snapshots SET description = char(27) || ']0;x' || char(7) || char(155) || char(8238)")
            },
            command: &["snapshot", "show", "s1", "--output", "json"],
            exit: 0,
            words: &["\\u001b]0;x\\u0007\\u009b\\u202e"],
        },
        Case {
            name: "tags that steer the terminal",
            harm: |b| {
                b.sql(&format!(
                    "INSERT INTO tags VALUES ('{}', char(27) || 'c', char(10) || char(13) || char(155))",
                    b.ids.snapshot
                ))
            },
            command: &["snapshot", "show", "s1", "--output", "json"],
            exit: 0,
            words: &["\\u001bc", "\\u009b"],
        },
        Case {
            name: "an id that leads out",
            harm: |b| b.sql(&format!("UPDATE layers SET id = '../../outside' WHERE id = '{}'", b.ids.sealed)),
            command: CHECK,
            exit: 6,
            words: &["id of ../../outside"],
        },
        Case {
            name: "an id of 300 characters",
            harm: |b| b.sql("UPDATE volumes SET id = printf('%.300c', 'v') WHERE name = 'web'"),
            command: LIST,
            exit: 6,
            words: &["id of vvv"],
        },
        Case {
            name: "an id with a NUL",
            harm: |b| b.sql("UPDATE volumes SET id = id || char(0) || '/../..' WHERE name = 'web'"),
            command: LIST,
            exit: 6,
            words: &["id of vol-", "\\u{0}"],
        },
        Case {
            name: "an active layer that leads out",
            harm: |b| b.sql("UPDATE volumes SET active = '../../outside' WHERE name = 'web'"),
            command: SNAPSHOT,
            exit: 6,
            words: &["active of vol-"],
        },
        Case {
            name: "an active layer that is nowhere",
            harm: |b| b.sql("UPDATE volumes SET active = printf('%032d', 0) WHERE name = 'web'"),
            command: SNAPSHOT,
            exit: 3,
            words: &["layer", "00000000000000000000000000000000"],
        },
        Case {
            name: "another volume's active layer",
            harm: |b| {
                b.sql(&format!(
                    "UPDATE volumes SET active = '{}', next = NULL WHERE name = 'web'",
                    b.ids.other
                ))
            },
            command: LIST,
            exit: 0,
            words: &["web"],
        },
        Case {
            name: "a chain that bites its tail",
            harm: |b| {
                b.sql(&format!("UPDATE layers SET parent = '{}' WHERE id = '{}'", b.ids.active, b.ids.sealed))
            },
            command: VERIFY,
            exit: 6,
            words: &["chain", "twice"],
        },
        Case {
            name: "a layer that is its own parent",
            harm: |b| b.sql("UPDATE layers SET parent = id"),
            command: VERIFY,
            exit: 6,
            words: &["chain", "twice"],
        },
        Case {
            name: "a chain of 10,000",
            harm: |b| {
                b.sql(&format!(
                "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 10000)
                 INSERT INTO layers SELECT printf('%032x', n), account, volume, iif(n = 10000, NULL, printf('%032x', n + 1)),
                 size_bytes, 'sealed', cipher, key, key_version, wrapped_key, printf('%032x', n), 1, x'00000000000000000000000000000000',
                 0, created_at FROM x, layers WHERE layers.id = '{0}'; UPDATE layers SET parent = printf('%032x', 1) WHERE id = '{0}'",
                b.ids.sealed
            ))
            },
            command: VERIFY,
            exit: 6,
            words: &["layer"],
        },
        Case {
            name: "an unknown state",
            harm: |b| b.sql("UPDATE layers SET state = 'melted'"),
            command: VERIFY,
            exit: 6,
            words: &["state", "melted"],
        },
        Case {
            name: "an unknown cipher",
            harm: |b| b.sql("UPDATE layers SET cipher = 'rot13'"),
            command: VERIFY,
            exit: 6,
            words: &["cipher", "rot13"],
        },
        Case {
            name: "times before and after all time",
            harm: |b| {
                b.sql("UPDATE volumes SET created_at = -9223372036854775808; UPDATE layers SET created_at = 9223372036854775807")
            },
            command: LIST,
            exit: 6,
            words: &["created_at"],
        },
        Case {
            name: "a clock at the end of time",
            harm: |b| b.sql("UPDATE state SET v = 9223372036854775807 WHERE k = 'last_time'"),
            command: LIST,
            exit: 0,
            words: &["web"],
        },
        Case {
            name: "a fold of a layer with itself",
            harm: |b| {
                b.sql(&format!(
                "INSERT INTO folds VALUES ('{0}', '{0}', 'down', 0, NULL, 0, 0); UPDATE layers SET state = 'filling' WHERE id = '{0}'",
                b.ids.sealed
            ))
            },
            command: LIST,
            exit: 0,
            words: &["web"],
        },
        Case {
            name: "a fold of what is none",
            harm: |b| {
                b.sql(&format!(
                    "INSERT INTO folds VALUES ('{}', '{}', 'up', 9223372036854775807, NULL, -1, 7)",
                    b.ids.sealed, b.ids.active
                ))
            },
            command: &["snapshot", "delete", "s1"],
            exit: 0,
            words: &["damaged: moved_bytes"],
        },
        Case {
            name: "points that are none",
            harm: |b| b.sql("UPDATE layer_points SET point = '../../x'"),
            command: CLONE,
            // A layer's points are minted from its own key, and not taken from rows.
            exit: 0,
            words: &["vol-"],
        },
        Case {
            name: "a key version of 2^40",
            harm: |b| b.sql("UPDATE layers SET key_version = 1099511627776"),
            command: VERIFY,
            exit: 6,
            words: &["key_version"],
        },
        Case {
            name: "a wrapped key of a megabyte",
            harm: |b| b.sql("UPDATE layers SET wrapped_key = zeroblob(900000)"),
            command: VERIFY,
            exit: 6,
            words: &["wrapped_key", "1024"],
        },
        Case {
            name: "a layer in the making that is a link",
            harm: |b| {
                b.move_out(&b.layer(&b.ids.other));
                b.sql(&format!(
                    "UPDATE layers SET state = 'preparing', created_at = 0 WHERE id = '{}'",
                    b.ids.other
                ));
            },
            command: LIST,
            exit: 0,
            words: &["web"],
        },
        Case {
            name: "a layer that goes and is a link",
            harm: |b| {
                b.move_out(&b.layer(&b.ids.other));
                b.sql(&format!(
                    "DELETE FROM volumes WHERE name = 'other'; UPDATE layers SET state = 'deleting' WHERE id = '{}'", b.ids.other
                ));
            },
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
    ]);
}
