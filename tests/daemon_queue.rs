//! Guarded here: a copy that is lost from the queue, made twice, made though it was called off, or given up though what stood in
//! its way passes; and a queue whose words or numbers are wrong.

mod copy_support;

use std::collections::HashSet;
use std::process::Stdio;
use std::time::Duration;

use copy_support::daemon::{Daemon, MIB, Tmpfs, copy_args, named, pair, states, tasks, wait_until};
use copy_support::{Random, World, name};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use terrane::catalog::{KeyState, SnapshotState, Task, TaskState};
use terrane::copy::{KeyChoice, enqueue};
use terrane::ids::SnapshotId;

// S33 S34 S35 S36, I16
#[test]
fn what_waits_is_listed_and_made_by_a_daemon() {
    let (world, mut disk, one) = pair(4);
    let first = disk.model.clone();
    let two = disk.change(&world, "two", |c| c.write(0, &[7; MIB]));
    let before = world.holdings("south");
    let output = world.run(&copy_args("north/one", "first"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("is queued in region south as task-"), "{said}");
    assert!(said.contains("`terrane daemon`") && said.contains("--wait"), "{said}");
    let id: SnapshotId = String::from_utf8(output.stdout).unwrap().trim().parse().expect("the id alone");
    world.ok(&copy_args("north/two", "second"));
    // The same words ask for the same copy.
    assert_eq!(world.ok(&copy_args("north/one", "first")), id.to_string());
    world.fails(&copy_args("north/two", "first"), 5, &["south already has a snapshot \"first\""]);
    assert_eq!(world.holdings("south"), (before.0, before.1, before.2 + 2), "nothing was made yet");
    let listed = world.json(&["snapshot", "list", "--region", "south"]);
    assert_eq!((&listed[0]["state"], &listed[0]["interrupted"]), (&"processing".into(), &false.into()));
    let queued = world.json(&["task", "list", "--region", "south"]);
    for (place, (task, called)) in queued.as_array().unwrap().iter().zip(["first", "second"]).enumerate() {
        assert_eq!((&task["state"], &task["name"]), (&"queued".into(), &called.into()));
        assert_eq!((&task["queue_position"], &task["bytes_done"]), (&Value::from(place + 1), &0.into()));
        assert_eq!((&task["kind"], &task["source_region"]), (&"copy".into(), &"north".into()));
    }
    assert_eq!(queued[0]["bytes_total"], 4 * MIB, "as it was when it was asked for");
    assert!(world.ok(&["task", "list", "--region", "south"]).contains("queued 2"));
    let status = world.run(&["status"]);
    assert!(status.status.success(), "to wait is no problem: {}", String::from_utf8_lossy(&status.stdout));
    // What waits can't be used.
    world.fails(&["volume", "create", "--snapshot", "first", "--region", "south"], 4, &["not complete"]);
    world.fails(&["snapshot", "verify", "first", "--region", "south"], 4, &["processing"]);
    world.fails(&["snapshot", "diff", "first", "second", "--region", "south"], 4, &["not complete"]);
    world.fails(&["debug", "layers", "first", "--region", "south"], 4, &["has not begun"]);
    world.ok(&["region", "check", "--region", "south"]);
    world.ok(&["daemon", "--once"]);
    assert_eq!(states(&world, "south"), [TaskState::Succeeded; 2]);
    world.equal("south", id, &first);
    let second = named(&world, "south", "second").unwrap();
    world.equal("south", second.id, &disk.model);
    assert_eq!(
        second.shipped_bytes, MIB as u64,
        "its base was the first, which waited as well when it was asked for"
    );
    assert_eq!(
        (second.source_snapshot, second.created_by.as_str()),
        (Some(two.to_string()), "snapshot copy")
    );
    assert_eq!(named(&world, "south", "first").unwrap().source_snapshot, Some(one.to_string()));
    assert_eq!(world.ok(&["daemon", "--once", "-q"]), "", "nothing is left to be done");
}

/// Two daemons of several jobs and commands that wait, all at once on one queue of forty.
#[test]
fn each_is_made_once_whoever_works() {
    let (world, disk, one) = pair(1);
    let world = &world;
    let (north, south) = (world.region("north"), world.reader("south"));
    let plan = world.plan(("north", one), "south", "n0", KeyChoice::AsSource).unwrap();
    for n in 0..40 {
        enqueue(&north, &south, &plan, &world.details("south", &format!("n{n}"))).unwrap();
    }
    drop((plan, north));
    let daemons: Vec<Daemon> = (0..2).map(|_| Daemon::new(world, &["--once", "--jobs", "3"])).collect();
    std::thread::scope(|scope| {
        for n in [39, 20] {
            scope.spawn(move || {
                let called = format!("n{n}");
                let id = world.ok(&[&copy_args("north/one", &called)[..], &["--wait"]].concat());
                assert_eq!(id, named(world, "south", &called).unwrap().id.to_string());
            });
        }
    });
    let mut made = 0;
    for daemon in daemons {
        let (exit, said) = daemon.wait();
        assert_eq!(exit, 0, "{said}");
        made += said.lines().filter(|line| line.ends_with(": done")).count();
    }
    assert!(made <= 40, "{made}");
    // Those which another process just had when a daemon ended are its own to end.
    wait_until("all are made", || states(world, "south").iter().all(|state| *state == TaskState::Succeeded));
    let layers: HashSet<_> =
        (0..40).map(|n| named(world, "south", &format!("n{n}")).unwrap().layer).collect();
    assert_eq!(layers.len(), 40);
    assert_eq!(world.holdings("south"), (40, 40, 40), "no layer was made twice");
    for n in [0, 20, 39] {
        world.equal("south", named(world, "south", &format!("n{n}")).unwrap().id, &disk.model);
    }
    let left: Vec<_> =
        std::fs::read_dir(world.path("south/run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("task-")), "{left:?}");
}

/// X4: however often the daemon is killed, the copy is the source, and little crosses twice.
#[test]
fn killed_daemons_lose_nothing() {
    let (world, disk, _) = pair(200);
    world.ok(&copy_args("north/one", "copied"));
    let copied = || named(&world, "south", "copied").unwrap();
    let mut random = Random::new(5);
    let mut kills = 0;
    for _ in 0..24 {
        let daemon = Daemon::new(&world, &["--max-rate", "400M"]);
        wait_until("it is begun", || copied().layer.is_some());
        std::thread::sleep(Duration::from_millis(10 + random.below(60)));
        drop(daemon);
        if copied().state != SnapshotState::Processing {
            break;
        }
        kills += 1;
        let task = world.json(&["task", "show", "copied", "--region", "south"]);
        assert_eq!((&task["state"], &task["queue_position"]), (&"queued".into(), &1.into()), "nobody has it");
    }
    assert!(kills > 0, "the copy was over before it was killed");
    world.ok(&["daemon", "--once"]);
    let row = copied();
    assert_eq!(row.state, SnapshotState::Success);
    // What crossed: planned, and for each kill what two jobs had in hand.
    let bound = (200 << 20)..=(200 << 20) + kills * 2 * (2 << 20);
    assert!(bound.contains(&row.shipped_bytes), "{} shipped after {kills} kills", row.shipped_bytes);
    world.equal("south", row.id, &disk.model);
    // What crossed twice lies in slots of its own, whoever counted it.
    let data = world.region("south").layer_dir(row.layer.unwrap()).join("data");
    let room = terrane::layer::slot_offset(terrane::units::SlotNo(0)) + MIB as u64;
    let len = std::fs::metadata(data).unwrap().len();
    assert!(len <= room + (200 << 20) + kills * 2 * (2 << 20), "{len} bytes after {kills} kills");
    assert_eq!(world.holdings("south"), (1, 1, 1));
}

#[test]
fn a_daemon_that_is_told_to_end_keeps_what_it_did() {
    let (world, disk, _) = pair(120);
    world.ok(&copy_args("north/one", "copied"));
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let daemon = Daemon::new(&world, &["--max-rate", "50M"]);
        wait_until("it runs", || tasks(&world, "south")[0].state == TaskState::Running);
        wait_until("it goes", || tasks(&world, "south")[0].bytes_per_second > 0);
        let shown = world.json(&["task", "show", "copied", "--region", "south"]);
        assert_eq!((&shown["state"], &shown["queue_position"]), (&"running".into(), &Value::Null));
        assert!(shown["bytes_per_second"].as_u64().unwrap() > 0 && shown["eta_seconds"].is_u64(), "{shown}");
        daemon.signal(signal);
        let (exit, said) = daemon.wait();
        assert!(exit == 0 && said.contains("was interrupted"), "{exit} {said}");
        let task = &tasks(&world, "south")[0];
        assert_eq!((task.state, &task.error), (TaskState::Queued, &None));
        assert!(task.bytes_done > 0);
    }
    // 50M is held: all of it can't have crossed in the second or two that each of them had.
    assert_eq!(named(&world, "south", "copied").unwrap().state, SnapshotState::Processing);
    world.ok(&["daemon", "--once"]);
    world.equal("south", named(&world, "south", "copied").unwrap().id, &disk.model);
}

// S34
#[test]
fn what_is_called_off_leaves_nothing() {
    let (world, _disk, _) = pair(120);
    let before = world.holdings("south");
    let region = ["--region", "south"];
    // One that waits, by its name; again, it is so already.
    world.ok(&copy_args("north/one", "copied"));
    let task = tasks(&world, "south")[0].id.to_string();
    world.ok(&[&["task", "cancel", "copied"], &region[..]].concat());
    world.ok(&[&["task", "cancel", &task], &region[..]].concat());
    assert_eq!(world.holdings("south"), before);
    world.fails(&[&["task", "wait", &task], &region[..]].concat(), 7, &["was cancelled"]);
    // One that is being made by another process.
    world.ok(&copy_args("north/one", "copied"));
    let daemon = Daemon::new(&world, &["--max-rate", "20M"]);
    wait_until("it is begun", || named(&world, "south", "copied").unwrap().layer.is_some());
    world.ok(&[&["task", "cancel", "copied"], &region[..]].concat());
    assert_eq!(world.holdings("south"), before, "when it returns all is gone");
    let (exit, said) = daemon.end();
    assert!(exit == 0 && said.contains("cancelled"), "{exit} {said}");
    // One that was begun and that nobody has.
    world.ok(&copy_args("north/one", "copied"));
    let daemon = Daemon::new(&world, &["--max-rate", "20M"]);
    wait_until("it is begun", || named(&world, "south", "copied").unwrap().layer.is_some());
    drop(daemon);
    world.ok(&[&["task", "cancel", "copied"], &region[..]].concat());
    assert_eq!(world.holdings("south"), before);
    // And by deleting what it would have been.
    world.ok(&copy_args("north/one", "copied"));
    world.ok(&[&["snapshot", "delete", "copied"], &region[..]].concat());
    assert_eq!(world.holdings("south"), before);
    assert_eq!(states(&world, "south"), [TaskState::Cancelled; 4]);
    assert!(world.ok(&["daemon", "--once", "-q"]).is_empty());
    assert_eq!(world.holdings("south"), before, "nothing called off is made after all");
    // What is over can't be called off.
    world.ok(&[&copy_args("north/one", "copied")[..], &["--wait"]].concat());
    world.fails(&[&["task", "cancel", "copied"], &region[..]].concat(), 4, &["is over", "snapshot delete"]);
    world.fails(&[&["task", "show", "nobody"], &region[..]].concat(), 3, &["no task \"nobody\""]);
}

// Target full: waits, keeps what is there, and leaves the last of the space to volumes.
#[test]
fn a_full_target_is_waited_for() {
    let (world, disk, _) = pair(120);
    let Some(place) = Tmpfs::new(world.path("small"), 96) else { return };
    world.ok(&["region", "init", &format!("{}/r", place.0.display()), "--name", "small"]);
    let copy = ["snapshot", "copy", "north/one", "--to", "small", "--name", "copied"];
    world.ok(&copy);
    let layers = world.path("small/r/layers");
    // It can't have room: nothing is begun, and no volume finds the disk full of a part of it.
    let (exit, said) = Daemon::new(&world, &["--once"]).wait();
    assert!(
        exit == 0 && said.contains("no space is left for copies below region small: it needs 120 MiB"),
        "{said}"
    );
    assert!(said.contains("trying again in 1 s") && said.contains("0 done, 0 failed, 1 put off"), "{said}");
    assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 0);
    let task = world.json(&["task", "show", "copied", "--region", "small"]);
    assert_eq!((&task["state"], &task["queue_position"]), (&"queued".into(), &1.into()));
    assert!(task["error"].as_str().unwrap().contains("no space"), "{task}");
    let status = world.run(&["status", "--region", "small"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("copy copied in region small waits: no space"));
    // It becomes full while it is made.
    place.resize(400);
    let daemon = Daemon::new(&world, &["--once", "--max-rate", "40M"]);
    wait_until("some is there", || tasks_of(&world, &place)[0].bytes_done > 8 << 20);
    let filler = place.0.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while rustix::fs::statvfs(&place.0).unwrap().f_bavail * 4096 > 5 << 20 {
        std::io::Write::write_all(&mut file, &[1; MIB]).unwrap();
    }
    let (exit, said) = daemon.wait();
    assert!(exit == 0 && said.contains("no space is left for copies below region small"), "{exit} {said}");
    let there = world.json(&["task", "show", "copied", "--region", "small"]);
    assert_eq!(there["state"], "queued", "{there}");
    assert!(there["bytes_done"].as_u64().unwrap() >= 8 << 20, "{there}");
    let space = rustix::fs::statvfs(&place.0).unwrap();
    assert!(space.f_bavail > 0, "the last of it is the volumes'");
    // A daemon that stays goes on by itself once there is room, where it was.
    let daemon = Daemon::new(&world, &[]);
    std::thread::sleep(Duration::from_millis(300));
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    wait_until("it is made", || tasks_of(&world, &place)[0].state == TaskState::Succeeded);
    assert_eq!(daemon.end().0, 0);
    let small = terrane::region::Region::open(&place.0.join("r"), &world.config).unwrap();
    let row = small.catalog().unwrap().read(|tx| tx.resolve_snapshot("copied")).unwrap();
    assert_eq!((row.state, row.shipped_bytes), (SnapshotState::Success, 120 << 20));
    let host = terrane::volume::Host::new(small, None);
    let mut bytes = vec![0xaa; disk.model.len()];
    host.open_snapshot(row.id).unwrap().read(0, &mut bytes).unwrap();
    assert!(bytes == disk.model);
}

fn tasks_of(world: &World, place: &Tmpfs) -> Vec<Task> {
    let region = terrane::region::Region::open(&place.0.join("r"), &world.config).unwrap();
    region.catalog().unwrap().read(|tx| tx.tasks()).unwrap()
}

// Region absent, key disabled on either side: waits.
#[test]
fn what_is_away_is_waited_for() {
    let (world, disk, _) = pair(2);
    world.ok(&copy_args("north/one", "copied"));
    let (here, away) = (world.path("north"), world.path("elsewhere"));
    let stays_queued = |why: &str| {
        let (exit, said) = Daemon::new(&world, &["--once"]).wait();
        assert!(exit == 0 && said.contains(why) && said.contains("trying again"), "{why}: {exit} {said}");
        let task = tasks(&world, "south").pop().unwrap();
        assert_eq!(task.state, TaskState::Queued);
        assert!(task.error.unwrap().contains(why), "{why}");
        assert_eq!(named(&world, "south", "copied").unwrap().state, SnapshotState::Processing);
    };
    std::fs::rename(&here, &away).unwrap();
    stays_queued("region north is not there");
    std::fs::rename(&away, &here).unwrap();
    for region in ["north", "south"] {
        let key = world.default_key(region);
        terrane::kms::set_key_enabled(&world.region(region), key, false).unwrap();
        stays_queued("is disabled");
        terrane::kms::set_key_enabled(&world.region(region), key, true).unwrap();
    }
    // A target that is away is no end of the others' work.
    std::fs::rename(world.path("south"), &away).unwrap();
    let (exit, said) = Daemon::new(&world, &["--once"]).wait();
    assert!(exit == 0 && said.contains("region south is left alone"), "{exit} {said}");
    std::fs::rename(&away, world.path("south")).unwrap();
    // Who waits for it sees it through.
    let key = world.default_key("south");
    terrane::kms::set_key_enabled(&world.region("south"), key, false).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| world.ok(&["task", "wait", "copied", "--region", "south"]));
        let daemon = Daemon::new(&world, &[]);
        wait_until("it was tried", || {
            tasks(&world, "south")[0].error.as_ref().is_some_and(|error| error.contains("is disabled"))
        });
        terrane::kms::set_key_enabled(&world.region("south"), key, true).unwrap();
        waiter.join().unwrap();
        assert_eq!(daemon.end().0, 0);
    });
    world.equal("south", named(&world, "south", "copied").unwrap().id, &disk.model);
}

