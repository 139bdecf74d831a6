//! Guarded here: a schedule that takes no snapshot, takes one twice, or leaves one uncopied; that deletes what is not its own, what is
//! locked, or what is all there is; and one whose trouble is seen by nobody, or stops the others.

mod schedule_support;

use std::os::unix::fs::FileExt;

use schedule_support::world::{is_root, pattern, read_at, within, write_at};
use schedule_support::{Case, at_hour, hourlies, hourly};

/// So long may a daemon take for what it does at once.
const PATIENCE: u64 = 60;

// X7
#[test]
fn a_schedule_takes_keeps_copies_and_expires() {
    let case = Case::hourly(&["--keep", "3", "--copy-to", "south", "--keep-copies", "2"]);
    case.once(&[]);
    assert!(case.names("north").is_empty(), "nothing is due yet");
    for hour in 1..=6 {
        case.hour(hour);
        case.once(&[]);
        assert_eq!(case.whole("north"), hourlies("db", (hour - 2).max(1)..=hour));
        assert_eq!(case.whole("south"), hourlies("db", (hour - 1).max(1)..=hour));
        assert_eq!(case.names("south"), case.whole("south"));
    }
    let again = case.once(&[]);
    assert!(!again.contains("schedule"), "nothing is due any more: {again}");
    let shown = case.shown("hourly");
    assert_eq!((&shown["every"], &shown["keep"]), (&"1h".into(), &3.into()));
    assert_eq!((&shown["copies"][0]["region"], &shown["copies"][0]["keep"]), (&"south".into(), &2.into()));
    assert_eq!(shown["last_due_at"], "2031-03-01T06:00:00Z");
    assert_eq!(shown["next_due_at"], "2031-03-01T07:00:00Z");
    assert_eq!(shown["last_run_at"], at_hour(6));
    assert_eq!(shown["snapshots"].as_array().unwrap().len(), 3);
    assert!(shown["error"].is_null());
    let made = case.json(&["snapshot", "show", "--region", "north", &hourly("db", 6)]);
    assert_eq!(made["description"], "taken by schedule hourly, due 2031-03-01T06:00:00Z");
    let copy = case.json(&["snapshot", "show", "--region", "south", &hourly("db", 6)]);
    assert_eq!((&copy["source_region"], &copy["source_snapshot_id"]), (&"north".into(), &made["id"]));
    assert_eq!(case.run(&["status"]).0, 0);
    case.ok(&["region", "check", "--region", "north"]);
    case.ok(&["region", "check", "--region", "south"]);
    // What it made stays, and expires no more.
    case.ok(&["schedule", "delete", "--region", "north", "hourly"]);
    case.fails(&["schedule", "show", "--region", "north", "hourly"], 3, &["has no schedule \"hourly\""]);
    case.hour(9);
    case.once(&[]);
    assert_eq!(case.whole("north"), hourlies("db", 4..=6));
    assert_eq!(case.whole("south"), hourlies("db", 5..=6));
}

// X7
#[test]
fn what_was_missed_is_made_up_for_once() {
    let case = Case::hourly(&["--keep", "5"]);
    case.hour(2);
    case.once(&[]);
    case.hour(2 + 7 * 24);
    case.once(&[]);
    case.once(&[]);
    assert_eq!(case.names("north"), [hourly("db", 2), hourly("db", 2 + 7 * 24)]);
    // A clock that is set back is a mistake: a region's goes on from where it was.
    case.hour(3);
    case.once(&[]);
    case.hour(1 + 7 * 24);
    case.once(&[]);
    assert_eq!(case.names("north").len(), 2);
    case.hour(3 + 7 * 24);
    case.once(&[]);
    assert_eq!(case.names("north").len(), 3);
    assert_eq!(case.shown("hourly")["last_due_at"], "2031-03-08T03:00:00Z");
}

