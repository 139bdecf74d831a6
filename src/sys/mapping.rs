//! A shared, writable window of a file in memory. The layer's log appends to it: a record costs a memcpy, no system call.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

/// `len` bytes of a file from `offset`. The file must stay at least that long, or a touch of the missing part is SIGBUS;
/// the caller locks and populates the part it uses. Bytes written are in the page cache at once; `fdatasync` of the file
/// makes them durable.
#[derive(Debug)]
pub struct LogMapping {
    raw: MmapRaw,
}

impl LogMapping {
    /// Maps the window. The file must already reach `offset + len`.
    pub fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if len == 0 || file.metadata()?.len() < end {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the window reaches past the end of the file",
            ));
        }
        Ok(Self { raw: MmapOptions::new().offset(offset).len(len).map_raw(file)? })
    }

    /// Length of the window in bytes.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Never: a window has at least a byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies `bytes` to `at`. Callers serialise writes with each other and with reads of the same bytes.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: the range was checked to lie in the mapping, which lives as long as `self`; `bytes` is memory of its
        // own, since no reference into the mapping is ever handed out.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.raw.as_mut_ptr().add(at), bytes.len()) }
    }

    /// Copies bytes from `at` into `into`.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        self.check(at, into.len());
        // SAFETY: as in `write`, the other way round.
        unsafe { ptr::copy_nonoverlapping(self.raw.as_ptr().add(at), into.as_mut_ptr(), into.len()) }
    }

    /// Faults the range in for writing, so that a later `write` never waits for the file system or fails for space.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.check(range.start, range.len());
        match self.raw.advise_range(Advice::PopulateWrite, range.start, range.len()) {
            // Before Linux 5.14 there is no such advice: touch each page. Reading and writing back its own byte is no change.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                for at in range.step_by(4096) {
                    let mut byte = [0];
                    self.read(at, &mut byte);
                    self.write(at, &byte);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Keeps the range in memory, where the limits allow it; says whether they did. Unlocked by [`LogMapping::release`] or dropping the mapping.
    pub fn lock(&self, range: Range<usize>) -> bool {
        self.check(range.start, range.len());
        // SAFETY: the range lies in the mapping; locking changes no byte of it.
        unsafe { libc::mlock(self.raw.as_ptr().add(range.start).cast(), range.len()) == 0 }
    }

    /// Gives up the memory of a range of whole pages, locked or not. What was written stays in the page cache; a later touch
    /// finds it there, or reads it from the file.
    pub fn release(&self, range: Range<usize>) {
        self.check(range.start, range.len());
        // SAFETY: the range lies in the mapping; of a shared mapping of a file, unmapped pages lose no byte.
        unsafe {
            libc::munlock(self.raw.as_ptr().add(range.start).cast(), range.len());
            let _ = self.raw.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len());
        }
    }

    fn check(&self, at: usize, len: usize) {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.raw.len()),
            "{at} + {len} leaves the window"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_released_is_still_there() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mapping = LogMapping::new(&file, 0, 1 << 20).unwrap();
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = format!("{:x}-", mapping.raw.as_ptr() as usize);
            let kib =
                smaps.lines().skip_while(|l| !l.starts_with(&ours)).find(|l| l.starts_with("Rss:")).unwrap();
            kib.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
        };
        mapping.populate(0..1 << 20).unwrap();
        mapping.lock(0..1 << 20);
        mapping.write(5000, b"kept");
        assert_eq!(resident(), 1024);
        mapping.release(0..1 << 20);
        assert_eq!(resident(), 0);
        let mut read = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 5000).unwrap();
        assert_eq!(&read, b"kept");
        mapping.read(5000, &mut read);
        assert_eq!(&read, b"kept");
    }

    #[test]
    fn what_is_written_is_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mapping = LogMapping::new(&file, 4096 + 512, 65536).unwrap();
        mapping.populate(0..8192).unwrap();
        mapping.lock(0..4096);
        mapping.write(100, b"record");
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, 4096 + 512 + 100).unwrap();
        assert_eq!(&bytes, b"record");
        file.write_all_at(b"other", 4096 + 512 + 65531).unwrap();
        let mut bytes = [0; 5];
        mapping.read(65531, &mut bytes);
        assert_eq!(&bytes, b"other");
    }

    #[test]
    #[should_panic(expected = "leaves the window")]
    fn a_write_past_the_window_panics() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        LogMapping::new(&file, 0, 4096).unwrap().write(4090, b"too long");
    }

    #[test]
    fn a_window_past_the_end_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(LogMapping::new(&file, 0, 4097).is_err());
        assert!(LogMapping::new(&file, u64::MAX, 1).is_err());
        assert!(LogMapping::new(&file, 0, 0).is_err());
    }
}
