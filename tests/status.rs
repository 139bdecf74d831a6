//! Guards against a status that finds nothing wrong with disks that can't be read, and against copies that grow old unseen.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::Path;

use serde_json::Value;
use world::{World, pattern, write_at};

/// What `status` says as JSON, and its exit number.
fn status(world: &World, args: &[&str]) -> (Value, Option<i32>) {
    let output = world.run(&[&["status", "--output", "json"], args].concat());
    (serde_json::from_slice(&output.stdout).expect("JSON"), output.status.code())
}

/// A header of which nothing is left, or that is gone; put back when dropped.
struct Damaged<'a>(&'a Path, Vec<u8>);

impl<'a> Damaged<'a> {
    fn new(header: &'a Path, text: Option<&str>) -> Self {
        let before = fs::read(header).unwrap();
        match text {
            Some(text) => fs::write(header, text).unwrap(),
            None => fs::remove_file(header).unwrap(),
        }
        Self(header, before)
    }
}

impl Drop for Damaged<'_> {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).unwrap();
    }
}

/// Headers alone are looked at: mounted or not, `status` names all that stands on a damaged one, and nothing else.
#[test]
fn a_disk_whose_header_is_damaged_is_a_problem() {
    let world = World::new();
    for name in ["web", "other"] {
        world.volume(name, "8M");
    }
    world.ok(&["bin", "add", "--kind", "snapshot", "--days", "7"]);
    world.mount();
    for (volume, name) in [("web", "old"), ("web", "new"), ("other", "waiting")] {
        write_at(&world.file(volume), 0, &pattern(4096, 1)).unwrap();
        world.snapshot(volume, name);
    }
    world.unmount();
    world.ok(&["snapshot", "delete", "waiting", "-q"]);
    let header = |layer: std::path::PathBuf| layer.join("header.toml");
    let (active, old, new) = (
        header(world.active_layer("web")),
        header(world.snapshot_layer("old")),
        header(world.snapshot_layer("new")),
    );
    let binned = header(world.snapshot_layer("waiting"));
    let cases: [(&Path, &[&str]); 4] = [
        (&active, &["volume web ("]),
        (&old, &["volume web (", "snapshot old (", "snapshot new ("]),
        (&new, &["volume web (", "snapshot new ("]),
        (&binned, &["volume other (", "snapshot waiting ("]),
    ];
    for is_mounted in [false, true] {
        if is_mounted {
            world.mount();
        }
        assert_eq!(world.problems(), Vec::<String>::new());
        for (header, named) in &cases {
            for text in [Some("format = 1\n"), Some(""), None] {
                let damaged = Damaged::new(header, text);
                let problems = world.problems();
                let [problem] = &*problems else { panic!("{header:?} {text:?}: {problems:?}") };
                assert!(problem.contains("region here: ") && problem.contains("region check"), "{problem}");
                for name in [
                    "volume web (",
                    "volume other (",
                    "snapshot old (",
                    "snapshot new (",
                    "snapshot waiting (",
                ] {
                    assert_eq!(problem.contains(name), named.contains(&name), "{name} in {problem}");
                }
                assert_eq!(status(&world, &["--region", "here"]).1, Some(6));
                world.fails(&["status"], 6, &["problem"]);
                // The list of volumes says the same.
                for volume in world.json(&["volume", "list"]).as_array().unwrap() {
                    let is_named = problem.contains(volume["id"].as_str().unwrap());
                    let state = if is_named { "unreadable" } else { "available" };
                    assert_eq!(volume["state"], state, "{volume}");
                }
                drop(damaged);
                assert_eq!(world.problems(), Vec::<String>::new());
            }
        }
    }
    // Who opened it meanwhile is told of it once, too.
    let damaged = Damaged::new(&active, Some(""));
    assert!(fs::File::open(world.file("web")).is_err());
    assert_eq!(world.problems().len(), 1, "{:?}", world.problems());
    drop(damaged);
    assert!(fs::File::open(world.file("web")).is_ok());
    assert_eq!(world.problems(), Vec::<String>::new());
    world.unmount();
    // A key that somebody disabled is as he wants it.
    world.ok(&["key", "disable", world.json(&["volume", "show", "web"])["key_id"].as_str().unwrap()]);
    assert_eq!(world.json(&["volume", "show", "web"])["state"], "unreadable");
    assert_eq!(world.problems(), Vec::<String>::new());
}

/// Of one layer that many stand on, some are named, and the others counted.
#[test]
fn of_many_disks_on_one_damaged_layer_some_are_named() {
    let world = World::new();
    world.volume("web", "4M");
    world.snapshot("web", "first");
    for n in 0..23 {
        world.snapshot("web", &format!("s{n}"));
    }
    let header = world.snapshot_layer("first").join("header.toml");
    let _damaged = Damaged::new(&header, Some(""));
    let problems = world.problems();
    let [problem] = &*problems else { panic!("{problems:?}") };
    assert_eq!(problem.matches("snapshot s").count(), 18, "{problem}");
    assert!(problem.contains(" and 5 more can't be read: "), "{problem}");
}

/// What `status` says of the newest copies of a region's volumes: volume, region, snapshot, id of that, and when its source was taken.
fn newest(status: &Value, region: &str) -> Vec<[Value; 5]> {
    let regions = status["regions"].as_array().unwrap();
    let found = regions.iter().find(|one| one["name"] == region).expect("the region");
    let shown = found["newest_copies"].as_array().unwrap();
    let keys = ["volume", "region", "snapshot", "snapshot_id", "taken_at"];
    let fields = |one: &Value| {
        assert_eq!(one["age_seconds"].is_null(), one["taken_at"].is_null(), "{one}");
        assert!(one["volume_id"].as_str().is_some_and(|id| id.starts_with("vol-")), "{one}");
        keys.map(|key| one[key].clone())
    };
    shown.iter().map(fields).collect()
}

