//! Guards against mounts that hide files, serve one region twice, fail without a reason or end without having written.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::process::Signal;
use world::{
    MIB, Running, World, errno, is_gone, is_root, must, pattern, read_at, within, words, writable, write_at,
};

#[test]
fn a_place_that_is_none_is_refused_and_nothing_is_left() {
    let world = World::new();
    fs::write(world.path("file"), "x").unwrap();
    fs::create_dir_all(world.path("full/inside")).unwrap();
    for background in [true, false] {
        let mount = |place: &str, exit: i32, expected: &[&str]| {
            let place = world.at(place);
            let args = if background { vec!["mount", &place] } else { vec!["mount", &place, "--foreground"] };
            world.fails(&args, exit, expected);
        };
        mount("absent", 3, &["absent", "mkdir"]);
        mount("file", 4, &["file", "not a directory"]);
        mount("full", 4, &["full", "not empty"]);
    }
    world.fails(&["unmount", &world.mnt()], 3, &["not mounted"]);
    world.fails(&["unmount", &world.at("absent")], 3, &["absent"]);
    // A refusal leaves the region free.
    world.mount();
    let pid = world.server().to_string();
    world.fails(&["mount", &world.mnt()], 5, &["already mounted", &pid, &world.mnt()]);
    fs::create_dir(world.path("second")).unwrap();
    world.fails(&["mount", &world.at("second")], 5, &["already mounted", &pid, &world.mnt()]);
    world.fails(&["mount", &world.at("second"), "--output", "json"], 5, &["\"exit\":5"]);
    world.fails(&["mount", &world.at("second"), "--threads", "0"], 2, &["threads"]);
}

