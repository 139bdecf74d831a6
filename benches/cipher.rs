//! What a sector costs, in time: the cipher, the tag, both together, on each path; OpenSSL's XTS beside them.
//!
//! `single` goes over one sector that stays in the nearest cache, `run` over the 256 sectors of a 1 MiB request.
//! Criterion's time divided by the sectors (1 or 256) is the cost of one.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use openssl::cipher::Cipher as OpenSsl;
use openssl::cipher_ctx::CipherCtx;
use terrane::crypto::{Cipher, KdfParams, Kernel, LayerKeys, Secret, SectorCipher};
use terrane::units::{SECTOR_LEN, SectorNo};

const PATHS: [(&str, Kernel); 3] =
    [("fastest", Kernel::Fastest), ("vectors256", Kernel::Vectors256), ("portable", Kernel::Portable)];
const RUNS: [(&str, usize); 2] = [("single", 1), ("run", 256)];
const FIRST: SectorNo = SectorNo(1 << 20);

fn sectors(criterion: &mut Criterion) {
    for (run, count) in RUNS {
        let mut group = criterion.benchmark_group(run);
        group.throughput(Throughput::Bytes((count * SECTOR_LEN) as u64));
        for (name, path) in PATHS {
            own(&mut group, name, path, count);
        }
        openssl(&mut group, count);
        group.finish();
    }
}

fn own(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, path: Kernel, count: usize) {
    let data_key = Secret::random();
    let cipher = SectorCipher::on(path, &data_key).expect("random halves differ");
    let keys = LayerKeys::derive_on(path, Cipher::XtsAes256, &data_key).expect("random halves differ");
    let plain = vec![0x5a; count * SECTOR_LEN];
    let mut sealed = plain.clone();
    let mut out = plain.clone();
    let mut tags = vec![0; count];

    group.bench_function(format!("{name}/encrypt"), |b| {
        b.iter(|| cipher.encrypt(FIRST, black_box(&plain), black_box(&mut out)));
    });
    group.bench_function(format!("{name}/decrypt"), |b| {
        b.iter(|| cipher.decrypt(FIRST, black_box(&plain), black_box(&mut out)));
    });
    group.bench_function(format!("{name}/tag"), |b| {
        b.iter(|| {
            for (i, sector) in black_box(&plain).as_chunks::<SECTOR_LEN>().0.iter().enumerate() {
                black_box(keys.tag().tag(sector, SectorNo(FIRST.0 + i as u64), 1));
            }
        });
    });
    group.bench_function(format!("{name}/seal_sectors"), |b| {
        b.iter(|| keys.seal_sectors(FIRST, black_box(&plain), black_box(&mut sealed), black_box(&mut tags)));
    });
    // Opening works in place: the copy that restores the ciphertext is part of the time.
    group.bench_function(format!("{name}/copy_and_open_sectors"), |b| {
        b.iter(|| {
            out.copy_from_slice(black_box(&sealed));
            keys.open_sectors(FIRST, black_box(&mut out), black_box(&tags)).expect("they were just sealed");
        });
    });
}

fn openssl(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    let key = Secret::<64>::random();
    let plain = vec![0x5a; count * SECTOR_LEN];
    let mut out = vec![0; count * SECTOR_LEN];
    let mut context = CipherCtx::new().expect("OpenSSL has memory");
    context.encrypt_init(Some(OpenSsl::aes_256_xts()), Some(key.expose()), None).expect("the key is sound");
    group.bench_function("openssl/encrypt", |b| {
        b.iter(|| {
            let pairs = black_box(&plain).chunks(SECTOR_LEN).zip(out.chunks_mut(SECTOR_LEN));
            for (i, (sector, target)) in pairs.enumerate() {
                let tweak = u128::from(FIRST.0 + i as u64).to_le_bytes();
                context.encrypt_init(None, None, Some(&tweak)).expect("the tweak is sound");
                context.cipher_update(sector, Some(target)).expect("a sector is whole blocks");
            }
            black_box(&mut out);
        });
    });
}

fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("keys");
    let data_key = Secret::random();
    group.bench_function("derive", |b| b.iter(|| LayerKeys::derive(Cipher::XtsAes256, black_box(&data_key))));
    group.sample_size(10);
    let params = KdfParams::recommended();
    group.bench_function("passphrase", |b| {
        b.iter(|| params.derive(black_box(b"correct horse battery staple")))
    });
    group.finish();
}

criterion_group!(benches, sectors, keys);
criterion_main!(benches);
