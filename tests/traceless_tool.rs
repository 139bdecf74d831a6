//! Guards against a gate that does not see what a test left, or that, interrupted, leaves it.

#[path = "common/ending.rs"]
mod ending;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use world::World;

const TRACELESS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/traceless");
const PATIENCE: Duration = Duration::from_secs(60);

/// A shell's script, without a trace in this folder.
fn traceless(folder: &Path, script: &str) -> Command {
    let mut command = Command::new(TRACELESS);
    command.arg(folder).args(["sh", "-ec", script]).stdin(Stdio::null()).env("PATH", path());
    command
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What each kind of trace is made by, and called.
const TRACES: [(&str, &str, bool); 4] = [
    ("echo x >$TMPDIR/file", "file", false),
    // In a session of its own, with nothing of its parent's open.
    ("setsid sleep 1000 </dev/null >/dev/null 2>&1 &", "process", false),
    ("mkdir \"$TMPDIR/at 2\"; mount -t tmpfs none \"$TMPDIR/at 2\"", "mount", true),
    ("truncate -s 1M $TMPDIR/image; losetup -f $TMPDIR/image", "loop device", true),
];

fn traces() -> impl Iterator<Item = (&'static str, &'static str)> {
    let root = is_root();
    TRACES.into_iter().filter(move |trace| root || !trace.2).map(|(made_by, called, _)| (made_by, called))
}

fn made_by_all() -> String {
    traces().map(|(made_by, _)| format!("{made_by}\n")).collect()
}

/// Loop devices and processes of the folder, and itself. Its mounts are in a table that went with it.
fn found(folder: &Path) -> Vec<String> {
    let text = folder.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        found.extend(file.contains(text).then(|| format!("{} over {file}", entry.path().display())));
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(text) {
            found.push(entry.path().display().to_string());
        }
    }
    found.extend(folder.exists().then(|| text.to_owned()));
    found
}

#[track_caller]
fn assert_nothing_found(folder: &Path) {
    let until = Instant::now() + Duration::from_secs(5);
    while !found(folder).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(found(folder), Vec::<String>::new());
}

#[test]
fn what_leaves_nothing_ends_as_it_would() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("own");
    for status in [0, 7] {
        let script =
            format!("test $TMPDIR = {}; touch $TMPDIR/x; rm $TMPDIR/x; exit {status}", folder.display());
        let output = traceless(&folder, &script).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", words(&output));
        assert_eq!(words(&output), "");
        assert_nothing_found(&folder);
    }
}

#[test]
fn what_is_left_is_named_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("own");
    let output = traceless(&folder, &made_by_all()).output().unwrap();
    assert_eq!(output.status.code(), Some(99), "{}", words(&output));
    for (_, called) in traces() {
        assert!(words(&output).contains(&format!("left behind: {called}")), "{called}: {}", words(&output));
    }
    assert_nothing_found(&folder);
}

#[test]
fn a_signal_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("own");
    let script = format!("{}echo made >$TMPDIR/made; wait", made_by_all());
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = traceless(&folder, &script).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while !folder.join("made").exists() {
            assert!(Instant::now() < until, "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!found(&folder).is_empty());
        kill_process(Pid::from_child(&running), signal).unwrap();
        let status = ending::wait("tools/traceless", &mut running, PATIENCE);
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
        assert_nothing_found(&folder);
    }
}

#[test]
fn its_mounts_are_its_own() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("own");
    let script = "mkdir $TMPDIR/at; mount -t tmpfs none $TMPDIR/at; read line || true; umount $TMPDIR/at; rmdir $TMPDIR/at";
    let mut running = traceless(&folder, script).stdin(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    let table = |pid: &str| fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let text = folder.to_str().unwrap();
    while !table(&running.id().to_string()).contains(text) {
        assert!(Instant::now() < until, "it does not mount");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!table("self").contains(text), "others see it");
    drop(running.stdin.take());
    let status = ending::wait("tools/traceless", &mut running, PATIENCE);
    assert_eq!(status.code(), Some(0));
    assert_nothing_found(&folder);
}

/// A dead mount that somebody left would be a problem of every `status` that names no region.
#[test]
fn it_sees_no_mount_that_was_there() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("own");
    let mut world = World::new();
    world.expect_disorder();
    // As /proc/mounts writes them, each of these needs care.
    let place = world.at(r"mnt/a 2 \134 #");
    fs::create_dir_all(&place).unwrap();
    for is_dead in [false, true] {
        world.ok(&["mount", &place]);
        if is_dead {
            world.kill_server();
        }
        let ours = || fs::read_to_string("/proc/self/mounts").unwrap().contains("/mnt/a");
        assert!(ours());
        let output = traceless(&folder, "cat /proc/self/mounts").output().unwrap();
        assert!(output.status.success(), "{}", words(&output));
        assert!(!words(&output).contains("fuse.terrane") && words(&output).contains(" /proc "));
        assert!(ours(), "it is still where it was");
        world.ok(&["unmount", &place]);
    }
}
