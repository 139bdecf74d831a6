//! Guards against a volume file that behaves like a file where it should behave like a block device:
//! that grows, shrinks, swallows writes past its end, or says synced when it is not.

mod fuse_support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::sync::atomic::Ordering;
use std::thread;

use fuse_support::{SIZE, TestMount, VOLUME, errno, must, pattern, run};
use rustix::fs::{FallocateFlags, fallocate};
use terrane::fuse::{Cache, Options, Shelf};

fn open_rw(mount: &TestMount) -> File {
    OpenOptions::new().read(true).write(true).open(mount.volume()).unwrap()
}

#[test]
fn dd_and_cp_need_no_notrunc() {
    let mount = TestMount::new();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    let bytes = pattern(SIZE as usize, 1);
    fs::write(&input, &bytes).unwrap();
    must(
        "dd",
        &[format!("if={}", input.display()), format!("of={}", mount.volume().display()), "bs=64k".into()],
    );
    assert_eq!(mount.disk.bytes(), bytes);

    fs::write(&input, &bytes[..10_000]).unwrap();
    must(
        "dd",
        &[format!("if={}", input.display()), format!("of={}", mount.volume().display()), "bs=7k".into()],
    );
    assert_eq!(mount.disk.bytes(), bytes, "a shorter input leaves the rest as it was");

    let bytes = pattern(SIZE as usize, 2);
    fs::write(&input, &bytes).unwrap();
    let by_name = mount.path().join("by-name/volumes/web");
    must("cp", &[&input, &by_name]);
    assert_eq!(mount.disk.bytes(), bytes);
    let out = folder.path().join("out");
    must("cp", &[&by_name, &out]);
    assert_eq!(fs::read(&out).unwrap(), bytes);
}

#[test]
fn cp_keeps_holes_and_data() {
    let mount = TestMount::new();
    let mut expected = vec![0; SIZE as usize];
    for at in [0, 4096 * 100, SIZE as usize - 4096] {
        expected[at..at + 4096].copy_from_slice(&pattern(4096, at as u64));
        open_rw(&mount).write_all_at(&expected[at..at + 4096], at as u64).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    must("cp", &[mount.volume(), out.clone()]);
    assert_eq!(fs::read(&out).unwrap(), expected);
    assert!(fs::metadata(&out).unwrap().blocks() * 512 <= 64 << 10, "cp found the holes");
}

#[test]
fn truncate_succeeds_and_changes_nothing() {
    let mount = TestMount::new();
    let file = open_rw(&mount);
    file.write_all_at(b"kept", 100).unwrap();
    for size in [0, 1, SIZE - 1, SIZE, SIZE + 1, 1 << 40] {
        file.set_len(size).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE);
    }
    drop(OpenOptions::new().write(true).truncate(true).open(mount.volume()).unwrap());
    must("truncate", &["-s", "0", mount.volume().to_str().unwrap()]);
    assert_eq!(fs::metadata(mount.volume()).unwrap().len(), SIZE);
    assert_eq!(&mount.disk.bytes()[100..104], b"kept");
}

