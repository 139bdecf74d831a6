//! A simulated disk: files whose changes wait for a sync, a trace of all that was done to them, and what a power cut after
//! any part of that trace may leave. Faults can be set on operations, and bytes changed behind the engine's back.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use terrane::layer::Store;

use super::Random;
#[allow(unused_imports)] // each test file uses a part
pub use super::image::{CUTS, Cut};
use super::image::{Image, Op, PAGE};
use super::shelf::Rows;

/// Something a program did to the machine.
#[derive(Clone, Debug)]
pub enum Event {
    Change(Arc<str>, Arc<Change>),
    Sync(Arc<str>),
    /// The catalog, which is durable at once.
    Commit(Rows),
}

#[derive(Debug)]
pub struct Change(Op);

#[derive(Clone, Default)]
struct SimFile {
    /// What the program sees.
    current: Image,
    /// What the device holds for sure.
    durable: Image,
    /// Since the last sync.
    pending: Vec<Arc<Change>>,
}

/// What a disk does to a write without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It never comes.
    Lost,
    /// It comes over the pages that follow where it should have come.
    Astray,
}

/// What goes wrong: an error that operations give, or a lie about a write.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Reads are counted, and fail; else everything else.
    pub of_reads: bool,
    /// Not an error.
    pub lie: Option<Lie>,
    /// The number of the operation.
    pub at: u64,
    /// All from there on, too.
    pub for_ever: bool,
    pub errno: i32,
    /// Writes do half of their work first; a sync that fails makes the file what the device holds, as Linux may.
    pub half_done: bool,
    /// Not where space is there already: writes to the prepared log, the catalog, and syncs but for the one at `at`.
    pub fresh_only: bool,
}

impl Fault {
    fn meets(&self, n: u64) -> bool {
        n == self.at || self.for_ever && n > self.at
    }
}

/// Files and a catalog.
#[derive(Clone, Default)]
pub struct State {
    files: BTreeMap<Arc<str>, SimFile>,
    rows: Rows,
}

impl State {
    /// Does again what was done.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Change(name, op) => {
                let file = self.files.entry(name.clone()).or_default();
                file.current.apply(&op.0);
                file.pending.push(op.clone());
            }
            Event::Sync(name) => {
                let file = self.files.entry(name.clone()).or_default();
                file.pending.drain(..).for_each(|op| file.durable.apply(&op.0));
            }
            Event::Commit(rows) => self.rows = rows.clone(),
        }
    }

    /// The machines after cuts that lost just one unsynced operation each.
    pub fn without_each(&self) -> Vec<Arc<Machine>> {
        let unsynced: u64 = self.files.values().map(|f| f.pending.len() as u64).sum();
        let all_but = |lost: u64| self.after_with(Cut::AllButOne, lost, &mut Random::new(lost));
        (0..unsynced).map(all_but).collect()
    }

    /// A machine in this state.
    pub fn machine(&self) -> Arc<Machine> {
        self.after(Cut::All, &mut Random::new(1))
    }

    /// Makes the files whose names begin with `to` those that began with `from` in an older state.
    pub fn put_back(&mut self, older: &State, from: &str, to: &str) {
        for (name, file) in older.files.iter().filter(|(n, _)| n.starts_with(from)) {
            self.files.insert(name.replace(from, to).into(), file.clone());
        }
    }

    /// The machine after a cut: what the device was left with.
    pub fn after(&self, cut: Cut, random: &mut Random) -> Arc<Machine> {
        let unsynced: u64 = self.files.values().map(|f| f.pending.len() as u64).sum();
        let chosen = random.below(unsynced);
        self.after_with(cut, chosen, random)
    }

    fn after_with(&self, cut: Cut, mut chosen: u64, random: &mut Random) -> Arc<Machine> {
        let mut left = State { files: BTreeMap::new(), rows: self.rows.clone() };
        for (name, file) in &self.files {
            let image = match cut {
                Cut::All => file.current.clone(),
                _ => {
                    let mut image = file.durable.clone();
                    let prefix = random.below(file.pending.len() as u64 + 1) as usize;
                    for (i, op) in file.pending.iter().enumerate() {
                        cut.leave(&mut image, &op.0, chosen == 0, i < prefix, random);
                        chosen = chosen.wrapping_sub(1);
                    }
                    image
                }
            };
            let file = SimFile { current: image.clone(), durable: image, pending: Vec::new() };
            left.files.insert(name.clone(), file);
        }
        Machine::of(left)
    }
}

