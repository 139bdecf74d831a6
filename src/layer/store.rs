//! The narrow trait through which the engine touches files, and its real form.
//!
//! One descriptor a file for a layer's life (rule 9): a failed writeback is reported once per open file.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use parking_lot::RwLock;

use super::bytes::{HALF_BYTES, LOG_OFFSET};
use crate::sys::mapping::LogMapping;

/// A file as the engine sees it. Offsets are of the file; a read past the end gives zeros.
pub trait Store: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `into` from `offset`.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `from` at `offset`; durable after [`Store::sync`].
    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()>;
    /// Writes to a range given to [`Store::prepare_log`]; never waits for other writes. Callers serialise.
    fn append(&self, from: &[u8], offset: u64) -> io::Result<()>;
    /// A sync of this range is likely soon: begins to write it back, where that can be done without waiting.
    fn begin_sync(&self, _offset: u64, _len: u64) {}
    /// Fills a range of the log area with zeros and backs it, so that [`Store::append`] can't fail there.
    fn prepare_log(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Nothing is appended in this range, until it is prepared again: its memory can be given up.
    fn release_log(&self, _offset: u64, _len: u64) {}
    /// Gives up the lock its maker holds on it, so that a fold may take it.
    fn release_lock(&self) {}
    /// Sets the length.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Gives a range back to the file system; it reads as zeros.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
    /// Forgets cached bytes, so that the next read shows what the device holds.
    fn drop_cache(&self) -> io::Result<()>;
    /// The same of a range, and of what is cached together with it.
    fn drop_cached(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.drop_cache()
    }
    /// This range is likely read soon: begins to read it, where that can be done without waiting.
    fn expect(&self, _offset: u64, _len: u64) {}
    /// Bytes the file occupies.
    fn stored_bytes(&self) -> io::Result<u64>;
    /// An end beyond which all of `range` is a hole, and so reads as zeros.
    fn data_end(&self, range: Range<u64>) -> io::Result<u64> {
        Ok(range.end)
    }
}

/// The page cache forgets whole folios, which are at most so many bytes.
const FOLIO_MAX: u64 = 2 << 20;

/// A file of the host's file system.
pub struct FileStore {
    file: File,
    /// The halves of the log, each mapped as a whole once it is used (rule 5).
    halves: [RwLock<Option<LogMapping>>; 2],
}

impl FileStore {
    /// Takes the descriptor over.
    pub fn new(file: File) -> Self {
        // Reading ahead would leave large folios, over which a small synced write takes longer; requests say what they want.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        Self { file, halves: [RwLock::new(None), RwLock::new(None)] }
    }

    /// The descriptor, for locks.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Writes zeros ahead of small writes, in small pieces: the page cache keeps what one call wrote in one folio, and over a large
/// one each sync of a 4096-byte write takes longer.
pub fn write_zeros(store: &dyn Store, offset: u64, len: u64) -> io::Result<()> {
    let zeros = [0; 16 << 10];
    let end = offset + len;
    (offset..end).step_by(zeros.len()).try_for_each(|at| {
        let piece = (end - at).min(zeros.len() as u64);
        store.write_at(&zeros[..piece as usize], at)
    })
}

/// The half of the log an offset lies in, and the offset within it.
fn half_of(offset: u64) -> (usize, usize) {
    let within = offset - LOG_OFFSET;
    ((within / HALF_BYTES) as usize, (within % HALF_BYTES) as usize)
}

impl Store for FileStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => {
                    into[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    fn append(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let (half, within) = half_of(offset);
        match self.halves[half].read().as_ref() {
            Some(mapping) => mapping.write(within, from),
            None => return Err(io::Error::other("the log half is not mapped")),
        }
        Ok(())
    }

    fn prepare_log(&self, offset: u64, len: u64) -> io::Result<()> {
        write_zeros(self, offset, len)?;
        let (half, within) = half_of(offset);
        let mut mapping = self.halves[half].write();
        if mapping.is_none() {
            *mapping = Some(LogMapping::new(
                &self.file,
                LOG_OFFSET + half as u64 * HALF_BYTES,
                HALF_BYTES as usize,
            )?);
        }
        if let Some(mapping) = mapping.as_ref() {
            mapping.populate(within..within + len as usize)?;
            // Best effort: a user may lock only so much. A fault costs time, and an error there ends the server as a cut would.
            mapping.lock(within..within + len as usize);
        }
        Ok(())
    }

    fn begin_sync(&self, offset: u64, len: u64) {
        crate::sys::writeback::begin(&self.file, offset, len);
    }

    fn release_log(&self, offset: u64, len: u64) {
        let (half, within) = half_of(offset);
        if let Some(mapping) = self.halves[half].read().as_ref() {
            mapping.release(within..within + len as usize);
        }
    }

    fn release_lock(&self) {
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags as F;
        Ok(rustix::fs::fallocate(&self.file, F::PUNCH_HOLE | F::KEEP_SIZE, offset, len)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        let (begin, end) = (offset / FOLIO_MAX * FOLIO_MAX, (offset + len).next_multiple_of(FOLIO_MAX));
        let len = NonZeroU64::new(end - begin);
        Ok(rustix::fs::fadvise(&self.file, begin, len, rustix::fs::Advice::DontNeed)?)
    }

    fn expect(&self, offset: u64, len: u64) {
        // None would be all up to the end of the file.
        if let Some(len) = NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, offset, Some(len), rustix::fs::Advice::WillNeed);
        }
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn data_end(&self, range: Range<u64>) -> io::Result<u64> {
        use rustix::fs::{SeekFrom, seek};
        let mut end = range.start;
        while end < range.end {
            match seek(&self.file, SeekFrom::Data(end)) {
                Ok(data) if data >= range.end => break,
                Ok(data) => end = seek(&self.file, SeekFrom::Hole(data))?,
                // No data from here to the end of the file.
                Err(rustix::io::Errno::NXIO) => break,
                // The file system can't tell.
                Err(_) => return Ok(range.end),
            }
        }
        Ok(end.min(range.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_end_of_data_is_nothing() {
        let file = tempfile::tempfile().unwrap();
        let store = FileStore::new(file);
        store.set_len(1 << 20).unwrap();
        let range = (64 << 10)..(512 << 10);
        assert!(store.data_end(range.clone()).unwrap() >= range.start);
        store.write_at(&[1; 4096], 200 << 10).unwrap();
        store.write_at(&[1; 4096], 600 << 10).unwrap();
        store.sync().unwrap();
        let end = store.data_end(range.clone()).unwrap();
        assert!((204 << 10..=range.end).contains(&end), "{end}");
        let mut behind = vec![0xaa; (range.end - end) as usize];
        store.read_at(&mut behind, end).unwrap();
        assert!(behind.iter().all(|b| *b == 0));
        assert_eq!(store.data_end(2 << 20..3 << 20).unwrap(), 2 << 20, "past the end of the file");
    }
}
