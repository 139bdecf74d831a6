//! Scripts of what a person and the programs on his disks do to two regions, run by the real code on a simulated disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use terrane::catalog::{CatalogError, DiskKind};
use terrane::ids::SnapshotId;
use terrane::volume::{Host, OpenVolume, Order, VolumeSpec, create_volume};

use super::common::Random;
use super::history::{History, SnapshotHistory, VolumeHistory};
use super::world::{BYTES, Content, Failure, OTHER_KEY, REGIONS, SIZES, World, name, order_of_snapshots};
use super::{FsDisk, FsMount, FsState};

/// Volumes there may be at once.
const VOLUMES_MAX: usize = 3;
/// Snapshots and copies of a region there may be at once.
const SNAPSHOTS_MAX: usize = 7;

/// One step. Numbers called `of` pick among what is there, so that a script without some of its steps is one too.
#[derive(Clone, Debug)]
pub enum Step {
    Write {
        of: u64,
        at: usize,
        len: usize,
        fill: u64,
    },
    Discard {
        of: u64,
        at: usize,
        len: usize,
    },
    Flush {
        of: u64,
    },
    /// Both checkpoints and punches are what a volume's keeper does.
    Checkpoint {
        of: u64,
    },
    Punch {
        of: u64,
    },
    Snapshot {
        of: u64,
    },
    /// Of all volumes, at one moment.
    Group,
    Rollback {
        of: u64,
    },
    Resize {
        of: u64,
    },
    DeleteSnapshot {
        of: u64,
        region: usize,
    },
    DeleteVolume {
        of: u64,
    },
    Create,
    /// From a snapshot.
    CreateFrom {
        of: u64,
    },
    Copy {
        of: u64,
        from: usize,
        to: usize,
    },
    /// What can be folded, up to so many chunks.
    Fold {
        region: usize,
        chunks: u64,
    },
    Reopen {
        clean: bool,
    },
}

/// A write of whole sectors to the first volume.
pub const fn write(first: usize, sectors: usize) -> Step {
    Step::Write { of: 0, at: first * 4096, len: sectors * 4096, fill: (first + 1) as u64 }
}

/// All of it.
pub const ALL: Step = write(0, BYTES / 4096);
pub const SNAPSHOT: Step = Step::Snapshot { of: 0 };

impl Step {
    pub fn random(r: &mut Random) -> Self {
        let of = r.next() >> 40;
        let region = r.below(2) as usize;
        match r.below(100) {
            0..22 => {
                let (first, count) = sectors(r, 6);
                Self::Write { of, at: first, len: count, fill: r.next() }
            }
            22..30 => {
                let len = 1 + r.below(9000) as usize;
                Self::Write { of, at: r.below((BYTES - len) as u64) as usize, len, fill: r.next() }
            }
            30..36 => {
                let (at, len) = sectors(r, 10);
                Self::Discard { of, at, len }
            }
            36..45 => Self::Flush { of },
            45..47 => Self::Checkpoint { of },
            47..49 => Self::Punch { of },
            49..58 => Self::Snapshot { of },
            58..63 => Self::Group,
            63..67 => Self::Rollback { of },
            67..70 => Self::Resize { of },
            70..78 => Self::DeleteSnapshot { of, region: usize::from(r.one_in(4)) },
            78..80 => Self::DeleteVolume { of },
            80..82 => Self::Create,
            82..84 => Self::CreateFrom { of },
            84..89 => Self::Copy { of, from: usize::from(r.one_in(4)), to: region },
            89..94 => Self::Fold { region: usize::from(r.one_in(4)), chunks: 1 + r.below(8) },
            94..97 => Self::Reopen { clean: true },
            _ => Self::Reopen { clean: false },
        }
    }

    /// A script of so many steps, which begins with a volume; every third is of a fold that stops and goes on.
    pub fn script(seed: u64, steps: usize) -> Vec<Self> {
        let mut random = Random::new(seed);
        if seed.is_multiple_of(3) {
            return Self::fold_script(&mut random);
        }
        let mut script = vec![Self::Create];
        script.extend((1..steps).map(|_| Self::random(&mut random)));
        script
    }
}

