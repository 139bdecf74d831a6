//! Guards against a moment of a mount's life at which its death loses what it has answered: kills at moments drawn at random, while
//! it opens, writes, flushes, discards, takes snapshots, and folds what was deleted.
//!
//! The gate takes a few; `TERRANE_KILLS=n` kills n times, `TERRANE_SEED=s` at other moments and amid other work.

#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::{FallocateFlags, fallocate};
use world::{Running, SECTOR, World, pattern, read_at, words, writable};

/// What the steps go through.
const SIZE: usize = 2 << 20;
/// Behind it, what another writer goes through, meanwhile.
const PLACES: u64 = 256;
const WHOLE: usize = SIZE + PLACES as usize * SECTOR;

/// A mount that takes longer to open hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
enum Step {
    Write { at: usize, len: usize, seed: u64 },
    Discard { at: usize, len: usize },
    Flush,
    Snapshot(String),
    Delete(String),
}

use Step::{Delete, Discard, Flush, Snapshot, Write};

/// What was answered.
struct State {
    disk: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    /// Of the other writer: the last count.
    count: u64,
}

impl State {
    fn apply(&mut self, step: &Step) {
        match step {
            Write { at, len, seed } => self.disk[*at..at + len].copy_from_slice(&pattern(*len, *seed)),
            Discard { at, len } => self.disk[*at..at + len].fill(0),
            Flush => {}
            Snapshot(name) => drop(self.snapshots.insert(name.clone(), self.disk.clone())),
            Delete(name) => drop(self.snapshots.remove(name)),
        }
    }
}

fn draw(rng: &mut StdRng, snapshots: &BTreeMap<String, Vec<u8>>, number: u64) -> Step {
    let len = match rng.random_range(0..3) {
        0 => SECTOR * rng.random_range(1..=4),
        1 => rng.random_range(1..SECTOR),
        _ => rng.random_range(1..64 << 10),
    };
    let at = rng.random_range(0..=SIZE - len);
    match rng.random_range(0..100) {
        0..75 => Write {
            at: if len.is_multiple_of(SECTOR) { at / SECTOR * SECTOR } else { at },
            len,
            seed: number,
        },
        75..85 => Discard { at, len },
        85..97 => Flush,
        _ if snapshots.len() < 3 => Snapshot(format!("s{number}")),
        _ => Delete(snapshots.keys().nth(rng.random_range(0..snapshots.len())).unwrap().clone()),
    }
}

/// Carries it out through the mount.
fn perform(world: &World, file: &File, step: &Step) -> io::Result<()> {
    let command = |args: &[&str]| {
        let output = world.run(args);
        if output.status.success() { Ok(()) } else { Err(io::Error::other(words(&output))) }
    };
    match step {
        Write { at, len, seed } => file.write_all_at(&pattern(*len, *seed), *at as u64),
        Discard { at, len } => {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(file, mode, *at as u64, *len as u64)?)
        }
        Flush => file.sync_data(),
        Snapshot(name) => command(&["snapshot", "create", "web", "--name", name]),
        Delete(name) => command(&["snapshot", "delete", name]),
    }
}

/// Count after count, each to the next place, until the mount is gone.
fn count_on(path: &Path, answered: &AtomicU64) -> io::Result<()> {
    let file = writable(path)?;
    for count in answered.load(Ordering::Relaxed) + 1.. {
        let at = SIZE as u64 + count % PLACES * SECTOR as u64;
        file.write_all_at(&count.to_le_bytes().repeat(SECTOR / 8), at)?;
        answered.store(count, Ordering::Release);
    }
    Ok(())
}

/// Each place holds the newest count that was answered for it, or the one that was under way; the newest of all.
fn newest_count(bytes: &[u8], answered: u64) -> u64 {
    let mut newest = answered;
    for (place, sector) in bytes.chunks_exact(SECTOR).enumerate() {
        let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks_exact(8).all(|word| word == &sector[..8]), "place {place} is torn");
        let behind = (answered + PLACES - place as u64) % PLACES;
        let expected = answered.saturating_sub(behind);
        let was_under_way = found == answered + 1 && found % PLACES == place as u64;
        assert!(found == expected || was_under_way, "place {place}: {found}, not {expected}, of {answered}");
        newest = newest.max(found);
    }
    newest
}

/// What a mount holds: the disk, and its snapshots.
type Held = (Vec<u8>, BTreeMap<String, Vec<u8>>);

fn found(world: &World) -> io::Result<Held> {
    let disk = read_at(&world.file("web"), 0, WHOLE)?;
    let mut snapshots = BTreeMap::new();
    for entry in fs::read_dir(world.path("mnt/by-name/snapshots"))? {
        let name = entry?.file_name().into_string().expect("a name");
        let whole = read_at(&world.snapshot_file(&name), 0, WHOLE)?;
        let (bytes, places) = whole.split_at(SIZE);
        // A moment of the other writer too: all up to some count.
        let counts = places.chunks_exact(SECTOR).map(|s| u64::from_le_bytes(s[..8].try_into().unwrap()));
        let newest = counts.max().unwrap();
        assert_eq!(newest_count(places, newest), newest);
        snapshots.insert(name, bytes.to_vec());
    }
    Ok((disk, snapshots))
}

/// The region after lives of mounts: what it must hold, and the step that was under way when the last one died.
struct Region {
    world: World,
    rng: StdRng,
    state: State,
    under_way: Option<Step>,
    steps: u64,
    /// Of these: discards, and snapshots taken.
    discards: u64,
    taken: u64,
}

/// How far a mount came.
#[derive(Clone, Copy, PartialEq)]
enum Came {
    Opening,
    Served,
}

