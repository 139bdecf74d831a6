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
    self, Begun, Copy, CopyError, KeyChoice, OwnProof, Pace, Side, VerifyWatch, Watch, compare_measured,
    compare_proofs,
};
use terrane::ids::SnapshotId;
use terrane::layer::{Layer, PageCache, slot_offset};
use terrane::units::{ChunkNo, SECTOR_LEN, SectorNo};
use terrane::volume::folder::{self, Opening};
use terrane::volume::proof::{self, Rests};
use terrane::volume::{Host, Source};

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
        let copy = interrupted(&world, first, "copied", 4, 2 << 20);
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
    for after in [0, 1, 3, 5] {
        let (world, mut disk, first) = world();
        world.copy(("north", first), "south", "first", KeyChoice::AsSource);
        let second = disk.change(&world, "second", |c| {
            [1, 5, 13, 21].into_iter().for_each(|at| c.write(at * MIB, &[5; MIB]));
            c.discard(9 * MIB, MIB / 4);
        });
        let copy = interrupted(&world, second, "second", after, 2 << 20);
        assert_eq!(go_on(&world, copy).unwrap(), copy);
        world.equal("south", copy, &disk.model);
        assert_is_proven(&world, second, copy);
    }
}

/// The proofs of both sides are equal, and are what reading them whole gives.
fn assert_is_proven(world: &World, source: SnapshotId, copy: SnapshotId) {
    let sides = [("north", source), ("south", copy)]
        .map(|(region, id)| Side::open(&world.reader(region), id).unwrap());
    assert!(compare_proofs(&sides[0], &sides[1]).unwrap().differing.is_nothing());
    let cancel = AtomicBool::new(false);
    let measured = sides.each_ref().map(|side| {
        let mut watch = VerifyWatch { cancel: &cancel, pace: None, progress: &mut |_| {} };
        side.measure(&sides[0], None, &mut watch).unwrap()
    });
    assert!(compare_measured(&measured[0], &measured[1]).is_nothing());
    for measured in &measured {
        assert!(matches!(measured.own_proof, OwnProof::Equal), "{:?}", measured.own_proof);
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
    forge_as(world, region, id, Rests::Bytes);
}

fn forge_as(world: &World, region: &str, id: SnapshotId, rests: Rests) {
    let host = world.reader(region);
    let (disk, moments) = host.open_snapshot_with_moments(id).unwrap();
    let top = disk.chain.layers().last().unwrap();
    let key = folder::proof_key(host.region(), top.id(), top.keys()).unwrap();
    let mut leaves = proof::Leaves::of_zeros(DISK as u64);
    leaves.change(ChunkNo(4), 1);
    let row = world.snapshot(region, id);
    proof::write(host.region(), &row, moments.all[0], &leaves, &key, rests).unwrap();
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

/// A proof that a copy onto a base left with its source says no more than that base's did: a copy that carries all overrules it.
#[test]
fn what_a_base_said_is_overruled_by_reading_all() {
    let world = World::new(&["north", "south", "west"]);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
    let second = disk.change(&world, "second", |c| c.write(4 * MIB, &[2; MIB]));
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let derived = |id| {
        let host = world.reader("north");
        let (_, moments) = host.open_snapshot_with_moments(id).unwrap();
        let row = world.snapshot("north", id);
        proof::find_head(host.region(), &row, moments.all[0]).unwrap().rests != Rests::Bytes
    };
    assert_eq!((derived(first), derived(second)), (false, true));
    forge_as(&world, "north", second, Rests::Maps);
    let copy = world.copy(("north", second), "west", "second", KeyChoice::AsSource);
    assert!(!derived(second), "all of it was read");
    let sides = [("north", second), ("west", copy)]
        .map(|(region, id)| Side::open(&world.reader(region), id).unwrap());
    assert!(compare_proofs(&sides[0], &sides[1]).unwrap().differing.is_nothing());
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

    // Of other disks the content alone is compared; each has a proof by its own key.
    let compared = world.json(&[
        "snapshot",
        "verify",
        "second",
        "--region",
        "north",
        "--against",
        "north/stranger",
        "--deep",
    ]);
    assert_eq!(compared["snapshot"]["root"], compared["against"]["root"]);
    assert_eq!(proofs_of(&compared), ["equal", "made"]);
    let compared = world.json(&["snapshot", "verify", "stranger", "--region", "north", "--deep"]);
    assert_eq!(proofs_of(&compared), ["equal", "null"]);
    let unequal = |args: &[&str], words: &[&str]| {
        differs(&world, &[&["snapshot", "verify", "--region", "south"], args].concat(), words);
    };
    unequal(&["first", "--against", "north/stranger", "--deep"], &["differs from", "in 1 chunk of 2 MiB"]);
    assert!(proof_file(&world, "north", strange).exists());

    // Reading makes the proof that is missing, and it holds.
    world.ok(&["snapshot", "verify", "third", "--region", "north", "--deep"]);
    unequal(&["second", "--against", "north/third"], &["in 1 chunk of 2 MiB"]);

    // One that was put in another's place, cut short or changed is no proof.
    let (mine, other) = (proof_file(&world, "south", copy), named(&world, "south", "second").unwrap().id);
    let bytes = std::fs::read(&mine).unwrap();
    std::fs::copy(proof_file(&world, "south", other), &mine).unwrap();
    verify(&["first", "--against", "north/first"], 6, &["data key", "--deep` reads all of it"]);
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
    // Of either side.
    for region in ["north", "south"] {
        let key = world.default_key(region).to_string();
        world.ok(&["key", "disable", &key, "--region", region]);
        for deep in [&[][..], &["--deep"]] {
            verify(&[&["first", "--against", "north/first"], deep].concat(), 4, &["disabled", region]);
        }
        let checked = world.run(&["region", "check", "--region", region]);
        assert!(checked.status.success(), "nothing is said of what is closed: {checked:?}");
        world.ok(&["key", "enable", &key, "--region", region]);
    }
}

/// What each side's own proof is, in JSON.
fn proofs_of(shown: &serde_json::Value) -> [String; 2] {
    ["snapshot", "against"].map(|side| {
        shown[side]["proof"].as_str().map_or_else(|| shown[side]["proof"].to_string(), str::to_owned)
    })
}

/// X3: who reads all of a snapshot is told what became of its proof; nothing is called proven that was compared with nothing, and
/// nothing is overwritten that another version may know.
#[test]
fn what_becomes_of_a_proof_is_told() {
    let (world, mut disk, first) = world();
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let last = disk.change(&world, "last", |c| c.write(0, &[4; SECTOR_LEN]));
    let deep = ["snapshot", "verify", "last", "--region", "north", "--deep"];
    let file = proof_file(&world, "north", last);
    let damage: [(&str, &dyn Fn(), &str, &str); 6] = [
        ("none", &|| {}, "made", "had no proof, and was given one"),
        ("whole", &|| {}, "equal", "is what its proof says"),
        ("damaged leaves", &|| flip(&file, 200), "replaced", "had a damaged proof, which was made anew"),
        ("damaged head", &|| flip(&file, 150), "replaced", "had a damaged proof, which was made anew"),
        ("cut", &|| std::fs::write(&file, "TRNPROOF").unwrap(), "replaced", "had a damaged proof"),
        ("gone", &|| std::fs::remove_file(&file).unwrap(), "made", "had no proof"),
    ];
    for (what, damage, became, words) in damage {
        damage();
        let before = std::fs::read(&file).ok();
        let said = String::from_utf8(world.run(&deep).stderr).unwrap();
        assert!(said.contains(words), "{what}: {words} is missing in {said}");
        assert_eq!(said.contains("is what its proof says"), became == "equal", "{what}: {said}");
        match before.filter(|_| became != "equal") {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None if became == "made" => std::fs::remove_file(&file).unwrap(),
            None => {}
        }
        let shown = world.json(&deep);
        assert_eq!(proofs_of(&shown), [became, "null"], "{what}");
        assert_eq!((&shown["equal"], &shown["deep"]), (&true.into(), &true.into()), "{what}");
        assert_eq!(proofs_of(&world.json(&deep)), ["equal", "null"], "{what}: afterwards");
    }
    let by_proofs = ["snapshot", "verify", "first", "--region", "south", "--against", "north/first"];
    assert_eq!(proofs_of(&world.json(&by_proofs)), ["null", "null"]);

    // Another version's is left as it is, whoever asks.
    let bytes = std::fs::read(&file).unwrap();
    for (at, words) in [(8, "version 3"), (12, "features 0x1")] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        std::fs::write(&file, &other).unwrap();
        world.fails(&deep, 6, &[words, "this program knows version 2", &last.to_string()]);
        world.copy(("north", last), "south", &format!("last-{at}"), KeyChoice::AsSource);
        let checked = world.run(&["region", "check", "--region", "north"]);
        assert_eq!(checked.status.code(), Some(6));
        let said = String::from_utf8(checked.stdout).unwrap();
        assert!(said.contains(words) && !said.contains("--deep"), "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), other);
    }
}

/// X3: which side is at fault: of two that are equal, the one that its proof denies; of two that are not, both are said.
#[test]
fn a_side_that_its_own_proof_denies_is_named() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| c.write(2 * MIB, &[1; SECTOR_LEN]));
    let copy = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    forge(&world, "south", copy);
    let found = |args: &[&str]| {
        let args = [&["snapshot", "verify", "first", "--region", "south", "--output", "json"], args].concat();
        let output = world.run(&args);
        assert_eq!(output.status.code(), Some(6), "{args:?}");
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (shown, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (shown, said) = found(&["--deep", "--against", "north/first"]);
    assert_eq!((&shown["equal"], &shown["differing_chunks"]), (&true.into(), &0.into()));
    assert_eq!(proofs_of(&shown), ["differs", "equal"]);
    assert!(said.contains("of region south is not what its proof says: in 3 chunks"), "{said}");
    assert!(!said.contains("differs from"), "{said}");

    let (shown, said) = found(&["--deep", "--against", "north/second"]);
    assert_eq!((&shown["equal"], &shown["differing_chunks"]), (&false.into(), &1.into()));
    assert_eq!(proofs_of(&shown), ["differs", "equal"]);
    assert!(said.contains("of region north: in 1 chunk of 2 MiB; snapshot first"), "{said}");
    assert!(said.contains("of region south is not what its proof says: in 3 chunks"), "{said}");

    let (shown, said) = found(&["--deep"]);
    assert_eq!((&shown["equal"], &shown["differing_chunks"]), (&false.into(), &3.into()));
    assert_eq!(proofs_of(&shown), ["differs", "null"]);
    assert!(said.contains("is not what its proof says: in 3 chunks"), "{said}");
}

/// How a proof was made is no part of what it says; a head of another kind is none.
#[test]
fn a_derived_proof_is_as_good() {
    let (world, _disk, first) = world();
    let copy = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let host = world.reader("south");
    let (disk, moments) = host.open_snapshot_with_moments(copy).unwrap();
    let top = disk.chain.layers().last().unwrap();
    let key = folder::proof_key(host.region(), top.id(), top.keys()).unwrap();
    let (row, point) = (world.snapshot("south", copy), moments.all[0]);
    let said = proof::read(host.region(), &row, point).unwrap().unwrap();
    assert!(said.head.rests == Rests::Bytes);
    let leaves = said.leaves(&key).unwrap();
    proof::write(host.region(), &row, point, &leaves, &key, Rests::Maps).unwrap();
    let derived = proof::find_head(host.region(), &row, point).unwrap();
    assert!(derived.rests == Rests::Maps && derived.agrees_with(&said.head));
    assert_is_proven(&world, first, copy);
}

/// The sweep takes what no snapshot has and what was being written, and nothing else; no state of the folder keeps anybody from using
/// the region.
#[test]
fn the_sweep_takes_its_own_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};
    let (world, _disk, first) = world();
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let proofs = world.path("north/proofs");
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let (old, new, future) = (now - 2 * hour, now - hour / 2, now + 2 * hour);
    let temporary = ".snap-00000000000000007.0123456789abcdef.tmp";
    let cases = [
        ("snap-00000000000000001", new, false),
        ("snap-00000000000000002", future, false),
        (temporary, old, false),
        (".snap-00000000000000007.0123456789abcdee.tmp", new, true),
        (".snap-00000000000000007.0123456789abcded.tmp", future, true),
        ("notes", old, true),
        ("snap-1", old, true),
        ("snap-0000000000000000A", old, true),
        (".snap-00000000000000007.0123456789abcde.tmp", old, true),
        (".snap-00000000000000007.0123456789abcdeX.tmp", old, true),
        (".notes.0123456789abcdef.tmp", old, true),
    ];
    let outside = world.path("outside");
    std::fs::create_dir(&outside).unwrap();
    for folder in [&proofs, &outside] {
        for (name, written, _) in cases {
            std::fs::File::create(folder.join(name)).unwrap().set_modified(written).unwrap();
        }
    }
    symlink("notes", proofs.join("snap-00000000000000003")).unwrap();
    std::fs::create_dir(proofs.join("snap-00000000000000004")).unwrap();
    let sweep = || world.owner("north").close().unwrap();
    sweep();
    for (name, _, stays) in cases {
        assert_eq!(proofs.join(name).exists(), stays, "{name}");
    }
    assert!(proof_file(&world, "north", first).exists());
    assert!(
        proofs.join("snap-00000000000000003").is_symlink() && proofs.join("snap-00000000000000004").is_dir()
    );

    // Anything else in its place.
    let kept = world.path("kept");
    std::fs::rename(&proofs, &kept).unwrap();
    std::fs::copy(kept.join(first.to_string()), outside.join(first.to_string())).unwrap();
    let instead: [(&str, &dyn Fn()); 3] = [
        ("a symbolic link", &|| symlink(&outside, &proofs).unwrap()),
        ("a regular file", &|| std::fs::write(&proofs, "mine").unwrap()),
        ("chmod 700", &|| {
            std::fs::create_dir(&proofs).unwrap();
            std::fs::set_permissions(&proofs, std::fs::Permissions::from_mode(0o777)).unwrap();
        }),
    ];
    for (words, make) in instead {
        make();
        sweep();
        let checked = world.run(&["region", "check", "--region", "north"]);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&checked.stdout),
            String::from_utf8_lossy(&checked.stderr)
        );
        assert_eq!(checked.status.code(), Some(6), "{said}");
        assert!(said.contains("north/proofs") && said.contains(words), "{words}: {said}");
        world.fails(&["snapshot", "verify", "first", "--region", "north", "--deep"], 6, &["proofs", words]);
        match words {
            "chmod 700" => std::fs::remove_dir(&proofs).unwrap(),
            _ => std::fs::remove_file(&proofs).unwrap(),
        }
    }
    // Nor from deleting; what it leads to stays.
    symlink(&outside, &proofs).unwrap();
    world.delete("north", first);
    for name in cases.map(|(name, ..)| name.to_owned()).into_iter().chain([first.to_string()]) {
        assert!(outside.join(&name).exists(), "{name}");
    }
}