#[test]
fn the_end_is_the_end() {
    for cache in [Cache::None, Cache::Kernel] {
        let mount = TestMount::with(&Options { cache, ..Options::default() });
        let mut file = open_rw(&mount);
        let mut byte = [0; 8];
        assert_eq!(file.write_at(b"x", SIZE - 1).unwrap(), 1);
        assert_eq!(errno(file.write_at(b"x", SIZE)), libc::ENOSPC);
        assert_eq!(errno(file.write_at(b"x", SIZE + (1 << 40))), libc::ENOSPC);
        let past = errno(file.write_at(b"x", i64::MAX as u64));
        assert!([libc::EFBIG, libc::EINVAL, libc::ENOSPC].contains(&past), "{past}");
        assert_eq!(file.read_at(&mut byte, SIZE - 1).unwrap(), 1);
        assert_eq!(byte[0], b'x');
        assert_eq!(file.read_at(&mut byte, SIZE).unwrap(), 0);
        assert_eq!(file.read_at(&mut byte, SIZE + 5000).unwrap(), 0);
        let past = file.read_at(&mut byte, i64::MAX as u64);
        assert!(matches!(past, Ok(0)) || errno(past) == libc::EINVAL);
        assert_eq!(errno(file.read_at(&mut byte, u64::MAX)), libc::EINVAL);
        // Straddling: short, then none.
        assert_eq!(file.write_at(&[7; 10_000], SIZE - 6000).unwrap(), 6000);
        assert_eq!(mount.disk.bytes()[SIZE as usize - 6000..], [7; 6000]);
        let mut long = vec![0; 10_000];
        assert_eq!(file.read_at(&mut long, SIZE - 6000).unwrap(), 6000);
        file.seek(SeekFrom::End(0)).unwrap();
        assert_eq!(errno(file.write(b"x")), libc::ENOSPC);
        let mut append = OpenOptions::new().append(true).open(mount.volume()).unwrap();
        assert_eq!(errno(append.write(b"x")), libc::ENOSPC);
        assert_eq!(file.write_at(b"", SIZE + 1).unwrap(), 0);
        assert_eq!(file.metadata().unwrap().len(), SIZE);
    }
}

#[test]
fn dd_past_the_end_says_no_space() {
    let mount = TestMount::new();
    let output = run("dd", &["if=/dev/zero", &format!("of={}", mount.volume().display()), "bs=1M"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left on device"));
    assert_eq!(mount.disk.writes.load(Ordering::SeqCst), 4);
}

#[test]
fn large_and_unaligned_direct_requests_arrive_whole() {
    let mount = TestMount::new();
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(mount.volume()).unwrap();
    let bytes = pattern(SIZE as usize, 3);
    direct.write_all_at(&bytes, 0).unwrap();
    assert_eq!(mount.disk.bytes(), bytes);
    let mut back = vec![0; SIZE as usize];
    direct.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, bytes);
    // FUSE asks no alignment of O_DIRECT, and neither do we.
    direct.write_all_at(&bytes[3..5000], 12_345).unwrap();
    let mut back = vec![0; 777];
    direct.read_exact_at(&mut back, 12_346).unwrap();
    assert_eq!(back, bytes[4..781]);
    assert_eq!(mount.disk.bytes()[12_345..12_345 + 4997], bytes[3..5000]);
}

#[test]
fn fallocate_punches_zeroes_and_reserves() {
    let mount = TestMount::new();
    let file = open_rw(&mount);
    file.write_all_at(&pattern(SIZE as usize, 4), 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let call = |flags, at, len| errno(fallocate(&file, flags, at, len).map_err(Into::into));
    assert_eq!(call(punch, 8192, 8192), 0);
    assert_eq!(mount.disk.bytes()[8192..16384], [0; 8192]);
    assert_ne!(mount.disk.bytes()[8184..8192], [0; 8]);
    assert_eq!(call(FallocateFlags::ZERO_RANGE, 32768, 100), 0);
    assert_eq!(mount.disk.bytes()[32768..32868], [0; 100]);
    assert_eq!(call(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, SIZE - 4096, 8192), 0);
    assert_eq!(mount.disk.bytes()[SIZE as usize - 4096..], [0; 4096]);
    assert_eq!(call(punch, SIZE + 4096, 4096), 0);
    assert_eq!(call(punch, SIZE - 100, 1 << 40), 0);
    assert_eq!(call(FallocateFlags::empty(), 0, SIZE), 0);
    assert_eq!(call(FallocateFlags::KEEP_SIZE, 4096, 4096), 0);
    assert_eq!(call(FallocateFlags::empty(), 0, SIZE + 1), libc::ENOSPC);
    assert_eq!(call(FallocateFlags::KEEP_SIZE, 0, SIZE + 1), libc::ENOSPC);
    assert_eq!(call(FallocateFlags::ZERO_RANGE, SIZE - 1, 2), libc::ENOSPC);
    for refused in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
        FallocateFlags::PUNCH_HOLE,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    ] {
        assert_eq!(call(refused, 0, 4096), libc::EOPNOTSUPP, "{refused:?}");
    }
    assert_eq!(call(punch, i64::MAX as u64 - 10, 100), libc::EFBIG);
    let read_only = File::open(mount.volume()).unwrap();
    assert_eq!(errno(fallocate(&read_only, punch, 0, 4096).map_err(Into::into)), libc::EBADF);
    must("fallocate", &["-l", "4096", mount.volume().to_str().unwrap()]);
    assert_eq!(file.metadata().unwrap().len(), SIZE);
}

#[test]
fn seek_tells_data_from_holes() {
    let mount = TestMount::new();
    let file = open_rw(&mount);
    let seek = |to| rustix::fs::seek(&file, to).map_err(std::io::Error::from);
    assert_eq!(errno(seek(rustix::fs::SeekFrom::Data(0))), libc::ENXIO);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)).unwrap(), 0);
    file.write_all_at(&[1; 8192], 65536).unwrap();
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)).unwrap(), 65536);
    assert_eq!(seek(rustix::fs::SeekFrom::Data(66000)).unwrap(), 66000);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(66000)).unwrap(), 73728);
    file.write_all_at(&[1; 4096], SIZE - 4096).unwrap();
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(SIZE - 1)).unwrap(), SIZE);
    assert_eq!(errno(seek(rustix::fs::SeekFrom::Data(SIZE))), libc::ENXIO);
    assert_eq!(errno(seek(rustix::fs::SeekFrom::Hole(SIZE))), libc::ENXIO);
    assert_eq!(seek(rustix::fs::SeekFrom::End(0)).unwrap(), SIZE);
}

