//! Guards against a fold (engine rule 20) that goes wrong by what else a region is doing: writes, seals and discards of the
//! disk, readers and copies of other processes, a key that is disabled.

mod copy_support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use copy_support::{Disk, World, name, take};
use terrane::catalog::{CatalogError, DiskKind, Fold, FoldWay, KeyState, LayerState};
use terrane::copy::{self, Copy, CopyError, KeyChoice, Watch};
use terrane::ids::SnapshotId;
use terrane::volume::{Host, HostError, Order, VolumeSpec, create_volume};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;

fn fold(host: &Arc<Host>) {
    host.fold(false, &mut |_| true).unwrap();
}

/// A fold that is told to stop after its first chunk, as by the end of a mount.
fn begin_to_fold(host: &Arc<Host>) {
    host.fold(false, &mut |_| false).unwrap();
}

fn delete(host: &Arc<Host>, snapshot: SnapshotId) -> Result<(), HostError> {
    host.execute(&Order::DeleteSnapshot { snapshot: snapshot.to_string() }, false)
}

fn disk(world: &World) -> Disk {
    Disk::new(world, "north", 8 * MIB, Some(world.default_key("north")), DiskKind::Data)
}

fn live_bytes(host: &Arc<Host>, disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xaa; disk.model.len()];
    host.open_volume(disk.id, false).unwrap().disk.read(0, &mut bytes).unwrap();
    bytes
}

/// A zero over a layer that hides data of the one below it: once that layer has gone, the zero is all that hides it.
#[test]
fn what_is_discarded_amid_a_fold_stays_zero() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    disk.change(&world, "base", |c| c.write(0, &[1; 4 * MIB]));
    let middle = disk.change(&world, "middle", |c| {
        c.discard(0, 2 * MIB);
        c.write(2 * MIB, &[2; SECTOR]);
    });
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    open.disk.write((5 * SECTOR) as u64, &[3; SECTOR]).unwrap();
    delete(&host, middle).unwrap();
    let mut discarded = false;
    host.fold(false, &mut |_| {
        if !std::mem::replace(&mut discarded, true) {
            open.disk.discard((5 * SECTOR) as u64, SECTOR as u64).unwrap();
        }
        true
    })
    .unwrap();
    assert!(discarded);
    assert!(live_bytes(&host, &disk) == disk.model, "what was discarded is back");
}

/// The child took a volume's writes when the fold began, and is sealed when it goes on.
#[test]
fn a_fold_goes_on_over_a_seal() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 8 * MIB]));
    let host = world.owner("north");
    host.open_volume(disk.id, false).unwrap().disk.write(0, &[2; SECTOR]).unwrap();
    disk.model[..SECTOR].fill(2);
    delete(&host, first).unwrap();
    begin_to_fold(&host);
    let second = take(&host, disk.id, "second");
    host.close().unwrap();
    drop(host);
    // Cut short again and again, by a process that ends without a word.
    for _ in 0..3 {
        let host = world.owner("north");
        begin_to_fold(&host);
        drop(host);
        world.equal("north", second, &disk.model);
        let host = world.owner("north");
        assert!(live_bytes(&host, &disk) == disk.model);
        host.close().unwrap();
    }
    let host = world.owner("north");
    fold(&host);
    assert!(live_bytes(&host, &disk) == disk.model);
    drop(host);
    world.equal("north", second, &disk.model);
}

