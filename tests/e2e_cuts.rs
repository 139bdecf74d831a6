//! Guards against what the simulated disk can't show: power cuts of real file systems, and kills between any two system calls
//! of real commands.
//!
//! `TERRANE_CUTS=n` makes n cuts of each file system and kills at every call, where the gate takes samples.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use world::{MIB, SECTOR, World, is_gone, is_root, must, pattern, read_at, within, write_at};

fn cuts() -> Option<u64> {
    std::env::var("TERRANE_CUTS").ok().map(|n| n.parse().expect("a number of cuts"))
}

/// Sectors that are written again and again; each says which write it is of.
const SECTORS: u64 = 64;

fn sector(write: u64) -> Vec<u8> {
    let mut bytes = pattern(SECTOR, write);
    bytes[..8].copy_from_slice(&write.to_le_bytes());
    bytes
}

/// Which write a sector holds; 0: none.
fn write_of(bytes: &[u8]) -> u64 {
    let write = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let whole = if write == 0 { bytes.iter().all(|b| *b == 0) } else { bytes == sector(write) };
    assert!(whole, "a sector is of no one write");
    write
}

/// What a writer did before the cut: the sector of each write (from 1), the last one answered, the last one synced.
#[derive(Default)]
struct Written {
    places: Vec<u64>,
    answered: u64,
    synced: u64,
}

/// Writes until `stop`. A sync counts as answered until `cutting`: one that a forced shutdown of ext4 overtakes is told that all is well,
/// of a plain file too, though the blocks that the file had grown by are lost with the journal (Linux 6.18: one cut in forty).
fn write_until(stop: &AtomicBool, cutting: &AtomicBool, file: &fs::File, seed: u64, first: u64) -> Written {
    let mut done = Written { answered: first - 1, synced: first - 1, ..Written::default() };
    let mut random = seed;
    while !stop.load(Ordering::Acquire) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (random >> 33) % SECTORS;
        let write = first + done.places.len() as u64;
        done.places.push(place);
        if file.write_all_at(&sector(write), place * SECTOR as u64).is_err() {
            break;
        }
        done.answered = write;
        if (random >> 20).is_multiple_of(7) {
            if file.sync_data().is_err() {
                break;
            }
            if !cutting.load(Ordering::SeqCst) {
                done.synced = write;
            }
        }
    }
    done
}

/// Everything synced is there, and the disk is that after some write.
#[track_caller]
fn check_prefix(disk: &[u8], before: &[u64], done: &Written, first: u64, what: &str) -> Vec<u64> {
    let held: Vec<u64> = disk.chunks(SECTOR).map(write_of).collect();
    let newest = held.iter().copied().max().unwrap_or(0).max(done.synced);
    let mut expected = before.to_vec();
    for (i, place) in done.places.iter().enumerate().take_while(|(i, _)| first + *i as u64 <= newest) {
        expected[*place as usize] = first + i as u64;
    }
    assert_eq!(held, expected, "{what}: not the disk after write {newest}; synced: {}", done.synced);
    held
}

/// A file system over an image, and a region on it; the cut is the file system's own.
fn cut_a_file_system(kind: &str, mkfs: &[&str]) {
    if !is_root() {
        return;
    }
    let times = cuts().unwrap_or(3);
    let mut world = World::bare(None);
    world.expect_disorder();
    let image = world.at("image");
    fs::File::create(&image).unwrap().set_len(700 << 20).unwrap();
    must(mkfs[0], &[&mkfs[1..], &[image.as_str()]].concat());
    let device = must("losetup", &["-f", "--show", &image]);
    let mut disk = Some(world::OnDisk::new(&device, world.path("r")));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "64M");
    must("sync", &["-f", &world.at("r")]);
    let (mut held, mut first) = (vec![0; SECTORS as usize], 1);
    for turn in 0..times {
        world.mount();
        let file = world::writable(&world.file("web")).unwrap();
        let server = world.server();
        let (stop, cutting) = (AtomicBool::new(false), AtomicBool::new(false));
        let done = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until(&stop, &cutting, &file, turn * 977 + 5, first));
            std::thread::sleep(Duration::from_millis(30 + turn * 37 % 400));
            if turn % 3 == 1 {
                let _ = world.run(&["snapshot", "create", "web", "--name", &format!("s{turn}")]);
            }
            cutting.store(true, Ordering::SeqCst);
            must("xfs_io", &["-x", "-c", "shutdown", &world.at("r")]);
            stop.store(true, Ordering::Release);
            writer.join().unwrap()
        });
        drop(file);
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(server).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        assert!(within(20, || is_gone(server)), "the killed server stays");
        must("umount", &["-l", &world.mnt()]);
        drop(disk.take());
        disk = Some(world::OnDisk::new(&device, world.path("r")));
        world.ok(&["region", "check"]);
        world.mount();
        let what = format!("{kind}, cut {turn}");
        let bytes = read_at(&world.file("web"), 0, SECTORS as usize * SECTOR).unwrap();
        held = check_prefix(&bytes, &held, &done, first, &what);
        first += done.places.len() as u64;
        world.unmount();
        must("sync", &["-f", &world.at("r")]);
    }
    drop(disk);
    must("losetup", &["-d", &device]);
    println!("{times} cuts of {kind}");
}

