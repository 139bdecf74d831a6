//! Guarded here: what goes wrong around a queue and should cost its own copy at most: a begun copy thrown away for what passes, a copy
//! that keeps others from their turn, and a daemon that ends, hangs, or believes what nobody asked.

mod copy_support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::Duration;

use copy_support::daemon::{Daemon, MIB, Tmpfs, copy_args, named, pair, states, tasks, wait_until};
use copy_support::{Disk, Random, World};
use terrane::catalog::{DiskKind, SnapshotState, TaskState};

/// Asks for a copy of 120 MiB and has some of it made.
fn begun(world: &World) -> u64 {
    world.ok(&copy_args("north/one", "copied"));
    let daemon = Daemon::new(world, &["--max-rate", "60M"]);
    wait_until("some is there", || tasks(world, "south")[0].bytes_done > 8 << 20);
    assert_eq!(daemon.end().0, 0);
    tasks(world, "south")[0].bytes_done
}

fn sql(world: &World, region: &str, statement: &str) {
    let catalog = rusqlite::Connection::open(world.path(region).join("catalog.db")).unwrap();
    assert_eq!(catalog.execute(statement, []).unwrap(), 1, "{statement}");
}

/// Too few open files: another day there are more.
#[test]
fn what_was_begun_is_kept_where_files_can_not_be_opened() {
    let (world, disk, _) = pair(120);
    let there = begun(&world);
    // So many that a command begins, and so few that it does not get on.
    let mut tried = 0;
    for files in [20, 24, 28, 32] {
        let mut command = std::process::Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}")).arg(assert_cmd::cargo::cargo_bin!("terrane"));
        command.args(["daemon", "--once"]).env("TERRANE_CONFIG_DIR", world.path("config"));
        let said = command.output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        tried += usize::from(said.contains("open files"));
        let row = named(&world, "south", "copied").unwrap_or_else(|| panic!("with {files} files: {said}"));
        if row.state == SnapshotState::Success {
            break;
        }
        assert_eq!(states(&world, "south"), [TaskState::Queued], "with {files} files: {said}");
        assert!(tasks(&world, "south")[0].bytes_done >= there);
    }
    assert!(tried > 0, "none of them was too few");
    world.ok(&["daemon", "--once"]);
    world.equal("south", named(&world, "south", "copied").unwrap().id, &disk.model);
}

/// The MAC is asked also of one that was begun: nothing that the row names is opened before.
#[test]
fn a_begun_copy_is_gone_on_with_as_it_was_asked() {
    let (world, disk, _) = pair(120);
    begun(&world);
    let asked = tasks(&world, "south")[0].detail.clone();
    let before = world.holdings("south");
    for lie in ["mac = NULL", "detail = replace(detail, 'north', 'south')", "detail = '{}'"] {
        let mac = tasks(&world, "south")[0].mac.unwrap();
        sql(&world, "south", &format!("UPDATE tasks SET {lie}"));
        let (exit, said) = Daemon::new(&world, &["--once"]).wait();
        assert!(exit == 1 && said.contains("1 failed"), "{lie}: {exit} {said}");
        assert_eq!(world.holdings("south"), before, "{lie}");
        let digits: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let put_back = format!("UPDATE tasks SET mac = x'{digits}', detail = '{asked}'");
        sql(&world, "south", &put_back);
    }
    world.ok(&["daemon", "--once"]);
    world.equal("south", named(&world, "south", "copied").unwrap().id, &disk.model);
}

