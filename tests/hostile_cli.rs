//! Guards against arguments, and uses of a volume's file, that end a process, hang it, or do something else than was said.

#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/world.rs"]
mod world;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;

use hostile::bounded;
use rustix::fs::{FallocateFlags, Mode, OFlags, XattrFlags};
use world::{MIB, World, errno, is_root, pattern, read_at, with_flags, writable, write_at};

const SIZE: u64 = 8 * MIB;

#[test]
fn arguments() {
    let world = World::new();
    world.volume("web", "8M");
    world.snapshot("web", "s1");
    // Two ids that begin alike.
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    for (n, name) in [(1, "twin"), (2, "twin-2")] {
        catalog
            .execute(
                "INSERT INTO snapshots SELECT ?1, account, ?2, description, layer, volume, size_bytes, kind, cipher, key, state,
                 progress_percent, created_by, source_snapshot, source_region, changed_bytes, shipped_bytes, stored_bytes, group_id,
                 retention_days, created_at, mac, NULL, NULL FROM snapshots WHERE name = 's1'",
                rusqlite::params![format!("snap-abcdef0000000000{n}"), name],
            )
            .unwrap();
    }
    drop(catalog);
    let long = "x".repeat(100_000);
    let nested = format!("{}/", "../".repeat(2000));
    let create = |size| ["volume", "create", "--size", size];
    let cases: &[(&[&str], i32, &str)] = &[
        (&["region", "check", "--max-rate", "0"], 2, "zero"),
        (&["region", "check", "--max-rate", "-1"], 2, "-1"),
        (&["region", "check", "--max-rate", "99999999T"], 2, "too large"),
        (&["snapshot", "verify", "s1", "--max-rate", "16777215T"], 0, ""),
        (&["snapshot", "verify", "s1", "--max-rate", "0"], 2, "zero"),
        (&["snapshot", "verify", "s1", "--max-rate", "NaN"], 2, "NaN"),
        (&create("0"), 2, "zero"),
        (&create("1"), 2, "4096"),
        (&create("4095"), 2, "4096"),
        (&create("9E"), 2, "64T"),
        (&create("16E"), 2, "too large"),
        (&create("18446744073709551616"), 2, "too large"),
        (&create("64.000000001T"), 2, ""),
        (&create("10.5X"), 2, "10.5X"),
        (&create("-4096"), 2, ""),
        (&create("0x1000"), 2, "0x1000"),
        (&create("1e9"), 2, "1e9"),
        (&create("\u{661}G"), 2, ""),
        (&create(""), 2, ""),
        (&create(&long), 2, ""),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", "="], 2, "1 to 128"),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", "=v"], 2, "1 to 128"),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", "k=a\u{1b}[2J"], 2, "control"),
        (&["snapshot", "create", "web", "--name", "s2", "--tag", &format!("{long}=v")], 2, ""),
        (&["snapshot", "create", "web", "--name", "s2", "--description", &long], 2, "2 to 256"),
        (&["snapshot", "create", "web", "--name", "s2", "--retention-days", "4294967296"], 2, ""),
        (&["volume", "create", "--size", "4M", "--name", "-rf"], 2, ""),
        (&["volume", "create", "--size", "4M", "--name=-rf"], 2, "-rf"),
        (&["volume", "create", "--size", "4M", "--name", "../../x"], 2, "../../x"),
        (&["volume", "create", "--size", "4M", "--name", "a\u{1b}[2Jb"], 2, "name"),
        (&["volume", "create", "--size", "4M", "--name", "a\u{9b}1m\u{202e}"], 2, "name"),
        (&["volume", "create", "--size", "4M", "--name", &long], 2, "name"),
        (&["volume", "create", "--size", "4M", "--name", "vol-0123456789abcdef0"], 4, "form of an id"),
        (&["volume", "show", &long], 3, "xxx"),
        (&["volume", "show", "a\u{1b}[2Jb"], 3, "\\u{1b}"),
        (&["volume", "show", "'; DROP TABLE volumes; --"], 3, "DROP"),
        (&["volume", "show", "%"], 3, "%"),
        (&["snapshot", "show", "snap-abcdef"], 4, "snap-abcdef00000000001"),
        (&["snapshot", "delete", "snap-abcdef"], 4, "snap-abcdef00000000002"),
        (&["snapshot", "show", "snap-abcdef00000000001"], 0, "twin"),
        (&["debug", "map", "../../etc/passwd"], 2, ""),
        (&["mount", "/proc/self/fd/0"], 4, ""),
        (&["mount", &world.mnt(), "--threads", "0"], 2, ""),
        (&["mount", &world.mnt(), "--threads", "65"], 2, ""),
        (&["mount", &world.mnt(), "--grace", "-1"], 2, ""),
        (&["volume", "list", "--region", &nested], 3, "region.toml"),
        (&["volume", "list", "--region", "/dev/zero"], 3, "not a directory"),
        (&["volume", "list", "--region", "/proc"], 3, "region.toml"),
        (&["volume", "list", "--account", &long], 0, ""),
        (&["region", "init", &world.at("new"), "--name", "n\n"], 2, "name"),
        (&["region", "init", &world.at("new"), "--name", "new", "--root-key-file", "/dev/zero"], 4, ""),
        (&["region", "init", &world.at("new"), "--name", "new", "--passphrase-file", "/dev/zero"], 4, "4096"),
        (&["region", "export-root-key", "-o", &world.at("r/region.toml")], 5, "region.toml"),
        (&["detach", "/dev/sda/../loop0"], 3, ""),
    ];
    let names = hostile::names(&world.path("r/layers"));
    for (args, exit, expected) in cases {
        let what =
            format!("{:?}", args.iter().map(|a| a.chars().take(60).collect::<String>()).collect::<Vec<_>>());
        let ended = bounded(&what, || world.command(args));
        assert_eq!(ended.exit, Some(*exit), "{what}: {}", ended.stderr);
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(expected), "{what}: {}", ended.stderr);
    }
    assert_eq!(hostile::names(&world.path("r/layers")), names, "layers were made");
    assert!(!world.path("new").exists(), "half a region is left");
    // Bytes that are no text.
    use std::os::unix::ffi::OsStrExt;
    let raw = std::ffi::OsStr::from_bytes(b"\xff\xfe\x1b[2J");
    let ended = bounded("raw bytes", || {
        let mut command = world.command(&["volume", "show"]);
        command.arg(raw);
        command
    });
    assert_eq!(ended.exit, Some(2), "{ended:?}");
}