/// A snapshot is taken, and its seal finished, between the last sector that a fold moves into the volume's layer and its end:
/// what that layer says of its moment is not the fold's to change any more.
#[test]
fn a_fold_ends_in_no_layer_that_was_sealed_meanwhile() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 2 * SECTOR]));
    let host = world.owner("north");
    host.open_volume(disk.id, true).unwrap().disk.write(0, &[2; SECTOR]).unwrap();
    disk.model[..SECTOR].fill(2);
    delete(&host, first).unwrap();
    let mut second = None;
    host.fold(true, &mut |progress| {
        if second.is_none() {
            assert_eq!(progress.moved_bytes, SECTOR as u64, "all there is to move");
            let taken = take(&host, disk.id, "second");
            let layer = world.snapshot("north", taken).layer.unwrap();
            let is_finished = || {
                let layer = world.region("north").catalog().unwrap().read(|tx| tx.layer(layer)).unwrap();
                layer.sealed_generation.is_some()
            };
            while !is_finished() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            second = Some(taken);
        }
        true
    })
    .unwrap();
    let second = second.expect("a sector was moved");
    world.equal("north", second, &disk.model);
    assert!(live_bytes(&host, &disk) == disk.model);
    host.close().unwrap();
    drop(host);
    let host = world.owner("north");
    assert!(live_bytes(&host, &disk) == disk.model);
    fold(&host);
    world.equal("north", second, &disk.model);
    assert_eq!(world.holdings("north").0, 2, "what had lost its name is gone");
}

/// Told to stop while it gives back the space of what it moved over, here and there: it goes on, in the same process or the next.
#[test]
fn a_fold_that_was_stopped_while_it_gave_space_back_goes_on() {
    for same_process in [true, false] {
        let world = World::new(&["north"]);
        let mut disk = disk(&world);
        let first = disk.change(&world, "first", |c| c.write(0, &vec![1; 8 * MIB]));
        let second = disk.change(&world, "second", |c| {
            (0..8 * MIB).step_by(2 * SECTOR).for_each(|at| c.write(at, &[2; SECTOR]));
        });
        let host = world.owner("north");
        delete(&host, first).unwrap();
        let layers = world.holdings("north").0;
        let mut asked = 0;
        let mut stop = |host: &Arc<Host>, has_moved: bool| {
            host.fold(false, &mut |progress| {
                let is_anew = has_moved && progress.moved_bytes != 4 * MIB as u64;
                assert!(!is_anew, "it moves again what it had moved: {progress:?}");
                asked += u64::from(progress.gives_back);
                !progress.gives_back || asked % 3 != 2
            })
            .unwrap();
            assert_eq!(world.holdings("north").0, layers, "it was to stop before its end");
            world.equal("north", second, &disk.model);
        };
        stop(&host, false);
        stop(&host, true);
        let host = if same_process {
            host
        } else {
            drop(host);
            world.owner("north")
        };
        fold(&host);
        assert_eq!((asked, world.holdings("north").0), (5, layers - 1));
        world.equal("north", second, &disk.model);
        let kept = world.snapshot("north", second).layer.unwrap();
        let data = world.region("north").layer_dir(kept).join("data");
        let stored = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(data).unwrap()) * 512;
        assert!(stored < 11 * MIB as u64, "{stored} bytes are stored of 8 MiB, 4 of which were moved");
    }
}

/// The catalog is not vouched for: who writes into it that more was moved must not make the rest be thrown away.
#[test]
fn how_far_a_fold_is_is_not_believed_of_the_catalog() {
    for way in [FoldWay::Up, FoldWay::Down] {
        let world = World::new(&["north"]);
        let mut disk = disk(&world);
        let first = disk.change(&world, "first", |c| c.write(0, &[1; 6 * MIB]));
        let second = disk.change(&world, "second", |c| {
            c.write(0, &[2; 5 * MIB]);
            if way == FoldWay::Up {
                c.write(6 * MIB, &[2; 2 * MIB]);
            }
        });
        let host = world.owner("north");
        delete(&host, first).unwrap();
        begin_to_fold(&host);
        let begun = host.region().catalog().unwrap().read(|tx| tx.folds()).unwrap().remove(0);
        assert_eq!((begun.way, begun.next_chunk), (way, 1));
        let forged = Fold { next_chunk: 1 << 20, ..begun };
        host.region().catalog().unwrap().write(|tx| tx.set_fold_progress(&forged)).unwrap();
        host.close().unwrap();
        drop(host);
        let host = world.owner("north");
        fold(&host);
        assert_eq!(host.region().catalog().unwrap().read(|tx| tx.folds()).unwrap(), []);
        assert!(live_bytes(&host, &disk) == disk.model, "{way:?}");
        host.close().unwrap();
        world.equal("north", second, &disk.model);
    }
}