struct Inner {
    state: State,
    /// What was done since [`Machine::start_trace`].
    trace: Option<Vec<Event>>,
    operations: u64,
    reads: u64,
    fault: Option<Fault>,
    fired: bool,
    before_read: Option<Box<dyn FnOnce() + Send>>,
    before_sync: Option<Box<dyn FnOnce() + Send>>,
}

/// A machine with a disk.
pub struct Machine {
    inner: Mutex<Inner>,
}

impl Machine {
    pub fn new() -> Arc<Self> {
        Self::of(State::default())
    }

    fn of(state: State) -> Arc<Self> {
        let inner = Inner {
            state,
            trace: None,
            operations: 0,
            reads: 0,
            fault: None,
            fired: false,
            before_read: None,
            before_sync: None,
        };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    /// From now on what is done is kept; the state it begins from.
    pub fn start_trace(&self) -> State {
        let mut inner = self.inner.lock();
        inner.trace = Some(Vec::new());
        inner.state.clone()
    }

    /// Operations traced so far.
    pub fn traced(&self) -> usize {
        self.inner.lock().trace.as_ref().map_or(0, Vec::len)
    }

    pub fn take_trace(&self) -> Vec<Event> {
        self.inner.lock().trace.take().expect("a trace was started")
    }

    /// The machine as it is now.
    pub fn state(&self) -> State {
        self.inner.lock().state.clone()
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.inner.lock().operations
    }

    /// Does this between the next read's beginning and what it reads.
    pub fn before_next_read(&self, deed: impl FnOnce() + Send + 'static) {
        self.inner.lock().before_read = Some(Box::new(deed));
    }

    /// Does this while the next sync is under way.
    pub fn before_next_sync(&self, deed: impl FnOnce() + Send + 'static) {
        self.inner.lock().before_sync = Some(Box::new(deed));
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.inner.lock().reads
    }

    /// Sets the one fault, counted from now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut inner = self.inner.lock();
        inner.operations = 0;
        inner.reads = 0;
        inner.fired = false;
        inner.fault = fault;
    }

    /// Whether the fault has met an operation.
    pub fn fault_fired(&self) -> bool {
        self.inner.lock().fired
    }

    pub fn rows(&self) -> Rows {
        self.inner.lock().state.rows.clone()
    }

    pub fn commit(&self, rows: Rows) -> io::Result<()> {
        self.inner.lock().operate(Event::Commit(rows))
    }

    /// A file's bytes as the device holds them.
    pub fn peek(&self, name: &str, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.inner.lock().state.files[name].current.read(&mut bytes, offset);
        bytes
    }

    /// Changes what the device holds, unseen.
    pub fn poke(&self, name: &str, offset: u64, bytes: &[u8]) {
        self.change_unseen(name, &Op::Write(offset, bytes.to_vec()));
    }

    /// Cuts or extends a file, unseen.
    pub fn poke_len(&self, name: &str, len: u64) {
        self.change_unseen(name, &Op::SetLen(len));
    }

    fn change_unseen(&self, name: &str, op: &Op) {
        let mut inner = self.inner.lock();
        let file = inner.state.files.get_mut(name).expect("a file");
        file.current.apply(op);
        file.durable.apply(op);
    }

    /// Changes one byte of what the device holds.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        let byte = self.peek(name, offset, 1)[0];
        self.poke(name, offset, &[byte ^ mask]);
    }

    /// Bytes of the pages a file has.
    pub fn stored(&self, name: &str) -> u64 {
        self.inner.lock().state.files.get(name).map_or(0, |f| f.current.pages.count() * PAGE)
    }

    pub fn len(&self, name: &str) -> u64 {
        self.inner.lock().state.files.get(name).map_or(0, |f| f.current.len)
    }
}

impl Inner {
    fn operate(&mut self, event: Event) -> io::Result<()> {
        let meant = self.fault.is_some_and(|f| f.at == self.operations);
        let spared = matches!(event, Event::Commit(_)) || matches!(event, Event::Sync(_)) && !meant;
        self.operate_unless(event, spared)
    }

    fn operate_unless(&mut self, event: Event, spared: bool) -> io::Result<()> {
        let n = self.operations;
        self.operations += 1;
        let fault = self.fault.filter(|f| !f.of_reads && f.meets(n) && !(spared && f.fresh_only));
        if let Some(lie) = fault.and_then(|f| f.lie) {
            self.fired = true;
            return self.lie(event, lie);
        }
        if let Some(fault) = fault {
            self.fired = true;
            if fault.half_done {
                self.half_do(&event);
            }
            return Err(io::Error::from_raw_os_error(fault.errno));
        }
        self.carry_out(event);
        Ok(())
    }

