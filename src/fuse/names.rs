//! Inode numbers: which node the kernel means.
//!
//! The six folders have fixed numbers. A file or link gets its number by hashing its kind and name, so that `ls -i` and
//! `find` agree with `stat` and numbers survive a remount; a collision is moved on to the next free one. The table holds
//! only what the kernel still refers to: each lookup counts up, `forget` counts down, and nought removes.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use parking_lot::RwLock;

use super::Shelf;

/// The mount point itself.
pub(super) const ROOT: u64 = 1;
const VOLUMES: u64 = 2;
const SNAPSHOTS: u64 = 3;
const BY_NAME: u64 = 4;
const VOLUMES_BY_NAME: u64 = 5;
const SNAPSHOTS_BY_NAME: u64 = 6;
/// Numbers below are for folders, present or to come.
const FIRST_DYNAMIC: u64 = 1 << 16;

/// A folder of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Folder {
    Root,
    Disks(Shelf),
    ByName,
    Links(Shelf),
}

impl Folder {
    pub(super) fn inode(self) -> u64 {
        match self {
            Folder::Root => ROOT,
            Folder::Disks(Shelf::Volumes) => VOLUMES,
            Folder::Disks(Shelf::Snapshots) => SNAPSHOTS,
            Folder::ByName => BY_NAME,
            Folder::Links(Shelf::Volumes) => VOLUMES_BY_NAME,
            Folder::Links(Shelf::Snapshots) => SNAPSHOTS_BY_NAME,
        }
    }

    pub(super) fn parent(self) -> Folder {
        match self {
            Folder::Root | Folder::Disks(_) | Folder::ByName => Folder::Root,
            Folder::Links(_) => Folder::ByName,
        }
    }

    /// The folders in a folder, by name.
    pub(super) fn folders(self) -> &'static [(&'static str, Folder)] {
        match self {
            Folder::Root => &[
                ("volumes", Folder::Disks(Shelf::Volumes)),
                ("snapshots", Folder::Disks(Shelf::Snapshots)),
                ("by-name", Folder::ByName),
            ],
            Folder::ByName => {
                &[("volumes", Folder::Links(Shelf::Volumes)), ("snapshots", Folder::Links(Shelf::Snapshots))]
            }
            Folder::Disks(_) | Folder::Links(_) => &[],
        }
    }
}

/// The name of a shelf's folder.
pub(super) fn shelf_name(shelf: Shelf) -> &'static str {
    match shelf {
        Shelf::Volumes => "volumes",
        Shelf::Snapshots => "snapshots",
    }
}

/// What an inode number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Folder(Folder),
    /// A disk, by id.
    Disk(Shelf, String),
    /// A link, by the name people gave.
    Link(Shelf, String),
}

impl Node {
    /// The number it has unless another node took it first; what readdir shows.
    pub(super) fn wanted_inode(&self) -> u64 {
        if let Node::Folder(folder) = self {
            return folder.inode();
        }
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        // 63 bits: some programs keep inode numbers in signed integers.
        (hasher.finish() >> 1).max(FIRST_DYNAMIC)
    }
}

#[derive(Default)]
struct Table {
    nodes: HashMap<u64, (Node, u64)>,
    inodes: HashMap<Node, u64>,
}

/// The nodes the kernel refers to.
#[derive(Default)]
pub(super) struct Names {
    table: RwLock<Table>,
}

impl Names {
    /// The kernel is about to hear of `node` once more.
    pub(super) fn remember(&self, node: Node) -> u64 {
        if let Node::Folder(folder) = node {
            return folder.inode();
        }
        let mut table = self.table.write();
        if let Some(inode) = table.inodes.get(&node).copied() {
            table.nodes.get_mut(&inode).expect("both maps hold the same nodes").1 += 1;
            return inode;
        }
        let mut inode = node.wanted_inode();
        while table.nodes.contains_key(&inode) {
            inode = (inode + 1).max(FIRST_DYNAMIC);
        }
        table.inodes.insert(node.clone(), inode);
        table.nodes.insert(inode, (node, 1));
        inode
    }

    /// The kernel dropped `lookups` of its references.
    pub(super) fn forget(&self, inode: u64, lookups: u64) {
        let mut table = self.table.write();
        let Some((_, count)) = table.nodes.get_mut(&inode) else { return };
        *count = count.saturating_sub(lookups);
        if *count == 0 {
            let (node, _) = table.nodes.remove(&inode).expect("it was there a line above");
            table.inodes.remove(&node);
        }
    }

    /// What a number stands for.
    pub(super) fn node(&self, inode: u64) -> Option<Node> {
        let folder = match inode {
            ROOT => Folder::Root,
            VOLUMES => Folder::Disks(Shelf::Volumes),
            SNAPSHOTS => Folder::Disks(Shelf::Snapshots),
            BY_NAME => Folder::ByName,
            VOLUMES_BY_NAME => Folder::Links(Shelf::Volumes),
            SNAPSHOTS_BY_NAME => Folder::Links(Shelf::Snapshots),
            _ => return self.table.read().nodes.get(&inode).map(|(node, _)| node.clone()),
        };
        Some(Node::Folder(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_has_the_number_it_is_found_by() {
        let names = Names::default();
        let mut open = vec![Folder::Root];
        while let Some(folder) = open.pop() {
            assert_eq!(names.node(folder.inode()), Some(Node::Folder(folder)));
            open.extend(folder.folders().iter().map(|(_, below)| *below));
        }
    }

    #[test]
    fn a_node_goes_with_its_last_reference() {
        let names = Names::default();
        let node = Node::Disk(Shelf::Volumes, "vol-1".into());
        let inode = names.remember(node.clone());
        assert_eq!(names.remember(node.clone()), inode);
        names.forget(inode, 1);
        assert_eq!(names.node(inode), Some(node));
        names.forget(inode, 7);
        assert_eq!(names.node(inode), None);
        names.forget(inode, 1);
        assert!(names.table.read().inodes.is_empty());
    }

    #[test]
    fn nodes_that_want_one_number_get_two() {
        let names = Names::default();
        let node = Node::Disk(Shelf::Volumes, "vol-1".into());
        let wanted = node.wanted_inode();
        let squatter = Node::Link(Shelf::Volumes, "squatter".into());
        names.table.write().nodes.insert(wanted, (squatter, 1));
        let inode = names.remember(node.clone());
        assert_ne!(inode, wanted);
        assert_eq!(names.node(inode), Some(node));
    }
}