/// Rows that say a fold is under way make no layer stand on another than its header says.
#[test]
fn a_layer_stands_where_its_own_key_says() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let change = |disk: &mut Disk, called: &str, n: u8| {
        disk.change(&world, called, |c| c.write(n as usize * MIB, &[n; MIB]))
    };
    let [first, second, third] =
        [("first", 1), ("second", 2), ("third", 3)].map(|(called, n)| change(&mut disk, called, n));
    let host = world.owner("north");
    let mut catalog = host.region().catalog().unwrap();
    let [bottom, middle, top] =
        [first, second, third].map(|id| catalog.read(|tx| tx.layer_of_snapshot(id)).unwrap());
    assert_eq!(catalog.read(|tx| tx.layer(top)).unwrap().parent, Some(middle));
    for (middle_state, top_state) in [
        (LayerState::Deleting, LayerState::Sealed),
        (LayerState::Sealed, LayerState::Filling),
        (LayerState::Deleting, LayerState::Absorbing),
    ] {
        catalog
            .write(|tx| {
                tx.set_layer_parent(top, Some(bottom))?;
                tx.set_layer_state(middle, middle_state)?;
                tx.set_layer_state(top, top_state)
            })
            .unwrap();
        let opened = world.reader("north").open_snapshot(third);
        assert!(opened.is_err(), "without the layer in the middle: {middle_state:?}, {top_state:?}");
    }
}

/// A snapshot of a volume nobody wrote to names the layer below, also where a fold was taking that away.
#[test]
fn a_layer_that_is_being_taken_away_gets_no_new_name() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * MIB]));
    let host = world.owner("north");
    host.open_volume(disk.id, false).unwrap();
    delete(&host, first).unwrap();
    // A cut right after the fold's row.
    let mut catalog = host.region().catalog().unwrap();
    let child = catalog.read(|tx| tx.volume(disk.id)).unwrap().active;
    let parent = catalog.read(|tx| tx.layer(child)).unwrap().parent.unwrap();
    let row =
        Fold { parent, child, way: FoldWay::Up, next_chunk: 0, mac: None, moved_bytes: 0, is_moved: false };
    catalog.write(|tx| tx.insert_fold(&row)).unwrap();
    drop(catalog);
    let second = take(&host, disk.id, "second");
    host.close().unwrap();
    drop(host);
    let host = world.owner("north");
    fold(&host);
    assert!(live_bytes(&host, &disk) == disk.model);
    assert_eq!(host.region().catalog().unwrap().read(|tx| tx.folds()).unwrap(), [], "it never ends");
    host.close().unwrap();
    world.equal("north", second, &disk.model);
}

/// Another process that has a layer open from before a fold opens it again amid the next one.
#[test]
fn a_layer_open_from_before_is_not_taken_for_what_it_became() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
    let second = disk.change(&world, "second", |c| c.write(300 * SECTOR, &[2; SECTOR]));
    let third = disk.change(&world, "third", |c| c.write(700 * SECTOR, &[3; SECTOR]));
    let reader = world.reader("north");
    let _open = reader.open_snapshot(third).unwrap();
    let host = world.owner("north");
    delete(&host, first).unwrap();
    fold(&host);
    delete(&host, second).unwrap();
    begin_to_fold(&host);
    let stack = reader.open_snapshot(third).unwrap();
    let mut bytes = vec![0xaa; 8 * MIB];
    bytes.chunks_mut(MIB).enumerate().for_each(|(i, c)| stack.read((i * MIB) as u64, c).unwrap());
    assert!(bytes == disk.model, "a reader amid the second fold misses what the first moved");
}