/// One volume's line.
fn line(volume: &str, region: &str, snapshot: &str, id: &str, taken_at: &Value) -> [Value; 5] {
    [volume.into(), region.into(), snapshot.into(), id.into(), taken_at.clone()]
}

fn none(volume: &str) -> [Value; 5] {
    [volume.into(), Value::Null, Value::Null, Value::Null, Value::Null]
}

/// North has the volumes; south and west, copies. A copy's age is that of what is in it.
#[test]
fn the_age_of_each_volumes_newest_copy_is_told() {
    let world = World::bare(None);
    let clock = world.path("clock");
    let run = |time: &str, args: &[&str]| {
        fs::write(&clock, format!("2031-05-01T{time}Z")).unwrap();
        let output =
            world.command(args).env("TERRANE_CLOCK", format!("@{}", clock.display())).output().unwrap();
        assert!([Some(0), Some(6)].contains(&output.status.code()), "{args:?}: {}", world::words(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let told = |time: &str, args: &[&str]| -> Value {
        serde_json::from_str(&run(time, &[&["status", "--output", "json"], args].concat())).unwrap()
    };
    for region in ["north", "south", "west"] {
        run("00:00:00", &["region", "init", &world.at(region), "--name", region, "-q"]);
    }
    for (time, volume) in [("00:00:00", "db"), ("00:00:01", "web")] {
        run(time, &["volume", "create", "--name", volume, "--size", "4M", "--region", "north"]);
    }
    let status = told("00:00:01", &[]);
    assert_eq!(newest(&status, "north"), [none("db"), none("web")]);
    assert_eq!((&status["left_out"], newest(&status, "south").len()), (&serde_json::json!([]), 0));

    // The moment counts, and not when it was copied: `second` crosses before `first` does.
    let snapshot = |time: &str, name: &str| {
        run(time, &["snapshot", "create", "web", "--name", name, "--region", "north"]);
        let shown = run(time, &["snapshot", "show", name, "--region", "north", "--output", "json"]);
        serde_json::from_str::<Value>(&shown).unwrap()["created_at"].clone()
    };
    let copy = |time: &str, from: &str, to: &str| {
        let name = from.rsplit('/').next().unwrap();
        run(time, &["snapshot", "copy", from, "--to", to, "--name", name, "--wait", "-q"])
    };
    let first = snapshot("01:00:00", "first");
    run("01:30:00", &["mount", &world.mnt(), "--region", "north"]);
    write_at(&world.file("web"), 0, &pattern(4096, 2)).unwrap();
    run("01:30:00", &["unmount", &world.mnt()]);
    let second = snapshot("02:00:00", "second");
    let at_south = copy("03:00:00", "north/second", "south");
    copy("04:00:00", "north/first", "west");
    let status = told("05:30:00", &[]);
    let of_web = line("web", "south", "second", &at_south, &second);
    assert_eq!(newest(&status, "north"), [none("db"), of_web.clone()]);
    assert_eq!(status["regions"][0]["newest_copies"][1]["age_seconds"], 12_600);
    let text = run("05:30:00", &["status"]);
    assert!(text.contains("web: 3 h 30 min old, south/second") && text.contains("db: none"), "{text}");
    assert!(text.contains("problems") && text.contains("none"), "{text}");
    // One region alone is told of with the copies of all.
    assert_eq!(newest(&told("05:30:00", &["--region", "north"]), "north"), [none("db"), of_web.clone()]);

    // A copy of a copy is one of the volume; what waits in the bin is none.
    let at_west = copy("06:00:00", "south/second", "west");
    run("06:00:00", &["bin", "add", "--kind", "snapshot", "--days", "7", "--region", "south"]);
    run("06:00:00", &["snapshot", "delete", "second", "--region", "south"]);
    let of_web = line("web", "west", "second", &at_west, &second);
    assert_eq!(newest(&told("06:00:00", &[]), "north"), [none("db"), of_web.clone()]);
    // So is one whose source is gone, which knows no more than when it was asked for.
    run("06:00:00", &["snapshot", "delete", "second", "--region", "north"]);
    let asked = Value::from("2031-05-01T06:00:00Z");
    assert_eq!(
        newest(&told("07:00:00", &[]), "north"),
        [none("db"), line("web", "west", "second", &at_west, &asked)]
    );
    run("07:00:00", &["snapshot", "delete", "second", "--region", "west"]);
    let of_first = |status: &Value| newest(status, "north")[1].clone();
    let status = told("07:00:00", &[]);
    assert_eq!((&of_first(&status)[1], &of_first(&status)[4]), (&"west".into(), &first));

    // A region that is away is left out, and that is said; it is a problem where all are asked for.
    fs::rename(world.path("west"), world.path("elsewhere")).unwrap();
    let status = told("08:00:00", &["--region", "north"]);
    assert_eq!(newest(&status, "north"), [none("db"), none("web")]);
    let [out] = &**status["left_out"].as_array().unwrap() else { panic!("{status}") };
    assert_eq!(out["region"], "west");
    assert!(out["why"].as_str().unwrap().contains("there is no such directory"), "{out}");
    assert_eq!(status["problems"], serde_json::json!([]));
    let text = run("08:00:00", &["status", "--region", "north"]);
    assert!(text.contains("left out") && text.contains("copies in region west: "), "{text}");
    let status = told("08:00:00", &[]);
    assert_eq!(status["left_out"][0]["region"], "west");
    assert!(status["problems"][0].as_str().unwrap().starts_with("region west: "), "{status}");
    fs::rename(world.path("elsewhere"), world.path("west")).unwrap();
    assert_eq!(told("08:00:00", &[])["left_out"], serde_json::json!([]));
}
