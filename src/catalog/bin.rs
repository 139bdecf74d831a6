//! The recycle bin: rules that say what waits in it and how long, and what is in it.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, worded};
use super::{CatalogError, Kind, ReadTx, Snapshot, SnapshotState, Tag, WriteTx, check_tags};
use crate::ids::{AccountId, BinRuleId, Name, SnapshotId};

/// A rule keeps what is deleted so many days at most.
pub const BIN_DAYS_MAX: u32 = 365;

worded! {
    /// What a rule is for.
    BinKind {
        /// Snapshots.
        Snapshot = "snapshot",
    }
}

/// A rule: what is deleted and has all its tags waits in the bin. Its tags are those of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinRule {
    /// Its id.
    pub id: BinRuleId,
    /// The account that made it.
    pub account: AccountId,
    /// What it is for.
    pub kind: BinKind,
    /// How long that waits, 1 to 365.
    pub days: u32,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A snapshot's place in the bin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinEntry {
    /// When it was deleted.
    pub deleted_at: Timestamp,
    /// When it goes for good, as it was said then.
    pub purge_at: Timestamp,
    /// Vouches for both.
    pub mac: Option<[u8; 16]>,
}

pub(super) const BIN_RULE: &str = "SELECT id, account, kind, days, created_at FROM bin_rules";
pub(super) const BIN_ENTRY: &str = "SELECT snapshot, snapshot AS id, deleted_at, purge_at, mac FROM bin";

pub(super) fn bin_rule(f: &Fields) -> Result<BinRule, CatalogError> {
    let days = f.small("days", BIN_DAYS_MAX)?;
    if days == 0 {
        return Err(f.corrupted("days", &format!("1 to {BIN_DAYS_MAX}"), "0"));
    }
    Ok(BinRule {
        id: f.parsed("id", "a bin rule's id")?,
        account: f.parsed("account", "an account's id")?,
        kind: f.parsed("kind", "snapshot")?,
        days,
        created_at: f.time("created_at")?,
    })
}

pub(super) fn bin_entry(f: &Fields) -> Result<BinEntry, CatalogError> {
    Ok(BinEntry {
        deleted_at: f.time("deleted_at")?,
        purge_at: f.time("purge_at")?,
        // Of another length it vouches for nothing.
        mac: f.opt_blob("mac", 64)?.and_then(|mac| mac.try_into().ok()),
    })
}