/// A task's row that names a snapshot which is whole.
#[test]
fn calling_off_takes_nothing_that_is_whole() {
    let (world, mut disk, _) = pair(2);
    world.ok(&[&copy_args("north/one", "whole")[..], &["--wait"]].concat());
    let model = disk.model.clone();
    disk.change(&world, "two", |c| c.write(0, &[1; MIB]));
    let whole = named(&world, "south", "whole").unwrap().id;
    world.ok(&copy_args("north/two", "copied"));
    let copied = named(&world, "south", "copied").unwrap().id;
    sql(&world, "south", &format!("UPDATE tasks SET resource = '{whole}' WHERE resource = '{copied}'"));
    let task = tasks(&world, "south").into_iter().find(|task| task.state == TaskState::Queued).unwrap().id;
    world.ok(&["task", "cancel", &task.to_string(), "--region", "south"]);
    world.equal("south", whole, &model);
    // And while a copy comes to its end: whichever is first, one of the two is told.
    for _ in 0..6 {
        world.ok(&["snapshot", "delete", "copied", "--region", "south"]);
        world.ok(&copy_args("north/two", "copied"));
        let daemon = Daemon::new(&world, &["--once"]);
        let cancelled = world.run(&["task", "cancel", "copied", "--region", "south"]);
        daemon.wait();
        match named(&world, "south", "copied") {
            Some(row) => {
                assert_eq!((row.state, cancelled.status.code()), (SnapshotState::Success, Some(4)));
                world.equal("south", row.id, &disk.model);
            }
            None => {
                assert_eq!(cancelled.status.code(), Some(0));
                world.ok(&copy_args("north/two", "copied"));
            }
        }
    }
}

/// Copies that wait for their base neither plan again and again nor take the others' turns.
#[test]
fn what_waits_for_its_base_leaves_the_others_their_turn() {
    let (world, mut disk, _) = pair(60);
    world.ok(&copy_args("north/one", "base"));
    for n in 0..8 {
        disk.change(&world, &format!("day-{n}"), |c| c.write(n * 4096, &[1; 4096]));
        world.ok(&copy_args(&format!("north/day-{n}"), &format!("day-{n}")));
    }
    let mut random = Random::new(4);
    let mut other = Disk::new(&world, "north", 8 * MIB, Some(world.default_key("north")), DiskKind::Data);
    other.change(&world, "other", |c| c.random(&mut random, 0, MIB));
    world.ok(&copy_args("north/other", "other"));
    let daemon = Daemon::new(&world, &["--once", "--max-rate", "12M"]);
    let state = |called: &str| named(&world, "south", called).unwrap().state;
    wait_until("the other is made", || state("other") == SnapshotState::Success);
    assert_eq!(state("base"), SnapshotState::Processing, "the base came first: this test says nothing");
    let status = world.run(&["status", "--region", "south"]);
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stdout));
    let (exit, said) = daemon.wait();
    assert_eq!(exit, 0, "{said}");
    let begins = said.lines().filter(|line| line.contains("copy begins")).count();
    assert!(begins <= 60, "{begins} times ten copies were begun");
    for n in 0..8 {
        let row = named(&world, "south", &format!("day-{n}")).unwrap();
        assert_eq!((row.state, row.shipped_bytes), (SnapshotState::Success, 4096), "day {n}");
    }
    world.equal("south", named(&world, "south", "day-7").unwrap().id, &disk.model);
}

/// Two that fit alone and not together: one is made.
#[test]
fn copies_do_not_take_each_others_room() {
    let (world, disk, _) = pair(120);
    let Some(place) = Tmpfs::new(world.path("small"), 220) else { return };
    world.ok(&["region", "init", &format!("{}/r", place.0.display()), "--name", "small"]);
    world.ok(&["key", "create", "--alias", "mine", "--region", "small"]);
    for (called, key) in [("first", "--encrypt"), ("second", "--key=mine")] {
        world.ok(&["snapshot", "copy", "north/one", "--to", "small", "--name", called, key]);
    }
    let (exit, said) = Daemon::new(&world, &["--once", "--max-rate", "80M"]).wait();
    assert!(exit == 0 && said.contains("1 done, 0 failed"), "{exit} {said}");
    let small = terrane::region::Region::open(&place.0.join("r"), &world.config).unwrap();
    let rows = small.catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
    let made: Vec<_> = rows.iter().filter(|row| row.state == SnapshotState::Success).collect();
    assert_eq!(made.len(), 1);
    assert!(rows.iter().any(|row| row.layer.is_none()), "the other has begun nothing");
    let host = terrane::volume::Host::new(small, None);
    let mut bytes = vec![0xaa; disk.model.len()];
    host.open_snapshot(made[0].id).unwrap().read(0, &mut bytes).unwrap();
    assert!(bytes == disk.model);
}

