//! Guards against a volume that is no disk to the programs people have: dd, cp, cmp, fio, mmap, sparse tools.

#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use world::{MIB, SECTOR, World, errno, must, pattern, read_at, tool, with_flags, words, writable, write_at};

#[test]
fn dd_cp_and_cmp_work_unmodified() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    let file = world.file("web");
    let path = file.to_str().unwrap();
    let source = world.at("source");
    fs::write(&source, pattern(8 << 20, 1)).unwrap();

    must("dd", &[&format!("if={source}"), &format!("of={path}"), "bs=64k"]);
    must("cmp", &[&source, path]);
    fs::write(&source, pattern(8 << 20, 2)).unwrap();
    must("cp", &[&source, path]);
    must("cmp", &[&source, path]);
    must("dd", &[&format!("of={source}"), &format!("if={path}"), "bs=1M", "iflag=direct"]);
    must("cmp", &[&source, path]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 8 << 20);

    // Any size and offset.
    write_at(&file, 4095, b"across").unwrap();
    assert_eq!(read_at(&file, 4094, 8).unwrap()[1..7], *b"across");

    // More than fits: the disk is full, and its size stays.
    let output = tool("dd", &["if=/dev/zero", &format!("of={path}"), "bs=1M", "count=9"]);
    assert!(words(&output).contains("No space left on device"), "{}", words(&output));
    assert_eq!(fs::metadata(&file).unwrap().len(), 8 << 20);
    assert_eq!(errno(write_at(&file, 8 << 20, b"x")), libc::ENOSPC);
    assert_eq!(writable(&file).unwrap().read_at(&mut [0; 16], 8 << 20).unwrap(), 0);
    world.unmount();
    world.mount();
    assert!(read_at(&file, 0, 8 << 20).unwrap().iter().all(|b| *b == 0));
}

#[test]
fn holes_are_told_and_give_space_back() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    let file = writable(&world.file("web")).unwrap();
    let hole_at = |at| seek(&file, SeekFrom::Hole(at)).unwrap();
    let data_at = |at| seek(&file, SeekFrom::Data(at)).map_err(|e| e.raw_os_error());
    assert_eq!((hole_at(0), data_at(0)), (0, Err(libc::ENXIO)));
    // The first small write takes 1 MiB ahead, whatever the kernel cuts the large ones into. Taken now, it is not counted below.
    file.write_all_at(&pattern(SECTOR, 9), 40 * MIB).unwrap();
    file.sync_all().unwrap();
    let bytes = pattern(4 << 20, 3);
    file.write_all_at(&bytes, 8 * MIB).unwrap();
    assert_eq!((data_at(0), hole_at(8 * MIB), data_at(12 * MIB)), (Ok(8 * MIB), 12 * MIB, Ok(40 * MIB)));
    assert_eq!((hole_at(40 * MIB), data_at(40 * MIB + 4096)), (40 * MIB + 4096, Err(libc::ENXIO)));
    file.sync_all().unwrap();
    let stored = |world: &World| world.json(&["volume", "show", "web"])["stored_bytes"].as_u64().unwrap();
    let before = stored(&world);

    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 9 * MIB + 100, 2 * MIB).unwrap();
    let (from, to) = (MIB as usize + 100, 3 * MIB as usize + 100);
    let mut expected = bytes;
    expected[from..to].fill(0);
    let mut found = vec![0; 4 << 20];
    file.read_exact_at(&mut found, 8 * MIB).unwrap();
    assert!(found == expected);
    assert_eq!(hole_at(8 * MIB), 9 * MIB + 4096);
    assert_eq!(data_at(9 * MIB + 4096), Ok(11 * MIB));
    // Nothing is written any more, nor synced: an idle volume gives back what was freed last.
    assert!(
        world::within(60, || stored(&world) + 3 * MIB / 2 < before),
        "{} of {before} stay",
        stored(&world)
    );
    // What a session freed and did not live to give back, the next one does.
    let before = stored(&world);
    fallocate(&file, punch, 11 * MIB + 4096, MIB - 4096).unwrap();
    expected[3 * MIB as usize + 4096..].fill(0);
    world.kill_server();
    drop(file);
    world.mount_again();
    assert!(read_at(&world.file("web"), 8 * MIB, 4 << 20).unwrap() == expected);
    assert!(
        world::within(60, || stored(&world) + MIB / 2 < before),
        "{} of {before} stay after a kill",
        stored(&world)
    );
}

#[test]
#[allow(unsafe_code)]
fn direct_io_sync_and_mmap_mean_what_they_say() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    let path = world.file("web");
    let direct = with_flags(&path, libc::O_DIRECT | libc::O_DSYNC).unwrap();
    // A page of its own, as direct I/O asks.
    let mut page = memmap2::MmapMut::map_anon(1 << 20).unwrap();
    page.copy_from_slice(&pattern(1 << 20, 4));
    direct.write_all_at(&page, MIB).unwrap();
    let file = writable(&path).unwrap();
    // SAFETY: nobody shortens a volume.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
    assert!(map[MIB as usize..2 << 20] == page[..]);
    map[5000..5005].copy_from_slice(b"by map".get(..5).unwrap());
    map.flush().unwrap();
    drop(map);
    assert_eq!(read_at(&path, 5000, 5).unwrap(), b"by ma");
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    drop((file, direct));
    // What was synced needs no orderly end.
    world.kill_server();
    world.mount_again();
    assert_eq!(read_at(&path, 5000, 5).unwrap(), b"by ma");
    assert!(read_at(&path, MIB, 1 << 20).unwrap() == page[..]);
}

