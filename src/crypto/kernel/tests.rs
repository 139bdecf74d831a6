//! Guards: a kernel that does not give the standards' bytes, or a path that gives other bytes than the other.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const KERNELS: [Kernel; 3] = [Kernel::Fastest, Kernel::Vectors256, Kernel::Portable];

/// All; which paths this machine can show is said, so that a green run is not misread.
fn paths() -> [Kernel; 3] {
    eprintln!("tested: {:?}", KERNELS.map(Kernel::path));
    KERNELS
}

fn bytes_of_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().map(|digit| (digit as char).to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The keys of IEEE 1619-2007, annex B, vectors 10 to 14: the digits of e and π.
const KEY1: &str = "2718281828459045235360287471352662497757247093699959574966967627";
const KEY2: &str = "3141592653589793238462643383279502884197169399375105820974944592";

/// Vector 10 in full, data unit 0xff.
const VECTOR_10: &str = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b\
    5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd\
    5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0\
    c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca\
    2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0\
    b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f\
    93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec\
    583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a\
    84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1\
    505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae\
    9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29\
    a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac\
    6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f\
    645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385\
    1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa\
    773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";

/// The first two blocks of vectors 11 to 14, whose data units' numbers are longer.
const VECTORS_11_TO_14: [(u128, &str); 4] = [
    (0xffff, "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11"),
    (0xff_ffff, "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200"),
    (0xffff_ffff, "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5"),
    (0xff_ffff_ffff, "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23"),
];

fn ieee_xts(path: Kernel) -> Xts {
    Xts::new(path, &bytes_of_hex(KEY1).try_into().unwrap(), &bytes_of_hex(KEY2).try_into().unwrap())
}

#[test]
fn xts_gives_the_vectors_of_ieee_1619() {
    let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
    for path in paths() {
        let xts = ieee_xts(path);
        let mut units: Vec<(u128, Vec<u8>)> = vec![(0xff, bytes_of_hex(VECTOR_10))];
        units.extend(VECTORS_11_TO_14.map(|(unit, head)| (unit, bytes_of_hex(head))));
        for (unit, expected) in units {
            let mut data = plain.clone();
            xts.crypt(Direction::Encrypt, unit, 512, data.as_mut_slice().into());
            assert_eq!(data[..expected.len()], expected, "{path:?}, data unit {unit:#x}");
            xts.crypt(Direction::Decrypt, unit, 512, data.as_mut_slice().into());
            assert_eq!(data, plain, "{path:?}, data unit {unit:#x}");
        }
    }
}

/// Several units in one call, of every length the step allows, in place and not, up to the last unit number.
#[test]
fn the_paths_of_xts_agree() {
    for kernel in paths() {
        xts_agrees_with_the_portable(kernel);
    }
}

fn xts_agrees_with_the_portable(kernel: Kernel) {
    let mut rng = StdRng::seed_from_u64(1);
    for unit_len in [256, 512, 768, 1280, 4096] {
        for count in 0..10 {
            let (wide, portable) = {
                let (data_key, tweak_key) = (rng.random(), rng.random());
                (Xts::new(kernel, &data_key, &tweak_key), Xts::new(Kernel::Portable, &data_key, &tweak_key))
            };
            let mut source = vec![0; unit_len * count];
            rng.fill(&mut source[..]);
            for first in [0, 1, rng.random::<u128>() >> 8, u64::MAX.into(), u128::MAX - 2] {
                for direction in [Direction::Encrypt, Direction::Decrypt] {
                    let mut one = vec![0; source.len()];
                    let mut other = source.clone();
                    wide.crypt(direction, first, unit_len, InOutBuf::new(&source, &mut one).unwrap());
                    portable.crypt(direction, first, unit_len, other.as_mut_slice().into());
                    assert_eq!(one, other, "{kernel:?} {direction:?} {count} × {unit_len} from {first}");

                    let mut one = source.clone();
                    let mut other = vec![0; source.len()];
                    wide.crypt(direction, first, unit_len, one.as_mut_slice().into());
                    portable.crypt(direction, first, unit_len, InOutBuf::new(&source, &mut other).unwrap());
                    assert_eq!(one, other, "{kernel:?} {direction:?} {count} × {unit_len} from {first}");
                }
            }
        }
    }
}

/// RFC 8452, appendix A.
#[test]
fn polyval_gives_the_vector_of_rfc_8452() {
    let block = |hex| -> Block { bytes_of_hex(hex).try_into().unwrap() };
    let key = block("25629347589242761d31f826ba4b757b");
    let blocks = [block("4f4f95668c83dfb6401762bb2d01a262"), block("d1a24ddd2721d006bbe45f20d3c9f362")];
    for path in paths() {
        let polyval = Polyval::new(path, &key);
        let hash = polyval.extend([0; 16], &blocks);
        assert_eq!(hash, block("f7a3b47b846119fae5b7866cf5e5b77e"), "{path:?}");
    }
}

/// Every length around a wide path's step, whole and in two pieces.
#[test]
fn the_paths_of_polyval_agree() {
    for kernel in paths() {
        polyval_agrees_with_the_portable(kernel);
    }
}

fn polyval_agrees_with_the_portable(kernel: Kernel) {
    let mut rng = StdRng::seed_from_u64(2);
    let key = rng.random();
    let (wide, portable) = (Polyval::new(kernel, &key), Polyval::new(Kernel::Portable, &key));
    for len in 0..=260 {
        let blocks: Vec<Block> = (0..len).map(|_| rng.random()).collect();
        let begin = rng.random();
        let hash = portable.extend(begin, &blocks);
        assert_eq!(wide.extend(begin, &blocks), hash, "{kernel:?}, {len} blocks");
        let (front, back) = blocks.split_at(rng.random_range(0..=len));
        assert_eq!(wide.extend(wide.extend(begin, front), back), hash, "{kernel:?}, {len} blocks");
    }
}

/// A sector's hash takes steps of its own.
#[test]
fn a_sector_hashes_as_its_blocks_do() {
    let mut rng = StdRng::seed_from_u64(3);
    for path in paths() {
        for _ in 0..20 {
            let polyval = Polyval::new(path, &rng.random());
            let sector: Vec<Block> = (0..SECTOR_BLOCKS).map(|_| rng.random()).collect();
            let end = [rng.random(), rng.random()];
            let hash = polyval.extend(polyval.extend([0; 16], &sector), &end);
            assert_eq!(polyval.sector(sector.as_slice().try_into().unwrap(), &end), hash, "{path:?}");
        }
    }
}

/// FIPS 197, appendix C.3; then the paths on random blocks.
#[test]
fn aes_gives_the_vector_of_fips_197() {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let plain: Block = std::array::from_fn(|i| i as u8 * 0x11);
    let expected: Block = bytes_of_hex("8ea2b7ca516745bfeafc49904b496089").try_into().unwrap();
    for path in paths() {
        assert_eq!(Aes::new(path, &key).encrypt(plain), expected, "{path:?}");
    }
    let mut rng = StdRng::seed_from_u64(4);
    for _ in 0..100 {
        let (key, block) = (rng.random(), rng.random());
        let wide = Aes::new(Kernel::Fastest, &key).encrypt(block);
        assert_eq!(wide, Aes::new(Kernel::Portable, &key).encrypt(block));
    }
}