impl Region {
    fn new(seed: u64) -> Self {
        let mut world = World::new();
        world.expect_disorder();
        world.volume("web", &WHOLE.to_string());
        let state = State { disk: vec![0; SIZE], snapshots: BTreeMap::new(), count: 0 };
        Self {
            world,
            rng: StdRng::seed_from_u64(seed),
            state,
            under_way: None,
            steps: 0,
            discards: 0,
            taken: 0,
        }
    }

    /// Holds what was answered; what was under way is there as a whole, or not at all.
    fn check(&mut self, (whole, snapshots): Held) {
        let (disk, places) = whole.split_at(SIZE);
        self.state.count = newest_count(places, self.state.count);
        let holds = |state: &State| disk == state.disk && snapshots == state.snapshots;
        if !holds(&self.state)
            && let Some(step) = self.under_way.take()
        {
            self.state.apply(&step);
            let names: Vec<_> = snapshots.keys().collect();
            let (same, expected) = (disk == self.state.disk, self.state.snapshots.keys());
            assert!(
                holds(&self.state),
                "with {step:?}: the disk is as it was answered: {same}; snapshots {names:?}, {expected:?} were"
            );
        }
        assert!(holds(&self.state), "what was answered is not there");
        self.under_way = None;
    }

    /// Steps, one after the other, until the mount is gone. An error before that is one.
    fn work(&mut self, file: &File, is_dying: &AtomicBool) {
        loop {
            self.steps += 1;
            let step = draw(&mut self.rng, &self.state.snapshots, self.steps);
            self.under_way = Some(step.clone());
            let done = perform(&self.world, file, &step);
            match done {
                Ok(()) => {
                    self.discards += u64::from(matches!(step, Discard { .. }));
                    self.taken += u64::from(matches!(step, Snapshot(_)));
                    self.state.apply(&step);
                }
                Err(e) => {
                    assert!(is_dying.load(Ordering::Acquire), "{step:?}: {e}, {}", self.world.log());
                    return;
                }
            }
            self.under_way = None;
        }
    }

    /// A mount that is killed so long after it was begun, or after it served; how far it came.
    fn life(&mut self, since: Came, after: Duration) -> Came {
        let log = File::create(self.world.path("mount.err")).unwrap();
        let mut command = self.world.command(&["mount", &self.world.mnt(), "--foreground", "--threads", "2"]);
        let mut server = Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let pid = rustix::process::Pid::from_child(&server.0);
        let (is_dying, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let path = self.world.file("web");
        let begun = Instant::now();
        let kill = || {
            std::thread::sleep(after);
            is_dying.store(true, Ordering::Release);
            // It may have ended by itself, which is told below.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        };
        let came = std::thread::scope(|scope| {
            if since == Came::Opening {
                scope.spawn(kill);
            }
            while !is_dying.load(Ordering::Acquire) && !path.exists() {
                let has_ended = server.0.try_wait().unwrap().is_some();
                assert!(!has_ended || is_dying.load(Ordering::Acquire), "it ended by itself: {}", self.log());
                assert!(begun.elapsed() < PATIENCE, "it does not serve: {}", self.log());
                std::thread::sleep(Duration::from_millis(1));
            }
            let opened = found(&self.world).and_then(|held| Ok((held, writable(&path)?)));
            let (held, file) = match opened {
                Ok(opened) => opened,
                Err(e) => {
                    assert!(is_dying.load(Ordering::Acquire), "opening: {e}, {}", self.log());
                    return Came::Opening;
                }
            };
            if since == Came::Served {
                scope.spawn(kill);
            }
            self.check(held);
            answered.store(self.state.count, Ordering::Release);
            let counting = scope.spawn(|| {
                let ended = count_on(&path, &answered);
                assert!(is_dying.load(Ordering::Acquire), "counting: {ended:?}");
            });
            self.work(&file, &is_dying);
            counting.join().unwrap();
            self.state.count = answered.load(Ordering::Acquire);
            Came::Served
        });
        let ended = server.0.wait().unwrap();
        assert_eq!(ended.code(), None, "it ended by itself: {ended}, {}", self.log());
        let _ = self.world.run(&["unmount", &self.world.mnt()]);
        came
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("mount.err")).unwrap_or_default()
    }

    /// All is there once more, nothing is damaged; how long a mount takes.
    fn rest(&mut self) -> Duration {
        self.world.ok(&["region", "check"]);
        let begun = Instant::now();
        self.world.mount();
        let taken = begun.elapsed();
        let held = found(&self.world).unwrap();
        self.check(held);
        self.world.unmount();
        taken
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let kills = number("TERRANE_KILLS").unwrap_or(12);
    let seed = number("TERRANE_SEED").unwrap_or(4);
    println!("seed {seed}");
    let mut region = Region::new(seed);
    let mut opening = region.rest();
    let mut served = 0;
    for kill in 1..=kills {
        let (since, openings) = match region.rng.random_range(0..4) {
            0 => (Came::Opening, region.rng.random_range(0.0..1.5)),
            _ => (Came::Served, region.rng.random_range(0.0..5.0)),
        };
        let came = region.life(since, opening.mul_f64(openings));
        served += u64::from(came == Came::Served);
        if kill % 100 == 0 {
            opening = region.rest();
            println!("{kill} kills, {served} while it served, {} steps, {opening:?}", region.steps);
        }
    }
    region.rest();
    println!("{kills} kills of a mount: {served} while it served, {} steps", region.steps);
    assert!(served > 0 && region.steps > served && region.state.count > 0, "nothing was done");
    assert!(kills < 100 || region.discards > 0 && region.taken > 0, "not all was done");
}
