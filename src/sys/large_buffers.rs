//! Large blocks of memory, and huge pages under them: the kernel looks up each page of a buffer for each request that it copies in
//! or out, and 1 MiB is 256 small ones, or a part of one huge one.
//!
//! [`LargeBuffers`] is the program's allocator: the system's, but blocks of 8 MiB and more begin at a multiple of 2 MiB, which the system's
//! do not. They become resident small page by small page, until somebody [asks for huge ones](prefer_huge).
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes of the smallest block that begins at a huge page. The lists of a busy layer, which grow and go all the time, are smaller:
/// the system uses their pages again, where new ones would be faulted in each time.
pub const LARGE: usize = 8 << 20;
/// Bytes of a huge page.
pub const HUGE: usize = 2 << 20;

/// Linux 6.1 has it; the libc crate, for glibc only.
const MADV_COLLAPSE: libc::c_int = 25;
/// Linux 5.18 has it: of memory that is locked, too.
const MADV_DONTNEED_LOCKED: libc::c_int = 24;

/// Asks for huge pages where a part of a large block lies, now and for what is touched later. Its bytes stay as they are. A kernel that
/// has none to give, does not know the question, or was told never to use any, leaves small ones.
pub fn prefer_huge(part: &[u8]) {
    let start = part.as_ptr() as usize / HUGE * HUGE;
    let len = (part.as_ptr() as usize + part.len()).next_multiple_of(HUGE) - start;
    // SAFETY: advice changes no byte of memory, whosever it is, nor where it is.
    let advise = |advice| unsafe { libc::madvise(start as *mut libc::c_void, len, advice) == 0 };
    if are_wanted() && advise(libc::MADV_HUGEPAGE) {
        advise(MADV_COLLAPSE);
    }
}

/// Zeros bytes of anonymous memory, such as all that allocators give; their whole pages are not resident until they are touched again.
pub fn give_back(bytes: &mut [u8]) {
    let page = rustix::param::page_size();
    let before = bytes.as_ptr().align_offset(page).min(bytes.len());
    let len = (bytes.len() - before) / page * page;
    let (head, rest) = bytes.split_at_mut(before);
    let (pages, tail) = rest.split_at_mut(len);
    head.fill(0);
    tail.fill(0);
    // SAFETY: whole pages of bytes that the caller has alone, and each of which may become anything. (Zeros, unless they are a file's.)
    let mut advise = |advice| unsafe { libc::madvise(pages.as_mut_ptr().cast(), len, advice) == 0 };
    if !advise(MADV_DONTNEED_LOCKED) && !advise(libc::MADV_DONTNEED) {
        pages.fill(0);
    }
}

/// Whether this machine's administrator lets programs have huge pages: to collapse small ones does not ask that.
fn are_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|modes| !modes.contains("[never]"))
    })
}

/// The allocator.
#[derive(Debug)]
pub struct LargeBuffers;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= HUGE
}

/// Bytes of the pages of a large block of so many.
fn mapped(len: usize) -> usize {
    len.next_multiple_of(HUGE)
}

