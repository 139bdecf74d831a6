//! A simulated disk: files whose writes wait for a sync, a cut after any number of operations, and what a cut may leave.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use terrane::layer::Store;

use super::Random;

const PAGE: u64 = 4096;
/// The device writes this much at once or not at all.
const DEVICE_SECTOR: usize = 512;

/// Bytes of a file, by page; absent pages are zero.
#[derive(Clone, Default)]
struct Image {
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
    len: u64,
}

impl Image {
    fn read(&self, into: &mut [u8], offset: u64) {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let take = (PAGE as usize - within).min(into.len() - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => into[done..done + take].copy_from_slice(&page[within..within + take]),
                None => into[done..done + take].fill(0),
            }
            done += take;
        }
    }

    fn write(&mut self, from: &[u8], offset: u64) {
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let take = (PAGE as usize - within).min(from.len() - done);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + take].copy_from_slice(&from[done..done + take]);
            done += take;
        }
        self.len = self.len.max(offset + from.len() as u64);
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(offset, bytes) => self.write(bytes, *offset),
            Op::Punch(offset, len) => {
                for page in offset / PAGE..(offset + len) / PAGE {
                    self.pages.remove(&page);
                }
            }
            Op::SetLen(len) => {
                self.len = *len;
                self.pages.retain(|page, _| page * PAGE < *len);
            }
        }
    }
}

#[derive(Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Punch(u64, u64),
    SetLen(u64),
}

#[derive(Default)]
struct Files {
    /// What the program sees.
    current: HashMap<String, Image>,
    /// What the device holds for sure.
    durable: HashMap<String, Image>,
    /// Operations since each file's last sync.
    pending: HashMap<String, Vec<Op>>,
}

/// What a cut leaves of the operations that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    None,
    /// Everything, as after `kill -9`.
    All,
    /// A random prefix of each file's.
    Prefix,
    /// All but one.
    AllButOne,
    /// A random subset.
    Subset,
    /// A random subset, and writes torn at device sectors.
    Torn,
}

pub const CUTS: [Cut; 6] = [Cut::None, Cut::All, Cut::Prefix, Cut::AllButOne, Cut::Subset, Cut::Torn];

/// A machine with a disk: its operations are counted, and after `cut_at` of them it is off.
pub struct Machine {
    files: Mutex<Files>,
    operations: AtomicU64,
    cut_at: AtomicU64,
}

impl Machine {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            files: Mutex::default(),
            operations: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
        })
    }

    pub fn cut_at(&self, operation: u64) {
        self.cut_at.store(operation, Ordering::SeqCst);
    }

    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    pub fn is_off(&self) -> bool {
        self.operations() > self.cut_at.load(Ordering::SeqCst)
    }

    /// Counts an operation; an error once the machine is off.
    pub fn operate(&self) -> io::Result<()> {
        let n = self.operations.fetch_add(1, Ordering::SeqCst);
        match n < self.cut_at.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// The machine after a cut: what the device was left with.
    pub fn after(&self, cut: Cut, random: &mut Random) -> Arc<Self> {
        let files = self.files.lock();
        let mut durable = files.durable.clone();
        let mut names: Vec<_> = files.pending.keys().collect();
        names.sort();
        for name in names {
            let ops = &files.pending[name];
            let image = durable.entry(name.clone()).or_default();
            let prefix = random.below(ops.len() as u64 + 1) as usize;
            let omitted = random.below(ops.len() as u64) as usize;
            for (i, op) in ops.iter().enumerate() {
                let kept = match cut {
                    Cut::None => false,
                    Cut::All => true,
                    Cut::Prefix => i < prefix,
                    Cut::AllButOne => i != omitted,
                    Cut::Subset | Cut::Torn => random.one_in(2),
                };
                match op {
                    Op::Write(offset, bytes) if cut == Cut::Torn => {
                        for (j, sector) in bytes.chunks(DEVICE_SECTOR).enumerate() {
                            if random.one_in(2) {
                                image.write(sector, offset + (j * DEVICE_SECTOR) as u64);
                            }
                        }
                    }
                    op if kept => image.apply(op),
                    _ => {}
                }
            }
        }
        let files = Files { current: durable.clone(), durable, pending: HashMap::new() };
        Arc::new(Self {
            files: Mutex::new(files),
            operations: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
        })
    }

    /// Changes one byte of what the device holds.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        let mut files = self.files.lock();
        let Files { current, durable, .. } = &mut *files;
        for image in [current, durable] {
            let image = image.get_mut(name).expect("a file");
            let mut byte = [0];
            image.read(&mut byte, offset);
            image.write(&[byte[0] ^ mask], offset);
        }
    }

    /// Bytes of the pages a file has.
    pub fn stored(&self, name: &str) -> u64 {
        self.files.lock().current.get(name).map_or(0, |i| i.pages.len() as u64 * PAGE)
    }
}

/// A file of the machine.
pub struct SimStore {
    pub machine: Arc<Machine>,
    pub name: String,
}

impl SimStore {
    fn change(&self, op: Op) -> io::Result<()> {
        self.machine.operate()?;
        let mut files = self.machine.files.lock();
        files.current.entry(self.name.clone()).or_default().apply(&op);
        files.pending.entry(self.name.clone()).or_default().push(op);
        Ok(())
    }
}

impl Store for SimStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.machine.files.lock().current.get(&self.name).map_or(0, |i| i.len))
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match self.machine.files.lock().current.get(&self.name) {
            Some(image) => image.read(into, offset),
            None => into.fill(0),
        }
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.change(Op::Write(offset, from.to_vec()))
    }

    fn append(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.change(Op::Write(offset, from.to_vec()))
    }

    fn prepare_log(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Write(offset, vec![0; len as usize]))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Op::Punch(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.machine.operate()?;
        let mut files = self.machine.files.lock();
        let ops = files.pending.remove(&self.name).unwrap_or_default();
        let image = files.durable.entry(self.name.clone()).or_default();
        ops.iter().for_each(|op| image.apply(op));
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        Ok(self.machine.stored(&self.name))
    }
}
