//! Regions that were harmed, each in its own way, and what must come of commands that are given them.
//!
//! Used by `#[path = "common/bad_region.rs"] mod bad_region;` beside `hostile` and `world`.
#![allow(dead_code)] // each test file uses a part

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::hostile::{Ended, MEMORY_KIB_MAX, Trap, bounded, chmod, make_pipe, names};
use super::world::{MIB, World, is_gone, must, pattern, within, write_at};

/// What is done to a region, and what must come of one command.
pub struct Case {
    pub name: &'static str,
    pub harm: fn(&Bad),
    pub command: &'static [&'static str],
    /// The exit number, and words of the sentence.
    pub exit: i32,
    pub words: &'static [&'static str],
}

pub const LIST: &[&str] = &["volume", "list"];
pub const SHOW: &[&str] = &["volume", "show", "web"];
pub const CHECK: &[&str] = &["region", "check"];
pub const VERIFY: &[&str] = &["snapshot", "verify", "s1"];
pub const DEEP: &[&str] = &["snapshot", "verify", "s1", "--deep"];
pub const SNAPSHOT: &[&str] = &["snapshot", "create", "web", "--name", "s2"];
pub const CLONE: &[&str] = &["volume", "create", "--snapshot", "s1", "--name", "clone"];

/// Commands that each harmed region is given, whatever they say.
pub const ALL: &[&[&str]] = &[
    &["region", "show"],
    LIST,
    &["snapshot", "list"],
    SHOW,
    CHECK,
    VERIFY,
    DEEP,
    CLONE,
    SNAPSHOT,
    &["status"],
    &["snapshot", "diff", "s1", "s2"],
    &["snapshot", "copy", "s1", "--to", "there", "--name", "carried", "--dry-run"],
    &["task", "list"],
    &["schedule", "list"],
    &["bin", "list"],
    &["daemon", "--once"],
    &["volume", "rollback", "web", "--snapshot", "s1"],
    &["key", "rotate", "default"],
    &["snapshot", "delete", "s1"],
    &["volume", "delete", "web"],
    &["region", "check", "--repair", "--remove-unknown", "--yes"],
];

/// A region with a volume of a snapshot, which has a proof, and something on top, another volume, and a copy of it for each case.
pub struct Template {
    world: World,
    pub ids: Ids,
}

#[derive(Clone)]
pub struct Ids {
    pub active: String,
    pub sealed: String,
    pub other: String,
    pub key: String,
    pub snapshot: String,
}

/// A harmed copy.
pub struct Bad {
    pub dir: PathBuf,
    pub outside: PathBuf,
    pub ids: Ids,
}

impl Template {
    pub fn new() -> Self {
        let world = World::new();
        world.volume("web", "8M");
        world.volume("other", "8M");
        world.mount();
        write_at(&world.file("web"), 0, &pattern(64 << 10, 1)).unwrap();
        write_at(&world.file("other"), 0, &pattern(64 << 10, 2)).unwrap();
        let snapshot = world.snapshot("web", "s1");
        write_at(&world.file("web"), MIB, &pattern(64 << 10, 3)).unwrap();
        world.unmount();
        world.ok(DEEP);
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
        // Where copies would go.
        world.ok(&["region", "init", &world.at("there"), "--name", "there", "-q"]);
        Self { world, ids }
    }

