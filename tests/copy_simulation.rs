//! Three regions at once, and a model of each disk: random writes, snapshots, deletions, folds, copies in all directions under several
//! keys, some interrupted, called off, or in the way of a disabled key, rotations, volumes made from copies, and whole regions put
//! back to an earlier day. Whatever is whole reads as the model says, and a copy ships what changed and no more.
//!
//! `SEED=n` begins with that seed; `TERRANE_CRASH_SEEDS=n` runs so many.

mod copy_support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use copy_support::{Random, World, copy_files, name, take};
use terrane::catalog::{CatalogError, DiskKind, SnapshotState, TaskState};
use terrane::copy::{
    self, CopyError, Held, KeyChoice, OwnProof, Pace, Side, Slot, Taken, VerifyWatch, Watch, carry_out,
    compare_proofs, enqueue,
};
use terrane::ids::{KeyId, Point, SnapshotId, TaskId, VolumeId};
use terrane::kms;
use terrane::units::SECTOR_LEN;
use terrane::volume::{CheckWatch, Order, VolumeSpec, check_region, create_volume};

const REGIONS: [&str; 3] = ["aa", "bb", "cc"];
const DISK: usize = 5 << 20;
const STEPS: u32 = 200;
const VOLUMES_MAX: usize = 5;
const SNAPSHOTS_MAX: usize = 24;

/// All bytes of a disk.
type Content = Arc<Vec<u8>>;

/// Moments of a disk, oldest first, each with the sectors written or discarded before it.
type Line = Vec<(u64, Arc<HashSet<usize>>)>;

#[derive(Clone)]
struct Snap {
    region: usize,
    id: SnapshotId,
    bytes: Arc<Vec<u8>>,
    line: Line,
    key: KeyId,
}

#[derive(Clone)]
struct Vol {
    region: usize,
    id: VolumeId,
    bytes: Vec<u8>,
    line: Line,
    changed: HashSet<usize>,
    key: KeyId,
}

/// A copy that was asked for.
#[derive(Clone)]
struct Pending {
    region: usize,
    id: SnapshotId,
    task: TaskId,
    source: Snap,
    key: KeyId,
}

#[derive(Clone, Default)]
struct Model {
    snaps: Vec<Snap>,
    vols: Vec<Vol>,
    pending: Vec<Pending>,
}

/// What was done, so that a run that did nothing is told.
#[derive(Default)]
struct Counts {
    copies: u64,
    on_base: u64,
    exact: u64,
    within: u64,
    interrupted: u64,
    put_back: u64,
    failed: u64,
    kept: u64,
}

struct Sim {
    world: World,
    keys: Vec<[KeyId; 2]>,
    model: Model,
    /// A region as it was, and the model of it then.
    backups: Vec<Option<(u32, Model)>>,
    random: Random,
    moment: u64,
    names: u64,
    counts: Counts,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let world = World::new(&REGIONS);
        let keys = REGIONS.iter().map(|r| [world.default_key(r), world.key(r, "other")]).collect();
        let mut sim = Self {
            world,
            keys,
            model: Model::default(),
            backups: vec![None; REGIONS.len()],
            random: Random::new(seed),
            moment: 0,
            names: 0,
            counts: Counts::default(),
        };
        sim.make_volume(0, None);
        sim.change(0);
        sim.snapshot(0);
        sim
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.below(n as u64) as usize
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn step(&mut self, step: u32) {
        let (vols, snaps) = (self.model.vols.len(), self.model.snaps.len());
        match self.below(100) {
            0..20 => {
                let vol = self.below(vols);
                self.change(vol);
            }
            20..35 if snaps < SNAPSHOTS_MAX => {
                let vol = self.below(vols);
                self.change(vol);
                self.snapshot(vol);
            }
            35..45 if snaps > 4 => {
                let snap = self.below(snaps);
                self.delete(snap);
            }
            45..65 if snaps > 0 => {
                let (snap, to) = (self.below(snaps), self.below(REGIONS.len()));
                let key = self.keys[to][self.random.below(2) as usize];
                let of_old = self.onto_an_ancestor().filter(|_| self.random.one_in(2));
                let (snap, to, key) = of_old.unwrap_or((snap, to, key));
                self.ask(snap, to, key);
            }
            65..85 if !self.model.pending.is_empty() => {
                let pending = self.below(self.model.pending.len());
                self.carry(pending);
            }
            85..87 if !self.model.pending.is_empty() => {
                let pending = self.below(self.model.pending.len());
                self.call_off(pending);
            }
            87..91 if snaps > 0 && vols < VOLUMES_MAX => {
                let snap = self.below(snaps);
                self.make_volume(self.model.snaps[snap].region, Some(snap));
            }
            91..94 => {
                let (region, which) = (self.below(REGIONS.len()), self.below(2));
                kms::rotate_key(&self.world.region(REGIONS[region]), self.keys[region][which], 0).unwrap();
            }
            94..97 => {
                let region = self.below(REGIONS.len());
                self.back_up(region, step);
            }
            97..100 => {
                let region = self.below(REGIONS.len());
                self.put_back(region, step);
            }
            _ => {}
        }
    }