/// A snapshot that another process reads can't be deleted, wherever folds have brought its name and its header.
#[test]
fn a_snapshot_that_is_read_elsewhere_stays_after_a_fold() {
    for way in [FoldWay::Down, FoldWay::Up] {
        let world = World::new(&["north"]);
        let mut disk = disk(&world);
        let (large, small) = if way == FoldWay::Down { (MIB, SECTOR) } else { (SECTOR, MIB) };
        let first = disk.change(&world, "first", |c| c.write(0, &vec![1; large]));
        let second = disk.change(&world, "second", |c| c.write(2 * MIB, &vec![2; small]));
        let wanted = disk.model.clone();
        disk.change(&world, "third", |c| c.write(0, &[3; SECTOR]));
        let reader = world.reader("north");
        let open = reader.open_snapshot_file(second, std::process::id()).unwrap();
        let host = world.owner("north");
        delete(&host, first).unwrap();
        fold(&host);
        let deleted = delete(&host, second);
        fold(&host);
        let mut bytes = vec![0xaa; SECTOR];
        open.stack.read(0, &mut bytes).unwrap();
        assert!(bytes == wanted[..SECTOR], "{way:?}: a snapshot that is open holds the bytes of a later one");
        assert!(matches!(deleted, Err(HostError::InUse { .. })), "{way:?}: {deleted:?}");
        drop(open);
        delete(&host, second).unwrap();
    }
}

/// A live volume goes on without the layer that went, also where its key was disabled at that moment.
#[test]
fn a_key_disabled_amid_a_fold_mixes_no_layers() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
    let second = disk.change(&world, "second", |c| c.write(0, &[2; SECTOR]));
    disk.change(&world, "third", |c| c.write(0, &[3; SECTOR]));
    let host = world.owner("north");
    host.open_volume(disk.id, false).unwrap();
    let set = |state| {
        let key = world.default_key("north");
        world.region("north").catalog().unwrap().write(|tx| tx.set_key_state(key, state)).unwrap();
    };
    delete(&host, first).unwrap();
    let _ = host.fold(false, &mut |_| {
        set(KeyState::Disabled);
        true
    });
    set(KeyState::Enabled);
    fold(&host);
    delete(&host, second).unwrap();
    fold(&host);
    assert!(live_bytes(&host, &disk) == disk.model, "the disk is what it was two snapshots ago");
}

/// A row that nobody can have written ends the folding, and not the patience of who waits for its end.
#[test]
fn a_damaged_row_of_a_fold_is_told_and_not_asked_for_ever() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * MIB]));
    let host = world.owner("north");
    host.open_volume(disk.id, false).unwrap();
    delete(&host, first).unwrap();
    begin_to_fold(&host);
    let connection = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
    assert_eq!(connection.execute("UPDATE folds SET way = 'sideways'", []).unwrap(), 1);
    let (answer, answered) = std::sync::mpsc::channel();
    let folding = host.clone();
    std::thread::spawn(move || answer.send(folding.fold(false, &mut |_| true).is_err()));
    assert_eq!(answered.recv_timeout(std::time::Duration::from_secs(10)), Ok(true));
    assert!(live_bytes(&host, &disk) == disk.model);
}

/// A damaged sector ends its fold: what was moved is right, the rest stays where it is, and nobody reads it again and again.
#[test]
fn damage_is_met_once_and_stays_where_it_is() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * MIB]));
    let layer =
        world.reader("north").region().catalog().unwrap().read(|tx| tx.layer_of_snapshot(first)).unwrap();
    let data =
        std::fs::File::options().write(true).open(world.path(&format!("north/layers/{layer}/data"))).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&data, b"rot", (64 << 20) + 3 * SECTOR as u64).unwrap();
    let host = world.owner("north");
    delete(&host, first).unwrap();
    assert!(host.fold(false, &mut |_| true).is_err());
    host.fold(false, &mut |_| true).expect("it was tried again");
    let damaged = |host: &Arc<Host>| {
        let open = host.open_volume(disk.id, false).unwrap();
        let mut sector = vec![0; SECTOR];
        let damaged: Vec<usize> = (0..disk.model.len() / SECTOR)
            .filter(|n| match open.disk.read((n * SECTOR) as u64, &mut sector) {
                Ok(()) => sector != disk.model[n * SECTOR..(n + 1) * SECTOR],
                Err(_) => true,
            })
            .collect();
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        damaged[0]
    };
    let sector = damaged(&host);
    host.close().unwrap();
    drop(host);
    let host = world.owner("north");
    assert!(host.fold(false, &mut |_| true).is_err(), "the next process tries again");
    assert_eq!(damaged(&host), sector);
}

