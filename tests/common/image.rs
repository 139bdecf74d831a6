//! The bytes of a simulated file, and what a power cut leaves of changes to them that no sync covered.

use super::Random;
pub use super::pages::PAGE;
use super::pages::Pages;

/// The device writes this much at once or not at all.
const DEVICE_SECTOR: u64 = 512;

/// Bytes of a file. Copies share them.
#[derive(Clone, Default)]
pub struct Image {
    pub pages: Pages,
    pub len: u64,
}

/// A change of a file.
#[derive(Debug)]
pub enum Op {
    Write(u64, Vec<u8>),
    /// Whole pages of zeros that take space.
    Zeros(u64, u64),
    Punch(u64, u64),
    SetLen(u64),
}

impl Op {
    /// A write; zeros are kept short.
    pub fn write(offset: u64, from: &[u8]) -> Self {
        let (pages, rest) = from.as_chunks::<{ PAGE as usize }>();
        match offset.is_multiple_of(PAGE)
            && rest.is_empty()
            && pages.iter().all(|page| page == &[0; PAGE as usize])
        {
            true => Self::Zeros(offset, from.len() as u64),
            false => Self::Write(offset, from.to_vec()),
        }
    }
}

impl Image {
    pub fn read(&self, into: &mut [u8], offset: u64) {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let take = (PAGE as usize - within).min(into.len() - done);
            match self.pages.get(at / PAGE) {
                Some(page) if at < self.len => {
                    into[done..done + take].copy_from_slice(&page[within..within + take]);
                }
                _ => into[done..done + take].fill(0),
            }
            done += take;
        }
    }

    pub fn write(&mut self, from: &[u8], offset: u64) {
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let take = (PAGE as usize - within).min(from.len() - done);
            self.pages.make(at / PAGE)[within..within + take].copy_from_slice(&from[done..done + take]);
            done += take;
        }
        self.len = self.len.max(offset + from.len() as u64);
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(offset, bytes) => self.write(bytes, *offset),
            Op::Zeros(offset, len) => {
                self.pages.zero(offset / PAGE..(offset + len) / PAGE);
                self.len = self.len.max(offset + len);
            }
            Op::Punch(offset, len) => self.pages.remove(offset / PAGE..(offset + len) / PAGE),
            Op::SetLen(len) => self.set_len(*len),
        }
    }

    fn set_len(&mut self, len: u64) {
        self.len = len;
        self.pages.remove(len.div_ceil(PAGE)..u64::MAX);
        if self.pages.contains(len / PAGE) {
            self.pages.make(len / PAGE)[(len % PAGE) as usize..].fill(0);
        }
    }

    /// Where data, or (`hole`) a hole, begins at or after `offset`; none past the end.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let pages = offset / PAGE..self.len.div_ceil(PAGE);
        let found = pages.into_iter().find(|page| self.pages.contains(*page) != hole);
        let at = found.map(|page| (page * PAGE).max(offset));
        if hole { Some(at.unwrap_or(self.len).min(self.len)) } else { at }
    }
}

/// What a cut leaves of the operations that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Cut {
    /// Nothing.
    None,
    /// Everything, as after `kill -9`.
    All,
    /// A random prefix of each file's.
    Prefix,
    /// All but one.
    AllButOne,
    /// Only one.
    One,
    /// A random subset.
    Subset,
    /// A random subset, and writes torn at device sectors.
    Torn,
    /// A random subset, and one device sector that was being written is garbage.
    Garbage,
}

pub const CUTS: [Cut; 8] =
    [Cut::None, Cut::All, Cut::Prefix, Cut::AllButOne, Cut::One, Cut::Subset, Cut::Torn, Cut::Garbage];

impl Cut {
    /// Any of them.
    pub fn any(random: &mut Random) -> Self {
        CUTS[random.below(CUTS.len() as u64) as usize]
    }

    /// Whether an operation is kept: `is_chosen` says that it is the one treated apart, `in_prefix` that it comes early.
    pub fn keeps(self, is_chosen: bool, in_prefix: bool, random: &mut Random) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Prefix => in_prefix,
            Self::AllButOne => !is_chosen,
            Self::One => is_chosen,
            Self::Subset | Self::Torn | Self::Garbage => random.one_in(2),
        }
    }

    /// Does to a file what the cut leaves of a change.
    pub fn leave(self, image: &mut Image, op: &Op, is_chosen: bool, in_prefix: bool, random: &mut Random) {
        let kept = self.keeps(is_chosen, in_prefix, random);
        match op {
            Op::Write(offset, bytes) if self == Self::Torn => tear(image, *offset, bytes, random),
            Op::Write(offset, bytes) if self == Self::Garbage && is_chosen => {
                image.write(bytes, *offset);
                let at = (offset + random.below(bytes.len() as u64)) / DEVICE_SECTOR * DEVICE_SECTOR;
                spoil(image, at..at + DEVICE_SECTOR, random);
            }
            op if kept => image.apply(op),
            _ => {}
        }
    }

    /// The same where garbage stays within what was being written: SQLite, whose frames are not whole sectors, takes that
    /// much for granted (its "powersafe overwrite").
    pub fn leave_neighbours(
        self,
        image: &mut Image,
        op: &Op,
        is_chosen: bool,
        in_prefix: bool,
        random: &mut Random,
    ) {
        match op {
            Op::Write(offset, bytes) if self == Self::Garbage && is_chosen => {
                image.write(bytes, *offset);
                let end = offset + bytes.len() as u64;
                let at = (offset + random.below(bytes.len() as u64)) / DEVICE_SECTOR * DEVICE_SECTOR;
                spoil(image, at.max(*offset)..(at + DEVICE_SECTOR).min(end), random);
            }
            _ => self.leave(image, op, is_chosen, in_prefix, random),
        }
    }
}

fn spoil(image: &mut Image, range: std::ops::Range<u64>, random: &mut Random) {
    let mut garbage = vec![0; (range.end - range.start) as usize];
    random.fill(&mut garbage);
    image.write(&garbage, range.start);
}

fn tear(image: &mut Image, offset: u64, bytes: &[u8], random: &mut Random) {
    let mut at = offset;
    let end = offset + bytes.len() as u64;
    while at < end {
        let next = end.min((at / DEVICE_SECTOR + 1) * DEVICE_SECTOR);
        if random.one_in(2) {
            image.write(&bytes[(at - offset) as usize..(next - offset) as usize], at);
        }
        at = next;
    }
}