    pub fn copy(&self, name: &str) -> Bad {
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

    pub fn run(&self, what: &str, dir: &Path, args: &[&str]) -> Ended {
        let region = format!("{}/", dir.display());
        bounded(&format!("{what}: {args:?}"), || {
            let mut command = self.world.command(args);
            command.args(["--region", &region]);
            command
        })
    }

    pub fn check(&self, case: &Case) {
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
        bad.check_left(name);
        if is_chosen(name) {
            self.check_mounted(case);
        }
    }

    /// Mounts a harmed copy, where that can be, and reads and writes every file.
    fn check_mounted(&self, case: &Case) {
        let name = case.name;
        let bad = self.copy(&format!("{}-mounted", name.replace([' ', '/'], "-")));
        (case.harm)(&bad);
        let trap = Trap::set(&bad.outside);
        let mnt = bad.dir.with_file_name("mnt");
        fs::create_dir(&mnt).unwrap();
        let mnt = mnt.to_str().unwrap();
        if self.run(name, &bad.dir, &["mount", mnt]).exit == Some(0) {
            let owner = fs::read_to_string(bad.at("run/layers.lock")).unwrap();
            let server: i32 = owner.lines().next().unwrap().parse().unwrap();
            for folder in ["volumes", "snapshots"] {
                // Where the catalog does not read there is no list.
                let listed = fs::read_dir(Path::new(mnt).join(folder)).into_iter().flatten().flatten();
                for file in listed.map(|entry| entry.path()) {
                    bounded(&format!("{name}: a file in {folder} of a mount"), || {
                        let mut command = Command::new("sh");
                        command.args(["-c", USE, "sh"]).arg(&file);
                        command
                    });
                }
            }
            assert!(!is_gone(server), "{name}: the server has ended");
            assert!(most_memory_kib(server) <= MEMORY_KIB_MAX, "{name}: too much memory for a mount");
            self.run(name, &bad.dir, &["unmount", mnt]);
            assert!(within(20, || is_gone(server)), "{name}: the server stays");
            let log = fs::read_to_string(bad.at("run/mount.log")).unwrap_or_default();
            assert!(!log.contains("panicked"), "{name}: {log}");
        }
        trap.check(name, &bad.outside);
        bad.check_left(name);
    }
}

/// Reads 16 MiB and the end of a file of a mount, and writes a byte if it takes it, whatever comes of it.
const USE: &str = r#"exec >/dev/null 2>&1
    head -c 16777216 "$1"
    tail -c 65536 "$1"
    printf x | dd of="$1" bs=1 seek=5000 conv=notrunc,fsync
    exit 0"#;

/// The gate mounts each fifth of the harmed regions, `TERRANE_MOUNT_ALL=1` all.
fn is_chosen(name: &str) -> bool {
    let sum = name.bytes().fold(0u8, u8::wrapping_add);
    sum.is_multiple_of(5) || std::env::var_os("TERRANE_MOUNT_ALL").is_some()
}

/// The most memory that a process had at once.
fn most_memory_kib(pid: i32) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    most.trim().trim_end_matches(" kB").parse().unwrap()
}

pub fn check_all(cases: &[Case]) {
    let template = Template::new();
    let fails = |case: &&Case| catch_unwind(AssertUnwindSafe(|| template.check(case))).is_err();
    let failed: Vec<_> = cases.iter().filter(fails).map(|case| case.name).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), cases.len());
}

impl Bad {
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn layer(&self, id: &str) -> PathBuf {
        self.dir.join("layers").join(id)
    }

    pub fn proof(&self) -> PathBuf {
        self.at("proofs").join(&self.ids.snapshot)
    }

    pub fn victim(&self) -> PathBuf {
        self.outside.join("victim")
    }

    /// Replaced by a link to a file elsewhere.
    pub fn link(&self, path: &Path) {
        remove(path);
        symlink(self.victim(), path).unwrap();
    }

    /// Moved elsewhere, with a link in its place: what it leads to is in order.
    pub fn move_out(&self, path: &Path) {
        let out = self.outside.join("moved");
        fs::rename(path, &out).unwrap();
        symlink(out, path).unwrap();
    }

    /// A file with a second name elsewhere.
    pub fn hard_link(&self, path: &Path) {
        let bytes = fs::read(path).unwrap_or_else(|_| b"nobody's business\n".to_vec());
        remove(path);
        fs::write(self.outside.join("second"), bytes).unwrap();
        chmod(&self.outside.join("second"), 0o600);
        fs::hard_link(self.outside.join("second"), path).unwrap();
    }

    pub fn edit(&self, name: &str, from: &str, to: &str) {
        edit(&self.at(name), from, to);
    }

    /// Statements as somebody with SQLite's own program would give them.
    pub fn sql(&self, statements: &str) {
        let catalog = rusqlite::Connection::open(self.at("catalog.db")).unwrap();
        catalog.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        catalog.execute_batch(statements).unwrap();
    }

    /// A command leaves nothing half written; then the copy goes.
    fn check_left(&self, name: &str) {
        let temporary = |name: &PathBuf| name.extension().is_some_and(|e| e == "tmp");
        assert!(!names(&self.dir).iter().any(temporary), "{name}: a temporary file is left");
        fs::remove_dir_all(self.dir.parent().unwrap()).unwrap();
    }
}

pub fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

pub fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// The line of a TOML file that begins so is replaced.
pub fn edit_line(path: &Path, begins: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with(begins)).unwrap();
    fs::write(path, text.replacen(line, to, 1)).unwrap();
}

pub fn pipe_instead(path: &Path) {
    remove(path);
    make_pipe(path);
}

pub fn sparse(path: &Path, len: u64) {
    remove(path);
    File::create(path).unwrap().set_len(len).unwrap();
    chmod(path, 0o600);
}

pub fn set_len(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}
