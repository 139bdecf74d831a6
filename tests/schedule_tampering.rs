//! Guards against who can write a region's catalog, and not its keys: what a schedule is to do, what it took, and what it may delete is
//! believed of nobody but the root key. And against rows that can't be read.

mod schedule_support;

use schedule_support::{Case, hourlies, hourly};

/// Three hours of a schedule that keeps two, and one snapshot of a person's, which is the oldest.
fn busy() -> Case {
    let case = Case::hourly(&["--keep", "2", "--copy-to", "south", "--keep-copies", "2"]);
    case.ok(&["snapshot", "create", "--region", "north", "db", "--name", "mine"]);
    case.ok(&["snapshot", "copy", "north/mine", "--to", "south", "--name", "mine", "-q"]);
    for hour in 1..=3 {
        case.hour(hour);
        case.once(&[]);
    }
    assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", 2..=3)].concat());
    case
}

fn id_of(case: &Case, region: &str, name: &str) -> String {
    let shown = case.json(&["snapshot", "show", "--region", region, name]);
    shown["id"].as_str().unwrap().to_owned()
}

// X7
#[test]
fn a_schedule_that_was_changed_does_nothing() {
    for change in [
        "detail = replace(detail, '\"keep\":2', '\"keep\":1')",
        "detail = replace(detail, 3600, 60)",
        "name = 'other'",
        "created_at = created_at - 1",
        "mac = NULL",
        "mac = x'00'",
        "mac = zeroblob(16)",
        "detail = '{}'",
        "detail = 'nonsense'",
        "detail = replace(detail, '\"keep\":2', '\"keep\":0')",
        "detail = replace(detail, 3600, -3600)",
        "detail = replace(detail, 3600, 9223372036854775807)",
    ] {
        let case = busy();
        assert_eq!(case.sql("r", &format!("UPDATE schedules SET {change}")), 1);
        case.hour(9);
        let said = case.once(&[]);
        assert!(said.contains("schedule ") && said.contains("trying again"), "{change}: {said}");
        assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", 2..=3)].concat(), "{change}");
        assert_eq!(case.names("south").len(), 3, "{change}");
        let (exit, status, _) = case.run(&["status"]);
        assert!(exit == 6 && status.contains("schedule "), "{change}: {status}");
        // It is listed, and can be taken away.
        let listed = case.json(&["schedule", "list", "--region", "north"]);
        assert!(!listed[0]["error"].is_null(), "{change}: {listed}");
        case.ok(&["schedule", "delete", "--region", "north", listed[0]["id"].as_str().unwrap()]);
        assert_eq!(case.run(&["status"]).0, 0, "{change}");
    }
}

// X7
#[test]
fn what_it_did_not_take_it_does_not_delete() {
    for mac in ["mac", "zeroblob(16)", "NULL"] {
        takes_nothing_else(mac);
    }
}

fn takes_nothing_else(mac: &str) {
    let case = busy();
    let (mine, copy) = (id_of(&case, "north", "mine"), id_of(&case, "south", "mine"));
    let record = "INSERT INTO schedule_snapshots SELECT";
    // A row of one's own with the MAC of another, or none; an id that is none; the same of a copy.
    case.sql(
        "r",
        &format!("{record} '{mine}', schedule, volume, 0, 'mine', {mac}, 1 FROM schedule_snapshots LIMIT 1"),
    );
    case.sql(
        "r",
        &format!(
            "{record} '{mine}x', schedule, volume, 1, 'mine', zeroblob(16), 1 FROM schedule_snapshots LIMIT 1"
        ),
    );
    let of_copy = "INSERT INTO schedule_copies SELECT";
    case.sql(
        "s",
        &format!("{of_copy} '{copy}', schedule, source, volume, 0, {mac} FROM schedule_copies LIMIT 1"),
    );
    case.sql("s", "UPDATE snapshots SET locked_until = NULL, lock_mode = NULL");
    for hour in 4..=6 {
        case.hour(hour);
        case.once(&[]);
        assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", hour - 1..=hour)].concat());
        let mut copies = case.names("south");
        copies.sort();
        assert_eq!(copies, [hourlies("db", hour - 1..=hour), vec!["mine".into()]].concat());
    }
    // Of its own one whose row is given to another time is not its own any more.
    let newest = id_of(&case, "north", &hourly("db", 6));
    assert_eq!(
        case.sql("r", &format!("UPDATE schedule_snapshots SET due = 7 WHERE snapshot = '{newest}'")),
        1
    );
    case.hour(7);
    case.once(&[]);
    case.hour(8);
    case.once(&[]);
    assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", 6..=8)].concat());
}

