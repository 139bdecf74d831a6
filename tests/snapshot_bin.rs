//! Guarded here: a deleted snapshot that is gone though a rule keeps it, or that stays when its time is over; one that is used,
//! served or folded away while it is in the bin; and one that ends because somebody wrote so into the catalog.

#[path = "common/clocked.rs"]
mod clocked;
#[path = "common/world.rs"]
mod world;

use clocked::Case;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use world::{MIB, Running, errno, pattern, read_at, within, write_at};

const DELETE: &[&str] = &["snapshot", "delete", "mon"];
const CHECK: &[&str] = &["region", "check"];
const REPAIR: &[&str] = &["region", "check", "--repair", "--yes"];

impl Case {
    /// A case with a rule for all snapshots.
    fn with_bin(days: &str) -> Self {
        let case = Self::with_mon();
        case.rule(days, &[]);
        case
    }

    #[track_caller]
    fn rule(&self, days: &str, tags: &[&str]) -> String {
        let tags = tags.iter().flat_map(|tag| ["--tag", *tag]);
        let words = ["bin", "add", "--kind", "snapshot", "--days", days];
        self.ok(&words.into_iter().chain(tags).collect::<Vec<_>>())
    }

    #[track_caller]
    fn id(&self, name: &str) -> String {
        self.json(&["snapshot", "show", name])["id"].as_str().unwrap().to_owned()
    }

    /// Deletes a snapshot by its name, with a word that it is in the bin; its id.
    #[track_caller]
    fn bin(&self, name: &str) -> String {
        let id = self.id(name);
        let (exit, stdout, said) = self.run(&["snapshot", "delete", name]);
        assert!(exit == 0 && stdout.is_empty(), "{exit} {stdout} {said}");
        assert!(said.contains("is in the bin until") && said.contains(&format!("restore {id}")), "{said}");
        id
    }