#[test]
fn fio_verifies_now_after_a_remount_and_in_a_snapshot() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    let path = world.file("web");
    let fio = |path: &std::path::Path, more: &[&str]| {
        let file = format!("--filename={}", path.display());
        let fixed =
            ["--name=v", &file, "--size=64M", "--verify=crc32c", "--verify_fatal=1", "--serialize_overlap=1"];
        let rest = [
            "--ioengine=libaio",
            "--direct=1",
            "--iodepth=8",
            "--randseed=7",
            "--allow_file_create=0",
            "--verify_state_save=0",
        ];
        must("fio", &[&fixed[..], &rest[..], more].concat());
    };
    fio(&path, &["--rw=randrw", "--bsrange=4k-256k", "--bs_unaligned=0", "--io_size=96M"]);
    fio(&path, &["--rw=randwrite", "--bs=4k", "--do_verify=1"]);
    world.snapshot("web", "s1");
    let only = ["--rw=randwrite", "--bs=4k", "--verify_only=1"];
    fio(&path, &only);
    world.unmount();
    world.mount();
    fio(&path, &only);
    write_at(&path, 0, &pattern(32 << 20, 9)).unwrap();
    let read = ["--rw=randread", "--bs=4k", "--readonly"];
    fio(&world.snapshot_file("s1"), &read);
}

#[test]
fn volumes_come_and_go_while_mounted() {
    let world = World::new();
    world.mount();
    assert_eq!(fs::read_dir(world.path("mnt/volumes")).unwrap().count(), 0);
    let id = world.volume("web", "4M");
    let file = world.path("mnt/volumes").join(&id);
    assert_eq!(fs::metadata(&file).unwrap().len(), 4 << 20);
    assert_eq!(fs::metadata(&file).unwrap().ino(), fs::metadata(world.file("web")).unwrap().ino());
    let target = fs::read_link(world.file("web")).unwrap();
    assert!(target.to_str().unwrap().ends_with(&format!("volumes/{id}")), "{target:?}");
    write_at(&file, 0, b"hello").unwrap();
    world.ok(&["volume", "set", "web", "--name", "shop"]);
    assert!(!world.file("web").exists());
    assert_eq!(read_at(&world.file("shop"), 0, 5).unwrap(), b"hello");
    let snapshot = world.snapshot("shop", "s1");
    assert_eq!(read_at(&world.path("mnt/snapshots").join(snapshot), 0, 5).unwrap(), b"hello");
    assert_eq!(errno(writable(&world.snapshot_file("s1"))), libc::EROFS);
    world.ok(&["volume", "delete", "shop"]);
    assert!(!file.exists() && !world.file("shop").exists());
    assert_eq!(read_at(&world.snapshot_file("s1"), 0, 5).unwrap(), b"hello");
    assert_ne!(errno(File::create(world.path("mnt/volumes/new"))), 0);
    assert_ne!(errno(fs::remove_file(world.snapshot_file("s1"))), 0);
    let sync = fs::OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(world.snapshot_file("s1"));
    assert_eq!(errno(sync), libc::EROFS);
    assert_eq!(read_at(&world.snapshot_file("s1"), 0, SECTOR).unwrap()[..5], *b"hello");
}

/// A volume costs what it holds, whatever its size.
#[test]
fn a_volume_of_64_tib_is_small_and_works_to_its_end() {
    let world = World::new();
    let since = std::time::Instant::now();
    world.volume("vast", "64T");
    eprintln!("64 TiB made in {:?}", since.elapsed());
    let used = world.json(&["volume", "show", "vast"])["stored_bytes"].as_u64().unwrap();
    assert!(used <= (256 + 64) << 10, "{used} bytes stored for an empty volume");
    world.fails(&["volume", "create", "--size", "65T"], 2, &["64T"]);
    world.mount();
    let path = world.file("vast");
    let last = (64 << 40) - SECTOR as u64;
    let bytes = pattern(SECTOR, 5);
    write_at(&path, last, &bytes).unwrap();
    write_at(&path, 32 << 40, &bytes).unwrap();
    assert_eq!(errno(write_at(&path, 64 << 40, &bytes)), libc::ENOSPC);
    world.snapshot("vast", "s1");
    world.unmount();
    world.mount();
    for path in [&path, &world.snapshot_file("s1")] {
        assert!(
            read_at(path, last, SECTOR).unwrap() == bytes
                && read_at(path, 32 << 40, SECTOR).unwrap() == bytes
        );
        assert_eq!(seek(File::open(path).unwrap(), SeekFrom::Data(33 << 40)).unwrap(), last);
        assert_eq!(seek(File::open(path).unwrap(), SeekFrom::Data(0)).unwrap(), 32 << 40);
    }
    if world::is_root() {
        let device = world.ok(&["attach", "vast"]);
        must("mkfs.xfs", &["-q", "-f", "-K", &device]);
        must("xfs_repair", &["-n", &device]);
        world.ok(&["detach", "vast"]);
    }
}
