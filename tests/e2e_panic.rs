//! Guards against a panic that takes the mount with it, leaves a region that is not whole, or shows a key: the system gives the
//! process that holds the keys no random bytes, which it can't do without.

#[path = "common/canary.rs"]
mod canary;
#[path = "common/tamper.rs"]
mod tamper;
#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use canary::{Canary, master_keys, random, spelled, unhex};
use tamper::{Rule, Tampered, can_tamper};
use world::{MIB, World, errno, read_at, words, writable, write_at};

/// Each getrandom for a key, a nonce or an id fails: the standard library's, for hash tables, has other flags.
const NO_RANDOM_BYTES: Rule =
    Rule { act: "5", first: 1, times: u64::MAX, within: (0, 1), path: "*", calls: "getrandom" };

/// The data keys of a volume's layers, the CMKs, the root key.
fn keys(world: &World, volume: &str) -> Vec<Vec<u8>> {
    let layers = world.json(&["debug", "layers", volume]);
    let ids = layers.as_array().unwrap().iter().map(|layer| layer["id"].as_str().unwrap().to_owned());
    let data_key = |id: String| {
        let shown = world.json(&["debug", "data-key", &id, "--yes"]);
        unhex(shown["data_key"].as_str().unwrap())
    };
    let mut keys: Vec<_> = ids.map(data_key).collect();
    assert_eq!(keys.len(), 2, "a snapshot's layer and the active one");
    let root_key = fs::read_dir(world.path("config/keys")).unwrap().next().unwrap().unwrap().path();
    let root_key = fs::read(root_key).unwrap();
    let master_keys = master_keys(&world.path("r"), &root_key);
    assert!(!master_keys.is_empty());
    keys.extend(master_keys.into_iter().map(|(_, key)| key));
    keys.push(root_key);
    keys
}

#[test]
fn a_panic_ends_one_request_and_shows_no_key() {
    if !can_tamper() {
        eprintln!("left out: tampering with calls needs root and an x86-64 processor");
        return;
    }
    let mut world = World::new();
    for name in ["web", "other"] {
        world.volume(name, "8M");
    }
    let canary = random(MIB as usize);
    world.mount();
    write_at(&world.file("web"), 0, &canary).unwrap();
    world.snapshot("web", "s1");
    world.unmount();
    let keys = keys(&world, "web");
    let mut secrets = Canary::new();
    keys.iter().for_each(|key| secrets.add(key));
    secrets.add(&canary);

    let mount = Tampered::mount(&world, None);
    assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == canary, "its keys are in use");
    let snapshot = File::open(world.snapshot_file("s1")).unwrap();
    mount.arm(&NO_RANDOM_BYTES);
    let mut said = String::new();
    // A layer is there for one snapshot: it was made before it is needed. One of what did not change needs none.
    let open = writable(&world.file("web")).unwrap();
    for n in 0..3 {
        open.write_all_at(&canary[..4096], 4 * MIB).unwrap();
        let output = world.run(&["snapshot", "create", "web", "--name", &format!("more-{n}")]);
        said += &words(&output);
    }
    for args in [
        &["volume", "rollback", "web", "--snapshot", "s1"][..],
        &["volume", "resize", "web", "--size", "16M"],
    ] {
        let output = world.run(args);
        assert!(!output.status.success(), "{args:?} needs random bytes: {}", mount.log());
        said += &words(&output);
    }
    assert!(said.contains("inside the serving process"), "{said}");
    assert_eq!(errno(File::options().write(true).open(world.file("other"))), libc::EIO);
    // What needs none goes on.
    open.write_all_at(&canary, 2 * MIB).unwrap();
    open.sync_all().unwrap();
    let mut bytes = vec![0; MIB as usize];
    snapshot.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == canary);
    drop((open, snapshot));
    mount.disarm();

    let log = mount.log();
    assert!(log.matches("panicked at").count() >= 3, "{log}");
    assert!(
        log.contains("a request on the control socket panicked")
            && log.contains("answered with an I/O error")
    );
    for text in [&log, &said] {
        secrets.assert_absent(text.as_bytes(), "what is said of a panic");
        for words in keys.iter().chain([&canary[..4096].to_vec()]).flat_map(|secret| spelled(secret)) {
            assert!(!text.contains(&words), "a secret is spelled in what is said of a panic");
        }
    }
    // The search sees what it looks for.
    let shown = format!("{log}{:?}", keys[0]);
    assert!(spelled(&keys[0]).iter().any(|words| shown.contains(words)));
    assert!(secrets.assert_absent_below(&world.path("r")) > MIB);

    // As if nothing had been.
    write_at(&world.file("other"), 0, &[7; 4096]).unwrap();
    world.snapshot("web", "s2");
    assert!(read_at(&world.snapshot_file("s2"), 2 * MIB, MIB as usize).unwrap() == canary);
    world.unmount();
    world.ok(&["region", "check"]);
    mount.end();
    world.expect_disorder();
}