// S4 S5, and rot: fails at once, in words, with its number, and leaves nothing.
#[test]
fn what_can_not_be_made_fails_at_once() {
    let (world, mut disk, one) = pair(2);
    let before = world.holdings("south");
    let key = world.default_key("south");
    let south = || world.region("south");
    let set_key =
        |state: KeyState| south().catalog().unwrap().write(|tx| tx.set_key_state(key, state)).unwrap();
    let mut ended = 0;
    let mut fails = |called: &str, exit: i32, words: &[&str]| {
        let (daemon, said) = Daemon::new(&world, &["--once"]).wait();
        ended += 1;
        assert!(daemon == 1 && said.contains("1 failed"), "{called}: {daemon} {said}");
        assert_eq!(world.holdings("south"), before, "{called}");
        let task = tasks(&world, "south").pop().unwrap();
        assert_eq!((task.state, task.exit), (TaskState::Failed, Some(exit as u8)), "{called}: {task:?}");
        world.fails(&["task", "wait", &task.id.to_string(), "--region", "south"], exit, words);
        let status = String::from_utf8(world.run(&["status"]).stdout).unwrap();
        assert!(status.contains(&format!("{ended} failed tasks in region south")), "{status}");
        // Nobody tries it again, and its name is free.
        assert!(world.ok(&["daemon", "--once", "-q"]).is_empty());
    };
    world.ok(&copy_args("north/one", "copied"));
    set_key(KeyState::PendingDeletion);
    fails("a key pending deletion", 4, &["is pending deletion"]);
    set_key(KeyState::Enabled);
    world.ok(&copy_args("north/one", "copied"));
    world.ok(&["kms", "revoke", "--region", "south"]);
    fails("a denial", 4, &["is not authorised"]);
    world.ok(&["kms", "authorize", "--region", "south"]);
    let two = disk.change(&world, "two", |c| c.write(8 * MIB, &[7; MIB]));
    world.ok(&copy_args("north/two", "copied"));
    world.delete("north", two);
    fails("a source that was deleted", 3, &["region north has no snapshot", &two.to_string()]);
    world.ok(&copy_args("north/one", "copied"));
    let layer = world.snapshot("north", one).layer.unwrap();
    let data = world.region("north").layer_dir(layer).join("data");
    let file = std::fs::File::options().write(true).open(data).unwrap();
    let at = terrane::layer::slot_offset(terrane::units::SlotNo(7));
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xee; 64], at).unwrap();
    fails("rot", 6, &["of snapshot one in region north is damaged"]);
}

