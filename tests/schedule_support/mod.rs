//! Two regions under a clock of the test's own, and the daemon that carries out their schedules.
#![allow(dead_code)] // each test file uses a part

#[path = "../common/clocked.rs"]
mod clocked;
#[path = "../common/world.rs"]
pub mod world;

use serde_json::Value;

pub use clocked::Case;

impl Case {
    /// Regions north, in `r`, and south, in `s`. It is 2031-03-01, a Saturday.
    pub fn new() -> Self {
        Self::at("2031-03-01T00:00:00Z", &[("r", "north"), ("s", "south")])
    }

    /// With a volume `db` of north, and a schedule `hourly` of it with these further options.
    pub fn hourly(options: &[&str]) -> Self {
        let case = Self::new();
        case.volume("db", &[]);
        case.schedule(&[&["--name", "hourly", "--volume", "db", "--every", "1h"], options].concat());
        case
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
