//! Guards against what only root can do: regions of an unprivileged user, mounted through the setuid helper, copied, checked,
//! and lent to root as loop devices.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use world::{MIB, World, is_root, must, pattern, read_at, tool, words, write_at};

const NOBODY: u32 = 65534;

/// Runs an ignored test of this file in a mount namespace of its own, where `/dev/fuse` is open to users, and users may let others
/// into their mounts. The machine stays as it is.
fn in_a_namespace(test: &str) {
    if !tool("sh", &["-c", "command -v fusermount3"]).status.success() {
        eprintln!("no fusermount3: no user can mount");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -e
        mount -t tmpfs -o mode=755 none "$1"
        mknod -m 666 "$1/fuse" c 10 229
        mount --bind "$1/fuse" /dev/fuse
        echo user_allow_other > "$1/fuse.conf"
        test ! -e /etc/fuse.conf || mount --bind "$1/fuse.conf" /etc/fuse.conf
        exec "$2" --exact "$3" --ignored --nocapture"#;
    let program = std::env::current_exe().unwrap();
    let folder = folder.path().to_str().unwrap();
    let program = program.to_str().unwrap();
    let said = must("unshare", &["--mount", "sh", "-c", script, "sh", folder, program, test]);
    assert!(said.contains("1 passed"), "{said}");
}

/// A world whose commands an unprivileged user runs: the one who runs the test, unless that is root.
fn unprivileged() -> World {
    World::bare(is_root().then_some(NOBODY))
}

/// Runs a program as that user; it must succeed.
#[track_caller]
fn run(args: &[&str]) -> String {
    let full = [&["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"], args].concat();
    if is_root() { must("setpriv", &full) } else { must(args[0], &args[1..]) }
}

/// Bytes in a file that the user may read.
fn source(world: &World, name: &str, seed: u64) -> String {
    fs::write(world.path(name), pattern(8 << 20, seed)).unwrap();
    must("chmod", &["a+r", &world.at(name)]);
    world.at(name)
}

#[test]
fn as_an_unprivileged_user() {
    match is_root() {
        true => in_a_namespace("the_journey_without_rights"),
        false => the_journey_without_rights(),
    }
}

#[test]
#[ignore = "run by as_an_unprivileged_user"]
fn the_journey_without_rights() {
    let mut world = unprivileged();
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "8M");
    world.mount();
    let file = world.file("web");
    let of = format!("of={}", file.display());
    let source = source(&world, "source", 1);
    run(&["dd", &format!("if={source}"), &of, "bs=64k", "status=none"]);
    world.snapshot("web", "s1");
    run(&["dd", "if=/dev/zero", &of, "bs=1M", "count=1", "status=none"]);
    run(&["cmp", &source, world.snapshot_file("s1").to_str().unwrap()]);
    world.ok(&["volume", "rollback", "web", "--snapshot", "s1"]);
    world.unmount();
    world.mount();
    run(&["cmp", &source, file.to_str().unwrap()]);
    let said = words(&world.run(&["attach", "web"]));
    assert!(said.contains("root"), "{said}");
    if is_root() {
        // Root is not the owner: it may not open the region.
        let output = as_root(&world, &["volume", "list", "--region", &world.at("r")]);
        assert_eq!(output.status.code(), Some(4), "{}", words(&output));
        assert!(words(&output).contains("only its owner opens it"), "{}", words(&output));
    }
    world.unmount();
    world.expect_disorder();
}

/// By root, who knows no region.
fn as_root(world: &World, args: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("terrane"))
        .env("TERRANE_CONFIG_DIR", world.path("config-of-root"))
        .env_remove("TERRANE_REGION")
        .args(args)
        .output()
        .unwrap()
}