/// A mapping of the whole volume, unmapped when dropped.
struct Mapped {
    map: memmap2::MmapRaw,
}

impl Mapped {
    fn new(file: &File) -> Self {
        Self { map: memmap2::MmapOptions::new().len(SIZE as usize).map_raw(file).unwrap() }
    }
}

#[test]
fn mmap_reads_writes_and_syncs() {
    for cache in [Cache::None, Cache::Kernel] {
        let mount = TestMount::with(&Options { cache, ..Options::default() });
        let file = open_rw(&mount);
        file.write_all_at(b"before", 5000).unwrap();
        let mapped = Mapped::new(&file);
        let window = terrane::sys::mapping::LogMapping::new(&file, 0, SIZE as usize).unwrap();
        let mut bytes = [0; 6];
        window.read(5000, &mut bytes);
        assert_eq!(&bytes, b"before");
        window.write(5000, b"mapped");
        mapped.map.flush().unwrap();
        assert_eq!(&mount.disk.bytes()[5000..5006], b"mapped");
        assert!(mount.disk.flushes.load(Ordering::SeqCst) > 0, "msync is a sync");
        window.write(9000, b"unsynced");
        drop((window, mapped, file));
        // Written back at the close, or seen through the cache: in any case not lost.
        let mut bytes = [0; 8];
        File::open(mount.volume()).unwrap().read_exact_at(&mut bytes, 9000).unwrap();
        assert_eq!(&bytes, b"unsynced");
    }
}

