//! Guards against a region that a stranger made: one that leads a command to files outside of it, makes it wait or eat memory
//! for ever, steers the terminal, or ends it in a panic. The list is that of docs/security.md.

#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hostile::{Ended, Trap, bounded, chmod, make_pipe, names};
use world::{MIB, World, flip, must, pattern, write_at};

/// What is done to a region, and what must come of one command.
struct Case {
    name: &'static str,
    harm: fn(&Bad),
    command: &'static [&'static str],
    /// The exit number, and words of the sentence.
    exit: i32,
    words: &'static [&'static str],
}

const LIST: &[&str] = &["volume", "list"];
const SHOW: &[&str] = &["volume", "show", "web"];
const CHECK: &[&str] = &["region", "check"];
const VERIFY: &[&str] = &["snapshot", "verify", "s1"];
const SNAPSHOT: &[&str] = &["snapshot", "create", "web", "--name", "s2"];
const CLONE: &[&str] = &["volume", "create", "--snapshot", "s1", "--name", "clone"];

/// Commands that each harmed region is given, whatever they say.
const ALL: &[&[&str]] = &[
    &["region", "show"],
    LIST,
    &["snapshot", "list"],
    SHOW,
    CHECK,
    VERIFY,
    CLONE,
    SNAPSHOT,
    &["key", "rotate", "default"],
    &["snapshot", "delete", "s1"],
    &["volume", "delete", "web"],
    &["region", "check", "--repair", "--remove-unknown", "--yes"],
];

/// A region with a volume of a snapshot and something on top, another volume, and a copy of it for each case.
struct Template {
    world: World,
    ids: Ids,
}

#[derive(Clone)]
struct Ids {
    active: String,
    sealed: String,
    other: String,
    key: String,
    snapshot: String,
}

/// A harmed copy.
struct Bad {
    dir: PathBuf,
    outside: PathBuf,
    ids: Ids,
}

impl Template {
    fn new() -> Self {
        let world = World::new();
        world.volume("web", "8M");
        world.volume("other", "8M");
        world.mount();
        write_at(&world.file("web"), 0, &pattern(64 << 10, 1)).unwrap();
        write_at(&world.file("other"), 0, &pattern(64 << 10, 2)).unwrap();
        let snapshot = world.snapshot("web", "s1");
        write_at(&world.file("web"), MIB, &pattern(64 << 10, 3)).unwrap();
        world.unmount();
        let id = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let ids = Ids {
            active: id(world.active_layer("web")),
            sealed: id(world.snapshot_layer("s1")),
            other: id(world.active_layer("other")),
            key: world.json(&["key", "list"])[0]["id"].as_str().unwrap().to_owned(),
            snapshot,
        };
        // Copies are of the same id: without an entry none has an anchor, and the root key is found by the id.
        let region = world.json(&["region", "show"])["id"].as_str().unwrap().to_owned();
        fs::remove_file(world.path("config/regions").join(region + ".toml")).unwrap();
        Self { world, ids }
    }

    fn copy(&self, name: &str) -> Bad {
        let case = self.world.path(&format!("case-{name}"));
        let outside = case.join("outside");
        fs::create_dir_all(&outside).unwrap();
        for name in ["victim", "victim-2"] {
            fs::write(outside.join(name), "nobody's business\n").unwrap();
            chmod(&outside.join(name), 0o600);
        }
        let dir = case.join("r");
        must("cp", &["-a", "--sparse=always", &self.world.at("r"), dir.to_str().unwrap()]);
        Bad { dir, outside, ids: self.ids.clone() }
    }

    fn run(&self, what: &str, dir: &Path, args: &[&str]) -> Ended {
        let region = format!("{}/", dir.display());
        bounded(&format!("{what}: {args:?}"), || {
            let mut command = self.world.command(args);
            command.args(["--region", &region]);
            command
        })
    }

    fn check(&self, case: &Case) {
        let name = case.name;
        let bad = self.copy(&name.replace([' ', '/'], "-"));
        (case.harm)(&bad);
        let trap = Trap::set(&bad.outside);
        let ended = self.run(name, &bad.dir, case.command);
        assert_eq!(ended.exit, Some(case.exit), "{name}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        for words in case.words {
            assert!(said.contains(words), "{name}: {words:?} is missing: {ended:?}");
        }
        for args in ALL {
            self.run(name, &bad.dir, args);
        }
        trap.check(name, &bad.outside);
        let temporary = |name: &PathBuf| name.extension().is_some_and(|e| e == "tmp");
        assert!(!names(&bad.dir).iter().any(temporary), "{name}: a temporary file is left");
        fs::remove_dir_all(bad.dir.parent().unwrap()).unwrap();
    }
}

