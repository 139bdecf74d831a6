//! What is asked of the one process that may change a region's layers: by a command of itself, or over the socket.

use serde::{Deserialize, Serialize};

use crate::catalog::Tag;

/// A snapshot of one volume, as part of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotItem {
    /// The volume's id.
    pub volume: String,
    /// The snapshot's id, chosen by the asker.
    pub snapshot: String,
    /// Its name.
    pub name: String,
}

/// Something to do. Ids and names are texts: what comes over a socket is parsed again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Snapshots of one or several volumes at one moment.
    Snapshot {
        /// Which.
        items: Vec<SnapshotItem>,
        /// The account that owns them.
        account: String,
        /// The group they form, for several.
        group: Option<String>,
        /// Free words.
        description: Option<String>,
        /// Their tags.
        tags: Vec<TagText>,
        /// Days after which they may go.
        retention_days: Option<u32>,
    },
    /// Put a volume back to a snapshot of it.
    Rollback {
        /// The volume's id.
        volume: String,
        /// The snapshot's id.
        snapshot: String,
    },
    /// Make a volume larger.
    Resize {
        /// The volume's id.
        volume: String,
        /// Its new size.
        size_bytes: u64,
    },
    /// Take a volume away.
    DeleteVolume {
        /// The volume's id.
        volume: String,
    },
    /// Take a snapshot's name away, and its layer if nothing needs it; or put it into the bin, where a rule says so.
    DeleteSnapshot {
        /// The snapshot's id.
        snapshot: String,
    },
    /// The same without the bin, or out of it.
    PurgeSnapshot {
        /// The snapshot's id.
        snapshot: String,
    },
    /// Purge or delete a snapshot whose time is over by the region's clock; nothing, where it is not.
    EndSnapshot {
        /// The snapshot's id.
        snapshot: String,
    },
    /// Close what nobody has open and whose key may not be used any more.
    LetGo,
    /// What is live here.
    Status,
    /// Unmount, if nothing is in use.
    Unmount,
}

impl Order {
    /// Whether layers may be there to be folded once it is done.
    pub(super) fn may_free_layers(&self) -> bool {
        matches!(
            self,
            Self::DeleteSnapshot { .. }
                | Self::PurgeSnapshot { .. }
                | Self::EndSnapshot { .. }
                | Self::DeleteVolume { .. }
                | Self::Rollback { .. }
        )
    }
}

/// A tag on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagText {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl From<&Tag> for TagText {
    fn from(tag: &Tag) -> Self {
        Self { key: tag.key.clone(), value: tag.value.clone() }
    }
}

/// A volume that is live in a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LiveState {
    /// Its id.
    pub volume: String,
    /// Whether a failed write or sync has latched it.
    pub latched: bool,
    /// The first error since it was opened, of which requests got EIO, and how many there were.
    #[serde(default)]
    pub trouble: Option<String>,
    /// The processes that have its file open.
    pub openers: Vec<u32>,
    /// Bytes answered and not yet durable.
    pub unflushed_bytes: u64,
}

/// A volume that could not be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unopened {
    /// Its id.
    pub volume: String,
    /// Why.
    pub trouble: String,
}

/// What the process that serves a region says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HostState {
    /// Its process.
    pub pid: u32,
    /// Where it is mounted.
    pub mount_point: String,
    /// Volumes that are live.
    pub live: Vec<LiveState>,
    /// Volumes that could not be opened when they last were to be.
    #[serde(default)]
    pub unopened: Vec<Unopened>,
}

/// What came of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// The answer to [`Order::Status`].
    Status(HostState),
    /// Refused or failed.
    Failed {
        /// The exit number it means.
        exit: i32,
        /// The sentence.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}
