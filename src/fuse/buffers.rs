//! Memory for requests: answers to reads, wiped when a file is closed, and huge pages for large ones.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use zeroize::Zeroize;

use super::files::REQUEST_BYTES;
use crate::sys::large_buffers::{HUGE, LARGE, give_back, prefer_huge};

/// Bytes of a request from which on its buffer is to lie in huge pages: a mount without such requests needs none of 2 MiB.
const LARGE_REQUEST: usize = 256 << 10;

/// Memory for the answer to a read; page-aligned, so that direct I/O below may read into it.
pub(super) struct Buffer {
    bytes: Bytes,
    /// Beyond it nothing was put into the buffer since it was last wiped.
    used: usize,
}

enum Bytes {
    Own(Vec<u8>),
    /// One of several in a block that stays: two large ones fill a huge page.
    Part(&'static mut [u8]),
}

impl Bytes {
    fn get(&mut self) -> &mut [u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Part(bytes) => bytes,
        }
    }
}

impl Buffer {
    const ALIGNMENT: usize = 4096;

    /// For requests of up to so many bytes.
    fn new(len: usize) -> Self {
        // Zeroed memory comes unmapped: only what requests use becomes resident.
        Self { bytes: Bytes::Own(vec![0; (len + Self::ALIGNMENT).max(LARGE)]), used: 0 }
    }

    /// Takes what disks held out of memory.
    fn wipe(&mut self) {
        let used = std::mem::take(&mut self.used);
        self.bytes.get()[..used].zeroize();
    }

    /// Wipes it and gives its pages back, where it stays itself.
    fn give_back(&mut self) {
        self.wipe();
        give_back(self.bytes.get());
    }

    /// Room for an answer.
    pub(super) fn first(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.get().len() < Self::room(self.bytes.get(), len).end {
            self.wipe();
            *self = Self::new(len);
        }
        let bytes = self.bytes.get();
        let room = Self::room(bytes, len);
        self.used = self.used.max(room.end);
        &mut bytes[room]
    }