    /// Names of what is there, or of what is in the bin, sorted.
    #[track_caller]
    fn names(&self, deleted: bool) -> Vec<String> {
        let words: &[&str] = if deleted { &["snapshot", "list", "--deleted"] } else { &["snapshot", "list"] };
        let listed = self.json(words);
        let mut names: Vec<_> =
            listed.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// What the daemon in the background has said.
    fn said(&self) -> String {
        std::fs::read_to_string(self.world.path("said")).unwrap()
    }

    #[track_caller]
    fn says(&self, words: &str) {
        assert!(within(20, || self.said().contains(words)), "{words}: {}", self.said());
    }

    /// Another snapshot, of other bytes; what they are.
    fn change(&self, name: &str, seed: u64) -> Vec<u8> {
        let bytes = pattern(MIB as usize, seed);
        self.ok(&["mount", &self.world.mnt()]);
        write_at(&self.world.file("web"), 0, &bytes).unwrap();
        self.ok(&["unmount", &self.world.mnt()]);
        self.ok(&["snapshot", "create", "web", "--name", name]);
        bytes
    }
}

#[track_caller]
fn end(mut daemon: Running) {
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
}

// X6
#[test]
fn what_a_rule_applies_to_waits_in_the_bin() {
    let case = Case::with_bin("7");
    let before = case.json(&["snapshot", "show", "mon"]);
    assert_eq!((&before["deleted_at"], &before["purge_at"]), (&Value::Null, &Value::Null));
    let layers = case.world.layers();
    let id = case.bin("mon");
    assert_eq!((case.names(false), case.names(true)), (vec![], vec!["mon".to_owned()]));
    assert_eq!(case.world.layers(), layers, "its layer stays");
    let shown = case.json(&["snapshot", "show", &id]);
    assert_eq!((&shown["state"], &shown["name"]), (&"deleted".into(), &"mon".into()));
    assert_eq!(
        (&shown["deleted_at"], &shown["purge_at"]),
        (&"2031-01-01T00:00:00Z".into(), &"2031-01-08T00:00:00Z".into())
    );
    assert_eq!(case.json(&["snapshot", "list", "--filter", "state=deleted"])[0], shown);
    for (now, left) in
        [("2031-01-01T00:00:01Z", "7"), ("2031-01-07T00:00:00Z", "1"), ("2031-01-08T00:00:00Z", "0")]
    {
        case.time(now);
        let table = case.ok(&["snapshot", "list", "--deleted"]);
        let line = table.lines().nth(1).unwrap();
        assert!(line.contains(&id) && line.trim_end().ends_with(&format!(" {left}")), "{left}: {table}");
    }
    let table = case.ok(&["snapshot", "show", &id]);
    assert!(table.contains("since 2031-01-01T00:00:00Z, until 2031-01-08T00:00:00Z"), "{table}");
    // Its name is nobody's, and another's at once.
    let said = case.fails(&["snapshot", "show", "mon"], 3, &["no snapshot \"mon\""]);
    assert!(said.contains("--deleted"), "{said}");
    case.ok(&["snapshot", "create", "web", "--name", "mon"]);
    assert_ne!(case.id("mon"), id);
    let status = case.run(&["status", "--region", "here", "--output", "json"]).1;
    let status: Value = serde_json::from_str(&status).unwrap();
    let region = &status["regions"][0];
    assert_eq!((&region["snapshots"], &region["deleted_snapshots"]), (&1.into(), &1.into()));
    case.ok(CHECK);
    // Two of one name.
    case.bin("mon");
    assert_eq!(case.names(true), ["mon", "mon"]);
    case.ok(CHECK);
}

// X6
#[test]
fn of_the_rules_that_apply_the_longest_days_count() {
    let case = Case::with_mon();
    // Each of the same volume: tags, and days in the bin.
    let rules: &[(&str, &[&str])] =
        &[("3", &["env=prod"]), ("30", &["env=prod", "tier=db"]), ("10", &["tier=db"]), ("3", &["env=test"])];
    for (days, tags) in rules {
        case.rule(days, tags);
    }
    let cases: &[(&[&str], Option<&str>)] = &[
        (&[], None),
        (&["env=dev"], None),
        (&["env=prod"], Some("2031-01-04T00:00:00Z")),
        (&["env=prod", "tier=web"], Some("2031-01-04T00:00:00Z")),
        (&["tier=db"], Some("2031-01-11T00:00:00Z")),
        (&["env=prod", "tier=db", "x=y"], Some("2031-01-31T00:00:00Z")),
    ];
    for (n, (tags, until)) in cases.iter().enumerate() {
        let name = format!("s{n}");
        let tags = tags.iter().flat_map(|tag| ["--tag", *tag]);
        let words = ["snapshot", "create", "web", "--name", &name];
        let id = case.ok(&words.into_iter().chain(tags).collect::<Vec<_>>());
        case.ok(&["snapshot", "delete", &name]);
        match until {
            None => drop(case.fails(&["snapshot", "show", &id], 3, &[])),
            Some(until) => assert_eq!(case.json(&["snapshot", "show", &id])["purge_at"], *until, "{name}"),
        }
    }
    // What was said stays, whatever becomes of the rules.
    let listed = case.json(&["bin", "list"]);
    for rule in listed.as_array().unwrap() {
        case.ok(&["bin", "delete", rule["id"].as_str().unwrap()]);
    }
    case.rule("1", &[]);
    let times = case.json(&["snapshot", "list", "--deleted"]);
    let mut times: Vec<_> =
        times.as_array().unwrap().iter().map(|s| s["purge_at"].as_str().unwrap()).collect();
    let mut expected: Vec<_> = cases.iter().filter_map(|(_, until)| *until).collect();
    times.sort_unstable();
    expected.sort_unstable();
    assert_eq!(times, expected);
}

// X6
#[test]
fn rules_are_listed_and_refused_in_words() {
    let case = Case::with_mon();
    let id = case.rule("7", &["env=prod", "a=b"]);
    assert!(id.starts_with("bin-") && id.len() == 21, "{id}");
    let listed = case.json(&["bin", "list"]);
    let tags = json!([{ "key": "a", "value": "b" }, { "key": "env", "value": "prod" }]);
    assert_eq!((&listed[0]["id"], &listed[0]["kind"]), (&id.clone().into(), &"snapshot".into()));
    assert_eq!((&listed[0]["days"], &listed[0]["tags"]), (&7.into(), &tags));
    let all = case.rule("365", &[]);
    let table = case.ok(&["bin", "list"]);
    assert!(table.contains("a=b, env=prod") && table.contains("any"), "{table}");
    let add = |more: &[&'static str]| [&["bin", "add", "--kind", "snapshot"], more].concat();
    let many: Vec<String> = (0..21).map(|n| format!("--tag=k{n}=v")).collect();
    let many: Vec<&str> = ["bin", "add", "--kind", "snapshot", "--days", "1"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();
    let before = case.json(&["bin", "list"]);
    let cases: &[(&[&str], i32, &str)] = &[
        (&add(&["--days", "0"]), 2, "0"),
        (&add(&["--days", "366"]), 2, "366"),
        (&add(&["--days", "-1"]), 2, "-1"),
        (&add(&["--days", "1.5"]), 2, "1.5"),
        (&add(&[]), 2, "--days"),
        (&["bin", "add", "--days", "7"], 2, "--kind"),
        (&["bin", "add", "--kind", "volume", "--days", "7"], 2, "only snapshots have a bin"),
        (&["bin", "add", "--kind", "Snapshot", "--days", "7"], 2, "only snapshots have a bin"),
        (&add(&["--days", "7", "--tag", "env"]), 2, "KEY=VALUE"),
        (&add(&["--days", "7", "--tag", "=x"]), 2, "1 to 128"),
        (&add(&["--days", "7", "--tag", "a=b", "--tag", "a=c"]), 2, "given twice"),
        (&many, 2, "at most 20"),
        // It is there.
        (&add(&["--days", "7", "--tag", "a=b", "--tag", "env=prod"]), 5, "already has a bin rule"),
        (&add(&["--days", "365"]), 5, &all),
        (&["bin", "delete", "bin-00000000000000000"], 3, "no bin rule"),
        (&["bin", "delete", "x"], 3, "no bin rule"),
        (&["bin", "delete", "bin-"], 3, "no bin rule"),
        (&["bin", "delete"], 2, "RULE"),
        (&["bin", "list", "x"], 2, "x"),
        (&["bin", "add", "--kind", "snapshot", "--days", "9", "--account", "nobody"], 3, "nobody"),
        // A name has no id's form.
        (&["snapshot", "create", "web", "--name", &id], 4, "form of an id"),
    ];
    for (args, exit, word) in cases {
        case.fails(args, *exit, &[word]);
    }
    assert_eq!(case.json(&["bin", "list"]), before);
    case.ok(&["bin", "delete", &id[..12]]);
    case.ok(&["bin", "delete", &all]);
    assert_eq!(case.json(&["bin", "list"]), json!([]));
    // Without a rule what is deleted is gone.
    let mon = case.id("mon");
    case.ok(DELETE);
    case.fails(&["snapshot", "show", &mon], 3, &[]);
    assert_eq!(case.names(true), Vec::<String>::new());
}

// X6
#[test]
fn what_is_in_the_bin_is_restored_before_it_is_used() {
    let case = Case::with_bin("7");
    case.ok(&["snapshot", "create", "web", "--name", "tue"]);
    case.ok(&["region", "init", &case.world.at("south"), "--name", "south", "-q"]);
    let here = ["--region", "here"];
    let id = {
        let shown = case.json(&["snapshot", "show", "mon", "--region", "here"]);
        case.ok(&["snapshot", "delete", "mon", "--region", "here"]);
        shown["id"].as_str().unwrap().to_owned()
    };
    let shown = case.json(&["snapshot", "show", &id, "--region", "here"]);
    let source = format!("here/{id}");
    let cases: &[&[&str]] = &[
        &["volume", "create", "--snapshot", &id],
        &["volume", "rollback", "web", "--snapshot", &id],
        &["snapshot", "copy", &source, "--to", "south", "--name", "copied"],
        &["snapshot", "copy", &source, "--to", "south", "--name", "copied", "--dry-run"],
        &["snapshot", "lock", &id, "--until", "2031-02-01", "--mode", "governance"],
        &["snapshot", "set", &id, "--description", "words"],
        &["snapshot", "set", &id, "--no-retention"],
        &["snapshot", "diff", &id, "tue"],
        &["snapshot", "diff", "tue", &id],
        &["snapshot", "verify", &id],
    ];
    for args in cases {
        let words =
            [&format!("snapshot mon ({id}) is in the bin"), &format!("terrane snapshot restore {id}")];
        case.fails(&[*args, &here].concat(), 4, &words.map(String::as_str));
    }
    let again = ["snapshot", "delete", &id, "--region", "here"];
    case.fails(&again, 4, &["is in the bin", "--purge"]);
    for args in [&["volume", "create", "--snapshot", "mon"][..], &["snapshot", "diff", "mon", "tue"]] {
        case.fails(&[args, &here].concat(), 3, &["no snapshot \"mon\""]);
    }
    assert_eq!(case.json(&["snapshot", "show", &id, "--region", "here"]), shown, "nothing was changed");
    let south = case.json(&["snapshot", "list", "--region", "south"]);
    assert_eq!(south, json!([]));
}

// X6
#[test]
fn what_is_restored_is_what_it_was() {
    let case = Case::with_bin("7");
    let bytes = case.change("tue", 1);
    case.ok(&["snapshot", "set", "tue", "--tag", "a=b", "--description", "words", "--retention-days", "30"]);
    case.change("wed", 2);
    let before = case.json(&["snapshot", "show", "tue"]);
    let id = case.bin("tue");
    case.ok(&["snapshot", "restore", &id]);
    assert_eq!(case.json(&["snapshot", "show", "tue"]), before);
    // By its name.
    case.bin("tue");
    case.ok(&["snapshot", "restore", "tue"]);
    assert_eq!(case.json(&["snapshot", "show", &id]), before);
    // Another has its name.
    case.bin("tue");
    case.ok(&["snapshot", "create", "web", "--name", "tue"]);
    let taken = ["snapshot", "restore", &id];
    case.fails(&taken, 5, &["already has a snapshot \"tue\"", "--name"]);
    case.fails(&[&taken[..], &["--name", "wed"]].concat(), 5, &["\"wed\"", "--name"]);
    case.fails(&[&taken[..], &["--name", "x"]].concat(), 2, &["name"]);
    case.fails(&[&taken[..], &["--name", "snap-00000000000000000"]].concat(), 4, &["form of an id"]);
    // Two had it: which?
    let other = case.bin("tue");
    case.fails(&["snapshot", "restore", "tue"], 4, &[&id, &other, "whole id"]);
    assert_eq!(case.names(true).len(), 2);
    case.ok(&["snapshot", "restore", &id, "--name", "again"]);
    let shown = case.json(&["snapshot", "show", "again"]);
    assert_eq!(
        (&shown["id"], &shown["tags"], &shown["retention_days"]),
        (&before["id"], &before["tags"], &30.into())
    );
    case.ok(CHECK);
    case.ok(&["snapshot", "verify", "again"]);
    case.ok(&["volume", "create", "--snapshot", "again", "--name", "made"]);
    case.ok(&["mount", &case.world.mnt()]);
    assert!(read_at(&case.world.file("made"), 0, bytes.len()).unwrap() == bytes);
    assert!(read_at(&case.world.snapshot_file("again"), 0, bytes.len()).unwrap() == bytes);
    case.ok(&["unmount", &case.world.mnt()]);
    for (text, exit, word) in [
        ("again", 4, "is not in the bin"),
        (&id[..], 4, "is not in the bin"),
        ("nobody", 3, "no snapshot \"nobody\""),
        ("snap-00000000000000000", 3, "no snapshot"),
    ] {
        case.fails(&["snapshot", "restore", text], exit, &[word]);
    }
    assert_eq!(case.names(true), ["tue"]);
}

// X6
#[test]
fn a_purge_waits_for_no_bin_and_for_every_lock() {
    let case = Case::with_bin("7");
    let purge = |what: &str| ["snapshot".to_owned(), "delete".into(), what.into(), "--purge".into()];
    let purges = |what: &str, exit: i32, words: &[&str]| {
        case.fails(&purge(what).each_ref().map(String::as_str), exit, words);
    };
    case.change("tue", 1);
    let layers = case.world.layers();
    let lock = ["snapshot", "lock", "tue", "--until", "2031-02-01", "--mode", "governance"];
    case.ok(&lock);
    case.fails(&["snapshot", "delete", "tue"], 4, &["locked"]);
    purges("tue", 4, &["locked"]);
    assert_eq!(case.names(false), ["mon", "tue"]);
    case.ok(&["snapshot", "unlock", "tue"]);
    let id = case.bin("tue");
    assert_eq!(case.world.layers(), layers);
    purges("tue", 3, &["no snapshot \"tue\""]);
    // A lock that got there all the same is one.
    case.sql(
        "r",
        &format!(
            "UPDATE snapshots SET locked_until = 1927584000000000, lock_mode = 'compliance' WHERE id = '{id}'"
        ),
    );
    purges(&id, 4, &["locked until 2031-01-31"]);
    case.time("2031-01-09T00:00:00Z");
    assert!(!case.once(&[]).contains("snapshot tue"), "it ends when its lock does");
    assert_eq!(case.names(true), ["tue"]);
    case.sql("r", &format!("UPDATE snapshots SET locked_until = NULL, lock_mode = NULL WHERE id = '{id}'"));
    case.ok(&purge(&id).each_ref().map(String::as_str));
    assert_eq!((case.names(false), case.names(true)), (vec!["mon".to_owned()], vec![]));
    assert!(case.world.layers() < layers, "its layer is folded away");
    purges(&id, 3, &[]);
    // And of one that is in no bin.
    let mon = case.id("mon");
    case.ok(&purge("mon").each_ref().map(String::as_str));
    case.fails(&["snapshot", "show", &mon], 3, &[]);
    case.ok(CHECK);
}

// X6
#[test]
fn a_mount_does_not_serve_what_is_in_the_bin() {
    let case = Case::with_bin("7");
    let bytes = case.change("tue", 1);
    let (id, file) = (case.id("tue"), case.world.snapshot_file("tue"));
    case.ok(&["mount", &case.world.mnt()]);
    let by_id = case.world.path("mnt/snapshots").join(&id);
    let open = std::fs::File::open(&file).unwrap();
    for purge in [&[][..], &["--purge"]] {
        case.fails(&[&["snapshot", "delete", "tue"], purge].concat(), 5, &["in use"]);
    }
    drop(open);
    // The kernel knows the file, and need not ask for its name again.
    let flags = rustix::fs::OFlags::PATH;
    let known = rustix::fs::open(&by_id, flags, rustix::fs::Mode::empty()).unwrap();
    case.bin("tue");
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&known));
    assert_eq!(errno(std::fs::File::open(again)), libc::ENOENT);
    drop(known);
    for path in [&file, &by_id] {
        assert_eq!(errno(read_at(path, 0, 1)), libc::ENOENT, "{path:?}");
    }
    let listed = |shelf: &str| std::fs::read_dir(case.world.path(shelf)).unwrap().count();
    assert_eq!((listed("mnt/snapshots"), listed("mnt/by-name/snapshots")), (1, 1));
    // Through the mount, too, it is deleted once, and comes back.
    case.fails(&["snapshot", "delete", &id], 4, &["is in the bin", "--purge"]);
    case.ok(&["snapshot", "restore", &id, "--name", "again"]);
    assert!(read_at(&case.world.snapshot_file("again"), 0, bytes.len()).unwrap() == bytes);
    assert!(read_at(&by_id, 0, bytes.len()).unwrap() == bytes);
    case.bin("again");
    case.time("2031-01-08T00:00:00Z");
    assert!(case.once(&[]).contains("snapshot again"), "the mount carries it out");
    case.fails(&["snapshot", "show", &id], 3, &[]);
    case.ok(&["unmount", &case.world.mnt()]);
    case.ok(CHECK);
}

// X2 X6 S22
#[test]
fn what_is_in_the_bin_is_a_base() {
    let case = Case::with_mon();
    let south = ["--region", "south"];
    let here = |args: &[&str]| case.ok(&[args, &["--region", "here"]].concat());
    case.ok(&["region", "init", &case.world.at("south"), "--name", "south", "-q"]);
    case.ok(&[&["bin", "add", "--kind", "snapshot", "--days", "7"], &south[..]].concat());
    let write = |seed: u64, at: u64| {
        here(&["mount", &case.world.mnt()]);
        write_at(&case.world.file("web"), at, &pattern(MIB as usize, seed)).unwrap();
        here(&["unmount", &case.world.mnt()]);
    };
    write(1, 0);
    here(&["snapshot", "create", "web", "--name", "one"]);
    let copy =
        |name: &'static str| ["snapshot", "copy", name, "--to", "south", "--name", name, "--region", "here"];
    let one = case.ok(&[&copy("one")[..], &["--wait", "-q"]].concat());
    write(2, 4 * MIB);
    here(&["snapshot", "create", "web", "--name", "two"]);
    case.ok(&[&["snapshot", "delete", "one"], &south[..]].concat());
    let plan = case.json(&[&copy("two")[..], &["--dry-run"]].concat());
    assert_eq!(
        (&plan["base_snapshot_id"], &plan["ship_bytes"]),
        (&one.clone().into(), &MIB.into()),
        "{plan}"
    );
    case.ok(&[&copy("two")[..], &["--wait", "-q"]].concat());
    // What stands on it stays when it goes.
    case.ok(&[&["snapshot", "delete", &one, "--purge"], &south[..]].concat());
    case.ok(&[&["snapshot", "verify", "two"], &south[..]].concat());
    case.ok(&[CHECK, &south].concat());
    let shown = case.json(&[&["snapshot", "show", "two"], &south[..]].concat());
    assert_eq!(shown["shipped_bytes"], MIB);
    // One that is not whole does not wait.
    here(&["snapshot", "copy", "two", "--to", "south", "--name", "three", "--key", "default", "-q"]);
    case.ok(&[&["snapshot", "delete", "three"], &south[..]].concat());
    assert_eq!(case.json(&[&["snapshot", "list", "--deleted"], &south[..]].concat()), json!([]));
}

// X6 X7
#[test]
fn the_daemon_ends_what_is_over() {
    let case = Case::with_mon();
    let create = |name: &str, days: &str, tag: &str| {
        case.ok(&["snapshot", "create", "web", "--name", name, "--retention-days", days, "--tag", tag]);
    };
    create("week", "7", "a=b");
    create("fortnight", "14", "a=b");
    create("binned", "7", "bin=yes");
    create("locked", "7", "bin=yes");
    case.ok(&["snapshot", "lock", "locked", "--until", "2031-01-20", "--mode", "compliance"]);
    case.rule("10", &["bin=yes"]);
    case.time("2031-01-07T23:59:59.999999Z");
    assert!(!case.once(&[]).contains("snapshot"), "not a moment too early");
    assert_eq!(case.names(false).len(), 5);
    case.time("2031-01-08T00:00:00Z");
    let said = case.once(&[]);
    assert!(
        said.contains("snapshot week (snap-") && said.contains("deleted: its retention is over"),
        "{said}"
    );
    assert!(said.contains("in the bin until 2031-01-18T00:00:00Z: its retention is over"), "{said}");
    assert!(!said.contains("locked"), "{said}");
    assert_eq!(case.names(false), ["fortnight", "locked", "mon"]);
    assert_eq!(case.names(true), ["binned"]);
    // Given back, it has no retention that would end it again.
    let (exit, _, said) = case.run(&["snapshot", "restore", "binned"]);
    assert!(exit == 0 && said.contains("7 days, is over"), "{said}");
    assert_eq!(case.json(&["snapshot", "show", "binned"])["retention_days"], Value::Null);
    assert!(!case.once(&[]).contains("snapshot"));
    case.bin("binned");
    case.time("2031-01-17T23:59:59.999999Z");
    assert!(!case.once(&[]).contains("binned"));
    assert_eq!(case.names(true), ["binned"]);
    case.time("2031-01-18T00:00:00Z");
    let said = case.once(&[]);
    assert!(
        said.contains("snapshot binned (snap-") && said.contains("its time in the bin is over"),
        "{said}"
    );
    assert_eq!((case.names(false), case.names(true)), (vec!["locked".to_owned(), "mon".into()], vec![]));
    case.time("2031-01-20T00:00:00Z");
    assert!(case.once(&[]).contains("snapshot locked"));
    assert_eq!(case.names(true), ["locked"]);
    case.ok(CHECK);
    // More than are ended at a time.
    for n in 0..40 {
        create(&format!("s{n}"), "1", "a=b");
    }
    case.time("2031-01-21T00:00:00Z");
    assert_eq!(case.once(&[]).matches("its retention is over").count(), 40);
    assert_eq!(case.names(false), ["mon"]);
    case.ok(CHECK);
}

// X6
#[test]
fn a_daemon_that_stays_sees_the_moment_come() {
    let case = Case::with_bin("7");
    case.ok(&["snapshot", "create", "web", "--name", "short", "--retention-days", "1"]);
    let short = case.id("short");
    case.change("read", 1);
    let (mon, read) = (case.bin("mon"), case.bin("read"));
    case.time("2031-01-01T12:00:00Z");
    let daemon = case.daemon(&[]);
    // No command is run meanwhile: that would be a reason to look.
    case.time("2031-01-02T00:00:00Z");
    case.says("in the bin until 2031-01-09T00:00:00Z: its retention is over");
    // One is read when its time comes.
    let lock = std::fs::File::create(case.world.path(&format!("r/run/{read}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    case.time("2031-01-08T00:00:00Z");
    case.says(&format!("snapshot mon ({mon}) is gone"));
    let stays = "stays, though its time is over: snapshot read is in use by";
    case.says(stays);
    drop(lock);
    case.says(&format!("snapshot read ({read}) is gone"));
    case.time("2031-01-09T00:00:00Z");
    case.says(&format!("snapshot short ({short}) is gone"));
    end(daemon);
    assert!(within(20, || case.names(true).is_empty()));
    let said = case.said();
    assert_eq!(said.matches(stays).count(), 1, "told once: {said}");
}

// X6
#[test]
fn a_disabled_key_vouches_for_nothing_until_it_is_enabled() {
    let case = Case::with_bin("7");
    let id = case.bin("mon");
    case.ok(&["key", "disable", "default", "-q"]);
    // What it has said is enough to give it back.
    case.ok(&["snapshot", "restore", &id]);
    case.bin("mon");
    case.fails(&["snapshot", "restore", &id, "--name", "tue"], 4, &["disabled"]);
    case.time("2031-01-08T00:00:00Z");
    let said = case.once(&[]);
    assert!(said.contains("stays, though its time is over") && said.contains("disabled"), "{said}");
    case.ok(&["key", "enable", "default", "-q"]);
    assert!(case.once(&[]).contains("its time in the bin is over"));
    case.fails(&["snapshot", "show", &id], 3, &[]);
}

/// A rule that does not read keeps snapshots from being deleted, which is said; by its id it can be taken away.
// X6
#[test]
fn a_rule_that_does_not_read_can_be_taken_away() {
    let case = Case::with_mon();
    let rule = case.rule("3", &[]);
    case.sql("r", "UPDATE bin_rules SET kind = 'else'");
    case.fails(DELETE, 6, &["bin"]);
    let (exit, said, _) = case.run(&["status"]);
    assert!(exit == 6 && said.contains("a rule of the bin can't be read"), "{said}");
    case.ok(&["bin", "delete", &rule]);
    case.fails(&["bin", "delete", &rule], 3, &["bin rule"]);
    case.ok(DELETE);
}

/// What ends by itself is what a command said would: a row, or a date, that somebody wrote ends nothing.
// X6 X12
#[test]
fn rows_that_nothing_vouches_for_end_nothing() {
    struct Harm {
        what: &'static str,
        sql: &'static str,
        words: &'static str,
        /// Whether a check finds it.
        is_found: bool,
    }
    let forged = "INSERT INTO bin SELECT id, 0, 1, zeroblob(16) FROM snapshots WHERE name = 'wed'";
    let harms = [
        Harm {
            what: "a date that was moved",
            sql: "UPDATE bin SET purge_at = 1",
            words: "nothing vouches for its time in the bin",
            is_found: true,
        },
        Harm {
            what: "both dates",
            sql: "UPDATE bin SET deleted_at = 0, purge_at = 1",
            words: "nothing vouches for its time in the bin",
            is_found: true,
        },
        Harm {
            what: "another's place in the bin",
            sql: "UPDATE snapshots SET state = 'deleted' WHERE name = 'wed'; UPDATE bin SET snapshot =
                (SELECT id FROM snapshots WHERE name = 'wed'), purge_at = deleted_at",
            words: "nothing vouches for its time in the bin",
            is_found: true,
        },
        Harm {
            what: "a place that nobody gave",
            sql: "UPDATE snapshots SET state = 'deleted' WHERE name = 'wed'; FORGED",
            words: "nothing vouches for its time in the bin",
            is_found: true,
        },
        Harm {
            what: "a retention that nobody gave",
            sql: "UPDATE snapshots SET retention_days = 1 WHERE name = 'wed'",
            words: "nothing vouches for the retention of snapshot wed",
            is_found: false,
        },
        Harm {
            what: "a retention that was shortened",
            sql: "UPDATE snapshots SET retention_days = 1 WHERE name = 'thu'",
            words: "nothing vouches for the retention of snapshot thu",
            is_found: true,
        },
        Harm {
            what: "the moment that it counts from",
            sql: "UPDATE snapshots SET created_at = 0 WHERE name = 'thu'",
            words: "nothing vouches for the retention of snapshot thu",
            is_found: true,
        },
        Harm {
            what: "another's layer, in a row whose time is over",
            sql: "UPDATE snapshots SET layer = (SELECT layer FROM snapshots WHERE name = 'wed') WHERE name = 'short'",
            words: "name, size, owner, volume or layer were changed",
            is_found: true,
        },
    ];
    for Harm { what, sql, words, is_found } in harms {
        let case = Case::with_bin("300");
        case.change("tue", 1);
        case.change("wed", 2);
        case.ok(&["snapshot", "create", "web", "--name", "thu", "--retention-days", "300"]);
        case.change("short", 3);
        case.ok(&["snapshot", "set", "short", "--retention-days", "200"]);
        case.bin("tue");
        case.sql("r", &sql.replace("FORGED", forged));
        let time = if sql.contains("'short'") { "2031-10-01T00:00:00Z" } else { "2031-01-05T00:00:00Z" };
        case.time(time);
        let count = || {
            let catalog = rusqlite::Connection::open(case.world.path("r/catalog.db")).unwrap();
            let sql = "SELECT count(*) FROM snapshots";
            catalog.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let layers = case.world.layers();
        let said = case.once(&[]);
        assert!(said.contains("stays, though its time is over") && said.contains(words), "{what}: {said}");
        assert!(said.contains("1 put off"), "{what}: {said}");
        assert_eq!((count(), case.world.layers()), (5, layers), "{what}");
        let (exit, _, said) = case.run(CHECK);
        assert_eq!(exit, if is_found { 6 } else { 0 }, "{what}: {said}");
        if is_found {
            let (exit, _, said) = case.run(REPAIR);
            assert_eq!(exit, 0, "{what}: {said}");
            case.ok(CHECK);
            assert_eq!((count(), case.world.layers()), (5, layers), "{what}: {said}");
        } else {
            let applies = || case.json(&["snapshot", "show", "wed"])["retention_applies"].clone();
            let table = case.ok(&["snapshot", "show", "wed"]);
            assert!(applies() == false && table.contains("1 days, which nothing vouches for"), "{table}");
            // Set by a command, it is one.
            case.ok(&["snapshot", "set", "wed", "--retention-days", "1"]);
            assert!(applies() == true);
            assert!(case.once(&[]).contains("snapshot wed"), "{what}");
        }
    }
}

// X6
#[test]
fn a_repair_keeps_the_bin_or_gives_back() {
    let harm = "UPDATE volumes SET size_bytes = 4096";
    let case = Case::with_bin("7");
    case.change("tue", 1);
    case.ok(&["snapshot", "create", "web", "--name", "wed", "--retention-days", "3"]);
    case.rule("3", &["a=b"]);
    let (mon, tue) = (case.bin("mon"), case.bin("tue"));
    case.ok(&["snapshot", "create", "web", "--name", "tue"]);
    let (rules, before) = (case.json(&["bin", "list"]), case.json(&["snapshot", "list", "--deleted"]));
    case.sql("r", harm);
    case.fails(CHECK, 6, &[]);
    let (exit, _, said) = case.run(REPAIR);
    assert!(exit == 0 && said.contains("is in the bin, until 2031-01-08T00:00:00Z"), "{said}");
    case.ok(CHECK);
    assert_eq!(case.json(&["bin", "list"]), rules);
    let after = case.json(&["snapshot", "list", "--deleted"]);
    let dates = |list: &Value| -> Vec<_> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|s| [&s["id"], &s["name"], &s["purge_at"]].map(Value::clone))
            .collect()
    };
    assert_eq!(dates(&after), dates(&before));
    assert_eq!(case.names(false), ["tue", "wed"]);
    // Retentions go on, too.
    case.time("2031-01-04T00:00:00Z");
    assert!(case.once(&[]).contains("snapshot wed"));
    // Of which nobody knows until when they are there, they are there no more; another has the name of one.
    case.sql("r", &format!("{harm}; UPDATE bin SET purge_at = purge_at + 1"));
    let (exit, _, said) = case.run(REPAIR);
    assert!(
        exit == 0 && said.contains("nothing vouches for its time in the bin, and it is given back"),
        "{said}"
    );
    case.ok(CHECK);
    // `wed` was put there by the daemon: its date is moved as those of the others.
    assert_eq!(case.names(true), Vec::<String>::new());
    let names = case.names(false);
    assert_eq!(case.json(&["snapshot", "show", &mon])["name"], "mon");
    let given = case.json(&["snapshot", "show", &tue])["name"].as_str().unwrap().to_owned();
    assert!(given.starts_with("recovered-") && names.contains(&"tue".to_owned()), "{names:?}");
    case.ok(&["snapshot", "verify", &given]);
    // Without a catalog what was in the bin is one of those without a name.
    case.bin("mon");
    std::fs::write(case.world.path("r/catalog.db"), "nothing").unwrap();
    for name in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(case.world.path("r").join(name));
    }
    case.ok(REPAIR);
    case.ok(CHECK);
    assert_eq!(case.names(true), Vec::<String>::new());
    assert!(case.names(false).iter().all(|name| name.starts_with("recovered-")));
}

// X6
#[test]
fn one_of_a_group_goes_alone() {
    let case = Case::with_bin("7");
    case.ok(&["volume", "create", "--name", "db", "--size", "8M"]);
    case.ok(&["snapshot", "create", "web", "db", "--name", "both"]);
    let group = case.json(&["snapshot", "show", "both-db"])["group_id"].as_str().unwrap().to_owned();
    let id = case.bin("both-web");
    assert_eq!(case.names(false), ["both-db", "mon"]);
    case.ok(&["region", "init", &case.world.at("south"), "--name", "south", "-q"]);
    let copy =
        ["snapshot", "copy", &format!("here/{group}"), "--to", "south", "--name", "copied", "--wait", "-q"];
    case.ok(&copy);
    let listed = case.json(&["snapshot", "list", "--region", "south"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    case.ok(&["snapshot", "restore", &id, "--region", "here"]);
    assert_eq!(case.json(&["snapshot", "show", &id, "--region", "here"])["group_id"], group);
}