// X7
#[test]
fn what_is_not_whole_counts_for_nothing() {
    let case = busy();
    // By their rows the newest are whole, and their layers know nothing of them: the older ones stay.
    case.sql("r", "UPDATE snapshots SET mac = zeroblob(16) WHERE name LIKE '%T03%'");
    case.hour(4);
    case.once(&[]);
    assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", 2..=4)].concat());
    // Nor is one deleted that is not what it was when it was taken: its row may name another's layer.
    case.hour(5);
    case.once(&[]);
    case.hour(6);
    case.once(&[]);
    let names = case.names("north");
    assert_eq!(names, ["mine".into(), hourly("db", 3), hourly("db", 5), hourly("db", 6)]);
}

// X7
#[test]
fn times_that_were_changed_run_nothing_twice() {
    let case = busy();
    case.sql("r", "UPDATE schedules SET last_due = NULL");
    case.once(&[]);
    assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", 2..=3)].concat());
    assert_eq!(case.shown("hourly")["last_due_at"], "2031-03-01T03:00:00Z");
    case.sql("r", "UPDATE schedules SET last_due = 9000000000000000");
    case.once(&[]);
    assert!(case.error("hourly").contains("at a time that is to come"), "{}", case.error("hourly"));
    case.sql("r", "UPDATE schedules SET last_due = 9223372036854775807");
    let said = case.once(&[]);
    assert!(!said.contains("panicked"), "{said}");
    let (exit, status, _) = case.run(&["status"]);
    assert!(exit == 6 && status.contains("last_due of sched-"), "{status}");
    case.sql("r", "UPDATE schedules SET last_due = -377705000000000000");
    case.hour(4);
    case.once(&[]);
    assert_eq!(case.names("north"), [vec!["mine".into()], hourlies("db", 3..=4)].concat());
    assert_eq!(case.error("hourly"), "");
}

// X7
#[test]
fn rows_that_do_not_read_stop_no_others() {
    let case = busy();
    case.schedule(&["--name", "other", "--volume", "db", "--every", "1h"]);
    for (dir, harm) in [
        ("r", "UPDATE schedules SET created_at = 9223372036854775807 WHERE name = 'hourly'"),
        (
            "r",
            "INSERT INTO schedule_snapshots SELECT 'nonsense', schedule, volume, 5, 'x', mac, 0 FROM schedule_snapshots LIMIT 1",
        ),
        ("s", "INSERT INTO schedule_copies VALUES ('nonsense', 'x', 'y', 'z', 5, NULL)"),
    ] {
        assert_eq!(case.sql(dir, harm), 1, "{harm}");
    }
    case.hour(4);
    let said = case.once(&[]);
    assert!(!said.contains("panicked"), "{said}");
    let names = case.names("north");
    assert!(names.contains(&"other-db-20310301T040000Z".to_owned()), "{names:?}");
    assert!(!names.contains(&hourly("db", 4)));
    case.fails(&["schedule", "show", "--region", "north", "hourly"], 6, &["created_at of sched-"]);
    let words = "a schedule can't be read, and is not carried out: ";
    let (exit, found, _) = case.run(&["region", "check", "--region", "north"]);
    assert!(exit == 6 && found.contains(words), "{found}");
    let (exit, status, _) = case.run(&["status"]);
    assert!(exit == 6 && status.contains(words), "{status}");
    case.ok(&["schedule", "delete", "--region", "north", "hourly"]);
    assert_eq!(case.json(&["schedule", "list", "--region", "north"]).as_array().unwrap().len(), 1);
    case.ok(&["region", "check", "--region", "north"]);
}
