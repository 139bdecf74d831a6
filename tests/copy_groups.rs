//! Guarded here: a group of snapshots whose copy is none any more, or of which a part is asked for where all can't be.

mod copy_support;

use copy_support::daemon::named;
use copy_support::{Disk, Random, World};
use serde_json::Value;
use terrane::catalog::{DiskKind, SnapshotState, TaskState};

const MIB: usize = 1 << 20;

/// Two volumes of north, `web` and `logs`, and their snapshots `night-web` and `night-logs` of one moment.
fn group() -> (World, [Vec<u8>; 2], String) {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(41);
    let names = ["web", "logs"];
    let models = names.map(|name| {
        let mut disk = Disk::new(&world, "north", 4 * MIB, Some(world.default_key("north")), DiskKind::Data);
        disk.change(&world, &format!("first-{name}"), |c| c.random(&mut random, 0, MIB));
        world.ok(&["snapshot", "delete", &format!("first-{name}"), "--region", "north"]);
        world.ok(&["volume", "set", &disk.id.to_string(), "--name", name, "--region", "north"]);
        disk.model
    });
    world.ok(&["snapshot", "create", "web", "logs", "--name", "night", "--region", "north"]);
    let group = world.json(&["snapshot", "show", "night-web", "--region", "north"])["group_id"].clone();
    (world, models, group.as_str().unwrap().to_owned())
}

// X5
#[test]
fn a_copied_group_is_a_group() {
    let (world, models, group) = group();
    let source = format!("north/{group}");
    let copy = ["snapshot", "copy", &source, "--to", "south", "--name", "off", "--tag", "env=prod"];
    let plans = world.json(&[&copy[..], &["--dry-run"]].concat());
    let plans = plans.as_array().unwrap();
    assert_eq!(plans.len(), 2);
    assert_eq!((&plans[0]["name"], &plans[1]["name"]), (&"off-night-logs".into(), &"off-night-web".into()));
    assert_eq!(plans[0]["ship_bytes"], Value::from(MIB));
    assert_eq!(world.holdings("south"), (0, 0, 0), "S32");
    let ids = world.ok(&copy);
    assert_eq!(ids.lines().count(), 2);
    // The same words ask for the same copies, also where one of them is there already.
    world.ok(&["task", "cancel", "off-night-web", "--region", "south"]);
    let again = world.ok(&[&copy[..], &["--wait"]].concat());
    assert_eq!((again.lines().next(), again.lines().count()), (ids.lines().next(), 2));
    let [logs, web] = ["off-night-logs", "off-night-web"].map(|name| named(&world, "south", name).unwrap());
    assert_eq!((logs.state, web.state), (SnapshotState::Success, SnapshotState::Success));
    // All are there: it is what was asked.
    assert_eq!(world.ok(&[&copy[..], &["--wait"]].concat()), again);
    let of = |row: &terrane::catalog::Snapshot| row.group.unwrap().to_string();
    assert!(of(&web) == of(&logs) && of(&web) != group, "a group of its own");
    world.equal("south", web.id, &models[0]);
    world.equal("south", logs.id, &models[1]);
    // By the daemon as well, and back.
    let source = format!("south/{}", of(&web));
    world.ok(&["snapshot", "copy", &source, "--to", "north", "--name", "back"]);
    world.ok(&["daemon", "--once"]);
    let back =
        ["back-off-night-web", "back-off-night-logs"].map(|name| named(&world, "north", name).unwrap());
    assert_eq!(back[0].group, back[1].group);
    assert_eq!(back[0].shipped_bytes + back[1].shipped_bytes, 0, "north has all of it");
    world.equal("north", back[0].id, &models[0]);
}

#[test]
fn all_of_a_group_is_asked_for_or_nothing() {
    let (world, _, group) = group();
    let source = format!("north/{group}");
    let copy = ["snapshot", "copy", &source, "--to", "south", "--name"];
    world.ok(&["volume", "create", "--size", "1M", "--name", "vol", "--region", "south"]);
    world.ok(&["snapshot", "create", "vol", "--name", "off-night-web", "--region", "south"]);
    let before = world.holdings("south");
    world.fails(&[&copy[..], &["off"]].concat(), 5, &["off-night-web"]);
    let long = "x".repeat(125);
    world.fails(&[&copy[..], &[&long]].concat(), 2, &["128"]);
    world.fails(&[&copy[..], &["other", "--unencrypted"]].concat(), 4, &["is encrypted"]);
    assert_eq!(world.holdings("south"), before);
    assert!(world.region("south").catalog().unwrap().read(|tx| tx.tasks()).unwrap().is_empty());
    world.fails(
        &["snapshot", "copy", "north/grp-00000000000000000", "--to", "south", "--name", "off"],
        3,
        &["grp-0"],
    );
    // One that can't be made is no end of the others.
    world.ok(&[&copy[..], &["more"]].concat());
    world.ok(&["snapshot", "delete", "night-logs", "--region", "north"]);
    assert_eq!(world.run(&["daemon", "--once"]).status.code(), Some(1));
    let mut states: Vec<_> = world
        .region("south")
        .catalog()
        .unwrap()
        .read(|tx| tx.tasks())
        .unwrap()
        .iter()
        .map(|t| t.state)
        .collect();
    states.sort_by_key(|state| state.as_str());
    assert_eq!(states, [TaskState::Failed, TaskState::Succeeded]);
}

/// Volumes made from one snapshot, that nobody wrote to: snapshots of the very same moment, each a base of the other.
#[test]
fn a_group_of_clones_does_not_wait_for_itself() {
    let (world, models, _) = group();
    for name in ["one", "two", "three"] {
        world.ok(&["volume", "create", "--snapshot", "night-web", "--name", name, "--region", "north"]);
    }
    world.ok(&["snapshot", "create", "one", "two", "three", "--name", "same", "--region", "north"]);
    let group = world.json(&["snapshot", "show", "same-one", "--region", "north"])["group_id"].clone();
    let source = format!("north/{}", group.as_str().unwrap());
    world.ok(&["snapshot", "copy", &source, "--to", "south", "--name", "off", "--wait"]);
    let mut shipped = 0;
    for name in ["one", "two", "three"] {
        let row = named(&world, "south", &format!("off-same-{name}")).unwrap();
        world.equal("south", row.id, &models[0]);
        shipped += row.shipped_bytes;
    }
    assert_eq!(shipped, MIB as u64, "once for all of them");
}
