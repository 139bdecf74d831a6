//! Guarded here: a copy that reads otherwise than its source and says success; proofs that say equal of what is not, that cost a
//! reading, or that tell a thief what they are of.

mod copy_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use copy_support::daemon::named;
use copy_support::{Disk, Random, World, flip, name};
use terrane::catalog::DiskKind;
use terrane::copy::{
    self, Begun, Copy, CopyError, KeyChoice, Pace, Side, VerifyWatch, Watch, compare_measured, compare_proofs,
};
use terrane::ids::SnapshotId;
use terrane::layer::{Layer, PageCache, slot_offset};
use terrane::units::{ChunkNo, SECTOR_LEN, SectorNo};
use terrane::volume::folder::{self, Opening};
use terrane::volume::{Host, Source, proof};

const MIB: usize = 1 << 20;
/// Of a disk here: sixteen chunks.
const DISK: usize = 32 * MIB;

fn world() -> (World, Disk, SnapshotId) {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(61);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| {
        c.random(&mut random, 0, 3 * MIB);
        c.random(&mut random, 9 * MIB, MIB);
    });
    (world, disk, first)
}

/// Ends a copy, at this rate, once its progress was told so often; as its process has it, so it stays.
fn interrupted(world: &World, from: SnapshotId, called: &str, after: u64, rate: u64) -> SnapshotId {
    let (source, target) = (world.reader("north"), world.reader("south"));
    let plan = copy::plan(&source, from, &target, &name(called), &KeyChoice::AsSource).unwrap();
    let (cancel, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut progress = |_, _| {
        if calls.fetch_add(1, Ordering::Relaxed) >= after {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let pace = Pace::new(rate);
    let watch = Watch { pace: Some(&pace), ..Watch::new(&cancel, &mut progress) };
    let ended = Copy::new(&source, &target, plan, world.details("south", called)).run(watch);
    assert!(matches!(ended, Err(CopyError::Interrupted)), "{ended:?}");
    named(world, "south", called).unwrap().id
}

fn layer_of(world: &World, copy: SnapshotId) -> (Arc<Host>, Layer) {
    let host = world.reader("south");
    let row = host.region().catalog().unwrap().read(|tx| tx.layer(tx.layer_of_snapshot(copy)?)).unwrap();
    let cache = Arc::new(PageCache::new(64));
    let layer = folder::open_layer(host.region(), &cache, &row, Opening::Recover(None)).unwrap();
    (host, layer)
}

fn go_on(world: &World, copy: SnapshotId) -> Result<SnapshotId, CopyError> {
    let (source, target) = (world.reader("north"), world.reader("south"));
    let begun = Begun::take_up(&target, &world.snapshot("south", copy))?;
    let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
    Copy::rest(&source, &target, begun)?.run(Watch::new(&cancel, &mut progress))
}

/// By its own keys an interrupted copy's layer is given what the source has not: it has right tags, so that nothing but
/// the proof can tell.
#[test]
fn a_layer_that_holds_something_else_is_no_copy() {
    type Doctor = fn(&Layer);
    let cases: [(&str, Doctor); 3] = [
        ("a sector of the copy, otherwise", |layer| write(layer, 5, 7)),
        ("a sector that nobody carried", |layer| write(layer, 7 * 512 + 3, 7)),
        ("zeros that nobody carried, over what the base has", |layer| {
            layer.discard(SectorNo(9 * 256 + 200), 1, &|_| Ok(true)).unwrap();
        }),
    ];
    for (what, doctor) in cases {
        let (world, mut disk, first) = world();
        world.copy(("north", first), "south", "first", KeyChoice::AsSource);
        let mut random = Random::new(3);
        let second = disk.change(&world, "second", |c| {
            c.random(&mut random, 4 * SECTOR_LEN, 20 * SECTOR_LEN);
            c.random(&mut random, 9 * MIB, MIB / 2);
            c.discard(2 * SECTOR_LEN, SECTOR_LEN);
        });
        let before = world.holdings("south");
        // Its first chunk is there by then, its second is not.
        let copy = interrupted(&world, second, "second", 1, 100 << 10);
        let (host, layer) = layer_of(&world, copy);
        doctor(&layer);
        layer.flush().unwrap();
        drop((layer, host));
        match go_on(&world, copy) {
            Err(CopyError::Unproven { .. }) => {}
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(world.holdings("south"), before, "{what}: nothing is left");
        assert_eq!(std::fs::read_dir(world.path("south/proofs")).unwrap().count(), 1, "{what}");
        let again = world.copy(("north", second), "south", "second", KeyChoice::AsSource);
        world.equal("south", again, &disk.model);
    }
}

fn write(layer: &Layer, sector: u64, byte: u8) {
    layer.write(SectorNo(sector), &[byte; SECTOR_LEN], &[], &|_| Ok(true)).unwrap();
}

fn sector_place(world: &World, region: &str, id: SnapshotId, sector: u64) -> (PathBuf, u64) {
    let host = world.reader(region);
    let chain = host.open_snapshot(id).unwrap().chain;
    let mut source = [Source::Zero];
    let sector = SectorNo(sector);
    chain.sources(sector.chunk(), sector.index_in_chunk(), &mut source).unwrap();
    let Source::Slot { layer, slot, .. } = source[0] else { panic!("sector {} is zero", sector.0) };
    let layer = host.region().layer_dir(chain.layers()[layer as usize].id());
    (layer.join("data"), slot_offset(slot))
}

/// Damage of a base that the copy hides is no reason to have none; damage that it shows through is the base's, and said so.
#[test]
fn a_damaged_base_is_hidden_or_named() {
    let (world, mut disk, first) = world();
    let base = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let second = disk.change(&world, "second", |c| c.write(5 * SECTOR_LEN, &[8; SECTOR_LEN]));
    let (data, at) = sector_place(&world, "south", base, 5);
    flip(&data, at);
    let copy = world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    world.equal("south", copy, &disk.model);
    assert_is_proven(&world, second, copy);
    // One beside it, which the copy does not write over.
    let third = disk.change(&world, "third", |c| c.write(4 * SECTOR_LEN, &[9; 3 * SECTOR_LEN]));
    let (data, at) = sector_place(&world, "south", copy, 4);
    flip(&data, at);
    let (data, at) = sector_place(&world, "south", copy, 40);
    flip(&data, at);
    match world.try_copy(("north", third), "south", "third", KeyChoice::AsSource) {
        Err(CopyError::DamagedBase { sector: SectorNo(40), region, .. }) if region == "south" => {}
        other => panic!("{other:?}"),
    }
    world.delete("south", copy);
    world.delete("south", base);
    let third_copy = world.copy(("north", third), "south", "third", KeyChoice::AsSource);
    world.equal("south", third_copy, &disk.model);
}

/// X4: what crossed does not cross again to be proven, whoever carried it; what has to, counts, and keeps the pace.
#[test]
fn a_copy_that_is_gone_on_with_does_not_cross_again() {
    for lost in [false, true] {
        let (world, _disk, first) = world();
        let plan = world.plan(("north", first), "south", "copied", KeyChoice::AsSource).unwrap();
        let copy = interrupted(&world, first, "copied", 4, 8 << 20);
        let layer = world.snapshot("south", copy).layer.unwrap();
        let words = world.region("south").layer_dir(layer).join("words");
        let told = std::fs::metadata(&words).unwrap().len();
        assert!(told > 0 && told % 40 == 0, "{told}");
        if lost {
            // Cut, changed, and of another layer: each is not believed.
            let mut bytes = std::fs::read(&words).unwrap();
            bytes.iter_mut().step_by(40).for_each(|byte| *byte ^= 1);
            bytes.truncate(bytes.len() - 7);
            std::fs::write(&words, bytes).unwrap();
        }
        assert_eq!(go_on(&world, copy).unwrap(), copy);
        assert!(!words.exists());
        assert_is_proven(&world, first, copy);
        let shipped = world.snapshot("south", copy).shipped_bytes;
        let at_most = plan.ship_bytes + if lost { plan.ship_bytes } else { 8 * 2 * MIB as u64 };
        assert!(shipped <= at_most, "{shipped} of {}", plan.ship_bytes);
        assert_eq!(shipped > plan.ship_bytes, lost, "{shipped} of {}", plan.ship_bytes);
    }
}

/// Where it was interrupted does not matter: what another process carried is proven as well.
#[test]
fn a_copy_of_two_processes_is_proven() {
    for after in [0, 1, 2, 3] {
        let (world, mut disk, first) = world();
        world.copy(("north", first), "south", "first", KeyChoice::AsSource);
        let second = disk.change(&world, "second", |c| {
            c.write(MIB, &[5; MIB]);
            c.discard(9 * MIB, MIB / 4);
        });
        let copy = interrupted(&world, second, "second", after, 3 << 20);
        assert_eq!(go_on(&world, copy).unwrap(), copy);
        world.equal("south", copy, &disk.model);
        assert_is_proven(&world, second, copy);
    }
}

/// The proofs of both sides are equal, and are what reading them whole gives.
fn assert_is_proven(world: &World, source: SnapshotId, copy: SnapshotId) {
    let sides = [("north", source), ("south", copy)]
        .map(|(region, id)| Side::open(&world.reader(region), id).unwrap());
    assert!(compare_proofs(&sides[0], &sides[1]).unwrap().is_nothing());
    let cancel = AtomicBool::new(false);
    let measured = sides.each_ref().map(|side| {
        let mut watch = VerifyWatch { cancel: &cancel, pace: None, progress: &mut |_| {} };
        side.measure(&sides[0], None, &mut watch).unwrap()
    });
    assert!(compare_measured(&measured[0], &measured[1]).is_nothing());
    for measured in &measured {
        let against = measured.against_proof.clone().expect("it has a proof");
        assert!(against.is_nothing(), "{against:?}");
    }
}

/// X3: through discards, another key, a larger disk, folds on either side, and bases that have lost their proof.
#[test]
fn proofs_are_of_content_whatever_was_done() {
    let (world, mut disk, first) = world();
    let other = world.key("south", "other");
    let mut random = Random::new(9);
    let copy = world.copy(("north", first), "south", "c0", KeyChoice::AsSource);
    assert_is_proven(&world, first, copy);
    let mut last = (first, copy);
    for round in 1..8u64 {
        let source = disk.change(&world, &format!("s{round}"), |c| {
            c.random(&mut random, (round as usize % 5) * MIB, 70_000);
            c.discard(3 * MIB * (round as usize % 3), 5 * SECTOR_LEN);
            c.write(20 * MIB, &vec![0; 4 * SECTOR_LEN]);
        });
        let key = if round % 3 == 2 { KeyChoice::Named(other.to_string()) } else { KeyChoice::AsSource };
        match round {
            3 => std::fs::remove_file(proof_file(&world, "south", last.1)).unwrap(),
            4 => flip(&proof_file(&world, "south", last.1), 200),
            _ => {}
        }
        let copy = world.copy(("north", source), "south", &format!("c{round}"), key);
        world.equal("south", copy, &disk.model);
        assert_is_proven(&world, source, copy);
        if round % 2 == 0 {
            for (region, id) in [("north", last.0), ("south", last.1)] {
                world.delete(region, id);
                assert!(!proof_file(&world, region, id).exists(), "it goes with its snapshot");
                let host = world.owner(region);
                host.fold(false, &mut |_| true).unwrap();
                host.close().unwrap();
            }
            assert_is_proven(&world, source, copy);
        }
        last = (source, copy);
    }
}

fn proof_file(world: &World, region: &str, id: SnapshotId) -> PathBuf {
    world.path(&format!("{region}/proofs/{id}"))
}

/// Writes a proof that says other than what a snapshot holds, by the snapshot's own keys.
fn forge(world: &World, region: &str, id: SnapshotId) {
    let host = world.reader(region);
    let (disk, moments) = host.open_snapshot_with_moments(id).unwrap();
    let top = disk.chain.layers().last().unwrap();
    let key = folder::proof_key(host.region(), top.id(), top.keys()).unwrap();
    let mut leaves = proof::Leaves::of_zeros(DISK as u64);
    leaves.change(ChunkNo(4), 1);
    let row = world.snapshot(region, id);
    proof::write(host.region(), &row, moments.all[0], &leaves, &key).unwrap();
}

#[test]
fn a_base_of_another_proof_is_none() {
    let (world, mut disk, first) = world();
    let base = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let second = disk.change(&world, "second", |c| c.write(0, &[1; SECTOR_LEN]));
    let plan = || world.plan(("north", second), "south", "second", KeyChoice::AsSource).unwrap();
    assert_eq!(plan().ship_bytes, SECTOR_LEN as u64);
    forge(&world, "south", base);
    let all = plan();
    assert!(all.base.is_none() && all.ship_bytes == 4 * MIB as u64, "{:?}", all.base);
    drop(all);
    let copy = world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    world.equal("south", copy, &disk.model);
    assert_is_proven(&world, second, copy);
}

/// A source that has a proof of its own is not overruled.
#[test]
fn a_copy_that_the_sources_proof_denies_is_none() {
    let (world, _disk, first) = world();
    forge(&world, "north", first);
    let before = world.holdings("south");
    let copy = ["snapshot", "copy", "--wait", "north/first", "--to", "south", "--name", "first"];
    world.fails(
        &copy,
        6,
        &["the copy differs from snapshot first of region north", "region south", "--deep"],
    );
    assert_eq!(world.holdings("south"), before);
    differs(
        &world,
        &["snapshot", "verify", "first", "--deep", "--region", "north"],
        &["snapshot first", "is not what its proof says: in 3 chunks of 2 MiB"],
    );
}

/// Exit 6, the ranges on stdout, and these words.
#[track_caller]
fn differs(world: &World, args: &[&str], words: &[&str]) {
    let output = world.run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{args:?}: {said}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("OFFSET BYTES"), "{args:?}");
    words.iter().for_each(|word| assert!(said.contains(word), "{args:?}: {word:?} is missing in: {said}"));
}

#[test]
fn verify_compares_regions_without_reading() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| {
        c.write(2 * MIB, &[1; MIB]);
        c.write(6 * MIB, &[1; SECTOR_LEN]);
        c.discard(8 * MIB, 3 * MIB);
    });
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let verify = |args: &[&'static str]| [&["snapshot", "verify", "--region", "south"], args].concat();
    let equal = world.run(&verify(&["second", "--against", "north/second"]));
    let said = String::from_utf8_lossy(&equal.stderr).into_owned();
    assert!(equal.status.success() && equal.stdout.is_empty(), "{said}");
    assert!(
        said.contains("equals snapshot second of region north (by their proofs, without reading data)"),
        "{said}"
    );
    let json = world.json(&verify(&["second", "--against", "north/second"]));
    assert_eq!((&json["equal"], &json["deep"]), (&true.into(), &false.into()));
    assert_eq!(json["snapshot"]["root"], json["against"]["root"]);
    assert_eq!((&json["against"]["region"], &json["differing"]), (&"north".into(), &serde_json::json!([])));

    // No layer is looked into: all of the target's sectors may be gone.
    let data = layer_files(&world, "south", "data");
    let saved: Vec<_> = data.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, bytes) in data.iter().zip(&saved) {
        (64 << 10..bytes.len() as u64).step_by(4096).for_each(|at| flip(path, at));
    }
    world.ok(&verify(&["second", "--against", "north/second"]));
    world.fails(&verify(&["second", "--against", "north/second", "--deep"]), 6, &["damaged"]);
    data.iter().zip(&saved).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());

    // Chunks 1, 3 and 4 (bytes of 9 to 10 MiB became zeros).
    let differs = ["first", "--against", "north/second", "--output", "json"];
    for args in [verify(&differs), [verify(&differs), vec!["--deep"]].concat()] {
        let output = world.run(&args);
        assert_eq!(output.status.code(), Some(6), "{args:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let range = |offset: usize, length: usize| serde_json::json!({ "offset_bytes": offset, "length_bytes": length });
        assert_eq!(json["differing"], serde_json::json!([range(2 * MIB, 2 * MIB), range(6 * MIB, 4 * MIB)]));
        assert_eq!((&json["equal"], &json["differing_chunks"]), (&false.into(), &3.into()));
        assert!(String::from_utf8_lossy(&output.stderr).contains("in 3 chunks of 2 MiB"));
    }
}

fn layer_files(world: &World, region: &str, file: &str) -> Vec<PathBuf> {
    let layers = std::fs::read_dir(world.path(&format!("{region}/layers"))).unwrap();
    layers.map(|layer| layer.unwrap().path().join(file)).filter(|path| path.exists()).collect()
}

/// Case, exit, sentence.
#[test]
fn what_can_not_be_compared_is_refused() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| c.write(0, &[4; SECTOR_LEN]));
    let copy = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let mut stranger = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let content = disk.model.clone();
    let strange = stranger.change(&world, "stranger", |c| c.write(0, &content));
    let third = disk.change(&world, "third", |c| c.write(0, &[5; SECTOR_LEN]));
    assert!(!proof_file(&world, "north", third).exists());
    let verify = |args: &[&str], exit, words: &[&str]| {
        world.fails(&[&["snapshot", "verify", "--region", "south"], args].concat(), exit, words);
    };
    verify(
        &["first", "--against", "north/third"],
        4,
        &["snapshot third of region north has no proof", "--deep"],
    );
    verify(&["first", "--against", "north/stranger"], 4, &["are not of one disk", "add --deep"]);
    verify(&["first", "--against", "north/none"], 3, &["none"]);
    verify(&["first", "--against", "nowhere/first"], 3, &["nowhere"]);
    verify(&["first", "--against", "/first"], 2, &["REGION/THING"]);
    verify(&["first", "--receipt", "/nowhere/r"], 2, &["--deep"]);
    let taken = world.path("taken");
    std::fs::write(&taken, "mine").unwrap();
    let taken = taken.display().to_string();
    verify(&["first", "--deep", "--receipt", &taken], 5, &["is there already"]);
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");

    // Of other disks the content alone is compared; the proofs of neither are touched.
    world.ok(&["snapshot", "verify", "second", "--region", "north", "--against", "north/stranger", "--deep"]);
    let unequal = |args: &[&str], words: &[&str]| {
        differs(&world, &[&["snapshot", "verify", "--region", "south"], args].concat(), words);
    };
    unequal(&["first", "--against", "north/stranger", "--deep"], &["differs from", "in 1 chunk of 2 MiB"]);
    assert!(!proof_file(&world, "north", strange).exists());

    // Reading makes the proof that is missing, and it holds.
    world.ok(&["snapshot", "verify", "third", "--region", "north", "--deep"]);
    unequal(&["second", "--against", "north/third"], &["in 1 chunk of 2 MiB"]);

    // One that was put in another's place, cut short or changed is no proof.
    let (mine, other) = (proof_file(&world, "south", copy), named(&world, "south", "second").unwrap().id);
    let bytes = std::fs::read(&mine).unwrap();
    std::fs::copy(proof_file(&world, "south", other), &mine).unwrap();
    verify(&["first", "--against", "north/first"], 6, &["data key"]);
    for (what, change) in [("cut", bytes.len() - 1), ("no head", 150), ("short", 10), ("empty", 0)] {
        std::fs::write(&mine, &bytes[..change]).unwrap();
        verify(&["second", "--against", "south/first"], 6, &["proof"]);
        assert!(!what.is_empty());
    }
    for at in [0, 8, 12, 30, 120, 190, bytes.len() as u64 - 1] {
        std::fs::write(&mine, &bytes).unwrap();
        flip(&mine, at);
        verify(&["second", "--against", "south/first"], 6, &[]);
        if at == 120 {
            let said =
                String::from_utf8(world.run(&["region", "check", "--region", "south"]).stdout).unwrap();
            assert!(said.contains("snapshot first") && said.contains("its proof can't be read"), "{said}");
        }
    }
    world.ok(&["snapshot", "verify", "first", "--region", "south", "--deep"]);
    world.ok(&["snapshot", "verify", "first", "--region", "south", "--against", "north/first"]);
    world.ok(&["key", "disable", &world.default_key("south").to_string(), "--region", "south"]);
    verify(&["first", "--against", "north/first"], 4, &["disabled"]);
}

/// `--receipt`: another program's word for what both sides hold.
#[test]
fn a_receipt_is_what_veritysetup_says() {
    let (world, mut disk, _) = world();
    let last = disk.change(&world, "last", |c| c.write(DISK - SECTOR_LEN, &[1; SECTOR_LEN]));
    world.copy(("north", last), "south", "last", KeyChoice::AsSource);
    let path = world.path("receipt").display().to_string();
    world.ok(&[
        "snapshot",
        "verify",
        "last",
        "--region",
        "south",
        "--against",
        "north/last",
        "--deep",
        "--receipt",
        &path,
    ]);
    let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&receipt["version"], &receipt["equal"]), (&1.into(), &true.into()));
    let (plain, hashes) = (world.path("plain"), world.path("hashes"));
    std::fs::write(&plain, &disk.model).unwrap();
    let salt = format!("--salt={}", receipt["salt"].as_str().unwrap());
    let formatted = std::process::Command::new("veritysetup")
        .args(["format", "--hash=sha256", &salt])
        .args([&plain, &hashes])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&formatted.stdout).into_owned();
    let root = said.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim();
    for side in ["snapshot", "against"] {
        assert_eq!(receipt[side]["verity_root"], root, "{side}: {said}");
    }
}
