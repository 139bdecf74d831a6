//! What a fuzzer's bytes decide: numbers, one after the other; zeros once they are used up.

pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// As `long`, more often a bound than chance would have it.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            0 => self.long(),
            1 => u64::MAX - u64::from(self.byte()),
            2 => u64::from(self.byte()),
            3 => (1u64 << (self.byte() % 64)).wrapping_sub(u64::from(self.byte() % 3)),
            4 => u64::from(self.short()),
            _ => (self.long() >> 1) / u64::from(self.byte().max(1)),
        }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let len = N.min(self.0.len());
        out[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        out
    }

    /// Overwrites 1, 2, 4 or 8 bytes somewhere in `bytes`.
    pub fn edit(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = usize::from(self.short()) % bytes.len();
        // Fields are aligned; a few edits are not.
        let width = 1 << (self.byte() % 4);
        let at = if self.byte() < 200 { at / width * width } else { at };
        let width = width.min(bytes.len() - at);
        bytes[at..at + width].copy_from_slice(&self.number().to_le_bytes()[..width]);
    }
}