/// Whoever mounts while he holds a lock, or in a pipe that somebody reads to its end, has it back when the command returns.
#[test]
fn a_mount_keeps_nothing_open_of_who_mounted() {
    let world = World::new();
    let lock = world.path("lock");
    let mount = world.command(&["mount", &world.mnt()]);
    let mut script = Command::new("sh");
    script.args(["-c", r#"exec 9>"$0" && flock 9 && exec "$@""#]).arg(&lock);
    script.arg(mount.get_program()).args(mount.get_args());
    script.envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(script.status().unwrap().success());
    assert!(world.server() > 0, "it serves");
    let free = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(fs::File::open(&lock).unwrap(), free).expect("the lock of who mounted is free");
}

#[test]
fn a_read_only_mount_beside_it_shows_snapshots() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
    world.snapshot("web", "s1");
    fs::create_dir(world.path("ro")).unwrap();
    world.ok(&["mount", &world.at("ro"), "--read-only"]);
    let shown = world.path("ro/by-name/snapshots/s1");
    assert!(read_at(&shown, 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
    assert_eq!(fs::read_dir(world.path("ro/volumes")).unwrap().count(), 0);
    assert_eq!(errno(writable(&shown)), libc::EROFS);
    // One taken now appears there at once.
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 2)).unwrap();
    world.snapshot("web", "s2");
    let second = world.path("ro/by-name/snapshots/s2");
    assert!(read_at(&second, 0, MIB as usize).unwrap() == pattern(MIB as usize, 2));
    world.unmount();
    assert!(read_at(&shown, 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
    world.snapshot("web", "s3");
    assert!(
        read_at(&world.path("ro/by-name/snapshots/s3"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 2)
    );
    world.ok(&["unmount", &world.at("ro")]);
}

#[test]
fn a_wrong_or_missing_root_key_is_said_at_once() {
    let mut world = World::new();
    world.volume("web", "4M");
    let key = fs::read_dir(world.path("config/keys")).unwrap().next().unwrap().unwrap().path();
    let right = fs::read(&key).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    world.fails(&["mount", &world.mnt()], 4, &["key"]);
    fs::remove_file(&key).unwrap();
    world.fails(&["mount", &world.mnt()], 4, &["key"]);
    // Listing needs none.
    assert_eq!(world.json(&["volume", "list"]).as_array().unwrap().len(), 1);
    fs::write(&key, right).unwrap();
    must("chmod", &["600", key.to_str().unwrap()]);
    world.mount();
    world.unmount();
    world.expect_disorder();
}

#[test]
fn signals_end_a_mount_in_order() {
    for (round, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let world = World::new();
        world.volume("web", "8M");
        world.mount();
        write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
        let pid = world.signal(signal);
        assert!(within(20, || is_gone(pid)), "the server stays");
        assert!(!world.path("mnt/volumes").exists());
        world.mount();
        assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
        // With an open file: what was written is durable, the place is free, and it ends with the file's closing.
        let open = writable(&world.file("web")).unwrap();
        open.write_all_at(&pattern(MIB as usize, 2), 0).unwrap();
        let pid = world.signal(signal);
        assert!(within(20, || !world.path("mnt/volumes").exists()), "the place stays taken");
        if round == 0 {
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
                .unwrap();
        } else {
            open.write_all_at(&pattern(MIB as usize, 3), MIB).unwrap();
        }
        drop(open);
        assert!(within(20, || is_gone(pid)), "the server stays after the last file was closed");
        world.mount();
        assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 2));
        if round == 1 {
            assert!(read_at(&world.file("web"), MIB, MIB as usize).unwrap() == pattern(MIB as usize, 3));
        }
    }
}

#[test]
fn in_the_foreground_until_a_signal_or_an_unmount() {
    let world = World::new();
    world.volume("web", "4M");
    for signal in [None, Some(Signal::INT)] {
        let mut server = Running(world.command(&["mount", &world.mnt(), "--foreground"]).spawn().unwrap());
        assert!(within(20, || world.file("web").exists()));
        write_at(&world.file("web"), 0, b"there").unwrap();
        match signal {
            None => world.unmount(),
            Some(signal) => drop(world.signal(signal)),
        }
        let mut status = None;
        assert!(within(20, || {
            status = server.0.try_wait().unwrap();
            status.is_some()
        }));
        assert_eq!(status.unwrap().code(), Some(0));
    }
    world.mount();
    assert_eq!(read_at(&world.file("web"), 0, 5).unwrap(), b"there");
    // `umount` ends it as well.
    if is_root() {
        let pid = world.server();
        must("umount", &[world.mnt()]);
        assert!(within(20, || is_gone(pid)));
        world.mount();
        assert_eq!(read_at(&world.file("web"), 0, 5).unwrap(), b"there");
    }
}

#[test]
fn with_the_kernels_cache() {
    let world = World::new();
    world.volume("web", "16M");
    world.ok(&["mount", &world.mnt(), "--cache", "kernel", "--threads", "2"]);
    write_at(&world.file("web"), 1000, &pattern(3 << 20, 1)).unwrap();
    assert!(read_at(&world.file("web"), 1000, 3 << 20).unwrap() == pattern(3 << 20, 1));
    world.snapshot("web", "s1");
    write_at(&world.file("web"), 1000, &pattern(3 << 20, 2)).unwrap();
    assert!(read_at(&world.snapshot_file("s1"), 1000, 3 << 20).unwrap() == pattern(3 << 20, 1));
    world.ok(&["volume", "rollback", "web", "--snapshot", "s1"]);
    assert!(read_at(&world.file("web"), 1000, 3 << 20).unwrap() == pattern(3 << 20, 1));
}

/// A full disk below: an error to the writer and no lost write, and on it goes once there is space.
#[test]
fn a_full_disk_is_told_and_survived() {
    if !is_root() {
        return;
    }
    let world = World::bare(None);
    let image = world.at("image");
    fs::File::create(&image).unwrap().set_len(260 << 20).unwrap();
    must("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
    let device = must("losetup", &["-f", "--show", &image]);
    let disk = world::OnDisk::new(&device, world.path("r"));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "512M");
    world.volume("other", "8M");
    world.mount();
    write_at(&world.file("other"), 0, &pattern(MIB as usize, 9)).unwrap();
    let file = writable(&world.file("web")).unwrap();
    file.write_all_at(&pattern(4 << 20, 7), 12 * MIB).unwrap();
    world.snapshot("web", "s0");
    file.write_all_at(&pattern(8 << 20, 1), 0).unwrap();
    file.sync_all().unwrap();
    world.snapshot("web", "s1");
    world.ok(&["key", "create", "--alias", "spare"]);
    fs::write(world.path("r/ballast"), vec![1; 32 << 20]).unwrap();
    let mut written = 0;
    let mut code = 0;
    for n in 0..400u64 {
        code = errno(file.write_all_at(&pattern(MIB as usize, 100 + n), (16 + n) * MIB));
        if code != 0 {
            break;
        }
        written += 1;
    }
    assert_eq!(code, libc::ENOSPC, "after {written} MiB");
    assert!(written > 50, "{written}");
    // A snapshot may fail now, in words, and takes nothing with it; so may a copy and a new volume; and what a deleted snapshot leaves
    // waits for space. Some need more than the catalog's log has at hand.
    let full = "terrane: no space is left for the catalog of region here\n  hint: free some space on its file system, then run the command again\n";
    let commands = [
        &["snapshot", "create", "web", "--name", "full"][..],
        &["snapshot", "copy", "s1", "--to", "here", "--key", "spare", "--name", "copied"],
        &["volume", "create", "--name", "more", "--size", "8M"],
        &["snapshot", "delete", "s0"],
    ];
    let failed = commands.into_iter().map(|args| world.run(args)).filter(|output| !output.status.success());
    let failed: Vec<_> = failed.map(|output| (output.status.code(), words(&output))).collect();
    assert!(!failed.is_empty() && failed.iter().all(|said| *said == (Some(1), full.into())), "{failed:?}");
    let synced = errno(file.sync_all());
    assert!(synced == 0 || synced == libc::ENOSPC || synced == libc::EIO, "{synced}");
    assert!(read_at(&world.file("web"), 0, 8 << 20).unwrap() == pattern(8 << 20, 1));
    let s1_reads = || {
        assert!(read_at(&world.snapshot_file("s1"), 0, 8 << 20).unwrap() == pattern(8 << 20, 1));
        assert!(read_at(&world.snapshot_file("s1"), 12 * MIB, 4 << 20).unwrap() == pattern(4 << 20, 7));
    };
    s1_reads();
    assert!(read_at(&world.file("other"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 9));
    fs::remove_file(world.path("r/ballast")).unwrap();
    assert_eq!(synced, 0, "what was answered could not be made durable");
    file.write_all_at(&pattern(MIB as usize, 5), 500 * MIB).unwrap();
    file.sync_all().unwrap();
    world.snapshot("web", "after");
    if world.json(&["snapshot", "list"]).to_string().contains("\"s0\"") {
        world.ok(&["snapshot", "delete", "s0"]);
    }
    // The next order wakes what had no space: each snapshot has a layer, each volume one that takes writes and the next.
    let count = |noun: &str| world.json(&[noun, "list"]).as_array().unwrap().len();
    let layers = count("snapshot") + 2 * count("volume");
    assert!(
        within(60, || world.layers() <= layers),
        "{} layers, {layers} wanted: {}",
        world.layers(),
        world.log()
    );
    s1_reads();
    world.ok(&["snapshot", "copy", "--wait", "s1", "--to", "here", "--key", "spare", "--name", "again"]);
    assert!(read_at(&world.snapshot_file("again"), 12 * MIB, 4 << 20).unwrap() == pattern(4 << 20, 7));
    for n in 0..written {
        assert!(
            read_at(&world.file("web"), (16 + n) * MIB, MIB as usize).unwrap()
                == pattern(MIB as usize, 100 + n)
        );
    }
    drop(file);
    world.unmount();
    world.mount();
    for n in 0..written {
        assert!(
            read_at(&world.snapshot_file("after"), (16 + n) * MIB, MIB as usize).unwrap()
                == pattern(MIB as usize, 100 + n)
        );
    }
    assert!(read_at(&world.file("web"), 500 * MIB, MIB as usize).unwrap() == pattern(MIB as usize, 5));
    world.unmount();
    drop(disk);
    must("losetup", &["-d", &device]);
}

#[test]
fn a_mount_that_does_not_answer_is_named_and_waited_for_no_longer() {
    let world = World::new();
    world.volume("web", "4M");
    world.mount();
    world.signal(rustix::process::Signal::STOP);
    world.fails(&["unmount", &world.mnt()], 5, &["does not answer"]);
    world.fails(&["mount", &world.mnt()], 5, &[&world.mnt()]);
    world.signal(rustix::process::Signal::CONT);
    world.unmount();
}

/// A key's state is told as it is, and not as it was when its volume was asked for.
#[test]
fn a_volume_whose_key_is_enabled_again_is_available() {
    let world = World::new();
    world.ok(&["key", "create", "--alias", "project"]);
    world.ok(&["volume", "create", "--name", "web", "--size", "4M", "--key", "project"]);
    world.mount();
    world.ok(&["key", "disable", "project"]);
    assert!(read_at(&world.file("web"), 0, 4096).is_err());
    assert_eq!(world.json(&["volume", "show", "web"])["state"], "unreadable");
    world.ok(&["key", "enable", "project"]);
    assert_eq!(world.json(&["volume", "show", "web"])["state"], "available");
    assert_eq!(world.problems(), Vec::<String>::new());
    assert!(read_at(&world.file("web"), 0, 4096).is_ok());
    world.unmount();
}

/// What is open is served on; nothing more is opened, though the layer has its key still.
#[test]
fn a_snapshot_under_a_disabled_key_is_not_opened_beside_its_open_volume() {
    let world = World::new();
    world.ok(&["key", "create", "--alias", "project"]);
    world.ok(&["volume", "create", "--name", "web", "--size", "4M", "--key", "project"]);
    world.mount();
    let file = world::writable(&world.file("web")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 0).unwrap();
    world.snapshot("web", "s1");
    world.ok(&["key", "disable", "project"]);
    let refused = read_at(&world.snapshot_file("s1"), 0, 4096).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    std::os::unix::fs::FileExt::write_all_at(&file, &[2; 4096], 0).unwrap();
    drop(file);
    world.ok(&["key", "enable", "project"]);
    assert!(read_at(&world.snapshot_file("s1"), 0, 4096).is_ok());
    world.unmount();
}