#[test]
fn sync_means_sync() {
    for cache in [Cache::None, Cache::Kernel] {
        let mount = TestMount::with(&Options { cache, ..Options::default() });
        let flushes = || mount.disk.flushes.load(Ordering::SeqCst);
        let file = open_rw(&mount);
        file.write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(flushes(), 0, "a plain write is no sync");
        file.sync_all().unwrap();
        assert_eq!(flushes(), 1);
        file.sync_data().unwrap();
        assert_eq!(flushes(), 2);
        drop(file);
        assert_eq!(flushes(), 2, "closing is no sync");
        for flag in [libc::O_SYNC, libc::O_DSYNC, libc::O_DSYNC | libc::O_DIRECT] {
            let before = flushes();
            let file = OpenOptions::new().write(true).custom_flags(flag).open(mount.volume()).unwrap();
            file.write_all_at(&[2; 4096], 4096).unwrap();
            assert!(flushes() > before, "O_SYNC, O_DSYNC: {flag:#x}");
        }
        let before = flushes();
        let file = open_rw(&mount);
        let parts = [std::io::IoSlice::new(&[3; 4096])];
        rustix::io::pwritev2(&file, &parts, 0, rustix::io::ReadWriteFlags::DSYNC).unwrap();
        assert!(flushes() > before, "RWF_DSYNC");
        File::open(mount.path().join("volumes")).unwrap().sync_all().unwrap();
    }
}

#[test]
fn what_makes_or_breaks_names_is_refused() {
    let mount = TestMount::new();
    let (volumes, volume) = (mount.path().join("volumes"), mount.volume());
    let new = volumes.join("new");
    assert_eq!(errno(File::create(&new)), libc::EPERM);
    assert_eq!(errno(fs::create_dir(&new)), libc::EPERM);
    assert_eq!(errno(symlink("x", &new)), libc::EPERM);
    assert_eq!(errno(fs::hard_link(&volume, &new)), libc::EPERM);
    assert_eq!(errno(fs::rename(&volume, &new)), libc::EPERM);
    assert_eq!(errno(fs::remove_file(&volume)), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(&volumes)), libc::EPERM);
    assert_eq!(errno(fs::remove_file(mount.path().join("by-name/volumes/web"))), libc::EPERM);
    assert_eq!(errno(fs::remove_file(&new)), libc::ENOENT);
    assert_eq!(errno(File::create(mount.path().join("x"))), libc::EPERM);
    let fifo = rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, 0o600.into(), 0);
    assert_eq!(errno(fifo.map_err(Into::into)), libc::EPERM);
    let unnamed = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&volumes);
    assert_eq!(errno(unnamed), libc::EOPNOTSUPP);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&volume)), libc::EEXIST);
    drop(OpenOptions::new().write(true).create(true).truncate(true).open(&volume).unwrap());
}

#[test]
fn modes_owners_and_extended_attributes_are_fixed() {
    let mount = TestMount::new();
    let (volume, snapshot) = (mount.volume(), mount.snapshot());
    assert_eq!(fs::metadata(&volume).unwrap().mode(), libc::S_IFREG | 0o600);
    assert_eq!(fs::metadata(&snapshot).unwrap().mode(), libc::S_IFREG | 0o400);
    assert_eq!(errno(fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))), libc::EPERM);
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(errno(std::os::unix::fs::chown(&volume, Some(12345), None)), libc::EPERM);
    let file = open_rw(&mount);
    file.set_modified(std::time::SystemTime::now()).unwrap();
    let set = rustix::fs::setxattr(&volume, "user.x", b"y", rustix::fs::XattrFlags::empty());
    assert_eq!(errno(set.map_err(Into::into)), libc::EOPNOTSUPP);
    let mut value = [0u8; 64];
    let got = rustix::fs::getxattr(&volume, "user.x", &mut value[..]);
    assert_eq!(errno(got.map_err(Into::into)), libc::EOPNOTSUPP);
    let listed = rustix::fs::listxattr(&volume, &mut value[..]);
    assert!(matches!(listed, Ok(0) | Err(rustix::io::Errno::OPNOTSUPP)));
    must(
        "cp",
        &[
            "-a",
            mount.path().join("by-name").to_str().unwrap(),
            tempfile::tempdir().unwrap().path().to_str().unwrap(),
        ],
    );
}