/// What a row asks that was not asked is not done, and stays for a person to look at.
#[test]
fn a_request_that_was_changed_is_refused() {
    let (world, mut disk, one) = pair(2);
    let other = disk.change(&world, "other", |c| c.write(0, &[7; MIB]));
    world.key("south", "mine");
    world.ok(&copy_args("north/one", "copied"));
    let before = world.holdings("south");
    let sql = |statement: &str| {
        let catalog = rusqlite::Connection::open(world.path("south/catalog.db")).unwrap();
        assert_eq!(catalog.execute(statement, []).unwrap(), 1, "{statement}");
    };
    let mine = world.region("south").catalog().unwrap().read(|tx| tx.resolve_key("mine")).unwrap().id;
    let lies = [
        format!("UPDATE tasks SET detail = replace(detail, '{one}', '{other}')"),
        "UPDATE tasks SET detail = '{}'".into(),
        "UPDATE tasks SET mac = NULL".into(),
        "UPDATE snapshots SET name = 'another' WHERE state = 'processing'".into(),
        format!("UPDATE snapshots SET key = '{mine}' WHERE state = 'processing'"),
        "UPDATE snapshots SET size_bytes = size_bytes * 2 WHERE state = 'processing'".into(),
        "UPDATE snapshots SET kind = 'system' WHERE state = 'processing'".into(),
        "UPDATE snapshots SET source_snapshot = 'snap-00000000000000000' WHERE state = 'processing'".into(),
    ];
    for lie in &lies {
        let keep = std::fs::read(world.path("south/catalog.db")).unwrap();
        sql(lie);
        let (exit, said) = Daemon::new(&world, &["--once"]).wait();
        assert!(exit == 1 && said.contains("1 failed"), "{lie}: {exit} {said}");
        assert_eq!(world.holdings("south"), before, "{lie}");
        assert_eq!(states(&world, "south"), [TaskState::Queued], "{lie}");
        std::fs::write(world.path("south/catalog.db"), keep).unwrap();
        for log in ["south/catalog.db-wal", "south/catalog.db-shm"] {
            let _ = std::fs::remove_file(world.path(log));
        }
    }
    world.ok(&["region", "check", "--accept-older", "--region", "south"]);
    world.ok(&["daemon", "--once"]);
    assert_eq!(states(&world, "south"), [TaskState::Succeeded]);
}

