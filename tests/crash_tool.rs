//! Guards against a long run that says more than it tried: `tools/crash` leaves out a program that has a long mode, counts what no
//! program said, or goes on after a loss.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The harness of each program: what they say among other words and dots; kept with what they were told.
const CARGO: &str = r#"#!/bin/sh
case "$*" in *--no-run*) echo "$*" >"$TOLD/built"; exit 0 ;; esac
program=${*#*--test } program=${program%% *}
echo "$program ${TERRANE_CRASH_SEEDS-} ${TERRANE_CRASH_FIRST-} ${TERRANE_CUTS-} ${TERRANE_STRIDE-} ${TERRANE_KILLS-}" >>"$TOLD/runs"
[ "$program ${TERRANE_CRASH_FIRST-}" != "$LOSES" ] || { echo "what was flushed is gone"; exit 101; }
case $program in
    "$SILENT") ;;
    crash_*) printf '...500 so far, with seed 7\n.3 disks after a cut\n..4 disks after a cut of a fold, 9 of them sealed\n' ;;
    e2e_cuts) printf '.20 cuts of ext4, 3 with a snapshot\n7 cuts of xfs, 1 with a snapshot\n["a"]: at most 90 calls\n..30 kills\n' ;;
    e2e_guest) printf '.5 machines cut, 2 snapshots, 9 writes\n' ;;
    e2e_sweep) printf '800 calls in all\n.100 kills of a mount\n' ;;
    e2e_faults) printf 'so far 50: /map\n60 faults: /map\n.60 faults in all\n' ;;
    e2e_kill_moments) printf '100 kills, 40 while it served, 9 steps\n.1000 kills of a mount: 70 while it served\n' ;;
esac
"#;

/// Runs it with that harness until it ends; the lines of what was run.
fn crash(seconds: u32, loses: &str, silent: &str) -> (Output, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let cargo = folder.path().join("cargo");
    fs::write(&cargo, CARGO).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut path = folder.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let mut tool = Command::new(format!("{ROOT}/tools/crash"));
    tool.args(["--seconds", &seconds.to_string()]).env("PATH", path).env("TOLD", folder.path());
    for name in ["SEEDS", "FIRST"].map(|name| format!("TERRANE_CRASH_{name}")) {
        tool.env_remove(name);
    }
    let output = tool.env("LOSES", loses).env("SILENT", silent).output().unwrap();
    let runs = fs::read_to_string(folder.path().join("runs")).unwrap();
    let built = fs::read_to_string(folder.path().join("built")).unwrap();
    let runs: Vec<_> = runs.lines().map(str::to_owned).collect();
    for run in &runs {
        let program = run.split(' ').next().unwrap();
        assert!(built.split_whitespace().any(|word| word == program), "{program} is not built: {built}");
    }
    (output, runs)
}

/// Of programs whose names begin so.
fn count(runs: &[String], with: &str) -> usize {
    runs.iter().filter(|run| run.starts_with(with)).count()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_program_with_a_long_mode_is_run() {
    // The first that is run of a second seed ends it.
    let (_, runs) = crash(600, "crash_volume 1001", "");
    let mut modes = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if !path.is_file() || name == "crash_tool" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let has_mode = text.contains(" seeds(") || text.contains("common::seeds(");
        let is_run = runs.iter().any(|run| *run == format!("{name} 1 1000   "));
        assert_eq!(is_run, has_mode, "{name}: run with a seed, and has such a mode; {runs:?}");
        modes += usize::from(has_mode);
    }
    assert!(modes >= 12, "{modes}");
}

#[test]
fn it_counts_what_was_said_to_be_tried() {
    let (output, runs) = crash(2, "", "");
    assert!(output.status.success(), "{}", stderr(&output));
    let (simulated, models) = (count(&runs, "crash_"), runs.len() - count(&runs, "crash_"));
    let states = 7 * simulated;
    let said = format!(
        "nothing was lost: {states} simulated disks after a cut, {models} scripts of models, 0 kills, 0 cuts of"
    );
    assert!(!runs.is_empty() && stdout(&output).starts_with(&said), "{said}: {}", stdout(&output));
}

/// Also what of each real thing was tried, which have their turns one after the other.
#[test]
fn a_loss_ends_it_and_is_shown() {
    let (output, runs) = crash(600, "crash_fold 1033", "");
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()));
    let said = stderr(&output);
    assert!(said.contains("what was flushed is gone\ncrash: LOST something; shown again by: "), "{said}");
    assert!(said.contains("TERRANE_CRASH_SEEDS=1 TERRANE_CRASH_FIRST=1033 cargo test"), "{said}");
    let (simulated, real) = (count(&runs, "crash_"), count(&runs, "e2e_"));
    let (of_a_seed, models) = (simulated / 33, runs.len() - simulated - real);
    assert_eq!(models, 2 * 33, "{runs:?}");
    assert_eq!(simulated, 33 * of_a_seed + 2, "it goes on after a loss: {runs:?}");
    let counted = match is_root() {
        true => "1130 kills, 27 cuts of file systems, 5 of machines, 60 faults",
        false => "0 kills, 0 cuts of file systems, 0 of machines, 0 faults",
    };
    assert_eq!(real, if is_root() { 5 } else { 0 }, "{runs:?}");
    let states = 7 * 33 * of_a_seed;
    let last = format!("crash: {states} simulated disks, 66 scripts of models, {counted}; seed 1033");
    assert!(said.contains(&last), "{last}: {said}");
}

#[test]
fn a_program_that_says_no_number_ends_it() {
    let (output, _) = crash(600, "", "crash_copy");
    assert!(!output.status.success(), "{}", stdout(&output));
    let said = stderr(&output);
    assert!(said.contains("crash_copy does not say how many disks it tried"), "{said}");
}