#[test]
fn a_snapshot_cannot_be_written() {
    let mount = TestMount::new();
    let write = |how: &mut OpenOptions| errno(how.open(mount.snapshot()));
    // Where the kernel does not check modes, we say why.
    assert_eq!(write(OpenOptions::new().write(true)), libc::EROFS);
    assert_eq!(write(OpenOptions::new().read(true).write(true)), libc::EROFS);
    assert_eq!(write(OpenOptions::new().write(true).truncate(true)), libc::EROFS);
    let truncated = rustix::fs::open(mount.snapshot(), rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
    assert_eq!(errno(rustix::fs::ftruncate(&truncated, 0).map_err(Into::into)), libc::EINVAL);
    File::open(mount.snapshot()).unwrap().sync_all().unwrap();
    let mut bytes = Vec::new();
    File::open(mount.snapshot()).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, SIZE);
    assert_eq!(mount.snapshot.flushes.load(Ordering::SeqCst), 0);
}

#[test]
fn entries_come_and_go_at_once() {
    let mount = TestMount::new();
    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(mount.path().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["by-name", "snapshots", "volumes"]);
    assert_eq!(names("by-name"), ["snapshots", "volumes"]);
    assert_eq!(names("volumes"), [VOLUME]);
    assert_eq!(names("by-name/snapshots"), ["web-monday"]);
    let second = "vol-00000000000000002";
    let path = mount.path().join("volumes").join(second);
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
    mount.export.add(Shelf::Volumes, second, Some("db"), 8192);
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    assert_eq!(names("volumes"), [VOLUME, second]);
    let link = mount.path().join("by-name/volumes/db");
    assert_eq!(fs::read_link(&link).unwrap().to_str().unwrap(), format!("../../volumes/{second}"));
    assert_eq!(fs::metadata(&link).unwrap().len(), 8192);
    // The name moves to another volume.
    mount.export.volumes.lock().get_mut(second).unwrap().entry.name = None;
    mount.export.volumes.lock().get_mut(VOLUME).unwrap().entry.name = Some("db".into());
    assert_eq!(fs::metadata(&link).unwrap().len(), SIZE);
    assert_eq!(names("by-name/volumes"), ["db"]);
    mount.export.volumes.lock().remove(second);
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
    assert_eq!(errno(File::open(&path)), libc::ENOENT);
    assert_eq!(names("volumes"), [VOLUME]);
}

#[test]
fn a_thousand_entries_list_whole_and_inodes_agree() {
    let mount = TestMount::new();
    for index in 2..1002 {
        mount.export.add(Shelf::Volumes, &format!("vol-{index:017x}"), Some(&format!("name-{index}")), 4096);
    }
    for (folder, bad) in [("volumes", "../x"), ("by-name/volumes", ".")] {
        mount.export.add(Shelf::Volumes, bad, Some(bad), 4096);
        let mut seen = 0;
        for entry in fs::read_dir(mount.path().join(folder)).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().ino(), entry.ino());
            seen += 1;
        }
        assert_eq!(seen, 1001, "a name that is none is left out");
    }
}

#[test]
fn a_volume_that_grew_shows_it() {
    let mount = TestMount::new();
    let file = open_rw(&mount);
    mount.disk.grow(SIZE * 2);
    assert_eq!(file.metadata().unwrap().len(), SIZE * 2);
    file.write_all_at(b"x", SIZE * 2 - 1).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, SIZE * 2 - 1).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn refusals_of_the_region_reach_the_opener() {
    let mount = TestMount::new();
    for refusal in [libc::EACCES, libc::EIO] {
        mount.export.volumes.lock().get_mut(VOLUME).unwrap().open_errno = Some(refusal);
        assert_eq!(errno(File::open(mount.volume())), refusal);
        assert_eq!(fs::metadata(mount.volume()).unwrap().len(), SIZE, "and it is still listed");
    }
    mount.export.volumes.lock().get_mut(VOLUME).unwrap().open_errno = None;
    let file = open_rw(&mount);
    *mount.disk.fault.lock() = Some(libc::ENOSPC);
    assert_eq!(errno(file.write_at(b"x", 0)), libc::ENOSPC);
    *mount.disk.fault.lock() = None;
    assert_eq!(file.write_at(b"x", 0).unwrap(), 1);
}

