//! Guards against exit numbers that drift, sentences that name nothing, and JSON whose keys change.

#[path = "common/world.rs"]
mod world;

use serde_json::Value;
use world::{World, words};

#[test]
fn what_is_wrong_has_its_number_and_its_sentence() {
    let world = World::new();
    let first = world.volume("web", "4M");
    world.snapshot("web", "s1");
    // Ids share their beginning.
    let cases: &[(&[&str], i32, &str)] = &[
        (&["volume", "show", "nothing"], 3, "nothing"),
        (&["volume", "show", "vol-"], 3, "vol-"),
        (&["volume", "show", ""], 3, ""),
        (&["volume", "delete", "nothing"], 3, "nothing"),
        (&["volume", "resize", "nothing", "--size", "8M"], 3, "nothing"),
        (&["volume", "rollback", "web", "--snapshot", "nothing"], 3, "nothing"),
        (&["snapshot", "create", "nothing", "--name", "s2"], 3, "nothing"),
        (&["snapshot", "show", "nothing"], 3, "nothing"),
        (&["snapshot", "delete", "nothing"], 3, "nothing"),
        (&["snapshot", "create", "web", "--name", "s1"], 5, "s1"),
        (&["snapshot", "create", "web"], 2, "--name"),
        (&["snapshot", "create", "--name", "s2"], 2, "VOLUME"),
        (&["volume", "create", "--size", "4M", "--name", "web"], 5, "web"),
        (&["volume", "create"], 2, "--size"),
        (&["volume", "create", "--size", "0"], 2, "zero"),
        (&["volume", "create", "--size", "1"], 2, "4096"),
        (&["volume", "create", "--size", "4097"], 2, "8192"),
        (&["volume", "create", "--size", "9E"], 2, "64T"),
        (&["volume", "create", "--size", "10.5X"], 2, "10.5X"),
        (&["volume", "create", "--size", "-1"], 2, ""),
        (&["volume", "create", "--size", "4M", "--name", "-rf"], 2, ""),
        (&["volume", "create", "--size", "4M", "--name=-rf"], 2, "-rf"),
        (&["volume", "create", "--size", "4M", "--name", "a/b"], 2, "a/b"),
        (&["volume", "create", "--size", "4M", "--name", "../up"], 2, "../up"),
        (&["volume", "create", "--size", "4M", "--name", "a\u{1b}[2Jb"], 2, "name"),
        (&["volume", "create", "--size", "4M", "--key", "nothing"], 3, "nothing"),
        (&["volume", "create", "--size", "4M", "--key", "x", "--unencrypted"], 2, "--key"),
        (&["volume", "create", "--size", "4M", "--kind", "odd"], 2, "odd"),
        (&["volume", "create", "--snapshot", "nothing"], 3, "nothing"),
        (&["volume", "create", "--snapshot", "s1", "--unencrypted"], 4, "snapshot copy"),
        (&["volume", "set", "web", "--name", "web"], 0, ""),
        (&["volume", "resize", "web", "--size", "65T"], 2, "64T"),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", "novalue"], 2, "novalue"),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", "=v"], 2, "=v"),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", "k=1", "--tag", "k=2"], 2, "twice"),
        (&["snapshot", "create", "web", "--name", "s2", "--description", "x"], 2, "2 to 256"),
        (&["key", "create", "--description", "x"], 2, "2 to 256"),
        (&["snapshot", "create", "web", "--name", "s2", "--retention-days", "-1"], 2, ""),
        (&["attach", "web"], 4, "not mounted"),
        (&["attach", "/nowhere/at/all"], 3, "/nowhere"),
        (&["attach", "web", "--sector-size", "3"], 2, "4096 or 512"),
        (&["detach", "/dev/loop4000"], 3, "not attached"),
        (&["status", "--region", "nothing"], 3, "nothing"),
        (&["volume", "list", "--account", "nothing"], 0, ""),
        (&["frobnicate"], 2, "frobnicate"),
    ];
    let mut wrong = Vec::new();
    for (args, exit, fragment) in cases {
        let output = world.run(args);
        let said = words(&output);
        if output.status.code() != Some(*exit)
            || !said.contains(fragment)
            || said.contains("panicked")
            || said.contains('\u{1b}')
        {
            wrong.push(format!("{args:?}: {:?} for {exit}, {fragment:?} in {said}", output.status.code()));
        }
        // The same as JSON: one object, the same number.
        if *exit != 0 {
            let output = world.run(&[args, &["--output", "json"][..]].concat());
            let said = words(&output);
            let error: Value = serde_json::from_str(&said).unwrap_or_default();
            let told = error["error"]["exit"] == *exit
                && error["error"]["message"].as_str().is_some_and(|m| !m.is_empty());
            if !told
                || !output.stdout.is_empty()
                || error["error"].as_object().is_none_or(|e| !e.contains_key("hint"))
            {
                wrong.push(format!("{args:?} as JSON: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing came of all that.
    assert_eq!(world.json(&["volume", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(world.json(&["snapshot", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(world.layers(), 2);
    // Two that begin alike.
    let second = world.volume("shop", "4M");
    world.volume(&first[..12], "4M");
    world.fails(&["volume", "show", &first[..12]], 4, &[&first, "could be any"]);
    assert_eq!(world.json(&["volume", "show", &second])["name"], "shop");
    assert_eq!(world.json(&["volume", "show", &first[..18]])["name"], "web");
    // A name that is the beginning of another.
    world.volume("web2", "4M");
    assert_eq!(world.json(&["volume", "show", "web"])["id"], *first);
}

#[test]
fn json_has_the_keys_programs_rely_on() {
    let world = World::new();
    world.volume("web", "4M");
    world.ok(&["volume", "create", "--size", "4M", "--unencrypted", "--kind", "system", "--name", "plain"]);
    world.mount();
    world::write_at(&world.file("web"), 0, &world::pattern(8192, 1)).unwrap();
    let arguments = [
        "snapshot",
        "create",
        "web",
        "--name",
        "s1",
        "--tag",
        "k=v",
        "--description",
        "of web",
        "--retention-days",
        "7",
    ];
    let made: Value =
        serde_json::from_str(&world.ok(&[&arguments[..], &["--output", "json"]].concat())).unwrap();
    let snapshot = world.json(&["snapshot", "show", "s1"]);
    assert_eq!(made["id"], snapshot["id"]);
    for key in [
        "id",
        "name",
        "state",
        "progress_percent",
        "size_bytes",
        "stored_bytes",
        "changed_bytes",
        "shipped_bytes",
        "encrypted",
        "key_id",
        "kind",
        "created_by",
        "source_snapshot_id",
        "source_region",
        "created_at",
    ] {
        assert!(snapshot.as_object().unwrap().contains_key(key), "{key} is missing in {snapshot}");
    }
    assert_eq!((&snapshot["state"], &snapshot["progress_percent"]), (&"success".into(), &100.into()));
    assert_eq!((&snapshot["size_bytes"], &snapshot["changed_bytes"]), (&(4 << 20).into(), &8192.into()));
    assert_eq!(snapshot["tags"], serde_json::json!([{ "key": "k", "value": "v" }]));
    let volume = world.json(&["volume", "show", "web"]);
    for key in [
        "id",
        "name",
        "size_bytes",
        "stored_bytes",
        "shared_bytes",
        "encrypted",
        "key_id",
        "kind",
        "state",
        "path",
    ] {
        assert!(volume.as_object().unwrap().contains_key(key), "{key} is missing in {volume}");
    }
    assert_eq!(
        (&volume["state"], &volume["encrypted"], &volume["kind"]),
        (&"available".into(), &true.into(), &"data".into())
    );
    assert!(std::path::Path::new(volume["path"].as_str().unwrap()).exists());
    let plain = world.json(&["volume", "show", "plain"]);
    assert_eq!(
        (&plain["encrypted"], &plain["key_id"], &plain["kind"]),
        (&false.into(), &Value::Null, &"system".into())
    );
    // Of a system disk, a snapshot of a system disk (S39), under no key.
    world.snapshot("plain", "s2");
    let shown = world.json(&["snapshot", "show", "s2"]);
    assert_eq!((&shown["kind"], &shown["encrypted"]), (&"system".into(), &false.into()));
    let time = volume["created_at"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
    for noun in ["volume", "snapshot", "key", "region"] {
        assert!(world.json(&[noun, "list"]).is_array());
    }
    let status = world.json(&["status"]);
    assert_eq!(status["regions"][0]["mount"]["mount_point"], *world.mnt());
    assert_eq!(status["problems"], serde_json::json!([]));
}
