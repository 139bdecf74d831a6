//! What stands under each name of the mount, and what `stat` shows of it.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{AccessFlags, FileAttr, FileType, INodeNo};

use super::attributes::{self, Owner, Shown};
use super::errno::Refusal;
use super::files::Files;
use super::handles::Line;
use super::names::{Folder, Names, Node, shelf_name};
use super::{Entry, Errno, Export, Shelf};

pub(super) const NAME_BYTES_MAX: usize = 255;

/// The names of one mount.
pub(super) struct Tree {
    export: Arc<dyn Export>,
    pub(super) names: Names,
    /// An open disk is asked itself.
    files: Arc<Files>,
    owner: Owner,
    mounted: SystemTime,
}

impl Tree {
    pub(super) fn new(export: Arc<dyn Export>, files: Arc<Files>, owner: Owner) -> Self {
        Self { export, names: Names::default(), files, owner, mounted: SystemTime::now() }
    }

    pub(super) fn node(&self, inode: INodeNo) -> Result<Node, Errno> {
        self.names.node(inode.0).ok_or_else(|| Refusal::NoSuchName.into())
    }

    pub(super) fn folder(&self, inode: INodeNo) -> Result<Folder, Errno> {
        match self.node(inode)? {
            Node::Folder(folder) => Ok(folder),
            _ => Err(Refusal::NotAFolder.into()),
        }
    }

    /// A name in a folder: the node and its attributes, still without a number where it is a disk or link.
    pub(super) fn find(&self, parent: INodeNo, name: &OsStr) -> Result<(Node, FileAttr), Errno> {
        let folder = self.folder(parent)?;
        let name = name.to_str().ok_or(Refusal::NoSuchName)?;
        if let Some((_, below)) = folder.folders().iter().find(|(known, _)| *known == name) {
            return Ok((Node::Folder(*below), attributes::of_folder(*below, self.owner, self.mounted)));
        }
        match folder {
            Folder::Disks(shelf) => {
                let entry = self.export.find(shelf, name)?.ok_or(Refusal::NoSuchName)?;
                let node = Node::Disk(shelf, name.to_owned());
                let attr = self.disk_attr(node.wanted_inode(), shelf, name, &Shown::from(&entry));
                Ok((node, attr))
            }
            Folder::Links(shelf) => {
                let entry = self.export.find_by_name(shelf, name)?.ok_or(Refusal::NoSuchName)?;
                Ok((Node::Link(shelf, name.to_owned()), self.link_attr(0, shelf, &entry)))
            }
            Folder::Root | Folder::ByName => Err(Refusal::NoSuchName.into()),
        }
    }

    pub(super) fn attributes(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        match self.node(inode)? {
            Node::Folder(folder) => Ok(attributes::of_folder(folder, self.owner, self.mounted)),
            Node::Disk(shelf, id) => Ok(self.disk_attr(inode.0, shelf, &id, &self.shown(inode, shelf, &id)?)),
            Node::Link(shelf, name) => {
                let entry = self.export.find_by_name(shelf, &name)?.ok_or(Refusal::NoSuchName)?;
                Ok(self.link_attr(inode.0, shelf, &entry))
            }
        }
    }

    /// Size and age of a disk; an open one is asked itself, the catalog only for the others.
    pub(super) fn shown(&self, inode: INodeNo, shelf: Shelf, id: &str) -> Result<Shown, Errno> {
        if let Some(shown) = self.files.shown(inode.0) {
            return Ok(shown);
        }
        let entry = self.export.find(shelf, id)?.ok_or(Refusal::NoSuchName)?;
        Ok(Shown::from(&entry))
    }

    fn disk_attr(&self, inode: u64, shelf: Shelf, id: &str, shown: &Shown) -> FileAttr {
        let changed = match shelf {
            Shelf::Snapshots => shown.created,
            Shelf::Volumes => self.files.time_of_change(inode, id).max(shown.created),
        };
        attributes::of_disk(inode, shelf, shown.size_bytes, shown.created, changed, self.owner)
    }