    fn make_volume(&mut self, region: usize, from: Option<usize>) {
        let opened = self.world.region(REGIONS[region]);
        let account = opened.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
        let source = from.map(|i| self.model.snaps[i].clone());
        let key = source.as_ref().map_or(self.keys[region][0], |snap| snap.key);
        let spec = VolumeSpec {
            account,
            name: None,
            size_bytes: DISK as u64,
            kind: DiskKind::Data,
            snapshot: source.as_ref().map(|snap| snap.id),
            key: Some(key),
        };
        let id = create_volume(&opened, &spec).unwrap();
        let (bytes, line) = source.map_or((vec![0; DISK], Line::new()), |s| (s.bytes.to_vec(), s.line));
        self.model.vols.push(Vol { region, id, bytes, line, changed: HashSet::new(), key });
    }

    /// Writes and discards; then the process closes it in order, or is gone.
    fn change(&mut self, vol: usize) {
        let sectors = DISK / SECTOR_LEN;
        let host = self.world.owner(REGIONS[self.model.vols[vol].region]);
        let open = host.open_volume(self.model.vols[vol].id, false).unwrap();
        for _ in 0..1 + self.random.below(5) {
            let most = if self.random.one_in(6) { 600 } else { 9 };
            let count = 1 + self.below(most);
            let first = self.below(sectors - count);
            let (at, len) = (first * SECTOR_LEN, count * SECTOR_LEN);
            let mut bytes = vec![0; len];
            let vol = &mut self.model.vols[vol];
            match self.random.below(5) {
                0 => open.disk.discard(at as u64, len as u64).unwrap(),
                kind => {
                    if kind > 1 {
                        self.random.fill(&mut bytes);
                    }
                    open.disk.write(at as u64, &bytes).unwrap();
                }
            }
            vol.bytes[at..at + len].copy_from_slice(&bytes);
            vol.changed.extend(first..first + count);
        }
        open.disk.flush().unwrap();
        drop(open);
        if !self.random.one_in(4) {
            host.close().unwrap();
        }
    }

    fn snapshot(&mut self, vol: usize) {
        let called = self.name();
        let host = self.world.owner(REGIONS[self.model.vols[vol].region]);
        let id = take(&host, self.model.vols[vol].id, &called);
        // Its process may end before the seal is finished.
        if !self.random.one_in(4) {
            host.close().unwrap();
        }
        let vol = &mut self.model.vols[vol];
        if !vol.changed.is_empty() || vol.line.is_empty() {
            self.moment += 1;
            vol.line.push((self.moment, Arc::new(std::mem::take(&mut vol.changed))));
        }
        let (bytes, line) = (Arc::new(vol.bytes.clone()), vol.line.clone());
        self.model.snaps.push(Snap { region: vol.region, id, bytes, line, key: vol.key });
    }

