//! Guarded here: copies lost or made twice where what is asked, or the world around, makes no sense.

mod copy_support;

use std::sync::atomic::AtomicBool;

use copy_support::daemon::{Daemon, copy_args, named, pair, states, tasks};
use copy_support::{Disk, World, copy_files};
use terrane::catalog::{DiskKind, SnapshotState, TaskState};
use terrane::copy::{CopyError, Held, Slot, Taken, Watch, carry_out};
use terrane::volume::Host;

const MIB: usize = 1 << 20;

fn sql(world: &World, region: &str, statement: &str) {
    rusqlite::Connection::open(world.path(region).join("catalog.db"))
        .unwrap()
        .execute_batch(statement)
        .unwrap();
}

/// What a later version asks for is left to that version; what this one knows is made beside it.
#[test]
fn two_daemons_of_different_versions_leave_each_other_what_is_theirs() {
    let (world, disk, _) = pair(2);
    world.ok(&copy_args("north/one", "later"));
    world.ok(&copy_args("north/one", "now"));
    let later = tasks(&world, "south").into_iter().find(|task| task.detail.contains("later")).unwrap().id;
    sql(
        &world,
        "south",
        &format!(
            "UPDATE tasks SET detail = json_set(detail, '$.priority', 7) WHERE id = '{later}';
             INSERT INTO tasks SELECT 'task-0123456789abcdef0', account, 'fetch', NULL, '{{}}', 'queued', 0, 0, NULL, created_at,
               updated_at, 0, NULL, NULL FROM tasks WHERE id = '{later}';"
        ),
    );
    let (_, said) = Daemon::new(&world, &["--once"]).wait();
    assert!(said.contains("can't be read") && said.contains(&later.to_string()), "{said}");
    world.equal("south", named(&world, "south", "now").unwrap().id, &disk.model);
    let of_kind = |kind: &str| tasks(&world, "south").into_iter().filter(|t| t.kind == kind).count();
    assert_eq!((of_kind("fetch"), of_kind("copy")), (1, 2));
    let waiting = tasks(&world, "south").into_iter().filter(|task| task.state == TaskState::Queued).count();
    assert_eq!(waiting, 2, "neither was touched");
    assert_eq!(named(&world, "south", "later").unwrap().state, SnapshotState::Processing);
    world.ok(&["snapshot", "delete", "later", "--region", "south"]);
    let task = tasks(&world, "south").into_iter().find(|task| task.id == later).unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
}

/// Round and round: each copy finds the last as its base, whoever made it, and carries nothing.
#[test]
fn cycles_of_copies_carry_nothing_twice() {
    let world = World::new(&["aa", "bb", "cc"]);
    let mut disk = Disk::new(&world, "aa", 4 * MIB, Some(world.default_key("aa")), DiskKind::Data);
    disk.change(&world, "start", |c| c.write(MIB, &[3; MIB]));
    let mut from = "aa/start".to_owned();
    let mut shipped = Vec::new();
    for (round, to) in ["bb", "cc", "aa", "bb", "cc", "aa"].iter().enumerate() {
        let called = format!("round-{round}");
        world.ok(&["snapshot", "copy", &from, "--to", to, "--name", &called, "--wait"]);
        let copy = named(&world, to, &called).unwrap();
        world.equal(to, copy.id, &disk.model);
        shipped.push(copy.shipped_bytes);
        from = format!("{to}/{called}");
    }
    assert_eq!(shipped, [MIB as u64, MIB as u64, 0, 0, 0, 0]);
    world.ok(&["snapshot", "verify", "round-5", "--region", "aa", "--against", "cc/round-4"]);
}

/// Tried again, it would panic again: it fails, once, and leaves nothing.
#[test]
fn a_copy_that_panics_fails_alone() {
    let (world, disk, _) = pair(2);
    world.ok(&copy_args("north/one", "copied"));
    let task = tasks(&world, "south")[0].id;
    {
        let target = Host::new(world.region("south"), None);
        let Taken::Held(held) = Held::take(target.region(), task).unwrap() else { panic!("nobody makes it") };
        let slot = Slot::take(target.region()).unwrap().unwrap();
        let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
        let watch = Watch { exit_of: |_| 3, ..Watch::new(&cancel, &mut progress) };
        let done = carry_out(&held, &slot, &target, |_| panic!("as a fault of ours would"), None, watch);
        assert!(matches!(done, Err(CopyError::Panicked)), "{done:?}");
    }
    let row = tasks(&world, "south").into_iter().find(|row| row.id == task).unwrap();
    assert_eq!((row.state, row.exit), (TaskState::Failed, Some(3)));
    assert!(row.error.unwrap().contains("panicked"));
    assert!(named(&world, "south", "copied").is_none());
    assert!(world.ok(&["daemon", "--once", "-q"]).is_empty(), "it is not tried again");
    world.ok(&[&copy_args("north/one", "copied")[..], &["--wait"]].concat());
    world.equal("south", named(&world, "south", "copied").unwrap().id, &disk.model);
}