/// While a copy is written the layer below it may be folded into the one below that, and goes.
#[test]
fn a_fold_below_a_copy_being_made() {
    let world = World::new(&["north", "south"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
    let second = disk.change(&world, "second", |c| c.write(300 * SECTOR, &[2; SECTOR]));
    let third = disk.change(&world, "third", |c| c.write(700 * SECTOR, &[3; SECTOR]));
    let base = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let (source, target) = (world.reader("north"), world.reader("south"));
    let plan = copy::plan(&source, third, &target, &name("third"), &KeyChoice::AsSource).unwrap();
    let mut folded = false;
    let mut progress = |_, _| {
        if !std::mem::replace(&mut folded, true) {
            let host = world.owner("south");
            delete(&host, base).unwrap();
            fold(&host);
            host.close().unwrap();
        }
    };
    let copy = Copy::new(&source, &target, plan, world.details("south", "third"));
    let copied = copy.run(Watch::new(&AtomicBool::new(false), &mut progress)).unwrap();
    assert!(folded);
    world.equal("south", copied, &disk.model);
    let host = world.owner("south");
    fold(&host);
    drop(host);
    world.equal("south", copied, &disk.model);
    assert_eq!(world.holdings("south"), (2, 2, 2), "what was folded is gone");
}

/// Between a copy's plan and its beginning its base may have gone, and its layer be another's.
#[test]
fn a_copy_is_not_put_on_what_its_base_became() {
    let world = World::new(&["north", "south"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
    let second = disk.change(&world, "second", |c| c.write(700 * SECTOR, &[2; SECTOR]));
    let base = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let south = world.region("south");
    let account = south.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let spec = VolumeSpec {
        account,
        name: None,
        size_bytes: (8 * MIB) as u64,
        kind: DiskKind::Data,
        snapshot: Some(base),
        key: Some(world.default_key("south")),
    };
    let id = create_volume(&south, &spec).unwrap();
    let mut other = Disk { region: "south".into(), id, model: disk.model.clone() };
    other.change(&world, "other", |c| c.write(0, &[9; SECTOR]));
    let (source, target) = (world.reader("north"), world.reader("south"));
    let plan = copy::plan(&source, second, &target, &name("second"), &KeyChoice::AsSource).unwrap();
    assert!(plan.base.is_some());
    let host = world.owner("south");
    delete(&host, base).unwrap();
    fold(&host);
    host.close().unwrap();
    drop(host);
    let copy = Copy::new(&source, &target, plan, world.details("south", "second"));
    match copy.run(Watch::new(&AtomicBool::new(false), &mut |_, _| {})) {
        Ok(copied) => world.equal("south", copied, &disk.model),
        Err(CopyError::Overtaken { .. }) => {}
        Err(e) => panic!("{e}"),
    }
}

/// A layer's files from before a fold, which was stopped: what was moved since is moved again, and not thrown away.
#[test]
fn files_put_back_amid_a_fold_are_filled_anew() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * MIB]));
    let second = disk.change(&world, "second", |c| {
        c.write(4 * MIB, &[2; 4 * MIB]);
        c.write(0, &[2; SECTOR]);
    });
    let layer =
        world.reader("north").region().catalog().unwrap().read(|tx| tx.layer_of_snapshot(second)).unwrap();
    let folder = world.path(&format!("north/layers/{layer}"));
    let files = ["data", "map"].map(|name| folder.join(name));
    let kept = files.clone().map(|path| std::fs::read(path).unwrap());
    let host = world.owner("north");
    delete(&host, first).unwrap();
    begin_to_fold(&host);
    drop(host);
    let begun = world.reader("north").region().catalog().unwrap().read(|tx| tx.folds()).unwrap();
    assert_eq!((begun[0].way, begun[0].next_chunk), (FoldWay::Up, 1));
    for (path, bytes) in files.iter().zip(kept) {
        std::fs::write(path, bytes).unwrap();
    }
    let host = world.owner("north");
    fold(&host);
    assert!(live_bytes(&host, &disk) == disk.model);
    drop(host);
    world.equal("north", second, &disk.model);
}

