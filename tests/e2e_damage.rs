//! Guards against wrong bytes: whatever is flipped or missing in a region gives an error that says what, or the bytes that
//! were written; and against one disabled key or damaged volume that takes the others with it.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use world::{MIB, SECTOR, World, errno, flip, pattern, read_at, write_at};

const SLOTS: u64 = 64 << 20;
const LEN: usize = 64 * SECTOR;

/// What a test does to a layer's folder.
type Damage<'a> = &'a dyn Fn(&Path);

/// A world, unmounted, with a volume `web` that holds a pattern, and another one.
fn written() -> World {
    let mut world = World::new();
    world.volume("web", "8M");
    world.volume("other", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(LEN, 1)).unwrap();
    write_at(&world.file("other"), 0, &pattern(LEN, 2)).unwrap();
    world.unmount();
    world.expect_disorder();
    world
}

fn serves_other(world: &World) {
    assert!(read_at(&world.file("other"), 0, LEN).unwrap() == pattern(LEN, 2), "the other volume suffers");
}

/// The bytes that were written, or EIO, sector by sector; how many are lost.
fn lost(path: &Path, seed: u64) -> usize {
    let expected = pattern(LEN, seed);
    let mut lost = 0;
    for (n, sector) in expected.chunks(SECTOR).enumerate() {
        match read_at(path, (n * SECTOR) as u64, SECTOR) {
            Ok(found) => assert!(found == sector, "sector {n} has wrong bytes"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO));
                lost += 1;
            }
        }
    }
    lost
}

#[test]
fn a_disabled_key_closes_its_volumes_alone() {
    let world = World::new();
    let key = world.ok(&["key", "create", "--alias", "project"]);
    world.ok(&["volume", "create", "--name", "web", "--size", "8M", "--key", "project"]);
    world.volume("other", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(LEN, 1)).unwrap();
    write_at(&world.file("other"), 0, &pattern(LEN, 2)).unwrap();
    world.snapshot("web", "s1");
    let open = world::writable(&world.file("web")).unwrap();
    world.ok(&["key", "disable", "project"]);
    // What is open goes on.
    std::os::unix::fs::FileExt::write_all_at(&open, &pattern(LEN, 3), 0).unwrap();
    open.sync_all().unwrap();
    drop(open);
    world.unmount();
    let shown = world.json(&["volume", "show", "web"]);
    assert_eq!(shown["state"], "unreadable");
    assert!(shown["reason"].as_str().unwrap().contains(&key), "{shown}");
    world.mount();
    assert_eq!(errno(fs::File::open(world.file("web"))), libc::EACCES);
    assert_eq!(errno(fs::File::open(world.snapshot_file("s1"))), libc::EACCES);
    serves_other(&world);
    assert_eq!(
        world.json(&["volume", "list"])[0]["id"].as_str().map(|id| id.starts_with("vol-")),
        Some(true)
    );
    world.fails(&["snapshot", "create", "web", "--name", "s2"], 4, &["disabled"]);
    world.fails(&["volume", "create", "--snapshot", "s1", "--name", "clone"], 4, &["disabled"]);
    world.fails(&["volume", "create", "--size", "4M", "--key", "project"], 4, &["disabled"]);
    assert!(world.log().contains("disabled"), "{}", world.log());
    world.ok(&["key", "enable", "project"]);
    assert!(read_at(&world.file("web"), 0, LEN).unwrap() == pattern(LEN, 3));
    assert!(read_at(&world.snapshot_file("s1"), 0, LEN).unwrap() == pattern(LEN, 1));
    assert_eq!(world.json(&["volume", "show", "web"])["state"], "available");
}

