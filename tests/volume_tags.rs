//! Guarded here: a tag of a volume that is lost, given to another, or left behind; and a list that shows what was not asked for.

#[path = "common/world.rs"]
mod world;

use serde_json::{Value, json};
use world::World;

fn tags(world: &World, volume: &str) -> Value {
    world.json(&["volume", "show", volume])["tags"].clone()
}

fn listed(world: &World, filters: &[&str]) -> Vec<String> {
    let mut args = vec!["volume", "list"];
    filters.iter().for_each(|filter| args.extend(["--filter", filter]));
    let shown = world.json(&args);
    shown.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned()).collect()
}

// X7
#[test]
fn volumes_have_tags() {
    let world = World::new();
    world.ok(&[
        "volume",
        "create",
        "--name",
        "db",
        "--size",
        "8M",
        "--tag",
        "tier=gold",
        "--tag",
        "note=a=b ",
    ]);
    world.ok(&["volume", "create", "--name", "dev", "--size", "8M", "--tag", "tier=tin"]);
    world.volume("web", "8M");
    let tag = |key: &str, value: &str| json!({"key": key, "value": value});
    assert_eq!(tags(&world, "db"), json!([tag("note", "a=b "), tag("tier", "gold")]));
    assert_eq!(tags(&world, "web"), json!([]));
    assert!(world.ok(&["volume", "show", "db"]).contains("tier=gold"));
    world.ok(&[
        "volume",
        "set",
        "db",
        "--tag",
        "tier=silver",
        "--remove-tag",
        "note",
        "--remove-tag",
        "none",
    ]);
    assert_eq!(tags(&world, "db"), json!([tag("tier", "silver")]));
    world.ok(&["volume", "set", "db", "--name", "base", "--tag", "app=shop"]);
    assert_eq!(tags(&world, "base"), json!([tag("app", "shop"), tag("tier", "silver")]));
    world.ok(&["volume", "set", "web", "--tag", "tier=silver"]);
    assert_eq!(listed(&world, &[]), ["base", "dev", "web"]);
    assert_eq!(listed(&world, &["tag:tier=silver"]), ["base", "web"]);
    assert_eq!(listed(&world, &["tag:tier=silver", "name=*b"]), ["web"]);
    assert_eq!(listed(&world, &["name=*b", "tag:tier=silver"]), ["web"]);
    assert_eq!(listed(&world, &["name=*e*"]), ["base", "dev", "web"]);
    assert!(listed(&world, &["tag:tier=lead"]).is_empty());
    // A snapshot has its own, and so has a volume that is made of it.
    world.snapshot("base", "one");
    world.ok(&["volume", "create", "--snapshot", "one", "--name", "clone"]);
    assert_eq!(tags(&world, "clone"), json!([]));
    // They go with their volume.
    world.ok(&["volume", "delete", "base"]);
    assert_eq!(listed(&world, &["tag:tier=silver"]), ["web"]);
}

// X7: case → exit → words
#[test]
fn tags_that_no_volume_may_have_change_nothing() {
    let world = World::new();
    world.ok(&["volume", "create", "--name", "db", "--size", "8M", "--tag", "a=b"]);
    world.volume("web", "8M");
    let mut many = vec!["volume".to_owned(), "set".into(), "db".into()];
    (0..20).for_each(|n| many.extend(["--tag".into(), format!("k{n}=v")]));
    let create = ["volume", "create", "--size", "8M", "--name", "new"];
    for (args, exit, words) in [
        (vec!["volume", "set", "db"], 2, "--tag"),
        (vec!["volume", "set", "db", "--tag", "a"], 2, "KEY=VALUE"),
        (vec!["volume", "set", "db", "--tag", "=b"], 2, "1 to 128"),
        (vec!["volume", "set", "db", "--tag", "x=1", "--tag", "x=2"], 2, "given twice"),
        (vec!["volume", "set", "db", "--tag", "a=c", "--remove-tag", "a"], 2, "both given and removed"),
        (many.iter().map(String::as_str).collect(), 4, "at most 20"),
        (vec!["volume", "set", "nope", "--tag", "a=c"], 3, "no volume"),
        (vec!["volume", "set", "db", "--name", "web", "--tag", "a=c"], 5, "already has"),
        ([&create[..], &["--tag", "x=1", "--tag", "x=1"]].concat(), 2, "given twice"),
        (vec!["volume", "list", "--filter", "state=open"], 2, "tag:K=V"),
        (vec!["volume", "list", "--filter", "name="], 2, "wants a value"),
    ] {
        world.fails(&args, exit, &[words]);
        assert_eq!(tags(&world, "db"), json!([{"key": "a", "value": "b"}]), "{args:?}");
        assert_eq!(listed(&world, &[]), ["db", "web"], "{args:?}");
    }
}