impl ReadTx<'_> {
    /// All rules of the bin, oldest first.
    pub fn bin_rules(&self) -> Result<Vec<BinRule>, CatalogError> {
        self.list(&format!("{BIN_RULE} ORDER BY created_at, id"), [], bin_rule)
    }

    /// The rule of this id.
    pub fn find_bin_rule(&self, id: BinRuleId) -> Result<Option<BinRule>, CatalogError> {
        self.first(&format!("{BIN_RULE} WHERE id = ?1"), [id.to_string()], bin_rule)
    }

    /// How many days something with these tags waits in the bin: of the rules that apply the longest; none: it does not.
    pub fn days_in_bin(&self, kind: BinKind, tags: &[Tag]) -> Result<Option<u32>, CatalogError> {
        let mut longest = None;
        for rule in self.bin_rules()?.iter().filter(|rule| rule.kind == kind) {
            if longest < Some(rule.days)
                && self.tags(&rule.id.to_string())?.iter().all(|tag| tags.contains(tag))
            {
                longest = Some(rule.days);
            }
        }
        Ok(longest)
    }

    /// A snapshot's place in the bin, if its state says that it is there.
    pub fn bin_entry(&self, id: SnapshotId) -> Result<Option<BinEntry>, CatalogError> {
        let sql = format!(
            "{BIN_ENTRY} WHERE snapshot = ?1 AND EXISTS (SELECT 1 FROM snapshots WHERE id = ?1 AND state = 'deleted')"
        );
        self.first(&sql, [id.to_string()], bin_entry)
    }

    /// Refuses a rule that says what another says.
    fn refuse_twin(&self, rule: &BinRule, tags: &[Tag]) -> Result<(), CatalogError> {
        for other in self.bin_rules()? {
            let of_other = self.tags(&other.id.to_string())?;
            let is_alike = (other.kind, other.days) == (rule.kind, rule.days);
            if is_alike && of_other.len() == tags.len() && of_other.iter().all(|tag| tags.contains(tag)) {
                return Err(CatalogError::Exists {
                    kind: Kind::BinRule,
                    name: other.id.to_string(),
                    region: self.region().to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl WriteTx<'_> {
    /// Adds a rule; one that says the same is [`CatalogError::Exists`].
    pub fn insert_bin_rule(&self, rule: &BinRule, tags: &[Tag]) -> Result<(), CatalogError> {
        if !(1..=BIN_DAYS_MAX).contains(&rule.days) {
            return Err(CatalogError::Refused { what: format!("a bin keeps 1 to {BIN_DAYS_MAX} days") });
        }
        check_tags(tags)?;
        self.refuse_twin(rule, tags)?;
        let id = rule.id.to_string();
        self.insert(
            Kind::BinRule,
            &id,
            "INSERT INTO bin_rules (id, account, kind, days, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                id,
                rule.account.to_string(),
                rule.kind.as_str(),
                rule.days,
                rule.created_at.as_microsecond()
            ],
        )?;
        self.set_tags(&id, tags)
    }

    /// Takes a rule away; what is in the bin by it stays there as long as was said.
    pub fn delete_bin_rule(&self, id: BinRuleId) -> Result<(), CatalogError> {
        self.delete_tags(&id.to_string())?;
        self.update(Kind::BinRule, id, "DELETE FROM bin_rules WHERE id = ?1", [id.to_string()])
    }

    /// Puts a whole snapshot into the bin: its name is free.
    pub fn put_in_bin(&self, id: SnapshotId, entry: &BinEntry) -> Result<(), CatalogError> {
        self.update(
            Kind::Snapshot,
            id,
            "UPDATE snapshots SET state = 'deleted' WHERE id = ?1 AND state = 'success'",
            [id.to_string()],
        )?;
        self.set_bin_entry(id, entry)
    }

    /// Says since when and until when a snapshot is in the bin.
    pub fn set_bin_entry(&self, id: SnapshotId, entry: &BinEntry) -> Result<(), CatalogError> {
        self.execute(
            "INSERT OR REPLACE INTO bin (snapshot, deleted_at, purge_at, mac) VALUES (?1, ?2, ?3, ?4)",
            params![
                id.to_string(),
                entry.deleted_at.as_microsecond(),
                entry.purge_at.as_microsecond(),
                entry.mac.map(|mac| mac.to_vec())
            ],
        )
        .map(drop)
    }

    /// Gives a snapshot back from the bin, under a name and the MAC that covers it; a taken name is [`CatalogError::Exists`].
    pub fn take_out_of_bin(
        &self,
        row: &Snapshot,
        name: &Name,
        mac: Option<[u8; 16]>,
    ) -> Result<(), CatalogError> {
        self.refuse_id_as_name(name)?;
        self.refuse_taken_name(Kind::Snapshot, name)?;
        self.update(
            Kind::Snapshot,
            row.id,
            "UPDATE snapshots SET state = ?2, name = ?3, mac = ?4 WHERE id = ?1 AND state = 'deleted'",
            params![
                row.id.to_string(),
                SnapshotState::Success.as_str(),
                name.as_str(),
                mac.map(|mac| mac.to_vec())
            ],
        )?;
        self.delete_bin_entry(row.id)
    }

    pub(super) fn delete_bin_entry(&self, id: SnapshotId) -> Result<(), CatalogError> {
        self.execute("DELETE FROM bin WHERE snapshot = ?1", [id.to_string()]).map(drop)
    }
}