impl Step {
    fn fold_script(r: &mut Random) -> Vec<Self> {
        let mut write = |most| {
            let (at, len) = sectors(r, most);
            Self::Write { of: 0, at, len, fill: r.next() }
        };
        let all = Self::Write { of: 0, at: 0, len: BYTES, fill: 1 };
        let fold = |chunks| Self::Fold { region: 0, chunks };
        let [first, second, third] = std::array::from_fn(|_| write(6));
        let gone = Self::DeleteSnapshot { of: 0, region: 0 };
        let (snapshot, flush) = (Self::Snapshot { of: 0 }, Self::Flush { of: 0 });
        let mut script = vec![Self::Create, all, snapshot.clone(), first, flush];
        if r.one_in(2) {
            // Two sealed layers, else one and the active one.
            script.extend([snapshot, third]);
        }
        script.extend([gone, fold(1), second, fold(1), Self::Reopen { clean: false }, fold(9)]);
        script
    }
}

fn sectors(r: &mut Random, most: u64) -> (usize, usize) {
    let count = 1 + r.below(most);
    let first = r.below(BYTES as u64 / 4096 - count + 1);
    (first as usize * 4096, count as usize * 4096)
}

fn pick<T: Copy>(of: u64, among: &[T]) -> Option<T> {
    (!among.is_empty()).then(|| among[of as usize % among.len()])
}

/// A script under way.
pub struct Script<'m> {
    pub disk: FsDisk<'m>,
    pub world: World,
    pub history: History,
    host: Option<Arc<Host>>,
    /// Volumes that process has open.
    opened: BTreeSet<usize>,
    names: usize,
    /// Bytes that a fold moves between two flushes; none: more than these disks have.
    pub fold_step: Option<u64>,
}

impl<'m> Script<'m> {
    /// On a disk of this state, on which nothing was done yet.
    pub fn new(mount: &'m FsMount, state: &FsState) -> Self {
        let disk = mount.disk(state);
        let world = World::of(&disk);
        disk.start_trace();
        Self {
            disk,
            world,
            history: History::default(),
            host: None,
            opened: BTreeSet::new(),
            names: 0,
            fold_step: None,
        }
    }

    fn at(&self) -> usize {
        self.disk.traced()
    }

    fn new_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// The process that has the volumes open.
    fn host(&mut self) -> Result<Arc<Host>, Failure> {
        if self.host.is_none() {
            self.host = Some(self.world.owner(REGIONS[0])?);
        }
        Ok(self.host.clone().expect("made above"))
    }

    /// Lets go of everything; in order, or as if killed.
    pub fn close(&mut self, clean: bool) -> Result<(), Failure> {
        let Some(host) = self.host.take() else { return Ok(()) };
        let opened = std::mem::take(&mut self.opened);
        if !clean {
            return Ok(());
        }
        host.close()?;
        let answered = self.at();
        opened.into_iter().for_each(|v| self.history.volumes[v].flushed(answered));
        Ok(())
    }

