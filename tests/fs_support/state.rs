//! A file system as a disk holds it: folders and files, what a program sees and what is durable, and what a power cut may
//! leave of what no sync covered.
//!
//! Stricter than real ones: a file's sync makes its bytes and size durable and not its name; a folder's sync its names.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::common::Random;
use super::common::image::{Cut, Image, Op};

/// A file or folder, by a number that is never used again.
pub type Ino = u64;
/// The folder that holds everything.
pub const ROOT: Ino = 1;

type Names = BTreeMap<OsString, Ino>;

#[derive(Clone)]
pub struct Node {
    pub is_folder: bool,
    pub mode: u32,
    /// A file's bytes, and a folder's names, as a program sees them.
    pub image: Image,
    pub names: Names,
    durable_image: Image,
    durable_names: Names,
}

impl Node {
    fn new(is_folder: bool, mode: u32) -> Arc<Self> {
        let [image, durable_image] = [Image::default(), Image::default()];
        let [names, durable_names] = [Names::new(), Names::new()];
        Arc::new(Self { is_folder, mode, image, names, durable_image, durable_names })
    }
}

/// What waits for a sync.
#[derive(Debug)]
pub enum Change {
    Bytes(Ino, Op),
    /// A name in a folder, of this file or of none any more.
    Name(Ino, OsString, Option<Ino>),
    /// A name that goes and one that comes, at once.
    Move([(Ino, OsString); 2], Ino),
}

impl Change {
    fn waits_for(&self, synced: Ino) -> bool {
        match self {
            Self::Bytes(ino, _) | Self::Name(ino, ..) => *ino == synced,
            Self::Move(names, _) => names.iter().any(|(folder, _)| *folder == synced),
        }
    }

    /// The names it sets.
    fn names(&self) -> Vec<(Ino, &OsStr, Option<Ino>)> {
        match self {
            Self::Bytes(..) => Vec::new(),
            Self::Name(folder, name, ino) => vec![(*folder, name, *ino)],
            Self::Move([from, to], ino) => vec![(from.0, &from.1, None), (to.0, &to.1, Some(*ino))],
        }
    }
}

/// Something a program did.
#[derive(Clone, Debug)]
pub enum Event {
    /// A file or folder that has no name yet.
    Make(Ino, bool, u32),
    Mode(Ino, u32),
    Change(Arc<Change>),
    Sync(Ino),
}

/// All files and folders. Copies share what they have in common.
#[derive(Clone)]
pub struct FsState {
    nodes: HashMap<Ino, Arc<Node>>,
    pending: Vec<Arc<Change>>,
    pub next: Ino,
}

fn set(names: &mut Names, name: &OsStr, to: Option<Ino>) {
    match to {
        Some(ino) => names.insert(name.to_owned(), ino),
        None => names.remove(name),
    };
}

impl FsState {
    /// An empty folder.
    pub fn new() -> Self {
        Self { nodes: HashMap::from([(ROOT, Node::new(true, 0o755))]), pending: Vec::new(), next: ROOT + 1 }
    }

    pub fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino).map(|node| &**node)
    }

    fn node_mut(&mut self, ino: Ino) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&ino).expect("what is changed was made"))
    }

    /// Changes waiting for a sync.
    pub fn unsynced(&self) -> usize {
        self.pending.len()
    }

    /// Does what was done.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Make(ino, is_folder, mode) => {
                self.nodes.insert(*ino, Node::new(*is_folder, *mode));
                self.next = self.next.max(ino + 1);
            }
            Event::Mode(ino, mode) => self.node_mut(*ino).mode = *mode,
            Event::Change(change) => {
                match &**change {
                    Change::Bytes(ino, op) => self.node_mut(*ino).image.apply(op),
                    names => names
                        .names()
                        .into_iter()
                        .for_each(|(folder, name, to)| set(&mut self.node_mut(folder).names, name, to)),
                }
                self.pending.push(change.clone());
            }
            Event::Sync(ino) => {
                let (done, left) = self.pending.drain(..).partition(|c| c.waits_for(*ino));
                self.pending = left;
                let done: Vec<Arc<Change>> = done;
                done.iter().for_each(|change| self.make_durable(change));
            }
        }
    }

    fn make_durable(&mut self, change: &Change) {
        if let Change::Bytes(ino, op) = change {
            self.node_mut(*ino).durable_image.apply(op);
        }
        for (folder, name, to) in change.names() {
            set(&mut self.node_mut(folder).durable_names, name, to);
        }
    }

    /// What a cut leaves.
    pub fn after(&self, cut: Cut, random: &mut Random) -> Self {
        let mut left = self.clone();
        left.pending.clear();
        let chosen = random.below(self.pending.len() as u64) as usize;
        // Prefixes are of each file's bytes, and of all names.
        let mut prefixes: HashMap<Option<Ino>, usize> = HashMap::new();
        let file_of = |change: &Change| if let Change::Bytes(ino, _) = change { Some(*ino) } else { None };
        self.pending.iter().for_each(|c| *prefixes.entry(file_of(c)).or_default() += 1);
        let mut files: Vec<_> = prefixes.keys().copied().collect();
        files.sort_unstable();
        for file in files {
            let count = prefixes.get_mut(&file).expect("one of its keys");
            *count = random.below(*count as u64 + 1) as usize;
        }
        for (i, change) in self.pending.iter().enumerate() {
            let room = prefixes.get_mut(&file_of(change)).expect("counted above");
            let in_prefix = *room > 0;
            *room = room.saturating_sub(1);
            match &**change {
                Change::Bytes(ino, op) => {
                    let image = &mut left.node_mut(*ino).durable_image;
                    cut.leave_neighbours(image, op, i == chosen, in_prefix, random);
                }
                names if cut.keeps(i == chosen, in_prefix, random) => left.make_durable(names),
                _ => {}
            }
        }
        left.nodes.values_mut().for_each(|node| {
            let node = Arc::make_mut(node);
            (node.image, node.names) = (node.durable_image.clone(), node.durable_names.clone());
        });
        left.forget_nameless();
        left
    }

    fn forget_nameless(&mut self) {
        let mut named = std::collections::HashSet::from([ROOT]);
        let mut rest = vec![ROOT];
        while let Some(ino) = rest.pop() {
            let names = &self.nodes[&ino].names;
            rest.extend(names.values().filter(|ino| named.insert(**ino)));
        }
        self.nodes.retain(|ino, _| named.contains(ino));
    }
}