// X7, X5
#[test]
fn volumes_are_chosen_by_their_tags_at_one_moment() {
    let case = Case::new();
    case.volume("one", &["tier=gold", "app=shop"]);
    case.volume("two", &["tier=gold", "app=shop"]);
    case.volume("three", &["tier=gold"]);
    case.schedule(&["--name", "hourly", "--tag", "tier=gold", "--tag", "app=shop", "--cron", "0 * * * *"]);
    case.hour(1);
    case.once(&[]);
    let taken = case.snapshots("north");
    let mut names: Vec<_> = taken.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, [hourly("one", 1), hourly("two", 1)]);
    let group = taken[0]["group_id"].as_str().expect("they form a group");
    assert_eq!(taken[1]["group_id"], group);
    case.ok(&["volume", "set", "--region", "north", "three", "--tag", "app=shop"]);
    case.ok(&["volume", "set", "--region", "north", "one", "--remove-tag", "tier"]);
    case.hour(2);
    case.once(&[]);
    let mut names = case.names("north").split_off(2);
    names.sort();
    assert_eq!(names, [hourly("three", 2), hourly("two", 2)]);
    // One volume alone is no group, and none is trouble that is seen.
    case.ok(&["volume", "set", "--region", "north", "three", "--remove-tag", "app"]);
    case.hour(3);
    case.once(&[]);
    assert!(case.snapshots("north")[4]["group_id"].is_null());
    case.ok(&["volume", "delete", "--region", "north", "two"]);
    case.hour(4);
    case.once(&[]);
    assert_eq!(case.names("north").len(), 5);
    assert_eq!(case.error("hourly"), "no volume has its tags");
    assert_eq!(case.shown("hourly")["last_due_at"], "2031-03-01T04:00:00Z");
    case.fails(&["status"], 6, &[]);
    let status = case.run(&["status"]).1;
    assert!(status.contains("schedule hourly in region north: no volume has its tags"), "{status}");
    case.ok(&["volume", "set", "--region", "north", "one", "--tag", "tier=gold"]);
    case.hour(5);
    case.once(&[]);
    assert_eq!((case.names("north").len(), case.error("hourly").as_str()), (6, ""));
}

// X7
#[test]
fn many_daemons_take_one_snapshot() {
    let case = Case::hourly(&["--copy-to", "south"]);
    for hour in 1..=5 {
        case.hour(hour);
        std::thread::scope(|scope| {
            (0..5).for_each(|_| drop(scope.spawn(|| case.once(&[]))));
        });
        // One that found it taken by another left it to that.
        case.once(&[]);
        assert_eq!(case.whole("north"), hourlies("db", 1..=hour));
        assert_eq!(case.whole("south"), hourlies("db", 1..=hour));
    }
}

// X7
#[test]
fn a_daemon_that_runs_on_sees_the_time_come() {
    let case = Case::hourly(&["--keep", "2", "--copy-to", "south", "--keep-copies", "1"]);
    let daemon = case.daemon(&[]);
    for hour in [1, 2, 3, 4, 30] {
        case.hour(hour);
        let is_there = || case.whole("south") == [hourly("db", hour)];
        assert!(within(PATIENCE, is_there), "{:?}", case.names("south"));
    }
    assert!(within(PATIENCE, || case.names("north") == [hourly("db", 4), hourly("db", 30)]));
    // What is made while it runs is carried out by it.
    case.schedule(&["--name", "often", "--volume", "db", "--every", "1m"]);
    case.time("2031-03-02T06:10:00Z");
    assert!(within(PATIENCE, || case.names("north").contains(&"often-db-20310302T061000Z".to_owned())));
    // Idle, it has nothing of a region open.
    let files = format!("/proc/{}/fd", daemon.0.id());
    let has_none_open = || {
        let open = std::fs::read_dir(&files).unwrap().flatten();
        let paths = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        !paths.into_iter().any(|path| path.ends_with("catalog.db"))
    };
    assert!(within(PATIENCE, has_none_open));
}