#[test]
fn a_flipped_sector_is_named_and_the_rest_reads() {
    let world = written();
    flip(&world.active_layer("web").join("data"), SLOTS + 5 * SECTOR as u64 + 77);
    world.mount();
    let path = world.file("web");
    assert_eq!(lost(&path, 1), 1);
    assert_eq!(errno(read_at(&path, 0, LEN)), libc::EIO);
    serves_other(&world);
    let log = world.log();
    let shown = world.json(&["volume", "show", "web"]);
    let id = shown["id"].as_str().unwrap().to_owned();
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.contains("sector 5 is damaged") && reason.contains("terrane status"), "{reason}");
    let line = log.lines().find(|line| line.contains("damaged")).unwrap_or_default();
    assert!(line.contains(&id) && line.contains("sector 5 "), "{log}");
    // Written anew it is whole again; a snapshot holds what it was taken of.
    world.snapshot("web", "before");
    write_at(&path, 5 * SECTOR as u64, &pattern(LEN, 1)[5 * SECTOR..6 * SECTOR]).unwrap();
    assert_eq!((lost(&path, 1), lost(&world.snapshot_file("before"), 1)), (0, 1));
    // A partial write over a damaged sector has nothing to merge with.
    assert_eq!(errno(write_at(&world.file("other"), 100, b"fine")), 0);
}

/// Through the snapshot's own file, and through the volume above it: each says who it is, once.
#[test]
fn a_flipped_sector_of_a_snapshot_is_named() {
    let world = written();
    let snapshot = world.snapshot("web", "s1");
    let layer = world.snapshot_layer("s1");
    flip(&layer.join("data"), SLOTS + 5 * SECTOR as u64 + 77);
    world.mount();
    let volume = world.json(&["volume", "show", "web"])["id"].as_str().unwrap().to_owned();
    let of_layer = format!("in layer {}", layer.file_name().unwrap().to_str().unwrap());
    let of_snapshot = format!("snapshot {snapshot} of volume {volume}: ");
    let of_volume = format!("ERROR volume {volume}: ");
    for (path, who) in [(world.snapshot_file("s1"), &of_snapshot), (world.file("web"), &of_volume)] {
        let file = fs::File::open(&path).unwrap();
        let mut sector = [0; SECTOR];
        for _ in 0..3 {
            assert_eq!(errno(file.read_exact_at(&mut sector, 5 * SECTOR as u64)), libc::EIO);
        }
        let log = world.log();
        let told: Vec<_> = log.lines().filter(|line| line.contains(who.as_str())).collect();
        assert_eq!(told.len(), 1, "{log}");
        for word in [" ERROR ", "sector 5 is damaged", &of_layer] {
            assert!(told[0].contains(word), "{word}: {log}");
        }
        assert_eq!(lost(&path, 1), 1);
    }
    serves_other(&world);
}

#[test]
fn a_flipped_sector_under_a_partial_write() {
    let world = written();
    flip(&world.active_layer("web").join("data"), SLOTS + 9 * SECTOR as u64);
    world.mount();
    assert_eq!(errno(write_at(&world.file("web"), 9 * SECTOR as u64 + 8, b"lost")), libc::EIO);
    assert_eq!(lost(&world.file("web"), 1), 1);
    write_at(&world.file("web"), 10 * SECTOR as u64, &pattern(LEN, 1)[10 * SECTOR..11 * SECTOR]).unwrap();
}

#[test]
fn flips_in_a_map_give_errors_and_never_wrong_bytes() {
    for snapshot in [false, true] {
        let world = written();
        if snapshot {
            world.snapshot("web", "s1");
        }
        let map = match snapshot {
            true => world.snapshot_layer("s1").join("map"),
            false => world.active_layer("web").join("map"),
        };
        // Every page that is there: one bit in each.
        let bytes = fs::read(&map).unwrap();
        for (n, page) in bytes.chunks(8192).enumerate() {
            if page.iter().any(|b| *b != 0) {
                flip(&map, n as u64 * 8192 + 80);
            }
        }
        world.mount();
        let path = if snapshot { world.snapshot_file("s1") } else { world.file("web") };
        let code = errno(fs::File::open(&path));
        assert!(code == 0 || code == libc::EIO);
        if code == 0 {
            assert_eq!(lost(&path, 1), 64);
        }
        serves_other(&world);
        assert!(world.log().contains("map") || world.log().contains("page"), "{}", world.log());
    }
}

