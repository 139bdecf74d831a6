//! Guarded here: a filter of `snapshot list` that leaves a snapshot out, lets another one through, or takes a slip of the pen
//! for a condition that nothing fulfils.

mod copy_support;

use copy_support::{Disk, World};
use terrane::catalog::DiskKind;

/// In south `web-1`, `web-2`, `db-1` and a copy of north's `origin`, with tags.
fn world() -> (World, [Disk; 2], String) {
    let world = World::new(&["north", "south"]);
    let mut origin = Disk::new(&world, "north", 1 << 20, None, DiskKind::Data);
    let id = origin.change(&world, "origin", |c| c.write(0, &[5; 4096])).to_string();
    let disks = ["web", "db"].map(|called| {
        let disk = Disk::new(&world, "south", 1 << 20, None, DiskKind::Data);
        world.ok(&["volume", "set", &disk.id.to_string(), "--name", called, "--region", "south"]);
        disk
    });
    for (volume, called, tags) in [
        ("web", "web-1", &["env=prod", "team=a"][..]),
        ("web", "web-2", &["env=test", "team=a"]),
        ("db", "db-1", &["env=prod", "note=a=b", "empty="]),
    ] {
        let mut line = vec!["snapshot", "create", volume, "--name", called, "--region", "south"];
        tags.iter().for_each(|tag| line.extend(["--tag", tag]));
        world.ok(&line);
    }
    world.ok(&[
        "snapshot",
        "copy",
        "--wait",
        "north/origin",
        "--to",
        "south",
        "--name",
        "web-copy",
        "--tag",
        "env=prod",
    ]);
    (world, disks, id)
}

#[track_caller]
fn lists(world: &World, filters: &[&str], names: &[&str]) {
    let mut line = vec!["snapshot", "list", "--region", "south"];
    filters.iter().for_each(|filter| line.extend(["--filter", filter]));
    let shown = world.json(&line);
    let found: Vec<_> = shown.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(found, names, "{filters:?}");
    assert_eq!(world.ok(&line).lines().count(), 1 + names.len(), "{filters:?}");
}

#[test]
fn each_filter_lets_its_own_through() {
    let (world, disks, origin) = world();
    let all = ["web-1", "web-2", "db-1", "web-copy"];
    lists(&world, &[], &all);
    lists(&world, &["tag:env=prod"], &["web-1", "db-1", "web-copy"]);
    lists(&world, &["tag:note=a=b"], &["db-1"]);
    lists(&world, &["tag:empty="], &["db-1"]);
    lists(&world, &["tag:env="], &[]);
    lists(&world, &["tag:env=pro"], &[]);

    lists(&world, &["state=success"], &all);
    for state in ["processing", "failed"] {
        lists(&world, &[&format!("state={state}")], &[]);
        let catalog = rusqlite::Connection::open(world.path("south/catalog.db")).unwrap();
        let set = "UPDATE snapshots SET state = ?1 WHERE name = 'web-2'";
        catalog.execute(set, [state]).unwrap();
        lists(&world, &[&format!("state={state}")], &["web-2"]);
        lists(&world, &["state=success"], &["web-1", "db-1", "web-copy"]);
        catalog.execute(set, ["success"]).unwrap();
    }

    lists(&world, &["source=north"], &["web-copy"]);
    lists(&world, &[&format!("source={origin}")], &["web-copy"]);
    lists(&world, &["source=south"], &[]);
    lists(&world, &["source=nor"], &[]);

    let web = disks[0].id.to_string();
    lists(&world, &["volume=web"], &["web-1", "web-2"]);
    lists(&world, &[&format!("volume={web}")], &["web-1", "web-2"]);
    lists(&world, &[&format!("volume={}", &web[..16])], &["web-1", "web-2"]);
    // A snapshot outlives its volume, and is found by that one's whole id.
    world.ok(&["volume", "delete", "web", "--region", "south"]);
    lists(&world, &[&format!("volume={web}")], &["web-1", "web-2"]);
    let line = ["snapshot", "list", "--region", "south", "--filter", "volume=web"];
    world.fails(&line, 3, &["region south has no volume \"web\""]);

    lists(&world, &["name=db-1"], &["db-1"]);
    lists(&world, &["name=web"], &[]);
    lists(&world, &["name=web-*"], &["web-1", "web-2", "web-copy"]);
    lists(&world, &["name=*-1"], &["web-1", "db-1"]);
    lists(&world, &["name=*"], &all);
}

#[test]
fn of_several_all_must_hold() {
    let (world, _disks, origin) = world();
    lists(&world, &["tag:env=prod", "tag:team=a"], &["web-1"]);
    lists(&world, &["tag:env=prod", "tag:env=test"], &[]);
    lists(&world, &["name=web*", "tag:env=prod"], &["web-1", "web-copy"]);
    lists(&world, &["name=web*", "name=*-1"], &["web-1"]);
    lists(&world, &["volume=web", "tag:env=prod", "state=success", "name=web-1"], &["web-1"]);
    lists(&world, &["volume=web", "volume=db"], &[]);
    lists(&world, &["source=north", &format!("source={origin}"), "tag:env=prod"], &["web-copy"]);
    lists(&world, &["source=north", "state=failed"], &[]);
}

#[test]
fn what_is_no_filter_is_a_usage_error() {
    let (world, ..) = world();
    let known = ["tag:K=V", "state=success|processing|failed", "source=", "volume=", "name="];
    for filter in ["colour=red", "web", "", "tag=env=prod", "state=", "tags:env=prod"] {
        for format in ["table", "json"] {
            let line = ["snapshot", "list", "--region", "south", "--output", format, "--filter", filter];
            world.fails(&line, 2, &known);
        }
    }
    let fails = |filter: &str, words: &[&str]| {
        world.fails(&["snapshot", "list", "--region", "south", "--filter", filter], 2, words);
    };
    fails("state=done", &["done", "success", "processing", "failed"]);
    fails("tag:env", &["KEY=VALUE"]);
    fails("tag:=x", &["1 to 128"]);
    fails(&format!("tag:{}=x", "k".repeat(200)), &["1 to 128"]);
    // One bad among good ones lists nothing.
    world.fails(
        &["snapshot", "list", "--region", "south", "--filter", "name=*", "--filter", "nmae=*"],
        2,
        &known,
    );
}