/// A region with a mounted volume of 8 MiB, and its file.
fn mounted() -> (World, std::path::PathBuf) {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    let file = world.file("web");
    write_at(&file, 0, &pattern(SIZE as usize, 1)).unwrap();
    (world, file)
}

fn is_unchanged(file: &Path) -> bool {
    fs::metadata(file).unwrap().len() == SIZE
        && read_at(file, 0, SIZE as usize).unwrap() == pattern(SIZE as usize, 1)
}

#[test]
fn reads_and_writes_at_the_edges() {
    let (world, path) = mounted();
    let file = writable(&path).unwrap();
    let mut byte = [0; 2];
    let last = pattern(SIZE as usize, 1)[SIZE as usize - 1];
    assert_eq!((file.read_at(&mut byte, SIZE - 1).unwrap(), byte[0]), (1, last));
    assert_eq!(file.read_at(&mut byte, SIZE).unwrap(), 0);
    assert_eq!(file.read_at(&mut byte, SIZE + 1).unwrap(), 0);
    assert_eq!(file.write_at(&[last, 9], SIZE - 1).unwrap(), 1);
    for at in [SIZE, SIZE + 1, 1 << 40, 1 << 62] {
        let code = errno(file.write_at(b"x", at));
        assert!([libc::ENOSPC, libc::EFBIG].contains(&code), "at {at}: {code}");
    }
    for at in [i64::MAX as u64 - 1, i64::MAX as u64] {
        let code = errno(file.write_at(b"x", at));
        assert!([libc::ENOSPC, libc::EFBIG, libc::EINVAL].contains(&code), "at {at}: {code}");
        assert!(
            matches!(file.read_at(&mut byte, at), Ok(0))
                || errno(file.read_at(&mut byte, at)) == libc::EINVAL
        );
    }
    for at in [1 << 63, u64::MAX] {
        assert_eq!(errno(file.write_at(b"x", at)), libc::EINVAL);
        assert_eq!(errno(file.read_at(&mut byte, at)), libc::EINVAL);
    }
    // 2 GiB at once: what there is of it.
    let mut large = vec![0; 2 << 30];
    assert_eq!(file.read_at(&mut large, 0).unwrap() as u64, SIZE);
    assert!(large[..SIZE as usize] == pattern(SIZE as usize, 1));
    assert_eq!(errno(file.write_at(&large[..1 << 20], SIZE)), libc::ENOSPC);
    assert_eq!(file.write_at(&large, 0).unwrap() as u64, SIZE);
    assert_eq!(file.write_at(&large, SIZE - 4096).unwrap_or(0), 4096, "what there is room for");
    write_at(&path, SIZE - 4096, &pattern(SIZE as usize, 1)[SIZE as usize - 4096..]).unwrap();
    assert_eq!(errno(file.write_at(&large, SIZE)), libc::ENOSPC);
    assert!(is_unchanged(&path));
    drop(large);
    // Appending writes at the end, where there is no room.
    let append = OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(errno(std::io::Write::write(&mut &append, b"x")), libc::ENOSPC);
    // O_DIRECT, unaligned in place, length and memory.
    let direct = with_flags(&path, libc::O_DIRECT).unwrap();
    for (at, len) in [(0, 1), (1, 511), (4095, 2), (100, 10_000), (SIZE - 3, 3), (SIZE - 1, 100)] {
        let mut into = vec![0; len + 1];
        let expected = &pattern(SIZE as usize, 1)[at as usize..(at as usize + len).min(SIZE as usize)];
        match direct.read_at(&mut into[1..], at) {
            Ok(n) => assert!(into[1..=n] == *expected, "at {at}"),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EINVAL)),
        }
        match direct.write_at(expected, at) {
            Ok(n) => assert_eq!(n, expected.len()),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EINVAL)),
        }
    }
    assert_eq!(direct.read_at(&mut byte, SIZE).unwrap(), 0);
    assert!(is_unchanged(&path));
    drop((file, append, direct));
    world.unmount();
}

