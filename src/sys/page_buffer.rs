//! Memory that begins at a page, to read files into.
//!
//! The kernel copies a file's bytes by `rep movsb`, which is five times as slow on some processors (AMD's Zen 3) where the bytes go to
//! an address less than 32 behind a page's: the system's allocator puts every large block 16 behind.

use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// The least size of a page.
const PAGE: usize = 4096;

/// So many bytes. Not wiped when it goes: that is for `Zeroizing` around it.
pub struct PageBuffer {
    /// With what lies before the first page, and beyond.
    bytes: Vec<u8>,
    len: usize,
}

impl PageBuffer {
    /// Zeros. They come unmapped where they are many: only what is used becomes resident.
    pub fn new(len: usize) -> Self {
        Self { bytes: vec![0; len + PAGE - 1], len }
    }

    fn start(&self) -> usize {
        self.bytes.as_ptr().align_offset(PAGE)
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start()..][..self.len]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.bytes[start..][..self.len]
    }
}

impl Zeroize for PageBuffer {
    fn zeroize(&mut self) {
        // The slice: a Vec is wiped byte by byte.
        self[..].zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_whatever_its_length() {
        for len in [0, 1, 4096, 5000, 256 << 10, 300_000, 1 << 20, 9 << 20] {
            let mut buffer = PageBuffer::new(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|byte| *byte == 0));
            assert_eq!(buffer.as_ptr().align_offset(PAGE), 0, "{len}");
            buffer.fill(7);
            buffer.zeroize();
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
    }
}
