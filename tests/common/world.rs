//! A temporary world for tests of the real binary: its configuration, regions, mounts and loop devices.
//!
//! When dropped it unmounts in order, then detaches, unmounts and kills whatever is left, and fails the test if something
//! then still is. Used by `#[path = "common/world.rs"] mod world;`.
#![allow(dead_code)] // each test file uses a part

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const SECTOR: usize = 4096;
pub const MIB: u64 = 1 << 20;

pub struct World {
    dir: PathBuf,
    /// Runs every command as this user.
    uid: Option<u32>,
    /// A mount that its Drop must be able to take away in order.
    orderly: bool,
    /// What `TERRANE_LOG` says.
    pub log_level: Option<&'static str>,
    /// What `TMPDIR` says, where not what it says to this process.
    pub temporary_files: Option<PathBuf>,
    _temporary: tempfile::TempDir,
}

impl World {
    /// With a region `here` in `r`.
    pub fn new() -> Self {
        let world = Self::bare(None);
        world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
        world
    }

    /// Without a region.
    pub fn bare(uid: Option<u32>) -> Self {
        let temporary = tempfile::Builder::new().prefix("terrane-e2e-").tempdir().unwrap();
        let dir = fs::canonicalize(temporary.path()).unwrap();
        fs::create_dir(dir.join("mnt")).unwrap();
        if let Some(uid) = uid {
            for path in [dir.clone(), dir.join("mnt")] {
                std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
            }
        }
        Self { dir, uid, orderly: true, log_level: None, temporary_files: None, _temporary: temporary }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn mnt(&self) -> String {
        self.at("mnt")
    }

    /// The end need not be orderly: the test has damaged or killed something.
    pub fn expect_disorder(&mut self) {
        self.orderly = false;
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let program = assert_cmd::cargo::cargo_bin!("terrane");
        let mut command = match self.uid {
            None => Command::new(program),
            Some(uid) => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "--"])
                    .arg(program);
                command
            }
        };
        for name in ["TERRANE_REGION", "TERRANE_ACCOUNT", "TERRANE_CLOCK", "TERRANE_LOG"] {
            command.env_remove(name);
        }
        if let Some(level) = self.log_level {
            command.env("TERRANE_LOG", level);
        }
        if let Some(dir) = &self.temporary_files {
            command.env("TMPDIR", dir);
        }
        command
            .env("TERRANE_CONFIG_DIR", self.path("config"))
            .env("LC_ALL", "C")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, expects 0, gives stdout without its last line end.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr> + std::fmt::Debug>(&self, args: &[S]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}{}", words(&output), self.log());
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs it, expects this exit number and these words on stderr; gives stderr.
    #[track_caller]
    pub fn fails<S: AsRef<OsStr> + std::fmt::Debug>(
        &self,
        args: &[S],
        exit: i32,
        expected: &[&str],
    ) -> String {
        let output = self.run(args);
        let said = words(&output);
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}{}", self.log());
        assert!(!said.contains("panicked") && !said.trim().is_empty(), "{args:?}: {said}");
        for word in expected {
            assert!(said.contains(word), "{args:?}: {word:?} is missing in: {said}");
        }
        said
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json", "-q"]].concat())).unwrap()
    }

    /// What `status` finds wrong here. It tells of all mounts of a user, and tests beside this one stop and kill theirs.
    #[track_caller]
    pub fn problems(&self) -> Vec<String> {
        let output = self.run(&["status", "--output", "json"]);
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let problems = told["problems"].as_array().expect("a list").iter();
        let problems = problems.map(|problem| problem.as_str().expect("words").to_owned());
        let is_of_another = |problem: &String| {
            (problem.contains("is a dead mount") || problem.contains("does not answer"))
                && !problem.contains(&*self.dir.to_string_lossy())
        };
        problems.filter(|problem| !is_of_another(problem)).collect()
    }

    /// What the mount's log says.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("r/run/mount.log")).unwrap_or_default()
    }

    /// Makes a volume; its id.
    #[track_caller]
    pub fn volume(&self, name: &str, size: &str) -> String {
        self.ok(&["volume", "create", "--name", name, "--size", size])
    }

    /// Takes a snapshot; its id.
    #[track_caller]
    pub fn snapshot(&self, volume: &str, name: &str) -> String {
        self.ok(&["snapshot", "create", volume, "--name", name])
    }

    #[track_caller]
    pub fn mount(&self) {
        self.ok(&["mount", &self.mnt()]);
    }

    #[track_caller]
    pub fn unmount(&self) {
        self.ok(&["unmount", &self.mnt()]);
    }

    /// A volume's file, by name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path("mnt/by-name/volumes").join(name)
    }

    /// A snapshot's file, by name.
    pub fn snapshot_file(&self, name: &str) -> PathBuf {
        self.path("mnt/by-name/snapshots").join(name)
    }

    /// The folder of a volume's layer that takes writes, from the catalog.
    pub fn active_layer(&self, volume: &str) -> PathBuf {
        self.layer_of(&format!("select active from volumes where name = '{volume}'"))
    }

    /// The folder of a snapshot's layer.
    pub fn snapshot_layer(&self, snapshot: &str) -> PathBuf {
        self.layer_of(&format!("select layer from snapshots where name = '{snapshot}'"))
    }

    fn layer_of(&self, query: &str) -> PathBuf {
        let catalog = rusqlite::Connection::open(self.path("r/catalog.db")).unwrap();
        let id: String = catalog.query_row(query, [], |row| row.get(0)).unwrap();
        self.path("r/layers").join(id)
    }

    /// The number of layers' folders.
    pub fn layers(&self) -> usize {
        fs::read_dir(self.path("r/layers")).unwrap().count()
    }

    /// What the file system gave to all layers' sectors and maps: their files without the logs, which come and go by themselves.
    pub fn sectors_stored(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let layers = fs::read_dir(self.path("r/layers")).unwrap().map(|entry| entry.unwrap().path());
        // A layer may go while it is looked at.
        let taken = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.blocks() * 512);
        let of = |layer: PathBuf| {
            let files = taken(layer.join("data")) + taken(layer.join("map"));
            files.saturating_sub(data_below(&layer.join("data"), SLOTS))
        };
        layers.map(of).sum()
    }

    /// The process that serves the region read-write.
    #[track_caller]
    pub fn server(&self) -> i32 {
        let text = fs::read_to_string(self.path("r/run/layers.lock")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// Sends a signal to the serving process.
    #[track_caller]
    pub fn signal(&self, signal: rustix::process::Signal) -> i32 {
        let pid = self.server();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
        pid
    }

    /// Kills the serving process and waits until it is gone.
    #[track_caller]
    pub fn kill_server(&self) {
        let pid = self.signal(rustix::process::Signal::KILL);
        assert!(within(20, || is_gone(pid)), "the killed server stays");
    }

    /// What a killed server left is cleared, and the region mounted again.
    #[track_caller]
    pub fn mount_again(&self) {
        self.unmount();
        self.mount();
    }

    /// Loop devices over files of this world.
    pub fn loops(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file"))
                && Path::new(file.trim_end()).starts_with(&self.dir)
            {
                found.push((Path::new("/dev").join(entry.file_name()), PathBuf::from(file.trim_end())));
            }
        }
        found
    }

    /// Mount points below this world, innermost first, and those of its loop devices.
    fn mounts(&self) -> Vec<PathBuf> {
        let devices: Vec<_> = self.loops().into_iter().map(|(device, _)| device).collect();
        let ours = |at: &terrane::sys::mount::MountedAt| {
            at.path.starts_with(&self.dir) || devices.iter().any(|device| device == Path::new(&at.source))
        };
        let table = terrane::sys::mount::mounts().unwrap();
        let mut mounts: Vec<PathBuf> = table.into_iter().filter(ours).map(|at| at.path).collect();
        mounts.reverse();
        mounts
    }

    /// Processes of the binary that work on this world.
    fn processes(&self) -> Vec<i32> {
        let wanted = format!("TERRANE_CONFIG_DIR={}", self.at("config"));
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|b| *b == 0).any(|line| line == wanted.as_bytes()) && !is_gone(pid) {
                found.push(pid);
            }
        }
        found
    }

    /// By force: file systems on loop devices, the devices, mounts, servers.
    fn clear(&self) {
        let devices = self.loops();
        for at in
            self.mounts().iter().filter(|at| !at.starts_with(self.path("mnt")) && **at != self.path("mnt"))
        {
            let _ = Command::new("umount").arg("-l").arg(at).stderr(Stdio::null()).status();
        }
        // Those in files of the mount before those that carry the region.
        for (device, _) in devices {
            let _ = Command::new("losetup").arg("-d").arg(device).stderr(Stdio::null()).status();
        }
        for at in self.mounts() {
            let _ = Command::new("umount").arg("-l").arg(at).stderr(Stdio::null()).status();
        }
        within(3, || self.processes().is_empty());
        for pid in self.processes() {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let passed = !std::thread::panicking();
        if !passed {
            eprintln!("mount.log: {}", self.log());
        }
        if passed && self.orderly && self.mounts().contains(&self.path("mnt")) {
            let output = self.run(&["unmount", &self.mnt()]);
            if !output.status.success() {
                self.clear();
                panic!("the test's mount can't be unmounted: {}", words(&output));
            }
        }
        if passed && self.orderly {
            // A detached loop device goes when whoever looks at it, as udev does, has let go.
            if !within(5, || self.processes().is_empty() && self.loops().is_empty()) {
                let (processes, loops) = (self.processes(), self.loops());
                self.clear();
                panic!("the test left processes {processes:?} and loop devices {loops:?}");
            }
        }
        self.clear();
        let clean =
            within(5, || self.loops().is_empty() && self.mounts().is_empty() && self.processes().is_empty());
        if passed {
            assert!(clean, "left: {:?} {:?} {:?}", self.loops(), self.mounts(), self.processes());
        }
    }
}

