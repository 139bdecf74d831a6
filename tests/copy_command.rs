//! Guarded here: a refused copy that exits with another number or a sentence that does not name the thing, a killed or
//! interrupted copy that blocks its name or keeps its space, a full target, and `debug` output another program can't use.

mod copy_support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use copy_support::{Disk, Random, World};
use serde_json::Value;
use terrane::catalog::{DiskKind, Setting, Snapshot, SnapshotState, TaskState};
use terrane::ids::SnapshotId;

const MIB: usize = 1 << 20;

/// Regions north and south, each with a key `mine`; in north an encrypted snapshot `secret` and a plain one `plain`.
fn pair() -> (World, Disk, SnapshotId) {
    let world = World::new(&["north", "south"]);
    let north = world.key("north", "mine");
    world.key("south", "mine");
    let mut random = Random::new(11);
    let mut disk = Disk::new(&world, "north", 8 * MIB, Some(north), DiskKind::Data);
    let secret = disk.change(&world, "secret", |c| c.random(&mut random, MIB, 2 * MIB));
    Disk::new(&world, "north", MIB, None, DiskKind::Data).change(&world, "plain", |c| c.write(0, &[5; 4096]));
    (world, disk, secret)
}

fn set(world: &World, region: &str, setting: Setting, on: bool) {
    world.region(region).catalog().unwrap().write(|tx| tx.set_flag(setting, on)).unwrap();
}

