//! Guards against a daemon that is killed amid a schedule: a due time that has no snapshot in the end, or two of a volume; a copy that
//! is not asked for, or is twice; and one that expires too much.

mod schedule_support;

use std::time::Duration;

use schedule_support::world::pattern;
use schedule_support::{Case, hourly};

const VOLUMES: [&str; 2] = ["db", "web"];

// X7, X4, X5
#[test]
fn a_killed_daemon_leaves_one_snapshot_for_one_due_time() {
    let case = Case::new();
    VOLUMES.iter().for_each(|name| drop(case.volume(name, &["all=yes"])));
    case.schedule(&[
        "--name",
        "hourly",
        "--tag",
        "all=yes",
        "--every",
        "1h",
        "--keep",
        "2",
        "--copy-to",
        "south",
        "--keep-copies",
        "3",
    ]);
    let random = pattern(64, 4242);
    let mut killed = 0;
    for hour in 1..=16 {
        case.hour(hour);
        // Later each time, until one comes to its end by itself.
        for delay in 0.. {
            let mut daemon = case.daemon(&["--once"]);
            let wait = u64::from(random[(hour as usize + delay) % random.len()] % 16) + 12 * delay as u64;
            std::thread::sleep(Duration::from_millis(wait));
            if daemon.0.try_wait().unwrap().is_some() {
                break;
            }
            daemon.0.kill().unwrap();
            daemon.0.wait().unwrap();
            killed += 1;
        }
        // What a killed one was about to do.
        case.once(&[]);
        let expected = |oldest: i64| -> Vec<String> {
            let hours = oldest.max(1)..=hour;
            let mut names: Vec<_> =
                hours.flat_map(|hour| VOLUMES.map(|volume| hourly(volume, hour))).collect();
            names.sort();
            names
        };
        for (region, kept) in [("north", 2), ("south", 3)] {
            let mut names = case.whole(region);
            names.sort();
            assert_eq!(names, expected(hour - kept + 1), "{region}, after {killed} kills");
            assert_eq!(case.names(region).len(), names.len());
        }
        // Those of one time are of one moment.
        let taken = case.snapshots("north");
        let of =
            |volume| taken.iter().find(|s| s["name"] == hourly(volume, hour)).unwrap()["group_id"].clone();
        assert!(of("db").is_string() && of("db") == of("web"));
        assert_eq!(case.error("hourly"), "");
    }
    println!("{killed} daemons were killed");
    assert!(killed > 0, "none was killed");
    for region in ["north", "south"] {
        case.ok(&["region", "check", "--region", region]);
        let tasks = case.json(&["task", "list", "--region", region]);
        assert!(tasks.as_array().unwrap().iter().all(|task| task["state"] == "succeeded"), "{tasks}");
    }
    assert_eq!(
        case.json(&["task", "list", "--region", "south"]).as_array().unwrap().len(),
        16 * VOLUMES.len()
    );
}