/// A deep verification is held back, and ends by a signal in order: exit 7, and no receipt that says nothing.
#[test]
fn a_deep_verification_can_be_slowed_and_cancelled() {
    use std::io::{BufRead, BufReader};
    let (world, _disk, first) = world();
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let path = world.path("receipt").display().to_string();
    let args = ["snapshot", "verify", "first", "--region", "south", "--against", "north/first", "--deep"];
    // At a byte a second it does not end by itself.
    let slow = [&args[..], &["--max-rate", "1", "--receipt", &path, "--output", "json"]].concat();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut command = world.command(&slow);
        let mut child = command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let progress: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(progress["bytes_total"].as_u64().unwrap() >= 8 * MIB as u64, "{line}");
        // Of the end, or of a second later: what is held back is not near its end.
        line.clear();
        said.read_line(&mut line).unwrap();
        let progress: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(progress["bytes_done"].as_u64().unwrap() < 4 * MIB as u64, "{line}");
        assert!(std::path::Path::new(&path).exists(), "it has its place before hours are spent");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let rest = std::io::read_to_string(said).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{rest}");
        assert!(output.stdout.is_empty() && rest.contains("was cancelled before its end"), "{rest}");
        assert!(!std::path::Path::new(&path).exists());
    }
    world.ok(&args);
}