/// Of the disk: its chunks' pages, each of 512 sectors. One is named once each time the disk is opened, with its layer and its sectors, and the others read.
#[test]
fn a_flipped_map_page_is_named_once_and_the_rest_reads() {
    const LEAVES: u64 = 65_664;
    for snapshot in [false, true] {
        let world = World::new();
        world.volume("web", "8M");
        world.mount();
        for chunk in [0, 2] {
            write_at(&world.file("web"), chunk << 21, &pattern(LEN, 1 + chunk)).unwrap();
        }
        let id = match snapshot {
            true => world.snapshot("web", "s1"),
            false => world.json(&["volume", "show", "web"])["id"].as_str().unwrap().to_owned(),
        };
        world.unmount();
        let layer = if snapshot { world.snapshot_layer("s1") } else { world.active_layer("web") };
        // Whichever of the page's two places is in use.
        let map = layer.join("map");
        let places = [0, 8192].map(|place| (LEAVES + 2) * 16_384 + place + 80);
        let len = fs::metadata(&map).unwrap().len();
        places.iter().filter(|at| **at < len).for_each(|at| flip(&map, *at));
        world.mount();
        let path = if snapshot { world.snapshot_file("s1") } else { world.file("web") };
        let file = fs::File::open(&path).unwrap();
        let read = |at: u64| {
            let mut bytes = vec![0; LEN];
            file.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        for sector in [0, 0, 300] {
            assert_eq!(errno(read((2 << 21) + sector * SECTOR as u64)), libc::EIO);
            assert!(read(0).unwrap() == pattern(LEN, 1), "the rest suffers");
        }
        let log = world.log();
        let told: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        let of = layer.file_name().unwrap().to_str().unwrap();
        assert_eq!(told.len(), 1, "{log}");
        for word in [&id, of, "map page 65666", "sectors 1024 to 1535"] {
            assert!(told[0].contains(word), "{word}: {log}");
        }
    }
}

#[test]
fn a_flipped_superblock_or_header_or_a_missing_folder_is_refused() {
    let superblocks = |folder: &Path| [40, 4096 + 40].iter().for_each(|at| flip(&folder.join("data"), *at));
    let header = |folder: &Path| {
        let text = fs::read_to_string(folder.join("header.toml")).unwrap();
        let at = text.find("size_bytes = ").unwrap() + "size_bytes = ".len();
        flip(&folder.join("header.toml"), at as u64);
    };
    let noise = |folder: &Path| flip(&folder.join("header.toml"), 3);
    let gone = |folder: &Path| fs::remove_dir_all(folder).unwrap();
    let empty = |folder: &Path| fs::write(folder.join("data"), "").unwrap();
    let cut = |folder: &Path| {
        fs::File::options().write(true).open(folder.join("data")).unwrap().set_len(SLOTS).unwrap()
    };
    let damages: [(&str, Damage); 6] = [
        ("superblocks", &superblocks),
        ("header", &header),
        ("noise", &noise),
        ("gone", &gone),
        ("empty", &empty),
        ("cut", &cut),
    ];
    for (name, damage) in damages {
        let world = written();
        damage(&world.active_layer("web"));
        world.mount();
        let path = world.file("web");
        let code = errno(fs::File::open(&path));
        eprintln!("{name}: errno {code}");
        match name {
            // The sectors are gone; that is told of each of them.
            "cut" => assert_eq!(lost(&path, 1), 64),
            _ => assert_eq!(code, libc::EIO, "{name}: {}", world.log()),
        }
        serves_other(&world);
        // One command says what is wrong and what to do.
        let shown = world.json(&["volume", "show", "web"]);
        let (id, reason) = (shown["id"].as_str().unwrap(), shown["reason"].as_str().unwrap());
        assert!(reason.contains("terrane "), "{name}: {reason}");
        assert!(shown["state"] == "unreadable" || name == "cut", "{name}: {shown}");
        assert!(world.log().contains(id), "{name}: {}", world.log());
        assert_eq!(world.json(&["volume", "list"]).as_array().unwrap().len(), 2);
        let told = String::from_utf8(world.run(&["status"]).stdout).unwrap();
        assert!(told.contains(id), "{name}: {told}");
        if name != "cut" {
            world.fails(&["snapshot", "create", "web", "--name", "s1"], 6, &[]);
        }
        if matches!(name, "header" | "noise") {
            let layer = world.active_layer("web");
            let named =
                format!("header.toml of layer {} is damaged", layer.file_name().unwrap().to_str().unwrap());
            assert!(reason.contains(&named) && world.log().contains(&named), "{name}: {reason}");
        }
        // Unmounted, the command itself finds it; and what is damaged can be deleted.
        world.unmount();
        if name != "cut" {
            world.fails(&["snapshot", "create", "web", "--name", "s1"], 6, &[]);
        }
        world.ok(&["volume", "delete", "web"]);
        assert_eq!(world.json(&["volume", "list"]).as_array().unwrap().len(), 1);
    }
}

/// One superblock is enough, and the log of a killed server counts.
#[test]
fn a_log_flipped_after_a_kill_is_a_refusal_or_a_prefix_that_was_never_flushed() {
    for (flushed, at) in [(true, 0), (true, 4096 * 3), (false, 0), (false, 4096)] {
        let mut world = World::new();
        world.volume("web", "8M");
        world.volume("other", "8M");
        world.mount();
        write_at(&world.file("other"), 0, &pattern(LEN, 2)).unwrap();
        let file = world::writable(&world.file("web")).unwrap();
        for (n, sector) in pattern(LEN, 1).chunks(SECTOR).enumerate() {
            std::os::unix::fs::FileExt::write_all_at(&file, sector, (n * SECTOR) as u64).unwrap();
            if flushed {
                file.sync_data().unwrap();
            }
        }
        world.kill_server();
        drop(file);
        let data = world.active_layer("web").join("data");
        flip(&data, log_in_use(&data) + at + 60);
        world.mount_again();
        serves_other(&world);
        let code = errno(fs::File::open(world.file("web")));
        eprintln!("flushed {flushed} at {at}: errno {code}");
        if flushed {
            assert_eq!(code, libc::EIO, "a flushed write may not vanish silently: {}", world.log());
        } else {
            assert!(code == 0 || code == libc::EIO);
        }
        if code == 0 {
            // A prefix: what is not there is zero.
            let found = read_at(&world.file("web"), 0, LEN).unwrap();
            let expected = pattern(LEN, 1);
            let held = found.chunks(SECTOR).zip(expected.chunks(SECTOR)).take_while(|(a, b)| a == b).count();
            assert!(found[held * SECTOR..].iter().all(|b| *b == 0), "no prefix");
        }
        world.expect_disorder();
    }
}

/// Where the log half begins that the newest superblock names.
fn log_in_use(data: &Path) -> u64 {
    let number = |block: u64, at: u64| {
        u64::from_le_bytes(read_at(data, block * 4096 + at, 8).unwrap().try_into().unwrap())
    };
    let newest = u64::from(number(1, 32) > number(0, 32));
    (1 << 20) + number(newest, 80) * (16 << 20)
}

#[test]
fn keys_and_headers_of_sealed_layers() {
    let world = written();
    world.mount();
    world.snapshot("web", "s1");
    write_at(&world.file("web"), MIB, &pattern(LEN, 4)).unwrap();
    world.unmount();
    let header = world.snapshot_layer("s1").join("header.toml");
    let before = fs::read(&header).unwrap();
    fs::write(&header, "format = 1\n").unwrap();
    world.mount();
    assert_eq!(errno(fs::File::open(world.snapshot_file("s1"))), libc::EIO);
    assert_eq!(errno(fs::File::open(world.file("web"))), libc::EIO);
    serves_other(&world);
    // Put right again, it serves without a remount.
    fs::write(&header, before).unwrap();
    assert_eq!(lost(&world.snapshot_file("s1"), 1), 0);
    assert!(read_at(&world.file("web"), MIB, LEN).unwrap() == pattern(LEN, 4));
}
