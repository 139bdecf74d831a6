//! Guards against a bench that says a wrong number (a side that is not there, a noisy comparison), begins where there is no room for it,
//! or, interrupted, leaves a mount, a process or a file behind.

#[path = "common/ending.rs"]
mod ending;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools");
/// Longer than an interrupted bench takes to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The smallest run of some rows, of the program that was built for the tests.
fn bench(scratch: &Path, only: &str) -> Command {
    let mut command = Command::new(format!("{TOOLS}/bench"));
    command.args([
        "--terrane",
        env!("CARGO_BIN_EXE_terrane"),
        "--no-install",
        "--on",
        "disk",
        "--rounds",
        "1",
    ]);
    command.args(["--size", "64M", "--copy-size", "64M", "--seconds", "0.2", "--only", only, "--scratch"]);
    command.arg(scratch).stdin(Stdio::null()).process_group(0);
    command
}

fn has(program: &str) -> bool {
    let has = find(program).is_some();
    assert!(has || std::env::var_os("TERRANE_GATE").is_none(), "the gate installs {program}");
    has
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists())
}

/// Mounts in this folder, processes that name it, and what lies in it.
fn left_in(scratch: &Path) -> Vec<String> {
    let text = scratch.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut left: Vec<String> =
        mounts.lines().filter(|l| l.contains(text)).map(|l| format!("mount {l}")).collect();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let names_it = |file: &str| {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(text)
        };
        if names_it("cmdline") || names_it("environ") {
            left.push(format!("process {}", entry.file_name().display()));
        }
    }
    left.extend(fs::read_dir(scratch).unwrap().flatten().map(|e| e.path().display().to_string()));
    left
}

/// A process that has ended may still be in the list a moment later.
fn assert_nothing_left(scratch: &Path, after: &str) {
    let since = Instant::now();
    loop {
        let left = left_in(scratch);
        if left.is_empty() {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "left after {after}: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn its_own_tests_pass() {
    let mut tests = Command::new("python3");
    tests.args(["-m", "unittest", "bench_lib.tests"]);
    tests.env("PYTHONPATH", TOOLS).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = tests.output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn too_little_space_is_refused_before_anything_begins() {
    let scratch = tempfile::tempdir().unwrap();
    let output = bench(scratch.path(), "clones").args(["--size", "8192T"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(
        words(&output).contains("MiB free, and") && words(&output).contains("--size"),
        "{}",
        words(&output)
    );
    assert_eq!(left_in(scratch.path()), Vec::<String>::new());
}

#[test]
fn what_is_no_argument_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    for (bad, status) in [
        (["--size", "10.5X"], 2),
        (["--rounds", "0"], 2),
        (["--seconds", "0"], 2),
        (["--only", "nonsense"], 1),
    ] {
        let output = bench(scratch.path(), "clones").args(bad).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{bad:?}: {}", words(&output));
        assert!(words(&output).contains("bench: "), "{bad:?}: {}", words(&output));
    }
}

/// All programs of the machine but one.
fn path_without(program: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            if entry.file_name() != program {
                // The first of a name counts.
                let _ = symlink(entry.path(), folder.path().join(entry.file_name()));
            }
        }
    }
    folder
}

#[test]
fn a_missing_peer_is_left_out_and_named() {
    if !has("fio") || !has("python3") {
        return;
    }
    let (scratch, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (json, path) = (out.path().join("result.json"), path_without("restic"));
    let mut command = bench(scratch.path(), "changes");
    let output = command.env("PATH", path.path()).arg("--json").arg(&json).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("left out: restic: no restic here"), "{}", words(&output));
    let result: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let rows = result["sections"][0]["rows"].as_array().unwrap();
    let speed = rows.iter().find(|row| row["row"] == "copy of 1 % scattered changes").unwrap();
    assert_eq!(speed["goals"][0]["reached"], "not measured", "{speed}");
    assert!(
        speed["medians"]["ours"].as_f64().unwrap() > 0.0 && speed["medians"]["restic"].is_null(),
        "{speed}"
    );
    let shipped = &rows.iter().find(|row| row["unit"] == "× changed").unwrap()["medians"]["ours"];
    assert_eq!(shipped.as_f64(), Some(1.0), "ours ships what changed");
    assert_nothing_left(scratch.path(), "a whole run");
}

/// Interrupts a run a while after it says these words.
fn interrupt(only: &str, when: &str, delay: Duration) {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = bench(scratch.path(), only).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    let mut reached = false;
    for line in lines.map_while(Result::ok) {
        said = said + &line + "\n";
        if !reached && line.contains(when) {
            reached = true;
            std::thread::sleep(delay);
            let _ = kill_process_group(Pid::from_child(&child), Signal::INT);
        }
    }
    let status = ending::wait("the bench", &mut child, PATIENCE);
    assert!(reached, "{only} never said {when:?}: {status}\n{said}");
    assert_eq!(status.code(), Some(130), "{only}, {when:?} and {delay:?}: {status}\n{said}");
    assert_nothing_left(scratch.path(), &format!("an interrupt of {only}, {when:?} and {delay:?}"));
}

#[test]
fn an_interrupt_leaves_nothing() {
    if !has("fio") || !has("python3") {
        return;
    }
    let moments = [
        ("snapshots", "20 snapshots under random writes", 1500),
        ("memory", "memory under load", 600),
        ("changes", "writing the disk to change", 50),
        ("commands", "copy, check, fold", 400),
    ];
    for (only, when, delay) in moments {
        interrupt(only, when, Duration::from_millis(delay));
    }
}
