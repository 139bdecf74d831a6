//! What tests of the queue share: two regions, daemons, and small file systems.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use terrane::catalog::{DiskKind, Snapshot, Task, TaskState};
use terrane::ids::SnapshotId;

use super::{Disk, Random, World};

pub const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Regions north and south, and in north a snapshot `one` of `mib` MiB.
pub fn pair(mib: usize) -> (World, Disk, SnapshotId) {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(21);
    let mut disk = Disk::new(&world, "north", 256 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let one = disk.change(&world, "one", |c| (0..mib).for_each(|i| c.random(&mut random, i * MIB, MIB)));
    (world, disk, one)
}

pub fn copy_args<'a>(from: &'a str, called: &'a str) -> [&'a str; 7] {
    ["snapshot", "copy", from, "--to", "south", "--name", called]
}

pub fn named(world: &World, region: &str, called: &str) -> Option<Snapshot> {
    world.region(region).catalog().unwrap().read(|tx| tx.find_snapshot_by_name(called)).unwrap()
}

pub fn tasks(world: &World, region: &str) -> Vec<Task> {
    world.region(region).catalog().unwrap().read(|tx| tx.tasks()).unwrap()
}

pub fn states(world: &World, region: &str) -> Vec<TaskState> {
    tasks(world, region).iter().map(|task| task.state).collect()
}

#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}: never");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A daemon in the background; killed when dropped.
pub struct Daemon(Child);

impl Daemon {
    pub fn new(world: &World, args: &[&str]) -> Self {
        let mut command = world.command(&[&["daemon"], args].concat());
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }

    /// Its exit number and what it said.
    pub fn wait(mut self) -> (i32, String) {
        use std::io::Read;
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code().unwrap_or(-1), said)
    }

    pub fn end(self) -> (i32, String) {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file system of so many MiB, for root alone; gone when dropped.
pub struct Tmpfs(pub std::path::PathBuf);

impl Tmpfs {
    pub fn new(at: std::path::PathBuf, mib: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: no small file system can be mounted");
            return None;
        }
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={mib}m");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(&at);
        assert!(mount.status().unwrap().success());
        Some(Self(at))
    }

    pub fn resize(&self, mib: usize) {
        let options = format!("remount,size={mib}m");
        let mut mount = std::process::Command::new("mount");
        assert!(mount.args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
