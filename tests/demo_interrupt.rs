//! Guards against a demo that, interrupted by Ctrl-C in any of its steps, leaves a mount, a loop device, a process or
//! a file behind.

#[path = "common/ending.rs"]
mod ending;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/demo");
/// A demo that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn demo(scratch: &Path) -> Command {
    let mut command = Command::new(DEMO);
    command.args(["--quick", "--terrane", env!("CARGO_BIN_EXE_terrane"), "--scratch"]).arg(scratch);
    // A group of its own, as a terminal gives a command: Ctrl-C is a signal to the whole of it.
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command
}

fn steps() -> Vec<String> {
    let listed = Command::new(DEMO).arg("--steps").output().unwrap();
    assert!(listed.status.success());
    String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not run: loop devices need root");
    }
    root
}

/// Mounts, loop devices and processes that have to do with this folder, and what lies in it.
fn left_in(scratch: &Path) -> Vec<String> {
    let text = scratch.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut left: Vec<String> =
        mounts.lines().filter(|l| l.contains(text)).map(|l| format!("mount {l}")).collect();
    let loops = Command::new("losetup").args(["-nl", "-O", "NAME,BACK-FILE"]).output().unwrap();
    let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
    left.extend(loops.lines().filter(|l| l.contains(text)).map(|l| format!("loop device {l}")));
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let is_process = entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
        let of = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        // The variable that names the configuration shows also those whose arguments don't.
        let names_it = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(text);
        if is_process
            && entry.file_name() != *std::process::id().to_string()
            && (names_it(of("cmdline")) || names_it(of("environ")))
        {
            left.push(format!(
                "process {} {:?}",
                entry.file_name().display(),
                String::from_utf8_lossy(&of("cmdline"))
            ));
        }
    }
    left.extend(
        fs::read_dir(scratch).into_iter().flatten().flatten().map(|e| e.path().display().to_string()),
    );
    left
}

/// What was left, a moment later: a process that has ended may still be in the list.
fn left_for_good(scratch: &Path) -> Vec<String> {
    let since = Instant::now();
    loop {
        let left = left_in(scratch);
        if left.is_empty() || since.elapsed() > Duration::from_secs(3) {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn interrupt_in(step: &str, delay: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("scratch");
    let mut child = demo(&scratch).spawn().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut reached = false;
    let mut seen = String::new();
    loop {
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the demo hangs, to interrupt in {step}:\n{seen}"),
        };
        seen = seen + &line + "\n";
        if !reached && line.split(' ').next() == Some(step) {
            reached = true;
            thread::sleep(delay);
            // It may have come to its end within the delay.
            let _ = kill_process_group(Pid::from_child(&child), Signal::INT);
        }
    }
    let status = ending::wait("the demo", &mut child, PATIENCE);
    let errors = errors.join().unwrap();
    assert!(reached, "step {step} was not reached: {status}\n{seen}{errors}");
    assert_eq!(status.code(), Some(130), "step {step}: {status} {:?}\n{seen}{errors}", status.signal());
    assert_eq!(
        left_for_good(&scratch),
        Vec::<String>::new(),
        "left by an interrupt in step {step} after {delay:?}\n{errors}"
    );
}

#[test]
fn an_interrupt_in_any_step_leaves_nothing() {
    if !is_root() {
        return;
    }
    let steps = steps();
    assert!(steps.len() > 5, "{steps:?}");
    let (even, odd): (Vec<_>, Vec<_>) = steps.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    // Two at a time. Some at once, some a while into the step.
    thread::scope(|scope| {
        for half in [even, odd] {
            scope.spawn(move || {
                for (i, step) in half {
                    interrupt_in(step, Duration::from_millis(60 * (i as u64 % 3)));
                }
            });
        }
    });
}

#[test]
fn what_is_no_argument_is_refused() {
    for bad in
        [&["--size"][..], &["--size", "10.5X"], &["--files", "x"], &["--seconds", "0"], &["--surprise"]]
    {
        let refused = Command::new(DEMO).args(bad).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{bad:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("demo: "), "{bad:?}");
    }
}