fn check_all(cases: &[Case]) {
    let template = Template::new();
    let fails = |case: &&Case| catch_unwind(AssertUnwindSafe(|| template.check(case))).is_err();
    let failed: Vec<_> = cases.iter().filter(fails).map(|case| case.name).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), cases.len());
}

impl Bad {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn layer(&self, id: &str) -> PathBuf {
        self.dir.join("layers").join(id)
    }

    fn victim(&self) -> PathBuf {
        self.outside.join("victim")
    }

    /// Replaced by a link to a file elsewhere.
    fn link(&self, path: &Path) {
        remove(path);
        symlink(self.victim(), path).unwrap();
    }

    /// Moved elsewhere, with a link in its place: what it leads to is in order.
    fn move_out(&self, path: &Path) {
        let out = self.outside.join("moved");
        fs::rename(path, &out).unwrap();
        symlink(out, path).unwrap();
    }

    /// A file with a second name elsewhere.
    fn hard_link(&self, path: &Path) {
        let bytes = fs::read(path).unwrap_or_else(|_| b"nobody's business\n".to_vec());
        remove(path);
        fs::write(self.outside.join("second"), bytes).unwrap();
        chmod(&self.outside.join("second"), 0o600);
        fs::hard_link(self.outside.join("second"), path).unwrap();
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        edit(&self.at(name), from, to);
    }

    /// Statements as somebody with SQLite's own program would give them.
    fn sql(&self, statements: &str) {
        let catalog = rusqlite::Connection::open(self.at("catalog.db")).unwrap();
        catalog.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        catalog.execute_batch(statements).unwrap();
    }
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// The line of a TOML file that begins so is replaced.
fn edit_line(path: &Path, begins: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with(begins)).unwrap();
    fs::write(path, text.replacen(line, to, 1)).unwrap();
}

fn pipe_instead(path: &Path) {
    remove(path);
    make_pipe(path);
}

fn sparse(path: &Path, len: u64) {
    remove(path);
    File::create(path).unwrap().set_len(len).unwrap();
    chmod(path, 0o600);
}

