//! Opens simulated disks as a cut or a fault left them, and checks all that is promised of them.

use std::cell::Cell;
use std::sync::Arc;

use terrane::volume::Host;

use super::common::Random;
use super::common::image::Cut;
use super::common::shrink::failure;
use super::history::{Found, History, check_slots};
use super::world::{Content, REGIONS, World};
use super::{FsDisk, FsMount, FsState};

/// One script's.
pub struct Sweep<'m> {
    mount: &'m FsMount,
    states: Cell<u64>,
    copies: Cell<u64>,
}

impl<'m> Sweep<'m> {
    pub fn new(mount: &'m FsMount) -> Self {
        Self { mount, states: Cell::new(0), copies: Cell::new(0) }
    }

    /// Disks opened so far.
    pub fn states(&self) -> u64 {
        self.states.get()
    }

    /// Copies that were cut and ended afterwards.
    pub fn copies(&self) -> u64 {
        self.copies.get()
    }

    /// Opens a disk as a cut left it, and checks everything.
    pub fn check(&self, left: &FsState, history: &History, n: usize, random: &mut Random) {
        let disk = self.disk(left);
        disk.start_trace();
        let found = self.recover(&disk, history, n);
        let recovery = disk.take_trace();
        // A second cut, in the first recovery or in what follows it.
        let (chosen, cut) = (random.below(recovery.len as u64 + 1) as usize, Cut::any(random));
        let second = self.disk(&recovery.after(chosen, cut, random.next()));
        if let Some(why) = failure(|| drop(self.recover(&second, history, n))) {
            panic!("and again after {chosen} of {} operations of recovery, {cut:?}: {why}", recovery.len);
        }
        drop(second);
        if random.one_in(3) {
            self.go_on(&disk, history, &found, random);
        }
    }

    pub fn disk(&self, state: &FsState) -> FsDisk<'_> {
        self.states.set(self.states.get() + 1);
        self.mount.disk(state)
    }

    /// As a mount begins and ends, with folds.
    pub fn recover(&self, disk: &FsDisk, history: &History, n: usize) -> Found {
        let world = World::of(disk);
        let mut found = Found::new();
        for region in REGIONS {
            // Before anybody owns the layers, or after a mount.
            let go_on = !n.is_multiple_of(3);
            self.copies
                .set(self.copies.get() + world.end_copies(region, go_on).expect("a cut copy ends") as u64);
        }
        for region in REGIONS {
            world.a_minute_later(region);
            let host = world.owner(region).expect("a region opens after a cut");
            let look = |host: &Arc<Host>| {
                history.check_snapshots(host, region, n);
                if region == REGIONS[0] { history.check_volumes(host, n) } else { Found::new() }
            };
            let first = look(&host);
            host.live().iter().for_each(|open| check_slots(&open.disk.active()));
            host.fold(false, &mut |_| true).expect("folds go on after a cut");
            assert_eq!(look(&host), first, "folds changed a volume");
            host.close().expect("a region is closed in order after a cut");
            drop(host);
            world.check(region);
            found.extend(first);
        }
        found
    }

    /// What was recovered takes writes, and keeps them once they are flushed.
    fn go_on(&self, disk: &FsDisk, history: &History, found: &Found, random: &mut Random) {
        let there = |(number, state): (usize, &usize)| {
            let content = history.state(number, *state)?;
            Some((history.volumes[number].name.clone(), content.clone()))
        };
        let mut volumes: Vec<_> = found.iter().enumerate().filter_map(there).collect();
        let world = World::of(disk);
        disk.start_trace();
        let host = world.owner(REGIONS[0]).unwrap();
        for (name, content) in &mut volumes {
            let id = host.region().catalog().unwrap().read(|tx| tx.resolve_volume(name)).unwrap().id;
            let open = host.open_volume(id, false).unwrap();
            assert!(Content::of_volume(&open.disk) == *content, "volume {name} changed when it was closed");
            for _ in 0..3 {
                let len = 1 + random.below(12_000) as usize;
                let at = random.below((content.bytes.len() - len) as u64) as usize;
                for (place, part) in content.parts(at..at + len) {
                    random.fill(&mut content.bytes[part.clone()]);
                    open.disk.write(place, &content.bytes[part]).unwrap();
                }
            }
            open.disk.flush().unwrap();
        }
        let trace = disk.take_trace();
        drop(host);
        let disk = self.disk(&trace.after(trace.len, Cut::any(random), random.next()));
        let world = World::of(&disk);
        let host = world.owner(REGIONS[0]).expect("a region opens after a second cut");
        for (name, content) in &volumes {
            let id = host.region().catalog().unwrap().read(|tx| tx.resolve_volume(name)).unwrap().id;
            let open = host.open_volume(id, false).unwrap();
            assert!(Content::of_volume(&open.disk) == *content, "flushed writes of {name} were lost");
        }
    }
}
