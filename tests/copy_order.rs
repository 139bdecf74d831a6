//! Guarded here: copies that are made in another order than they were asked for, where the clock did not tell those moments apart.

mod schedule_support;

use schedule_support::Case;
use serde_json::Value;

const COPIES: usize = 20;

fn names(tasks: &[Value]) -> Vec<&str> {
    tasks.iter().map(|task| task["name"].as_str().unwrap()).collect()
}

/// X5: under a clock that stands still, by many commands and within one.
#[test]
fn copies_are_made_in_the_order_they_were_asked_for() {
    let case = Case::new();
    case.volume("db", &[]);
    case.volume("log", &[]);
    let asked: Vec<String> = (0..COPIES).map(|n| format!("copy-{n}")).collect();
    case.ok(&["snapshot", "create", "db", "--region", "north", "--name", "one"]);
    for name in &asked {
        case.ok(&["snapshot", "copy", "north/one", "--to", "south", "--name", name, "-q"]);
    }
    let listed = || case.json(&["task", "list", "--region", "south"]).as_array().unwrap().clone();
    let queued = listed();
    assert_eq!(names(&queued), asked);
    let places: Vec<u64> = queued.iter().map(|task| task["queue_position"].as_u64().unwrap()).collect();
    assert_eq!(places, (1..=COPIES as u64).collect::<Vec<_>>());
    let said = case.once(&["--jobs", "1"]);
    let begun: Vec<_> = said.lines().filter(|line| line.ends_with("copy begins")).collect();
    assert_eq!(begun.len(), COPIES, "{said}");
    assert!(
        begun.iter().zip(&asked).all(|(line, name)| line.contains(&format!("({name} in region"))),
        "{said}"
    );
    assert_eq!(names(&listed()), asked);
    // What a row says to lie further ahead moves nothing.
    let ahead =
        "UPDATE tasks SET created_at = created_at + 3600000000 WHERE id = (SELECT max(id) FROM tasks)";
    assert_eq!(case.sql("s", ahead), 1);
    case.ok(&["snapshot", "create", "db", "log", "--region", "north", "--name", "both"]);
    let group = case.json(&["snapshot", "show", "both-db", "--region", "north"])["group_id"].clone();
    let of_group = format!("north/{}", group.as_str().unwrap());
    case.ok(&["snapshot", "copy", &of_group, "--to", "south", "--name", "late", "-q"]);
    let mut times: Vec<String> = listed()
        .iter()
        .filter(|task| task["name"].as_str().unwrap().starts_with("late"))
        .map(|task| task["created_at"].as_str().unwrap().to_owned())
        .collect();
    assert!(times.iter().all(|time| time.starts_with("2031-03-01T00:00:00.0000")), "{times:?}");
    times.dedup();
    assert_eq!(times.len(), 2, "each has its moment: {times:?}");
}