/// What is printed for root, who must succeed.
#[track_caller]
fn root_ok(world: &World, args: &[&str]) -> String {
    let output = as_root(world, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", words(&output));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn two_regions_of_an_unprivileged_user() {
    match is_root() {
        true => in_a_namespace("the_copy_without_rights"),
        false => the_copy_without_rights(),
    }
}

/// S13, S14, S22, S38: regions with a key each, a copy from one to the other under its key, and the disk read there.
#[test]
#[ignore = "run by two_regions_of_an_unprivileged_user"]
fn the_copy_without_rights() {
    let world = unprivileged();
    for (dir, name) in [("r", "north"), ("s", "south")] {
        world.ok(&["region", "init", &world.at(dir), "--name", name, "-q"]);
        world.ok(&["key", "create", "--alias", &format!("of-{name}"), "--region", name]);
    }
    let north = |args: &[&str]| world.ok(&[args, &["--region", "north"]].concat());
    let south = |args: &[&str]| world.ok(&[args, &["--region", "south"]].concat());
    north(&["volume", "create", "--name", "web", "--size", "8M", "--key", "of-north"]);
    north(&["mount", &world.mnt()]);
    let of = format!("of={}", world.file("web").display());
    let write = |from: &str, skip: &str| {
        let source = format!("if={from}");
        run(&["dd", &source, &of, "bs=1M", skip, &skip.replace("skip", "seek"), "count=7", "status=none"])
    };
    let copy = |name: &str| {
        north(&["snapshot", "create", "web", "--name", name]);
        let to = ["--to", "south", "--key", "of-south", "--name", name, "--wait", "-q"];
        north(&[&["snapshot", "copy", name], &to[..]].concat());
    };
    let first = source(&world, "first", 1);
    write(&first, "skip=0");
    copy("s1");
    // And the difference alone: the first MiB.
    let second = source(&world, "second", 2);
    run(&["dd", &format!("if={second}"), &of, "bs=1M", "count=1", "status=none"]);
    copy("s2");

    let shown: Value = serde_json::from_str(&south(&["snapshot", "show", "s2", "--output", "json"])).unwrap();
    assert_eq!(shown["shipped_bytes"], MIB, "{shown}");
    let key: Value = serde_json::from_str(&south(&["key", "show", "of-south", "--output", "json"])).unwrap();
    assert_eq!(shown["key_id"], key["id"]);
    south(&["snapshot", "verify", "s2", "--against", "north/s2", "--deep"]);
    south(&["volume", "create", "--snapshot", "s2", "--name", "again"]);
    run(&["mkdir", &world.at("other")]);
    south(&["mount", &world.at("other")]);
    let again = world.at("other/by-name/volumes/again");
    run(&["cmp", &again, world.file("web").to_str().unwrap()]);
    run(&["cmp", &again, &second, "--bytes", "1048576"]);
    run(&["cmp", &again, &first, "--ignore-initial", "1048576", "--bytes", "6291456"]);
    // It is a disk of its own.
    run(&["dd", "if=/dev/zero", &format!("of={again}"), "bs=1M", "count=1", "status=none"]);
    run(&["cmp", &second, world.file("web").to_str().unwrap(), "--bytes", "1048576"]);

    south(&["region", "check"]);
    north(&["region", "check"]);
    south(&["unmount", &world.at("other")]);
    north(&["unmount", &world.mnt()]);
    south(&["region", "check"]);
    north(&["region", "check"]);
    // All of it is the user's.
    let others = tool("find", &[&world.at("r"), &world.at("s"), &world.at("config"), "!", "-user", &owner()]);
    assert_eq!(String::from_utf8_lossy(&others.stdout), "");
}

/// Whose the files of an unprivileged world are.
fn owner() -> String {
    if is_root() { NOBODY.to_string() } else { rustix::process::geteuid().as_raw().to_string() }
}

#[test]
fn a_user_without_the_mount_helper() {
    match is_root() {
        true => in_a_namespace("mounting_without_the_helper"),
        false => mounting_without_the_helper(),
    }
}

/// Only root mounts without it: the package is named, and nothing is left that keeps the region or the place.
#[test]
#[ignore = "run by a_user_without_the_mount_helper"]
fn mounting_without_the_helper() {
    let world = unprivileged();
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "4M");
    // What the test itself starts the program by, and nothing else.
    fs::create_dir(world.path("bin")).unwrap();
    let setpriv = must("sh", &["-c", "command -v setpriv"]);
    std::os::unix::fs::symlink(setpriv, world.path("bin/setpriv")).unwrap();
    let without_helper = |args: &[&str]| {
        let output = world.command(args).env("PATH", world.path("bin")).output().unwrap();
        let said = words(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("fusermount3 is not installed") && said.contains("fuse3"), "{args:?}: {said}");
        assert!(output.stdout.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
    };
    let is_mounted = || fs::read_to_string("/proc/self/mounts").unwrap().contains(&world.mnt());
    let run_dir =
        || fs::read_dir(world.path("r/run")).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    without_helper(&["mount", &world.mnt()]);
    without_helper(&["mount", &world.mnt(), "--foreground"]);
    without_helper(&["mount", &world.mnt(), "--read-only"]);
    assert!(!is_mounted());
    assert!(run_dir().iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{:?}", run_dir());
    assert_eq!(world.problems(), Vec::<String>::new());
    world.mount();
    // Nor does it unmount; the mount serves on.
    without_helper(&["unmount", &world.mnt()]);
    assert!(is_mounted());
    run(&[
        "dd",
        "if=/dev/zero",
        &format!("of={}", world.file("web").display()),
        "bs=1M",
        "count=1",
        "status=none",
    ]);
    world.unmount();
    assert!(!is_mounted());
}

#[test]
fn root_attaches_a_users_volume() {
    match is_root() {
        true => in_a_namespace("an_attached_file_of_a_users_mount"),
        false => eprintln!("not root: nobody can attach"),
    }
}

/// A file in a user's `--allow-other` mount is a loop device of root's, who may open neither region nor its configuration.
#[test]
#[ignore = "run by root_attaches_a_users_volume"]
fn an_attached_file_of_a_users_mount() {
    let world = unprivileged();
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    let id = world.volume("web", "16M");
    world.ok(&["mount", &world.mnt(), "--allow-other"]);
    let file = world.at(&format!("mnt/volumes/{id}"));
    let device = root_ok(&world, &["attach", &file]);
    assert!(device.starts_with("/dev/loop"), "{device}");
    assert_eq!(must("blockdev", &["--getss", &device]), "4096");
    let again = as_root(&world, &["attach", world.file("web").to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(5), "{}", words(&again));
    assert!(words(&again).contains(&device), "{}", words(&again));

    // What root writes and syncs is in the user's file, and in a snapshot of it.
    write_at(Path::new(&device), MIB, &pattern(4 << 20, 1)).unwrap();
    must("blockdev", &["--flushbufs", &device]);
    run(&[
        "cmp",
        &source(&world, "expected", 1),
        &file,
        "--ignore-initial",
        "0:1048576",
        "--bytes",
        "4194304",
    ]);
    // The user may not open root's device: the snapshot is taken, and it is said that this was not done.
    let output = world.run(&["snapshot", "create", "web", "--name", "s1"]);
    let said = words(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let warning = format!(
        "{device} could not be flushed (Permission denied (os error 13)): the snapshot may lack what was last written to it"
    );
    assert!(said.contains(&warning), "{said}");
    assert!(read_at(&world.snapshot_file("s1"), MIB, 4 << 20).unwrap() == pattern(4 << 20, 1));

    // Nor can the user tell it that its file has grown.
    let output = world.run(&["volume", "resize", "web", "--size", "32M"]);
    let said = words(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("{device} has not grown with it")), "{said}");
    assert!(said.contains(&format!("losetup --set-capacity {device}")), "{said}");
    assert_eq!(must("blockdev", &["--getsize64", &device]), (16 * MIB).to_string());
    must("losetup", &["--set-capacity", &device]);
    assert_eq!(must("blockdev", &["--getsize64", &device]), (32 * MIB).to_string());

    // Nobody takes it away meanwhile, and the user does not detach it.
    assert_eq!(world.json(&["volume", "show", "web"])["state"], "open");
    world.fails(&["unmount", &world.mnt()], 5, &[&device]);
    world.fails(&["volume", "delete", "web"], 5, &["web", &device]);
    world.fails(&["volume", "rollback", "web", "--snapshot", "s1"], 5, &["web", &device]);
    world.fails(&["detach", "web"], 4, &["root"]);
    root_ok(&world, &["detach", &file]);
    assert_eq!(world.loops(), []);

    // A snapshot's file, read-only.
    let snapshot = world.json(&["snapshot", "show", "s1"])["id"].as_str().unwrap().to_owned();
    let device = root_ok(&world, &["attach", &world.at(&format!("mnt/snapshots/{snapshot}"))]);
    assert_eq!(must("blockdev", &["--getro", &device]), "1");
    assert!(read_at(Path::new(&device), MIB, 4 << 20).unwrap() == pattern(4 << 20, 1));
    world.fails(&["snapshot", "delete", "s1"], 5, &["s1", &device]);
    world.fails(&["unmount", &world.mnt()], 5, &[&device]);
    root_ok(&world, &["detach", &device]);
    world.ok(&["snapshot", "delete", "s1"]);
    world.ok(&["volume", "delete", "web"]);
    world.unmount();

    // Without --allow-other the mount is closed to root.
    world.mount();
    let output = as_root(&world, &["attach", &world.at(&format!("mnt/volumes/{id}"))]);
    assert_eq!(output.status.code(), Some(4), "{}", words(&output));
    world.unmount();
}
