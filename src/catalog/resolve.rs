//! From what a person typed to the one thing it means: an id, a name or alias, or the beginning of an id.

use super::{BinRule, CatalogError, Key, Kind, ReadTx, Snapshot, SnapshotState, Task, Volume, WriteTx};
use crate::ids::{
    AccountId, BinRuleId, GroupId, InstanceId, KeyId, Name, ScheduleId, SnapshotId, TaskId, VolumeId,
};

/// Fewer digits of an id than this are no id.
const PREFIX_DIGITS_MIN: usize = 6;
/// So many are named when a text is ambiguous.
const MATCHES_MAX: i64 = 8;

impl ReadTx<'_> {
    /// The volume of this id, name or beginning of an id.
    pub fn resolve_volume(&self, text: &str) -> Result<Volume, CatalogError> {
        let by_name = self.find_volume_by_name(text)?.map(|volume| volume.id.to_string());
        let id = self.resolve(Kind::Volume, text, VolumeId::PREFIX, "volumes", by_name)?;
        self.find_volume(self.own(&id)?)?.ok_or_else(|| self.not_found(Kind::Volume, text))
    }

    /// The snapshot of this id, name or beginning of an id. What is in the bin has no name.
    pub fn resolve_snapshot(&self, text: &str) -> Result<Snapshot, CatalogError> {
        let by_name = self.id_of_name(text)?;
        let id = self.resolve(Kind::Snapshot, text, SnapshotId::PREFIX, "snapshots", by_name)?;
        self.find_snapshot(self.own(&id)?)?.ok_or_else(|| self.not_found(Kind::Snapshot, text))
    }

    /// The snapshot in the bin of this id, the name that it had, or beginning of an id.
    pub fn resolve_deleted_snapshot(&self, text: &str) -> Result<Snapshot, CatalogError> {
        let named = self.deleted_snapshots_named(text)?;
        let id = match named.as_slice() {
            [] => {
                self.resolve(Kind::Snapshot, text, SnapshotId::PREFIX, "snapshots", self.id_of_name(text)?)?
            }
            [one] => {
                self.resolve(Kind::Snapshot, text, SnapshotId::PREFIX, "snapshots", Some(one.clone()))?
            }
            _ => {
                return Err(CatalogError::Ambiguous {
                    kind: Kind::Snapshot,
                    text: shortened(text),
                    region: self.region().to_owned(),
                    matches: named,
                });
            }
        };
        let found =
            self.find_snapshot(self.own(&id)?)?.ok_or_else(|| self.not_found(Kind::Snapshot, text))?;
        match found.state {
            SnapshotState::Deleted => Ok(found),
            _ => Err(CatalogError::Refused {
                what: format!("snapshot {} ({}) is not in the bin", found.name, found.id),
            }),
        }
    }

    fn deleted_snapshots_named(&self, name: &str) -> Result<Vec<String>, CatalogError> {
        let sql = "SELECT id FROM snapshots WHERE name = ?1 AND state = 'deleted' ORDER BY id LIMIT ?2";
        self.list(sql, rusqlite::params![name, MATCHES_MAX], |f| f.text("id").map(str::to_owned))
    }

    fn id_of_name(&self, name: &str) -> Result<Option<String>, CatalogError> {
        Ok(self.find_snapshot_by_name(name)?.map(|snapshot| snapshot.id.to_string()))
    }

    /// The rule of the bin of this id or beginning of one.
    pub fn resolve_bin_rule(&self, text: &str) -> Result<BinRule, CatalogError> {
        let id = self.resolve(Kind::BinRule, text, BinRuleId::PREFIX, "bin_rules", None)?;
        self.find_bin_rule(self.own(&id)?)?.ok_or_else(|| self.not_found(Kind::BinRule, text))
    }

    /// The key of this id, alias or beginning of an id.
    pub fn resolve_key(&self, text: &str) -> Result<Key, CatalogError> {
        let by_alias = self.key_of_alias(text)?.map(|key| key.to_string());
        let id = self.resolve(Kind::Key, text, KeyId::PREFIX, "keys", by_alias)?;
        self.find_key(self.own(&id)?)?.ok_or_else(|| self.not_found(Kind::Key, text))
    }

    /// The task of this id or beginning of one, or the newest that makes the snapshot of this name or id.
    pub fn resolve_task(&self, text: &str) -> Result<Task, CatalogError> {
        let made = match is_whole_id(text, SnapshotId::PREFIX) {
            true => Some(text.to_owned()),
            false => self.id_of_name(text)?,
        };
        let by_name = made.map(|made| self.task_of(&made)).transpose()?.flatten();
        let id =
            self.resolve(Kind::Task, text, TaskId::PREFIX, "tasks", by_name.map(|task| task.id.to_string()))?;
        self.find_task(self.own(&id)?)?.ok_or_else(|| self.not_found(Kind::Task, text))
    }

    /// The id of the schedule of this id, name or beginning of an id, whether the rest of its row reads or not.
    pub fn resolve_schedule(&self, text: &str) -> Result<ScheduleId, CatalogError> {
        let by_name = self.schedule_of_name(text)?;
        self.own(&self.resolve(Kind::Schedule, text, ScheduleId::PREFIX, "schedules", by_name)?)
    }

    /// Refuses a name that a volume or a snapshot, by `kind`, has already.
    pub fn refuse_taken_name(&self, kind: Kind, name: &Name) -> Result<(), CatalogError> {
        let taken = match kind {
            Kind::Volume => self.find_volume_by_name(name.as_str())?.is_some(),
            _ => self.find_snapshot_by_name(name.as_str())?.is_some(),
        };
        match taken {
            false => Ok(()),
            true => {
                Err(CatalogError::Exists { kind, name: name.to_string(), region: self.region().to_owned() })
            }
        }
    }

    fn resolve(
        &self,
        kind: Kind,
        text: &str,
        prefix: &str,
        table: &str,
        by_name: Option<String>,
    ) -> Result<String, CatalogError> {
        if is_whole_id(text, prefix) {
            return Ok(text.to_owned());
        }
        let mut matches = self.ids_beginning_with(text, prefix, table)?;
        if let Some(id) = by_name
            && !matches.contains(&id)
        {
            matches.insert(0, id);
        }
        match matches.as_slice() {
            [] => Err(self.not_found(kind, shortened(text))),
            [id] => Ok(id.clone()),
            _ => Err(CatalogError::Ambiguous {
                kind,
                text: shortened(text),
                region: self.region().to_owned(),
                matches,
            }),
        }
    }

    fn ids_beginning_with(&self, text: &str, prefix: &str, table: &str) -> Result<Vec<String>, CatalogError> {
        let Some(digits) = text.strip_prefix(prefix) else { return Ok(Vec::new()) };
        if !(PREFIX_DIGITS_MIN..17).contains(&digits.len()) || !digits.bytes().all(is_digit) {
            return Ok(Vec::new());
        }
        // Every id that begins so is at or after the text, and before the text with its last part raised above 'f'.
        self.list(
            &format!(
                "SELECT id FROM {table} WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT {MATCHES_MAX}"
            ),
            [text],
            |f| f.text("id").map(str::to_owned),
        )
    }

    fn own<T: std::str::FromStr>(&self, id: &str) -> Result<T, CatalogError> {
        id.parse().map_err(|_| CatalogError::Corrupted {
            region: self.region().to_owned(),
            what: "an id".into(),
            expected: "a prefix and 17 hexadecimal digits".into(),
            found: shortened(id),
        })
    }
}

/// Whether a name has the form of an id.
pub(super) fn is_id(name: &Name) -> bool {
    let prefixes = [
        VolumeId::PREFIX,
        SnapshotId::PREFIX,
        GroupId::PREFIX,
        KeyId::PREFIX,
        TaskId::PREFIX,
        AccountId::PREFIX,
        InstanceId::PREFIX,
        BinRuleId::PREFIX,
        ScheduleId::PREFIX,
        "img-",
    ];
    prefixes.iter().any(|prefix| is_whole_id(name.as_str(), prefix))
}

impl WriteTx<'_> {
    /// A name of the form of an id would hide what has that id.
    pub(super) fn refuse_id_as_name(&self, name: &Name) -> Result<(), CatalogError> {
        if is_id(name) {
            return Err(CatalogError::Refused { what: format!("the name {name} has the form of an id") });
        }
        Ok(())
    }
}

fn is_whole_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|digits| digits.len() == 17 && digits.bytes().all(is_digit))
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

fn shortened(text: &str) -> String {
    text.chars().take(160).collect()
}
