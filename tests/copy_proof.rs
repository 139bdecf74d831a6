//! Guarded here: a copy that reads otherwise than its source and says success; proofs that say equal of what is not, or that are of
//! something else than of what a snapshot holds.

mod copy_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use copy_support::daemon::{MIB, named};
use copy_support::proofs::{DISK, differs, forge, forge_as, proof_file, world};
use copy_support::{Disk, Random, World, flip, name};
use terrane::catalog::DiskKind;
use terrane::copy::{
    self, Begun, Copy, CopyError, KeyChoice, OwnProof, Pace, Side, VerifyWatch, Watch, compare_measured,
    compare_proofs,
};
use terrane::ids::SnapshotId;
use terrane::layer::{Layer, PageCache, slot_offset};
use terrane::units::{SECTOR_LEN, SectorNo};
use terrane::volume::folder::{self, Opening};
use terrane::volume::proof::{self, Rests};
use terrane::volume::{Host, Source};

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
