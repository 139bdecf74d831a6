//! A region whose clock the test sets. Used by `#[path = "common/clocked.rs"] mod clocked;` beside `world`.
#![allow(dead_code)] // each test file uses a part

use serde_json::Value;

use crate::world::World;

/// A region under a clock of its own, with a snapshot `mon` of a volume `web`.
pub struct Case {
    pub world: World,
}

impl Case {
    /// It is 2031-01-01.
    pub fn new() -> Self {
        Self::at("2031-01-01T00:00:00Z")
    }

    pub fn at(now: &str) -> Self {
        let world = World::bare(None);
        let case = Self { world };
        case.time(now);
        case.ok(&["region", "init", &case.world.at("r"), "--name", "here", "-q"]);
        case.ok(&["volume", "create", "--name", "web", "--size", "8M"]);
        case.ok(&["snapshot", "create", "web", "--name", "mon"]);
        case
    }

    pub fn time(&self, now: &str) {
        std::fs::write(self.world.path("clock"), now).unwrap();
    }

    /// Exit number and stderr; by the clock of the case.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let (exit, stdout, stderr) = self.run(args);
        assert_eq!(exit, 0, "{args:?}: {stderr}");
        stdout
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

    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.world.command(args);
        command.env("TERRANE_CLOCK", format!("@{}", self.world.at("clock")));
        command
    }

    pub fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.world.path("r/catalog.db")).unwrap().execute_batch(sql).unwrap();
    }
}