/// Rows that say that a fold has put a layer on another's: no header says so afterwards.
#[test]
fn no_header_takes_a_parent_from_rows() {
    let world = World::new(&["north"]);
    let (mut ours, mut other) = (disk(&world), disk(&world));
    let snapshot = ours.change(&world, "ours", |c| c.write(0, &[1; SECTOR]));
    let of_other = other.change(&world, "other", |c| c.write(0, &[2; 4 * MIB]));
    let (a, b) = world
        .reader("north")
        .region()
        .catalog()
        .unwrap()
        .read(|tx| Ok::<_, CatalogError>((tx.layer_of_snapshot(snapshot)?, tx.layer_of_snapshot(of_other)?)))
        .unwrap();
    let header = world.path(&format!("north/layers/{a}/header.toml"));
    let before = std::fs::read(&header).unwrap();
    let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
    let gone = "0123456789abcdef0123456789abcdef";
    catalog
        .execute_batch(&format!(
            "CREATE TEMP TABLE t AS SELECT * FROM layers WHERE id = '{b}';
             UPDATE t SET id = '{gone}', state = 'deleting';
             INSERT INTO layers SELECT * FROM t;
             UPDATE layers SET parent = '{b}' WHERE id = '{a}';
             INSERT INTO folds (parent, child, way, next_chunk, mac, moved_bytes, is_moved)
             VALUES ('{b}', '{gone}', 'down', 0, NULL, 0, 1);"
        ))
        .unwrap();
    drop(catalog);
    drop(world.owner("north"));
    assert!(std::fs::read(&header).unwrap() == before, "the header says what the rows said");
    assert!(world.reader("north").open_snapshot(snapshot).is_err(), "another disk lies under it");
}

/// A sealed layer's files from before a fold: no row makes them be taken for what the header says.
#[test]
fn files_put_back_after_a_fold_are_refused() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * MIB]));
    let second = disk.change(&world, "second", |c| {
        c.write(4 * MIB, &[2; 4 * MIB]);
        c.write(0, &[2; SECTOR]);
    });
    let row = world
        .reader("north")
        .region()
        .catalog()
        .unwrap()
        .read(|tx| tx.layer(tx.layer_of_snapshot(second)?))
        .unwrap();
    let folder = world.path(&format!("north/layers/{}", row.id));
    let files = ["data", "map"].map(|name| folder.join(name));
    let kept = files.clone().map(|path| std::fs::read(path).unwrap());
    let host = world.owner("north");
    delete(&host, first).unwrap();
    fold(&host);
    host.close().unwrap();
    drop(host);
    world.equal("north", second, &disk.model);
    let header = std::fs::read(folder.join("header.toml")).unwrap();
    let mac: String = row.sealed_mac.unwrap().iter().map(|b| format!("{b:02x}")).collect();
    let old_mark = format!("sealed_generation = {}, sealed_mac = x'{mac}'", row.sealed_generation.unwrap());
    for change in
        ["sealed_generation = NULL, sealed_mac = NULL".into(), format!("state = 'filling', {old_mark}")]
    {
        for (path, bytes) in files.iter().zip(&kept) {
            std::fs::write(path, bytes).unwrap();
        }
        let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
        catalog.execute(&format!("UPDATE layers SET {change} WHERE id = '{}'", row.id), []).unwrap();
        drop(catalog);
        let host = world.owner("north");
        assert!(host.open_snapshot(second).is_err(), "{change}: it lacks what the fold has moved");
        assert!(host.open_volume(disk.id, false).is_err(), "{change}");
        drop(host);
        assert!(std::fs::read(folder.join("header.toml")).unwrap() == header, "{change}");
    }
}