    fn carry_out(&mut self, event: Event) {
        self.state.apply(&event);
        if let Some(trace) = &mut self.trace {
            trace.push(event);
        }
    }

    fn lie(&mut self, event: Event, lie: Lie) -> io::Result<()> {
        let astray = match &event {
            Event::Change(name, change) => match &change.0 {
                Op::Write(offset, bytes) => Some((name, Op::Write(offset + PAGE, bytes.clone()))),
                Op::Zeros(offset, len) => Some((name, Op::Zeros(offset + PAGE, *len))),
                Op::Punch(..) | Op::SetLen(_) => None,
            },
            Event::Sync(_) | Event::Commit(_) => None,
        };
        match (astray, lie) {
            (Some((name, op)), Lie::Astray) => {
                let astray = Event::Change(name.clone(), Arc::new(Change(op)));
                self.carry_out(astray);
            }
            (Some(_), Lie::Lost) => {}
            // No write.
            (None, _) => self.carry_out(event),
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let n = self.reads;
        self.reads += 1;
        match self.fault.filter(|f| f.of_reads && f.meets(n)) {
            Some(fault) => {
                self.fired = true;
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            None => Ok(()),
        }
    }

    fn half_do(&mut self, event: &Event) {
        match event {
            Event::Change(name, op) => {
                if let Op::Write(offset, bytes) = &op.0 {
                    let half = Op::Write(*offset, bytes[..bytes.len() / 2].to_vec());
                    self.state.apply(&Event::Change(name.clone(), Arc::new(Change(half))));
                }
            }
            Event::Sync(name) => {
                if let Some(file) = self.state.files.get_mut(name) {
                    file.pending.clear();
                    file.current = file.durable.clone();
                }
            }
            Event::Commit(_) => {}
        }
    }
}

/// A file of the machine.
pub struct SimStore {
    machine: Arc<Machine>,
    name: Arc<str>,
}

impl SimStore {
    pub fn new(machine: Arc<Machine>, name: &str) -> Self {
        Self { machine, name: name.into() }
    }

    fn change(&self, op: Op) -> io::Result<()> {
        let event = Event::Change(self.name.clone(), Arc::new(Change(op)));
        self.machine.inner.lock().operate(event)
    }

    fn with_image<T>(&self, f: impl FnOnce(&Image) -> T) -> T {
        let inner = self.machine.inner.lock();
        match inner.state.files.get(&self.name) {
            Some(file) => f(&file.current),
            None => f(&Image::default()),
        }
    }
}

/// Where `data` holds the log (docs/format.md).
const LOG: Range<u64> = 1 << 20..64 << 20;

impl Store for SimStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with_image(|i| i.len))
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let deed = self.machine.inner.lock().before_read.take();
        if let Some(deed) = deed {
            deed();
        }
        self.machine.inner.lock().read()?;
        self.with_image(|i| i.read(into, offset));
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::write(offset, from);
        // Where the log was prepared, space is there already.
        let pages = offset / PAGE..(offset + from.len() as u64).div_ceil(PAGE);
        let prepared =
            LOG.contains(&offset) && self.with_image(|i| pages.clone().all(|page| i.pages.contains(page)));
        let event = Event::Change(self.name.clone(), Arc::new(Change(op)));
        self.machine.inner.lock().operate_unless(event, prepared)
    }

    fn append(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::Write(offset, from.to_vec());
        let event = Event::Change(self.name.clone(), Arc::new(Change(op)));
        self.machine.inner.lock().operate_unless(event, true)
    }

    fn prepare_log(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Zeros(offset, len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Punch(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        let deed = self.machine.inner.lock().before_sync.take();
        if let Some(deed) = deed {
            deed();
        }
        self.machine.inner.lock().operate(Event::Sync(self.name.clone()))
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        Ok(self.machine.stored(&self.name))
    }

    fn data_end(&self, range: Range<u64>) -> io::Result<u64> {
        Ok(self.with_image(|i| {
            let first = range.start / PAGE;
            let pages = first..range.end.min(i.len).div_ceil(PAGE).max(first);
            let last = i.pages.last_of(pages);
            last.map_or(range.start, |page| ((page + 1) * PAGE).clamp(range.start, range.end))
        }))
    }
}
