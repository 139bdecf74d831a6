//! The process that serves a file system, and keeps its disks, states and traces.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use terrane::sys::mount::{self, MountRequest};

use super::common::Random;
use super::common::image::{Cut, Op};
use super::requests::Requests;
use super::state::{Change, Event, FsState};
use super::{Ask, Failing, FsFault, SOCKET};

/// One tree of files: a machine's disk.
pub struct Tree {
    pub state: FsState,
    trace: Option<Trace>,
    counts: [u64; 2],
    fault: Option<FsFault>,
    fired: bool,
}

impl Tree {
    fn new(state: FsState) -> Self {
        Self { state, trace: None, counts: [0; 2], fault: None, fired: false }
    }

    /// Counts an operation; its error, if it is to fail.
    pub fn count(&mut self, failing: Failing) -> Result<(), i32> {
        let count = &mut self.counts[failing as usize];
        let number = *count;
        *count += 1;
        match self.fault {
            Some(f) if f.failing == failing && (number == f.at || f.for_ever && number > f.at) => {
                self.fired = true;
                Err(f.errno)
            }
            _ => Ok(()),
        }
    }

    pub fn change(&mut self, event: Event) {
        self.state.apply(&event);
        if let Some(trace) = &mut self.trace {
            trace.events.push(event);
        }
    }
}

/// What was done, and a state somewhere along it.
struct Trace {
    start: FsState,
    events: Vec<Event>,
    reached: (usize, FsState),
}

impl Trace {
    fn new(start: FsState) -> Self {
        Self { reached: (0, start.clone()), start, events: Vec::new() }
    }

    /// After `n` operations.
    fn reach(&mut self, n: usize) -> &FsState {
        if n < self.reached.0 {
            self.reached = (0, self.start.clone());
        }
        let (done, state) = &mut self.reached;
        self.events[*done..n].iter().for_each(|event| state.apply(event));
        *done = n;
        state
    }
}

pub type Trees = Arc<Mutex<HashMap<u64, Tree>>>;

#[derive(Default)]
struct Server {
    trees: Trees,
    states: HashMap<u64, FsState>,
    traces: HashMap<u64, Trace>,
    next: u64,
}

impl Server {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn keep(&mut self, state: FsState) -> u64 {
        let number = self.number();
        self.states.insert(number, state);
        number
    }

    fn answer(&mut self, ask: Ask) -> u64 {
        let trees = self.trees.clone();
        let with = |disk: u64, f: &mut dyn FnMut(&mut Tree) -> u64| {
            f(trees.lock().get_mut(&disk).expect("a disk is there until it is dropped"))
        };
        match ask {
            Ask::Disk(state) => {
                let number = self.number();
                let state = state.map_or_else(FsState::new, |state| self.states[&state].clone());
                self.trees.lock().insert(number, Tree::new(state));
                number
            }
            Ask::DropDisk(disk) => {
                self.trees.lock().remove(&disk);
                0
            }
            Ask::State(disk) => {
                let state = self.trees.lock()[&disk].state.after(Cut::All, &mut Random::new(1));
                self.keep(state)
            }
            Ask::DropState(state) => {
                self.states.remove(&state);
                0
            }
            Ask::StartTrace(disk) => with(disk, &mut |tree| {
                tree.trace = Some(Trace::new(tree.state.clone()));
                0
            }),
            Ask::Traced(disk) => {
                with(disk, &mut |tree| tree.trace.as_ref().map_or(0, |t| t.events.len() as u64))
            }
            Ask::TakeTrace(disk) => {
                let number = self.number();
                let trace = self.trees.lock().get_mut(&disk).and_then(|tree| tree.trace.take());
                self.traces.insert(number, trace.expect("a trace was started"));
                number
            }
            Ask::DropTrace(trace) => {
                self.traces.remove(&trace);
                0
            }
            Ask::After(trace, n, cut, seed) => {
                let trace = self.traces.get_mut(&trace).expect("a trace is there until it is dropped");
                let left = trace.reach(n).after(cut, &mut Random::new(seed));
                self.keep(left)
            }
            Ask::IsZeros(trace, n) => {
                let event = self.traces[&trace].events.get(n);
                let is_zeros = event.is_some_and(|event| {
                    matches!(event, Event::Change(c) if matches!(&**c, Change::Bytes(_, Op::Zeros(..))))
                });
                u64::from(is_zeros)
            }
            Ask::Fault(disk, fault) => with(disk, &mut |tree| {
                (tree.counts, tree.fired, tree.fault) = ([0; 2], false, fault);
                0
            }),
            Ask::Fired(disk) => with(disk, &mut |tree| u64::from(tree.fired)),
            Ask::Counted(disk, failing) => with(disk, &mut |tree| tree.counts[failing as usize]),
        }
    }
}

/// Serves until who asked for it is gone; in other processes does nothing.
pub fn serve_if_asked() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let socket = Path::new(&socket);
    let path = socket.parent().unwrap().canonicalize().unwrap().join("mount");
    let mut line = UnixStream::connect(socket).unwrap();
    let mut server = Server::default();
    let request = MountRequest { source: "simulated", allow_other: false, read_only: false };
    let channel = mount::mount(&path, &request).unwrap();
    let requests = Requests { trees: server.trees.clone() };
    let config = fuser::Config::default();
    let session = fuser::Session::from_fd(requests, channel, fuser::SessionACL::All, config).unwrap();
    let session = session.spawn().unwrap();
    let asked = BufReader::new(line.try_clone().unwrap());
    let _ = writeln!(line, "0");
    for text in asked.lines().map_while(Result::ok) {
        let answer = server.answer(serde_json::from_str(&text).unwrap());
        let _ = writeln!(line, "{answer}");
    }
    mount::unmount(&path, true).unwrap();
    // Whoever still has a file open is told that nobody serves it.
    drop(session);
}