#[test]
fn a_panic_is_an_io_error_and_the_mount_goes_on() {
    let mount = TestMount::new();
    let file = open_rw(&mount);
    mount.disk.trap.store(8192, Ordering::SeqCst);
    let mut bytes = [0; 100];
    for _ in 0..20 {
        assert_eq!(errno(file.read_at(&mut bytes, 8192)), libc::EIO);
        assert_eq!(errno(file.write_at(&bytes, 8192)), libc::EIO);
    }
    mount.export.panics.store(true, Ordering::SeqCst);
    assert_eq!(errno(fs::read_dir(mount.path().join("volumes")).unwrap().next().unwrap()), libc::EIO);
    assert_eq!(errno(fs::metadata(mount.snapshot())), libc::EIO);
    mount.export.panics.store(false, Ordering::SeqCst);
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&bytes, 4096).unwrap();
}

#[test]
fn statfs_tells_the_space_below() {
    let mount = TestMount::new();
    let stat = rustix::fs::statvfs(mount.path()).unwrap();
    assert_eq!(stat.f_blocks * stat.f_frsize, 100 << 30);
    assert_eq!(stat.f_bavail * stat.f_frsize, 42 << 30);
    let df = must("df", &["--output=avail", "-B1", mount.path().to_str().unwrap()]);
    assert!(df.contains(&(42u64 << 30).to_string()));
}

#[test]
fn writing_moves_the_time_of_change() {
    let mount = TestMount::new();
    let before = fs::metadata(mount.volume()).unwrap().modified().unwrap();
    thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(fs::metadata(mount.volume()).unwrap().modified().unwrap(), before);
    let file = open_rw(&mount);
    file.write_all_at(b"x", 0).unwrap();
    let after = fs::metadata(mount.volume()).unwrap().modified().unwrap();
    assert!(after > before);
    drop(file);
    assert!(fs::metadata(mount.volume()).unwrap().modified().unwrap() >= after);
}

#[test]
fn many_writers_and_readers_at_once() {
    for (threads, clone_descriptor) in [(1, false), (4, true), (8, false)] {
        let mount = TestMount::with(&Options { threads, clone_descriptor, ..Options::default() });
        thread::scope(|scope| {
            for part in 0..8u64 {
                let mount = &mount;
                scope.spawn(move || {
                    let file = open_rw(mount);
                    let start = part * (SIZE / 8);
                    for round in 0..20 {
                        let bytes = pattern((SIZE / 8) as usize, part * 100 + round);
                        file.write_all_at(&bytes, start).unwrap();
                        let mut back = vec![0; bytes.len()];
                        file.read_exact_at(&mut back, start).unwrap();
                        assert!(back == bytes);
                    }
                });
            }
        });
    }
}

#[test]
fn what_is_opened_is_closed() {
    let mount = TestMount::new();
    for _ in 0..100 {
        drop(File::open(mount.volume()).unwrap());
    }
    let file = File::open(mount.volume()).unwrap();
    let export = mount.export.clone();
    assert!(mount.mounted.unmount().is_err_and(|error| error.is_busy()), "a file is open");
    assert_eq!(fs::metadata(mount.volume()).unwrap().len(), SIZE, "and it serves on");
    drop(file);
    mount.mounted.unmount().unwrap();
    assert_eq!(export.opens.load(Ordering::SeqCst), export.closes.load(Ordering::SeqCst));
    drop(mount);
}

#[test]
fn a_read_only_mount_takes_no_write() {
    let mount = TestMount::with(&Options { read_only: true, ..Options::default() });
    assert_eq!(errno(OpenOptions::new().write(true).open(mount.volume())), libc::EROFS);
    assert_eq!(errno(File::create(mount.path().join("x"))), libc::EROFS);
    assert_eq!(fs::read(mount.snapshot()).unwrap().len() as u64, SIZE);
}
