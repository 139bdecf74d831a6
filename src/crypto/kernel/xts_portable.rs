//! XTS by the `aes` crate, as many blocks at a time as its backend takes.

use aes::Aes256;
use aes::cipher::array::Array;
use aes::cipher::inout::{InOut, InOutBuf};
use aes::cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks, ParBlocksSizeUser,
    consts::U16,
};

use super::Direction;

type AesBlock = Array<u8, U16>;

/// Both key schedules; zeroed on drop by the crate.
pub(in crate::crypto) struct Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Xts {
    pub(super) fn new(data_key: &[u8; 32], tweak_key: &[u8; 32]) -> Self {
        Self { data: Aes256::new(data_key.into()), tweak: Aes256::new(tweak_key.into()) }
    }

    pub(super) fn crypt(
        &self,
        direction: Direction,
        first: u128,
        unit_len: usize,
        mut data: InOutBuf<'_, '_, u8>,
    ) {
        let mut unit = first;
        while !data.is_empty() {
            let (head, rest) = data.split_at(unit_len);
            let (blocks, _) = head.into_chunks::<U16>();
            let work = Unit { tweak: self.first_tweak(unit), blocks };
            match direction {
                Direction::Encrypt => self.data.encrypt_with_backend(work),
                Direction::Decrypt => self.data.decrypt_with_backend(work),
            }
            data = rest;
            unit = unit.wrapping_add(1);
        }
    }

    /// A data unit's number as 128 bits little-endian, encrypted: the tweak of its first block.
    fn first_tweak(&self, unit: u128) -> u128 {
        let mut block: AesBlock = unit.to_le_bytes().into();
        self.tweak.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    }
}

/// One data unit, for the closures the `aes` crate calls with its backend.
struct Unit<'inp, 'out> {
    tweak: u128,
    blocks: InOutBuf<'inp, 'out, AesBlock>,
}

impl BlockSizeUser for Unit<'_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Unit<'_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.run::<B>(
            |many| backend.encrypt_par_blocks_inplace(many),
            |one| backend.encrypt_block_inplace(one),
        );
    }
}

impl BlockCipherDecClosure for Unit<'_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.run::<B>(
            |many| backend.decrypt_par_blocks_inplace(many),
            |one| backend.decrypt_block_inplace(one),
        );
    }
}

impl Unit<'_, '_> {
    /// XOR, cipher, XOR: over the backend's number of blocks at a time, the rest one by one.
    ///
    /// Tweaks are made by the processor's plain registers and used by its vectors. A vector read right after its halves were written
    /// waits until both have reached the cache: so they are made one group ahead.
    #[inline(always)]
    fn run<B: ParBlocksSizeUser<BlockSize = U16>>(
        self,
        many: impl Fn(&mut ParBlocks<B>),
        one: impl Fn(&mut AesBlock),
    ) {
        let mut tweak = self.tweak;
        let (groups, tail) = self.blocks.into_chunks::<B::ParBlocksSize>();
        let mut ahead = ParBlocks::<B>::default();
        let mut work = ParBlocks::<B>::default();
        ahead.fill_with(|| next(&mut tweak));
        for mut group in groups {
            let tweaks = ahead.clone();
            for ((work, input), tweak) in work.iter_mut().zip(group.get_in()).zip(&tweaks) {
                *work = xor(input, tweak);
            }
            ahead.fill_with(|| next(&mut tweak));
            many(&mut work);
            for ((output, work), tweak) in group.get_out().iter_mut().zip(&work).zip(&tweaks) {
                *output = xor(work, tweak);
            }
        }
        for (block, tweak) in tail.into_iter().zip(&ahead) {
            alone(block, tweak, &one);
        }
    }
}

#[inline(always)]
fn alone(mut block: InOut<'_, '_, AesBlock>, tweak: &AesBlock, cipher: impl Fn(&mut AesBlock)) {
    let mut work = xor(block.get_in(), tweak);
    cipher(&mut work);
    *block.get_out() = xor(&work, tweak);
}

/// The tweak, and then it times x in GF(2¹²⁸) for the next block (IEEE 1619, 5.2): a shift to the left, the bit
/// that falls out coming back as 0x87 = x⁷ + x² + x + 1, which is x¹²⁸ there.
#[inline(always)]
fn next(tweak: &mut u128) -> AesBlock {
    let block = tweak.to_le_bytes().into();
    let carry = 0u128.wrapping_sub(*tweak >> 127);
    *tweak = (*tweak << 1) ^ (carry & 0x87);
    block
}

/// Byte by byte: optimised, one instruction of a vector.
#[inline(always)]
fn xor(a: &AesBlock, b: &AesBlock) -> AesBlock {
    let mut both = *a;
    both.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    both
}