/// Twenty copies at once are made in a region; more wait, and none fails.
#[test]
fn more_than_the_places_wait() {
    let (world, disk, _) = pair(1);
    let lock = |n: u32| {
        let file = std::fs::File::create(world.path(&format!("south/run/copies-{n}.lock"))).unwrap();
        std::fs::set_permissions(
            world.path(&format!("south/run/copies-{n}.lock")),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    };
    let mut taken: Vec<_> = (0..terrane::copy::COPIES_MAX).map(lock).collect();
    assert_eq!(taken.len(), 20);
    world.ok(&copy_args("north/one", "copied"));
    assert!(world.ok(&["daemon", "--once", "-q"]).is_empty());
    assert_eq!(states(&world, "south"), [TaskState::Queued]);
    let daemon = Daemon::new(&world, &[]);
    let mut waiting = world.command(&[&copy_args("north/one", "other")[..], &["--wait"]].concat());
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("both are asked for", || tasks(&world, "south").len() == 2);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(states(&world, "south").iter().all(|state| *state != TaskState::Succeeded));
    taken.pop();
    wait_until("both are made", || states(&world, "south") == [TaskState::Succeeded; 2]);
    let output = waiting.wait().unwrap();
    assert!(output.success());
    assert_eq!(daemon.end().0, 0);
    world.equal("south", named(&world, "south", "other").unwrap().id, &disk.model);
}

/// Five thousand wait: each has its place, any can be called off, and the first are made first.
#[test]
fn a_long_queue_is_in_order() {
    const COUNT: usize = 5000;
    let (world, _disk, one) = pair(1);
    let (north, south) = (world.region("north"), world.reader("south"));
    let plan = world.plan(("north", one), "south", "n0", KeyChoice::AsSource).unwrap();
    let details: Vec<_> = (0..COUNT)
        .map(|n| terrane::copy::Details { name: name(&format!("n{n}")), ..world.details("south", "n0") })
        .collect();
    for details in &details {
        enqueue(&north, &south, &plan, details).unwrap();
    }
    drop((plan, north, south));
    world.ok(&["task", "cancel", "n2500", "--region", "south"]);
    let listed = world.json(&["task", "list", "--region", "south"]);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), COUNT);
    let places: Vec<_> = listed.iter().filter_map(|task| task["queue_position"].as_u64()).collect();
    assert_eq!(places, (1..COUNT as u64).collect::<Vec<_>>());
    assert_eq!((&listed[2500]["state"], &listed[2500]["name"]), (&"cancelled".into(), &"n2500".into()));
    let daemon = Daemon::new(&world, &["--jobs", "1"]);
    wait_until("some are made", || {
        states(&world, "south").iter().filter(|state| **state == TaskState::Succeeded).count() >= 5
    });
    assert_eq!(daemon.end().0, 0);
    let states = states(&world, "south");
    let made = states.iter().filter(|state| **state == TaskState::Succeeded).count();
    assert!(states[..made].iter().all(|state| *state == TaskState::Succeeded), "the first are made first");
}