/// What was found is said, whether its receipt can be written or not.
#[test]
fn a_receipt_that_can_not_be_written_costs_no_verdict() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| c.write(0, &[4; SECTOR_LEN]));
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let path = world.path("receipt");
    let nowhere = world.path("nowhere/receipt").display().to_string();
    let verify = ["snapshot", "verify", "first", "--region", "south", "--deep", "--receipt"];
    world.fails(&[&verify[..], &[&nowhere]].concat(), 3, &["making the receipt", &nowhere]);
    world.fails(
        &["snapshot", "verify", "none", "--region", "south", "--deep", "--receipt", path.to_str().unwrap()],
        3,
        &["none"],
    );
    assert!(!path.exists(), "nothing is left of one that came to nothing");

    // No file may grow beyond a part of a receipt. What SQLite shares between processes is there as long as somebody has it open.
    let _open = ["north", "south"].map(|region| {
        let host = world.reader(region);
        host.region().catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
        host
    });
    let limited = |against: &str| {
        let of_program = world.command(&[]);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"]).arg(of_program.get_program());
        for (name, value) in of_program.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let output = shell.args(verify).arg(&path).args(["--against", against]).output().unwrap();
        assert!(!path.exists(), "nothing is left of a part");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (exit, _, said) = limited("north/first");
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("equals snapshot first") && said.contains("writing the receipt"), "{said}");
    let (exit, ranges, said) = limited("north/second");
    assert_eq!(exit, Some(6), "{said}");
    assert!(ranges.starts_with("OFFSET BYTES") && ranges.contains("2097152"), "{ranges}");
    assert!(said.contains("in 1 chunk of 2 MiB; writing the receipt"), "{said}");
}

