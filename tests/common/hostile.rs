//! Runs commands on what a stranger made, and sees to it that they end in time and memory, in words, and within the region.
//! Used by `#[path = "common/hostile.rs"] mod hostile;`, beside `world`.
#![allow(dead_code)] // each test file uses a part
#![allow(unsafe_code)] // wait4: the one call that tells the memory a child has taken

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::inotify;

/// The bounds of what hostile input may cost. A refusal that took longer is asked for again, since machines may be busy: the
/// quickest of three counts.
pub const TIME_MAX: Duration = Duration::from_secs(2);
pub const MEMORY_KIB_MAX: i64 = 256 << 10;
const TRIES: usize = 3;
/// After this a command hangs. Taking away a chain of 10,000 layers is some 30,000 syncs of a disk that is not ours alone.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// None: by a signal.
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// Without what it waited for a processor, which others had.
    pub time: Duration,
    pub memory_kib: i64,
}

impl Ended {
    /// The sentence: the line of stderr that the program itself begins with its name.
    pub fn sentence(&self) -> &str {
        self.stderr.lines().find(|line| line.starts_with("terrane: ")).unwrap_or_default()
    }
}

/// How long a process, whose end nobody has waited for yet, could have run and did not.
fn run_delay(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanos = text.split(' ').nth(1).and_then(|delay| delay.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Runs it once, killed when it hangs.
pub fn run(mut command: Command) -> Ended {
    let since = Instant::now();
    #[expect(clippy::zombie_processes, reason = "wait4 waits for it")]
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(move || read(&mut out));
        let err = scope.spawn(move || read(&mut err));
        let pid = child.id() as i32;
        let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
        let delay = loop {
            let delay = run_delay(pid);
            // SAFETY: a child of ours that nobody else waits for; both pointers are to live values.
            let waited = unsafe { libc::wait4(pid, &mut status, libc::WNOHANG, usage.as_mut_ptr()) };
            assert!(waited >= 0, "{}", std::io::Error::last_os_error());
            if waited == pid {
                break delay;
            }
            if since.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let time = since.elapsed().saturating_sub(delay);
        // SAFETY: zeroed, which is a valid value, and filled by wait4.
        let memory_kib = unsafe { usage.assume_init() }.ru_maxrss;
        let exit = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        Ended { exit, stdout: out.join().unwrap(), stderr: err.join().unwrap(), time, memory_kib }
    })
}

/// Runs it within the bounds of time and memory; no panic, no signal; who fails says in one line what.
#[track_caller]
pub fn bounded(what: &str, command: impl Fn() -> Command) -> Ended {
    let mut quickest: Option<Ended> = None;
    for _ in 0..TRIES {
        let ended = run(command());
        let text = format!("{what}: {ended:?}");
        assert!(ended.memory_kib <= MEMORY_KIB_MAX, "too much memory: {text}");
        assert!(ended.exit.is_some(), "it died, or hung until it was killed: {text}");
        assert!(!ended.stderr.contains("panicked"), "it panicked: {text}");
        assert!(
            ended.exit == Some(0) || ended.exit == Some(2) || !ended.sentence().is_empty(),
            "no words: {text}"
        );
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(!ended.stdout.contains(raw) && !ended.stderr.contains(raw), "it steers the terminal: {text}");
        assert!(ended.stderr.len() < 16 << 10, "too many words: {text}");
        let is_in_time = ended.time < TIME_MAX;
        if quickest.as_ref().is_none_or(|q| ended.time < q.time) {
            quickest = Some(ended);
        }
        if is_in_time {
            break;
        }
    }
    let ended = quickest.unwrap();
    assert!(ended.time < TIME_MAX, "it takes too long: {what}: {ended:?}");
    ended
}

/// Files outside of a region that nothing may open or change, watched while the trap is set.
pub struct Trap {
    events: OwnedFd,
    watched: BTreeMap<i32, PathBuf>,
    before: BTreeMap<PathBuf, (u64, Vec<u8>)>,
}

impl Trap {
    /// Of all files in a folder, and its folders.
    pub fn set(folder: &Path) -> Self {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let mut trap = Self { before: contents(folder), events, watched: BTreeMap::new() };
        for path in trap.before.keys().map(PathBuf::as_path).chain([folder]) {
            // A second name within the region may be moved and removed there.
            let is_inside = path.symlink_metadata().unwrap().nlink() > 1 && path.is_file();
            let used = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS | inotify::WatchFlags::MODIFY;
            // Not of closing: a child between fork and exec closes what this process had open.
            let changed = inotify::WatchFlags::ATTRIB
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::DELETE
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE
                | inotify::WatchFlags::MOVE_SELF;
            let watch = if is_inside { used } else { used | changed };
            let watch = watch | inotify::WatchFlags::DONT_FOLLOW;
            trap.watched.insert(inotify::add_watch(&trap.events, path, watch).unwrap(), path.to_owned());
        }
        trap
    }

    /// Nothing was opened, read, made, changed or removed since.
    #[track_caller]
    pub fn check(self, what: &str, folder: &Path) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            seen.push(format!(
                "{:?}: {:?} {:?}",
                self.watched.get(&event.wd()),
                event.events(),
                event.file_name()
            ));
        }
        assert!(seen.is_empty(), "{what}: opened or changed outside of the region: {seen:#?}");
        assert!(contents(folder) == self.before, "{what}: files outside of the region have changed");
    }
}

/// Inode and bytes of all files and folders below.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for path in names(folder).into_iter().map(|name| folder.join(name)) {
        let metadata = path.symlink_metadata().unwrap();
        let bytes = if metadata.len() <= 1 << 20 && metadata.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        found.insert(path, (metadata.ino(), bytes));
    }
    found
}

/// All names below a folder.
pub fn names(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(folder).unwrap().to_owned());
            if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A pipe.
pub fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// Changes the mode of a file or folder.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}
