//! Guards against what only root can do: regions of an unprivileged user, mounted through the setuid helper.

#[path = "common/world.rs"]
mod world;

use std::fs;

use world::{World, is_root, must, pattern, tool, words};

const NOBODY: u32 = 65534;

/// Where `/dev/fuse` is closed to users, in a mount namespace of its own that has an open one.
#[test]
fn as_an_unprivileged_user() {
    if !is_root() {
        return the_journey_without_rights();
    }
    if !tool("sh", &["-c", "command -v fusermount3"]).status.success() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -e
        mount -t tmpfs -o mode=755 none "$1"
        mknod -m 666 "$1/fuse" c 10 229
        mount --bind "$1/fuse" /dev/fuse
        exec "$2" --exact the_journey_without_rights --ignored --nocapture"#;
    let program = std::env::current_exe().unwrap();
    let folder = folder.path().to_str().unwrap();
    let said = must("unshare", &["--mount", "sh", "-c", script, "sh", folder, program.to_str().unwrap()]);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by as_an_unprivileged_user"]
fn the_journey_without_rights() {
    let mut world = World::bare(is_root().then_some(NOBODY));
    let run = |args: &[&str]| {
        let full = [&["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"], args].concat();
        if is_root() { must("setpriv", &full) } else { must(args[0], &args[1..]) }
    };
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "8M");
    world.mount();
    let file = world.file("web");
    let of = format!("of={}", file.display());
    fs::write(world.path("source"), pattern(8 << 20, 1)).unwrap();
    must("chmod", &["a+r", &world.at("source")]);
    run(&["dd", &format!("if={}", world.at("source")), &of, "bs=64k", "status=none"]);
    world.snapshot("web", "s1");
    run(&["dd", "if=/dev/zero", &of, "bs=1M", "count=1", "status=none"]);
    run(&["cmp", &world.at("source"), world.snapshot_file("s1").to_str().unwrap()]);
    world.ok(&["volume", "rollback", "web", "--snapshot", "s1"]);
    world.unmount();
    world.mount();
    run(&["cmp", &world.at("source"), file.to_str().unwrap()]);
    let said = words(&world.run(&["attach", "web"]));
    assert!(said.contains("root"), "{said}");
    if is_root() {
        // Root is not the owner: it may not open the region.
        let mut command = world.command(&["volume", "list"]);
        command.env("LC_ALL", "C");
        let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("terrane"))
            .env("TERRANE_CONFIG_DIR", world.path("config"))
            .args(["volume", "list", "--region", &world.at("r")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", words(&output));
    }
    world.unmount();
    world.expect_disorder();
}