/// Where the sectors of a layer's `data` begin.
const SLOTS: u64 = 64 << 20;

/// The bytes below a place of a file that are no holes.
fn data_below(path: &Path, end: u64) -> u64 {
    use rustix::fs::{SeekFrom, seek};
    let Ok(file) = File::open(path) else { return 0 };
    let (mut at, mut bytes) = (0, 0);
    while let Ok(begin) = seek(&file, SeekFrom::Data(at))
        && begin < end
    {
        at = seek(&file, SeekFrom::Hole(begin)).unwrap().min(end);
        bytes += at - begin;
    }
    bytes
}

/// A file system, mostly on a loop device, unmounted when dropped.
pub struct OnDisk(pub PathBuf);

impl OnDisk {
    pub fn new(device: &str, at: PathBuf) -> Self {
        Self::of_kind("auto", device, at)
    }

    pub fn of_kind(kind: &str, device: &str, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        must("mount", &["-t", kind, device, at.to_str().unwrap()]);
        Self(at)
    }
}

impl Drop for OnDisk {
    /// Threads of a killed process may hold files a while after its first thread has gone.
    fn drop(&mut self) {
        let unmounted = || Command::new("umount").arg(&self.0).output().is_ok_and(|o| o.status.success());
        if !within(20, unmounted) && !std::thread::panicking() {
            panic!("{} can't be unmounted", self.0.display());
        }
    }
}

/// A child that is killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gone, or only waiting to be reaped.
pub fn is_gone(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // A first thread that has ended says nothing of the others, which hold the files: they are counted in field 20.
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| {
            let fields: Vec<_> = rest.split_whitespace().collect();
            ["Z", "X"].contains(&fields[0]) && ["0", "1"].contains(&fields[17])
        }),
        Err(_) => true,
    }
}

/// Waits until it holds, for so many seconds at most.
pub fn within(seconds: u64, mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    holds()
}

pub fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn tool<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Output {
    Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a program that must succeed; its stdout.
#[track_caller]
pub fn must<S: AsRef<OsStr> + std::fmt::Debug>(program: &str, args: &[S]) -> String {
    let output = tool(program, args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}{said}", words(&output));
    said.trim_end().to_owned()
}

/// Bytes that differ everywhere and by seed.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn read_at(path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Writes, without cutting the file or syncing it.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    writable(path)?.write_all_at(bytes, offset)
}

pub fn writable(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

pub fn with_flags(path: &Path, flags: i32) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// The errno of a failed call; 0 if it succeeded.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |_| 0)
}

/// Flips one bit of a file.
pub fn flip(path: &Path, offset: u64) {
    let file = writable(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}
