//! Guards against a power cut anywhere in what a daemon does for a schedule: snapshots of two volumes at one moment, their copies under
//! the keys of another region, and the end of older ones. Whoever carries it out afterwards comes to what it was to be: one snapshot for
//! the due time, one copy of each, and nothing older than is kept.
//!
//! `TERRANE_CRASH_SEEDS=n` cuts at n times as many places.

mod fs_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fs_support::common::image::Cut;
use fs_support::common::{Random, seeds};
use fs_support::{FsDisk, FsMount};

const PLACES: usize = 24;
const REGIONS: [&str; 2] = ["north", "south"];

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// A disk with both regions, and a configuration that knows them there.
struct Machine<'m> {
    disk: FsDisk<'m>,
    config: PathBuf,
    clock: PathBuf,
}

impl<'m> Machine<'m> {
    /// What is known of the regions is as it was when they were elsewhere, but for where they are.
    fn new(disk: FsDisk<'m>, dir: &Path, number: usize, as_known: Option<&Machine>) -> Self {
        let config = dir.join(format!("config-{number}"));
        if let Some(known) = as_known {
            copy(&known.config, &config, &|text| {
                let place = |path: &Path| path.to_str().unwrap().to_owned();
                text.replace(&place(&known.config), &place(&config))
                    .replace(&place(known.disk.path()), &place(disk.path()))
            });
        }
        Self { disk, config, clock: dir.join("clock") }
    }

    fn time(&self, now: &str) {
        std::fs::write(&self.clock, now).unwrap();
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.said(args).0
    }

    /// What it answers, and what it says beside.
    #[track_caller]
    fn said(&self, args: &[&str]) -> (String, String) {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("terrane"));
        for name in ["TERRANE_REGION", "TERRANE_ACCOUNT", "TERRANE_LOG"] {
            command.env_remove(name);
        }
        command
            .env("TERRANE_CONFIG_DIR", &self.config)
            .env("TERRANE_CLOCK", format!("@{}", self.clock.display()));
        let output = command.args(args).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        (String::from_utf8(output.stdout).unwrap().trim_end().to_owned(), said)
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json", "-q"]].concat())).unwrap()
    }

    /// The names of a region's snapshots, and their states and groups.
    fn snapshots(&self, region: &str) -> Vec<[String; 3]> {
        let listed = self.json(&["snapshot", "list", "--region", region]);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let of = |s: &serde_json::Value| [text(&s["name"]), text(&s["state"]), text(&s["group_id"])];
        let mut found: Vec<_> = listed.as_array().unwrap().iter().map(of).collect();
        found.sort();
        found
    }
}

/// A folder, and what is below it, each text changed.
fn copy(from: &Path, to: &Path, change: &dyn Fn(String) -> String) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target, change);
            continue;
        }
        let bytes = std::fs::read(&source).unwrap();
        let bytes =
            String::from_utf8(bytes).map_or_else(|e| e.into_bytes(), |text| change(text).into_bytes());
        std::fs::write(&target, bytes).unwrap();
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
}

// X7, X4, X5
#[test]
fn a_schedule_cut_anywhere_comes_to_its_end() {
    let mount = FsMount::new();
    let dir = tempfile::tempdir().unwrap();
    let first = Machine::new(mount.empty_disk(), dir.path(), 0, None);
    first.time("2031-03-01T00:00:00Z");
    for region in REGIONS {
        let at = first.disk.path().join(region);
        first.ok(&["region", "init", at.to_str().unwrap(), "--name", region, "-q"]);
    }
    for volume in ["db", "web"] {
        first.ok(&[
            "volume", "create", "--region", "north", "--name", volume, "--size", "4M", "--tag", "all=yes",
        ]);
    }
    first.ok(&[
        "schedule",
        "create",
        "--region",
        "north",
        "--name",
        "nightly",
        "--tag",
        "all=yes",
        "--every",
        "1h",
        "--keep",
        "1",
        "--copy-to",
        "south",
        "--keep-copies",
        "1",
    ]);
    first.time("2031-03-01T01:00:00Z");
    first.ok(&["daemon", "--once", "-q"]);
    let before = first.disk.state();
    let run = Machine::new(mount.disk(&before), dir.path(), 1, Some(&first));
    run.time("2031-03-01T02:00:00Z");
    run.disk.start_trace();
    run.ok(&["daemon", "--once", "-q"]);
    let trace = run.disk.take_trace();
    let (factor, _) = seeds(1);
    let mut random = Random::new(factor.start ^ 77);
    let places = PLACES * (factor.end - factor.start) as usize;
    let mut cut_between = 0;
    for number in 0..places {
        let n = match number {
            0 => 0,
            1 => trace.len,
            _ => random.below(trace.len as u64 + 1) as usize,
        };
        let cut = if random.one_in(2) { Cut::All } else { Cut::any(&mut random) };
        let left = trace.after(n, cut, random.next());
        let machine = Machine::new(mount.disk(&left), dir.path(), 2 + number, Some(&first));
        println!("cut after {n} of {} operations, {cut:?}", trace.len);
        // Of one moment both are there, or none.
        let taken = |s: &&[String; 3]| s[0].contains("T02");
        let found = machine.snapshots("north");
        let there = found.iter().filter(taken).count();
        assert!([0, 2].contains(&there), "{found:?}");
        cut_between += usize::from(there == 2);
        for _ in 0..2 {
            let (_, said) = machine.said(&["daemon", "--once"]);
            for region in REGIONS {
                let found = machine.snapshots(region);
                let wanted = ["nightly-db-20310301T020000Z", "nightly-web-20310301T020000Z"];
                let names: Vec<_> = found.iter().map(|s| s[0].as_str()).collect();
                assert_eq!(names, wanted, "in {region}: {said}");
                assert!(found.iter().all(|s| s[1] == "success" && s[2] == found[0][2] && !s[2].is_empty()));
            }
        }
        REGIONS.iter().for_each(|region| drop(machine.ok(&["region", "check", "--region", region, "-q"])));
        let shown = machine.json(&["schedule", "show", "--region", "north", "nightly"]);
        assert_eq!((&shown["last_due_at"], shown["error"].is_null()), (&"2031-03-01T02:00:00Z".into(), true));
        std::fs::remove_dir_all(&machine.config).unwrap();
    }
    println!("{places} disks after a cut of a schedule, {cut_between} of them with its snapshots");
    assert!(cut_between > 0 && cut_between < places);
}
