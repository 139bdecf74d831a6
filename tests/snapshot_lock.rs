//! Guarded here: a snapshot that is deleted while a lock forbids it, a lock that is lifted by who may not, or one that stays
//! when its time is over.

#[path = "common/clocked.rs"]
mod clocked;
#[path = "common/world.rs"]
mod world;

use clocked::Case;
use serde_json::Value;
use world::{MIB, pattern, read_at, write_at};

const MODES: [&str; 2] = ["governance", "compliance"];

impl Case {
    #[track_caller]
    fn lock(&self, until: &str, mode: &str) {
        self.ok(&["snapshot", "lock", "mon", "--until", until, "--mode", mode]);
    }

    #[track_caller]
    fn refuses(&self, until: &str, mode: &str, words: &[&str]) {
        self.fails(&["snapshot", "lock", "mon", "--until", until, "--mode", mode], 4, words);
    }

    /// What `show` and `list` say of the lock, in each form.
    #[track_caller]
    fn is_locked(&self, lock: Option<(&str, &str)>) {
        let expected = lock.map_or((Value::Null, Value::Null), |(until, mode)| (until.into(), mode.into()));
        let listed = self.json(&["snapshot", "list", "--filter", "name=mon"])[0].clone();
        for shown in [self.json(&["snapshot", "show", "mon"]), listed] {
            assert_eq!((&shown["locked_until"], &shown["lock_mode"]), (&expected.0, &expected.1), "{shown}");
        }
        let table = self.ok(&["snapshot", "show", "mon"]);
        let line = table.lines().find(|line| line.starts_with("lock")).expect("a line of the lock");
        let words = lock.map_or(String::new(), |(until, mode)| format!("until {until} ({mode})"));
        assert_eq!(line.trim_start_matches("lock").trim(), words, "{table}");
    }
}

const DELETE: &[&str] = &["snapshot", "delete", "mon"];
const UNLOCK: &[&str] = &["snapshot", "unlock", "mon"];

// X6
#[test]
fn a_locked_snapshot_is_not_deleted_until_its_time_is_over() {
    for mode in MODES {
        let case = Case::with_mon();
        case.is_locked(None);
        case.lock("2031-02-01", mode);
        case.is_locked(Some(("2031-02-01T00:00:00Z", mode)));
        let said = case.fails(DELETE, 4, &["snapshot mon is locked until 2031-02-01T00:00:00Z", mode]);
        assert_eq!(said.contains("snapshot unlock mon"), mode == "governance", "{said}");
        case.time("2031-01-31T23:59:59.999999Z");
        case.fails(DELETE, 4, &["locked"]);
        case.time("2031-02-01T00:00:00Z");
        case.is_locked(None);
        case.ok(DELETE);
        assert_eq!(case.json(&["snapshot", "list"]), Value::Array(vec![]));
    }
}

// X6
#[test]
fn a_mount_refuses_as_the_command_does() {
    let case = Case::with_mon();
    case.ok(&["mount", &case.world.mnt()]);
    write_at(&case.world.file("web"), 0, &pattern(4096, 1)).unwrap();
    for mode in MODES {
        case.lock("2031-02-01", mode);
        case.fails(DELETE, 4, &["locked until 2031-02-01T00:00:00Z", mode]);
    }
    case.time("2031-02-01T00:00:01Z");
    case.ok(DELETE);
    case.ok(&["unmount", &case.world.mnt()]);
}

// X6
#[test]
fn governance_is_its_owners_to_change() {
    let case = Case::with_mon();
    let modes = |until: &str, mode: &str| {
        case.lock(until, mode);
        case.is_locked(Some((&format!("{until}T00:00:00Z"), mode)));
    };
    for until in ["2031-03-01", "2031-02-01", "2031-04-01", "2031-04-01"] {
        modes(until, "governance");
    }
    let shown = case.json(UNLOCK);
    assert_eq!((&shown["locked_until"], &shown["lock_mode"]), (&Value::Null, &Value::Null), "{shown}");
    case.is_locked(None);
    // Again: nothing is left to do.
    case.ok(UNLOCK);
    modes("2031-03-01", "governance");
    modes("2031-02-01", "compliance");
    case.fails(UNLOCK, 4, &["compliance"]);
}

