//! Two regions under a clock of the test's own, and the daemon that carries out their schedules.
#![allow(dead_code)] // each test file uses a part

#[path = "../common/world.rs"]
pub mod world;

use std::process::{Command, Stdio};

use serde_json::Value;
use world::{Running, World};

/// Regions north, in `r`, and south, in `s`. It is 2031-03-01, a Saturday.
pub struct Case {
    pub world: World,
}

impl Case {
    pub fn new() -> Self {
        let case = Self { world: World::bare(None) };
        case.time("2031-03-01T00:00:00Z");
        for (dir, name) in [("r", "north"), ("s", "south")] {
            case.ok(&["region", "init", &case.world.at(dir), "--name", name, "-q"]);
        }
        case
    }

    /// With a volume `db` of north, and a schedule `hourly` of it with these further options.
    pub fn hourly(options: &[&str]) -> Self {
        let case = Self::new();
        case.volume("db", &[]);
        case.schedule(&[&["--name", "hourly", "--volume", "db", "--every", "1h"], options].concat());
        case
    }

    pub fn time(&self, now: &str) {
        // Whoever reads it meanwhile finds one or the other.
        std::fs::write(self.world.path("clock.new"), now).unwrap();
        std::fs::rename(self.world.path("clock.new"), self.world.path("clock")).unwrap();
    }

    /// So many hours after midnight of 2031-03-01.
    pub fn hour(&self, hour: i64) {
        self.time(&at_hour(hour));
    }

    pub fn volume(&self, name: &str, tags: &[&str]) -> String {
        let mut args = vec!["volume", "create", "--region", "north", "--size", "8M", "--name", name];
        tags.iter().for_each(|tag| args.extend(["--tag", tag]));
        self.ok(&args)
    }

    pub fn schedule(&self, options: &[&str]) -> String {
        self.ok(&[&["schedule", "create", "--region", "north"], options].concat())
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

    /// A daemon in the background.
    pub fn daemon(&self, args: &[&str]) -> Running {
        let mut command = self.command(&[&["daemon"], args].concat());
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn snapshots(&self, region: &str) -> Vec<Value> {
        self.json(&["snapshot", "list", "--region", region]).as_array().unwrap().clone()
    }

    /// The names of a region's snapshots, oldest first.
    pub fn names(&self, region: &str) -> Vec<String> {
        self.snapshots(region).iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The same of those that are whole.
    pub fn whole(&self, region: &str) -> Vec<String> {
        let all = self.snapshots(region);
        all.iter()
            .filter(|s| s["state"] == "success")
            .map(|s| s["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The schedule, as `show` has it.
    pub fn shown(&self, schedule: &str) -> Value {
        self.json(&["schedule", "show", "--region", "north", schedule])
    }

    /// What stands in a schedule's way.
    pub fn error(&self, schedule: &str) -> String {
        let listed = self.json(&["schedule", "list", "--region", "north"]);
        let listed = listed.as_array().unwrap();
        let found = listed.iter().find(|s| s["name"] == schedule).expect("it is listed");
        found["error"].as_str().unwrap_or_default().to_owned()
    }

    /// Changes rows of a region's catalog, behind the program's back.
    #[track_caller]
    pub fn sql(&self, dir: &str, sql: &str) -> usize {
        let catalog = rusqlite::Connection::open(self.world.path(dir).join("catalog.db")).unwrap();
        catalog.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
        catalog.pragma_update(None, "foreign_keys", false).unwrap();
        catalog.execute(sql, []).unwrap()
    }
}

pub fn at_hour(hour: i64) -> String {
    format!("2031-03-{:02}T{:02}:00:30Z", 1 + hour / 24, hour % 24)
}

/// The name of a snapshot of the schedule `hourly`.
pub fn hourly(volume: &str, hour: i64) -> String {
    format!("hourly-{volume}-203103{:02}T{:02}0000Z", 1 + hour / 24, hour % 24)
}

pub fn hourlies(volume: &str, hours: std::ops::RangeInclusive<i64>) -> Vec<String> {
    hours.map(|hour| hourly(volume, hour)).collect()
}