/// What was called off stays so: the same words ask for a new copy.
#[test]
fn a_cancelled_copy_is_not_resumed() {
    let (world, disk, _) = pair(2);
    world.ok(&copy_args("north/one", "copied"));
    let first = tasks(&world, "south")[0].clone();
    let snapshot = named(&world, "south", "copied").unwrap().id;
    world.ok(&["task", "cancel", &first.id.to_string(), "--region", "south"]);
    world.fails(&["task", "wait", &first.id.to_string(), "--region", "south"], 7, &["cancelled"]);
    assert!(world.ok(&["daemon", "--once", "-q"]).is_empty() && named(&world, "south", "copied").is_none());
    // Nor by a row that says it waits: its snapshot is gone.
    sql(&world, "south", &format!("UPDATE tasks SET state = 'queued' WHERE id = '{}'", first.id));
    Daemon::new(&world, &["--once"]).wait();
    assert!(named(&world, "south", "copied").is_none());
    world.ok(&[&copy_args("north/one", "copied")[..], &["--wait"]].concat());
    let copy = named(&world, "south", "copied").unwrap();
    assert_ne!(copy.id, snapshot);
    world.equal("south", copy.id, &disk.model);
    assert_eq!(states(&world, "south").iter().filter(|s| **s == TaskState::Succeeded).count(), 1);
}

/// What the target lost is carried again, on what it still has; what it has again, though it was deleted, is as it was.
#[test]
fn a_target_put_back_to_yesterday_is_copied_to_anew() {
    let (world, mut disk, _) = pair(4);
    world.ok(&[&copy_args("north/one", "one")[..], &["--wait"]].concat());
    let before = disk.model.clone();
    world.ok(&copy_args("north/one", "waits"));
    copy_files(&world.path("south"), &world.path("yesterday"));
    disk.change(&world, "two", |c| c.write(2 * MIB, &[9; 3 * 4096]));
    world.ok(&[&copy_args("north/two", "two")[..], &["--wait"]].concat());
    world.ok(&["daemon", "--once", "-q"]);
    world.ok(&["snapshot", "delete", "one", "--region", "south"]);
    std::fs::remove_dir_all(world.path("south")).unwrap();
    std::fs::rename(world.path("yesterday"), world.path("south")).unwrap();
    terrane::region::accept_older(&world.path("south"), &world.config).unwrap();
    world.ok(&[&copy_args("north/two", "two")[..], &["--wait"]].concat());
    world.ok(&["daemon", "--once", "-q"]);
    let two = named(&world, "south", "two").unwrap();
    assert_eq!(two.shipped_bytes, 3 * 4096);
    world.equal("south", two.id, &disk.model);
    for called in ["one", "waits"] {
        world.equal("south", named(&world, "south", called).unwrap().id, &before);
    }
    let done = states(&world, "south");
    assert_eq!(done, [TaskState::Succeeded; 3], "each once");
}

/// A clock that goes back neither loses what waits nor changes its order.
#[test]
fn a_clock_set_back_keeps_the_queue() {
    let world = World::new(&["north"]);
    let clock = world.path("clock");
    let at = |time: &str, args: &[&str]| {
        std::fs::write(&clock, time).unwrap();
        let said =
            world.command(args).env("TERRANE_CLOCK", format!("@{}", clock.display())).output().unwrap();
        assert!(said.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap()
    };
    let south = world.path("south").display().to_string();
    at("2030-05-05T12:00:00Z", &["region", "init", &south, "--name", "south"]);
    let mut disk = Disk::new(&world, "north", 2 * MIB, Some(world.default_key("north")), DiskKind::Data);
    disk.change(&world, "one", |c| c.write(0, &[1; MIB]));
    let copy = |called| ["snapshot", "copy", "north/one", "--to", "south", "--name", called];
    at("2030-05-05T12:00:10Z", &copy("first"));
    at("2029-01-01T00:00:00Z", &copy("second"));
    let listed: serde_json::Value = serde_json::from_str(&at(
        "2029-01-01T00:00:01Z",
        &["task", "list", "--region", "south", "--output", "json"],
    ))
    .unwrap();
    let order: Vec<_> =
        listed.as_array().unwrap().iter().map(|t| t["queue_position"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 2]);
    at("2028-01-01T00:00:00Z", &["daemon", "--once", "-q"]);
    let shown: serde_json::Value = serde_json::from_str(&at(
        "2028-01-01T00:00:00Z",
        &["snapshot", "list", "--region", "south", "--output", "json"],
    ))
    .unwrap();
    assert!(
        shown
            .as_array()
            .unwrap()
            .iter()
            .all(|s| s["state"] == "success" && s["created_at"].as_str() >= Some("2030"))
    );
}