    fn link_attr(&self, inode: u64, shelf: Shelf, entry: &Entry) -> FileAttr {
        let created = attributes::time_of_seconds(entry.created_at);
        attributes::of_link(inode, link_target(shelf, &entry.id).len(), self.owner, created)
    }

    pub(super) fn lines_of(&self, folder: Folder) -> Result<Vec<Line>, Errno> {
        let line = |node: Node, kind, name: &str| Line {
            inode: node.wanted_inode(),
            kind,
            name: OsString::from(name),
        };
        let mut lines = vec![
            line(Node::Folder(folder), FileType::Directory, "."),
            line(Node::Folder(folder.parent()), FileType::Directory, ".."),
        ];
        lines.extend(
            folder
                .folders()
                .iter()
                .map(|(name, below)| line(Node::Folder(*below), FileType::Directory, name)),
        );
        if let Folder::Disks(shelf) = folder {
            let entries = self.export.list(shelf)?;
            let showable = entries.iter().filter(|entry| is_showable(&entry.id));
            lines.extend(
                showable.map(|e| line(Node::Disk(shelf, e.id.clone()), FileType::RegularFile, &e.id)),
            );
        }
        if let Folder::Links(shelf) = folder {
            let entries = self.export.list(shelf)?;
            let names =
                entries.iter().filter_map(|entry| entry.name.as_deref()).filter(|name| is_showable(name));
            lines.extend(names.map(|name| line(Node::Link(shelf, name.to_owned()), FileType::Symlink, name)));
        }
        Ok(lines)
    }

    /// Where a link points.
    pub(super) fn target(&self, inode: INodeNo) -> Result<String, Errno> {
        match self.node(inode)? {
            Node::Link(shelf, name) => {
                let entry = self.export.find_by_name(shelf, &name)?.ok_or(Refusal::NoSuchName)?;
                Ok(link_target(shelf, &entry.id))
            }
            _ => Err(Refusal::Senseless.into()),
        }
    }

    /// The disk under a number.
    pub(super) fn disk(&self, inode: INodeNo) -> Result<(Shelf, String), Errno> {
        match self.node(inode)? {
            Node::Disk(shelf, id) => Ok((shelf, id)),
            Node::Folder(_) => Err(Refusal::IsAFolder.into()),
            Node::Link(..) => Err(Refusal::Senseless.into()),
        }
    }

    /// Setting the size succeeds and changes nothing, so that `dd of=FILE` and `cp` work as on a block device. Times are
    /// accepted and not kept. Setting mode or owner to what they are is no change.
    pub(super) fn set_attributes(
        &self,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
    ) -> Result<FileAttr, Errno> {
        let attr = self.attributes(inode)?;
        if mode.is_some_and(|mode| mode & 0o7777 != u32::from(attr.perm))
            || uid.is_some_and(|uid| uid != attr.uid)
            || gid.is_some_and(|gid| gid != attr.gid)
        {
            return Err(Refusal::FixedOwner.into());
        }
        match (size, self.node(inode)?) {
            (Some(_), Node::Folder(_)) => Err(Refusal::IsAFolder.into()),
            (Some(_), Node::Disk(Shelf::Snapshots, _)) => Err(Refusal::Snapshot.into()),
            _ => Ok(attr),
        }
    }

    pub(super) fn may_access(&self, inode: INodeNo, mask: AccessFlags) -> Result<(), Errno> {
        match self.node(inode)? {
            Node::Disk(..) if mask.contains(AccessFlags::X_OK) => Err(Refusal::NotAProgram.into()),
            Node::Disk(Shelf::Snapshots, _) if mask.contains(AccessFlags::W_OK) => {
                Err(Refusal::Snapshot.into())
            }
            Node::Folder(_) if mask.contains(AccessFlags::W_OK) => Err(Refusal::FixedTree.into()),
            _ => Ok(()),
        }
    }
}

/// Where a link points, from its folder.
fn link_target(shelf: Shelf, id: &str) -> String {
    format!("../../{}/{id}", shelf_name(shelf))
}

/// One bad name would make the kernel fail the whole folder.
fn is_showable(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0'])
}