/// FALLOC_FL_WRITE_ZEROES, of Linux 6.17.
const WRITE_ZEROES: FallocateFlags = FallocateFlags::from_bits_retain(0x80);

#[test]
fn every_flag_of_fallocate_and_every_way_to_change_names() {
    let (world, path) = mounted();
    let file = writable(&path).unwrap();
    let known = [
        FallocateFlags::KEEP_SIZE,
        FallocateFlags::PUNCH_HOLE,
        FallocateFlags::NO_HIDE_STALE,
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
        WRITE_ZEROES,
    ];
    // All sums of them, past the end and at the largest numbers: no data is at stake.
    for sum in 0..1 << known.len() {
        let flags = known.iter().enumerate().filter(|(i, _)| sum >> i & 1 == 1).map(|(_, f)| *f).collect();
        for (at, len) in
            [(SIZE, 4096), (1 << 62, 1 << 61), (i64::MAX as u64, 1), (0, 0), (u64::MAX, u64::MAX)]
        {
            let _ = rustix::fs::fallocate(&file, flags, at, len);
        }
        assert_eq!(file.metadata().unwrap().len(), SIZE, "{flags:?}");
    }
    assert!(is_unchanged(&path));
    for flag in [
        FallocateFlags::NO_HIDE_STALE,
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
        WRITE_ZEROES,
    ] {
        for flag in [flag, flag | FallocateFlags::KEEP_SIZE] {
            let refused = rustix::fs::fallocate(&file, flag, 0, 4096);
            assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP), "{flag:?}");
        }
    }
    assert!(is_unchanged(&path));
    let mnt = world.path("mnt");
    let folder = mnt.join("volumes");
    let target = fs::canonicalize(&path).unwrap();
    let refusals: &[(&str, i32)] = &[
        ("chmod", errno(fs::set_permissions(&path, fs::Permissions::from_mode(0o777)))),
        ("chown", errno(chown(&path, Some(1), Some(1)))),
        ("rename", errno(fs::rename(&target, folder.join("other")))),
        ("rename over", errno(fs::rename(world.at("config/lock"), &target))),
        ("unlink", errno(fs::remove_file(&target))),
        ("link", errno(fs::hard_link(&target, folder.join("second")))),
        ("symlink", errno(symlink("/etc/passwd", folder.join("link")))),
        ("create", errno(File::create(folder.join("vol-0123456789abcdef0")))),
        ("mkdir", errno(fs::create_dir(mnt.join("folder")))),
        ("rmdir", errno(fs::remove_dir(&folder))),
        (
            "mknod",
            errno_of(rustix::fs::mknodat(
                rustix::fs::CWD,
                folder.join("node"),
                rustix::fs::FileType::Fifo,
                Mode::RUSR,
                0,
            )),
        ),
        (
            "O_TMPFILE",
            errno_of(rustix::fs::open(&folder, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR).map(drop)),
        ),
        ("setxattr", errno_of(rustix::fs::setxattr(&path, "user.x", b"1", XattrFlags::empty()))),
        ("a name of 300", errno(File::open(folder.join("x".repeat(300))))),
        ("a name that leads out", errno(File::open(folder.join("..%2f..")))),
    ];
    for (what, code) in refusals {
        let expected: &[i32] = match *what {
            "rename over" => &[libc::EXDEV],
            "a name of 300" => &[libc::ENAMETOOLONG, libc::ENOENT],
            "a name that leads out" => &[libc::ENOENT],
            "setxattr" => &[libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS],
            "O_TMPFILE" => &[libc::EPERM, libc::EOPNOTSUPP],
            _ => &[libc::EPERM],
        };
        assert!(expected.contains(code), "{what}: {code}");
    }
    // Calls that no disk has.
    for code in [
        errno_of(rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut { MIB }), 0).map(drop)),
        errno_of(rustix::fs::ioctl_ficlone(file.as_fd(), file.as_fd())),
    ] {
        assert!(code != libc::EIO && code != libc::ENOTCONN, "{code}");
    }
    assert!(is_unchanged(&path));
    drop(file);
    world.unmount();
}

