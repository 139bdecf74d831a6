//! Guards against a mount that a signal does not end while a file of it is open, and against one whose end takes answered
//! writes with it, cuts off a program that could have finished, or leaves a loop device behind.

#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use world::{
    MIB, OnDisk, Running, SECTOR, World, errno, is_gone, is_root, must, pattern, read_at, within, writable,
};

/// What the kernel says of a mount whose server is gone, by the moment.
fn is_end(code: i32) -> bool {
    [libc::ENOTCONN, libc::ECONNABORTED].contains(&code)
}

#[test]
fn an_open_file_is_served_for_a_grace_and_no_longer() {
    let world = World::new();
    world.volume("web", "8M");
    world.volume("other", "8M");
    world.ok(&["mount", &world.mnt(), "--grace", "3600"]);
    let open = writable(&world.file("web")).unwrap();
    open.write_all_at(&pattern(MIB as usize, 1), 0).unwrap();
    let other = File::open(world.file("other")).unwrap();
    let pid = world.signal(Signal::TERM);
    assert!(within(20, || !world.path("mnt/volumes").exists()), "the place stays taken");
    // Who has it open goes on, and nobody else begins.
    assert!(within(20, || world.log().contains("it ends when its files are closed")), "{}", world.log());
    assert!(world.log().contains(&format!("process {} (", std::process::id())), "{}", world.log());
    open.write_all_at(&pattern(MIB as usize, 2), MIB).unwrap();
    open.sync_all().unwrap();
    assert!(
        within(20, || errno(File::open(format!("/proc/self/fd/{}", other.as_raw_fd()))) == libc::ENOTCONN)
    );
    let mut read = vec![0; MIB as usize];
    open.read_exact_at(&mut read, MIB).unwrap();
    assert!(read == pattern(MIB as usize, 2));
    world.fails(&["mount", &world.mnt()], 5, &["already mounted", &pid.to_string()]);
    assert!(!is_gone(pid));
    // The second signal does not wait.
    open.write_all_at(&pattern(MIB as usize, 3), 2 * MIB).unwrap();
    world.signal(Signal::TERM);
    assert!(within(20, || is_gone(pid)), "the server stays");
    assert!(is_end(errno(open.write_all_at(b"late", 0))) && is_end(errno(open.sync_all())));
    assert!(world.log().contains("has ended though it was in use"), "{}", world.log());
    world.mount();
    for n in 0..3 {
        assert!(
            read_at(&world.file("web"), n * MIB, MIB as usize).unwrap() == pattern(MIB as usize, n + 1),
            "{n}"
        );
    }
}

#[test]
fn the_grace_ends_by_itself() {
    let world = World::new();
    world.volume("web", "8M");
    for foreground in [false, true] {
        let mut args = vec!["mount".to_owned(), world.mnt(), "--grace".into(), "1".into()];
        args.extend(foreground.then(|| "--foreground".to_owned()));
        let mut server = Running(world.command(&args).spawn().unwrap());
        assert!(within(20, || world.file("web").exists()));
        let open = writable(&world.file("web")).unwrap();
        open.write_all_at(b"there", 0).unwrap();
        let pid = world.signal(Signal::TERM);
        if foreground {
            let mut status = None;
            assert!(within(40, || {
                status = server.0.try_wait().unwrap();
                status.is_some()
            }));
            assert_eq!(status.unwrap().code(), Some(0));
        }
        assert!(within(40, || is_gone(pid)), "the server stays");
        assert!(is_end(errno(open.write_all_at(b"late!", 0))));
        drop(open);
        world.mount();
        assert_eq!(read_at(&world.file("web"), 0, 5).unwrap(), b"there");
        world.unmount();
    }
}

/// Writers that never stop: what the last of them was told is true.
#[test]
fn what_was_answered_until_the_end_is_there() {
    const WRITERS: u64 = 4;
    const SECTORS: u64 = (64 << 20) / SECTOR as u64 / WRITERS;
    let world = World::new();
    world.volume("web", "64M");
    world.ok(&["mount", &world.mnt(), "--grace", "0"]);
    let file = writable(&world.file("web")).unwrap();
    let answered: [AtomicU64; WRITERS as usize] = Default::default();
    std::thread::scope(|scope| {
        for n in 0..WRITERS {
            let (file, answered) = (&file, &answered[n as usize]);
            scope.spawn(move || {
                for round in 0.. {
                    let sector = n * SECTORS + round % SECTORS;
                    let code =
                        errno(file.write_all_at(&pattern(SECTOR, n << 32 | round), sector * SECTOR as u64));
                    if code != 0 {
                        assert!(is_end(code), "{code}");
                        return;
                    }
                    answered.store(round + 1, Ordering::SeqCst);
                }
            });
        }
        assert!(within(20, || answered.iter().all(|n| n.load(Ordering::SeqCst) > 500)));
        let pid = world.signal(Signal::TERM);
        assert!(within(40, || is_gone(pid)), "the server stays");
    });
    drop(file);
    world.mount();
    let read = File::open(world.file("web")).unwrap();
    for n in 0..WRITERS {
        let end = answered[n as usize].load(Ordering::SeqCst);
        for round in end.saturating_sub(SECTORS)..end {
            let mut found = vec![0; SECTOR];
            read.read_exact_at(&mut found, (n * SECTORS + round % SECTORS) * SECTOR as u64).unwrap();
            // The next round's write of this sector may have come and not been answered.
            let next = pattern(SECTOR, n << 32 | (round + SECTORS));
            let whole = found == pattern(SECTOR, n << 32 | round) || round + SECTORS == end && found == next;
            assert!(whole, "writer {n} lost round {round} of {end}");
        }
    }
}

/// A loop device that is taken away when dropped: once its mount is gone, nothing tells whose it was.
struct Attached(String);

impl Attached {
    fn new(world: &World) -> Self {
        Self(world.ok(&["attach", "web"]))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
        }
    }
}

#[test]
fn a_loop_device_goes_with_the_mount() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.volume("web", "32M");
    world.ok(&["mount", &world.mnt(), "--grace", "3600"]);
    let device = Attached::new(&world);
    must("mkfs.ext4", &["-q", "-F", &device.0]);
    // Not in use: detached, with what its cache holds.
    let pid = world.signal(Signal::TERM);
    assert!(within(40, || is_gone(pid)), "the server stays: {}", world.log());
    assert!(world.loops().is_empty());
    // In use: served until it is unmounted.
    world.ok(&["mount", &world.mnt(), "--grace", "3600"]);
    let device = Attached::new(&world);
    let disk = OnDisk::new(&device.0, world.path("disk"));
    let pid = world.signal(Signal::TERM);
    assert!(within(20, || world.log().contains(&format!("{} is in use", device.0))), "{}", world.log());
    assert!(within(20, || !world.path("mnt/volumes").exists()), "the place stays taken");
    fs::write(world.path("disk/file"), pattern(MIB as usize, 1)).unwrap();
    drop(disk);
    assert!(within(40, || is_gone(pid)), "the server stays: {}", world.log());
    assert!(within(20, || world.loops().is_empty()), "{:?}", world.loops());
    world.mount();
    let device = Attached::new(&world);
    let disk = OnDisk::new(&device.0, world.path("disk"));
    assert!(fs::read(world.path("disk/file")).unwrap() == pattern(MIB as usize, 1));
    drop(disk);
    world.ok(&["detach", &device.0]);
}