/// A source region whose passphrase only a person can give hangs no daemon.
#[test]
fn a_source_that_asks_is_waited_for() {
    let (world, _disk, _) = pair(1);
    let secret = world.path("secret");
    std::fs::write(&secret, "a long enough passphrase").unwrap();
    let (dir, secret) = (world.path("asks").display().to_string(), secret.display().to_string());
    world.ok(&["region", "init", &dir, "--name", "asks", "--passphrase-file", &secret]);
    world.ok(&["volume", "create", "--size", "1M", "--name", "vol", "--region", "asks"]);
    world.ok(&["snapshot", "create", "vol", "--name", "theirs", "--region", "asks"]);
    world.ok(&copy_args("asks/theirs", "theirs"));
    let id = terrane::region::peek(&world.path("asks")).unwrap().id;
    let entry = world.path(&format!("config/regions/{id}.toml"));
    let with_file = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, format!("name = \"asks\"\ndirectory = \"{dir}\"\n")).unwrap();
    let (exit, said) = Daemon::new(&world, &["--once"]).wait();
    assert!(exit == 0 && said.contains("asks is asked for on a terminal"), "{exit} {said}");
    assert_eq!(states(&world, "south"), [TaskState::Queued]);
    std::fs::write(&entry, with_file).unwrap();
    world.ok(&["daemon", "--once"]);
    assert_eq!(states(&world, "south"), [TaskState::Succeeded]);
}

/// The configuration can't be read for a while: what was known is served on.
#[test]
fn a_daemon_outlives_its_configuration() {
    let (world, _disk, _) = pair(1);
    let daemon = Daemon::new(&world, &[]);
    std::thread::sleep(Duration::from_millis(300));
    let (regions, away) = (world.path("config/regions"), world.path("config/away"));
    std::fs::rename(&regions, &away).unwrap();
    std::fs::write(&regions, "not a folder").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::remove_file(&regions).unwrap();
    std::fs::rename(&away, &regions).unwrap();
    world.ok(&copy_args("north/one", "copied"));
    wait_until("it is made", || states(&world, "south") == [TaskState::Succeeded]);
    let (exit, said) = daemon.end();
    assert!(exit == 0 && said.contains("the configuration can't be read"), "{exit} {said}");
}

/// A region that was moved is found by the configuration, and what is wrong in it is said, not that it is away.
#[test]
fn a_region_that_moved_is_not_away() {
    let (world, mut disk, _) = pair(1);
    let two = disk.change(&world, "two", |c| c.write(0, &[1; MIB]));
    world.ok(&copy_args("north/one", "first"));
    world.ok(&copy_args("north/two", "second"));
    world.delete("north", two);
    std::fs::rename(world.path("north"), world.path("moved")).unwrap();
    world.ok(&["region", "add", &world.path("moved").display().to_string()]);
    let (exit, said) = Daemon::new(&world, &["--once"]).wait();
    assert!(exit == 1 && said.contains("1 done, 1 failed"), "{exit} {said}");
    let task = tasks(&world, "south").pop().unwrap();
    assert_eq!((task.state, task.exit), (TaskState::Failed, Some(3)), "{task:?}");
    assert!(task.error.unwrap().contains("has no snapshot"));
    // Told of once, and done with.
    assert_eq!(world.run(&["status"]).status.code(), Some(6));
    world.ok(&["task", "forget", &task.id.to_string(), "--region", "south"]);
    assert_eq!(world.run(&["status"]).status.code(), Some(0));
    assert_eq!(states(&world, "south"), [TaskState::Succeeded]);
}