// X7
#[test]
fn trouble_with_one_volume_is_no_end_of_the_others() {
    let case = Case::new();
    let key = case.ok(&["key", "create", "--region", "north", "--alias", "team"]);
    case.volume("db", &["all=yes"]);
    case.volume("web", &["all=yes"]);
    case.ok(&[
        "volume", "create", "--region", "north", "--size", "8M", "--name", "locked", "--key", "team",
        "--tag", "all=yes",
    ]);
    case.schedule(&["--name", "hourly", "--tag", "all=yes", "--every", "1h", "--keep", "1"]);
    case.schedule(&["--name", "other", "--volume", "web", "--cron", "0 1 * * *"]);
    case.hour(1);
    case.once(&[]);
    assert_eq!(case.names("north").len(), 4);
    case.ok(&["key", "disable", "--region", "north", "team"]);
    case.hour(2);
    let said = case.once(&[]);
    assert!(
        said.contains("2 taken") && said.contains("volume locked: key") && said.contains("trying again"),
        "{said}"
    );
    let locked = |hour| hourly("locked", hour);
    let mut names = case.names("north");
    names.sort();
    // Of the others the newest is kept; of this one its only success.
    assert_eq!(names, [hourly("db", 2), locked(1), hourly("web", 2), "other-web-20310301T010000Z".into()]);
    assert!(case.error("hourly").contains(&key), "{}", case.error("hourly"));
    assert_eq!(case.shown("hourly")["last_due_at"], "2031-03-01T01:00:00Z", "the run is not over");
    case.fails(&["status"], 6, &[]);
    // What may pass is waited for.
    case.time("2031-03-01T02:30:00Z");
    case.ok(&["key", "enable", "--region", "north", "team"]);
    case.once(&[]);
    assert!(case.names("north").contains(&locked(2)));
    assert!(!case.names("north").contains(&locked(1)));
    assert_eq!((case.names("north").len(), case.error("hourly").as_str()), (4, ""));
    assert_eq!(case.run(&["status"]).0, 0);
    // A volume that is deleted: the rest goes on, and what it has stays.
    case.schedule(&["--name", "pair", "--volume", "db", "--volume", "web", "--every", "1h", "--keep", "1"]);
    case.hour(3);
    case.once(&[]);
    case.ok(&["volume", "delete", "--region", "north", "db"]);
    for hour in [4, 5] {
        case.hour(hour);
        case.once(&[]);
        assert!(case.error("pair").contains("is gone"), "{}", case.error("pair"));
        let of_pair: Vec<_> =
            case.names("north").into_iter().filter(|name| name.starts_with("pair-")).collect();
        assert_eq!(
            of_pair,
            ["pair-db-20310301T030000Z".to_owned(), format!("pair-web-20310301T0{hour}0000Z")]
        );
    }
    assert_eq!(case.error("hourly"), "");
}

// X7
#[test]
fn what_a_copy_waits_for_is_held_back() {
    let case = Case::hourly(&["--keep", "1", "--copy-to", "south", "--keep-copies", "9"]);
    for hour in 1..=3 {
        case.hour(hour);
        // Of north alone: nobody makes the copies.
        case.once(&["--region", "north"]);
    }
    assert_eq!(case.names("north"), hourlies("db", 1..=3), "each is still to be copied");
    assert_eq!(case.names("south"), hourlies("db", 1..=3));
    assert!(case.whole("south").is_empty());
    case.once(&[]);
    assert_eq!(case.names("north"), hourlies("db", 3..=3));
    assert_eq!(case.whole("south"), hourlies("db", 1..=3));
    // A copy that somebody deleted is not asked for again.
    case.ok(&["snapshot", "delete", "--region", "south", &hourly("db", 3)]);
    case.ok(&["snapshot", "delete", "--region", "south", &hourly("db", 2)]);
    case.once(&[]);
    case.hour(4);
    case.once(&[]);
    assert_eq!(case.names("south"), [hourly("db", 1), hourly("db", 4)]);
}

