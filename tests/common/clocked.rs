//! Regions whose clock the test sets. Used by `#[path = "common/clocked.rs"] mod clocked;` beside `world`.
#![allow(dead_code)] // each test file uses a part

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::world::{Running, World};

/// A world under a clock of its own.
pub struct Case {
    pub world: World,
}

impl Case {
    /// At this time, with regions of these names, each in the directory before it.
    pub fn at(now: &str, regions: &[(&str, &str)]) -> Self {
        let case = Self { world: World::bare(None) };
        case.time(now);
        for (dir, name) in regions {
            case.ok(&["region", "init", &case.world.at(dir), "--name", name, "-q"]);
        }
        case
    }

    /// It is 2031-01-01.
    pub fn with_mon() -> Self {
        Self::with_mon_at("2031-01-01T00:00:00Z")
    }

    /// A region in `r`, with a snapshot `mon` of a volume `web`.
    pub fn with_mon_at(now: &str) -> Self {
        let case = Self::at(now, &[("r", "here")]);
        case.ok(&["volume", "create", "--name", "web", "--size", "8M"]);
        case.ok(&["snapshot", "create", "web", "--name", "mon"]);
        case
    }

    pub fn time(&self, now: &str) {
        // Whoever reads it meanwhile finds one or the other.
        std::fs::write(self.world.path("clock.new"), now).unwrap();
        std::fs::rename(self.world.path("clock.new"), self.world.path("clock")).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.command(args);
        command.env("TERRANE_CLOCK", format!("@{}", self.world.at("clock")));
        command
    }

    /// Exit number, stdout, stderr.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// Stdout, without its last line end.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let (exit, stdout, stderr) = self.run(args);
        assert_eq!(exit, 0, "{args:?}: {stderr}");
        stdout.trim_end().to_owned()
    }

    #[track_caller]
    pub fn fails(&self, args: &[&str], exit: i32, words: &[&str]) -> String {
        let (found, _, stderr) = self.run(args);
        assert_eq!(found, exit, "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word:?} is missing in: {stderr}");
        }
        stderr
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json", "-q"]].concat())).unwrap()
    }

    /// All that is to be done now; what the daemon says of it.
    #[track_caller]
    pub fn once(&self, args: &[&str]) -> String {
        let (exit, _, said) = self.run(&[&["daemon", "--once"], args].concat());
        assert_eq!(exit, 0, "{said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    /// A daemon in the background, which says what it does into `said`.
    pub fn daemon(&self, args: &[&str]) -> Running {
        let said = std::fs::File::create(self.world.path("said")).unwrap();
        let mut command = self.command(&[&["daemon"], args].concat());
        Running(command.stdout(Stdio::null()).stderr(said).spawn().unwrap())
    }

    /// Changes rows of the catalog of the region in this directory, behind the program's back; how many the last statement changed.
    #[track_caller]
    pub fn sql(&self, dir: &str, sql: &str) -> usize {
        let catalog = rusqlite::Connection::open(self.world.path(dir).join("catalog.db")).unwrap();
        catalog.busy_timeout(Duration::from_secs(20)).unwrap();
        catalog.pragma_update(None, "foreign_keys", false).unwrap();
        catalog.execute_batch(sql).unwrap();
        catalog.changes() as usize
    }
}
