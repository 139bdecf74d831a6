//! What a copy of a snapshot under another key costs, in time: plan, read, check, decrypt, encrypt, tag, write, seal, rows.
//! Two regions in memory; no mount, no disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{bytes, folder};
use terrane::catalog::DiskKind;
use terrane::copy::{Copy, Details, KeyChoice, Watch, plan};
use terrane::ids::{Name, SnapshotId};
use terrane::region::{Config, InitRequest, Region, init};
use terrane::volume::{Host, LayersLock, Order, SnapshotItem, VolumeSpec, create_volume};

mod support;

const DISK_BYTES: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn new_region(at: &Path, called: &str, config: &Config) -> Region {
    let dir = at.join(called);
    let request = InitRequest { dir, name: name(called), root_key_file: None, passphrase: None };
    init(&request, config).expect("a region")
}

fn owner(region: Region) -> Arc<Host> {
    let Ok(lock) = LayersLock::take(&region, None).expect("a lock") else { panic!("nobody else is here") };
    Host::new(region, Some(lock))
}

/// A snapshot of a disk that is written whole.
fn snapshot(host: &Arc<Host>) -> SnapshotId {
    let region = host.region();
    let mut catalog = region.catalog().expect("a catalog");
    let account = catalog.read(|tx| tx.default_account()).expect("a new region has one");
    let key = catalog.read(|tx| tx.default_key()).expect("a new region has one");
    let spec = VolumeSpec {
        account: account.id,
        name: None,
        size_bytes: DISK_BYTES,
        kind: DiskKind::Data,
        snapshot: None,
        key: Some(key.id),
    };
    let volume = create_volume(region, &spec).expect("a volume");
    let open = host.open_volume(volume, false).expect("it opens");
    let request = bytes(256);
    (0..DISK_BYTES).step_by(MIB as usize).for_each(|at| open.disk.write(at, &request).expect("a write"));
    drop(open);
    let id = SnapshotId::random();
    let item = SnapshotItem { volume: volume.to_string(), snapshot: id.to_string(), name: "whole".into() };
    let order = Order::Snapshot {
        items: vec![item],
        account: account.id.to_string(),
        group: None,
        description: None,
        tags: vec![],
        retention_days: None,
    };
    host.execute(&order, false).expect("a snapshot");
    id
}

/// One copy, timed, and taken away again.
fn copied(source: &Host, snapshot: SnapshotId, target: &Arc<Host>) -> Duration {
    let mut catalog = target.region().catalog().expect("a catalog");
    let details = Details {
        account: catalog.read(|tx| tx.default_account()).expect("a new region has one").id,
        name: name("copied"),
        description: None,
        tags: vec![],
        retention_days: None,
        group: None,
    };
    let begin = Instant::now();
    let plan = plan(source, snapshot, target, &details.name, &KeyChoice::Default).expect("a plan");
    let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
    let watch = Watch::new(&cancel, &mut progress);
    let id = Copy::new(source, target, plan, details).run(watch).expect("a copy");
    let spent = begin.elapsed();
    target.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).expect("it goes");
    spent
}

fn rekey(criterion: &mut Criterion) {
    let folder = folder();
    let config = Config::at(&folder.path().join("config")).expect("a configuration");
    let here = owner(new_region(folder.path(), "here", &config));
    let there = owner(new_region(folder.path(), "there", &config));
    let snapshot = snapshot(&here);
    let mut group = criterion.benchmark_group("copy under another key");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(DISK_BYTES));
    group.bench_function("64 MiB", |b| {
        b.iter_custom(|count| (0..count).map(|_| copied(&here, snapshot, &there)).sum());
    });
    group.finish();
    here.close().expect("it closes");
    there.close().expect("it closes");
}

criterion_group!(benches, rekey);
criterion_main!(benches);