    /// Where so many bytes lie that begin at a page.
    fn room(bytes: &[u8], len: usize) -> Range<usize> {
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        start..start + len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// A buffer, which any thread may have wiped.
struct Shared {
    buffer: Mutex<Buffer>,
    /// It was in use when it was to be wiped.
    is_due: AtomicBool,
}

impl Shared {
    fn lend(&self, request: impl FnOnce(&mut Buffer)) {
        request(&mut self.buffer.lock());
        if self.is_due.swap(false, Ordering::SeqCst) {
            self.buffer.lock().wipe();
        }
    }

    /// Now, or after the request that uses it: that may wait for a disk.
    fn wipe(&self) {
        self.is_due.store(true, Ordering::SeqCst);
        if let Some(mut buffer) = self.buffer.try_lock() {
            self.is_due.store(false, Ordering::SeqCst);
            buffer.wipe();
        }
    }
}

/// The buffers of a process.
struct Buffers {
    all: Mutex<Vec<Weak<Shared>>>,
    /// Those for large requests that no request has now. There are as many as were in use at one time, at most one a
    /// thread; that used last, of which most is in the processor's caches, is used next.
    free: Mutex<Vec<Arc<Shared>>>,
    /// Those whose pages were given back, or never used.
    spare: Mutex<Vec<Arc<Shared>>>,
}

impl Buffers {
    const fn new() -> Self {
        Self { all: Mutex::new(Vec::new()), free: Mutex::new(Vec::new()), spare: Mutex::new(Vec::new()) }
    }

    fn add(&self, buffer: Buffer) -> Arc<Shared> {
        let new = Arc::new(Shared { buffer: Mutex::new(buffer), is_due: AtomicBool::new(false) });
        let mut all = self.all.lock();
        all.retain(|buffer| buffer.strong_count() > 0);
        all.push(Arc::downgrade(&new));
        new
    }

    fn lend_large(&self, request: impl FnOnce(&mut Buffer)) {
        let free = self.free.lock().pop();
        let buffer = free.unwrap_or_else(|| self.one_more());
        buffer.lend(request);
        self.free.lock().push(buffer);
    }

    /// A large one, in a huge page that it shares with one more.
    fn one_more(&self) -> Arc<Shared> {
        let mut spare = self.spare.lock();
        if spare.is_empty() {
            // From a huge page on, as each second part.
            let block = vec![0; LARGE + HUGE].leak();
            let before = block.as_ptr().align_offset(HUGE);
            let parts = block[before..][..LARGE].chunks_exact_mut(REQUEST_BYTES as usize);
            let buffers = parts.map(|part| self.add(Buffer { bytes: Bytes::Part(part), used: 0 }));
            spare.extend(buffers);
            spare.reverse();
        }
        let one = spare.pop().expect("a block has parts");
        drop(spare);
        prefer_huge(one.buffer.lock().bytes.get());
        one
    }

    fn wipe(&self) {
        self.all.lock().iter().filter_map(Weak::upgrade).for_each(|buffer| buffer.wipe());
    }

    fn give_back(&self) {
        let free = std::mem::take(&mut *self.free.lock());
        // Without the lock, which each large read takes.
        free.iter().for_each(|buffer| buffer.buffer.lock().give_back());
        let mut spare = self.spare.lock();
        spare.extend(free);
        // Neighbours side by side.
        spare.sort_by_key(|buffer| std::cmp::Reverse(buffer.buffer.lock().bytes.get().as_ptr() as usize));
    }
}

static BUFFERS: Buffers = Buffers::new();

thread_local! {
    /// This thread's, for small requests.
    static SMALL: Arc<Shared> = BUFFERS.add(Buffer::new(0));
}

/// Lends a buffer for a request of so many bytes.
pub(super) fn lend(len: usize, request: impl FnOnce(&mut Buffer)) {
    match len < LARGE_REQUEST {
        true => SMALL.with(|own| own.lend(request)),
        false if len <= REQUEST_BYTES as usize => BUFFERS.lend_large(request),
        // The kernel was told to ask for no more.
        false => BUFFERS.add(Buffer::new(len)).lend(request),
    }
}

/// Wipes what was read of disks from the memory of all threads.
pub(super) fn wipe_buffers() {
    BUFFERS.wipe();
}

/// Gives back what large requests had: for a mount of which nobody has a file open.
pub(super) fn give_back_buffers() {
    BUFFERS.give_back();
}

/// To be given the data of a write, which lies in the thread's buffer for requests, where that of all later ones will.
pub(super) fn prefer_huge_requests(data: &[u8]) {
    thread_local! {
        static ASKED: Cell<bool> = const { Cell::new(false) };
    }
    if data.len() >= LARGE_REQUEST && !ASKED.replace(true) {
        prefer_huge(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_in_use_is_wiped_afterwards_and_not_waited_for() {
        let buffers = Arc::new(Buffers::new());
        let buffer = buffers.add(Buffer::new(4096));
        let (begun, begins) = std::sync::mpsc::channel();
        let (ended, ends) = std::sync::mpsc::channel();
        let own = buffer.clone();
        let reader = std::thread::spawn(move || {
            own.lend(|buffer| {
                buffer.first(4096).fill(7);
                begun.send(()).unwrap();
                ends.recv().unwrap();
            });
        });
        begins.recv().unwrap();
        buffers.wipe();
        ended.send(()).unwrap();
        reader.join().unwrap();
        assert!(buffer.buffer.lock().bytes.get().iter().all(|b| *b == 0), "what was read stays in memory");
    }

    #[test]
    fn there_are_as_many_large_buffers_as_requests_at_one_time() {
        let buffers = Buffers::new();
        let place = || {
            let mut at = 0;
            buffers.lend_large(|buffer| at = buffer.first(1).as_ptr() as usize);
            at
        };
        buffers.lend_large(|outer| {
            let here = outer.first(REQUEST_BYTES as usize);
            here.fill(7);
            let here = here.as_ptr() as usize;
            let there = place();
            assert_eq!(
                there,
                here + REQUEST_BYTES as usize,
                "two requests at one time share a buffer, or no huge page"
            );
            assert_eq!(place(), there, "what was given back is not used again");
        });
        assert_eq!(buffers.free.lock().len(), 2);
        buffers.wipe();
        assert_eq!(buffers.free.lock().len(), 2, "those who go on reading lost theirs");
        buffers.give_back();
        assert_eq!((buffers.free.lock().len(), buffers.spare.lock().len()), (0, 8));
    }

    #[test]
    fn pages_that_were_given_back_are_used_again_and_hold_nothing() {
        let buffers = Buffers::new();
        let mut before = 0;
        let mut blocks = 0;
        for _ in 0..3 {
            buffers.lend_large(|buffer| {
                let bytes = buffer.first(REQUEST_BYTES as usize);
                assert!(bytes.iter().all(|byte| *byte == 0), "what was read stays in memory");
                assert!(before == 0 || before == bytes.as_ptr() as usize, "not the one that was given back");
                before = bytes.as_ptr() as usize;
                bytes.fill(7);
            });
            blocks = blocks.max(buffers.all.lock().len());
            buffers.give_back();
        }
        assert_eq!(blocks, 8, "a block each time");
    }
}