/// `--watch` tells programs what changed, and ends when all is over.
#[test]
fn a_queue_is_watched() {
    let (world, _disk, _) = pair(60);
    world.ok(&copy_args("north/one", "copied"));
    let mut watch = world.command(&["task", "list", "--watch", "--region", "south", "--output", "json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()))
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert_eq!(lines.next().unwrap()["state"], "queued");
    let daemon = Daemon::new(&world, &["--once", "--max-rate", "15M"]);
    let lines: Vec<Value> = lines.collect();
    assert!(watch.wait().unwrap().success());
    assert_eq!(daemon.wait().0, 0);
    assert!(
        lines.iter().any(|line| line["state"] == "running" && line["bytes_per_second"].as_u64() > Some(0))
    );
    assert_eq!(lines.last().unwrap()["state"], "succeeded");
}

/// A region whose passphrase only a person can give is left to that person; the others are served.
#[test]
fn a_region_that_asks_is_left_alone() {
    let (world, _disk, _) = pair(1);
    world.ok(&copy_args("north/one", "copied"));
    let secret = world.path("secret");
    std::fs::write(&secret, "a long enough passphrase").unwrap();
    let dir = world.path("asks").display().to_string();
    world.ok(&["region", "init", &dir, "--name", "asks", "--passphrase-file", &secret.display().to_string()]);
    world.ok(&["snapshot", "copy", "north/one", "--to", "asks", "--name", "copied"]);
    world.ok(&["region", "forget", "asks"]);
    let entry = format!("name = \"asks\"\ndirectory = \"{dir}\"\n");
    let header = terrane::region::peek(&world.path("asks")).unwrap();
    std::fs::write(world.path(&format!("config/regions/{}.toml", header.id)), entry).unwrap();
    let (exit, said) = Daemon::new(&world, &["--once"]).wait();
    assert!(
        exit == 0 && said.contains("region asks is left alone") && said.contains("terminal"),
        "{exit} {said}"
    );
    assert_eq!(states(&world, "south"), [TaskState::Succeeded]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (world, _disk, _) = pair(1);
    for (args, exit, words) in [
        (&["daemon", "--jobs", "0"][..], 2, &["--jobs"][..]),
        (&["daemon", "--jobs", "65"], 2, &["--jobs"]),
        (&["daemon", "--max-rate", "0"], 2, &["it is zero"]),
        (&["daemon", "--max-rate", "fast"], 2, &["--max-rate"]),
        (&["daemon", "--once", "--region", "nowhere"], 3, &["nowhere"]),
        (&["task", "wait", "task-00000000000000000", "--region", "south"], 3, &["no task"]),
        (&["task", "cancel", "one", "--region", "north"], 3, &["no task \"one\""]),
    ] {
        world.fails(args, exit, words);
    }
}