// S3 S4 S5 S8 S15 S17 S20 S29, and the exits of the rest
#[test]
fn a_refusal_has_its_number_and_names_the_thing() {
    let (world, _disk, _) = pair();
    let before = (world.holdings("north"), world.holdings("south"));
    let key = world.region("south").catalog().unwrap().read(|tx| tx.resolve_key("mine")).unwrap().id;
    let try_all = |cases: &[(&str, &[&str], i32, &[&str])]| {
        for (snapshot, args, exit, words) in cases {
            let from = format!("north/{snapshot}");
            for dry in [false, true] {
                let mut line = vec!["snapshot", "copy", from.as_str()];
                line.extend(*args);
                if dry {
                    line.push("--dry-run");
                }
                world.fails(&line, *exit, words);
            }
        }
    };
    let (south, north) = (["--to", "south", "--name", "copied"], ["--to", "north", "--name", "copied"]);
    let with = |base: &[&'static str; 4], more: &[&'static str]| [&base[..], more].concat();
    try_all(&[
        ("secret", &with(&south, &["--unencrypted"]), 4, &["snapshot secret is encrypted", "--key"]),
        ("secret", &with(&north, &["--key", "mine"]), 4, &["secret of region north is under key", "already"]),
        ("plain", &north, 4, &["snapshot plain is plain", "north", "--encrypt"]),
        ("plain", &with(&north, &["--unencrypted"]), 4, &["snapshot plain is plain"]),
        ("secret", &with(&south, &["--key", "nobody"]), 3, &["region south has no key \"nobody\""]),
        ("nothing", &south, 3, &["region north has no snapshot \"nothing\""]),
        ("secret", &["--to", "nowhere", "--name", "copied"], 3, &["nowhere"]),
        (
            "plain",
            &["--to", "north", "--name", "secret", "--encrypt"],
            5,
            &["north already has a snapshot \"secret\""],
        ),
        ("secret", &["--to", "south"], 2, &["--name"]),
        ("secret", &["--to", "south", "--name", "9"], 2, &["a name"]),
        ("secret", &with(&south, &["--encrypt", "--unencrypted"]), 2, &["--unencrypted"]),
    ]);
    for (setting, word, command) in [
        (Setting::CopyAndEncrypt, "does not offer copy-and-encrypt", "region set copy_and_encrypt=true"),
        (Setting::KmsEnabled, "the KMS of region south is not enabled", "kms enable"),
        (Setting::StorageAuthorized, "not authorised", "kms authorize"),
    ] {
        set(&world, "south", setting, false);
        let hint = format!("terrane {command} --region south");
        try_all(&[
            ("secret", &south, 4, &[word, &hint]),
            ("plain", &with(&south, &["--encrypt"]), 4, &[word, &hint]),
        ]);
        set(&world, "south", setting, true);
    }
    terrane::kms::set_key_enabled(&world.region("south"), key, false).unwrap();
    try_all(&[("secret", &with(&south, &["--key", "mine"]), 4, &["is disabled", "terrane key enable"])]);
    terrane::kms::set_key_enabled(&world.region("south"), key, true).unwrap();
    world.fails(
        &[
            "snapshot",
            "copy",
            "--wait",
            "north/secret",
            "--to",
            "south",
            "--name",
            "copied",
            "--description",
            "x",
        ],
        2,
        &["2 to 256"],
    );
    let tag = ["--tag", "a=1", "--tag", "a=2"];
    world.fails(
        &[&["snapshot", "copy", "--wait", "north/secret"], &south[..], &tag].concat(),
        2,
        &["given twice"],
    );
    let many: Vec<String> = (0..21).flat_map(|n| ["--tag".into(), format!("k{n}=v")]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    world.fails(
        &[&["snapshot", "copy", "--wait", "north/secret"], &south[..], &many].concat(),
        2,
        &["at most 20"],
    );
    assert_eq!((world.holdings("north"), world.holdings("south")), before);
    // A plain copy needs no key and no KMS (S10).
    set(&world, "south", Setting::KmsEnabled, false);
    world.ok(&["snapshot", "copy", "--wait", "north/plain", "--to", "south", "--name", "copied"]);
}

// S30 S31 S32 S37
#[test]
fn the_plan_is_what_is_done() {
    let (world, disk, secret) = pair();
    let copy = |called: &'static str, more: &[&'static str]| {
        [
            &[
                "snapshot", "copy", "--wait", "secret", "--region", "north", "--to", "south", "--key",
                "mine", "--name", called,
            ],
            more,
        ]
        .concat()
    };
    let before = world.holdings("south");
    let plan = world.json(&copy("copied", &["--dry-run"]));
    assert_eq!(plan["base_snapshot_id"], Value::Null);
    assert_eq!((&plan["ship_bytes"], &plan["reencrypt_bytes"]), (&Value::from(2 << 20), &Value::from(0)));
    let key = world.region("south").catalog().unwrap().read(|tx| tx.resolve_key("mine")).unwrap().id;
    assert_eq!(plan["key_id"], key.to_string());
    assert_eq!(world.holdings("south"), before, "S32");
    let given = ["--description", "for the archive", "--tag", "env=prod", "--retention-days", "30"];
    let id: SnapshotId = world.ok(&copy("copied", &given)).parse().expect("the id alone");
    world.equal("south", id, &disk.model);
    let shown = world.json(&["snapshot", "show", "copied", "--region", "south"]);
    assert_eq!(
        (&shown["description"], &shown["retention_days"]),
        (&Value::from("for the archive"), &Value::from(30))
    );
    assert_eq!(shown["tags"][0]["value"], "prod");
    assert_eq!(
        (&shown["encrypted"], &shown["source_snapshot_id"]),
        (&Value::from(true), &Value::from(secret.to_string()))
    );
    let plan = world.json(&copy("again", &["--dry-run"]));
    assert_eq!(
        (&plan["base_snapshot_id"], &plan["ship_bytes"]),
        (&Value::from(id.to_string()), &Value::from(0))
    );
    // Progress for programs: lines of JSON on stderr, none with -q.
    let output = world.run(&copy("again", &["--output", "json"]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let last: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!(last["bytes_done"], last["bytes_total"]);
    assert!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["id"].is_string());
    let output = world.run(&copy("more", &["-q"]));
    assert!(output.status.success() && output.stderr.is_empty());
}

// S38
#[test]
fn a_volume_is_made_from_a_copy() {
    let (world, disk, _) = pair();
    world.ok(&["snapshot", "copy", "--wait", "north/secret", "--to", "south", "--name", "copied"]);
    world.ok(&["volume", "create", "--snapshot", "copied", "--name", "restored", "--region", "south"]);
    world.ok(&["snapshot", "create", "restored", "--name", "restored", "--region", "south"]);
    let id = world.region("south").catalog().unwrap().read(|tx| tx.resolve_snapshot("restored")).unwrap().id;
    world.equal("south", id, &disk.model);
}

/// A snapshot whose seal was cut short, as by a kill of the mount, is finished when it is copied.
#[test]
fn an_unfinished_seal_is_finished() {
    let (world, mut disk, _) = pair();
    drop(disk.change_and_die(&world, "cut", |c| c.write(0, &[3; 4096])));
    let row = world.region("north").catalog().unwrap().read(|tx| {
        let layer = tx.resolve_snapshot("cut")?.layer.unwrap();
        tx.layer(layer)
    });
    assert_eq!(row.unwrap().sealed_mac, None);
    let id = world
        .ok(&["snapshot", "copy", "--wait", "north/cut", "--to", "south", "--name", "copied"])
        .parse()
        .unwrap();
    world.equal("south", id, &disk.model);
}

/// Bytes of a snapshot large enough that its copy is seen while it runs.
const LARGE: usize = 240 * MIB;

/// A region with such a snapshot, and another.
fn large() -> World {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(12);
    let mut disk = Disk::new(&world, "north", 512 * MIB, Some(world.default_key("north")), DiskKind::Data);
    disk.change(&world, "large", |c| (0..LARGE / MIB).for_each(|i| c.random(&mut random, i * MIB, MIB)));
    world
}

const COPY_LARGE: &[&str] =
    &["snapshot", "copy", "--wait", "north/large", "--to", "south", "--name", "copied"];

/// Starts the large copy and returns once it is listed as `processing` and has a layer.
#[allow(clippy::zombie_processes)] // every path waits for it, or fails the test
fn start(world: &World) -> std::process::Child {
    let mut child = world.command(COPY_LARGE).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let region = world.region("south");
    let since = Instant::now();
    loop {
        let found = region.catalog().unwrap().read(|tx| tx.find_snapshot_by_name("copied")).unwrap();
        if let Some(snapshot) = found {
            assert_eq!(snapshot.state, SnapshotState::Processing, "the copy was over before it was seen");
            if snapshot.layer.is_some() {
                return child;
            }
        }
        if since.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("no copy was begun");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The data file of the copy's layer.
fn data_of_copy(world: &World) -> std::path::PathBuf {
    let region = world.region("south");
    let layer = region.catalog().unwrap().read(|tx| tx.resolve_snapshot("copied")).unwrap().layer.unwrap();
    region.layer_dir(layer).join("data")
}

/// Kills the copy once its layer's file is so long; whether it was not over before.
fn kill_at(world: &World, mut child: std::process::Child, len: u64) -> bool {
    let data = data_of_copy(world);
    while std::fs::metadata(&data).unwrap().len() < len {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    kill(child);
    named(world, "south", "copied").state == SnapshotState::Processing
}

// X4 S33
#[test]
fn a_killed_copy_goes_on_where_it_was() {
    /// Workers, with a chunk each in hand.
    const AT_ONCE: u64 = 8 * (2 << 20);
    let world = large();
    let before = world.holdings("south");
    let planned = LARGE as u64;
    let mut kills = 0;
    let mut id = None;
    for part in 1..=10 {
        if !kill_at(&world, start(&world), planned * part / 12) {
            break;
        }
        kills += 1;
        let left = named(&world, "south", "copied");
        assert_eq!(*id.get_or_insert(left.id), left.id, "it is the same copy all the while");
        // What was done stays, whoever mounts the region or changes it meanwhile.
        if part % 3 == 0 {
            drop(Mounted::new(&world, "south"));
        }
    }
    // Where this process is slow the copy may come to its end before it is killed.
    assert!(kills > 0, "the copy was over before it was killed");
    let whole: SnapshotId = world.ok(COPY_LARGE).parse().unwrap();
    assert_eq!(Some(whole), id);
    let row = named(&world, "south", "copied");
    assert_eq!(row.state, SnapshotState::Success);
    let bound = planned..=planned + kills * AT_ONCE;
    assert!(bound.contains(&row.shipped_bytes), "{} shipped after {kills} kills", row.shipped_bytes);
    let len = std::fs::metadata(data_of_copy(&world)).unwrap().len();
    let room = terrane::layer::slot_offset(terrane::units::SlotNo(0)) + MIB as u64;
    assert!(
        len <= room + planned + kills * AT_ONCE,
        "{len} bytes after {kills} kills: much was shipped twice"
    );
    let bytes = |region: &str, name: &str| {
        let id = named(&world, region, name).id;
        let mut bytes = vec![0xaa; 512 * MIB];
        world.reader(region).open_snapshot(id).unwrap().read(0, &mut bytes).unwrap();
        bytes
    };
    assert!(bytes("south", "copied") == bytes("north", "large"));
    assert_eq!(world.holdings("south"), (before.0 + 1, before.1 + 1, before.2 + 1));
    let tasks = world.region("south").catalog().unwrap().read(|tx| tx.tasks()).unwrap();
    assert_eq!(tasks.iter().map(|t| t.state).collect::<Vec<_>>(), [TaskState::Succeeded]);
}

/// It is no base, can't be read or built upon, and only its own command goes on with it.
#[test]
fn an_interrupted_copy_is_nothing_else() {
    let world = large();
    let before = world.holdings("south");
    let running = start(&world);
    // However slow the next command is, it meets this one at work; not amid a transaction, which would keep everybody out.
    let data = data_of_copy(&world);
    while std::fs::metadata(&data).unwrap().len() < 40 << 20 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let mut second = world.command(COPY_LARGE).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(second.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("another process makes it"), "{said}");
    second.kill().unwrap();
    second.wait().unwrap();
    kill(running);
    let listed = world.json(&["snapshot", "list", "--region", "south"]);
    assert_eq!((&listed[0]["state"], &listed[0]["interrupted"]), (&"processing".into(), &true.into()));
    assert!(world.ok(&["snapshot", "list", "--region", "south"]).contains("interrupted at"));
    let status = world.run(&["status", "--region", "south"]);
    assert_eq!(status.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&status.stdout).contains("copy copied in region south was interrupted"));
    world.fails(&["volume", "create", "--snapshot", "copied", "--region", "south"], 4, &["not complete"]);
    world.fails(
        &["snapshot", "copy", "--wait", "south/copied", "--to", "north", "--name", "back"],
        4,
        &["not complete"],
    );
    world.ok(&["key", "create", "--alias", "another", "--region", "south"]);
    let other = [COPY_LARGE, &["--key", "another"]].concat();
    world.fails(&other, 5, &["copied"]);
    // Under another name nothing is in its way.
    world.ok(&["snapshot", "copy", "--wait", "north/large", "--to", "south", "--name", "again"]);
    world.ok(&["snapshot", "delete", "again", "--region", "south"]);
    world.ok(&["snapshot", "delete", "copied", "--region", "south"]);
    assert_eq!(world.holdings("south"), before, "S34");
    let tasks = world.region("south").catalog().unwrap().read(|tx| tx.tasks()).unwrap();
    assert_eq!(
        tasks.iter().map(|t| t.state).collect::<Vec<_>>(),
        [TaskState::Cancelled, TaskState::Succeeded]
    );
}

/// Under its name lies what another began: the catalog alone says so, and is not believed.
#[test]
fn what_was_begun_is_not_gone_on_with_as_something_else() {
    let world = large();
    let mut disk = Disk::new(&world, "north", 512 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let other = disk.change(&world, "other", |c| c.write(0, &[9; MIB]));
    kill(start(&world));
    let catalog = rusqlite::Connection::open(world.path("south/catalog.db")).unwrap();
    catalog
        .execute("UPDATE snapshots SET source_snapshot = ?1 WHERE name = 'copied'", [other.to_string()])
        .unwrap();
    drop(catalog);
    let before = world.holdings("south");
    let copy = ["snapshot", "copy", "--wait", "north/other", "--to", "south", "--name", "copied"];
    world.fails(&copy, 6, &["not a copy of that snapshot"]);
    assert_eq!(world.holdings("south"), before, "nothing was changed");
    world.ok(&["snapshot", "delete", "copied", "--region", "south"]);
    world.ok(&copy);
}

fn named(world: &World, region: &str, name: &str) -> Snapshot {
    world.region(region).catalog().unwrap().read(|tx| tx.resolve_snapshot(name)).unwrap()
}

fn kill(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A region, mounted read-write; unmounted when dropped.
struct Mounted<'a>(&'a World, String);

impl<'a> Mounted<'a> {
    fn new(world: &'a World, region: &str) -> Self {
        let at = world.path("mnt").to_str().unwrap().to_owned();
        std::fs::create_dir_all(&at).unwrap();
        world.ok(&["mount", &at, "--region", region]);
        Self(world, at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let ended = self.0.run(&["unmount", &self.1]).status.success();
        if !ended {
            let _ = std::process::Command::new("umount").args(["-l", &self.1]).status();
        }
        assert!(ended || std::thread::panicking(), "{} can't be unmounted", self.1);
    }
}

// S33 S34, where the target's layers are a mount's
#[test]
fn a_copy_into_a_mounted_region_is_cancelled_by_deleting_it() {
    let world = large();
    let before = world.holdings("south");
    let mounted = Mounted::new(&world, "south");
    for _ in 0..2 {
        let child = start(&world);
        let listed = world.json(&["snapshot", "list", "--region", "south"]);
        assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"copied".into(), &"processing".into()));
        let files = std::path::Path::new(&mounted.1).join("by-name/snapshots");
        assert_eq!(std::fs::read_dir(&files).unwrap().count(), 0, "no file before it is whole");
        world.ok(&["snapshot", "delete", "copied", "--region", "south"]);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{stderr}");
        assert!(output.stdout.is_empty() && stderr.contains("cancelled"), "{stderr}");
        assert_eq!(world.holdings("south"), before);
    }
    let tasks = world.region("south").catalog().unwrap().read(|tx| tx.tasks()).unwrap();
    assert_eq!(tasks.iter().map(|t| t.state).collect::<Vec<_>>(), [TaskState::Cancelled; 2]);
    // Not cancelled, it is there at once.
    let id = world.ok(COPY_LARGE);
    let file = std::path::Path::new(&mounted.1).join("snapshots").join(id);
    assert_eq!(std::fs::metadata(file).unwrap().len(), 512 << 20);
    drop(mounted);
    assert_eq!(world.holdings("south"), (before.0 + 1, before.1 + 1, before.2 + 1));
}

#[test]
fn a_signal_keeps_what_was_done() {
    let world = large();
    let before = world.holdings("south");
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let child = start(&world);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{stderr}");
        assert!(
            output.stdout.is_empty() && stderr.contains("the same command with --wait goes on where it was"),
            "{stderr}"
        );
        assert_eq!(world.holdings("south"), (before.0 + 1, before.1 + 1, before.2 + 1));
        world.fails(&[COPY_LARGE, &["--description", "another"]].concat(), 5, &["copied"]);
        // Its plan is that of what was begun; to be told takes nothing of it.
        let plan = world.json(&[COPY_LARGE, &["--dry-run"]].concat());
        assert_eq!((&plan["ship_bytes"], &plan["base_snapshot_id"]), (&Value::from(LARGE), &Value::Null));
        assert_eq!(world.holdings("south"), (before.0 + 1, before.1 + 1, before.2 + 1));
        world.ok(COPY_LARGE);
        assert_eq!(named(&world, "south", "copied").shipped_bytes, LARGE as u64);
        world.ok(&["snapshot", "delete", "copied", "--region", "south"]);
        assert_eq!(world.holdings("south"), before);
    }
}

/// The layers of two interrupted copies in each other's place, or a volume's layer in that of a copy: what its own header does not
/// say to be of this copy is not taken for a part of it.
#[test]
fn a_copy_goes_on_with_no_other_layer() {
    let world = large();
    kill(start(&world));
    let mut other = world
        .command(&["snapshot", "copy", "--wait", "north/large", "--to", "south", "--name", "second"])
        .spawn()
        .unwrap();
    let region = world.region("south");
    let second = || region.catalog().unwrap().read(|tx| tx.find_snapshot_by_name("second")).unwrap();
    while second().is_none_or(|second| second.layer.is_none()) {
        assert!(other.try_wait().unwrap().is_none(), "the copy was over before it was seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(other);
    let key = world.default_key("south");
    world.ok(&[
        "volume",
        "create",
        "--name",
        "vol",
        "--size",
        "512M",
        "--key",
        &key.to_string(),
        "--region",
        "south",
    ]);
    let layer_of = |name: &str| named(&world, "south", name).layer.unwrap().to_string();
    let active = region.catalog().unwrap().read(|tx| tx.resolve_volume("vol")).unwrap().active.to_string();
    let (first, second) = (layer_of("copied"), layer_of("second"));
    let catalog = || rusqlite::Connection::open(world.path("south/catalog.db")).unwrap();
    for stranger in [second, active] {
        catalog().execute("UPDATE layers SET state = 'preparing' WHERE id = ?1", [&stranger]).unwrap();
        catalog().execute("UPDATE snapshots SET layer = ?1 WHERE name = 'copied'", [&stranger]).unwrap();
        world.fails(COPY_LARGE, 6, &["not a copy of that snapshot"]);
        catalog().execute("UPDATE snapshots SET layer = ?1 WHERE name = 'copied'", [&first]).unwrap();
    }
    world.ok(COPY_LARGE);
}

/// Decrypts one sector by OpenSSL, its number the tweak.
fn openssl_sector(key: &[u8], sector: u64, cipher: &[u8]) -> Vec<u8> {
    let mut tweak = [0; 16];
    tweak[..8].copy_from_slice(&sector.to_le_bytes());
    openssl::symm::decrypt(openssl::symm::Cipher::aes_256_xts(), key, Some(&tweak), cipher).unwrap()
}

#[test]
fn another_program_reads_the_bytes() {
    let (world, mut disk, _) = pair();
    let mut random = Random::new(14);
    disk.change(&world, "later", |c| {
        c.random(&mut random, 2 * MIB, 8192);
        c.discard(MIB, 64 << 10);
    });
    world.ok(&["snapshot", "copy", "--wait", "north/secret", "--to", "south", "--name", "secret"]);
    world.ok(&["snapshot", "copy", "--wait", "north/later", "--to", "south", "--name", "later"]);
    for region in ["north", "south"] {
        let layers = world.json(&["debug", "layers", "later", "--region", region]);
        let layers = layers.as_array().unwrap();
        assert_eq!(layers.len(), 2);
        assert_eq!(layers[0]["parent_id"], layers[1]["id"]);
        let mut bytes = vec![0; disk.model.len()];
        let mut recorded = Vec::new();
        for layer in layers.iter().rev() {
            assert_eq!(
                (&layer["sealed"], &layer["cipher"]),
                (&Value::from(true), &Value::from("aes-xts-plain64"))
            );
            let id = layer["id"].as_str().unwrap();
            let key = world.ok(&["debug", "data-key", id, "--yes", "--region", region]);
            let key = terrane::region::hex::decode(&key).unwrap();
            let data = std::fs::File::open(format!("{}/data", layer["dir"].as_str().unwrap())).unwrap();
            let map = world.json(&["debug", "map", id, "--region", region]);
            recorded.push(map.as_array().unwrap().len());
            for entry in map.as_array().unwrap() {
                let sector = entry["sector"].as_u64().unwrap();
                let into = &mut bytes[sector as usize * 4096..][..4096];
                match entry["state"].as_str().unwrap() {
                    "zero" => into.fill(0),
                    "data" => {
                        let mut cipher = [0; 4096];
                        data.read_exact_at(&mut cipher, entry["offset_bytes"].as_u64().unwrap()).unwrap();
                        into.copy_from_slice(&openssl_sector(&key, sector, &cipher));
                    }
                    other => panic!("{other}"),
                }
            }
        }
        assert_eq!(recorded, [512, 2 + 16], "{region}");
        assert!(bytes == disk.model, "{region}: every sector is the disk's");
    }
    let table = world.ok(&[
        "debug",
        "map",
        world.json(&["debug", "layers", "later", "--region", "north"])[0]["id"].as_str().unwrap(),
        "--region",
        "north",
    ]);
    assert_eq!(table.lines().count(), 1 + 2 + 16);
}

#[test]
fn debug_refuses_what_it_should() {
    let (world, disk, _) = pair();
    let volume = disk.id.to_string();
    let layers = world.json(&["debug", "layers", &format!("north/{volume}")]);
    let active = layers[0]["id"].as_str().unwrap();
    assert_eq!(layers[0]["sealed"], false);
    world.fails(&["debug", "map", active, "--region", "north"], 4, &["is not sealed", "snapshot"]);
    world.fails(&["debug", "data-key", active, "--region", "north"], 4, &["--yes"]);
    let nobody = "0".repeat(32);
    world.fails(&["debug", "map", &nobody, "--region", "north"], 3, &[&nobody]);
    world.fails(&["debug", "data-key", &nobody, "--yes", "--region", "south"], 3, &[&nobody]);
    world.fails(&["debug", "map", "../x", "--region", "north"], 2, &["layer id"]);
    world.fails(&["debug", "layers", "north/nobody"], 3, &["no volume or snapshot"]);
    let output = world.run(&["debug", "data-key", active, "--yes", "--region", "north"]);
    assert_eq!(output.stdout.len(), 129);
    assert!(String::from_utf8_lossy(&output.stderr).contains("whoever has this key reads layer"));
}