fn set_len(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn region_toml() {
    check_all(&[
        Case {
            name: "newer",
            harm: |b| b.edit("region.toml", "format_version = 1", "format_version = 2"),
            command: LIST,
            exit: 4,
            words: &["region.toml", "format 2", "hint"],
        },
        Case {
            name: "unknown feature",
            harm: |b| b.edit("region.toml", "features = []", "features = [\"object-store\"]"),
            command: LIST,
            exit: 4,
            words: &["region.toml", "object-store"],
        },
        Case {
            name: "1 GiB",
            harm: |b| sparse(&b.at("region.toml"), 1 << 30),
            command: LIST,
            exit: 6,
            words: &["region.toml", "65536"],
        },
        Case {
            name: "8 TiB",
            harm: |b| sparse(&b.at("region.toml"), 8 << 40),
            command: LIST,
            exit: 6,
            words: &["region.toml", "65536"],
        },
        Case {
            name: "empty",
            harm: |b| sparse(&b.at("region.toml"), 0),
            command: LIST,
            exit: 6,
            words: &["region.toml", "format"],
        },
        Case {
            name: "not UTF-8",
            harm: |b| fs::write(b.at("region.toml"), b"name = \"\xff\xfe\"").unwrap(),
            command: LIST,
            exit: 6,
            words: &["region.toml", "UTF-8"],
        },
        Case {
            name: "nested deeply",
            harm: |b| fs::write(b.at("region.toml"), format!("x = {}", "[".repeat(60_000))).unwrap(),
            command: LIST,
            exit: 6,
            words: &["region.toml"],
        },
        Case {
            name: "another id",
            harm: |b| edit_line(&b.at("region.toml"), "id = ", &format!("id = \"{}\"", "0".repeat(32))),
            command: VERIFY,
            exit: 4,
            words: &["root key", "here", "hint"],
        },
        Case {
            name: "an id that leads out",
            harm: |b| edit_line(&b.at("region.toml"), "id = ", "id = \"../../outside/victim\""),
            command: LIST,
            exit: 6,
            words: &["region.toml", "32 hexadecimal digits"],
        },
        Case {
            name: "a name that steers the terminal",
            harm: |b| edit_line(&b.at("region.toml"), "name = ", "name = \"a\\u001b[2J\\u009b\""),
            command: LIST,
            exit: 6,
            words: &["region.toml", "\\u{1b}[2J"],
        },
        Case {
            name: "a link",
            harm: |b| b.move_out(&b.at("region.toml")),
            command: LIST,
            exit: 6,
            words: &["region.toml", "symbolic link"],
        },
        Case {
            name: "a hard link",
            harm: |b| b.hard_link(&b.at("region.toml")),
            command: LIST,
            exit: 6,
            words: &["region.toml", "2 names", "copy"],
        },
        Case {
            name: "a pipe",
            harm: |b| pipe_instead(&b.at("region.toml")),
            command: LIST,
            exit: 6,
            words: &["region.toml", "a pipe"],
        },
        Case {
            name: "a folder",
            harm: |b| {
                remove(&b.at("region.toml"));
                fs::create_dir(b.at("region.toml")).unwrap();
            },
            command: LIST,
            exit: 6,
            words: &["region.toml", "a folder"],
        },
        Case {
            name: "a socket",
            harm: |b| {
                remove(&b.at("region.toml"));
                UnixListener::bind(b.at("region.toml")).unwrap();
            },
            command: LIST,
            exit: 6,
            words: &["region.toml", "socket"],
        },
        Case {
            name: "a device that never ends",
            harm: |b| {
                remove(&b.at("region.toml"));
                symlink("/dev/zero", b.at("region.toml")).unwrap();
            },
            command: LIST,
            exit: 6,
            words: &["region.toml", "symbolic link"],
        },
        Case {
            name: "writable by others",
            harm: |b| chmod(&b.at("region.toml"), 0o666),
            command: LIST,
            exit: 6,
            words: &["region.toml", "0666", "chmod 600"],
        },
    ]);
}

#[test]
fn folders_and_what_runs_in_them() {
    check_all(&[
        Case {
            name: "layers is a link",
            harm: |b| b.move_out(&b.at("layers")),
            command: LIST,
            exit: 6,
            words: &["layers", "symbolic link"],
        },
        Case {
            name: "keys is a link",
            harm: |b| b.move_out(&b.at("keys")),
            command: LIST,
            exit: 6,
            words: &["keys", "symbolic link"],
        },
        Case {
            name: "run is a link",
            harm: |b| b.move_out(&b.at("run")),
            command: LIST,
            exit: 6,
            words: &["run", "symbolic link"],
        },
        Case {
            name: "run is a file",
            harm: |b| sparse_after(&b.at("run")),
            command: LIST,
            exit: 6,
            words: &["run", "not a folder"],
        },
        Case {
            name: "run is missing",
            harm: |b| remove(&b.at("run")),
            command: LIST,
            exit: 6,
            words: &["run", "No such file"],
        },
        Case {
            name: "layers is a pipe",
            harm: |b| pipe_instead(&b.at("layers")),
            command: LIST,
            exit: 6,
            words: &["layers", "a pipe"],
        },
        Case {
            name: "others may write the region",
            harm: |b| chmod(&b.dir, 0o777),
            command: LIST,
            exit: 6,
            words: &["0777", "chmod 700"],
        },
        Case {
            name: "others may write layers",
            harm: |b| chmod(&b.at("layers"), 0o770),
            command: LIST,
            exit: 6,
            words: &["layers", "chmod 700"],
        },
        Case {
            name: "open.lock is a link",
            harm: |b| b.link(&b.at("run/open.lock")),
            command: LIST,
            exit: 6,
            words: &["open.lock", "symbolic link"],
        },
        Case {
            name: "open.lock is a pipe",
            harm: |b| pipe_instead(&b.at("run/open.lock")),
            command: LIST,
            exit: 6,
            words: &["open.lock", "a pipe"],
        },
        Case {
            name: "layers.lock is a link",
            harm: |b| b.link(&b.at("run/layers.lock")),
            command: SNAPSHOT,
            exit: 6,
            words: &["layers.lock", "symbolic link"],
        },
        Case {
            name: "layers.lock is a hard link",
            harm: |b| b.hard_link(&b.at("run/layers.lock")),
            command: SNAPSHOT,
            exit: 6,
            words: &["layers.lock", "2 names"],
        },
        Case {
            name: "layers.lock is a pipe",
            harm: |b| pipe_instead(&b.at("run/layers.lock")),
            command: SNAPSHOT,
            exit: 6,
            words: &["layers.lock", "a pipe"],
        },
        Case {
            name: "layers.lock holds a gigabyte",
            harm: |b| sparse(&b.at("run/layers.lock"), 1 << 30),
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "the snapshot's lock is a link",
            harm: |b| b.link(&b.at(&format!("run/{}.lock", b.ids.snapshot))),
            command: &["snapshot", "delete", "s1"],
            exit: 6,
            words: &["symbolic link"],
        },
        Case {
            name: "mount.log is a link",
            harm: |b| b.link(&b.at("run/mount.log")),
            command: &["mount", "/nowhere"],
            exit: 3,
            words: &["/nowhere"],
        },
    ]);
}

fn sparse_after(path: &Path) {
    remove(path);
    sparse(path, 10);
}

#[test]
fn files_of_layers() {
    check_all(&[
        Case {
            name: "header is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.sealed).join("header.toml")),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "symbolic link"],
        },
        Case {
            name: "data is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.sealed).join("data")),
            command: VERIFY,
            exit: 6,
            words: &["data", "symbolic link"],
        },
        Case {
            name: "map is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.active).join("map")),
            command: SNAPSHOT,
            exit: 6,
            words: &["map", "symbolic link"],
        },
        Case {
            name: "the folder is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.sealed)),
            command: VERIFY,
            exit: 6,
            words: &["symbolic link", "layers"],
        },
        Case {
            name: "the folder of the active layer is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.active)),
            command: SNAPSHOT,
            exit: 6,
            words: &["symbolic link", "layers"],
        },
        Case {
            name: "header is a hard link",
            harm: |b| b.hard_link(&b.layer(&b.ids.sealed).join("header.toml")),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "2 names"],
        },
        Case {
            name: "data is a hard link",
            harm: |b| {
                let data = b.layer(&b.ids.active).join("data");
                fs::hard_link(&data, b.outside.join("second")).unwrap();
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["data", "2 names"],
        },
        Case {
            name: "header is a pipe",
            harm: |b| pipe_instead(&b.layer(&b.ids.sealed).join("header.toml")),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "a pipe"],
        },
        Case {
            name: "data is a pipe",
            harm: |b| pipe_instead(&b.layer(&b.ids.sealed).join("data")),
            command: VERIFY,
            exit: 6,
            words: &["data", "a pipe"],
        },
        Case {
            name: "map is a pipe",
            harm: |b| pipe_instead(&b.layer(&b.ids.active).join("map")),
            command: SNAPSHOT,
            exit: 6,
            words: &["map", "a pipe"],
        },
        Case {
            name: "data is writable by others",
            harm: |b| chmod(&b.layer(&b.ids.sealed).join("data"), 0o602),
            command: VERIFY,
            exit: 6,
            words: &["data", "0602", "chmod 600"],
        },
        Case {
            name: "header is writable by others",
            harm: |b| chmod(&b.layer(&b.ids.sealed).join("header.toml"), 0o620),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "0620", "chmod 600"],
        },
        Case {
            name: "the folder is writable by others",
            harm: |b| chmod(&b.layer(&b.ids.sealed), 0o777),
            command: VERIFY,
            exit: 6,
            words: &["0777", "chmod 700"],
        },
        Case {
            name: "map is missing",
            harm: |b| remove(&b.layer(&b.ids.sealed).join("map")),
            command: VERIFY,
            exit: 6,
            words: &["map", "No such file"],
        },
        Case {
            name: "map is a folder",
            harm: |b| {
                remove(&b.layer(&b.ids.sealed).join("map"));
                fs::create_dir(b.layer(&b.ids.sealed).join("map")).unwrap();
            },
            command: VERIFY,
            exit: 6,
            words: &["map", "a folder"],
        },
        Case {
            name: "header of a gigabyte",
            harm: |b| sparse(&b.layer(&b.ids.sealed).join("header.toml"), 1 << 30),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "1048576"],
        },
        Case {
            name: "header not UTF-8",
            harm: |b| fs::write(b.layer(&b.ids.sealed).join("header.toml"), [0xff; 500]).unwrap(),
            command: VERIFY,
            exit: 6,
            words: &["UTF-8"],
        },
        Case {
            name: "map is shorter",
            harm: |b| set_len(&b.layer(&b.ids.sealed).join("map"), 4096),
            command: VERIFY,
            exit: 6,
            words: &["page"],
        },
        Case {
            name: "map of 8 TiB",
            harm: |b| set_len(&b.layer(&b.ids.sealed).join("map"), 8 << 40),
            command: VERIFY,
            exit: 0,
            words: &[],
        },
        Case {
            name: "data is shorter",
            harm: |b| set_len(&b.layer(&b.ids.sealed).join("data"), (64 << 20) + 4096),
            command: VERIFY,
            exit: 6,
            words: &["sector"],
        },
        Case {
            name: "data ends within its superblocks",
            harm: |b| set_len(&b.layer(&b.ids.active).join("data"), 5000),
            command: SNAPSHOT,
            exit: 6,
            words: &["5000 bytes"],
        },
        Case {
            name: "data of 8 TiB",
            harm: |b| set_len(&b.layer(&b.ids.active).join("data"), 8 << 40),
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "folders swapped",
            harm: |b| {
                let (one, two) = (b.layer(&b.ids.active), b.layer(&b.ids.other));
                let between = b.dir.join("layers/between");
                fs::rename(&one, &between).unwrap();
                fs::rename(&two, &one).unwrap();
                fs::rename(&between, &two).unwrap();
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["header"],
        },
        Case {
            name: "data of another layer",
            harm: |b| {
                fs::copy(b.layer(&b.ids.other).join("data"), b.layer(&b.ids.active).join("data"))
                    .map(drop)
                    .unwrap()
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["superblock"],
        },
        Case {
            name: "the wrapped key of another layer",
            harm: |b| {
                let other = fs::read_to_string(b.layer(&b.ids.other).join("header.toml")).unwrap();
                let line = other.lines().find(|line| line.starts_with("wrapped_key")).unwrap().to_owned();
                edit_line(&b.layer(&b.ids.sealed).join("header.toml"), "wrapped_key", &line);
                b.sql(&format!(
                    "UPDATE layers SET wrapped_key = (SELECT wrapped_key FROM layers WHERE id = '{}') WHERE id = '{}'",
                    b.ids.other, b.ids.sealed
                ));
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a wrapped key that is cut",
            harm: |b| {
                b.sql(&format!(
                    "UPDATE layers SET wrapped_key = substr(wrapped_key, 1, 40) WHERE id = '{}'",
                    b.ids.sealed
                ))
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a wrapped key of one byte",
            harm: |b| b.sql(&format!("UPDATE layers SET wrapped_key = x'01' WHERE id = '{}'", b.ids.sealed)),
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a wrapped key with one bit off",
            harm: |b| {
                let catalog = rusqlite::Connection::open(b.at("catalog.db")).unwrap();
                let read = "SELECT wrapped_key FROM layers WHERE id = ?1";
                let mut key: Vec<u8> = catalog.query_row(read, [&b.ids.sealed], |row| row.get(0)).unwrap();
                key[40] ^= 1;
                let write = "UPDATE layers SET wrapped_key = ?2 WHERE id = ?1";
                catalog.execute(write, rusqlite::params![b.ids.sealed, key]).unwrap();
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "another size in header",
            harm: |b| {
                edit(
                    &b.layer(&b.ids.sealed).join("header.toml"),
                    "size_bytes = 8388608",
                    "size_bytes = 8392704",
                )
            },
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "MAC"],
        },
        Case {
            name: "a size of minus one in header",
            harm: |b| {
                edit(&b.layer(&b.ids.sealed).join("header.toml"), "size_bytes = 8388608", "size_bytes = -1")
            },
            command: VERIFY,
            exit: 6,
            words: &["header.toml"],
        },
        Case {
            name: "cipher renamed to none",
            harm: |b| {
                edit_line(&b.layer(&b.ids.sealed).join("header.toml"), "cipher", "cipher = \"none\"");
                b.sql(&format!("UPDATE layers SET cipher = 'none' WHERE id = '{}'", b.ids.sealed));
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "another parent in header",
            harm: |b| {
                let parent = format!("parent = \"{}\"", b.ids.other);
                edit_line(&b.layer(&b.ids.active).join("header.toml"), "parent = ", &parent);
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["header.toml", "MAC"],
        },
        Case {
            name: "both superblocks flipped",
            harm: |b| [40, 4136].iter().for_each(|at| flip(&b.layer(&b.ids.active).join("data"), *at)),
            command: SNAPSHOT,
            exit: 6,
            words: &["superblock"],
        },
        Case {
            name: "key files are links and pipes",
            harm: |b| {
                b.link(&b.at(&format!("keys/{}.1", b.ids.key)));
                make_pipe(&b.at(&format!("keys/{}.2", b.ids.key)));
            },
            command: CHECK,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a key file of a gigabyte, the row damaged",
            harm: |b| {
                sparse(&b.at(&format!("keys/{}.1", b.ids.key)), 1 << 30);
                b.sql("UPDATE key_versions SET wrapped = x'00'");
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
    ]);
}

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