// X6
#[test]
fn compliance_is_only_extended() {
    let case = Case::with_mon();
    case.lock("2031-03-01T10:00:00+02:00", "compliance");
    let whole = Some(("2031-03-01T08:00:00Z", "compliance"));
    case.fails(UNLOCK, 4, &["snapshot mon is locked until 2031-03-01T08:00:00Z", "nobody"]);
    for (until, mode) in [
        ("2031-03-01T07:59:59.999999Z", "compliance"),
        ("2031-02-01", "compliance"),
        ("2031-03-01T08:00:00Z", "governance"),
        ("2031-05-01", "governance"),
    ] {
        case.refuses(until, mode, &["locked until 2031-03-01T08:00:00Z", "extended"]);
        case.is_locked(whole);
    }
    case.lock("2031-03-01T08:00:00Z", "compliance");
    case.is_locked(whole);
    case.lock("2031-04-01", "compliance");
    case.is_locked(Some(("2031-04-01T00:00:00Z", "compliance")));
    // What has expired is none: it can be lifted, and another one be of either mode.
    case.time("2031-04-01T00:00:00Z");
    case.ok(UNLOCK);
    case.lock("2031-04-02", "compliance");
    case.time("2031-04-02T00:00:00Z");
    case.lock("2031-04-03", "governance");
    case.is_locked(Some(("2031-04-03T00:00:00Z", "governance")));
}

// X6
#[test]
fn a_lock_ends_in_the_future_and_within_a_hundred_years() {
    let case = Case::with_mon();
    for until in ["2030-12-31", "2031-01-01", "2031-01-01T00:00:00Z", "2031-01-01T00:00:00.0000001Z"] {
        case.refuses(until, "governance", &["later date"]);
    }
    for until in ["2131-01-01T00:00:00.000001Z", "9999-12-30"] {
        case.refuses(until, "compliance", &["100 years"]);
    }
    case.is_locked(None);
    case.lock("2131-01-01", "governance");
    for (until, mode) in
        [("tomorrow", "governance"), ("2031-05-01T10:00:00", "compliance"), ("2031-05-01", "legal")]
    {
        case.fails(&["snapshot", "lock", "mon", "--until", until, "--mode", mode], 2, &[]);
    }
    case.fails(&["snapshot", "lock", "mon", "--until", "2031-05-01"], 2, &["--mode"]);
    case.fails(&["snapshot", "lock", "mon", "--mode", "governance"], 2, &["--until"]);
    case.fails(
        &["snapshot", "lock", "tue", "--until", "2031-05-01", "--mode", "governance"],
        3,
        &["\"tue\""],
    );
    case.fails(&["snapshot", "unlock", "tue"], 3, &["\"tue\""]);
}

// X6
#[test]
fn only_the_owner_of_a_whole_snapshot_locks_it() {
    let case = Case::with_mon();
    case.sql("r", "INSERT INTO accounts VALUES ('acc-00000000000000001', 'other', 0, 0)");
    let as_other = ["--account", "other"];
    let lock = ["snapshot", "lock", "mon", "--until", "2031-02-01", "--mode", "governance"];
    case.fails(&[&lock[..], &as_other].concat(), 4, &["other"]);
    case.is_locked(None);
    case.ok(&lock);
    case.fails(&[UNLOCK, &as_other].concat(), 4, &["other"]);
    case.is_locked(Some(("2031-02-01T00:00:00Z", "governance")));
    case.ok(UNLOCK);
    for state in ["processing", "failed"] {
        case.sql("r", &format!("UPDATE snapshots SET state = '{state}'"));
        case.fails(&lock, 4, &[state, "whole"]);
        case.is_locked(None);
    }
    case.sql("r", "UPDATE snapshots SET state = 'success'");
    case.ok(&lock);
}

