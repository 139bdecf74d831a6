//! What a script has done to the volumes and snapshots of two regions, with where in the trace it began and was answered; and
//! what a disk may hold that was cut at any place.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use terrane::catalog::SnapshotState;
use terrane::volume::Host;

use super::world::Content;

/// A volume after each change of it.
pub struct VolumeHistory {
    pub name: String,
    /// (began, content); without content there is no volume.
    states: Vec<(usize, Option<Arc<Content>>)>,
    /// (answered, the newest state that is durable from then on).
    durable: Vec<(usize, usize)>,
}

impl VolumeHistory {
    pub fn new(name: String) -> Self {
        Self { name, states: vec![(0, None)], durable: vec![(0, 0)] }
    }

    pub fn now(&self) -> Option<&Arc<Content>> {
        self.states.last().and_then(|state| state.1.as_ref())
    }

    /// A change begins. It may be found from here on, whether it is answered or fails.
    pub fn change(&mut self, began: usize, content: Option<Content>) {
        self.states.push((began, content.map(Arc::new)));
    }

    /// All changes so far are durable.
    pub fn flushed(&mut self, answered: usize) {
        self.durable.push((answered, self.states.len() - 1));
    }

    /// The states a disk may hold that was cut after `n` operations.
    fn allowed(&self, n: usize) -> RangeInclusive<usize> {
        let least = self.durable.iter().filter(|d| d.0 <= n).map(|d| d.1).max().unwrap_or(0);
        let most = self.states.iter().rposition(|s| s.0 < n).unwrap_or(0);
        least..=most.max(least)
    }

    fn find(&self, n: usize, found: Option<&Content>) -> usize {
        let allowed = self.allowed(n);
        let is_it = |i: &usize| self.states[*i].1.as_deref() == found;
        allowed.clone().find(is_it).unwrap_or_else(|| {
            let others: Vec<_> = (0..self.states.len()).filter(is_it).collect();
            let states = &self.states[allowed.clone()];
            panic!(
                "volume {} is none of its states {allowed:?}, but {others:?}: {found:?} is not in {states:?}",
                self.name
            )
        })
    }
}

/// A snapshot or copy.
pub struct SnapshotHistory {
    pub name: String,
    pub region: &'static str,
    /// The volume it was taken of, by number; a copy is of none.
    pub volume: Option<usize>,
    pub content: Arc<Content>,
    /// Those of one group come and go together.
    pub group: usize,
    pub began: usize,
    pub answered: Option<usize>,
    pub going: Option<usize>,
    pub gone: Option<usize>,
}

#[derive(Default)]
pub struct History {
    pub volumes: Vec<VolumeHistory>,
    pub snapshots: Vec<SnapshotHistory>,
}

/// What was found of each volume of the history.
pub type Found = Vec<usize>;

impl History {
    /// Snapshots that are there now, by number.
    pub fn present(&self, region: &str) -> Vec<usize> {
        let is_there = |i: &usize| self.snapshots[*i].region == region && self.snapshots[*i].going.is_none();
        (0..self.snapshots.len()).filter(is_there).collect()
    }

    /// Volumes that are there now, by number.
    pub fn volumes_now(&self) -> Vec<usize> {
        (0..self.volumes.len()).filter(|i| self.volumes[*i].now().is_some()).collect()
    }

    pub fn state(&self, volume: usize, state: usize) -> Option<&Content> {
        self.volumes[volume].states[state].1.as_deref()
    }

    /// Every volume is one of its states that are allowed after a cut at `n`; opens them.
    pub fn check_volumes(&self, host: &Arc<Host>, n: usize) -> Found {
        let rows = host.region().catalog().unwrap().read(|tx| tx.volumes()).unwrap();
        let mut found = HashMap::new();
        for row in rows {
            let open = host.open_volume(row.id, false).expect("a volume opens after a cut");
            let content = Content::of_volume(&open.disk);
            // A resize cut before its commit is done by the opening.
            let row = host.region().catalog().unwrap().read(|tx| tx.volume(row.id)).unwrap();
            assert_eq!(row.size_bytes, content.size_bytes, "the size of volume {}", row.id);
            let name = row.name.expect("all have names").to_string();
            assert!(found.insert(name, content).is_none(), "two volumes have one name");
        }
        self.volumes.iter().map(|v| v.find(n, found.remove(&v.name).as_ref())).collect()
    }

    /// Every snapshot holds what it should; those answered are there, those gone are not, and of a group all are or none.
    pub fn check_snapshots(&self, host: &Arc<Host>, region: &str, n: usize) {
        let rows = host.region().catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
        let mut there = HashMap::new();
        for row in rows {
            assert_eq!(row.state, SnapshotState::Success, "snapshot {} is half there", row.name);
            let stack = host.open_snapshot(row.id).expect("a snapshot opens after a cut");
            there.insert(row.name.to_string(), Content::of(&stack));
        }
        let mut groups: HashMap<usize, Vec<bool>> = HashMap::new();
        for known in self.snapshots.iter().filter(|s| s.region == region) {
            let found = there.remove(&known.name);
            let was_gone = known.gone.is_some_and(|at| at <= n);
            let may_go = known.going.is_some_and(|at| at < n);
            let answered = known.answered.is_some_and(|at| at <= n);
            let name = &known.name;
            match &found {
                Some(_) if known.began >= n => panic!("snapshot {name} is there before it was taken"),
                Some(_) if was_gone => panic!("snapshot {name} was deleted and is there"),
                Some(content) => assert!(
                    *content == *known.content,
                    "snapshot {name} differs: {content:?} instead of {:?}",
                    known.content
                ),
                None => assert!(!answered || may_go, "the answered snapshot {name} is not there"),
            }
            if !may_go {
                groups.entry(known.group).or_default().push(found.is_some());
            }
        }
        assert!(there.is_empty(), "snapshots nobody took: {:?}", there.keys());
        let halves = groups.values().filter(|g| g.contains(&true) && g.contains(&false)).count();
        assert_eq!(halves, 0, "a group of snapshots is there in part");
    }
}

/// No slot has two owners, and each that none owns is known to be free. The layer was just recovered: none waits, and none
/// was zero-written ahead.
pub fn check_slots(layer: &terrane::layer::Layer) {
    layer.learn_free_slots().expect("each slot has one owner");
    let (backed, holes, high) = layer.slot_counts();
    assert_eq!(
        high - backed - holes,
        layer.data_sectors(),
        "slots of layer {} below {high} that are not free ({backed} backed, {holes} holes), and its sectors",
        layer.id()
    );
}