    fn delete(&mut self, snap: usize) {
        let Snap { region, id, .. } = self.model.snaps.swap_remove(snap);
        let host = self.world.owner(REGIONS[region]);
        host.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).unwrap();
        // Folds are begun, and some ended.
        let mut left = self.random.below(12);
        host.fold(false, &mut |_| {
            left = left.saturating_sub(1);
            left > 0
        })
        .unwrap();
        host.close().unwrap();
    }

    /// A snapshot, and a region and key of which an older one of its moments is there, far below it rather than near.
    fn onto_an_ancestor(&mut self) -> Option<(usize, usize, KeyId)> {
        let snaps = &self.model.snaps;
        let mut pairs = Vec::new();
        for (number, snap) in snaps.iter().enumerate() {
            for base in snaps.iter().filter(|base| base.region != snap.region) {
                let moment = base.line.last().map(|(moment, _)| *moment);
                let below = snap.line.iter().rev().position(|(at, _)| Some(*at) == moment).unwrap_or(0);
                pairs.extend(std::iter::repeat_n((number, base.region, base.key), below * below));
            }
        }
        (!pairs.is_empty()).then(|| pairs[self.random.below(pairs.len() as u64) as usize])
    }

    fn ask(&mut self, snap: usize, to: usize, key: KeyId) {
        let source = self.model.snaps[snap].clone();
        let (from, target) = (self.world.reader(REGIONS[source.region]), self.world.reader(REGIONS[to]));
        let called = self.name();
        let choice = KeyChoice::Named(key.to_string());
        match copy::plan(&from, source.id, &target, &name(&called), &choice) {
            Ok(plan) => {
                let held = enqueue(from.region(), &target, &plan, &self.world.details(REGIONS[to], &called))
                    .unwrap();
                let (id, task) = (held.snapshot(), held.task().id);
                self.model.pending.push(Pending { region: to, id, task, source, key });
            }
            Err(CopyError::Refused { .. }) if to == source.region && key == source.key => {}
            Err(error) => panic!("a copy can't be planned: {error}"),
        }
    }

    fn carry(&mut self, pending: usize) {
        let asked = self.model.pending[pending].clone();
        let region = REGIONS[asked.region];
        // One that was begun goes on where it stands, though a nearer base may have come.
        let is_begun = self.find(asked.region, asked.id).unwrap().layer.is_some();
        let is_disabled = self.random.one_in(10);
        if is_disabled {
            kms::set_key_enabled(&self.world.region(region), asked.key, false).unwrap();
        }
        let target = self.world.reader(region);
        let Taken::Held(held) = Held::take(target.region(), asked.task).unwrap() else {
            panic!("nobody has it")
        };
        let slot = Slot::take(target.region()).unwrap().expect("no other copy is made");
        // Interrupted at once, in the middle, or at its end; or not.
        let (cancel, ends_at) = (AtomicBool::new(false), self.random.below(6));
        let pace = (ends_at == 1).then(|| Pace::new(12 << 20));
        let calls = AtomicU64::new(0);
        let mut progress = |_, _| {
            if ends_at < 3 && calls.fetch_add(1, Ordering::Relaxed) >= ends_at {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let watch = Watch { pace: pace.as_ref(), ..Watch::new(&cancel, &mut progress) };
        let find = |_: &copy::Request| Ok(self.world.reader(REGIONS[asked.source.region]));
        let done = carry_out(&held, &slot, &target, find, None, watch);
        drop((held, slot, target));
        if is_disabled {
            kms::set_key_enabled(&self.world.region(region), asked.key, true).unwrap();
        }
        let is_there =
            self.model.snaps.iter().any(|s| (s.region, s.id) == (asked.source.region, asked.source.id));
        match done {
            Ok(id) => {
                assert!(is_there && !is_disabled && id == asked.id);
                self.model.pending.swap_remove(pending);
                self.is_made(&asked, is_begun);
            }
            Err(CopyError::Interrupted) => self.counts.interrupted += 1,
            Err(error) if error.is_kept() => {
                assert!(is_disabled, "{error}");
                self.counts.kept += 1;
            }
            Err(error) => {
                assert!(!is_there, "{error}");
                self.model.pending.swap_remove(pending);
                let found = self.find(asked.region, asked.id);
                assert!(found.is_none(), "{found:?}");
                self.counts.failed += 1;
            }
        }
    }

    fn find(&self, region: usize, id: SnapshotId) -> Option<terrane::catalog::Snapshot> {
        let region = self.world.region(REGIONS[region]);
        region.catalog().unwrap().read(|tx| tx.find_snapshot(id)).unwrap()
    }

    /// The copy is its source, and shipped what changed since the nearest moment that both sides had.
    fn is_made(&mut self, asked: &Pending, was_begun: bool) {
        let row = self.find(asked.region, asked.id).unwrap();
        assert_eq!(row.state, SnapshotState::Success);
        let Snap { bytes, line, .. } = asked.source.clone();
        self.world.equal(REGIONS[asked.region], asked.id, &bytes);
        self.is_proven(asked);
        self.counts.copies += 1;
        let base = self.base_of(asked);
        self.counts.on_base += u64::from(base.is_some());
        let same_key = |s: &&Snap| s.region == asked.region && s.key == asked.key;
        let of_moment = |moment: u64| {
            let mut there = self.model.snaps.iter().filter(same_key);
            there.find(|s| s.line.last().is_some_and(|(m, _)| *m == moment)).map(|s| s.bytes.clone())
        };
        let nearest = line.iter().rposition(|(moment, _)| of_moment(*moment).is_some());
        if let Some(nearest) = nearest.filter(|_| !was_begun) {
            let contents = base.expect("the target has one under its key");
            // What was written may have been what was there: then two moments are one.
            assert!(
                contents.contains(&of_moment(line[nearest].0).unwrap()),
                "not moment {}",
                line[nearest].0
            );
            // X2: whether a layer of the source ends at that moment, or folds and copies have made one of several.
            let later = line[nearest + 1..].iter().flat_map(|(_, changed)| changed.iter().copied());
            let changed = later.collect::<HashSet<usize>>().len() as u64 * SECTOR_LEN as u64;
            let bound = changed + changed / 20 + (64 << 10);
            assert!(row.shipped_bytes <= bound, "{} shipped, {changed} changed", row.shipped_bytes);
            self.counts.exact += 1;
            let is_within = !self.moments_of_layers(&asked.source).contains(&self.point_of_base(asked));
            self.counts.within += u64::from(is_within);
        }
        self.model.snaps.push(Snap { region: asked.region, id: asked.id, bytes, line, key: asked.key });
    }

    /// X3: the proofs of both sides are equal, and the copy's is what reading all of it gives.
    fn is_proven(&self, asked: &Pending) {
        let open = |region: usize, id| Side::open(&self.world.reader(REGIONS[region]), id).unwrap();
        let sides = (open(asked.source.region, asked.source.id), open(asked.region, asked.id));
        let cancel = AtomicBool::new(false);
        let mut watch = VerifyWatch { cancel: &cancel, pace: None, progress: &mut |_| {} };
        // A copy that rests on a bookmark leaves none with its source.
        if matches!(compare_proofs(&sides.0, &sides.1), Err(CopyError::Refused { .. })) {
            let measured = sides.0.measure(&sides.0, None, &mut watch).unwrap();
            assert!(matches!(measured.own_proof, OwnProof::Made));
        }
        assert!(compare_proofs(&sides.0, &sides.1).unwrap().differing.is_nothing());
        let measured = sides.1.measure(&sides.1, None, &mut watch).unwrap();
        assert!(matches!(measured.own_proof, OwnProof::Equal));
    }

    fn layers(&self, region: usize, id: SnapshotId) -> Vec<terrane::catalog::Layer> {
        let region = self.world.region(REGIONS[region]);
        let chain = region.catalog().unwrap().read(|tx| tx.layer_chain(tx.layer_of_snapshot(id)?));
        chain.unwrap()
    }

    fn moments_of_layers(&self, source: &Snap) -> Vec<Option<Point>> {
        self.layers(source.region, source.id).iter().map(|layer| layer.point).collect()
    }

    fn point_of_base(&self, asked: &Pending) -> Option<Point> {
        self.layers(asked.region, asked.id).get(1).and_then(|layer| layer.point)
    }

    /// What is in the layer that a copy was put on.
    fn base_of(&self, asked: &Pending) -> Option<Vec<Content>> {
        let base = self.layers(asked.region, asked.id).into_iter().nth(1)?;
        let region = self.world.region(REGIONS[asked.region]);
        let named = region.catalog().unwrap().read(|tx| tx.snapshots_of_layer(base.id)).unwrap();
        let of = self.model.snaps.iter().filter(|s| named.iter().any(|n| n.id == s.id));
        Some(of.map(|s| s.bytes.clone()).collect())
    }

    fn call_off(&mut self, pending: usize) {
        let asked = self.model.pending.swap_remove(pending);
        let (region, task) = (REGIONS[asked.region], asked.task.to_string());
        self.world.ok(&["task", "cancel", &task, "--region", region]);
        assert!(self.find(asked.region, asked.id).is_none());
    }

    fn back_up(&mut self, region: usize, step: u32) {
        let (from, to) = (self.world.path(REGIONS[region]), self.world.path(&format!("backup-{region}")));
        let _ = std::fs::remove_dir_all(&to);
        copy_files(&from, &to);
        self.backups[region] = Some((step, self.model.clone()));
    }

    fn put_back(&mut self, region: usize, step: u32) {
        let Some((_, then)) = self.backups[region].take_if(|(at, _)| *at + 5 < step) else { return };
        let (to, from) = (self.world.path(REGIONS[region]), self.world.path(&format!("backup-{region}")));
        std::fs::remove_dir_all(&to).unwrap();
        std::fs::rename(&from, &to).unwrap();
        terrane::region::accept_older(&to, &self.world.config).unwrap();
        let now = std::mem::take(&mut self.model);
        let other = |r: usize| r != region;
        self.model.snaps = now.snaps.into_iter().filter(|s| other(s.region)).collect();
        self.model.vols = now.vols.into_iter().filter(|v| other(v.region)).collect();
        self.model.pending = now.pending.into_iter().filter(|p| other(p.region)).collect();
        self.model.snaps.extend(then.snaps.into_iter().filter(|s| !other(s.region)));
        self.model.vols.extend(then.vols.into_iter().filter(|v| !other(v.region)));
        self.model.pending.extend(then.pending.into_iter().filter(|p| !other(p.region)));
        if self.model.vols.is_empty() {
            self.make_volume(0, None);
        }
        self.counts.put_back += 1;
    }

    /// Everything reads as the model says, and nothing is damaged or left.
    fn check_all(&self) {
        for snap in &self.model.snaps {
            self.world.equal(REGIONS[snap.region], snap.id, &snap.bytes);
        }
        for (number, region) in REGIONS.iter().enumerate() {
            let host = self.world.owner(region);
            for vol in self.model.vols.iter().filter(|vol| vol.region == number) {
                let mut found = vec![0xaa; DISK];
                host.open_volume(vol.id, false).unwrap().disk.read(0, &mut found).unwrap();
                assert!(found == vol.bytes, "volume {} of {region} is not as it was", vol.id);
            }
            host.close().unwrap();
            drop(host);
            let cancel = AtomicBool::new(false);
            let mut watch = CheckWatch { cancel: &cancel, max_rate: None, progress: &mut |_, _| {} };
            let report = check_region(&self.world.reader(region), &mut watch).unwrap();
            assert!(report.findings.listed.is_empty(), "{region}: {:?}", report.findings);
            let opened = self.world.region(region);
            let listed = opened.catalog().unwrap().read(|tx| {
                let rows = tx.snapshots()?;
                let open = tx.tasks()?.into_iter().filter(|task| task.is_open()).count();
                assert!(tx.tasks()?.iter().all(|task| task.state != TaskState::Running));
                Ok::<_, CatalogError>((rows.len(), open))
            });
            let of = |n: usize, m: usize| n + m;
            let snaps = self.model.snaps.iter().filter(|s| s.region == number).count();
            let pending = self.model.pending.iter().filter(|p| p.region == number).count();
            assert_eq!(
                listed.unwrap(),
                (of(snaps, pending), pending),
                "snapshots and open tasks of {region}"
            );
        }
    }
}

#[test]
fn three_regions_and_their_copies_are_as_the_model_says() {
    let (seeds, told) = copy_support::common::seeds(2);
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seeds.start);
    let mut total = Counts::default();
    for seed in first..first + (seeds.end - seeds.start) {
        println!("SEED={seed}");
        let mut sim = Sim::new(seed);
        for step in 0..STEPS {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                sim.step(step);
                if step % 25 == 24 {
                    sim.check_all();
                }
            }));
            assert!(done.is_ok(), "SEED={seed}, step {step}");
        }
        let Counts { copies, on_base, exact, within, interrupted, put_back, failed, kept } = sim.counts;
        println!(
            "{copies} copies, {on_base} on a base ({exact} of known bytes, {within} within a layer of the source), {interrupted} interrupted, {put_back} regions put back, {failed} failed, {kept} kept"
        );
        total.copies += copies;
        total.on_base += on_base;
        total.exact += exact;
        total.within += within;
        total.interrupted += interrupted;
        total.put_back += put_back;
    }
    assert!(total.copies > 0 && total.exact > 0, "nothing was copied");
    // A seed of a long run may lack what is rare.
    let is_varied = total.copies > 15 && total.exact > 3 && total.within > 1;
    assert!(told || is_varied && total.interrupted > 3 && total.put_back >= 1, "too little was tried");
}