/// A lock and a deletion at the same moment: one of them is refused, always.
// X6
#[test]
fn a_lock_taken_beside_a_deletion_is_never_missed() {
    let case = Case::with_mon();
    for turn in 0..15 {
        let name = format!("s{turn}");
        case.ok(&["snapshot", "create", "web", "--name", &name]);
        let locking = ["snapshot", "lock", &name, "--until", "2031-02-01", "--mode", "compliance"];
        let (locked, deleted) = std::thread::scope(|scope| {
            let lock = scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(turn));
                case.run(&locking)
            });
            let deletion = case.run(&["snapshot", "delete", &name]);
            (lock.join().unwrap(), deletion)
        });
        match (locked.0, deleted.0) {
            (0, 4) => case.fails(&["snapshot", "delete", &name], 4, &["locked"]),
            (3, 0) => case.fails(&["snapshot", "show", &name], 3, &[]),
            other => panic!("{other:?}: {locked:?} {deleted:?}"),
        };
    }
}

// X6
#[test]
fn a_locked_snapshot_outlives_its_volume_and_a_rollback() {
    let case = Case::with_mon();
    let web = case.world.file("web");
    case.ok(&["mount", &case.world.mnt()]);
    write_at(&web, 0, &pattern(MIB as usize, 1)).unwrap();
    case.ok(&["snapshot", "create", "web", "--name", "kept"]);
    write_at(&web, 0, &pattern(MIB as usize, 2)).unwrap();
    case.ok(&["snapshot", "lock", "kept", "--until", "2031-02-01", "--mode", "compliance"]);
    case.ok(&["volume", "rollback", "web", "--snapshot", "mon"]);
    assert!(read_at(&web, 0, 4096).unwrap() == [0; 4096]);
    let whole = || read_at(&case.world.snapshot_file("kept"), 0, MIB as usize).unwrap();
    assert!(whole() == pattern(MIB as usize, 1));
    case.ok(&["volume", "delete", "web"]);
    case.fails(&["snapshot", "delete", "kept"], 4, &["locked"]);
    assert!(whole() == pattern(MIB as usize, 1));
    case.ok(&["unmount", &case.world.mnt()]);
    case.ok(&["snapshot", "verify", "kept"]);
}

const REPAIR: &[&str] = &["region", "check", "--repair", "--yes"];

// X6
#[test]
fn a_repair_keeps_locks() {
    for mode in MODES {
        let case = Case::with_mon();
        case.ok(&["snapshot", "create", "web", "--name", "tue"]);
        case.lock("2031-02-01", mode);
        case.sql("r", "UPDATE volumes SET size_bytes = 4096");
        case.fails(&["region", "check"], 6, &[]);
        let shown = case.json(REPAIR);
        assert_eq!(shown["repaired"]["catalog_rebuilt"], true, "{shown}");
        case.ok(&["region", "check"]);
        case.is_locked(Some(("2031-02-01T00:00:00Z", mode)));
        assert_eq!(case.json(&["snapshot", "show", "tue"])["lock_mode"], Value::Null);
        case.fails(DELETE, 4, &["locked"]);
    }
}

/// Half a lock, or another word than those there are, forbids until somebody has looked; the repair says that it is lost.
// X6
#[test]
fn a_lock_that_does_not_read_is_damage() {
    for harm in
        ["lock_mode = NULL", "lock_mode = 'x'", "locked_until = NULL", "locked_until = 9223372036854775807"]
    {
        let case = Case::with_mon();
        case.lock("2031-02-01", "compliance");
        case.sql("r", &format!("UPDATE snapshots SET {harm}"));
        for line in [DELETE, UNLOCK, &["region", "check"], &["snapshot", "show", "mon"]] {
            case.fails(line, 6, &[]);
        }
        let (exit, _, stderr) = case.run(REPAIR);
        assert_eq!(exit, 0, "{harm}: {stderr}");
        assert!(stderr.contains("its lock does not read"), "{harm}: {stderr}");
        case.ok(&["region", "check"]);
        case.is_locked(None);
    }
}