/// One row that does not read, and a lock that can't be taken, are the end of no queue.
#[test]
fn one_bad_task_is_no_end_of_the_others() {
    let (world, _disk, _) = pair(1);
    for called in ["first", "second", "third"] {
        world.ok(&copy_args("north/one", called));
    }
    let ids: Vec<_> = tasks(&world, "south").iter().map(|task| task.id).collect();
    sql(&world, "south", &format!("UPDATE tasks SET exit = 300 WHERE id = '{}'", ids[0]));
    std::os::unix::fs::symlink("/etc/passwd", world.path(&format!("south/run/{}.lock", ids[1]))).unwrap();
    let (exit, said) = Daemon::new(&world, &["--once"]).wait();
    assert_eq!(exit, 0, "{said}");
    assert!(said.contains("a task is left out") && said.contains("left alone"), "{said}");
    assert_eq!(named(&world, "south", "third").unwrap().state, SnapshotState::Success);
    assert_eq!(tasks(&world, "south").len(), 2, "that which does not read is left out");
    assert_eq!(world.json(&["task", "list", "--region", "south"]).as_array().unwrap().len(), 2);
    // Numbers that no disk has.
    sql(
        &world,
        "south",
        &format!(
            "UPDATE tasks SET bytes_total = {max}, bytes_per_second = {max} WHERE id = '{}'",
            ids[1],
            max = i64::MAX
        ),
    );
    sql(
        &world,
        "south",
        &format!("UPDATE tasks SET exit = NULL, bytes_total = {max} WHERE id = '{}'", ids[0], max = i64::MAX),
    );
    sql(
        &world,
        "south",
        &format!(
            "UPDATE tasks SET state = 'queued', bytes_done = 0, bytes_total = {max} WHERE id = '{}'",
            ids[2],
            max = i64::MAX
        ),
    );
    assert_eq!(world.json(&["task", "list", "--region", "south"]).as_array().unwrap().len(), 3);
    sql(&world, "south", &format!("UPDATE tasks SET state = 'succeeded' WHERE id = '{}'", ids[2]));
    // What stays can be taken away.
    world.ok(&["snapshot", "delete", "first", "--region", "south"]);
    world.ok(&["task", "cancel", "second", "--region", "south"]);
    assert_eq!(world.holdings("south"), (1, 1, 1));
    // A failed one whose number is that of success is a failure all the same.
    let id = tasks(&world, "south").into_iter().find(|task| task.state == TaskState::Succeeded).unwrap().id;
    sql(&world, "south", &format!("UPDATE tasks SET state = 'failed', exit = 0 WHERE id = '{id}'"));
    world.fails(&["task", "wait", &id.to_string(), "--region", "south"], 1, &["failed"]);
}

/// Regions are served in turn, also where one task is done at a time.
#[test]
fn no_region_waits_for_all_of_anothers_queue() {
    let (world, _disk, _) = pair(1);
    world.ok(&["region", "init", &world.path("zulu").display().to_string(), "--name", "zulu"]);
    for n in 0..4 {
        for region in ["south", "zulu"] {
            let called = format!("n{n}");
            world.ok(&["snapshot", "copy", "north/one", "--to", region, "--name", &called]);
        }
    }
    let (exit, said) = Daemon::new(&world, &["--once", "--jobs", "1"]).wait();
    assert_eq!(exit, 0, "{said}");
    let begun: Vec<_> = said.lines().filter(|line| line.ends_with("copy begins")).collect();
    assert_eq!(begun.len(), 8, "{said}");
    let in_south: Vec<bool> = begun.iter().map(|line| line.contains("region south")).collect();
    assert!(in_south.windows(2).all(|pair| pair[0] != pair[1]), "{said}");
}