/// A target that opens and refuses: what no copy could be asked for yet is held back, and copied once it may be.
// X7
#[test]
fn what_could_not_be_asked_for_is_held_back() {
    let case = Case::hourly(&["--keep", "2", "--copy-to", "south", "--keep-copies", "9"]);
    case.hour(1);
    case.once(&[]);
    case.ok(&["kms", "revoke", "--region", "south"]);
    for hour in 2..=6 {
        case.hour(hour);
        case.once(&[]);
        assert!(case.error("hourly").contains("not authorised"), "{}", case.error("hourly"));
    }
    assert_eq!(case.names("north"), hourlies("db", 2..=6), "only what was copied went");
    case.ok(&["kms", "authorize", "--region", "south"]);
    case.once(&[]);
    // All were asked for at the same moment.
    let mut copies = case.whole("south");
    copies.sort();
    assert_eq!(copies, hourlies("db", 1..=6));
    case.once(&[]);
    assert_eq!(case.names("north"), hourlies("db", 5..=6));
}

/// One volume that may not be copied so is no end of the copies of the others.
// X7
#[test]
fn one_that_can_not_be_copied_leaves_the_others() {
    let case = Case::new();
    case.volume("secret", &["t=g"]);
    case.ok(&[
        "volume",
        "create",
        "--size",
        "4M",
        "--name",
        "open",
        "--unencrypted",
        "--tag",
        "t=g",
        "--region",
        "north",
    ]);
    case.schedule(&[
        "--name",
        "hourly",
        "--every",
        "1h",
        "--tag",
        "t=g",
        "--keep",
        "1",
        "--copy-to",
        "south",
        "--unencrypted",
    ]);
    for hour in 1..=3 {
        case.hour(hour);
        case.once(&[]);
    }
    assert!(case.error("hourly").contains("can't be plain"), "{}", case.error("hourly"));
    assert_eq!(case.whole("south"), hourlies("open", 1..=3));
    let mut there = case.names("north");
    there.sort();
    assert_eq!(there, [hourlies("open", 3..=3), hourlies("secret", 1..=3)].concat());
}

/// What somebody deleted before its time was over is not taken again, nor is its id another's.
// X7
#[test]
fn what_was_purged_is_not_taken_again() {
    let case = Case::new();
    case.ok(&["key", "create", "--alias", "other", "--region", "north"]);
    case.volume("db", &["t=g"]);
    case.ok(&[
        "volume", "create", "--size", "4M", "--name", "shut", "--key", "other", "--tag", "t=g", "--region",
        "north",
    ]);
    case.schedule(&["--name", "hourly", "--every", "1h", "--tag", "t=g"]);
    case.ok(&["key", "disable", "other", "--region", "north"]);
    case.hour(1);
    case.once(&[]);
    assert_eq!(case.names("north"), hourlies("db", 1..=1));
    case.ok(&["snapshot", "delete", "--region", "north", &hourly("db", 1)]);
    case.once(&[]);
    assert!(case.names("north").is_empty());
    case.ok(&["key", "enable", "other", "--region", "north"]);
    case.once(&[]);
    assert_eq!(case.names("north"), hourlies("shut", 1..=1));
}

// X7
#[test]
fn a_target_that_is_away_is_waited_for() {
    let case = Case::hourly(&["--keep", "2", "--copy-to", "south", "--keep-copies", "2"]);
    case.hour(1);
    case.once(&[]);
    std::fs::rename(case.world.path("s"), case.world.path("away")).unwrap();
    for hour in 2..=5 {
        case.hour(hour);
        case.once(&["--region", "north"]);
        assert!(case.error("hourly").starts_with("copies to region south: "), "{}", case.error("hourly"));
    }
    assert_eq!(case.names("north"), hourlies("db", 1..=5), "what may be needed for copies stays");
    assert_eq!(
        case.shown("hourly")["last_due_at"],
        "2031-03-01T05:00:00Z",
        "snapshots are taken all the same"
    );
    std::fs::rename(case.world.path("away"), case.world.path("s")).unwrap();
    case.once(&[]);
    assert_eq!(case.names("north"), hourlies("db", 4..=5));
    // Both were asked for at the same moment.
    let mut copies = case.whole("south");
    copies.sort();
    assert_eq!(copies, hourlies("db", 4..=5));
    assert_eq!(case.error("hourly"), "");
    // One that is not known any more.
    case.ok(&["region", "forget", "south"]);
    case.hour(6);
    case.once(&[]);
    assert_eq!(case.error("hourly"), "copies to region south: it is not known here");
    assert_eq!(case.names("north"), hourlies("db", 4..=6));
}