/// `--receipt`: another program's word for what both sides hold; of the smallest disk too, over which there is no tree.
#[test]
fn a_receipt_is_what_veritysetup_says() {
    let (world, mut disk, _) = world();
    let last = disk.change(&world, "last", |c| c.write(DISK - SECTOR_LEN, &[1; SECTOR_LEN]));
    let key = Some(world.default_key("north"));
    let mut small = Disk::new(&world, "north", SECTOR_LEN, key, DiskKind::Data);
    let of_zeros = small.change(&world, "zeros", |c| {
        c.write(0, &[3; SECTOR_LEN]);
        c.discard(0, SECTOR_LEN);
    });
    let zeros = small.model.clone();
    let block = small.change(&world, "block", |c| c.write(0, &[7; SECTOR_LEN]));
    for (called, id, model) in
        [("last", last, &disk.model), ("zeros", of_zeros, &zeros), ("block", block, &small.model)]
    {
        world.copy(("north", id), "south", called, KeyChoice::AsSource);
        is_what_veritysetup_says(&world, called, model);
    }
}

fn is_what_veritysetup_says(world: &World, called: &str, model: &[u8]) {
    let [path, plain, hashes] =
        ["receipt", "plain", "hashes"].map(|what| world.path(&format!("{called}-{what}")));
    let (against, receipt) = (format!("north/{called}"), path.display().to_string());
    let verify = ["snapshot", "verify", called, "--region", "south", "--deep"];
    world.ok(&[&verify[..], &["--against", &against, "--receipt", &receipt]].concat());
    let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&receipt["version"], &receipt["equal"]), (&1.into(), &true.into()));
    assert_eq!(proofs_of(&receipt), ["equal", "equal"]);
    std::fs::write(&plain, model).unwrap();
    let salt = format!("--salt={}", receipt["salt"].as_str().unwrap());
    let formatted = std::process::Command::new("veritysetup")
        .args(["format", "--hash=sha256", &salt])
        .args([&plain, &hashes])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&formatted.stdout).into_owned();
    let root = said.lines().find_map(|line| line.strip_prefix("Root hash:"));
    let root = root.unwrap_or_else(|| panic!("{called}: {formatted:?}")).trim();
    for side in ["snapshot", "against"] {
        assert_eq!(receipt[side]["verity_root"], root, "{called}, {side}: {said}");
    }
}
