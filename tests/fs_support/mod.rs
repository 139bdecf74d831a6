//! A file system kept in memory and served over FUSE, so that the real program with its real catalog, folders, renames and
//! mapped logs runs on it, while every change that reaches it is traced and can be cut off, or fail, at any place.
//!
//! A process of its own serves it: the kernel writes mapped pages back while it holds the memory of who mapped them, and
//! waits there for the server.
#![allow(dead_code)] // each test file uses a part

#[path = "../common/mod.rs"]
pub mod common;
pub mod history;
mod requests;
pub mod script;
mod server;
pub mod state;
pub mod sweep;
pub mod world;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use common::image::Cut;
pub use server::serve_if_asked;

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failing {
    /// Changes and syncs.
    Changes,
    /// Reads of files' bytes.
    Reads,
}

/// An error that operations give. Of SQLite's shared memory they never do: it is no part of what a disk holds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FsFault {
    pub failing: Failing,
    /// The number of the operation, counted from the moment the fault is set.
    pub at: u64,
    /// All from there on, too.
    pub for_ever: bool,
    pub errno: i32,
}

/// What is asked of the server. Each is answered by a number.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// A new disk, empty or in this state.
    Disk(Option<u64>),
    DropDisk(u64),
    /// The state a disk is in, as if all were synced.
    State(u64),
    DropState(u64),
    StartTrace(u64),
    Traced(u64),
    /// A trace and the state it begins from.
    TakeTrace(u64),
    DropTrace(u64),
    /// A state: that of a trace cut after so many operations, by this seed.
    After(u64, usize, Cut, u64),
    /// Whether that operation of a trace writes only zeros.
    IsZeros(u64, usize),
    Fault(u64, Option<FsFault>),
    Fired(u64),
    Counted(u64, Failing),
}

/// The way to the server.
struct Line {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

/// A mounted file system with any number of disks, each a folder of its own.
pub struct FsMount {
    // In the order in which they go.
    line: Mutex<Line>,
    server: Mutex<Child>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

/// Where a server finds who asks it.
const SOCKET: &str = "TERRANE_FS_SOCKET";
/// The test that is no test but the server; every file that uses this has it.
const SERVER: &str = "serve_a_file_system";

impl FsMount {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("mount");
        std::fs::create_dir(&path).unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", SERVER, "--ignored", "--nocapture"]).env(SOCKET, &socket);
        // What interrupts the test leaves it the time to unmount.
        command.process_group(0);
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let (to, _) = listener.accept().unwrap();
        let mut line = Line { from: BufReader::new(to.try_clone().unwrap()), to };
        // The first answer comes once it is mounted.
        assert_eq!(line.answer(), 0);
        Self { line: Mutex::new(line), server: Mutex::new(server), path, _dir: dir }
    }

    fn ask(&self, what: &Ask) -> u64 {
        let mut line = self.line.lock();
        let mut text = serde_json::to_string(what).unwrap();
        text.push('\n');
        line.to.write_all(text.as_bytes()).expect("the server lives");
        line.answer()
    }

    /// A disk in this state.
    pub fn disk(&self, state: &FsState) -> FsDisk<'_> {
        self.new_disk(Some(state.number))
    }

    /// An empty disk.
    pub fn empty_disk(&self) -> FsDisk<'_> {
        self.new_disk(None)
    }

    fn new_disk(&self, state: Option<u64>) -> FsDisk<'_> {
        let number = self.ask(&Ask::Disk(state));
        FsDisk { mount: self, number, path: self.path.join(number.to_string()) }
    }
}

impl Line {
    fn answer(&mut self) -> u64 {
        let mut text = String::new();
        self.from.read_line(&mut text).expect("the server lives");
        text.trim().parse().expect("the server answers by a number")
    }
}

impl Drop for FsMount {
    fn drop(&mut self) {
        // It unmounts and ends when nobody is there to ask.
        let _ = self.line.lock().to.shutdown(std::net::Shutdown::Both);
        let _ = self.server.lock().wait();
    }
}

/// A state of a disk, kept by the server.
pub struct FsState<'m> {
    mount: &'m FsMount,
    number: u64,
}

impl Drop for FsState<'_> {
    fn drop(&mut self) {
        self.mount.ask(&Ask::DropState(self.number));
    }
}

/// What was done to a disk, and the state it began from.
pub struct FsTrace<'m> {
    mount: &'m FsMount,
    number: u64,
    pub len: usize,
}

impl<'m> FsTrace<'m> {
    /// What a cut after `n` operations leaves.
    pub fn after(&self, n: usize, cut: Cut, seed: u64) -> FsState<'m> {
        FsState { mount: self.mount, number: self.mount.ask(&Ask::After(self.number, n, cut, seed)) }
    }

    /// Whether operation `n` only writes zeros.
    pub fn is_zeros(&self, n: usize) -> bool {
        self.mount.ask(&Ask::IsZeros(self.number, n)) != 0
    }
}

impl Drop for FsTrace<'_> {
    fn drop(&mut self) {
        self.mount.ask(&Ask::DropTrace(self.number));
    }
}

/// A disk, by the folder where it is mounted.
pub struct FsDisk<'m> {
    mount: &'m FsMount,
    number: u64,
    path: PathBuf,
}

impl<'m> FsDisk<'m> {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As it is now, as if all were synced.
    pub fn state(&self) -> FsState<'m> {
        FsState { mount: self.mount, number: self.mount.ask(&Ask::State(self.number)) }
    }

    /// From now on what is done is kept.
    pub fn start_trace(&self) {
        self.mount.ask(&Ask::StartTrace(self.number));
    }

    /// Operations traced so far.
    pub fn traced(&self) -> usize {
        self.mount.ask(&Ask::Traced(self.number)) as usize
    }

    pub fn take_trace(&self) -> FsTrace<'m> {
        let len = self.traced();
        FsTrace { mount: self.mount, number: self.mount.ask(&Ask::TakeTrace(self.number)), len }
    }

    /// Sets the one fault, counted from now on.
    pub fn set_fault(&self, fault: Option<FsFault>) {
        self.mount.ask(&Ask::Fault(self.number, fault));
    }

    /// Whether the fault has met an operation.
    pub fn fault_fired(&self) -> bool {
        self.mount.ask(&Ask::Fired(self.number)) != 0
    }

    /// Operations since the fault was last set.
    pub fn counted(&self, failing: Failing) -> u64 {
        self.mount.ask(&Ask::Counted(self.number, failing))
    }
}

impl Drop for FsDisk<'_> {
    fn drop(&mut self) {
        self.set_fault(None);
        // Through the kernel, which keeps pages of what it has not seen removed.
        let _ = std::fs::remove_dir_all(&self.path);
        self.mount.ask(&Ask::DropDisk(self.number));
    }
}
