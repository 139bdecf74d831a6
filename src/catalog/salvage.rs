//! What can still be read of a catalog that is damaged or lies, row by row. Nothing of it is believed here.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::connection::{distrust, has_our_tables};
use super::resolve::is_id;
use super::row::Fields;
use super::{
    Account, BinEntry, BinRule, CatalogError, Instance, Key, KeyVersion, Setting, Snapshot, SnapshotLock,
    Tag, Volume,
};
use super::{accounts, bin, check_description, keys, locks, snapshots, volumes};
use crate::ids::{KeyId, LayerId, Name, SnapshotId};

/// Rows that read, and whether there are others.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Owners of resources.
    pub accounts: Vec<Account>,
    /// KMS instances.
    pub instances: Vec<Instance>,
    /// Keys, with those of their aliases that read.
    pub keys: Vec<Key>,
    /// Versions of keys.
    pub key_versions: Vec<KeyVersion>,
    /// Switches.
    pub settings: Vec<(Setting, bool)>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Locks of snapshots, expired or not; none: it has one, which does not read.
    pub locks: Vec<(SnapshotId, Option<SnapshotLock>)>,
    /// Places in the bin.
    pub bin: Vec<(SnapshotId, BinEntry)>,
    /// What vouches for retentions.
    pub retention_macs: Vec<(SnapshotId, [u8; 16])>,
    /// Rules of the bin.
    pub bin_rules: Vec<BinRule>,
    /// Layers that a row says to have ended: whether one of them has a name, it knew. (Of another that has ended by now it may be
    /// too old to know, as without its write-ahead log.)
    pub ended_layers: HashSet<LayerId>,
    /// Tags, each with what it is of.
    pub tags: Vec<(String, Tag)>,
    /// Some row of a volume or snapshot did not read, or none did.
    pub lacks_names: bool,
}

impl Salvaged {
    /// Of no catalog at all.
    pub fn nothing() -> Self {
        Self { lacks_names: true, ..Self::default() }
    }

    /// Reads what can be read of the file. The caller has it alone, and does not need it any more: SQLite may write to it.
    pub fn read(path: &Path, region: &str) -> Self {
        let open = || -> rusqlite::Result<Option<Connection>> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            distrust(&connection)?;
            // What is not would run within our statements, and need not end.
            Ok(has_our_tables(&connection)?.then_some(connection))
        };
        let Ok(Some(connection)) = open() else { return Self::nothing() };
        let from = Rows { connection: &connection, region };
        let aliases = from.read("SELECT alias, key, key AS id FROM key_aliases", |f| {
            Ok((f.parsed::<KeyId>("key", "a key's id")?, f.parsed::<Name>("alias", "a name")?))
        });
        // A broken tree may hold a row twice.
        let mut seen = HashSet::new();
        let aliases: Vec<_> = aliases.0.into_iter().filter(|(_, alias)| seen.insert(alias.clone())).collect();
        let mut keys = from.read(keys::KEY, keys::key).0;
        for key in &mut keys {
            key.aliases = aliases.iter().filter(|(of, _)| *of == key.id).map(|(_, a)| a.clone()).collect();
        }
        let settings = from.read("SELECT k, v, k AS id FROM settings", |f| {
            Ok((f.text("k")?.to_owned(), f.text("v")?.to_owned()))
        });
        let settings = settings.0.iter().filter_map(|(name, value)| {
            let setting = Setting::ALL.iter().find(|setting| setting.as_str() == name)?;
            Some((*setting, value == "true"))
        });
        let tags = from.read("SELECT resource, k, v, resource AS id FROM tags", |f| {
            let tag = Tag { key: f.text("k")?.to_owned(), value: f.text("v")?.to_owned() };
            Ok((f.text("resource")?.to_owned(), tag))
        });
        const ENDED: &str = "SELECT id FROM layers WHERE state NOT IN ('preparing', 'next', 'active')";
        let ended = from.read(ENDED, |f| f.parsed::<LayerId>("id", "a layer's id")).0;
        // Other rows than those of snapshots: an older catalog has none.
        let locks = from
            .read(&format!("{} WHERE coalesce(locked_until, lock_mode) IS NOT NULL", locks::LOCK), |f| {
                Ok((f.parsed::<SnapshotId>("id", "a snapshot's id")?, locks::lock(f).ok().flatten()))
            });
        let of_snapshot = |f: &Fields| f.parsed::<SnapshotId>("id", "a snapshot's id");
        let bin = from.read(bin::BIN_ENTRY, |f| Ok((of_snapshot(f)?, bin::bin_entry(f)?))).0;
        let macs = from.read("SELECT snapshot AS id, mac FROM retentions", |f| {
            Ok((
                of_snapshot(f)?,
                f.blob("mac", 16)?.try_into().map_err(|_| f.corrupted("mac", "16 bytes", "fewer"))?,
            ))
        });
        let (volumes, all_volumes) = from.read(volumes::VOLUME, volumes::volume);
        let (snapshots, all_snapshots) = from.read(snapshots::SNAPSHOT, snapshots::snapshot);
        let read = Self {
            accounts: from.read(accounts::ACCOUNT, accounts::account).0,
            instances: from.read(accounts::INSTANCE, accounts::instance).0,
            keys,
            key_versions: from.read(keys::KEY_VERSION, keys::key_version).0,
            settings: settings.collect(),
            volumes,
            snapshots,
            locks: locks.0,
            bin,
            retention_macs: macs.0,
            bin_rules: from.read(bin::BIN_RULE, bin::bin_rule).0,
            ended_layers: ended.into_iter().collect(),
            tags: tags.0,
            lacks_names: !(all_volumes && all_snapshots),
        };
        read.without_what_no_command_makes()
    }

    /// A bit may have made a name an id, or a description none: the new catalog would refuse them.
    fn without_what_no_command_makes(mut self) -> Self {
        let tidy = |text: &mut Option<String>| {
            if text.as_deref().is_some_and(|text| check_description(text).is_err()) {
                *text = None;
            }
        };
        self.snapshots.iter_mut().for_each(|s| tidy(&mut s.description));
        self.keys.iter_mut().for_each(|k| tidy(&mut k.description));
        self.keys.iter_mut().for_each(|k| k.aliases.retain(|alias| !is_id(alias)));
        // One that is left out gets another.
        self.lacks_names |= self.snapshots.iter().any(|s| is_id(&s.name));
        self.volumes.retain(|v| !v.name.as_ref().is_some_and(is_id));
        self.snapshots.retain(|s| !is_id(&s.name));
        self
    }
}

struct Rows<'c> {
    connection: &'c Connection,
    region: &'c str,
}

impl Rows<'_> {
    /// The rows that read, and whether they are all.
    fn read<T>(&self, sql: &str, decode: impl Fn(&Fields) -> Result<T, CatalogError>) -> (Vec<T>, bool) {
        let mut found = Vec::new();
        let Ok(mut statement) = self.connection.prepare(sql) else { return (found, false) };
        let Ok(mut rows) = statement.query([]) else { return (found, false) };
        let mut is_whole = true;
        loop {
            match rows.next() {
                Ok(Some(row)) => match decode(&Fields::new(row, self.region)) {
                    Ok(row) => found.push(row),
                    Err(_) => is_whole = false,
                },
                Ok(None) => return (found, is_whole),
                // The rest lies on pages that don't read.
                Err(_) => return (found, false),
            }
        }
    }
}
