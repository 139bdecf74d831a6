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
use super::pages::PageBytes;
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
    /// Since the last sync, with their numbers among the changes of all files.
    pending: Vec<(u64, Arc<Change>)>,
}

/// What a disk does without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A write never comes.
    Lost,
    /// A write comes over the pages that follow where it should have come.
    Astray,
    /// Of a page that is read, a bit is another.
    Flipped,
    /// A page reads as it was before the last write to it.
    Stale,
    /// A page reads as the next one.
    Neighbours,
    /// A page reads as zeros.
    Zeros,
}

/// What goes wrong: an error that operations give, or a lie about one.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Reads are counted, and fail; else everything else.
    pub of_reads: bool,
    /// Not an error.
    pub lie: Option<Lie>,
    /// The number of the operation.
    pub at: u64,
    /// All from there on, too. A lie about a read is told again until that page is written, or (once) the cache that keeps it is dropped.
    pub for_ever: bool,
    pub errno: i32,
    /// Writes do half of their work first; a sync that fails makes the file what the device holds, as Linux may.
    pub half_done: bool,
    /// Not where space is there already: writes to the prepared log, the catalog, and syncs but for the one at `at`.
    pub fresh_only: bool,
    /// Nor where anything is written over: the file system does that in place.
    pub in_place: bool,
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
    changes: u64,
    rows: Rows,
}