// X7, X6
#[test]
fn what_is_locked_or_not_its_own_stays() {
    let case = Case::hourly(&["--keep", "1", "--copy-to", "south", "--keep-copies", "1"]);
    case.ok(&["snapshot", "create", "--region", "north", "db", "--name", "hourly-db-mine"]);
    case.hour(1);
    case.once(&[]);
    for region in ["north", "south"] {
        let lock = ["--until", "2031-03-02", "--mode", "governance"];
        case.ok(&[&["snapshot", "lock", "--region", region, &hourly("db", 1)], &lock[..]].concat());
    }
    case.ok(&["snapshot", "copy", "north/hourly-db-mine", "--to", "south", "--name", "mine", "-q"]);
    for hour in [2, 3, 4] {
        case.hour(hour);
        case.once(&[]);
        assert_eq!(case.names("north"), ["hourly-db-mine".to_owned(), hourly("db", 1), hourly("db", hour)]);
        let mut copies = case.names("south");
        copies.sort();
        assert_eq!(copies, [hourly("db", 1), hourly("db", hour), "mine".into()]);
        assert_eq!(case.error("hourly"), "", "that is no trouble");
    }
    // A lock that has ended is none.
    case.hour(25);
    case.once(&[]);
    assert_eq!(case.names("north"), ["hourly-db-mine".to_owned(), hourly("db", 25)]);
    let mut copies = case.names("south");
    copies.sort();
    assert_eq!(copies, [hourly("db", 25), "mine".into()]);
}

// X7, X1
#[test]
fn copies_go_to_several_regions_under_their_keys() {
    let case = Case::new();
    case.volume("db", &[]);
    case.ok(&["region", "init", &case.world.at("w"), "--name", "west", "-q"]);
    let team = case.ok(&["key", "create", "--region", "south", "--alias", "team"]);
    let other = case.ok(&["key", "create", "--region", "north", "--alias", "other"]);
    case.schedule(&[
        "--name",
        "hourly",
        "--volume",
        "db",
        "--every",
        "1h",
        "--copy-to",
        "south",
        "--key",
        "team",
        "--keep-copies",
        "1",
        "--copy-to",
        "west",
        "--encrypt",
        "--copy-to",
        "north",
        "--key",
        "other",
        "--keep-copies",
        "2",
    ]);
    for hour in 1..=3 {
        case.hour(hour);
        case.once(&[]);
    }
    assert_eq!(case.error("hourly"), "");
    let of = |region: &str| -> Vec<(String, String)> {
        let all = case.snapshots(region);
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        all.iter().map(|s| (text(&s["name"]), text(&s["key_id"]))).collect()
    };
    assert_eq!(of("south"), [(hourly("db", 3), team)]);
    assert_eq!(case.names("west"), hourlies("db", 1..=3));
    let copies: Vec<_> = of("north").into_iter().filter(|(_, key)| *key == other).collect();
    assert_eq!(copies.len(), 2);
    // The names of what they are made of are taken.
    assert!(copies[1].0.starts_with(&format!("{}-", hourly("db", 3))), "{copies:?}");
    assert_eq!(case.names("north").len(), 3 + 2);
}

