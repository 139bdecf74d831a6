//! Guards against what only root can do: regions of an unprivileged user, mounted through the setuid helper, copied and checked.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use world::{MIB, World, is_root, must, pattern, tool, words};

const NOBODY: u32 = 65534;

/// Runs an ignored test of this file in a mount namespace of its own, where `/dev/fuse` is open to users, which the machine's own need not
/// be.
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
    }
    world.unmount();
    world.expect_disorder();
}

/// By root, with the user's configuration.
fn as_root(world: &World, args: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("terrane"))
        .env("TERRANE_CONFIG_DIR", world.path("config"))
        .args(args)
        .output()
        .unwrap()
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
