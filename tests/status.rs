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