impl State {
    /// Does again what was done.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Change(name, op) => {
                let file = self.files.entry(name.clone()).or_default();
                file.current.apply(&op.0);
                file.pending.push((self.changes, op.clone()));
                self.changes += 1;
            }
            Event::Sync(name) => {
                let file = self.files.entry(name.clone()).or_default();
                file.pending.drain(..).for_each(|(_, op)| file.durable.apply(&op.0));
            }
            Event::Commit(rows) => self.rows = rows.clone(),
        }
    }

    /// The machines after cuts that lost just one unsynced operation each.
    pub fn without_each(&self) -> Vec<Arc<Machine>> {
        (0..self.unsynced())
            .map(|lost| self.after_each(Cut::AllButOne, Some(lost), &mut Random::new(lost)))
            .collect()
    }

    /// The machine after a cut that lost how far files had grown since their syncs, and nothing else; none where none had.
    pub fn without_growth(&self) -> Option<Arc<Machine>> {
        let mut left = State { rows: self.rows.clone(), ..State::default() };
        let mut has_grown = false;
        for (name, file) in &self.files {
            let mut image = file.current.clone();
            if image.len > file.durable.len {
                has_grown = true;
                image.apply(&Op::SetLen(file.durable.len));
            }
            let file = SimFile { current: image.clone(), durable: image, pending: Vec::new() };
            left.files.insert(name.clone(), file);
        }
        has_grown.then(|| Machine::of(left))
    }

    fn unsynced(&self) -> u64 {
        self.files.values().map(|f| f.pending.len() as u64).sum()
    }

    /// Which disks a kind of cut leaves: one drawn at random; with `each`, then also each prefix of all that is not synced, or
    /// each lack of one operation.
    pub fn turns(&self, cut: Cut, each: bool) -> impl Iterator<Item = Option<u64>> + use<> {
        let count = match cut {
            Cut::Prefix if each => self.unsynced() + 1,
            Cut::AllButOne if each => self.unsynced(),
            _ => 0,
        };
        std::iter::once(None).chain((0..count).map(Some))
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
        self.after_each(cut, None, random)
    }

    /// The same of one of the [turns](Self::turns).
    pub fn after_each(&self, cut: Cut, turn: Option<u64>, random: &mut Random) -> Arc<Machine> {
        let mut chosen = random.below(self.unsynced());
        let mut unsynced: Vec<_> = self.files.values().flat_map(|f| &f.pending).map(|op| op.0).collect();
        unsynced.sort_unstable();
        let end = turn.map(|kept| unsynced.get(kept as usize).copied().unwrap_or(u64::MAX));
        if cut == Cut::AllButOne {
            chosen = turn.unwrap_or(chosen);
        }
        let mut left = State { rows: self.rows.clone(), ..State::default() };
        for (name, file) in &self.files {
            let image = match cut {
                Cut::All => file.current.clone(),
                _ => {
                    let mut image = file.durable.clone();
                    let prefix = random.below(file.pending.len() as u64 + 1) as usize;
                    for (i, (number, op)) in file.pending.iter().enumerate() {
                        let in_prefix = end.map_or(i < prefix, |end| *number < end);
                        cut.leave(&mut image, &op.0, chosen == 0, in_prefix, random);
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
    /// Operations that a full disk lets through.
    spared: Vec<u64>,
    /// The page that a lie is told of, and the file it was told of.
    lied_of: Option<(Arc<str>, u64)>,
    told_of: Option<Arc<str>>,
    /// Pages before the last write to them, where a lie may need them.
    before: BTreeMap<(Arc<str>, u64), PageBytes>,
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
            spared: Vec::new(),
            lied_of: None,
            told_of: None,
            before: BTreeMap::new(),
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
        inner.spared.clear();
        inner.told_of = None;
        (inner.lied_of, inner.fault) = (None, fault);
    }

    /// From now on stale reads are of what was written over on that machine, up to now.
    pub fn remember_what_was(&self, other: &Machine) {
        self.inner.lock().before.clone_from(&other.inner.lock().before);
    }

    /// Everything works again, and reads as it is.
    pub fn lift_fault(&self) {
        let mut inner = self.inner.lock();
        (inner.lied_of, inner.fault) = (None, None);
    }

    /// Whether the fault has met an operation, or a lie was one.
    pub fn fault_fired(&self) -> bool {
        self.inner.lock().fired
    }

    /// Whether a lie was told of a file whose name ends so.
    pub fn lied_of(&self, suffix: &str) -> bool {
        self.inner.lock().told_of.as_ref().is_some_and(|name| name.ends_with(suffix))
    }

    /// Those of the operations since the fault was set that a full disk lets through.
    pub fn spared(&self) -> Vec<u64> {
        self.inner.lock().spared.clone()
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

    /// The same of whole pages in a range.
    pub fn stored_in(&self, name: &str, range: Range<u64>) -> u64 {
        let pages = range.start / PAGE..range.end / PAGE;
        self.inner.lock().state.files.get(name).map_or(0, |f| f.current.pages.count_in(pages) * PAGE)
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
        if spared {
            self.spared.push(n);
        }
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
        if let Event::Change(name, change) = &event {
            self.forget_lie(name, &change.0);
        }
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
            _ => self.carry_out(event),
        }
        Ok(())
    }

    fn read(&mut self, name: &Arc<str>, into: &mut [u8], offset: u64) -> io::Result<()> {
        let n = self.reads;
        self.reads += 1;
        let is_kept = |f: &Fault| f.lie.is_some() && n > f.at;
        let fault = self.fault.filter(|f| f.of_reads && (f.meets(n) || is_kept(f)));
        if let Some(Fault { lie: None, errno, .. }) = fault {
            self.fired = true;
            return Err(io::Error::from_raw_os_error(errno));
        }
        match self.state.files.get(name) {
            Some(file) => file.current.read(into, offset),
            None => into.fill(0),
        }
        if let Some(Fault { lie: Some(lie), at, .. }) = fault {
            self.lie_in(name, into, offset, lie, n, at);
        }
        Ok(())
    }

    /// Puts what a lie makes of one page into what was read by read `n`; the lie begins with read `at`.
    fn lie_in(&mut self, name: &Arc<str>, into: &mut [u8], offset: u64, lie: Lie, n: u64, at: u64) {
        let Some(image) = self.state.files.get(name).map(|file| file.current.clone()) else { return };
        let end = offset + into.len() as u64;
        let pages = offset / PAGE..end.div_ceil(PAGE);
        if n == at {
            let differs = |page: &u64| self.lie_of(name, &image, *page, lie, at) != page_of(&image, *page);
            let chosen: Vec<_> = pages.clone().filter(differs).collect();
            let chosen = chosen.get(Random::new(at).below(chosen.len() as u64) as usize);
            self.lied_of = chosen.map(|page| (name.clone(), *page));
        }
        let Some((_, page)) = self.lied_of.clone().filter(|(of, page)| of == name && pages.contains(page))
        else {
            return;
        };
        self.fired = true;
        self.told_of = Some(name.clone());
        let mut told = Image::default();
        told.write(&self.lie_of(name, &image, page, lie, at), page * PAGE);
        let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
        told.read(&mut into[(from - offset) as usize..(to - offset) as usize], from);
    }

    /// What a lie makes of a page.
    fn lie_of(&self, name: &Arc<str>, image: &Image, page: u64, lie: Lie, seed: u64) -> PageBytes {
        let mut bytes = page_of(image, page);
        match lie {
            Lie::Flipped => {
                // Where there is something.
                let some: Vec<_> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
                let mut random = Random::new(seed);
                if let Some(at) = some.get(random.below(some.len() as u64) as usize) {
                    bytes[*at] ^= 1 << random.below(8);
                }
            }
            Lie::Stale => bytes = self.before.get(&(name.clone(), page)).copied().unwrap_or([0; _]),
            Lie::Neighbours => bytes = page_of(image, page + 1),
            Lie::Zeros => bytes.fill(0),
            Lie::Lost | Lie::Astray => {}
        }
        bytes
    }

    /// The device is asked again. What it says wrong each time stays wrong.
    fn drop_cache(&mut self, name: &str, range: Range<u64>) {
        if self.fault.is_some_and(|f| !f.for_ever) {
            let pages = range.start / PAGE..range.end.div_ceil(PAGE);
            self.lied_of.take_if(|(of, page)| **of == *name && pages.contains(page));
        }
    }

    /// Before a change: no lie is told of what is written again.
    fn forget_lie(&mut self, name: &Arc<str>, op: &Op) {
        let Some(lie) = self.fault.filter(|f| f.of_reads).and_then(|f| f.lie) else { return };
        let pages = match op {
            Op::Write(offset, bytes) => offset / PAGE..(offset + bytes.len() as u64).div_ceil(PAGE),
            Op::Zeros(offset, len) | Op::Punch(offset, len) => offset / PAGE..(offset + len).div_ceil(PAGE),
            Op::SetLen(_) => return,
        };
        self.lied_of.take_if(|(of, page)| of == name && pages.contains(page));
        let file = self.state.files.get(name);
        for page in pages.filter(|_| lie == Lie::Stale) {
            let bytes = file.map_or([0; _], |file| page_of(&file.current, page));
            self.before.insert((name.clone(), page), bytes);
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

fn page_of(image: &Image, page: u64) -> PageBytes {
    let mut bytes = [0; _];
    image.read(&mut bytes, page * PAGE);
    bytes
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
        self.machine.inner.lock().read(&self.name, into, offset)
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::write(offset, from);
        // Where the log was prepared, space is there already; and everywhere, unless writes go to new places.
        let pages = offset / PAGE..(offset + from.len() as u64).div_ceil(PAGE);
        let in_place = self.machine.inner.lock().fault.is_some_and(|f| f.in_place);
        let prepared = (in_place || LOG.contains(&offset))
            && self.with_image(|i| pages.clone().all(|page| i.pages.contains(page)));
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
        self.drop_cached(0, u64::MAX)
    }

    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        self.machine.inner.lock().drop_cache(&self.name, offset..offset.saturating_add(len));
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