fn errno_of(result: rustix::io::Result<()>) -> i32 {
    result.map_or_else(|e| e.raw_os_error(), |()| 0)
}

#[test]
fn what_is_in_use_stays_and_what_is_aborted_comes_back_whole() {
    let (mut world, path) = mounted();
    let file = writable(&path).unwrap();
    let refused = |args: &[&str], exit: i32, expected: &str| {
        let ended = bounded(&format!("{args:?}"), || world.command(args));
        assert_eq!(ended.exit, Some(exit), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(expected), "{args:?}: {ended:?}");
    };
    let pid = std::process::id().to_string();
    let elsewhere = world.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    refused(&["unmount", &world.mnt()], 5, "in use");
    refused(&["mount", elsewhere.to_str().unwrap()], 5, &world.mnt());
    refused(&["mount", &world.mnt()], 5, &world.mnt());
    refused(&["volume", "delete", "web"], 5, &pid);
    assert!(is_unchanged(&path));
    write_at(&path, 0, &pattern(SIZE as usize, 1)).unwrap();
    file.sync_all().unwrap();
    if !is_root() {
        return;
    }
    world.expect_disorder();
    let minor = {
        use std::os::unix::fs::MetadataExt;
        libc::minor(fs::metadata(world.path("mnt")).unwrap().dev())
    };
    let server = world.server();
    // In a place of our own: not every machine has it in /sys/fs/fuse/connections.
    let connections = world::OnDisk::of_kind("fusectl", "none", world.path("connections"));
    fs::write(connections.0.join(minor.to_string()).join("abort"), "1").unwrap();
    drop(connections);
    let code = errno(file.write_at(b"x", 0));
    assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&code), "{code}");
    drop(file);
    assert!(world::within(20, || world::is_gone(server)), "the server goes on without a connection");
    let ended = bounded("after an abort", || world.command(&["volume", "list"]));
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    if fs::read_to_string("/proc/self/mounts").unwrap().contains(&world.mnt()) {
        world.unmount();
    }
    world.mount();
    assert!(is_unchanged(&path));
}