/// A rebuilt catalog has no queue: what waited is told, and can be asked for again.
#[test]
fn a_repair_tells_what_waited() {
    let (world, disk, _) = pair(1);
    world.ok(&[&copy_args("north/one", "whole")[..], &["--wait"]].concat());
    world.ok(&copy_args("north/one", "copied"));
    let shown = world.json(&["status", "--region", "south"]);
    assert_eq!(shown["regions"][0]["open_tasks"], 1);
    let catalog = rusqlite::Connection::open(world.path("south/catalog.db")).unwrap();
    assert!(catalog.execute("UPDATE keys SET state = 'nonsense'", []).unwrap() > 0);
    drop(catalog);
    let output = world.run(&["region", "check", "--repair", "--yes", "--region", "south"]);
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("copy copied (snap-") && said.contains("ask for it again"),
        "{said}"
    );
    assert!(named(&world, "south", "copied").is_none() && tasks(&world, "south").is_empty());
    world.ok(&[&copy_args("north/one", "copied")[..], &["--wait"]].concat());
    let row = named(&world, "south", "copied").unwrap();
    world.equal("south", row.id, &disk.model);
    assert_eq!(row.shipped_bytes, 0, "on the one that was kept");
}

/// A command that waits outlives a source that goes and comes back meanwhile, and throws nothing away.
#[test]
fn a_waiting_command_outlives_its_source() {
    let (world, disk, _) = pair(120);
    let there = begun(&world);
    let lock = |n: u32| {
        let path = world.path(&format!("south/run/copies-{n}.lock"));
        let file = std::fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        file
    };
    // It has the source open, and waits for its turn.
    let taken: Vec<_> = (0..terrane::copy::COPIES_MAX).map(lock).collect();
    let mut waiting = world.command(&[&copy_args("north/one", "copied")[..], &["--wait"]].concat());
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(waiting.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut next = |words: &str| {
        let line = said.find(|line| line.contains(words));
        assert!(line.is_some(), "it did not say {words:?}");
    };
    next("waits for its turn");
    std::fs::rename(world.path("north"), world.path("elsewhere")).unwrap();
    drop(taken);
    next("region north is not there");
    next("trying again in 2 s");
    assert!(tasks(&world, "south")[0].bytes_done >= there);
    assert_eq!(named(&world, "south", "copied").unwrap().state, SnapshotState::Processing);
    std::fs::rename(world.path("elsewhere"), world.path("north")).unwrap();
    assert!(waiting.wait().unwrap().success());
    let row = named(&world, "south", "copied").unwrap();
    assert!(row.shipped_bytes >= there);
    world.equal("south", row.id, &disk.model);
}

/// Not a byte is free: what is wrong is said, not that the disk fails; and what waits for a copy from there waits on.
#[test]
fn a_full_source_is_told_and_waited_for() {
    let (world, _disk, _) = pair(1);
    let Some(place) = Tmpfs::new(world.path("small"), 40) else { return };
    world.ok(&["region", "init", &format!("{}/r", place.0.display()), "--name", "small"]);
    world.ok(&["volume", "create", "--size", "1M", "--name", "vol", "--region", "small"]);
    world.ok(&["snapshot", "create", "vol", "--name", "theirs", "--region", "small"]);
    world.ok(&copy_args("small/theirs", "theirs"));
    let filler = place.0.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    world.fails(
        &["volume", "list", "--region", "small"],
        1,
        &["no space is left for the catalog", "free some space"],
    );
    let (exit, said) = Daemon::new(&world, &["--once", "--region", "south"]).wait();
    assert!(exit == 0 && said.contains("no space is left for the catalog of region small"), "{exit} {said}");
    assert_eq!(states(&world, "south"), [TaskState::Queued]);
    std::fs::remove_file(&filler).unwrap();
    world.ok(&["daemon", "--once", "--region", "south"]);
    assert_eq!(states(&world, "south"), [TaskState::Succeeded]);
}