#[test]
fn a_cut_of_ext4_leaves_a_prefix() {
    cut_a_file_system("ext4", &["mkfs.ext4", "-q", "-F"]);
}

#[test]
fn a_cut_of_xfs_leaves_a_prefix() {
    cut_a_file_system("xfs", &["mkfs.xfs", "-q", "-f"]);
}

const CALLS: &str = "pwrite64,write,fdatasync,fsync,fallocate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,\
                     ftruncate,openat,flock";

/// Runs a command that is killed at its `n`-th call; whether it was.
fn killed_at(world: &World, args: &[&str], n: u64) -> bool {
    let program = assert_cmd::cargo::cargo_bin!("terrane");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={CALLS}")])
        .args(["-e", &format!("inject={CALLS}:signal=SIGKILL:when={n}")])
        .arg(program)
        .args(args)
        .env("TERRANE_CONFIG_DIR", world.path("config"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = command.status().unwrap();
    status.signal() == Some(libc::SIGKILL) || status.code() == Some(128 + libc::SIGKILL)
}

fn put_back(world: &World) {
    for name in ["r", "config"] {
        let _ = fs::remove_dir_all(world.path(name));
        must("cp", &["-a", "--sparse=always", &world.at(&format!("kept/{name}")), &world.at(name)]);
    }
}

/// A region with a volume and two snapshots, killed at each call of each command: it is whole, every disk reads, and the
/// command can be given again.
#[test]
fn a_kill_at_any_call_of_a_command_leaves_a_whole_region() {
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    world.mount();
    let mut contents = Vec::new();
    for n in 0..3u64 {
        write_at(&world.file("web"), n * MIB, &pattern(2 * MIB as usize, n)).unwrap();
        contents.push(read_at(&world.file("web"), 0, 8 << 20).unwrap());
        if n < 2 {
            world.snapshot("web", &format!("s{n}"));
        }
    }
    world.unmount();
    fs::create_dir(world.path("kept")).unwrap();
    for name in ["r", "config"] {
        must("cp", &["-a", "--sparse=always", &world.at(name), &world.at(&format!("kept/{name}"))]);
    }
    let commands: [(&[&str], &str); 7] = [
        (&["snapshot", "create", "web", "--name", "new"], "new"),
        (&["snapshot", "delete", "s0"], "s0"),
        (&["snapshot", "delete", "s1"], "s1"),
        (&["volume", "rollback", "web", "--snapshot", "s0"], ""),
        (&["volume", "create", "--name", "second", "--snapshot", "s1"], ""),
        (&["snapshot", "copy", "--wait", "s1", "--to", "here", "--key", "other", "--name", "new"], "new"),
        (&["volume", "resize", "web", "--size", "16M"], ""),
    ];
    let stride = if cuts().is_some() { 1 } else { 9 };
    let mut kills = 0;
    for (turn, (args, changed)) in commands.iter().enumerate() {
        let mut n = 1 + turn as u64 % stride;
        loop {
            put_back(&world);
            if args.contains(&"other") {
                world.ok(&["key", "create", "--alias", "other"]);
            }
            if !killed_at(&world, args, n) {
                break;
            }
            kills += 1;
            let what = format!("{args:?} killed at call {n}");
            world.mount();
            for (i, content) in contents.iter().enumerate().take(2) {
                let name = format!("s{i}");
                match read_at(&world.snapshot_file(&name), 0, 8 << 20) {
                    Ok(found) => assert!(found == *content, "{what}: snapshot {name} differs"),
                    Err(e) => assert!(name == *changed, "{what}: snapshot {name}: {e}"),
                }
            }
            let found = read_at(&world.file("web"), 0, 8 << 20).unwrap();
            let rolled_back = args.contains(&"rollback") && found == contents[0];
            assert!(found == contents[2] || rolled_back, "{what}: the volume differs");
            world.unmount();
            world.ok(&["region", "check"]);
            let again = world.run(args);
            // It was done, or it is done now.
            let words = world::words(&again);
            assert!(
                again.status.success() || matches!(again.status.code(), Some(3 | 5)),
                "{what}, again: {words}"
            );
            n += stride;
        }
        assert!(n > stride, "{args:?} was never killed");
    }
    assert!(kills > 20, "{kills}");
    println!("{kills} kills");
}
