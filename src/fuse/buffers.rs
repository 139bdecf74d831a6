//! Memory for requests: answers to reads, wiped when a file is closed, and huge pages for large ones.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use zeroize::Zeroize;

use super::files::REQUEST_BYTES;
use crate::sys::large_buffers::{LARGE, prefer_huge};

/// Bytes of a request from which on its buffer is to lie in huge pages: a mount without such requests needs none of 2 MiB.
const LARGE_REQUEST: usize = 256 << 10;

/// Memory for the answer to a read; page-aligned, so that direct I/O below may read into it.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Beyond it nothing was put into the buffer since it was last wiped.
    used: usize,
}

impl Buffer {
    const ALIGNMENT: usize = 4096;

    /// For requests of up to so many bytes.
    fn new(len: usize) -> Self {
        // Zeroed memory comes unmapped: only what requests use becomes resident.
        let bytes = vec![0; (len + Self::ALIGNMENT).max(LARGE)];
        if len >= LARGE_REQUEST {
            prefer_huge(&bytes[..len]);
        }
        Self { bytes, used: 0 }
    }

    /// Takes what disks held out of memory.
    fn wipe(&mut self) {
        self.bytes[..self.used].zeroize();
        self.used = 0;
    }

    /// Room for an answer.
    pub(super) fn first(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len + Self::ALIGNMENT {
            self.wipe();
            *self = Self::new(len);
        }
        self.used = self.used.max(len + Self::ALIGNMENT);
        let start = self.bytes.as_ptr().align_offset(Self::ALIGNMENT);
        &mut self.bytes[start..start + len]
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
}

impl Buffers {
    const fn new() -> Self {
        Self { all: Mutex::new(Vec::new()), free: Mutex::new(Vec::new()) }
    }

    fn add(&self, len: usize) -> Arc<Shared> {
        let buffer = Mutex::new(Buffer::new(len));
        let new = Arc::new(Shared { buffer, is_due: AtomicBool::new(false) });
        let mut all = self.all.lock();
        all.retain(|buffer| buffer.strong_count() > 0);
        all.push(Arc::downgrade(&new));
        new
    }

    fn lend_large(&self, len: usize, request: impl FnOnce(&mut Buffer)) {
        let free = self.free.lock().pop();
        let buffer = free.unwrap_or_else(|| self.add(len.max(REQUEST_BYTES as usize)));
        buffer.lend(request);
        self.free.lock().push(buffer);
    }

    fn wipe(&self) {
        self.all.lock().iter().filter_map(Weak::upgrade).for_each(|buffer| buffer.wipe());
    }

    fn give_back(&self) {
        let gone = std::mem::take(&mut *self.free.lock());
        // Without the lock, which each large read takes.
        drop(gone);
    }
}

static BUFFERS: Buffers = Buffers::new();

thread_local! {
    /// This thread's, for small requests.
    static SMALL: Arc<Shared> = BUFFERS.add(0);
}

/// Lends a buffer for a request of so many bytes.
pub(super) fn lend(len: usize, request: impl FnOnce(&mut Buffer)) {
    match len < LARGE_REQUEST {
        true => SMALL.with(|own| own.lend(request)),
        false => BUFFERS.lend_large(len, request),
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
        let buffer = buffers.add(4096);
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
        assert!(buffer.buffer.lock().bytes.iter().all(|b| *b == 0), "what was read stays in memory");
    }

    #[test]
    fn there_are_as_many_large_buffers_as_requests_at_one_time() {
        let buffers = Buffers::new();
        let place = || {
            let mut at = 0;
            buffers.lend_large(LARGE_REQUEST, |buffer| at = buffer.first(1).as_ptr() as usize);
            at
        };
        buffers.lend_large(LARGE_REQUEST, |outer| {
            let here = outer.first(1).as_ptr() as usize;
            let there = place();
            assert_ne!(here, there, "two requests at one time share a buffer");
            assert_eq!(place(), there, "what was given back is not used again");
        });
        assert_eq!(buffers.free.lock().len(), 2);
        buffers.wipe();
        assert_eq!(buffers.free.lock().len(), 2, "those who go on reading lost theirs");
        buffers.give_back();
        assert_eq!(buffers.all.lock().iter().filter(|buffer| buffer.strong_count() > 0).count(), 0);
    }
}
