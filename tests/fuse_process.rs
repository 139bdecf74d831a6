//! Guards against a command that returns before its server serves, or keeps silent about why it does not.
#![allow(unsafe_code)]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use terrane::sys::open_files::raise_limit;
use terrane::sys::process::{Background, Outcome, background, become_io_flusher, keep_memory_private};

/// Not a test: what [`started`] runs, as the only thread of its process.
#[test]
#[ignore = "started by other tests"]
fn go_to_the_background() {
    let Ok(how) = std::env::var("TERRANE_TEST_BACKGROUND") else { return };
    // SAFETY: the runner's other thread only waits for this one; the child takes no lock of its.
    let child = unsafe { libc::fork() };
    if let Some(child) = rustix::process::Pid::from_raw(child) {
        let status = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
        std::process::exit(status.unwrap().1.exit_status().unwrap_or(99));
    }
    match background().unwrap() {
        Background::Foreground(waiting) => {
            let pid = waiting.pid();
            let (exit, words) = match waiting.wait().unwrap() {
                Outcome::Ready(words) => (0, words),
                Outcome::Failed { exit, words } => (i32::from(exit), words),
                Outcome::Died(words) => (1, words),
            };
            println!("SAID {pid} {words}");
            std::process::exit(exit);
        }
        Background::Serving(readiness) => {
            keep_memory_private().unwrap();
            become_io_flusher();
            assert!(raise_limit() > 0);
            match how.as_str() {
                "ready" => readiness.ready("serving").unwrap(),
                "failed" => readiness.failed(5, "in use by pid 1").unwrap(),
                "killed" => {
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                        .unwrap()
                }
                _ => drop(readiness),
            }
            if how == "ready" {
                std::thread::sleep(Duration::from_secs(30));
            }
            std::process::exit(3);
        }
    }
}

fn started(how: &str) -> (Output, u32, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "go_to_the_background", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env("TERRANE_TEST_BACKGROUND", how).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, said) = text.split_once("SAID ").unwrap_or_else(|| panic!("{output:?}"));
    let (pid, words) = said.trim_end().split_once(' ').unwrap();
    (output.clone(), pid.parse().unwrap(), words.to_owned())
}

#[test]
fn the_command_returns_when_the_server_is_ready() {
    let start = Instant::now();
    let (output, pid, words) = started("ready");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let out = std::fs::read_link(format!("/proc/{pid}/fd/1"));
    let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    // It held none of our pipes, or we would have waited for its whole half minute.
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!((output.status.code(), words.as_str()), (Some(0), "serving"));
    assert!(status.contains("State:"));
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, pid.to_string(), "a session of its own");
    if let Ok(out) = out {
        assert_eq!(out.to_str(), Some("/dev/null"));
    }
}

#[test]
fn the_command_says_why_and_exits_as_told() {
    let (output, _, words) = started("failed");
    assert_eq!((output.status.code(), words.as_str()), (Some(5), "in use by pid 1"));
    let (output, _, words) = started("silent");
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains("ended with 3"), "{words}");
    let (_, _, words) = started("killed");
    assert!(words.contains("signal 9"), "{words}");
}

#[test]
fn with_threads_it_is_refused() {
    // The test runner has several.
    let thread = std::thread::spawn(|| background().err().map(|error| error.to_string()));
    assert!(thread.join().unwrap().unwrap().contains("threads"));
}
