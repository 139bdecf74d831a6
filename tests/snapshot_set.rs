//! Guarded here: a `snapshot set` that changes more than it was told, or half of it.

mod copy_support;

use copy_support::{Disk, World};
use serde_json::{Value, json};
use terrane::catalog::DiskKind;

/// A snapshot `mon` with words, two tags and a retention, and `tue` with none.
fn world() -> (World, Disk) {
    let world = World::new(&["north"]);
    let disk = Disk::new(&world, "north", 1 << 20, None, DiskKind::Data);
    let volume = disk.id.to_string();
    let create = ["snapshot", "create", &volume, "--region", "north", "--name"];
    let said = ["mon", "--description", "before", "--tag", "a=1", "--tag", "b=2", "--retention-days", "7"];
    world.ok(&[&create[..], &said].concat());
    world.ok(&[&create[..], &["tue"]].concat());
    (world, disk)
}

fn line<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["snapshot", "set", "mon", "--region", "north"], args].concat()
}

fn shown(world: &World, name: &str) -> Value {
    world.json(&["snapshot", "show", name, "--region", "north"])
}

fn tags(of: &[(&str, &str)]) -> Value {
    of.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

/// Does it, and expects these fields to change, and no other of this snapshot or the other one.
#[track_caller]
fn changes(world: &World, args: &[&str], fields: &[(&str, Value)]) {
    let (mut expected, other) = (shown(world, "mon"), shown(world, "tue"));
    world.ok(&line(args));
    for (field, value) in fields {
        assert!(expected[*field] != *value, "{args:?}: {field} is so already");
        expected[*field] = value.clone();
    }
    assert_eq!(shown(world, "mon"), expected, "{args:?}");
    assert_eq!(shown(world, "tue"), other, "{args:?}");
}

#[track_caller]
fn refused(world: &World, args: &[&str], exit: i32, words: &[&str]) {
    let before = shown(world, "mon");
    world.fails(&line(args), exit, words);
    assert_eq!(shown(world, "mon"), before, "{args:?}");
}

// S30, S31
#[test]
fn it_changes_what_it_was_told_alone() {
    let (world, _disk) = world();
    changes(&world, &["--description", "after"], &[("description", json!("after"))]);
    changes(&world, &["--no-description"], &[("description", Value::Null)]);
    changes(&world, &["--retention-days", "30"], &[("retention_days", json!(30))]);
    let none = [("retention_days", Value::Null), ("retention_applies", Value::Null)];
    changes(&world, &["--no-retention"], &none);
    changes(&world, &["--tag", "c=3"], &[("tags", tags(&[("a", "1"), ("b", "2"), ("c", "3")]))]);
    changes(
        &world,
        &["--tag", "a=x=y", "--tag", "b="],
        &[("tags", tags(&[("a", "x=y"), ("b", ""), ("c", "3")]))],
    );
    changes(
        &world,
        &["--remove-tag", "b", "--remove-tag", "none"],
        &[("tags", tags(&[("a", "x=y"), ("c", "3")]))],
    );
    let all = [
        "--description",
        "all of it",
        "--tag",
        "d=4",
        "--remove-tag",
        "a",
        "--remove-tag",
        "c",
        "--retention-days",
        "1",
    ];
    let of_all = [
        ("description", json!("all of it")),
        ("tags", tags(&[("d", "4")])),
        ("retention_days", json!(1)),
        ("retention_applies", json!(true)),
    ];
    changes(&world, &all, &of_all);
    // What is so already, and a tag that is not there.
    changes(&world, &all, &[]);
    changes(&world, &["--remove-tag", "none"], &[]);
}

// S30, S31
#[test]
fn what_breaks_a_limit_changes_nothing() {
    let (world, _disk) = world();
    refused(&world, &[], 2, &["--description"]);
    let (long, key) = ("x".repeat(257), format!("{}=v", "k".repeat(129)));
    for bad in [
        &["--description", "x"][..],
        &["--description", &long],
        &["--tag", "novalue"],
        &["--tag", "=v"],
        &["--tag", &key],
        &["--retention-days", "-1"],
        &["--retention-days", "x"],
        &["--tag", "c=1", "--tag", "c=2"],
        &["--tag", "c=1", "--remove-tag", "c"],
        &["--description", "words", "--no-description"],
        &["--retention-days", "1", "--no-retention"],
    ] {
        refused(&world, &[bad, &["--tag", "new=1"]].concat(), 2, &[]);
    }
    // With the two that are there one too many: what else was told is not done either.
    let many: Vec<String> = (0..19).map(|n| format!("t{n}=v")).collect();
    let given = |n: usize| many[..n].iter().flat_map(|tag| ["--tag", tag]).collect::<Vec<_>>();
    let also = ["--description", "words", "--retention-days", "99"];
    refused(&world, &[&given(19)[..], &also].concat(), 4, &["at most 20 tags"]);
    world.ok(&line(&[&given(19)[..], &["--remove-tag", "a"]].concat()));
    assert_eq!(shown(&world, "mon")["tags"].as_array().unwrap().len(), 20);
    refused(&world, &["--tag", "one=more", "--no-description"], 4, &["at most 20 tags"]);
    // In place of one that is there it is none more.
    world.ok(&line(&["--tag", "b=other"]));
    let (description, key) = ("é".repeat(256), format!("{}=v", "k".repeat(128)));
    world.ok(&line(&["--description", &description, "--tag", &key, "--remove-tag", "b"]));
    assert_eq!(shown(&world, "mon")["description"], description);
    world.fails(&["snapshot", "set", "wed", "--region", "north", "--no-retention"], 3, &["wed"]);
}

// X6
#[test]
fn a_locked_one_can_be_described() {
    let (world, _disk) = world();
    let lock =
        ["snapshot", "lock", "mon", "--region", "north", "--until", "2999-01-01", "--mode", "compliance"];
    world.fails(&lock, 4, &["100 years"]);
    let until = (jiff::Timestamp::now() + std::time::Duration::from_secs(86_400)).to_string();
    let lock = ["snapshot", "lock", "mon", "--region", "north", "--until", &until, "--mode", "compliance"];
    world.ok(&lock);
    changes(&world, &["--description", "kept"], &[("description", json!("kept"))]);
    assert_eq!(shown(&world, "mon")["lock_mode"], "compliance");
    world.fails(&["snapshot", "delete", "mon", "--region", "north"], 4, &["locked"]);
}