// X7
#[test]
fn a_mounted_volume_is_asked_of_its_mount() {
    let case = Case::hourly(&["--keep", "2"]);
    let mnt = case.world.mnt();
    case.ok(&["mount", "--region", "north", &mnt]);
    let file = case.world.file("db");
    for hour in 1..=3 {
        // Not synced: what was written is in the snapshot.
        write_at(&file, 4096, &pattern(64 << 10, hour as u64)).unwrap();
        case.hour(hour);
        case.once(&[]);
        let taken = case.world.snapshot_file(&hourly("db", hour));
        assert!(read_at(&taken, 4096, 64 << 10).unwrap() == pattern(64 << 10, hour as u64), "at {hour}");
    }
    assert_eq!(case.names("north"), hourlies("db", 2..=3));
    // One that somebody reads is left, without a word, and goes when he is done.
    let read = std::fs::File::open(case.world.snapshot_file(&hourly("db", 2))).unwrap();
    case.hour(4);
    case.once(&[]);
    assert_eq!((case.names("north"), case.error("hourly").as_str()), (hourlies("db", 2..=4), ""));
    drop(read);
    case.once(&[]);
    assert_eq!(case.names("north"), hourlies("db", 3..=4));
    if is_root() {
        let device = case.ok(&["attach", "--region", "north", "db"]);
        // Still open: the last to close it would have its pages written.
        let open = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
        open.write_all_at(&pattern(4096, 99), 4096).unwrap();
        case.hour(5);
        case.once(&[]);
        let taken = case.world.snapshot_file(&hourly("db", 5));
        assert!(
            read_at(&taken, 4096, 4096).unwrap() == pattern(4096, 99),
            "the loop device's pages are flushed"
        );
        drop(open);
        case.ok(&["detach", "--region", "north", "db"]);
    }
    case.ok(&["unmount", &mnt]);
}

// X7
#[test]
fn names_that_are_taken_or_too_long_are_told_apart() {
    let case = Case::hourly(&[]);
    case.ok(&["snapshot", "create", "--region", "north", "db", "--name", &hourly("db", 1)]);
    let long = "v".repeat(128);
    case.volume(&long, &["t=1"]);
    let name = "n".repeat(64);
    case.schedule(&["--name", &name, "--tag", "t=1", "--every", "1h"]);
    case.hour(1);
    case.once(&[]);
    let names = case.names("north");
    assert_eq!(names.len(), 3);
    let starts = |start: &str| names.iter().filter(|name| name.starts_with(start)).count();
    assert_eq!((starts(&hourly("db", 1)), starts(&format!("{name}-vol-"))), (2, 1), "{names:?}");
    assert_eq!((case.error("hourly"), case.error(&name)), (String::new(), String::new()));
}