/// A fold that has moved its first chunk, and waits to be told to go on.
fn fold_held(host: &Arc<Host>) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let ((moved, is_moved), (go_on, may_go_on)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let host = host.clone();
    let fold = std::thread::spawn(move || {
        let mut first = true;
        let watch = &mut |_| {
            if std::mem::take(&mut first) {
                moved.send(()).unwrap();
                may_go_on.recv().unwrap();
            }
            true
        };
        host.fold(false, watch).unwrap();
    });
    is_moved.recv().unwrap();
    (go_on, fold)
}

/// Another process has a layer open from before a fold, which is at its end in the header and not yet in the rows: what the fold
/// has taken away lies under nothing then, and the layer as it was has not what it took.
#[test]
fn a_layer_open_from_before_is_not_read_without_what_it_took() {
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * SECTOR]));
    let second = disk.change(&world, "second", |c| c.write(MIB, &[2; MIB]));
    let model = disk.model.clone();
    disk.change(&world, "third", |c| c.write(4 * MIB, &[3; SECTOR]));
    let layer = world.snapshot("north", second).layer.unwrap();
    let header = world.path(&format!("north/layers/{layer}/header.toml"));
    let reader = world.reader("north");
    let open = reader.open_snapshot(second).unwrap();
    let host = world.owner("north");
    delete(&host, first).unwrap();
    let (go_on, fold) = fold_held(&host);
    let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
    catalog.execute_batch("BEGIN IMMEDIATE").unwrap();
    go_on.send(()).unwrap();
    while !std::fs::read_to_string(&header).unwrap().contains("took = ") {
        assert!(!fold.is_finished(), "the fold writes its header");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let again = reader.open_snapshot(second).unwrap();
    assert_eq!(world.region("north").catalog().unwrap().read(|tx| tx.folds()).unwrap().len(), 1);
    for stack in [&again, &open] {
        let mut bytes = vec![0xaa; model.len()];
        stack.read(0, &mut bytes).unwrap();
        assert!(bytes == model, "what the fold took is missing");
    }
    catalog.execute_batch("COMMIT").unwrap();
    fold.join().unwrap();
    world.equal("north", second, &model);
}

/// What a fold brings to another layer between the look at a snapshot and the row of a volume made from it is looked for again.
#[test]
fn volumes_are_made_beside_folds() {
    const SNAPSHOTS: usize = 7;
    let world = World::new(&["north"]);
    let mut disk = disk(&world);
    let mut taken = Vec::new();
    for n in 0..SNAPSHOTS {
        let len = if n == 0 { MIB } else { SECTOR };
        let id = disk.change(&world, &format!("s{n}"), |c| c.write(n * 3 * SECTOR, &vec![n as u8 + 1; len]));
        taken.push((id, disk.model.clone()));
    }
    let account = world.region("north").catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let key = Some(world.default_key("north"));
    let host = world.owner("north");
    for pair in taken.windows(2) {
        let [(gone, _), (named, model)] = pair else { unreachable!() };
        let before = world.snapshot("north", *named).layer.unwrap();
        delete(&host, *gone).unwrap();
        // All sectors are moved: what is left is to commit it.
        let (go_on, fold) = fold_held(&host);
        // Neither can write: the volume's maker has read, and waits, and so does the fold.
        let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
        catalog.execute_batch("BEGIN IMMEDIATE").unwrap();
        let region = world.region("north");
        let (size_bytes, kind, snapshot) = ((8 * MIB) as u64, DiskKind::Data, Some(*named));
        let spec = VolumeSpec { account, name: None, size_bytes, kind, snapshot, key };
        let making = std::thread::spawn(move || create_volume(&region, &spec));
        std::thread::sleep(std::time::Duration::from_millis(150));
        go_on.send(()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        catalog.execute_batch("COMMIT").unwrap();
        drop(catalog);
        let id = making.join().unwrap().expect("a fold is no reason to refuse it");
        fold.join().unwrap();
        assert_ne!(world.snapshot("north", *named).layer.unwrap(), before, "the fold moves what is read");
        let made = Disk { region: "north".into(), id, model: model.clone() };
        assert!(live_bytes(&host, &made) == *model, "a volume of another moment");
        host.execute(&Order::DeleteVolume { volume: id.to_string() }, false).unwrap();
    }
}