/// New, zeroed pages for so many bytes, from a multiple of 2 MiB on; null where there are none.
fn map(len: usize) -> *mut u8 {
    let Some(len) = len.checked_next_multiple_of(HUGE) else { return ptr::null_mut() };
    // The kernel need not begin at a multiple: what stands over at both ends is given back.
    let Some(more) = len.checked_add(HUGE) else { return ptr::null_mut() };
    // SAFETY: new pages at a place of the kernel's choice touch nothing that is there.
    let Ok(all) = (unsafe {
        mmap_anonymous(ptr::null_mut(), more, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }) else {
        return ptr::null_mut();
    };
    let all = all.cast::<u8>();
    let before = all.align_offset(HUGE);
    // SAFETY: `before` is less than HUGE, so that all three parts lie within the pages just made, of which nobody knows yet.
    unsafe {
        let start = all.add(before);
        if before > 0 {
            let _ = munmap(all.cast(), before);
        }
        let _ = munmap(start.add(len).cast(), HUGE - before);
        // Where all memory is to be huge, the first byte touched would be 2 MiB.
        libc::madvise(start.cast(), len, libc::MADV_NOHUGEPAGE);
        start
    }
}

// SAFETY: blocks of 8 MiB and more, but for those aligned to more than 2 MiB, are pages of their own, at least as many and as aligned
// as asked for, and go back by `munmap` of exactly those; all others are the system's. Which of the two is told by the layout alone,
// which a caller must give unchanged.
unsafe impl GlobalAlloc for LargeBuffers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match is_large(layout) {
            true => map(layout.size()),
            // SAFETY: as the caller promised.
            false => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match is_large(layout) {
            true => map(layout.size()),
            // SAFETY: as the caller promised.
            false => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match is_large(layout) {
            // SAFETY: `map` made these pages, and the caller has no use for them any more.
            true => drop(unsafe { munmap(block.cast(), mapped(layout.size())) }),
            // SAFETY: as the caller promised.
            false => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promised that `size` is no size that a layout can't have.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(new)) {
            // SAFETY: as the caller promised; both are the system's.
            (false, false) => unsafe { System.realloc(block, layout, size) },
            (true, true) if mapped(size) <= mapped(layout.size()) => {
                let (keep, had) = (mapped(size), mapped(layout.size()));
                if keep < had {
                    // SAFETY: the end of the pages that `map` made, beyond all that the caller keeps.
                    let _ = unsafe { munmap(block.add(keep).cast(), had - keep) };
                }
                block
            }
            // SAFETY: the new block is another one, and both have the lesser of the two sizes.
            _ => unsafe {
                let moved = self.alloc(new);
                if let Some(to) = NonNull::new(moved) {
                    ptr::copy_nonoverlapping(block, to.as_ptr(), layout.size().min(size));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of so many bytes of the allocator's.
    struct Block(*mut u8, Layout);

    impl Block {
        fn new(len: usize, zeroed: bool) -> Self {
            let layout = Layout::from_size_align(len, 16).unwrap();
            // SAFETY: no layout here is of no bytes.
            let block = unsafe {
                match zeroed {
                    true => LargeBuffers.alloc_zeroed(layout),
                    false => LargeBuffers.alloc(layout),
                }
            };
            assert!(!block.is_null());
            Self(block, layout)
        }

        fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: it is ours alone, of that length, and each is filled before it is read but where it is zeroed.
            unsafe { std::slice::from_raw_parts_mut(self.0, self.1.size()) }
        }

        fn resize(&mut self, len: usize) {
            // SAFETY: made by this allocator with this layout.
            self.0 = unsafe { LargeBuffers.realloc(self.0, self.1, len) };
            assert!(!self.0.is_null());
            self.1 = Layout::from_size_align(len, 16).unwrap();
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: made by this allocator with this layout.
            unsafe { LargeBuffers.dealloc(self.0, self.1) }
        }
    }

    fn byte(i: usize) -> u8 {
        ((i * 31) >> 3) as u8
    }

    #[test]
    fn large_blocks_are_zeroed_and_begin_at_a_huge_page() {
        let sizes = [LARGE, LARGE + 1, 7 * HUGE - 1, (16 << 20) + 4096];
        let mut blocks: Vec<Block> = sizes.iter().map(|len| Block::new(*len, true)).collect();
        for (number, block) in blocks.iter_mut().enumerate() {
            assert_eq!(block.0.align_offset(HUGE), 0);
            assert!(block.bytes().iter().all(|b| *b == 0));
            block.bytes().fill(number as u8 + 1);
        }
        // They do not overlap.
        for (number, block) in blocks.iter_mut().enumerate() {
            assert!(block.bytes().iter().all(|b| *b == number as u8 + 1));
        }
        assert!(Block::new(LARGE - 1, true).bytes().iter().all(|b| *b == 0));
    }

    #[test]
    fn bytes_stay_when_a_block_is_resized() {
        let mut block = Block::new(100, false);
        block.bytes().iter_mut().enumerate().for_each(|(i, b)| *b = byte(i));
        let mut kept = 100;
        for len in [
            5000,
            LARGE - 1,
            LARGE,
            LARGE + 9,
            2 * LARGE,
            7 * HUGE + 5,
            5 * HUGE,
            LARGE - 7,
            LARGE + HUGE,
            60,
        ] {
            block.resize(len);
            kept = kept.min(len);
            assert!(block.bytes()[..kept].iter().enumerate().all(|(i, b)| *b == byte(i)), "{len}");
            block.bytes().iter_mut().enumerate().for_each(|(i, b)| *b = byte(i));
            kept = len;
        }
    }

    #[test]
    fn what_can_not_be_had_is_null() {
        for len in [isize::MAX as usize - 15, 1 << 60] {
            // SAFETY: its size is not nought.
            assert!(unsafe { LargeBuffers.alloc(Layout::from_size_align(len, 16).unwrap()) }.is_null());
        }
        let mut block = Block::new(LARGE, false);
        block.bytes().fill(7);
        // SAFETY: made with this layout; refused, it is as it was.
        assert!(unsafe { LargeBuffers.realloc(block.0, block.1, 1 << 60) }.is_null());
        assert!(block.bytes().iter().all(|b| *b == 7));
    }

    #[test]
    fn what_is_given_back_is_zeros_and_nothing_else_is() {
        for (from, to) in [(0, HUGE), (HUGE / 2, HUGE), (5, HUGE - 5), (4096, 8191), (7, 9), (4096, 4096)] {
            let mut block = Block::new(LARGE, true);
            block.bytes().fill(7);
            prefer_huge(&block.bytes()[..HUGE]);
            give_back(&mut block.bytes()[from..to]);
            for (i, byte) in block.bytes().iter().enumerate() {
                assert_eq!(*byte, if (from..to).contains(&i) { 0 } else { 7 }, "{i} of {from}..{to}");
            }
        }
    }

    /// Also of a process that has locked its memory, as one that holds keys does.
    #[test]
    fn what_is_given_back_is_not_resident() {
        let mut block = Block::new(LARGE, true);
        block.bytes()[..HUGE].fill(7);
        let page = rustix::param::page_size();
        // SAFETY: of pages of the block; none of them goes.
        let locked = unsafe { libc::mlock(block.0.cast(), page) == 0 };
        give_back(&mut block.bytes()[..HUGE / 2]);
        let mut resident = vec![0u8; HUGE / page];
        // SAFETY: `resident` has a byte for each page asked of.
        assert_eq!(unsafe { libc::mincore(block.0.cast(), HUGE, resident.as_mut_ptr()) }, 0);
        let (given, kept) = resident.split_at(HUGE / 2 / page);
        assert!(given.iter().all(|state| state & 1 == 0), "locked: {locked}");
        assert!(kept.iter().all(|state| state & 1 == 1));
    }

    #[test]
    fn bytes_stay_when_pages_become_huge() {
        let mut block = Block::new(LARGE, true);
        block.bytes()[..3 * HUGE / 2].iter_mut().enumerate().for_each(|(i, b)| *b = byte(i));
        prefer_huge(&block.bytes()[HUGE / 2..HUGE + 5]);
        assert!(block.bytes()[..3 * HUGE / 2].iter().enumerate().all(|(i, b)| *b == byte(i)));
        assert!(block.bytes()[3 * HUGE / 2..].iter().all(|b| *b == 0));
        // Whosever the memory is.
        let other = vec![3; 5000];
        prefer_huge(&other);
        assert!(other.iter().all(|b| *b == 3));
        prefer_huge(&[]);
    }
}