// X7: case → exit → words
#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let case = Case::hourly(&[]);
    case.ok(&["region", "init", &case.world.at("w"), "--name", "west", "-q"]);
    case.ok(&["region", "forget", "west"]);
    let west = case.world.at("w");
    let long = "n".repeat(65);
    let rows: &[(&[&str], i32, &str)] = &[
        (&["--name", "x2", "--every", "1h"], 2, "--volume"),
        (&["--name", "x2", "--volume", "db"], 2, "--every"),
        (&["--volume", "db", "--every", "1h"], 2, "--name"),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--cron", "* * * * *"], 2, "cannot be used"),
        (&["--name", "x2", "--volume", "db", "--tag", "a=b", "--every", "1h"], 2, "cannot be used"),
        (&["--name", "x2", "--volume", "db", "--every", "0m"], 2, "from 1m to 366d"),
        (&["--name", "x2", "--volume", "db", "--every", "30s"], 2, "from 1m to 366d"),
        (&["--name", "x2", "--volume", "db", "--cron", "61 * * * *"], 2, "its minute \"61\""),
        (&["--name", "x2", "--volume", "db", "--cron", "0 0 30 2 *"], 2, "never due"),
        (&["--name", "x2", "--volume", "db", "--cron", "@daily"], 2, "five"),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--keep", "0"], 2, "0"),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--keep", "-1"], 2, "-1"),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--key", "k"], 2, "--copy-to before"),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--keep-copies", "3"], 2, "--copy-to before"),
        (&["--name", "x2", "--volume", "db", "--volume", "db", "--every", "1h"], 2, "named twice"),
        (&["--name", "x2", "--tag", "a=b", "--tag", "a=c", "--every", "1h"], 2, "given twice"),
        (&["--name", "x2", "--tag", "ab", "--every", "1h"], 2, "KEY=VALUE"),
        (&["--name", "2x", "--volume", "db", "--every", "1h"], 2, "beginning with a letter"),
        (&["--name", &long, "--volume", "db", "--every", "1h"], 4, "at most 64"),
        (&["--name", "x2", "--volume", "nope", "--every", "1h"], 3, "no volume \"nope\""),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--copy-to", "nope"], 3, "nope"),
        (
            &["--name", "x2", "--volume", "db", "--every", "1h", "--copy-to", &west],
            4,
            "not in the configuration",
        ),
        (
            &["--name", "x2", "--volume", "db", "--every", "1h", "--copy-to", "south", "--key", "nope"],
            3,
            "no key",
        ),
        (&["--name", "x2", "--volume", "db", "--every", "1h", "--copy-to", "north"], 4, "the same again"),
        (
            &["--name", "x2", "--volume", "db", "--every", "1h", "--copy-to", "south", "--copy-to", "south"],
            4,
            "twice",
        ),
        (&["--name", "hourly", "--volume", "db", "--every", "1h"], 5, "already has a schedule \"hourly\""),
        (&["--name", "sched-0123456789abcdef0", "--volume", "db", "--every", "1h"], 4, "the form of an id"),
    ];
    let before = case.json(&["schedule", "list", "--region", "north"]);
    for (options, exit, words) in rows {
        case.fails(&[&["schedule", "create", "--region", "north"], *options].concat(), *exit, &[words]);
    }
    let unknown = case.fails(
        &["schedule", "create", "--region", &west, "--name", "x2", "--tag", "a=b", "--every", "1h"],
        4,
        &[],
    );
    assert!(unknown.contains("region add"), "{unknown}");
    case.fails(
        &["schedule", "show", "--region", "north", "nope"],
        3,
        &["no schedule \"nope\"", "schedule list"],
    );
    case.fails(&["schedule", "delete", "--region", "north", "nope"], 3, &["no schedule \"nope\""]);
    case.fails(&["schedule", "delete", "--region", "north", "sched-0123456789abcdef0"], 3, &["no schedule"]);
    assert_eq!(case.json(&["schedule", "list", "--region", "north"]), before);
    // By the beginning of its id.
    let id = before[0]["id"].as_str().unwrap();
    assert_eq!(case.shown(&id[..14])["name"], "hourly");
    let table = case.ok(&["schedule", "list", "--region", "north"]);
    assert!(table.contains("every 1h") && table.contains("2031-03-01T01:00:00Z"), "{table}");
    assert!(case.ok(&["schedule", "show", "--region", "north", "hourly"]).contains("next due"));
    // Nobody carries it out.
    case.time("2031-03-01T01:10:01Z");
    let (exit, status, _) = case.run(&["status"]);
    assert!(
        exit == 6 && status.contains("schedule hourly in region north was due 2031-03-01T01:00:00Z"),
        "{status}"
    );
}

// X7
#[test]
fn schedules_are_lost_with_their_catalog_and_nothing_else() {
    let case = Case::hourly(&["--keep", "2", "--copy-to", "south", "--keep-copies", "1"]);
    for hour in 1..=3 {
        case.hour(hour);
        case.once(&[]);
    }
    case.sql("r", "UPDATE snapshots SET size_bytes = 1");
    case.fails(&["schedule", "show", "--region", "north", "hourly"], 6, &[]);
    case.ok(&["region", "check", "--region", "north", "--repair", "--yes"]);
    // Each layer comes back with one name: what was not written between two snapshots is one.
    let recovered = case.names("north");
    assert_eq!(recovered.len(), 1);
    assert!(case.json(&["schedule", "list", "--region", "north"]).as_array().unwrap().is_empty());
    case.hour(4);
    case.once(&[]);
    assert_eq!((case.names("north"), case.names("south")), (recovered.clone(), hourlies("db", 3..=3)));
    // Another one of the same name begins anew.
    let volume = case.json(&["volume", "list", "--region", "north"])[0]["id"].as_str().unwrap().to_owned();
    case.schedule(&["--name", "hourly", "--volume", &volume, "--every", "1h", "--keep", "1"]);
    for hour in 5..=6 {
        case.hour(hour);
        case.once(&[]);
        let names = case.names("north");
        assert!(names.len() == 2 && names.contains(&recovered[0]), "{names:?}");
    }
    case.ok(&["region", "check", "--region", "north"]);
}
