//! What several tests share: a simulated disk, and a volume kept in layers without a catalog.
#![allow(dead_code)]

pub mod image;
pub mod pages;
pub mod shelf;
pub mod shrink;
pub mod sim;
pub mod slots;

/// A small, fast, seeded random source: the same everywhere, so that a printed seed replays.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_mut(8).for_each(|c| c.copy_from_slice(&self.next().to_le_bytes()[..c.len()]));
    }
}

/// The seeds of a crash test: the gate's few, or as many as `TERRANE_CRASH_SEEDS` says, from `TERRANE_CRASH_FIRST` on; and
/// whether it was told.
#[allow(dead_code)]
pub fn seeds(few: u64) -> (std::ops::Range<u64>, bool) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number of seeds"));
    let count = number("TERRANE_CRASH_SEEDS");
    let first = number("TERRANE_CRASH_FIRST").unwrap_or(1);
    (first..first + count.unwrap_or(few), count.is_some())
}