    /// Does a step; what it needs not being there, it is none.
    pub fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match *step {
            Step::Write { of, at, len, fill } => self.write(of, at..at + len, Some(fill)),
            Step::Discard { of, at, len } => self.write(of, at..at + len, None),
            Step::Flush { of } => self.flush(of),
            Step::Checkpoint { of } => self.with_volume(of, |open| Ok(open.disk.active().checkpoint()?)),
            Step::Punch { of } => self.with_volume(of, |open| {
                open.disk.active().punch_free();
                Ok(())
            }),
            Step::Snapshot { of } => match pick(of, &self.history.volumes_now()) {
                Some(volume) => self.snapshot(&[volume]),
                None => Ok(()),
            },
            Step::Group => self.snapshot(&self.history.volumes_now()),
            Step::Rollback { of } => self.roll_back(of),
            Step::Resize { of } => self.resize(of),
            Step::DeleteSnapshot { of, region } => self.delete_snapshot(of, REGIONS[region]),
            Step::DeleteVolume { of } => self.delete_volume(of),
            Step::Create => self.create(None),
            Step::CreateFrom { of } => match pick(of, &self.history.present(REGIONS[0])) {
                Some(snapshot) => self.create(Some(snapshot)),
                None => Ok(()),
            },
            Step::Copy { of, from, to } => self.copy(of, REGIONS[from], REGIONS[to]),
            Step::Fold { region, chunks } => {
                let step = self.fold_step;
                self.with_owner(REGIONS[region], |host| {
                    step.into_iter().for_each(|bytes| host.set_fold_step(bytes));
                    let mut left = chunks;
                    let mut goes_on = |_| {
                        left -= 1;
                        left > 0
                    };
                    Ok(host.fold(false, &mut goes_on)?)
                })
            }
            Step::Reopen { clean } => self.close(clean),
        }
    }

    fn open(&mut self, volume: usize) -> Result<Arc<OpenVolume>, Failure> {
        let host = self.host()?;
        let name = self.history.volumes[volume].name.clone();
        let id = host.region().catalog()?.read(|tx| tx.resolve_volume(&name))?.id;
        let open = host.open_volume(id, false)?;
        self.opened.insert(volume);
        Ok(open)
    }

    fn with_volume(
        &mut self,
        of: u64,
        f: impl FnOnce(&OpenVolume) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match pick(of, &self.history.volumes_now()) {
            Some(volume) => f(&*self.open(volume)?),
            None => Ok(()),
        }
    }

    fn with_owner(
        &mut self,
        region: &str,
        f: impl FnOnce(&Arc<Host>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match region == REGIONS[0] {
            true => f(&self.host()?),
            false => {
                let host = self.world.owner(region)?;
                f(&host)?;
                Ok(host.close()?)
            }
        }
    }

    /// Writes, or (without `fill`) discards. Each request is a change of its own.
    fn write(&mut self, of: u64, range: std::ops::Range<usize>, fill: Option<u64>) -> Result<(), Failure> {
        let Some(volume) = pick(of, &self.history.volumes_now()) else { return Ok(()) };
        let open = self.open(volume)?;
        let mut content = (**self.history.volumes[volume].now().expect("it is there now")).clone();
        for (place, part) in content.parts(range) {
            let began = self.at();
            let bytes = &mut content.bytes[part.clone()];
            match fill {
                Some(seed) => {
                    Random::new(seed).fill(bytes);
                    if seed % 7 == 0 {
                        let half = bytes.len() / 2;
                        bytes[..half].fill(0);
                    }
                }
                None => bytes.fill(0),
            }
            self.history.volumes[volume].change(began, Some(content.clone()));
            match fill {
                Some(_) => open.disk.write(place, &content.bytes[part])?,
                None => open.disk.discard(place, part.len() as u64)?,
            }
        }
        Ok(())
    }

    fn flush(&mut self, of: u64) -> Result<(), Failure> {
        let Some(volume) = pick(of, &self.history.volumes_now()) else { return Ok(()) };
        self.open(volume)?.disk.flush()?;
        let answered = self.at();
        self.history.volumes[volume].flushed(answered);
        Ok(())
    }

    fn snapshot(&mut self, volumes: &[usize]) -> Result<(), Failure> {
        if volumes.is_empty() || self.history.present(REGIONS[0]).len() + volumes.len() > SNAPSHOTS_MAX {
            return Ok(());
        }
        let host = self.host()?;
        let began = self.at();
        let first = self.history.snapshots.len();
        let mut wanted = Vec::new();
        for volume in volumes {
            let open = self.open(*volume)?;
            let name = self.new_name("snap");
            wanted.push((open.disk.id(), SnapshotId::random(), name.clone()));
            self.history.snapshots.push(SnapshotHistory {
                name,
                region: REGIONS[0],
                volume: Some(*volume),
                content: self.history.volumes[*volume].now().expect("it is there now").clone(),
                group: first,
                began,
                answered: None,
                going: None,
                gone: None,
            });
        }
        host.execute(&order_of_snapshots(&host, &wanted)?, false)?;
        let answered = self.at();
        self.history.snapshots[first..].iter_mut().for_each(|s| s.answered = Some(answered));
        volumes.iter().for_each(|v| self.history.volumes[*v].flushed(answered));
        Ok(())
    }

    fn roll_back(&mut self, of: u64) -> Result<(), Failure> {
        let now = self.history.volumes_now();
        let own = self
            .history
            .present(REGIONS[0])
            .into_iter()
            .filter(|i| self.history.snapshots[*i].volume.is_some_and(|volume| now.contains(&volume)));
        let Some(snapshot) = pick(of, &own.collect::<Vec<_>>()) else { return Ok(()) };
        let SnapshotHistory { name, volume, content, .. } = &self.history.snapshots[snapshot];
        let (name, volume, mut content) = (name.clone(), volume.expect("asked above"), (**content).clone());
        let host = self.host()?;
        let id = self.open(volume)?.disk.id();
        let snapshot = host.region().catalog()?.read(|tx| tx.resolve_snapshot(&name))?.id;
        let was = self.history.volumes[volume].now().expect("it is there now").size_bytes;
        content.size_bytes = content.size_bytes.max(was);
        let order = Order::Rollback { volume: id.to_string(), snapshot: snapshot.to_string() };
        self.change_durably(volume, Some(content), || Ok(host.execute(&order, false)?))
    }

    /// A change that is durable once it is answered.
    fn change_durably(
        &mut self,
        volume: usize,
        content: Option<Content>,
        change: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let began = self.at();
        self.history.volumes[volume].change(began, content);
        change()?;
        let answered = self.at();
        self.history.volumes[volume].flushed(answered);
        Ok(())
    }

    fn resize(&mut self, of: u64) -> Result<(), Failure> {
        let Some(volume) = pick(of, &self.history.volumes_now()) else { return Ok(()) };
        let mut content = (**self.history.volumes[volume].now().expect("it is there now")).clone();
        let Some(larger) = SIZES.into_iter().find(|size| *size > content.size_bytes) else { return Ok(()) };
        content.size_bytes = larger;
        let id = self.open(volume)?.disk.id();
        let host = self.host()?;
        let order = Order::Resize { volume: id.to_string(), size_bytes: larger };
        self.change_durably(volume, Some(content), || Ok(host.execute(&order, false)?))
    }

    fn delete_snapshot(&mut self, of: u64, region: &'static str) -> Result<(), Failure> {
        let Some(number) = pick(of, &self.history.present(region)) else { return Ok(()) };
        let name = self.history.snapshots[number].name.clone();
        let began = self.at();
        self.history.snapshots[number].going = Some(began);
        self.with_owner(region, |host| {
            let id = host.region().catalog()?.read(|tx| tx.resolve_snapshot(&name))?.id;
            Ok(host.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false)?)
        })?;
        self.history.snapshots[number].gone = Some(self.at());
        Ok(())
    }

    fn delete_volume(&mut self, of: u64) -> Result<(), Failure> {
        let now = self.history.volumes_now();
        let Some(volume) = pick(of, &now).filter(|_| now.len() > 1) else { return Ok(()) };
        let id = self.open(volume)?.disk.id();
        let host = self.host()?;
        let order = Order::DeleteVolume { volume: id.to_string() };
        self.change_durably(volume, None, || Ok(host.execute(&order, false)?))
    }

    fn create(&mut self, from: Option<usize>) -> Result<(), Failure> {
        if self.history.volumes_now().len() >= VOLUMES_MAX {
            return Ok(());
        }
        let called = self.new_name("vol");
        let host = self.host()?;
        let region = host.region();
        let account = region.catalog()?.read(|tx| tx.default_account())?.id;
        let (content, snapshot, key) = match from {
            None => {
                let key = region.catalog()?.read(|tx| tx.default_key())?.id;
                (Content::empty(SIZES[0]), None, Some(key))
            }
            Some(number) => {
                let known = &self.history.snapshots[number];
                let row = region.catalog()?.read(|tx| tx.resolve_snapshot(&known.name))?;
                ((*known.content).clone(), Some(row.id), row.key)
            }
        };
        self.history.volumes.push(VolumeHistory::new(called.clone()));
        let volume = self.history.volumes.len() - 1;
        let spec = VolumeSpec {
            account,
            name: Some(name(&called)),
            size_bytes: content.size_bytes,
            kind: DiskKind::Data,
            snapshot,
            key,
        };
        self.change_durably(volume, Some(content), || Ok(create_volume(region, &spec).map(drop)?))
    }

    fn copy(&mut self, of: u64, from: &'static str, to: &'static str) -> Result<(), Failure> {
        let Some(number) = pick(of, &self.history.present(from)) else { return Ok(()) };
        if self.history.present(to).len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        let known = &self.history.snapshots[number];
        let (source, content) = (known.name.clone(), known.content.clone());
        let (row, other) =
            self.world.region(from)?.catalog()?.read(|tx| {
                Ok::<_, CatalogError>((tx.resolve_snapshot(&source)?, tx.resolve_key(OTHER_KEY)?))
            })?;
        if from == to && row.key == Some(other.id) {
            // Refused: a copy within a region is for another key.
            return Ok(());
        }
        let id = row.id;
        // Its seal is finished by who owns the layers; a copy waits for that.
        self.with_owner(from, |host| Ok(host.open_snapshot(id).map(drop)?))?;
        self.close(true)?;
        let called = self.new_name("copy");
        let (group, began) = (self.history.snapshots.len(), self.at());
        self.history.snapshots.push(SnapshotHistory {
            name: called.clone(),
            region: to,
            volume: None,
            content,
            group,
            began,
            answered: None,
            going: None,
            gone: None,
        });
        self.world.copy(from, id, to, &called)?;
        self.history.snapshots[group].answered = Some(self.at());
        Ok(())
    }
}
